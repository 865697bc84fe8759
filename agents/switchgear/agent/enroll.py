"""How a node joins: a key that never leaves it, and a certificate for a join token, once."""

from __future__ import annotations

import logging
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from switchgear.agent.certificate import not_after
from switchgear.core import names, rpc
from switchgear.core.errors import Invalid, Reason
from switchgear.core.joining import Invitation
from switchgear.core.tls import NodeFiles, TlsFiles, write_private
from switchgear.v1 import access_service_pb2 as pb
from switchgear.v1.access_service_pb2_grpc import AccessServiceStub

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

log = logging.getLogger(__name__)

_TIMEOUT_S = 30.0
#: So long before the certificate expires each start of the agent warns.
_WARN_DAYS = 30
_SERVER = "server"


def read_token(given: str) -> str:
    """The join token itself: what was given, or with `@FILE` what is in that file. Raises Invalid when it cannot be read."""
    if not given.startswith("@"):
        return given
    path = Path(given[1:])
    try:
        return path.read_text(errors="replace")
    except OSError as error:
        raise Invalid(
            f"cannot read the join token in {path} ({error.strerror}); write what `switchgear join-token` printed there",
            Reason.BAD_FIELD,
            field="join",
        ) from error


def join(text: str, node: str, folder: Path) -> NodeFiles:
    """Exchanges what `switchgear join-token` printed for a certificate of that node id, kept in the folder.

    Raises Invalid when the text is no join token, PermissionDenied when it was used, has expired or names another node, and
    Unavailable when nobody answers under the CA that it names; the token is still good then.
    """
    # Here, for the nine megabytes that it takes are needed once in the life of a node.
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    invitation = Invitation.decode(text)
    files = NodeFiles(folder)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_private(files.ca, invitation.ca)
    key = ec.generate_private_key(ec.SECP256R1())
    request = pb.EnrollNodeRequest(
        secret=invitation.secret, node=names.node_name(node), certificate_request=_request(key, node)
    )
    with rpc.sync_channel(invitation.enroll, TlsFiles(files.ca)) as channel:
        try:
            answer = AccessServiceStub(channel).EnrollNode(request, timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            raise rpc.from_rpc_error(error) from error
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_private(folder / _SERVER, invitation.server)
    files.save(answer.ca_certificate, answer.certificate, private.decode())
    log.info("joined as %s", node)
    return files


def server_of(folder: Path) -> str:
    """Where the invitation said that all services are; empty when it did not."""
    path = folder / _SERVER
    return path.read_text() if path.exists() else ""


def warn_of_expiry(files: NodeFiles, now: datetime) -> None:
    """Logs a warning in the last month of the node's certificate. now: with a time zone."""
    expiry = not_after(files.certificate.read_text())
    if (days := (expiry - now).days) < _WARN_DAYS:
        log.warning(
            "this node's certificate expires in %d days; remove %s and join again with a new token: switchgear join-token --node",
            days,
            files.folder,
        )


def _request(key: EllipticCurvePrivateKey, node: str) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, node)])
    built = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return built.public_bytes(serialization.Encoding.DER)
