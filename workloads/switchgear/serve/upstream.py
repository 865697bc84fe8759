"""One request at one replica: the whole answer, or why there is none and whether the replica may have worked on it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import httpx

from switchgear.core import trace
from switchgear.core.tls import TlsFiles
from switchgear.serve import completions
from switchgear.serve.promise import TOOK_HEADER
from switchgear.serve.replica import REPLICA_HEADER
from switchgear.serve.switchboard import Replica
from switchgear.web import server

#: Answers that take longer are no longer waited for.
ANSWER_S_MAX = 300.0
#: A replica that left the table, and has not come back within this time, will not answer any more.
GONE_S = 5.0
ANSWER_BYTES_MAX = 16 << 20
_CONNECT_S_MAX = 2.0
#: Below what a server keeps an idle connection for, or it would close one as we begin to use it.
_KEEP_ALIVE_S = 30.0
# The replica cannot take it now (503), or is another one (421): nothing was done.
_NOT_TAKEN = (503, 421)
# It broke while it worked; another one may fare better.
_BROKE = (500, 502, 504)


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes
    content_type: str
    #: What the replica tells of it, see `promise.TOOK_HEADER`; empty when it tells nothing.
    took: str = ""


@dataclass(frozen=True, slots=True)
class BrokenOff:
    """worked: the replica may have begun; otherwise the request has cost nothing."""

    why: str
    worked: bool


class Upstream:
    """Connections to the replicas. Answers are taken whole: what breaks off in the middle is no answer."""

    def __init__(self, tls: TlsFiles | None) -> None:
        self._scheme = "https" if tls else "http"
        self._client = httpx.AsyncClient(
            verify=server.client_context(tls) if tls else False,
            trust_env=False,  # a proxy of the environment is not meant for our own machines
            timeout=httpx.Timeout(ANSWER_S_MAX, connect=_CONNECT_S_MAX),
            # The switchboard bounds what is in flight; a second queue here would not know of the table.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=256, keepalive_expiry=_KEEP_ALIVE_S),
        )
        self._sending: dict[Replica, set[asyncio.Task[Answer | BrokenOff]]] = {}

    async def close(self) -> None:
        await self._client.aclose()

    def listed_changed(self) -> None:
        """Requests at replicas that left the table, and do not come back to it soon, break off."""
        for replica in self._sending:
            if not replica.listed:
                asyncio.get_running_loop().call_later(GONE_S, self._give_up, replica)

    async def send(self, replica: Replica, body: bytes) -> Answer | BrokenOff:
        """Raises nothing but CancelledError, which takes the request back."""
        sending = asyncio.create_task(self._send(replica, body))
        tasks = self._sending.setdefault(replica, set())
        tasks.add(sending)
        try:
            await asyncio.wait({sending})
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            tasks.discard(sending)
            if not tasks:
                self._sending.pop(replica, None)
        if sending.cancelled():
            return BrokenOff("it left the table of replicas", worked=True)
        return sending.result()

    def _give_up(self, replica: Replica) -> None:
        if not replica.listed:
            for sending in self._sending.get(replica, ()):
                sending.cancel()

    async def _send(self, replica: Replica, body: bytes) -> Answer | BrokenOff:
        url = f"{self._scheme}://{replica.address}{completions.PATH}"
        headers = {"content-type": "application/json", "accept-encoding": "identity", REPLICA_HEADER: replica.name}
        if parent := trace.current():
            headers[trace.HEADER] = parent
        answer = bytearray()
        try:
            async with self._client.stream("POST", url, content=body, headers=headers) as response:
                async for chunk in response.aiter_raw():
                    answer += chunk
                    if len(answer) > ANSWER_BYTES_MAX:
                        return BrokenOff(f"its answer has more than {ANSWER_BYTES_MAX} bytes", worked=True)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            return BrokenOff(f"it cannot be reached ({error})", worked=False)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            # An idle connection that the server closed just now looks the same as a replica that died at work.
            return BrokenOff(f"the connection broke ({type(error).__name__} {error})", worked=True)
        if response.status_code in _NOT_TAKEN:
            return BrokenOff(f"it answered {response.status_code}", worked=False)
        if response.status_code in _BROKE:
            return BrokenOff(f"it answered {response.status_code}", worked=True)
        headers_back = response.headers
        return Answer(
            response.status_code,
            bytes(answer),
            headers_back.get("content-type", "application/json"),
            headers_back.get(TOOK_HEADER, ""),
        )
