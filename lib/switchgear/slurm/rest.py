"""Slurm asked by slurmrestd, its REST server: over a Unix socket, or HTTP with a token."""

from __future__ import annotations

import asyncio
import getpass
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from switchgear.core.errors import (
    FailedPrecondition,
    Invalid,
    PermissionDenied,
    Reason,
    ResourceExhausted,
    SwitchgearError,
    Unavailable,
)
from switchgear.slurm import parse, refusals, rest_fields
from switchgear.slurm.commands import OUTPUT_MAX_BYTES, TIMEOUT_S
from switchgear.slurm.model import Controller, SlurmJob, SlurmNode, Submission

_PATH = re.compile(r"/slurm/v(\d+\.\d+\.\d+)/(.+?)/?")


class Rest:
    """The Slurm behind one slurmrestd.

    address: `unix:/path/of/socket` or a URL. Whoever sees a token is its user: give `https://`, or `http://` on a network of your own.
    token_file: with a JSON Web Token (`scontrol token`), read anew for each request, since tokens expire; None: SLURM_JWT of this
    process, or no token, as a Unix socket wants it.
    user: whom the token is for; None: who this process is.
    timeout_s: for each answer.
    """

    def __init__(
        self, address: str, *, token_file: Path | None = None, user: str | None = None, timeout_s: float = TIMEOUT_S
    ) -> None:
        scheme, _, rest = address.partition(":")
        if scheme not in {"unix", "http", "https"} or not rest.startswith("/"):
            raise Invalid(
                f"{address!r} is no address of slurmrestd; give unix:/path/of/socket, http://HOST:PORT or https://HOST:PORT",
                Reason.BAD_FIELD,
            )
        self._address = address
        self._token_file = token_file
        self._user = user
        # No proxy of the environment: a controller is near, and a token is for it alone.
        self._http = httpx.AsyncClient(
            base_url="http://localhost" if scheme == "unix" else address.rstrip("/"),
            transport=httpx.AsyncHTTPTransport(uds=rest) if scheme == "unix" else None,
            timeout=timeout_s,
            trust_env=False,
        )
        self._timeout_s = timeout_s
        #: The newest version that is served, and what it can do; asked for once.
        self._version: rest_fields.Version | None = None
        self._methods: frozenset[tuple[str, str]] = frozenset()

    async def close(self) -> None:
        """Ends its connections."""
        await self._http.aclose()

    async def ping(self) -> Controller:
        answer = await self._ask("GET", "ping")
        pings = answer.get("pings") or []
        if not any(ping.get("responding") or "UP" in {ping.get("ping"), ping.get("pinged")} for ping in pings):
            raise refusals.error("slurmrestd ping", "slurmctld is not responding")
        meta = answer.get("meta") or {}
        slurm = meta.get("slurm") or meta.get("Slurm") or {}
        return Controller(version=str(slurm.get("release", "")), cluster=str(slurm.get("cluster", "")))

    async def nodes(self, names: Sequence[str] = ()) -> Sequence[SlurmNode]:
        # Never `node/NAME`: 22.05 gives that one the partitions of the first node.
        wanted = frozenset(names)
        found = await asyncio.to_thread(parse.nodes, await self._ask("GET", "nodes"))
        return [node for node in found if not wanted or node.name in wanted]

    async def jobs(self, ids: Sequence[int] = ()) -> Sequence[SlurmJob]:
        wanted = frozenset(ids)
        try:
            answer = await self._ask("GET", f"job/{ids[0]}" if len(wanted) == 1 else "jobs")
        except Invalid:
            if not wanted:
                raise
            return []
        found = await asyncio.to_thread(parse.jobs, answer)
        return [job for job in found if not wanted or wanted & {job.id, job.array_job_id, job.het_job_id}]

    async def submit(self, script: str, submission: Submission) -> int:
        if not script.startswith("#!"):  # slurmrestd would take it, and slurmd could not start it
            raise refusals.error("slurmrestd job/submit", "This does not look like a batch script")
        body = rest_fields.submission_body(script, submission, await self._newest())
        try:
            answer = await self._ask("POST", "job/submit", body)
        except SwitchgearError as refused:
            raise refusals.of_submission(refused) from refused
        number = (answer.get("result") or answer).get("job_id")
        if not isinstance(number, int) or number <= 0:
            raise refusals.unknown(f"slurmrestd answered without the job's id ({str(answer)[:200]})")
        return number

    async def cancel(self, ids: Sequence[int]) -> None:
        for each in ids:
            try:
                await self._ask("DELETE", f"job/{each}")
            except SwitchgearError as error:
                if not _is_over(error):
                    raise

    async def drain(self, node: str, reason: str) -> None:
        await self._can_update_nodes()
        await self._ask(
            "POST", f"node/{quote(node, safe='')}", {"state": ["DRAIN"], "reason": " ".join(reason.split())}
        )

    async def resume(self, node: str) -> None:
        await self._can_update_nodes()
        try:
            await self._ask("POST", f"node/{quote(node, safe='')}", {"state": ["RESUME"]})
        except FailedPrecondition:
            # So Slurm answers when there is nothing to resume.
            if not all(each.is_open for each in await self.nodes([node])):
                raise

    async def requeue(self, job: int) -> None:
        await self._can("get", "job/{job_id}/requeue", "requeue jobs", "26.05")
        await self._ask("GET", f"job/{job}/requeue")

    async def exclude(self, job: int, nodes: Sequence[str]) -> None:
        await self._ask("POST", f"job/{job}", rest_fields.exclusion(nodes, await self._newest()))

    async def start_now(self, job: int) -> None:
        await self._ask("POST", f"job/{job}", rest_fields.start_at(int(time.time()), await self._newest()))

    async def _can_update_nodes(self) -> None:
        await self._can("post", "node/{node_name}", "drain or resume nodes", "23.02")

    async def _newest(self) -> rest_fields.Version:
        if self._version is None:
            paths = (await self._send("GET", "/openapi/v3")).get("paths") or {}
            by_version: dict[rest_fields.Version, set[tuple[str, str]]] = {}
            for path, methods in paths.items():
                if found := _PATH.fullmatch(path):
                    version = tuple(map(int, found[1].split(".")))
                    by_version.setdefault(version, set()).update((method, found[2]) for method in methods)
            if not by_version:
                raise FailedPrecondition(
                    f"{self._address} serves no /slurm/ API; let slurmrestd load it (-s openapi/slurmctld, in 22.05 -s openapi/v0.0.38)",
                    Reason.SLURM_OUTPUT,
                )
            newest = max(by_version)
            self._version, self._methods = newest, frozenset(by_version[newest])
        return self._version

    async def _can(self, method: str, path: str, what: str, since: str) -> None:
        version = ".".join(map(str, await self._newest()))
        if (method, path) not in self._methods:
            raise FailedPrecondition(
                f"slurmrestd (API v{version}) cannot {what}: Slurm {since} and newer can; ask by Slurm's programs instead",
                Reason.SLURM_REFUSED,
            )

    async def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> parse.Fields:
        version = ".".join(map(str, await self._newest()))
        return await self._send(method, f"/slurm/v{version}/{path}", body)

    async def _send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> parse.Fields:
        what, headers = f"slurmrestd {method} {path}", self._headers()
        try:
            # A timeout of httpx is for each part of an answer, this one for all of it.
            async with (
                asyncio.timeout(self._timeout_s),
                self._http.stream(method, path, json=body, headers=headers) as response,
            ):
                read = bytearray()
                async for chunk in response.aiter_bytes():
                    read += chunk
                    if len(read) > OUTPUT_MAX_BYTES:
                        raise ResourceExhausted(
                            f"{what} answered with more than {OUTPUT_MAX_BYTES >> 20} MiB; shorten MinJobAge",
                            Reason.LIMIT_EXCEEDED,
                        )
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Unavailable(
                f"nobody listens at {self._address} ({error}); start slurmrestd there, or correct the address",
                Reason.SLURM_UNREACHABLE,
                said="connect failure",
            ) from error
        except (httpx.TransportError, TimeoutError) as error:
            raise Unavailable(
                f"{what} had no answer within {self._timeout_s:g} s ({type(error).__name__} {error}); look whether slurmctld runs",
                Reason.SLURM_UNREACHABLE,
                said=type(error).__name__,
            ) from error
        if response.status_code == httpx.codes.NOT_FOUND:
            self._version = None  # another Slurm may have been installed there
        try:
            return await asyncio.to_thread(_answer, what, response.status_code, bytes(read))
        except Unavailable as error:
            if not headers:
                raise
            # 22.05 says no more of a token that slurmctld refuses.
            hint = "or the token has expired: renew it with `scontrol token`"
            raise Unavailable(f"{error.message}; {hint}", error.reason, **error.metadata) from None

    def _headers(self) -> Mapping[str, str]:
        token = os.environ.get("SLURM_JWT", "")
        if self._token_file is not None:
            try:
                token = self._token_file.read_text(encoding="ascii")
            except (OSError, UnicodeDecodeError) as error:
                raise FailedPrecondition(
                    f"cannot read the token for Slurm from {self._token_file} ({error}); write one with `scontrol token`",
                    Reason.KEY_FILE,
                ) from error
        token = token.strip().removeprefix("SLURM_JWT=")
        if not token:
            return {}
        return {"X-SLURM-USER-NAME": self._user or getpass.getuser(), "X-SLURM-USER-TOKEN": token}


def _is_over(error: SwitchgearError) -> bool:
    words = error.metadata.get("said", "").lower()
    return "invalid job id" in words or "already complet" in words


def _answer(what: str, status: int, body: bytes) -> parse.Fields:
    try:
        answer = parse.document(body) if body else {}
    except FailedPrecondition:
        if status < 400:
            raise
        answer = {}
    complaints = "; ".join(parse.complaints(answer))
    if status in {401, 403} or "authentication" in complaints.lower():
        raise PermissionDenied(
            f"{what}: slurmrestd does not let this user in ({complaints or status}); renew the token with `scontrol token`",
            Reason.SLURM_REFUSED,
        )
    if status >= 500 and not complaints:  # a proxy between us
        text = body[:200].decode("ascii", errors="replace")
        raise Unavailable(
            f"{what} was answered with {status} {text!r}; look whether slurmrestd runs", Reason.SLURM_UNREACHABLE
        )
    if status >= 400 or complaints:
        raise refusals.error(what, complaints or f"HTTP status {status}")
    return answer
