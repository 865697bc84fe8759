"""Standby launchers of a node: warm before there is a job, like any other launcher afterwards, gone with an agent that is."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from launcher_control import ControlPlane
from launcher_world import alive, until

from switchgear.agent.launcher_process import LauncherSettings
from switchgear.agent.launchers import Launchers
from switchgear.agent.standbys import Standbys
from switchgear.core.clock import SystemClock
from switchgear.core.process import start_ticks
from switchgear.v1.job_service_pb2 import JobSpec
from switchgear.v1alpha import node_agent_service_pb2 as pb

COMMAND = (sys.executable, "-m", "switchgear.launcher")
#: An agent of standbys alone: names the kind that it keeps warm in its first argument.
AGENT = """
import asyncio, json, sys
from pathlib import Path
from switchgear.agent.launcher_process import LauncherSettings
from switchgear.agent.standby import kind_of
from switchgear.agent.standbys import Standbys
from switchgear.core.clock import SystemClock
from switchgear.v1.job_service_pb2 import JobSpec
from google.protobuf import json_format

async def main():
    settings = LauncherSettings((sys.executable, "-m", "switchgear.launcher"), "nodes/n", "127.0.0.1", "", Path(sys.argv[2]))
    standbys = Standbys(settings, 1, SystemClock(), delay_s=0)
    standbys.want([kind_of(json_format.Parse(sys.argv[1], JobSpec()))])
    await standbys.run()

