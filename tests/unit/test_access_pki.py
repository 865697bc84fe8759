"""Certificates, secrets and invitations."""

from __future__ import annotations

import base64
import time
from pathlib import Path

import pytest
from access_world import request_of
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from switchgear.access import callers, pki, secret
from switchgear.access.strangers import split_peer
from switchgear.core.errors import FailedPrecondition, Invalid
from switchgear.core.identity import Identity, Kind
from switchgear.core.joining import Invitation
from switchgear.core.tls import TlsFiles

NOW = time.time_ns()


@pytest.fixture
def made(tmp_path: Path) -> pki.Pki:
    assert pki.create(tmp_path / "pki", ["gpu.example", "192.0.2.1"], NOW) == ["ca", "service", "router", "metrics"]
    return pki.Pki(tmp_path / "pki")


def read(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def usages(certificate: x509.Certificate) -> set[x509.ObjectIdentifier]:
    return set(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def test_keys_are_private_and_the_ca_signs_nothing_but_leaves(made: pki.Pki) -> None:
    for path in made.folder.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path
    ca, service = read(made.ca), read(made.certificate)
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(True, 0)
    service.verify_directly_issued_by(ca)
    assert usages(service) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert made.hosts() == ["gpu.example", "192.0.2.1", "localhost", "127.0.0.1", "::1"]


def test_neither_a_router_nor_prometheus_has_the_control_planes_name_or_hosts(tmp_path: Path) -> None:
    folder = tmp_path / "pki"
    pki.create(folder, ["gpu.example"], NOW, router_hosts=["router.example"])
    router, metrics = read(folder / "router.crt"), read(folder / "metrics.crt")
    for certificate in (router, metrics):
        certificate.verify_directly_issued_by(read(folder / "ca.crt"))
    sans = router.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert sans.get_values_for_type(x509.UniformResourceIdentifier) == ["switchgear://services/router"]
    assert sans.get_values_for_type(x509.DNSName) == ["router.example", "localhost"]
    (only,) = metrics.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert only.value == "switchgear://services/metrics"
    assert usages(metrics) == {ExtendedKeyUsageOID.CLIENT_AUTH}


def test_a_nodes_certificate_names_the_node_and_no_host(made: pki.Pki, tmp_path: Path) -> None:
    files, expire = made.node_files("nodes/gpu-01", tmp_path / "tls", NOW)
    assert files.certificate
    certificate = read(files.certificate)
    certificate.verify_directly_issued_by(read(made.ca))
    names = list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    assert names == [x509.UniformResourceIdentifier("switchgear://nodes/gpu-01")]
    # A client that still reads host names from there finds none.
    assert certificate.subject.rfc4514_string() == "CN=nodes/gpu-01"
    assert expire > NOW
    before = files.certificate.read_bytes()
    assert made.node_files("nodes/gpu-01", tmp_path / "tls", NOW)[0].certificate == files.certificate
    assert files.certificate.read_bytes() == before
    made.node_files("nodes/gpu-02", tmp_path / "tls", NOW)
    assert files.certificate.read_bytes() != before


def test_init_makes_only_what_is_missing(made: pki.Pki) -> None:
    ca = made.ca.read_bytes()
    assert pki.create(made.folder, [], NOW) == []
    made.certificate.unlink()
    with pytest.raises(FailedPrecondition, match=r"no service\.crt.*switchgear init"):
        pki.Pki.find(made.folder)
    assert pki.create(made.folder, ["other.example"], NOW) == ["service"]
    assert (made.ca.read_bytes(), made.hosts()[0]) == (ca, "other.example")


def test_without_init_there_is_no_pki(tmp_path: Path) -> None:
    assert pki.Pki.find(tmp_path) is None


@pytest.mark.parametrize("host", ["", "a b", "gpu:7070", "https://x", "x" * 300])
def test_a_host_that_is_none_is_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(Invalid, match="no host name"):
        pki.create(tmp_path, [host], NOW)
    assert list(tmp_path.iterdir()) == []


def test_a_request_must_be_signed_with_its_own_key() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    request = request_of(key)
    assert pki.public_key_of(request).public_numbers() == key.public_key().public_numbers()
    tampered = request[:-1] + bytes([request[-1] ^ 1])
    for bad in (b"", b"nonsense", tampered, request * 20, request_of(ec.generate_private_key(ec.SECP384R1()))):
        with pytest.raises(Invalid, match="PKCS #10"):
            pki.public_key_of(bad)


def test_files_are_handed_on_by_environment(tmp_path: Path) -> None:
    files = TlsFiles(tmp_path / "ca", tmp_path / "crt", tmp_path / "key")
    assert TlsFiles.from_environment(files.environment()) == files
    assert TlsFiles.from_environment({}) is None
    assert TlsFiles.from_environment(TlsFiles(tmp_path / "ca").environment()) == TlsFiles(tmp_path / "ca")


def test_an_invitation_reads_back_whole() -> None:
    invitation = Invitation("sgj_x", "127.0.0.1:7070", "-----BEGIN", "127.0.0.1:7076")
    assert Invitation.decode(f" {invitation.encode()}\n") == invitation


@pytest.mark.parametrize("text", ["", "x", "{}", base64.b64encode(b"{}").decode(), base64.b64encode(b"[1]").decode()])
def test_what_is_no_join_token_is_told_so_and_not_repeated(text: str) -> None:
    with pytest.raises(Invalid, match="the whole line"):
        Invitation.decode(text)


@given(st.text(max_size=200))
def test_no_text_breaks_the_readers(text: str) -> None:
    assert secret.parse(secret.BEARER, text) is None
    callers.of_uri(text)
    split_peer(text)
    with pytest.raises(Invalid):
        Invitation.decode(text)


def test_a_secret_is_one_of_its_own_kind() -> None:
    text, token_id, digest = secret.create(secret.BEARER)
    assert secret.parse(secret.BEARER, text) == (token_id, digest)
    assert secret.parse(secret.JOIN, text) is None
    assert len(digest) == 32
    assert not secret.same(digest, secret.digest("other"))


def test_a_certificate_names_a_node_or_a_service_and_nothing_else() -> None:
    assert callers.of_uri("switchgear://nodes/gpu-01") == Identity(Kind.NODE, "gpu-01")
    assert callers.of_uri("switchgear://services/control-plane") == Identity(Kind.SERVICE, "control-plane")
    for uri in ("https://nodes/a", "switchgear://users/root", "switchgear://nodes/", "switchgear://nodes/a/b"):
        assert callers.of_uri(uri) is None


def test_peers_are_read_in_both_families() -> None:
    assert split_peer("ipv4:127.0.0.1:5000") == ("127.0.0.1", 5000)
    assert split_peer("ipv6:%5B::1%5D:5000") == ("::1", 5000)
    assert split_peer("ipv6:[::ffff:10.0.0.1]:7") == ("10.0.0.1", 7)
    assert split_peer("unix:/tmp/socket") is None
