"""Whole launcher processes under a control plane that comes and goes; ranks run on an interpreter without torch, which starts at once."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf import json_format
from launcher_control import ControlPlane
from launcher_world import Launcher, alive, until

from switchgear.launcher import supervisor
from switchgear.launcher.logs import EchoRule
from switchgear.v1.job_service_pb2 import JobSpec
from switchgear.v1alpha import launcher_service_pb2 as pb

SLEEP = "import time; print('up'); time.sleep(60)"
FINISHES = """
import signal, sys, time
def finish(*_): print('finished', flush=True); sys.exit(0)
signal.signal(signal.SIGTERM, finish)
print('up', flush=True)
time.sleep(60)
"""
#: Rank 1 fails once there is a file `fail`; both have a child.
FAILS_WHEN_TOLD = """
import os, pathlib, subprocess, sys, time
print(subprocess.Popen(['sleep', '60']).pid, flush=True)
while not pathlib.Path('fail').exists(): time.sleep(0.02)
if os.environ['RANK'] == '1': sys.exit('out of data')
time.sleep(60)
"""
WITH_CHILD = "import subprocess, time; print(subprocess.Popen(['sleep', '60']).pid); time.sleep(60)"


@pytest.fixture
async def plane() -> AsyncIterator[ControlPlane]:
    plane = ControlPlane()
    await plane.up()
    yield plane
    await plane.down()


class Processes:
    """Starts launcher processes for one job on one node and ends what is left of them."""

    def __init__(self, folder: Path, python: str, plane: ControlPlane) -> None:
        self.folder = folder
        self._plane = plane
        self._started: list[subprocess.Popen[bytes]] = []
        self._python = python
        self.script(SLEEP)

    def script(self, text: str) -> None:
        (self.folder / "script.py").write_text(text)

    def launch(self, workload: JobSpec.Workload = JobSpec.TRAINING) -> subprocess.Popen[bytes]:
        spec = JobSpec(
            argv=["script.py"],
            working_directory=str(self.folder),
            python=self._python,
            nnodes=1,
            nproc_per_node=2,
            workload=workload,
        )
        (self.folder / "spec.json").write_text(json_format.MessageToJson(spec))
        words = f"--job jobs/test --placement-epoch 3 --node nodes/here --address 127.0.0.1 --gpu-indices 0,1 --recovery {self._plane.address}"
        argv = [sys.executable, "-m", "switchgear.launcher", *words.split(), "--spec", str(self.folder / "spec.json")]
        with (self.folder / f"launcher-{len(self._started)}.log").open("wb") as log:
            process = subprocess.Popen(
                [*argv, "--state-dir", str(self.folder / "state")], stdout=log, stderr=log, start_new_session=True
            )
        self._started.append(process)
        return process

    def end(self) -> None:
        for process in self._started:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def output(self, generation: int) -> list[str]:
        return [
            (self.folder / f"state/logs/{generation}/rank-{rank}.stdout.log").read_text().strip() for rank in (0, 1)
        ]


@pytest.fixture
async def processes(tmp_path: Path, bare_python: str, plane: ControlPlane) -> AsyncIterator[Processes]:
    processes = Processes(tmp_path, bare_python, plane)
    yield processes
    await asyncio.to_thread(processes.end)  # they wait for an answer to their last word


async def started(plane: ControlPlane) -> list[int]:
    return [rank.pid for rank in await plane.wait("rank_started", 2)]


async def test_a_launcher_says_hello_runs_what_it_is_told_and_ends_when_the_job_has_ended(
    plane: ControlPlane, processes: Processes
) -> None:
    processes.script("import os; print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['SWITCHGEAR_GENERATION'])")
    process = processes.launch()
    hello = await plane.ready()
    assert plane.reports[0].WhichOneof("kind") == "hello"
    assert (hello.job, hello.node, hello.placement_epoch) == ("jobs/test", "nodes/here", 3)
    assert hello.reserved_port > 0
    plane.start(1)
    await plane.wait("attempt_stopped")
    assert [end.exit_code for end in await plane.wait("rank_exited", 2)] == [0, 0]
    assert processes.output(1) == ["0,1 1", "0,1 1"]
    await plane.wait("heartbeat", 2)
    plane.send(1, finish=pb.Finish(reason="done"))
    await until(lambda: process.poll() is not None)
    assert process.returncode == 0


async def test_a_replica_whose_job_ends_may_finish_what_it_does(plane: ControlPlane, processes: Processes) -> None:
    processes.script(FINISHES)
    process = processes.launch(JobSpec.INFERENCE)
    await plane.ready()
    plane.start(1)
    await started(plane)
    await until(lambda: processes.output(1) == ["up", "up"])
    plane.send(1, finish=pb.Finish(reason="done"))
    await until(lambda: process.poll() is not None)
    assert processes.output(1) == ["up\nfinished", "up\nfinished"]


async def test_when_the_launcher_is_killed_nothing_of_the_attempt_lives_on_and_the_next_one_goes_on(
    plane: ControlPlane, processes: Processes
) -> None:
    processes.script(WITH_CHILD)
    launcher = processes.launch()
    await plane.ready()
    plane.start(1)
    pids = await started(plane)
    await until(lambda: all(processes.output(1)))
    everything = [*pids, *(int(text) for text in processes.output(1))]
    launcher.kill()
    await until(lambda: not alive(everything), timeout_s=1)

    plane.reports.clear()
    processes.launch()
    await plane.ready()
    hellos = [r for r in plane.reports if r.WhichOneof("kind") == "hello"]
    assert {r.generation for r in hellos} == {1}
    assert [len(r.hello.ranks_alive) for r in hellos if r.hello.ready] == [0]
    plane.start(1)
    (rejected,) = await plane.wait("rejected")
    assert rejected.current_generation == 1
    plane.start(2)
    assert len(await started(plane)) == 2


async def test_survivors_of_a_killed_launcher_are_ended_by_the_next(plane: ControlPlane, processes: Processes) -> None:
    """Even when the zygote cannot act, because it was stopped."""
    processes.script(WITH_CHILD)
    launcher = processes.launch()
    await plane.ready()
    plane.start(1)
    pids = await started(plane)
    await until(lambda: all(processes.output(1)))
    everything = [*pids, *(int(text) for text in processes.output(1))]
    zygote = int(Path(f"/proc/{pids[0]}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(zygote, signal.SIGSTOP)
    launcher.kill()
    launcher.wait()
    assert alive([*everything, zygote]) == [*everything, zygote]
    plane.reports.clear()
    processes.launch()
    await plane.wait("hello")
    assert alive([*everything, zygote]) == []


async def test_ranks_run_on_while_the_control_plane_is_away_and_are_told_of_when_it_is_back(
    plane: ControlPlane, processes: Processes
) -> None:
    processes.launch()
    await plane.ready()
    plane.start(1)
    pids = await started(plane)
    await plane.down()
    os.kill(pids[1], signal.SIGKILL)
    await until(lambda: not alive(pids))
    await plane.up()
    (hello, *_) = await plane.wait("hello")
    assert plane.reports[0].generation == 1
    assert ([*hello.ranks_alive], {end.rank for end in hello.ranks_exited}) == ([], {0, 1})
    reported = [r.WhichOneof("kind") for r in plane.reports]
    await plane.wait("attempt_stopped")
    assert reported[0] == "hello"

    plane.start(2)
    await until(lambda: len([r for r in plane.reports if r.WhichOneof("kind") == "rank_started"]) == 2)
    pids = await started(plane)
    await plane.down()
    await plane.up()
    (hello, *_) = await plane.wait("hello")
    assert [rank.pid for rank in hello.ranks_alive] == pids
    assert alive(pids) == pids


async def test_a_rank_that_fails_while_the_control_plane_is_away_ends_its_attempt_and_nothing_starts_until_it_is_back(
    plane: ControlPlane, processes: Processes
) -> None:
    processes.script(FAILS_WHEN_TOLD)
    launcher = processes.launch()
    await plane.ready()
    plane.start(1)
    pids = await started(plane)
    await until(lambda: all(processes.output(1)))
    everything = [*pids, *(int(text) for text in processes.output(1))]
    await plane.down()
    (processes.folder / "fail").touch()
    await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in everything))  # collected, not only dead
    await plane.up()
    hello = await plane.ready()
    assert ([*hello.ranks_alive], hello.all_gone) == ([], True)
    ends = {end.rank: (end.exit_code, end.stopped_by_us, end.stderr_tail) for end in hello.ranks_exited}
    assert ends == {0: (-signal.SIGKILL, True, ""), 1: (1, False, "out of data\n")}
    await plane.wait("attempt_stopped")
    await plane.wait("heartbeat", 2)
    assert {report.generation for report in plane.reports} == {1}
    assert "rank_started" not in {report.WhichOneof("kind") for report in plane.reports}
    assert launcher.poll() is None


async def test_ranks_are_ended_when_the_lease_is_over_and_run_again_under_a_new_one(
    plane: ControlPlane, processes: Processes
) -> None:
    plane.lease_s = 1.5
    processes.launch()
    await plane.ready()
    plane.start(1)
    pids = await started(plane)
    await plane.wait("heartbeat", 2)
    assert alive(pids) == pids
    await plane.down()
    await until(lambda: not alive(pids), timeout_s=4)
    plane.lease_s = 0
    await plane.up()
    await plane.wait("hello")
    plane.start(2)
    await plane.wait("heartbeat", 2)
    assert "rank_started" not in {r.WhichOneof("kind") for r in plane.reports}, "nothing starts without a lease"
    plane.lease_s = 30
    assert len(await started(plane)) == 2


async def test_ranks_end_with_the_lease_although_their_launcher_is_stopped(
    plane: ControlPlane, processes: Processes
) -> None:
    """Its node is given up for lost when the lease is over, and the job runs elsewhere."""
    plane.lease_s = 1.5
    processes.script(WITH_CHILD)
    launcher = processes.launch()
    await plane.ready()
    plane.start(1)
    pids = await started(plane)
    await until(lambda: all(processes.output(1)))
    everything = [*pids, *(int(text) for text in processes.output(1))]
    await asyncio.sleep(plane.lease_s + 0.5)
    assert alive(everything) == everything, "it is extended while the launcher is well"
    os.kill(launcher.pid, signal.SIGSTOP)
    try:
        await until(lambda: not alive(everything), timeout_s=plane.lease_s + 1)
    finally:
        os.kill(launcher.pid, signal.SIGCONT)
    exits = await plane.wait("rank_exited", 2)
    await plane.wait("attempt_stopped")
    assert {(end.exit_code, end.stopped_by_us) for end in exits} == {(-signal.SIGKILL, True)}
    plane.start(2)
    await plane.wait("rank_started", 4)


async def test_a_second_launcher_of_the_same_job_and_node_is_refused(plane: ControlPlane, processes: Processes) -> None:
    first = processes.launch()
    await plane.ready()
    second = processes.launch()
    await until(lambda: second.poll() is not None)
    assert second.returncode == 1
    assert (
        f"jobs/test already runs here under launcher {first.pid}" in (processes.folder / "launcher-1.log").read_text()
    )
    assert first.poll() is None


async def test_sigterm_stops_the_ranks_first(plane: ControlPlane, processes: Processes) -> None:
    process = processes.launch()
    await plane.ready()
    plane.start(1)
    pids = await started(plane)
    process.send_signal(signal.SIGTERM)
    await plane.wait("attempt_stopped")
    await until(lambda: process.poll() is not None)
    assert (process.returncode, alive(pids)) == (143, [])
    assert {end.exit_code for end in await plane.wait("rank_exited", 2)} == {-signal.SIGTERM}


async def refusal(launcher: Launcher) -> pb.StartFailed:
    """Its answer to a start, which a control plane sends only to a launcher that says it is ready."""
    async with launcher:
        await launcher.wait(0, "hello", where=lambda hello: hello.ready)
        await launcher.start(1)
        (failed,) = await launcher.wait(1, "start_failed")
        assert isinstance(failed, pb.StartFailed)
        return failed


async def test_an_interpreter_that_is_missing_is_said_so(tmp_path: Path) -> None:
    failed = await refusal(Launcher(tmp_path, "print(1)", spec={"python": str(tmp_path / "python9")}))
    assert (failed.permanent, failed.message) == (True, f"cannot run {tmp_path}/python9: No such file or directory")


async def test_what_passes_may_be_tried_again(tmp_path: Path, bare_python: str) -> None:
    """Here the zygote's log cannot be opened; no memory or no process left for it comes to the same."""
    (tmp_path / "state/zygote.log").mkdir(parents=True)
    async with Launcher(tmp_path, SLEEP, spec={"python": bare_python}) as launcher:
        await launcher.start(1)
        (failed,) = await launcher.wait(1, "start_failed")
        assert not failed.permanent
        assert failed.message.startswith("cannot start the process that forks the ranks: [Errno 21] Is a directory")
        (tmp_path / "state/zygote.log").rmdir()
        await launcher.start(2)
        assert len(await launcher.pids(2)) == 2


