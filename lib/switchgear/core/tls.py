"""Files with which a process of ours proves who it is: PEM, made by `switchgear init` or handed out when a node joins."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc

from switchgear.core.errors import FailedPrecondition, Reason

#: How a process hands its files to those that it starts.
_ENVIRONMENT = ("SWITCHGEAR_TLS_CA", "SWITCHGEAR_TLS_CERTIFICATE", "SWITCHGEAR_TLS_KEY")


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """ca: who is believed. certificate, key: who we are; None for people and programs, who bring a token instead."""

    ca: Path
    certificate: Path | None = None
    key: Path | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> TlsFiles | None:
        """What `environment` says; None without a CA in it."""
        ca, certificate, key = (environment.get(name, "") for name in _ENVIRONMENT)
        return cls(Path(ca), _path(certificate), _path(key)) if ca else None

    def environment(self) -> dict[str, str]:
        """For processes that are to prove the same: SWITCHGEAR_TLS_CA, _CERTIFICATE and _KEY, absolute paths."""
        paths = (self.ca, self.certificate, self.key)
        return {name: str(path.absolute()) for name, path in zip(_ENVIRONMENT, paths, strict=True) if path}

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Raises FailedPrecondition (TLS_FILES) when a file cannot be read."""
        return grpc.ssl_channel_credentials(_read(self.ca), _read(self.key), _read(self.certificate))

    def client_context(self) -> ssl.SSLContext:
        """The same for a client that speaks HTTP/2 by itself. Raises FailedPrecondition (TLS_FILES) when a file cannot be used."""
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key)
        except OSError as error:
            raise FailedPrecondition(
                f"cannot use the TLS files beside {self.ca} ({error.strerror or error}); name PEM files of `switchgear init`",
                Reason.TLS_FILES,
                path=str(self.ca),
            ) from error
        context.set_alpn_protocols(["h2"])
        return context


@dataclass(frozen=True, slots=True)
class NodeFiles:
    """The folder in which an agent keeps what it got when its node joined."""

    folder: Path

    @property
    def ca(self) -> Path:
        return self.folder / "ca.crt"

    @property
    def certificate(self) -> Path:
        return self.folder / "node.crt"

    @property
    def key(self) -> Path:
        return self.folder / "node.key"

    @property
    def complete(self) -> bool:
        return self.ca.exists() and self.certificate.exists() and self.key.exists()

    @property
    def tls(self) -> TlsFiles:
        return TlsFiles(self.ca, self.certificate, self.key)

    def save(self, ca: str, certificate: str, key: str) -> None:
        """Makes the folder when it is missing. The certificate comes last: with it the node has joined."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path, text in ((self.ca, ca), (self.key, key), (self.certificate, certificate)):
            write_private(path, text)


def write_private(path: Path, text: str) -> None:
    """A file that only its owner may read, from its first byte on; whole or as it was before."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _path(text: str) -> Path | None:
    return Path(text) if text else None


def _read(path: Path | None) -> bytes | None:
    try:
        return path.read_bytes() if path else None
    except OSError as error:
        raise FailedPrecondition(
            f"cannot read {path} ({error.strerror}); make certificates with `switchgear init` or join the node again",
            Reason.TLS_FILES,
            path=str(path),
        ) from error
