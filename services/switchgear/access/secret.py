"""Secrets that we hand out: `PREFIX_ID_SECRET`. The id finds the row, the secret proves who holds it.

Stored is SHA-256 of the secret. A slow hash protects what people choose; 256 random bits cannot be guessed however fast each try is.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets

#: For bearer tokens and join tokens: a scanner that looks for leaked secrets knows them by it.
BEARER, JOIN = "sgt", "sgj"
_FORM = re.compile(r"(sg[tj])_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")


def create(prefix: str) -> tuple[str, str, bytes]:
    """A new secret in full, its id and its digest."""
    token_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    return f"{prefix}_{token_id}_{secret}", token_id, digest(secret)


def parse(prefix: str, text: str) -> tuple[str, bytes] | None:
    """Id and digest of a secret of that kind; None when the text has not its form."""
    match = _FORM.fullmatch(text)
    if match is None or match[1] != prefix:
        return None
    return match[2], digest(match[3])


def digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def same(one: bytes, other: bytes) -> bool:
    """Compares two digests in a time that tells nothing about them."""
    return hmac.compare_digest(one, other)