async def test_an_interpreter_whose_name_no_system_takes_is_answered_too(tmp_path: Path) -> None:
    failed = await refusal(Launcher(tmp_path, "print(1)", spec={"python": "python\0"}))
    assert failed.message == "cannot start the process that forks the ranks: embedded null byte"


async def test_a_working_directory_that_is_missing_is_said_so(tmp_path: Path, bare_python: str) -> None:
    launcher = Launcher(tmp_path, "print(1)", spec={"python": bare_python})
    launcher.spec.working_directory = str(tmp_path / "away")
    failed = await refusal(launcher)
    message = f"working directory {tmp_path}/away does not exist on nodes/here"
    assert (failed.permanent, failed.message) == (True, message)


async def test_a_torch_that_cannot_be_imported_is_said_so_with_its_last_words(tmp_path: Path, bare_python: str) -> None:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/torch.py").write_text("raise OSError('libcudart.so is missing')")
    spec = {"python": bare_python, "environment": {"PYTHONPATH": str(tmp_path / "modules")}}
    failed = await refusal(Launcher(tmp_path, "print(1)", spec=spec))
    assert not failed.permanent
    assert failed.message.endswith("OSError: libcudart.so is missing")


async def test_a_zygote_that_does_not_act_is_replaced(
    tmp_path: Path, bare_python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_STOP_PATIENCE_S", 0.2)
    async with Launcher(tmp_path, WITH_CHILD, spec={"python": bare_python}) as launcher:
        await launcher.start(1)
        pids = await launcher.pids(1)
        zygote = int(Path(f"/proc/{pids[0]}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(zygote, signal.SIGSTOP)
        await launcher.stop(1)
        await launcher.wait(1, "attempt_stopped")
        assert alive([*pids, zygote]) == []
        await launcher.start(2)
        assert len(await launcher.pids(2)) == 2


async def test_a_zygote_that_is_stopped_is_killed_within_two_seconds_and_replaced(
    tmp_path: Path, bare_python: str
) -> None:
    """With an attempt, and between two."""
    async with Launcher(tmp_path, WITH_CHILD, spec={"python": bare_python}) as launcher:
        await launcher.start(1)
        pids = await launcher.pids(1)
        zygote = int(Path(f"/proc/{pids[0]}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(zygote, signal.SIGSTOP)
        await launcher.wait(1, "attempt_stopped", timeout_s=4)
        assert alive([*pids, zygote]) == []
        (first, _) = launcher.of(1, "rank_exited")
        said = "the process that forks the ranks ended with -9 after it had been stopped (SIGSTOP) for a second"
        assert (first.rank_exited.stopped_by_us, first.rank_exited.exception) == (False, f"switchgear: {said}")
        await launcher.start(2)
        (rank, _) = await launcher.pids(2)
        zygote = int(Path(f"/proc/{rank}/stat").read_text().rpartition(")")[2].split()[1])
        await launcher.stop(2)
        await launcher.wait(2, "attempt_stopped")
        os.kill(zygote, signal.SIGSTOP)
        await until(lambda: not alive([zygote]), timeout_s=4)
        await launcher.start(3)
        assert len(await launcher.pids(3)) == 2


async def test_imports_that_start_threads_make_ranks_spawn_instead_of_fork(tmp_path: Path, bare_python: str) -> None:
    """And a torch without step hooks costs the step count, not the rank."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/torch.py").write_text(
        "import threading, time; __version__ = '0'\n"
        "def set_num_threads(n): pass\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
    )
    spec = {"python": bare_python, "environment": {"PYTHONPATH": str(tmp_path / "modules")}}
    async with Launcher(tmp_path, "import sys; print(sys.argv, __name__); sys.exit(5)", "a", nproc=1, spec=spec) as one:
        await one.start(1)
        (exited,) = await one.wait(1, "rank_exited")
        await one.wait(1, "attempt_stopped")
        assert (exited.exit_code, exited.stderr_tail.startswith("switchgear: steps are not counted: ")) == (5, True)
        assert one.log(1, 0) == "['script.py', 'a'] __main__\n"


@pytest.mark.parametrize("failing", [1, 2])
async def test_when_one_rank_cannot_be_forked_none_runs(tmp_path: Path, bare_python: str, failing: int) -> None:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/torch.py").write_text(
        f"""
import errno, itertools, os
__version__, calls, fork = "0", itertools.count(1), os.fork
def set_num_threads(n): pass
def fork_or_fail():
    if next(calls) == {failing}:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return fork()
os.fork = fork_or_fail
"""
    )
    spec = {"python": bare_python, "environment": {"PYTHONPATH": str(tmp_path / "modules")}}
    async with Launcher(tmp_path, SLEEP, spec=spec) as launcher:
        await launcher.start(1)
        await launcher.wait(1, "attempt_stopped")
        (failed,) = await launcher.wait(1, "start_failed")
        assert not failed.permanent
        await launcher.start(2)
        pids = await launcher.pids(2)
        started = [r.rank_started.pid for r in launcher.of(1, "rank_started")]
        assert (len(started), alive(started)) == (failing - 1, [])
        zygote = Path(f"/proc/{pids[0]}/stat").read_text().rpartition(")")[2].split()[1]
        assert Path(f"/proc/{zygote}/task/{zygote}/children").read_text().split() == [str(pid) for pid in pids]


async def test_output_is_echoed_with_the_rank_in_front(
    tmp_path: Path, bare_python: str, capsys: pytest.CaptureFixture[str]
) -> None:
    script = "import os, sys; print('out', os.environ['RANK']); print('err', file=sys.stderr, end='')"
    async with Launcher(tmp_path, script, spec={"python": bare_python}, echo=EchoRule()) as launcher:
        await launcher.start(1)
        await launcher.wait(1, "attempt_stopped")
    out, err = capsys.readouterr()
    assert sorted(out.splitlines()) == ["[rank 0] out 0", "[rank 1] out 1"]
    assert {"[rank 0] err", "[rank 1] err"} <= set(err.splitlines())