asyncio.run(main())
"""
#: A worker, and a daemon that has left the session and its parent; both ranks tell of theirs.
WITH_DESCENDANTS = """
import multiprocessing, os, subprocess, time
worker = multiprocessing.Process(target=time.sleep, args=(60,))
worker.start()
daemon = subprocess.run(["sh", "-c", "setsid sleep 60 >/dev/null 2>&1 & echo $!"], capture_output=True, text=True).stdout
print(worker.pid, daemon.strip(), flush=True)
time.sleep(60)
"""


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def descendants(pid: int) -> list[int]:
    return [found for child in children(pid) for found in (child, *descendants(child))]


def oom_score(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def cmdline(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


class Node:
    """A node whose launchers are real, its agent in this process."""

    def __init__(self, folder: Path, python: str, plane: ControlPlane) -> None:
        self.folder, self.plane = folder, plane
        self.reports: list[pb.NodeAgentReport] = []
        self.spec = JobSpec(
            argv=["script.py"],
            working_directory=str(folder),
            python=python,
            nnodes=1,
            nproc_per_node=2,
            preload=["mine"],
        )
        (folder / "mine.py").write_text("import os; PID = os.getpid()")
        (folder / "script.py").write_text("import mine, time; print(mine.PID, flush=True); time.sleep(60)")
        self.settings = LauncherSettings(COMMAND, "nodes/here", "127.0.0.1", plane.address, folder / "state")
        self.lives()

    def lives(self, linger_s: float = 60) -> None:
        self.standbys = Standbys(self.settings, 1, SystemClock(), delay_s=0, linger_s=linger_s)
        self.launchers = Launchers(self.settings, self.reports.append, self.standbys)
        self.launchers.adopt()
        self.run = asyncio.create_task(self.standbys.run())

    async def dies(self) -> None:
        self.run.cancel()
        await asyncio.gather(self.run, return_exceptions=True)
        await self.launchers.close()

    def keep_warm(self, *kinds: JobSpec) -> None:
        warm = [pb.Warm(**{f: getattr(k, f) for f in ("python", "working_directory", "preload")}) for k in kinds]
        self.launchers.keep_warm(pb.KeepWarm(kinds=warm))

    async def warm(self) -> int:
        """Until a standby is ready; returns its pid."""
        await until(lambda: self.standbys.ready == 1, timeout_s=15)
        given = {one.pid for one in self.launchers.running()}
        (found,) = (p for p in children(os.getpid()) if b"--standby" in cmdline(p) and p not in given)
        return found

    def start(self, epoch: int = 1) -> None:
        self.launchers.start(
            pb.StartLauncher(job="jobs/test", placement_epoch=epoch, spec=self.spec, gpu_indices=[0, 1])
        )

    @property
    def launcher_folder(self) -> Path:
        return self.folder / "state/launchers/test"

    async def output(self) -> str:
        log = self.launcher_folder / "logs/1/rank-0.stdout.log"
        await until(lambda: log.exists() and log.read_text().endswith("\n"), timeout_s=15)
        return log.read_text().strip()

    async def pid(self) -> int:
        await until(lambda: bool(self.launchers.running()))
        return self.launchers.running()[0].pid


@pytest.fixture
async def node(tmp_path: Path, bare_python: str) -> AsyncIterator[Node]:
    plane = ControlPlane()
    await plane.up()
    node = Node(tmp_path, bare_python, plane)
    try:
        yield node
    finally:
        node.launchers.stop("jobs/test", 1000)
        await until(lambda: not node.launchers.running(), timeout_s=15)
        await node.dies()
        await plane.down()


async def test_a_standby_becomes_the_launcher_of_a_job_with_what_it_has_imported(node: Node) -> None:
    node.keep_warm(node.spec)
    standby = await node.warm()
    (zygote,) = children(standby)
    assert oom_score(standby) == oom_score(zygote) == 1000
    node.start()
    assert await node.pid() == standby
    hello = await node.plane.ready()
    assert (hello.job, hello.node, hello.placement_epoch) == ("jobs/test", "nodes/here", 1)
    node.plane.start(1)
    ranks = {rank.pid for rank in await node.plane.wait("rank_started", 2)}
    assert (await node.output(), ranks) == (str(zygote), set(children(zygote)))
    assert oom_score(standby) == oom_score(zygote) == oom_score(os.getpid())
    assert os.getsid(standby) == standby
    outputs = [str(Path(f"/proc/{standby}/fd/{fd}").readlink()) for fd in (0, 1, 2)]
    assert outputs == [os.devnull, *[str(node.launcher_folder / "launcher.log")] * 2]
    assert (node.launcher_folder / "zygote.log").exists()
    assert os.getpriority(os.PRIO_PROCESS, zygote) == os.getpriority(os.PRIO_PROCESS, 0)
    await node.warm()
    assert len(list((node.folder / "state/standbys").iterdir())) == 1


async def test_of_a_killed_launcher_no_descendant_survives_and_it_is_started_again_from_a_standby(node: Node) -> None:
    node.keep_warm(node.spec)
    (node.folder / "script.py").write_text(WITH_DESCENDANTS)
    first = await node.warm()
    node.start()
    await node.plane.ready()
    node.plane.start(1)
    second = await node.warm()
    processes = [first, *descendants(first), *map(int, (await node.output()).split())]
    assert len(processes) >= 1 + 1 + 2 + 2 * 2
    os.kill(first, signal.SIGKILL)
    await until(lambda: any(report.HasField("launcher_exited") for report in node.reports))
    await until(lambda: alive(processes) == [])
    node.start()
    assert await node.pid() == second


async def test_a_launcher_that_was_a_standby_is_adopted_and_standbys_end_with_the_agent(node: Node) -> None:
    node.keep_warm(node.spec)
    launcher = await node.warm()
    node.start()
    await node.plane.ready()
    standby = await node.warm()
    processes = [standby, *descendants(standby)]
    await node.dies()
    await until(lambda: alive(processes) == [])
    node.lives()
    assert [(one.job, one.pid) for one in node.launchers.running()] == [("jobs/test", launcher)]
    assert alive([launcher]) == [launcher]


async def test_an_agent_that_dies_before_its_standby_hears_of_the_job_leaves_no_launcher(node: Node) -> None:
    node.keep_warm(node.spec)
    standby = await node.warm()
    node.start()
    await node.pid()
    file = node.launcher_folder / "agent.json"
    written = json.loads(file.read_text())
    assert written["pid"] == standby
    other = await node.warm()
    file.write_text(json.dumps(written | {"pid": other, "start_ticks": start_ticks(other)}))  # ... and never told
    os.kill(standby, signal.SIGKILL)
    await node.dies()
    node.lives()
    await until(lambda: node.launchers.running() == [] and alive([standby, other]) == [])


async def test_a_file_that_has_changed_since_is_imported_again(node: Node) -> None:
    node.keep_warm(node.spec)
    standby = await node.warm()
    (zygote,) = children(standby)
    (node.folder / "mine.py").write_text("PID = 'new'")
    node.start()
    await node.plane.ready()
    node.plane.start(1)
    assert await node.output() == "new"
    assert alive([zygote]) == []


async def test_a_log_that_cannot_be_moved_leaves_the_launcher_able_to_import_again(node: Node) -> None:
    node.keep_warm(node.spec)
    (zygote,) = children(await node.warm())
    (log,) = (node.folder / "state/standbys").glob("*/zygote.log")
    log.unlink()
    node.start()
    await node.plane.ready()
    os.kill(zygote, signal.SIGKILL)
    await until((node.launcher_folder / "zygote.log").exists)


async def test_a_standby_is_no_use_to_other_programs_and_ends_when_its_start_cannot_be_written_down(
    node: Node,
) -> None:
    node.keep_warm(node.spec)
    standby = await node.warm()
    processes = [standby, *descendants(standby)]
    python = JobSpec()
    python.CopyFrom(node.spec)
    node.spec.no_python = True
    node.spec.argv[:] = ["sleep", "60"]
    node.start()
    assert await node.pid() != standby
    assert (alive(processes), node.standbys.ready) == (processes, 1)
    node.launchers.stop("jobs/test", 1)
    await until(lambda: not node.launchers.running())
    node.spec = python
    (node.launcher_folder / "agent.json.tmp").mkdir()
    node.start(epoch=2)
    await until(lambda: any(report.HasField("launcher_failed") for report in node.reports))
    await until(lambda: alive(processes) == [])


async def test_what_is_no_longer_wanted_ends_and_what_fails_is_not_tried_again_at_once(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.keep_warm(node.spec)
    standby = await node.warm()
    node.keep_warm(JobSpec(python="/nowhere/python", working_directory="/"))
    await until(lambda: alive([standby]) == [])
    await until(lambda: "no launcher can be kept warm" in caplog.messages, timeout_s=15)
    await until(lambda: not [p for p in children(os.getpid()) if b"--standby" in cmdline(p)])
    assert node.standbys.ready == 0


async def test_the_standby_of_a_kind_that_nobody_wants_any_more_stays_a_while_unless_its_place_is_needed(
    node: Node,
) -> None:
    node.keep_warm(node.spec)
    standby = await node.warm()
    node.keep_warm()
    node.start()
    assert await node.pid() == standby
    await node.dies()
    node.lives(linger_s=0)
    node.keep_warm(node.spec)
    standby = await node.warm()
    node.keep_warm()
    await until(lambda: alive([standby]) == [])


async def test_with_the_agent_killed_nothing_of_a_standby_is_left_not_even_while_it_imports(
    tmp_path: Path, bare_python: str
) -> None:
    (tmp_path / "endless.py").write_text("open('importing', 'w').close()\nwhile True: pass")
    for preload in ([], ["endless"]):
        spec = {"python": bare_python, "workingDirectory": str(tmp_path), "preload": preload}
        agent = subprocess.Popen([sys.executable, "-c", AGENT, json.dumps(spec), str(tmp_path / "state")])  # noqa: ASYNC220
        try:
            if preload:
                await until((tmp_path / "importing").exists, timeout_s=15)
            await until(lambda: len(descendants(agent.pid)) == 2, timeout_s=15)  # noqa: B023 - in this turn
            processes = descendants(agent.pid)
        finally:
            agent.kill()
            agent.wait()
        await until(lambda: alive(processes) == [])  # noqa: B023 - in this turn
