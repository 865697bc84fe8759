"""Addresses of HTTP servers that users name."""

from __future__ import annotations

import re
from urllib.parse import urlsplit


def check_url(url: str) -> str:
    """Raises ValueError unless it is one of HTTP or HTTPS with a host, and a port that there is if it has one."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0 and not re.search(r"\s", url)
    except ValueError:
        good = False
    if not good:
        raise ValueError(f"{url[:200]!r} must read http://HOST:PORT/metrics or https://…, with the path of that server")
    return url
