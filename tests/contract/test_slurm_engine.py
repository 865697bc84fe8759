"""The engine on a real Slurm, with launchers that only sleep: answers that are lost, refusals, drains, and slurmrestd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from slurm_cluster import NODES, SlurmCluster

from switchgear.core.clock import SystemClock
from switchgear.core.service import Endpoints
from switchgear.scheduler.engines.local import LocalEngine
from switchgear.scheduler.engines.slurm import keys
from switchgear.scheduler.engines.slurm.engine import SlurmEngine
from switchgear.scheduler.engines.slurm.settings import SlurmSettings
from switchgear.scheduler.model import JobSpec, LauncherRef, NodeStatus, Wanted, WantedLauncher
from switchgear.slurm import refusals
from switchgear.slurm.client import Slurm
from switchgear.slurm.commands import Commands
from switchgear.slurm.model import SlurmJob, Submission

SPEC = JobSpec(("train.py",), "/w", (), "", 1, 2, 0, "", "/logs")
REF = LauncherRef("jobs/llama", 1)


class Forgetful(Commands):
    """The answer to its first submission is lost on the way. hides: nor is what came of it to be seen before the second."""

    def __init__(self, slurm_conf: str, *, hides: bool = False) -> None:
        super().__init__(slurm_conf=slurm_conf)
        self.submitted: list[int] = []
        self._hides = hides

    async def submit(self, script: str, submission: Submission) -> int:
        self.submitted.append(await super().submit(script, submission))
        if len(self.submitted) == 1:
            raise refusals.unknown("sbatch did not end")
        return self.submitted[-1]

    async def jobs(self, ids: Sequence[int] = ()) -> Sequence[SlurmJob]:
        hidden = self._hides and len(self.submitted) == 1
        return [] if hidden else await super().jobs(ids)


class Stubborn(Commands):
    """Lets nobody cancel anything."""

    async def cancel(self, ids: Sequence[int]) -> None:
        raise refusals.error("scancel", f"scancel: error: Kill job error on job id {ids[0]}: Access/permission denied")


class Driven:
    """An engine that runs, and a look past it at the same Slurm."""

    def __init__(self, engine: SlurmEngine, slurm: Commands, clock: Clock) -> None:
        self.engine, self.slurm, self.clock = engine, slurm, clock
        #: Of a job of its own: Slurm still knows those of the tests before.
        self.created = clock.unix_ns()

    def want(self, node: str = "n1", **spec: Any) -> None:
        launcher = WantedLauncher(REF, replace(SPEC, **spec), (0, 1), create_time_unix_ns=self.created)
        self.engine.want({f"nodes/{node}": Wanted((launcher,))}, {})

    def close(self, node: str, reason: str) -> None:
        self.engine.want({f"nodes/{node}": Wanted(closed=reason)}, {})

    def status(self, node: str = "n1") -> NodeStatus:
        return dict(self.engine.observe().nodes)[f"nodes/{node}"]

    async def states(self) -> list[str]:
        """Of our jobs, oldest first."""
        jobs = [job for job in await self.slurm.jobs() if job.comment.endswith(f":{self.created:x}")]
        return [job.state for job in sorted(jobs, key=lambda job: job.id)]

    async def until(self, true: Callable[[], Any]) -> None:
        async with asyncio.timeout(20):
            while True:
                found = true()
                if await found if asyncio.iscoroutine(found) else found:
                    return
                await asyncio.sleep(0.05)

    async def come_to(self, *states: str) -> None:
        async def there() -> bool:
            return await self.states() == list(states)

        await self.until(there)


class Clock(SystemClock):
    """One that a test may put forward."""

    ahead_s = 0.0

    def unix_ns(self) -> int:
        return super().unix_ns() + int(self.ahead_s * 1e9)


@asynccontextmanager
async def driving(
    slurm: SlurmCluster, folder: Path, asked: Slurm | None = None, **settings: Any
) -> AsyncIterator[Driven]:
    (folder / "sleep.sh").write_text("sleep 600\n")
    chosen = SlurmSettings(
        cluster="contract",
        user="root",
        state_dir=folder,
        command=("/bin/sh", str(folder / "sleep.sh")),
        environment={"PATH": "/usr/bin:/bin"},
    )
    clock, conf = Clock(), str(slurm.impatient_configuration)
    agents = LocalEngine(clock, changed=lambda: None)
    engine = SlurmEngine(
        asked or Commands(slurm_conf=conf), replace(chosen, **settings), agents, clock, changed=lambda: None
    )
    running = asyncio.create_task(engine.run(Endpoints.all_at("127.0.0.1:7")))
    driven = Driven(engine, Commands(slurm_conf=conf), clock)
    try:
        await driven.until(lambda: len(engine.observe().nodes) == len(NODES))
        yield driven
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.fixture
async def driven(slurm: SlurmCluster, tmp_path: Path) -> AsyncIterator[Driven]:
    async with driving(slurm, tmp_path) as driven:
        yield driven


async def test_nodes_and_their_gpus_come_from_slurm(driven: Driven) -> None:
    inventory = driven.status().inventory
    assert (inventory.address, len(inventory.gpus), inventory.gpus[0].model) == ("127.0.0.1", 8, "h100")
    assert (inventory.cpu_milli, inventory.memory_mib) == (8000, 4000)
    assert driven.status().partitions == {"gpu", "small"}


async def test_what_is_wanted_runs_and_what_is_not_wanted_any_more_ends(driven: Driven) -> None:
    driven.want()
    await driven.come_to("RUNNING")
    await driven.until(lambda: driven.status().launchers == {REF})
    driven.engine.want({}, {})
    await driven.come_to("CANCELLED")
    await driven.until(lambda: driven.status().launchers == frozenset())


async def test_an_answer_that_was_lost_leaves_one_job(slurm: SlurmCluster, tmp_path: Path) -> None:
    asked = Forgetful(str(slurm.configuration))
    async with driving(slurm, tmp_path, asked) as driven:
        driven.want()
        await driven.come_to("RUNNING")
        await driven.until(lambda: driven.status().launchers == {REF})
        driven.clock.ahead_s = 60
        await asyncio.sleep(1.5)
        assert len(asked.submitted) == 1


async def test_of_two_jobs_after_a_lost_answer_the_later_one_never_runs(slurm: SlurmCluster, tmp_path: Path) -> None:
    asked = Forgetful(str(slurm.configuration), hides=True)
    async with driving(slurm, tmp_path, asked) as driven:
        driven.want()

        def asked_again() -> bool:
            driven.clock.ahead_s += 1  # until nobody waits for the answer any more
            return len(asked.submitted) == 2

        await driven.until(asked_again)
        await driven.come_to("RUNNING", "CANCELLED")
        first, second = asked.submitted
        assert slurm.command("scontrol", "show", "job", str(second)).count("RunTime=00:00:00") == 1
        assert slurm.job_state(first) == "RUNNING"
        assert not driven.status().cancelled


async def test_a_launcher_that_slurm_refuses_cannot_be_started_there(slurm: SlurmCluster, tmp_path: Path) -> None:
    async with driving(slurm, tmp_path) as driven:
        driven.want(partition="nowhere")
        await driven.until(lambda: driven.status().unstartable)
        ((ref, why),) = driven.status().unstartable
        assert ref == REF
        assert "invalid partition" in why.lower()
        assert await driven.states() == []


async def test_a_refused_scancel_is_asked_again_and_told_once(
    slurm: SlurmCluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with driving(slurm, tmp_path, Stubborn(slurm_conf=str(slurm.impatient_configuration))) as driven:
        driven.want()
        await driven.come_to("RUNNING")
        with caplog.at_level("INFO", logger=SlurmEngine.__module__):
            driven.engine.want({}, {})
            await asyncio.sleep(3)
    told = [record.getMessage() for record in caplog.records]
    assert told[0] == "cancelling Slurm jobs"
    assert [text.partition(":")[0] for text in told[1:]] == ["Slurm refused to cancel jobs of ours"]


async def test_a_cordon_is_a_drain_and_only_ours_is_undone(slurm: SlurmCluster, driven: Driven) -> None:
    driven.close("n1", "GPU_LOST: xid 79")
    await driven.until(lambda: slurm.node_states()["n1"] == "drain")
    assert slurm.command("sinfo", "-hn", "n1", "-o", "%E") == "switchgear: GPU_LOST: xid 79 [contract]"
    assert driven.status().closed is None
    driven.engine.want({}, {})
    await driven.until(lambda: slurm.node_states()["n1"] == "idle")
    slurm.command("scontrol", "update", "nodename=n2", "state=drain", "reason=bad fan")
    await driven.until(lambda: driven.status("n2").closed)
    driven.close("n2", "xid 79")
    driven.engine.want({}, {})
    await asyncio.sleep(0.5)
    assert slurm.command("sinfo", "-hn", "n2", "-o", "%E") == "bad fan"


async def test_a_slurm_that_is_away_is_said_to_be_and_judges_nobody(slurm: SlurmCluster, driven: Driven) -> None:
    driven.want()
    await driven.until(lambda: driven.status().launchers)
    before = driven.status()
    slurm.stop_controller()
    await driven.until(lambda: driven.status().obstacle)
    assert driven.status() == replace(before, obstacle="out of sight: Slurm does not answer")
    slurm.start_controller()
    await driven.until(lambda: not driven.status().obstacle)
    assert await driven.states() == ["RUNNING"]


async def test_a_launcher_that_waits_behind_others_says_what_for(slurm: SlurmCluster, driven: Driven) -> None:
    slurm.submit("sleep 600", "--nodelist=n1", "--gres=gpu:8", "--cpus-per-task=8")
    driven.want()
    await driven.until(lambda: driven.status().waiting)
    ((ref, why),) = driven.status().waiting
    assert ref == REF
    assert "waits" in why
    await driven.until(lambda: driven.status().foreign)
    (foreign,) = driven.status().foreign
    assert (foreign.gpus, foreign.user) == (8, "slurm:root")


async def test_a_launcher_stays_in_line_behind_others_and_gives_up_a_node_for_which_nobody_else_queues(
    slurm: SlurmCluster, tmp_path: Path
) -> None:
    whole = ("--nodelist=n1", "--gres=gpu:8", "--time=20")
    holder, rival = (slurm.submit("sleep 600", *whole) for _ in range(2))
    async with driving(slurm, tmp_path, patience_s=1.0) as driven:
        driven.want()
        await driven.until(lambda: driven.status().waiting)
        await asyncio.sleep(3)
        assert (driven.status().withheld, driven.status().obstacle) == ((), "")
        slurm.command("scancel", str(rival))
        await driven.until(lambda: driven.status().withheld)
        ((ref, why),) = driven.status().withheld
        assert ref == REF
        assert why.startswith("Slurm holds it for another job (")
        assert driven.status().obstacle == f"withheld: {why}"
        driven.engine.want({}, {})
        await driven.come_to("CANCELLED")
        assert not driven.status().cancelled
        assert driven.status().obstacle == f"withheld: {why}"
        slurm.command("scancel", str(holder))
        await driven.until(lambda: not driven.status().obstacle)


async def test_the_comment_of_a_job_names_its_launcher(driven: Driven) -> None:
    driven.want()
    await driven.come_to("RUNNING")
    (job,) = [job for job in await driven.slurm.jobs() if job.state == "RUNNING"]
    assert keys.key_of(job.comment, "contract") == keys.Key("jobs/llama", 1, "nodes/n1", driven.created)
    assert (job.name, job.nodes, job.gpus["n1"].count) == ("llama:n1:contract", ("n1",), 2)
