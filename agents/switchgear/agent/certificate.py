"""When a certificate ends, without the library that could tell: it takes nine megabytes, in each agent, for this one date."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime

_UTC_TIME = 0x17
_VERSION = 0xA0


def not_after(pem: str) -> datetime:
    """The end of an X.509 certificate's validity (RFC 5280, 4.1.2.5).

    Raises ValueError when the text is none.
    """
    der = ssl.PEM_cert_to_DER_cert(pem)
    try:
        _, certificate, _ = _element(der, 0)
        _, at, _ = _element(der, certificate)
        tag, _, after = _element(der, at)
        if tag == _VERSION:
            at = after
        for _ in ("serial number", "signature algorithm", "issuer"):
            at = _element(der, at)[2]
        _, not_before, _ = _element(der, at)
        tag, start, end = _element(der, _element(der, not_before)[2])
    except IndexError:
        raise ValueError("the certificate ends too soon") from None
    text = der[start:end].decode("ascii")
    if tag == _UTC_TIME:  # of two digits the year; RFC 5280: from 50 on it is 19YY
        text = f"{'19' if text >= '50' else '20'}{text}"
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """Tag of the element at that offset, where its content begins, and where it ends."""
    tag, length, start = der[at], der[at + 1], at + 2
    if length & 0x80:
        size = length & 0x7F
        length, start = int.from_bytes(der[start : start + size], "big"), start + size
    return tag, start, start + length
