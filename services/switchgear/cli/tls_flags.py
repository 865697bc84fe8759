"""`--tls-ca`, `--tls-certificate` and `--tls-key` of a process that serves beyond loopback."""

from __future__ import annotations

import argparse
from pathlib import Path

from switchgear.core.errors import Invalid, Reason
from switchgear.core.tls import TlsFiles


def add_tls_arguments(parser: argparse.ArgumentParser, *, ca: str, certificate: str) -> None:
    """ca, certificate: what each is for, in the words of the help."""
    for name, text in (("ca", ca), ("certificate", certificate), ("key", "the certificate's private key")):
        parser.add_argument(f"--tls-{name}", type=Path, metavar="FILE", help=text)


def tls_from(args: argparse.Namespace) -> TlsFiles | None:
    """None when none is given. Raises Invalid when only some are."""
    ca, certificate, key = args.tls_ca, args.tls_certificate, args.tls_key
    if ca is None and certificate is None and key is None:
        return None
    if ca is None or certificate is None or key is None:
        raise Invalid("--tls-ca, --tls-certificate and --tls-key belong together; give all or none", Reason.BAD_FIELD)
    return TlsFiles(ca, certificate, key)
