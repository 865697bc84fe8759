"""The end of a certificate is read as the library reads it."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from switchgear.agent.certificate import not_after


def certificate(end: datetime, issuer: str) -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, issuer)])
    built = x509.CertificateBuilder(name, name, key.public_key(), 1, end - timedelta(days=9000), end)
    return built.sign(key, hashes.SHA256())


@pytest.mark.parametrize("year", [1999, 2026, 2049, 2050, 2080])
@pytest.mark.parametrize("issuer", ["a", "b" * 64])
def test_it_agrees_with_the_library(year: int, issuer: str) -> None:
    made = certificate(datetime(year, 3, 4, 5, 6, 7, tzinfo=UTC), issuer)
    assert not_after(made.public_bytes(serialization.Encoding.PEM).decode()) == made.not_valid_after_utc


def test_what_is_no_certificate_is_refused() -> None:
    with pytest.raises(ValueError, match="PEM"):
        not_after("nothing")
    with pytest.raises(ValueError, match="too soon"):
        not_after("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n")


def test_an_agent_loads_none_of_the_libraries_that_are_too_heavy_for_a_node() -> None:
    heavy = "{'cryptography', 'numpy', 'torch', 'opentelemetry.sdk', 'grpc_tools', 'sqlalchemy', 'fastapi', 'httpx'}"
    code = f"import sys; import switchgear.agent.main; print(sorted({heavy} & sys.modules.keys()))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout == "[]\n"
