"""Files with which a process of ours proves who it is: PEM, made by `switchgear init` or handed out when a node joins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc

from switchgear.core.errors import FailedPrecondition, Reason


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """ca: who is believed. certificate, key: who we are; None for people and programs, who bring a token instead."""

    ca: Path
    certificate: Path | None = None
    key: Path | None = None

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Raises FailedPrecondition (TLS_FILES) when a file cannot be read."""
        return grpc.ssl_channel_credentials(_read(self.ca), _read(self.key), _read(self.certificate))


def _read(path: Path | None) -> bytes | None:
    try:
        return path.read_bytes() if path else None
    except OSError as error:
        raise FailedPrecondition(
            f"cannot read {path} ({error.strerror}); make certificates with `switchgear init` or join the node again",
            Reason.TLS_FILES,
            path=str(path),
        ) from error
