"""Launchers as real processes: started once, replaced, stopped, adopted, and never confused with others."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from switchgear.agent.launcher_process import LauncherSettings
from switchgear.agent.launchers import FOLDERS_MAX, Launchers
from switchgear.core.process import start_ticks
from switchgear.v1 import job_service_pb2
from switchgear.v1alpha import node_agent_service_pb2 as pb

WITHIN_S = 15.0
#: Stands in for the launcher: writes down how it was called and waits. Its job's name says how it ends.
PROGRAM = """
import json, os, signal, sys, time
arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
with open(os.path.join(arguments["--state-dir"], f"called-{arguments['--placement-epoch']}"), "w") as file:
    json.dump({"arguments": arguments, "sid": os.getsid(0), "environment": dict(os.environ)}, file)
print("hello from the launcher", flush=True)
if "ends" in arguments["--job"]:
    sys.exit(7)
if "stubborn" in arguments["--job"]:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open(os.path.join(arguments["--state-dir"], "ready"), "w"):
    pass
time.sleep(60)
"""


class Node:
    """What a node agent has of launchers; `restart` is an agent that dies and comes back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reports: list[pb.NodeAgentReport] = []
        program = folder / "launcher.py"
        program.write_text(PROGRAM)
        self.settings = LauncherSettings(
            (sys.executable, str(program)),
            "nodes/n1",
            "127.0.0.1",
            "127.0.0.1:1",
            folder,
            autoscaler="127.0.0.1:2",
            stop_grace_s=0.3,
        )
        self.launchers = Launchers(self.settings, self.reports.append)

    async def restart(self) -> None:
        await self.launchers.close()
        self.launchers = Launchers(self.settings, self.reports.append)
        self.launchers.adopt()

    def start(self, job: str, epoch: int = 1) -> None:
        spec = job_service_pb2.JobSpec(argv=["train.py"], working_directory="/", nnodes=1, nproc_per_node=2)
        self.launchers.start(
            pb.StartLauncher(
                job=job, placement_epoch=epoch, spec=spec, gpu_indices=[0, 1], recovery_address="127.0.0.1:9"
            )
        )

    def running(self) -> dict[str, int]:
        return {one.job: one.placement_epoch for one in self.launchers.running()}

    def pid(self) -> int:
        (one,) = self.launchers.running()
        return one.pid

    async def ready(self, job: str) -> None:
        await until((self.folder / "launchers" / job / "ready").exists)

    def exits(self) -> list[tuple[str, int, int | None]]:
        exited = [report.launcher_exited for report in self.reports if report.HasField("launcher_exited")]
        return [(e.job, e.placement_epoch, e.exit_code if e.HasField("exit_code") else None) for e in exited]


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(tmp_path)
    try:
        yield node
    finally:
        for job, epoch in node.running().items():
            node.launchers.stop(job, epoch)
        await until(lambda: not node.running())
        await node.launchers.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not condition():  # noqa: ASYNC110 - the condition is in other processes
            await asyncio.sleep(0.01)


async def test_a_launcher_is_called_as_agreed_in_a_session_of_its_own(node: Node) -> None:
    node.start("jobs/llama", 3)
    await node.ready("llama")
    folder = node.folder / "launchers" / "llama"
    called = json.loads((folder / "called-3").read_text())
    spec = called["arguments"].pop("--spec")
    assert called["arguments"] == {
        "--job": "jobs/llama",
        "--placement-epoch": "3",
        "--node": "nodes/n1",
        "--address": "127.0.0.1",
        "--gpu-indices": "0,1",
        "--recovery": "127.0.0.1:1",
        "--autoscaler": "127.0.0.1:2",
        "--state-dir": str(folder),
        "--trace-parent": "",
    }
    assert json.loads(Path(spec).read_text())["nprocPerNode"] == 2
    assert called["sid"] == node.pid()
    assert (folder / "launcher.log").read_text() == "hello from the launcher\n"


