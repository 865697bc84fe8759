"""Rounds of SIGKILL for a scheduler that drives a real Slurm, at random boundaries of what it asks of it: the same result each round.

    python benchmarks/slurm_chaos.py [--rounds 100] [--seed 1]

In a round a job gets two nodes, loses one and gets another, the lost one is cordoned and opened again, and the job is cancelled. The
scheduler is killed before, during and after submissions, cancellations, drains and their ends, and at times of its own, until it comes
through; each time another process takes over from the database and from what Slurm says. Launchers write down that they run. After
each round every launcher ran exactly once, nothing is left in Slurm, and no node is drained. Exit code 1 when a round ended otherwise;
run it again alone with `--rounds 1 --seed N`. Needs root, slurm-wlm and munge, as the tests do.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import grpc.aio

from switchgear.core import rpc
from switchgear.core.clock import SystemClock
from switchgear.core.service import Endpoints
from switchgear.scheduler.decide import FINISH_GRACE_S
from switchgear.scheduler.engines.slurm.settings import SlurmSettings
from switchgear.scheduler.main import SchedulerSettings, build
from switchgear.slurm.commands import Commands
from switchgear.slurm.model import Submission
from switchgear.store.database import Database, sqlite_url
from switchgear.v1 import fleet_service_pb2 as fleet_pb
from switchgear.v1 import fleet_service_pb2_grpc as fleet_grpc
from switchgear.v1 import job_service_pb2 as job_pb
from switchgear.v1 import job_service_pb2_grpc as job_grpc
from switchgear.v1alpha import placement_service_pb2 as placement_pb
from switchgear.v1alpha import placement_service_pb2_grpc as placement_grpc

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from slurm_cluster import NODES, SlurmCluster

CLUSTER = "chaos"
JOB = "jobs/llama"
#: Of what it asks of Slurm so much kills it, and of its lives so many end at a time of their own.
KILL_SHARE = 0.5
SUDDEN_SHARE = 0.3
#: After so many lives it is left alone: a round must end.
KILLS_MAX = 12
STEP_TIMEOUT_S = 60.0
#: A launcher: says that it runs, and whether another one does, and runs until it is ended.
LAUNCHER = """#!/bin/sh
exec 9>lock
flock --nonblock 9 || { echo "$SLURM_JOB_ID" >>doubles; exit 1; }
echo "$SLURM_JOB_ID" >>runs
exec sleep 600
"""


T = TypeVar("T")


class Deadly(Commands):
    """A Slurm at which whoever asks something of it dies now and then."""

    def __init__(self, slurm_conf: str, rng: random.Random) -> None:
        super().__init__(slurm_conf=slurm_conf)
        self._rng = rng

    async def submit(self, script: str, submission: Submission) -> int:
        return await self._risk(super().submit(script, submission))

    async def cancel(self, ids: Sequence[int]) -> None:
        await self._risk(super().cancel(ids))

    async def drain(self, node: str, reason: str) -> None:
        await self._risk(super().drain(node, reason))

    async def resume(self, node: str) -> None:
        await self._risk(super().resume(node))

    async def _risk(self, effect: Awaitable[T]) -> T:
        when = self._rng.choice(("before", "during", "after")) if self._rng.random() < KILL_SHARE else ""
        if when == "before":
            die()
        if when == "during":
            # What it has begun goes on without it.
            asyncio.get_running_loop().call_later(self._rng.uniform(0, 0.08), die)
        answer = await effect
        if when:
            die()
        return answer


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Ahead(SystemClock):
    """A clock that can be put forward: recovery, which ends the launchers of a job, is not there, and nobody waits for it."""

    ahead_s = 0.0

    def unix_ns(self) -> int:
        return super().unix_ns() + int(self.ahead_s * 1e9)


@dataclass
class Life:
    """One process of the scheduler, and what is asked of it: idempotent, from the first step that was not seen to be done."""

    folder: Path
    clock: Ahead
    seen: Commands
    channel: grpc.aio.Channel

    async def live(self) -> None:
        done = self.folder / "done"
        steps = (self.create, self.replace, self.cordon, self.uncordon, self.cancel, self.vanish)
        for number in range(int(done.read_text()) if done.exists() else 0, len(steps)):
            await steps[number]()
            temporary = done.with_suffix(".new")
            temporary.write_text(str(number + 1))
            temporary.replace(done)

    async def create(self) -> None:
        stub: Any = job_grpc.JobServiceStub(self.channel)
        spec = job_pb.JobSpec(argv=["train.py"], working_directory="/", nnodes=2, nproc_per_node=2)

        async def created() -> bool:
            nodes = await self._fleet.ListNodes(fleet_pb.ListNodesRequest())
            return len(nodes.nodes) == len(NODES)

        await until(created)
        await stub.CreateJob(job_pb.CreateJobRequest(job=job_pb.Job(spec=spec), job_id="llama", request_id="create"))
        await until(lambda: self._agree(1))

    async def replace(self) -> None:
        lost = self.folder / "lost"
        if not lost.exists():
            lost.write_text((await self._job()).placement.nodes[0].node)
        stub: Any = placement_grpc.PlacementServiceStub(self.channel)
        request = placement_pb.ReplaceNodesRequest(
            job=JOB, placement_epoch=1, exclude_nodes=[lost.read_text()], reason="it broke", request_id="replace"
        )

        async def replaced() -> bool:
            try:
                await stub.ReplaceNodes(request)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                return False  # it has yet to look at Slurm
            return True

        await until(replaced)
        await until(lambda: self._agree(2))

    async def cordon(self) -> None:
        name = (self.folder / "lost").read_text()
        await self._fleet.CordonNode(fleet_pb.CordonNodeRequest(name=name, reason="it broke", request_id="cordon"))
        await until(lambda: self._drained(f"switchgear: it broke [{CLUSTER}]"))

    async def uncordon(self) -> None:
        name = (self.folder / "lost").read_text()
        await self._fleet.UncordonNode(fleet_pb.UncordonNodeRequest(name=name, request_id="uncordon"))
        await until(lambda: self._drained(""))

    async def cancel(self) -> None:
        stub: Any = job_grpc.JobServiceStub(self.channel)
        await stub.CancelJob(job_pb.CancelJobRequest(name=JOB, request_id="cancel"))

    async def vanish(self) -> None:
        self.clock.ahead_s = FINISH_GRACE_S + 1

        async def gone() -> bool:
            return all(job.has_ended for job in await self.seen.jobs())

        await until(gone)

    @property
    def _fleet(self) -> Any:
        return fleet_grpc.FleetServiceStub(self.channel)

    async def _job(self) -> job_pb.Job:
        stub: Any = job_grpc.JobServiceStub(self.channel)
        job: job_pb.Job = await stub.GetJob(job_pb.GetJobRequest(name=JOB))
        return job

    async def _agree(self, epoch: int) -> bool:
        """Each seat of that placement has the one Slurm job that runs for it, and there is no other."""
        placement = (await self._job()).placement
        seats = sorted((seat.node.partition("/")[2], str(seat.launcher_epoch)) for seat in placement.nodes)
        alive = [job for job in await self.seen.jobs() if not job.has_ended]
        running = sorted((*job.nodes, job.comment.split(":")[3]) for job in alive)
        return placement.epoch == epoch and running == seats and all(job.state == "RUNNING" for job in alive)

    async def _drained(self, reason: str) -> bool:
        name = (self.folder / "lost").read_text().partition("/")[2]
        (node,) = await self.seen.nodes([name])
        return node.is_drained == bool(reason) and (not reason or node.reason == reason)


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(STEP_TIMEOUT_S):
        while not await true():  # noqa: ASYNC110 - what is waited for is in another process
            await asyncio.sleep(0.1)


async def serve(folder: Path, conf: str, rng: random.Random, *, deadly: bool) -> None:
    """A scheduler, and the steps that are left of the round."""
    settings = SlurmSettings(
        cluster=CLUSTER,
        user="root",
        state_dir=folder,
        command=("/bin/sh", str(folder / "launcher.sh")),
        environment={"PATH": os.environ["PATH"]},
    )
    if deadly and rng.random() < SUDDEN_SHARE:
        asyncio.get_running_loop().call_later(rng.uniform(0, 2), die)
    database, clock = Database(sqlite_url(folder / "state.db")), Ahead()
    await database.migrate()
    slurm = Deadly(conf, rng) if deadly else Commands(slurm_conf=conf)
    service = build(database, clock, SchedulerSettings(folder, slurm=settings), slurm=slurm)
    server = rpc.Server()
    service.register(server.grpc)
    address = await server.start("127.0.0.1:0", service.service_names)
    running = asyncio.create_task(service.run(Endpoints.all_at(address)))
    async with rpc.channel(address) as channel:
        await Life(folder, clock, Commands(slurm_conf=conf), channel).live()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await server.stop(0)
    await database.close()


def one_round(seed: int, slurm: SlurmCluster) -> tuple[dict[str, Any], int]:
    """What is left of a round, and how often the scheduler was killed in it."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="slurm-chaos-") as place:
        folder, kills = Path(place), 0
        (folder / "launcher.sh").write_text(LAUNCHER)
        while True:
            pid = os.fork()
            if pid == 0:
                _live_and_leave(folder, str(slurm.configuration), random.Random(rng.random()), deadly=kills < KILLS_MAX)
            rng = random.Random(rng.random())
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            if status != -signal.SIGKILL:
                break
            kills += 1
        return _result(status, folder, slurm), kills


