"""One page of metrics over HTTP, within bounds of time and size."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import nullcontext

import httpx

from switchgear.collector.imports.settings import Scrape
from switchgear.collector.secret_file import header_secret
from switchgear.core.errors import Invalid, Reason

BODY_BYTES_MAX = 16 * 1024 * 1024
#: Fetches at a time from targets that failed the last time, which may hang: a rack that is off must not take all sockets. Those that
#: answer do not wait for them.
_DOUBTFUL_MAX = 64
#: Of connections that are kept for the next fetch; in a larger fleet the others are made anew.
_KEPT_MAX = 256
_HEADERS = {
    "Accept": "text/plain;version=0.0.4,application/openmetrics-text;version=1.0.0;q=0.5,*/*;q=0.1",
    # A compressed page of a few kilobytes may unpack to gigabytes, and the network between collector and nodes is not scarce.
    "Accept-Encoding": "identity",
}


class FetchFailed(Exception):
    """outcome: of `metrics.OUTCOMES`. why: for the log."""

    def __init__(self, outcome: str, why: str) -> None:
        super().__init__(why)
        self.outcome, self.why = outcome, why


def tls_of(scrape: Scrape) -> ssl.SSLContext | bool:
    """Who is believed: the CA of `ca_file`, else those of the system (True). Raises Invalid when the file cannot be used."""
    if scrape.ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=scrape.ca_file)
    except OSError as error:  # also ssl.SSLError
        raise Invalid(
            f"cannot use the ca_file {scrape.ca_file} of [[scrape]] {scrape.name!r}: {error.strerror or error}; it must have "
            "certificates in PEM",
            Reason.BAD_FIELD,
            file=str(scrape.ca_file),
        ) from error


class Fetcher:
    """Fetches the pages of one `[[scrape]]`. Redirects are not followed: the configuration says who is asked."""

    def __init__(self, scrape: Scrape, tls: ssl.SSLContext | bool) -> None:
        self._scrape = scrape
        self._doubtful = asyncio.Semaphore(_DOUBTFUL_MAX)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=_KEPT_MAX)
        headers = _HEADERS | {"X-Prometheus-Scrape-Timeout-Seconds": f"{scrape.timeout_s:g}"}
        self._client = httpx.AsyncClient(
            verify=tls,
            limits=limits,
            headers=headers,
            timeout=scrape.timeout_s,
            trust_env=False,
            follow_redirects=False,
        )

    async def fetch(self, url: str, *, doubtful: bool) -> str:
        """doubtful: whether it failed the last time. Raises FetchFailed."""
        async with self._doubtful if doubtful else nullcontext():
            try:
                async with asyncio.timeout(self._scrape.timeout_s):
                    return (await self._fetch(url)).decode()
            except (TimeoutError, httpx.TimeoutException):
                raise FetchFailed("timeout", f"no whole answer within {self._scrape.timeout_s:g} s") from None
            except UnicodeDecodeError as error:
                raise FetchFailed("garbage", f"the page is no UTF-8: {error}") from error
            except OSError as error:
                raise FetchFailed("settings", f"cannot read the token: {error}") from error
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise FetchFailed("unreachable", f"{type(error).__name__}: {error}") from error

    async def close(self) -> None:
        await self._client.aclose()

    async def _fetch(self, url: str) -> bytes:
        body = bytearray()
        async with self._client.stream("GET", url, headers=self._authorization()) as response:
            if response.is_redirect:
                raise FetchFailed("redirect", f"it sends us to {response.headers.get('location', '')[:200]!r}")
            if response.status_code != httpx.codes.OK:
                raise FetchFailed("status", f"it answers {response.status_code}")
            if response.headers.get("content-encoding", "identity") != "identity":
                raise FetchFailed("garbage", "it compresses the page although it was asked not to")
            async for part in response.aiter_raw():
                body += part
                if len(body) > BODY_BYTES_MAX:
                    raise FetchFailed("too_large", f"the page has more than {BODY_BYTES_MAX} bytes")
        return bytes(body)

    def _authorization(self) -> dict[str, str]:
        if self._scrape.bearer_token_file is None:
            return {}
        return {"Authorization": f"Bearer {header_secret(self._scrape.bearer_token_file)}"}
