"""Slurm asked by its own programs: squeue, sinfo, scontrol, sbatch, scancel."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from switchgear.core.errors import FailedPrecondition, Reason, ResourceExhausted, SwitchgearError, Unavailable
from switchgear.slurm import parse, refusals, sbatch, scontrol
from switchgear.slurm.hostlist import compress
from switchgear.slurm.model import Controller, SlurmJob, SlurmNode, Submission
from switchgear.slurm.program import Ended, Program

#: Slurm's own programs give up after some nine seconds when nobody answers (MessageTimeout, 10 s unless configured).
TIMEOUT_S = 30.0
#: A job takes 4 KiB of JSON, a node 1 KiB: room for 60,000 jobs.
OUTPUT_MAX_BYTES = 256 << 20
#: Enough for one line about each of a thousand jobs.
_ERRORS_MAX_BYTES = 128 << 10
#: What the programs need of our own environment. All else stays here: sbatch hands its environment to the job.
_PASSED = ("PATH", "HOME", "USER", "LOGNAME", "TZ", "LD_LIBRARY_PATH", "SLURM_CONF", "SLURM_JWT")
#: A command line has room for many more.
_IDS_AT_ONCE = 1_000
#: Further calls wait: slurmctld answers one after the other, and its operators ask not to be flooded.
_PROGRAMS_AT_ONCE = 4


class _TimedOut(Exception):
    """A program was killed. Its text says so, with what the program had complained of until then."""


class Commands:
    """The Slurm that the programs on PATH speak to.

    slurm_conf: file of another Slurm than the default one; None: as SLURM_CONF of this process says.
    timeout_s: after which a program is killed. A call runs one program, the first ones up to three.
    """

    def __init__(self, *, slurm_conf: str | None = None, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._environment = {name: os.environ[name] for name in _PASSED if name in os.environ}
        if slurm_conf is not None:
            self._environment["SLURM_CONF"] = slurm_conf
        self._threads = ThreadPoolExecutor(_PROGRAMS_AT_ONCE, thread_name_prefix="slurm")
        #: What this Slurm cannot do is learned once, from what it says.
        self._scontrol_writes_json = True
        self._squeue_writes_json = True

    async def ping(self) -> Controller:
        ended = await self._ask("scontrol", "show", "config")
        pairs = (line.partition("=") for line in ended.out.decode(errors="replace").splitlines())
        values = {key.strip(): value.strip() for key, _, value in pairs}
        return Controller(version=values.get("SLURM_VERSION", ""), cluster=values.get("ClusterName", ""))

    async def nodes(self, names: Sequence[str] = ()) -> Sequence[SlurmNode]:
        wanted = frozenset(names)
        return [node for node in await self._nodes() if not wanted or node.name in wanted]

    async def jobs(self, ids: Sequence[int] = ()) -> Sequence[SlurmJob]:
        wanted = frozenset(ids)
        # One job is answered without the others; several are picked from all, since a single unknown id among them fails.
        only = str(ids[0]) if len(wanted) == 1 else None
        try:
            found = await self._jobs(only)
        except SwitchgearError as error:
            if only is None or "invalid job id" not in error.message.lower():
                raise
            return []
        return [job for job in found if not wanted or wanted & {job.id, job.array_job_id, job.het_job_id}]

    async def submit(self, script: str, submission: Submission) -> int:
        try:
            ended = await self._run(
                "sbatch", *sbatch.options(submission), stdin=script, environment=submission.environment
            )
        except _TimedOut as late:
            raise refusals.unknown(str(late)) from None
        if ended.code < 0:
            raise refusals.unknown(f"sbatch was ended by signal {-ended.code}")
        if ended.code:
            raise refusals.of_submission(refusals.error("sbatch", ended.errors))
        text = ended.out.decode(errors="replace").strip().rpartition("\n")[2]
        number = text.partition(";")[0]
        if not number.isdecimal():
            raise refusals.unknown(f"sbatch printed {text[:200]!r} where the job's id was expected")
        return int(number)

    async def cancel(self, ids: Sequence[int]) -> None:
        texts = [str(each) for each in ids]
        for start in range(0, len(texts), _IDS_AT_ONCE):
            ended = await self._finish("scancel", "--quiet", *texts[start : start + _IDS_AT_ONCE])
            lines = [line for line in ended.errors.splitlines() if "invalid job id" not in line.lower()]
            if ended.code and any(line.strip() for line in lines):
                raise refusals.error("scancel", "\n".join(lines))

    async def drain(self, node: str, reason: str) -> None:
        await self._update(f"NodeName={node}", "State=DRAIN", f"Reason={' '.join(reason.split())}")

    async def resume(self, node: str) -> None:
        try:
            await self._update(f"NodeName={node}", "State=RESUME")
        except FailedPrecondition:
            # So Slurm answers when there is nothing to resume.
            if not all(each.is_open for each in await self.nodes([node])):
                raise

    async def requeue(self, job: int) -> None:
        await self._ask("scontrol", "requeue", str(job))

    async def exclude(self, job: int, nodes: Sequence[str]) -> None:
        await self._update(f"JobId={job}", f"ExcNodeList={compress(nodes)}")

    async def start_now(self, job: int) -> None:
        await self._update(f"JobId={job}", "StartTime=now")

    async def set_node_count(self, job: int, nodes: int) -> None:
        """The waiting job needs so many nodes. Slurm lowers that by itself for a requeued job that has lost nodes."""
        await self._update(f"JobId={job}", f"NumNodes={nodes}")

    async def _update(self, *values: str) -> None:
        await self._ask("scontrol", "update", *values)

    async def _nodes(self) -> Sequence[SlurmNode]:
        # From 23.02 on sinfo summarises in its JSON, and scontrol can write it; before, it is the other way round.
        if self._scontrol_writes_json:
            ended = await self._finish("scontrol", "--json", "--all", "show", "nodes")
            if not _lacks_json(ended):
                return await asyncio.to_thread(lambda: parse.nodes(_answer("scontrol", ended, "nodes")))
            self._scontrol_writes_json = False
        if self._squeue_writes_json:
            ended = await self._finish("sinfo", "--json")
            if not _lacks_json(ended):
                return await asyncio.to_thread(lambda: parse.nodes(_answer("sinfo", ended, "nodes")))
            self._squeue_writes_json = False
        ended = await self._ask("scontrol", "--oneliner", "--details", "--all", "show", "node")
        return await asyncio.to_thread(lambda: scontrol.nodes(ended.out.decode(errors="replace")))

    async def _jobs(self, only: str | None) -> Sequence[SlurmJob]:
        if self._squeue_writes_json:
            options = [f"--jobs={only}"] if only else []
            ended = await self._finish("squeue", "--json", "--all", "--states=all", *options)
            if not _lacks_json(ended):
                # Ten thousand jobs take most of a second.
                return await asyncio.to_thread(lambda: parse.jobs(_answer("squeue", ended, "jobs")))
            self._squeue_writes_json = False
        ended = await self._ask(
            "scontrol", "--oneliner", "--details", "--all", "show", "job", *([only] if only else [])
        )
        return await asyncio.to_thread(lambda: scontrol.jobs(ended.out.decode(errors="replace")))

    async def _ask(self, program: str, *arguments: str) -> Ended:
        ended = await self._finish(program, *arguments)
        if ended.code:
            raise refusals.error(
                " ".join((program, *arguments[:2])), ended.errors or ended.out[:500].decode(errors="replace")
            )
        return ended

    async def _finish(self, program: str, *arguments: str) -> Ended:
        try:
            ended = await self._run(program, *arguments)
        except _TimedOut as late:
            remedy = "look whether slurmctld is overloaded (`sdiag`) and munged runs here"
            raise Unavailable(f"{late}; {remedy}", Reason.SLURM_UNREACHABLE) from None
        if ended.code < 0:
            raise Unavailable(f"{program} was ended by signal {-ended.code}; try again", Reason.SLURM_UNREACHABLE)
        return ended

    async def _run(
        self, program: str, *arguments: str, stdin: str = "", environment: Mapping[str, str] | None = None
    ) -> Ended:
        path = shutil.which(program, path=self._environment.get("PATH"))
        if path is None:
            raise FailedPrecondition(
                f"{program} is not on PATH; install Slurm's programs here (Debian: slurm-client) or ask slurmrestd",
                Reason.SLURM_UNREACHABLE,
                program=program,
            )
        own = {"SLURM_TIME_FORMAT": "%s"} if environment is None else environment
        running = Program([path, *arguments], {**self._environment, **own}, stdin)
        work = asyncio.get_running_loop().run_in_executor(
            self._threads, running.run, self._timeout_s, OUTPUT_MAX_BYTES, _ERRORS_MAX_BYTES
        )
        try:
            ended = await work
        except asyncio.CancelledError:
            running.stop()
            raise
        if ended.timed_out:
            said = f" (it said: {' '.join(ended.errors.split())[:300]})" if ended.errors else ""
            raise _TimedOut(f"{program} did not end within {self._timeout_s:g} s and was killed{said}")
        if ended.overflowed:
            raise ResourceExhausted(
                f"{program} wrote more than {OUTPUT_MAX_BYTES >> 20} MiB and was killed; ask for fewer jobs, or shorten MinJobAge",
                Reason.LIMIT_EXCEEDED,
            )
        return ended


def _answer(program: str, ended: Ended, key: str) -> parse.Fields:
    if ended.code:
        raise refusals.error(program, ended.errors or ended.out[:500].decode(errors="replace"))
    answer = parse.document(ended.out)
    # With the controller away it ends with 0, says so in here, and has an empty list.
    if complaints := parse.complaints(answer):
        raise refusals.error(program, "\n".join((ended.errors, *complaints)))
    if not isinstance(answer.get(key), list):
        raise FailedPrecondition(
            f"{program} --json wrote no list of {key}; ask for this version's support", Reason.SLURM_OUTPUT
        )
    return answer


_NO_JSON = re.compile(r"unrecognized option|serializer|openapi|data_parser|mime|plugin", re.IGNORECASE)


def _lacks_json(ended: Ended) -> bool:
    return ended.code != 0 and _NO_JSON.search(ended.errors) is not None
