"""Pages of inference servers over HTTP, within bounds of time and size."""

from __future__ import annotations

import asyncio
import errno
import ssl
from pathlib import Path
from types import TracebackType

import httpx

from switchgear.autoscaler.adapters.page import BYTES_MAX
from switchgear.core.errors import Invalid, Reason

#: Fetches at a time; a thousand replicas that hang must not take all sockets, and those that answer take 10 ms.
CONNECTIONS_MAX = 128
_TOKEN_BYTES_MAX = 16 * 1024
_HEADERS = {
    "Accept": "text/plain;version=0.0.4,application/openmetrics-text;version=1.0.0;q=0.5,*/*;q=0.1",
    # A compressed page of a few kilobytes may unpack to gigabytes.
    "Accept-Encoding": "identity",
}


class FetchFailed(Exception):
    """outcome: timeout, status, redirect, too_large, garbage, refused (nothing listens there), unreachable or token.

    why: for people, without a full stop. status: of HTTP; 0: there was none.
    """

    def __init__(self, outcome: str, why: str, status: int = 0) -> None:
        super().__init__(why)
        self.outcome, self.why, self.status = outcome, why, status


class Fetcher:
    """Fetches pages. Redirects are refused: whoever asks says who is asked, and sends it a token."""

    def __init__(self, *, timeout_s: float = 5.0, token_file: Path | None = None, ca_file: Path | None = None) -> None:
        """token_file: sent as a bearer token, and read anew for each page. ca_file: who is believed instead of the system's CAs.

        Raises Invalid when the CA file cannot be used.
        """
        self._timeout_s, self._token_file = timeout_s, token_file
        self._client = httpx.AsyncClient(
            verify=_believed(ca_file),
            # Kept connections cost more than new ones: at each request all are looked through, 6 s of CPU for a thousand replicas, not 1.4.
            limits=httpx.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=0),
            headers=_HEADERS,
            timeout=timeout_s,
            trust_env=False,
            follow_redirects=False,
        )
        self._turns = asyncio.Semaphore(CONNECTIONS_MAX)

    async def __aenter__(self) -> Fetcher:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def fetch(self, url: str) -> str:
        """The page. Raises FetchFailed."""
        try:
            async with self._turns, asyncio.timeout(self._timeout_s):
                return (await self._fetch(url)).decode()
        except (TimeoutError, httpx.TimeoutException):
            raise FetchFailed("timeout", f"no whole answer within {self._timeout_s:g} s") from None
        except UnicodeDecodeError:
            raise FetchFailed("garbage", "the page is no UTF-8") from None
        except OSError as error:
            raise FetchFailed("token", f"cannot read the token file: {error.strerror or error}") from error
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            if _refused(error):
                raise FetchFailed("refused", "nothing listens there: the connection was refused") from error
            raise FetchFailed("unreachable", f"cannot be reached: {error or type(error).__name__}") from error

    async def close(self) -> None:
        """Ends all connections."""
        await self._client.aclose()

    async def _fetch(self, url: str) -> bytes:
        body = bytearray()
        async with self._client.stream("GET", url, headers=self._authorization()) as response:
            status = response.status_code
            if response.is_redirect:
                target = response.headers.get("location", "")[:200]
                raise FetchFailed(
                    "redirect", f"it redirects to {target!r}, which is not followed: name that address", status
                )
            if status != httpx.codes.OK:
                raise FetchFailed("status", f"it answers {status} {response.reason_phrase}".rstrip(), status)
            if response.headers.get("content-encoding", "identity") != "identity":
                raise FetchFailed("garbage", "it compresses the page although it was asked not to")
            async for part in response.aiter_raw():
                body += part
                if len(body) > BYTES_MAX:
                    raise FetchFailed(
                        "too_large", f"the page has more than {BYTES_MAX} bytes; no inference server's has"
                    )
        return bytes(body)

    def _authorization(self) -> dict[str, str]:
        if self._token_file is None:
            return {}
        with self._token_file.open("rb") as opened:
            secret = opened.read(_TOKEN_BYTES_MAX).strip()
        if not secret or any(not 0x20 <= byte < 0x7F for byte in secret):
            raise OSError(errno.EINVAL, "it must have one line of printable ASCII", str(self._token_file))
        return {"Authorization": f"Bearer {secret.decode()}"}


def _refused(error: BaseException | None) -> bool:
    """Whether a refused connection is among the causes; httpx has one class for all that prevents a connection."""
    while error is not None and not isinstance(error, ConnectionRefusedError):
        error = error.__cause__ or error.__context__
    return error is not None


def _believed(ca_file: Path | None) -> ssl.SSLContext | bool:
    if ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # also ssl.SSLError
        raise Invalid(
            f"cannot use the CA file {ca_file}: {error.strerror or error}; it must have certificates in PEM",
            Reason.BAD_FIELD,
            file=str(ca_file),
        ) from error
