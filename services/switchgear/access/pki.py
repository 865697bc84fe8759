"""The certificate authority of one installation and what it signs: EC P-256, one level deep.

Whoever has `ca.key` may make a certificate for any node and service. Only the gateway needs it, to let nodes join.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from switchgear.access import policy
from switchgear.core import names
from switchgear.core.errors import FailedPrecondition, Invalid, Reason
from switchgear.core.tls import NodeFiles, TlsFiles, write_private

CA_DAYS = 3650
SERVICE_DAYS = 730
NODE_DAYS = 365
_RENEW_NS = 30 * 86400 * 1_000_000_000
#: Clocks of nodes differ; a certificate is good a little before it was made.
_SKEW = timedelta(minutes=5)
#: A request of ours has about 300 bytes.
REQUEST_BYTES_MAX = 4096
HOSTS_MAX = 100
_URI = "switchgear://"
#: One certificate for all services of the control plane: each of them may ask the others for anything.
SERVICE = f"services/{policy.CONTROL_PLANE}"
#: Routers and Prometheus are reached by, or reach out to, people who may not do what the control plane may.
ROUTER = f"services/{policy.ROUTER}"
METRICS = f"services/{policy.METRICS}"


@dataclass(frozen=True, slots=True)
class Pki:
    """A folder that `switchgear init` made: ca, service, router and metrics, each with .crt and .key, all PEM.

    The control plane needs ca.crt and service.*; the others are for a `switchgear router` and a Prometheus.
    """

    folder: Path

    @classmethod
    def find(cls, folder: Path) -> Pki | None:
        """The PKI in that folder; None when there is none. Raises FailedPrecondition (TLS_FILES) when parts of it are missing."""
        pki = cls(folder)
        missing = [path.name for path in (pki.ca, pki.certificate, pki.key) if not path.exists()]
        if len(missing) == 3:
            return None
        if missing:
            raise FailedPrecondition(
                f"{folder} has no {' and no '.join(missing)}; put it back, or let `switchgear init` make what is missing",
                Reason.TLS_FILES,
                path=str(folder),
            )
        return pki

    @property
    def ca(self) -> Path:
        return self.folder / "ca.crt"

    @property
    def ca_key(self) -> Path:
        return self.folder / "ca.key"

    @property
    def certificate(self) -> Path:
        return self.folder / "service.crt"

    @property
    def key(self) -> Path:
        return self.folder / "service.key"

    @property
    def tls_files(self) -> TlsFiles:
        """How a service proves itself."""
        return TlsFiles(self.ca, self.certificate, self.key)

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """What a server shows, and the CA that it believes."""
        pair = (self.key.read_bytes(), self.certificate.read_bytes())
        return grpc.ssl_server_certificate_configuration([pair], self.ca.read_bytes())

    def hosts(self) -> list[str]:
        """Names and addresses that the service certificate is good for, in the order given at `init`."""
        found = x509.load_pem_x509_certificate(self.certificate.read_bytes())
        return [str(san.value) for san in _sans(found) if isinstance(san, x509.DNSName | x509.IPAddress)]

    def sign_node(self, node: str, public_key: ec.EllipticCurvePublicKey, now_unix_ns: int) -> tuple[str, int]:
        """A certificate of `nodes/{node}` in PEM, and its expiry in ns since the epoch.

        It names no host, so no client takes its owner for a service; replicas on the node serve with it, to routers.
        Raises FailedPrecondition (TLS_FILES) when the CA's key is not here.
        """
        names.parse(node, "nodes/*")
        sans = [x509.UniformResourceIdentifier(f"{_URI}{node}")]
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
        return self._sign(_builder(node, public_key, NODE_DAYS, now_unix_ns), usages, sans)

    def node_files(self, node: str, folder: Path, now_unix_ns: int) -> tuple[TlsFiles, int]:
        """What the agent of `nodes/{node}` would keep in that folder after joining, and the certificate's expiry.

        Made when it is missing, another node's or of another CA, and anew in its last month.
        """
        files = NodeFiles(folder)
        if files.complete and files.ca.read_bytes() == self.ca.read_bytes():
            found = x509.load_pem_x509_certificate(files.certificate.read_bytes())
            if f"{_URI}{node}" in _uris(found) and _expiry(found) > now_unix_ns + _RENEW_NS:
                return files.tls, _expiry(found)
        key = ec.generate_private_key(ec.SECP256R1())
        certificate, expire = self.sign_node(node, key.public_key(), now_unix_ns)
        files.save(self.ca.read_text(), certificate, key_pem(key))
        return files.tls, expire

    def _sign_service(
        self, stem: str, name: str, hosts: Sequence[x509.GeneralName], now_unix_ns: int, *, serves: bool = True
    ) -> bool:
        """Makes `{stem}.crt` and `{stem}.key` for `name`, good for those hosts; False when they are there.

        serves: whether others may connect to its owner; it is a client of others in any case.
        Raises FailedPrecondition (TLS_FILES) when the CA's key is not here.
        """
        certificate_file, key_file = self.folder / f"{stem}.crt", self.folder / f"{stem}.key"
        if certificate_file.exists() and key_file.exists():
            return False
        key = ec.generate_private_key(ec.SECP256R1())
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if serves else [])]
        sans = [x509.UniformResourceIdentifier(f"{_URI}{name}"), *hosts]
        certificate, _ = self._sign(_builder(name, key.public_key(), SERVICE_DAYS, now_unix_ns), usages, sans)
        write_private(key_file, key_pem(key))
        write_private(certificate_file, certificate)
        return True

    def _sign(
        self,
        builder: x509.CertificateBuilder,
        usages: Sequence[x509.ObjectIdentifier],
        sans: Sequence[x509.GeneralName],
    ) -> tuple[str, int]:
        try:
            ca_key = serialization.load_pem_private_key(self.ca_key.read_bytes(), None)
        except OSError as error:
            raise FailedPrecondition(
                f"cannot read the CA's key {self.ca_key} ({error.strerror}); it is needed to sign a certificate",
                Reason.TLS_FILES,
                path=str(self.ca_key),
            ) from error
        ca = x509.load_pem_x509_certificate(self.ca.read_bytes())
        certificate = (
            builder.issuer_name(ca.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectAlternativeName(sans), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(_public(ca_key)), critical=False)
            .sign(_signer(ca_key), hashes.SHA256())
        )
        return _pem(certificate), _expiry(certificate)


def create(folder: Path, hosts: Sequence[str], now_unix_ns: int, *, router_hosts: Sequence[str] = ()) -> list[str]:
    """Makes what is missing in the folder, and returns what that was: `ca`, `service`, `router`, `metrics`.

    hosts: names and addresses, besides those of loopback, at which the services are reached. router_hosts: the same of routers that
    run by themselves; a name in both would let a router pass for the control plane.
    Raises Invalid when a host is none, and FailedPrecondition when the CA's key is missing beside its certificate.
    """
    sans, router_sans = _hosts(hosts), _hosts(router_hosts)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    pki, made = Pki(folder), []
    if not pki.ca.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder("Switchgear CA", key.public_key(), CA_DAYS, now_unix_ns)
        ca = (
            builder.issuer_name(_name("Switchgear CA"))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(ca=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        write_private(pki.ca_key, key_pem(key))
        write_private(pki.ca, _pem(ca))
        made.append("ca")
    if pki._sign_service("service", SERVICE, sans, now_unix_ns):
        made.append("service")
    if pki._sign_service("router", ROUTER, router_sans, now_unix_ns):
        made.append("router")
    if pki._sign_service("metrics", METRICS, [], now_unix_ns, serves=False):
        made.append("metrics")
    return made


def public_key_of(request: bytes) -> ec.EllipticCurvePublicKey:
    """The key in a certificate request (PKCS #10, DER), whose owner has signed it. Raises Invalid when it is none of P-256."""
    try:
        if len(request) > REQUEST_BYTES_MAX:
            raise ValueError
        parsed = x509.load_der_x509_csr(request)
        key = parsed.public_key()
        if parsed.is_signature_valid and isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == "secp256r1":
            return key
    except Exception:  # the parser raises whatever it meets, and what it read came from a stranger
        pass
    raise Invalid(
        "certificate_request must be a signed PKCS #10 request (DER) of an EC P-256 key, at most "
        f"{REQUEST_BYTES_MAX} bytes; `switchgear agent --join` makes one",
        Reason.BAD_FIELD,
        field="certificate_request",
    )


def key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def _builder(
    subject: str, public_key: ec.EllipticCurvePublicKey, days: int, now_unix_ns: int
) -> x509.CertificateBuilder:
    now = datetime.fromtimestamp(now_unix_ns // 1_000_000_000, UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + timedelta(days=days))
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _hosts(hosts: Sequence[str]) -> list[x509.GeneralName]:
    if len(hosts) > HOSTS_MAX:
        raise Invalid(f"at most {HOSTS_MAX} hosts", Reason.BAD_FIELD, field="host")
    return [_host(host) for host in dict.fromkeys([*hosts, "localhost", "127.0.0.1", "::1"])]


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not host or len(host) > 253 or not all(c.isascii() and (c.isalnum() or c in ".-") for c in host):
        raise Invalid(
            f"{host[:100]!r} is no host name or address; write it without port or path", Reason.BAD_FIELD, field="host"
        )
    return x509.DNSName(host)


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _sans(certificate: x509.Certificate) -> list[x509.GeneralName]:
    return list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)


def _uris(certificate: x509.Certificate) -> list[str]:
    return [san.value for san in _sans(certificate) if isinstance(san, x509.UniformResourceIdentifier)]


def _expiry(certificate: x509.Certificate) -> int:
    return int(certificate.not_valid_after_utc.timestamp()) * 1_000_000_000


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _signer(key: object) -> ec.EllipticCurvePrivateKey:
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise FailedPrecondition("the CA's key is not an EC key; `switchgear init` makes one", Reason.TLS_FILES)
    return key


def _public(key: object) -> ec.EllipticCurvePublicKey:
    return _signer(key).public_key()