async def test_a_launcher_does_not_inherit_what_the_control_plane_and_its_users_keep_to_themselves(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {"SWITCHGEAR_DATABASE_URL", "SWITCHGEAR_TOKEN", "SWITCHGEAR_TOKEN_FILE", "SWITCHGEAR_JOIN_TOKEN"}
    secrets |= {"PGPASSWORD", "PGPASSFILE"}
    for name in (*secrets, "NCCL_DEBUG"):
        monkeypatch.setenv(name, "x")
    node.start("jobs/llama")
    await node.ready("llama")
    environment = json.loads((node.folder / "launchers" / "llama" / "called-1").read_text())["environment"]
    assert environment.keys() & (secrets | {"NCCL_DEBUG"}) == {"NCCL_DEBUG"}


async def test_starting_it_again_changes_nothing(node: Node) -> None:
    node.start("jobs/llama")
    node.start("jobs/llama")
    await node.ready("llama")
    pid = node.pid()
    node.start("jobs/llama")
    await asyncio.sleep(0.1)
    assert (node.pid(), node.exits()) == (pid, [])


async def test_a_newer_epoch_replaces_the_launcher_and_an_older_one_is_ignored(node: Node) -> None:
    node.start("jobs/llama", 1)
    await node.ready("llama")
    node.start("jobs/llama", 2)
    await until(lambda: node.running() == {"jobs/llama": 2})
    node.start("jobs/llama", 1)
    await asyncio.sleep(0.1)
    assert node.running() == {"jobs/llama": 2}
    assert node.exits() == [("jobs/llama", 1, -signal.SIGTERM)]


async def test_stopping_reaches_its_epoch_and_older_ones_only(node: Node) -> None:
    node.start("jobs/llama", 2)
    await node.ready("llama")
    node.launchers.stop("jobs/llama", 1)
    await asyncio.sleep(0.1)
    assert node.running() == {"jobs/llama": 2}
    node.launchers.stop("jobs/llama", 2)
    await until(lambda: not node.running())
    assert node.exits() == [("jobs/llama", 2, -signal.SIGTERM)]


async def test_a_launcher_that_ignores_sigterm_is_killed_after_its_grace(node: Node) -> None:
    node.start("jobs/stubborn")
    await node.ready("stubborn")
    node.launchers.stop("jobs/stubborn", 1)
    await until(lambda: not node.running())
    assert node.exits() == [("jobs/stubborn", 1, -signal.SIGKILL)]


async def test_a_launcher_that_ends_is_reaped_and_reported_with_its_exit_code(node: Node) -> None:
    node.start("jobs/ends")
    await until(lambda: node.exits() == [("jobs/ends", 1, 7)])
    assert node.running() == {}
    node.start("jobs/ends", 1)  # the scheduler may want it again
    await until(lambda: len(node.exits()) == 2)


async def test_a_launcher_outlives_the_agent_and_is_adopted(node: Node) -> None:
    node.start("jobs/llama", 4)
    await node.ready("llama")
    pid = node.pid()
    await node.restart()
    assert (node.running(), node.pid()) == ({"jobs/llama": 4}, pid)
    node.start("jobs/llama", 4)
    await asyncio.sleep(0.1)
    assert node.pid() == pid
    os.kill(pid, signal.SIGKILL)
    await until(lambda: len(node.exits()) == 1)


async def test_a_launcher_is_adopted_even_when_the_agent_died_before_it_wrote_the_pid_down(node: Node) -> None:
    node.start("jobs/llama", 4)
    await node.ready("llama")
    pid, file = node.pid(), node.folder / "launchers" / "llama" / "agent.json"
    state = json.loads(file.read_text())
    file.write_text(json.dumps(state | {"pid": None, "start_ticks": None}))
    await node.restart()
    assert node.pid() == pid


async def test_a_stranger_with_the_pid_of_a_dead_launcher_is_left_alone(node: Node) -> None:
    node.start("jobs/llama", 4)
    await node.ready("llama")
    file = node.folder / "launchers" / "llama" / "agent.json"
    state = json.loads(file.read_text())
    node.launchers.stop("jobs/llama", 4)
    await until(lambda: not node.running())
    assert start_ticks(os.getpid()) is not None
    file.write_text(json.dumps(state | {"pid": os.getpid()}))  # started at another time
    await node.restart()
    assert node.running() == {}


async def test_nothing_is_adopted_from_before_a_boot(node: Node) -> None:
    node.start("jobs/llama", 4)
    await node.ready("llama")
    pid, file = node.pid(), node.folder / "launchers" / "llama" / "agent.json"
    state = json.loads(file.read_text())
    file.write_text(json.dumps(state | {"boot_id": "another"}))  # same pid and ticks, by chance
    await node.restart()
    assert node.running() == {}
    file.write_text(json.dumps(state))
    await node.restart()
    assert node.pid() == pid


async def test_folders_of_launchers_that_ended_long_ago_are_deleted_without_holding_up_the_agent(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[int] = set()
    delete = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda *a, **k: (threads.add(threading.get_ident()), delete(*a, **k)))
    root = node.folder / "launchers"
    for number in range(FOLDERS_MAX + 3):
        folder = root / f"old-{number:03}"
        folder.mkdir()
        os.utime(folder, (number, number))
    node.start("jobs/llama")
    await node.ready("llama")
    await until(lambda: bool(threads) and not list((node.folder / "launchers-ended").iterdir()))
    assert sorted(path.name for path in root.iterdir())[:2] == ["llama", "old-003"]
    assert threading.get_ident() not in threads


async def test_what_cannot_be_started_is_reported_with_the_reason(node: Node) -> None:
    node.start("jobs/../../etc")
    node.settings = LauncherSettings(("/nowhere/python",), "nodes/n1", "127.0.0.1", "127.0.0.1:1", node.folder)
    await node.restart()
    node.start("jobs/llama")
    await until(lambda: len(node.reports) == 2)
    messages = [report.launcher_failed.message for report in node.reports]
    assert "jobs/*" in messages[0]
    assert "No such file" in messages[1]


async def test_a_command_that_comes_when_the_one_before_has_just_been_done_is_not_lost(node: Node) -> None:
    node.settings = replace(node.settings, command=("/nowhere/launcher",))
    node.launchers = Launchers(node.settings, node.reports.append)
    for turns in range(4):
        node.start("jobs/llama", 2 * turns + 1)
        # Of the loop: the work on a command takes one, and what becomes of its task another.
        for _ in range(turns):
            await asyncio.sleep(0)
        last = 2 * turns + 2
        node.start("jobs/llama", last)
        await until(lambda: bool(node.reports) and node.reports[-1].launcher_failed.placement_epoch == last)  # noqa: B023 - in this turn