def _live_and_leave(folder: Path, conf: str, rng: random.Random, *, deadly: bool) -> NoReturn:
    """Of a process that was forked: nothing of its parent's may run in it."""
    code = 1
    try:
        asyncio.run(serve(folder, conf, rng, deadly=deadly))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _result(status: int, folder: Path, slurm: SlurmCluster) -> dict[str, Any]:
    launchers = sorted((folder / "launchers").glob("*"))
    return {
        "exit code": status,
        "launchers": len(launchers),
        "ran": [len((path / "runs").read_text().split()) for path in launchers],
        "ran twice at once": sum((path / "doubles").exists() for path in launchers),
        "left in Slurm": slurm.command("squeue", "--noheader"),
        "nodes": sorted({state.rstrip("*") for state in slurm.node_states().values()}),
    }


EXPECTED = {
    "exit code": 0,
    "launchers": 3,
    "ran": [1, 1, 1],
    "ran twice at once": 0,
    "left in Slurm": "",
    "nodes": ["idle"],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1, help="of the first round; the next ones follow")
    args = parser.parse_args()
    failed = 0
    slurm = SlurmCluster(extra="KillWait=2")
    try:
        for seed in range(args.seed, args.seed + args.rounds):
            slurm.mend()
            begin_s = time.monotonic()
            result, kills = one_round(seed, slurm)
            good = result == EXPECTED
            failed += not good
            took_s = time.monotonic() - begin_s
            print(f"seed {seed}: {'as expected' if good else result}, {kills} kills, {took_s:.1f} s", flush=True)
    finally:
        slurm.close()
    print(f"{args.rounds} rounds, {failed} that ended otherwise")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
