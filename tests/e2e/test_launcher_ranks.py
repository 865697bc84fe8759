"""Ranks as a user's script sees them, forked from one zygote that all tests of this file share."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from launcher_world import TRAIN, Launcher, alive, until

from switchgear.launcher import commits
from switchgear.launcher.steplog import StepLog
from switchgear.v1alpha import launcher_service_pb2 as pb

pytestmark = pytest.mark.asyncio(loop_scope="module")
generations = itertools.count(1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def launcher(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Launcher]:
    folder = tmp_path_factory.mktemp("job")
    (folder / "checkpoints").mkdir()
    spec = {"checkpoint_directory": str(folder / "checkpoints"), "environment": {"FLAVOUR": "plain"}}
    async with Launcher(folder, spec=spec) as launcher:
        await launcher.wait(0, "hello", where=lambda hello: hello.ready)
        yield launcher


@pytest.fixture
def g(launcher: Launcher) -> int:
    """A generation that no other test has used."""
    for path in (launcher.folder / "checkpoints").iterdir():
        path.unlink()
    return next(generations)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def test_ranks_get_the_environment_of_torchrun(launcher: Launcher, g: int) -> None:
    port = launcher.port
    await launcher.run("import json, os; print(json.dumps(dict(os.environ)))", generation=g, restart_count=2)
    env = json.loads(launcher.log(g, 1))
    expected = {
        "RANK": "1",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        "GROUP_WORLD_SIZE": "1",
        "ROLE_RANK": "1",
        "ROLE_WORLD_SIZE": "2",
        "ROLE_NAME": "default",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RESTART_COUNT": "2",
        "TORCHELASTIC_MAX_RESTARTS": "3",
        "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_USE_AGENT_STORE": "False",
        "OMP_NUM_THREADS": "1",
        "FLAVOUR": "plain",
        "SWITCHGEAR_JOB": "jobs/test",
        "SWITCHGEAR_GENERATION": str(g),
        "SWITCHGEAR_CHECKPOINT_DIR": str(launcher.folder / "checkpoints"),
        "SWITCHGEAR_RESUME_FROM": "",
    }
    assert expected == {name: env.get(name) for name in expected}
    assert "CUDA_VISIBLE_DEVICES" not in env


async def test_the_script_is_the_real_main_module_with_its_own_folder_first_on_the_path(
    launcher: Launcher, g: int
) -> None:
    for name in ("hook", "rank", "zygote"):
        (launcher.folder / f"{name}.py").write_text("MINE = True")
    exits = await launcher.run(
        """
import pickle, sys, os, hook, rank, zygote
class Thing: pass
assert hook.MINE and rank.MINE and zygote.MINE
assert pickle.loads(pickle.dumps(Thing())).__class__ is Thing
assert __name__ == "__main__" and __spec__ is None and sys.modules["__main__"].Thing is Thing
assert os.path.isabs(__file__) and sys.argv == ["script.py", "--x", "1"] and sys.path[0] == os.getcwd()
assert os.getpgrp() == os.getsid(0) == os.getpid()
assert sys.stdin.read() == "" and len(os.listdir("/proc/self/task")) == 1
open_here = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]
assert not [name for name in open_here if name.startswith(("socket", "anon_inode:[eventpoll"))], open_here
""",
        "--x",
        "1",
        generation=g,
    )
    assert [(e.exit_code, e.stderr_tail) for e in exits] == [(0, ""), (0, "")]


async def test_a_module_runs_with_dash_m(launcher: Launcher, g: int) -> None:
    (launcher.folder / "pkg").mkdir()
    (launcher.folder / "pkg/__init__.py").write_text("")
    (launcher.folder / "pkg/train.py").write_text(
        "import os, sys, pkg; print(__name__, __spec__.name, sys.argv[1:]); sys.exit(4 if os.environ['RANK'] == '0' else 0)"
    )
    launcher.spec.argv[0] = "-m"
    try:
        exits = await launcher.run("", "pkg.train", "--y", generation=g)
    finally:
        launcher.spec.argv[0] = "script.py"
    assert (launcher.log(g, 0), exits[0].exit_code) == ("__main__ pkg.train ['--y']\n", 4)


async def test_the_interpreter_ends_as_it_always_does(launcher: Launcher, g: int) -> None:
    """atexit runs, threads are joined, output is flushed, and the exit code is the script's."""
    exits = await launcher.run(
        """
import atexit, os, sys, threading, time
if os.environ["RANK"] == "1":
    sys.exit()
atexit.register(lambda: print("atexit", end=""))
threading.Thread(target=lambda: (time.sleep(0.05), print("thread", end=" "))).start()
sys.exit(3)
""",
        generation=g,
    )
    assert launcher.log(g, 0) == "thread atexit"
    assert exits[0].exit_code == 3


async def test_an_uncaught_exception_is_reported_with_its_traceback_and_none_of_our_frames(
    launcher: Launcher, g: int
) -> None:
    exits = await launcher.run(
        """
import os, time
if os.environ["RANK"] == "0":
    time.sleep(60)
def fail(): raise ValueError("no such\\nlayer")
fail()
""",
        generation=g,
    )
    assert (exits[1].exit_code, exits[1].stopped_by_us, exits[1].exception) == (1, False, "ValueError: no such\nlayer")
    assert exits[1].stderr_tail.startswith("Traceback (most recent call last):\n")
    assert exits[1].stderr_tail.endswith("ValueError: no such\nlayer\n")
    assert "switchgear" not in exits[1].stderr_tail
    assert (exits[0].exit_code, exits[0].stopped_by_us) == (-signal.SIGKILL, True)
    kinds = [r.WhichOneof("kind") for r in launcher.reports if r.generation == g]
    assert kinds == ["rank_started", "rank_started", "rank_exited", "rank_exited", "attempt_stopped"]


async def test_a_syntax_error_is_told_as_python_tells_it(launcher: Launcher, g: int) -> None:
    exits = await launcher.run("def (:", generation=g)
    culprit = next(e for e in exits if not e.stopped_by_us)
    assert culprit.exit_code == 1
    assert "SyntaxError" in culprit.stderr_tail
    assert "rank.py" not in culprit.stderr_tail


async def test_a_rank_that_dies_of_a_signal_is_reported_with_it(launcher: Launcher, g: int) -> None:
    exits = await launcher.run("import os; os.abort()", generation=g)
    assert -signal.SIGABRT in {e.exit_code for e in exits if not e.stopped_by_us}


async def test_after_a_kill_the_next_generation_steps_at_once_on_a_new_port(launcher: Launcher, g: int) -> None:
    ports = [launcher.port]
    launcher.becomes(TRAIN, "100000", "0.002")
    await launcher.start(g)
    await launcher.wait_for_steps(g, 12)
    with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
        stranger.bind(("127.0.0.1", ports[0]))
    victim = (await launcher.pids(g))[1]
    await launcher.wait(g, "checkpoint", where=lambda c: c.digest)
    os.kill(victim, signal.SIGKILL)
    (stopped,) = await launcher.wait(g, "attempt_stopped")
    assert alive(await launcher.pids(g)) == []
    newest = max((r.checkpoint for r in launcher.of(g, "checkpoint")), key=lambda c: c.step)
    high_water = max(r.rank_exited.step for r in launcher.of(g, "rank_exited"))

    again = next(generations)
    await launcher.start(
        again, resume_path=newest.path, resume_step=newest.step, high_water_step=high_water, restart_count=1
    )
    progress = await launcher.wait_for_steps(again, high_water - newest.step + 1)
    await launcher.stop(again)
    await launcher.wait(again, "attempt_stopped")

    assert stopped.reserved_port not in ports
    for rank in progress.ranks:
        assert newest.step + rank.count == rank.step
        assert rank.first_step_time_unix_ns <= rank.first_new_step_time_unix_ns <= rank.time_unix_ns
    loaded = [r.loaded for r in launcher.of(again, "loaded")]
    assert {(0, newest.path, newest.step), (1, newest.path, newest.step)} == {(x.rank, x.path, x.step) for x in loaded}


async def test_step_logs_prove_that_generations_never_overlap(launcher: Launcher, g: int) -> None:
    later = next(generations)
    for generation in (g, later):
        launcher.becomes(TRAIN, "100000", "0.002")
        await launcher.start(generation)
        await launcher.wait_for_steps(generation, 5)
        os.kill((await launcher.pids(generation))[0], signal.SIGKILL)
        await launcher.wait(generation, "attempt_stopped")
    records = {}
    for generation in (g, later):
        for rank in (0, 1):
            path = launcher.folder / f"state/steplogs/{generation}/rank-{rank}.steplog"
            await until(path.exists)
            log = StepLog(path)
            assert (generation, rank) == (log.generation, log.rank)
            records[generation, rank] = list(log.records())
            assert [*range(1, log.count + 1)] == [r.count for r in records[generation, rank]]
            log.close()
    last_end = max(records[g, rank][-1].end_ns for rank in (0, 1))
    assert last_end < min(records[later, rank][0].start_ns for rank in (0, 1))


async def test_steps_are_named_from_the_optimizer_when_no_catalog_knows_the_checkpoint(
    launcher: Launcher, g: int
) -> None:
    await launcher.run(TRAIN, "10", "0", generation=g)
    assert [r.rank_exited.step for r in launcher.of(g, "rank_exited")] == [10, 10]
    resume = launcher.folder / "checkpoints/step-0010.pt"
    later = next(generations)
    exits = await launcher.run(TRAIN, "13", "0", generation=later, resume_path=str(resume))
    assert [e.step for e in exits] == [13, 13]


async def test_a_step_without_evidence_has_no_name(launcher: Launcher, g: int) -> None:
    script = """
import torch
open("FOLDER/state.pt", "wb").close(); open("FOLDER/state.pt", "rb").close()
p = torch.nn.Parameter(torch.ones(1)); p.grad = torch.ones(1)
torch.optim.SGD([p], 0.1).step()
"""
    (launcher.folder / "elsewhere").mkdir()
    exits = await launcher.run(script.replace("FOLDER", "checkpoints"), generation=g)
    assert [e.HasField("step") for e in exits] == [False, False]
    fresh = next(generations)
    exits = await launcher.run(script.replace("FOLDER", "elsewhere"), generation=fresh)
    assert [e.step for e in exits] == [1, 1]


async def test_commands_of_an_older_generation_are_rejected_and_change_nothing(launcher: Launcher, g: int) -> None:
    launcher.becomes("import time; time.sleep(60)")
    await launcher.start(g)
    pids = await launcher.pids(g)
    for stale in (g - 1, g):
        await launcher.start(stale)
        (rejected,) = await launcher.wait(stale, "rejected")
        assert g == rejected.current_generation
    await launcher.stop(g - 1)
    await launcher.wait(g - 1, "rejected", 2)
    assert pids == alive(pids)
    await launcher.stop(g)
    await launcher.wait(g, "attempt_stopped")
    assert alive(pids) == []


async def test_a_newer_generation_replaces_the_running_one(launcher: Launcher, g: int) -> None:
    launcher.becomes("import time; time.sleep(60)")
    await launcher.start(g)
    pids = await launcher.pids(g)
    newer = next(generations)
    await launcher.start(newer)
    await launcher.pids(newer)
    assert alive(pids) == []
    assert launcher.of(g, "attempt_stopped")
    await launcher.stop(newer)
    await launcher.wait(newer, "attempt_stopped")


async def test_a_stop_fences_a_start_that_comes_late(launcher: Launcher, g: int) -> None:
    await launcher.stop(g)
    await launcher.wait(g, "attempt_stopped")
    await launcher.start(g)
    await launcher.wait(g, "rejected")
    assert launcher.of(g, "rank_started") == []


async def test_stopping_right_after_starting_leaves_nothing(launcher: Launcher, g: int) -> None:
    launcher.becomes("import time; time.sleep(60)")
    for generation, pause_s in ((g, 0), (next(generations), 0.001), (next(generations), 0.005)):
        await launcher.start(generation)
        await asyncio.sleep(pause_s)
        await launcher.stop(generation)
        await launcher.wait(generation, "attempt_stopped")
        started = [r.rank_started.pid for r in launcher.of(generation, "rank_started")]
        exits = [r.rank_exited for r in launcher.of(generation, "rank_exited")]
        assert alive(started) == []
        assert [(e.pid, e.stopped_by_us) for e in sorted(exits, key=lambda e: e.rank)] == [
            (pid, True) for pid in started
        ]


async def test_a_stopped_process_can_be_stopped_with_and_without_grace(launcher: Launcher, g: int) -> None:
    for generation, grace_s in ((g, 0), (next(generations), 5)):
        launcher.becomes("import time; print('up'); time.sleep(60)")
        await launcher.start(generation)
        pids = await launcher.pids(generation)
        os.kill(pids[0], signal.SIGSTOP)
        await launcher.stop(generation, grace_s)
        await launcher.wait(generation, "attempt_stopped", timeout_s=3)
        assert alive(pids) == []


async def test_a_grace_lets_the_script_end_by_itself(launcher: Launcher, g: int) -> None:
    launcher.becomes(
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); print('up'); time.sleep(60)"
    )
    await launcher.start(g)
    await launcher.pids(g)
    await until(lambda: launcher.log(g, 0) == launcher.log(g, 1) == "up\n")
    await launcher.stop(g, grace_s=10)
    exits = await launcher.wait(g, "rank_exited", 2)
    assert [(e.exit_code, e.stopped_by_us) for e in exits] == [(7, True), (7, True)]
    await launcher.wait(g, "attempt_stopped")


async def test_no_descendant_survives_not_even_one_that_left_the_session(launcher: Launcher, g: int) -> None:
    launcher.becomes(
        """
import os, subprocess, sys, time
from multiprocessing import Process
worker = Process(target=time.sleep, args=(60,)); worker.start()
daemon = subprocess.Popen(["sleep", "60"], start_new_session=True)
print(worker.pid, daemon.pid)
sys.stdout.flush()
time.sleep(60)
"""
    )
    await launcher.start(g)
    ranks = await launcher.pids(g)
    await until(lambda: all(launcher.log(g, rank).endswith("\n") for rank in (0, 1)))
    others = [int(pid) for rank in (0, 1) for pid in launcher.log(g, rank).split()]
    assert others == alive(others)
    os.kill(ranks[0], signal.SIGKILL)
    await launcher.wait(g, "attempt_stopped")
    assert alive([*ranks, *others]) == []


async def test_spawned_data_loader_workers_find_the_script(launcher: Launcher, g: int) -> None:
    """Spawn imports the main module again by its file, relative to where the process thinks that it began."""
    exits = await launcher.run(
        """
import multiprocessing, os
def square(x): return x * x
if __name__ == "__main__" and os.environ["RANK"] == "0":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(square, [3]))
""",
        generation=g,
    )
    assert ([e.exit_code for e in exits], launcher.log(g, 0)) == ([0, 0], "[9]\n")


async def test_a_rank_may_use_more_threads_than_its_zygote(launcher: Launcher, g: int) -> None:
    launcher.spec.environment["OMP_NUM_THREADS"] = "2"
    try:
        exits = await launcher.run(
            "import torch; x = torch.ones(600, 600); print(torch.get_num_threads(), float((x @ x).sum()))", generation=g
        )
    finally:
        del launcher.spec.environment["OMP_NUM_THREADS"]
    assert ([e.exit_code for e in exits], launcher.log(g, 0)) == ([0, 0], "2 216000000.0\n")


async def test_what_no_retry_can_mend_is_said_so(launcher: Launcher, g: int) -> None:
    (launcher.folder / "script.py").unlink()
    await launcher.start(g)
    (failed,) = await launcher.wait(g, "start_failed")
    assert failed.permanent
    assert failed.message == f"script {launcher.folder}/script.py does not exist on nodes/here"


async def test_checkpoints_are_verified_on_request_and_damaged_ones_moved_aside(launcher: Launcher, g: int) -> None:
    await launcher.run(TRAIN, "10", "0", generation=g)
    await launcher.wait(g, "checkpoint", 2, where=lambda c: c.digest)
    newest = launcher.folder / "checkpoints/step-0010.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    known = [
        pb.CheckpointStep(path=r.checkpoint.path, step=r.checkpoint.step, digest=r.checkpoint.digest)
        for r in launcher.of(g, "checkpoint")
        if r.checkpoint.digest
    ]
    await launcher.command(g, verify=pb.VerifyCheckpoints(known=known))
    (result,) = await launcher.wait(g, "verify_result")
    state = pb.CheckpointReport
    assert [(c.step, c.state) for c in result.checkpoints] == [(10, state.CORRUPT), (5, state.VERIFIED)]
    assert Path(result.checkpoints[0].quarantine_path).exists()
    assert not newest.exists()
    Path(result.checkpoints[0].quarantine_path).unlink()
    Path(result.checkpoints[0].quarantine_path).parent.rmdir()


async def test_checkpoints_that_are_written_in_place_are_found_and_those_that_go_are_told_of(
    launcher: Launcher, g: int
) -> None:
    script = """
import os, time, torch
p = torch.nn.Parameter(torch.ones(1)); optimizer = torch.optim.AdamW([p])
for step in (1, 2, 3):
    p.grad = torch.ones(1); optimizer.step()
    time.sleep(0.05)
    if os.environ["RANK"] == "0" and step == 2:
        torch.save({"p": p}, "checkpoints/in-place.pt")
        time.sleep(0.05)
time.sleep(1.2)
if os.environ["RANK"] == "0":
    os.unlink("checkpoints/in-place.pt")
time.sleep(60)
"""
    launcher.becomes(script)
    await launcher.start(g)
    await launcher.wait(g, "checkpoint", 2)
    await launcher.stop(g)
    await launcher.wait(g, "attempt_stopped")
    found = [r.checkpoint for r in launcher.of(g, "checkpoint")]
    assert [(c.state, Path(c.path).name) for c in found] == [
        (pb.CheckpointReport.VERIFIED, "in-place.pt"),
        (pb.CheckpointReport.EXPIRED, "in-place.pt"),
    ]
    assert found[0].step == 2


async def test_a_checkpoint_folder_that_hangs_holds_up_neither_progress_nor_a_stop(
    launcher: Launcher, g: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dead network mount cannot be had otherwise: whatever lists the folder waits until it is released."""
    monkeypatch.setattr(commits, "_LAST_LOOK_TIMEOUT_S", 0.2)
    released, asked, iterdir = threading.Event(), threading.Event(), Path.iterdir

    def hang(path: Path) -> Iterator[Path]:
        if path == launcher.folder / "checkpoints":
            asked.set()
            released.wait()
        return iterdir(path)

    launcher.becomes(TRAIN, "100000", "0.002")
    await launcher.start(g)
    await launcher.wait_for_steps(g, 1)
    monkeypatch.setattr(Path, "iterdir", hang)
    try:
        await until(asked.is_set)
        before = launcher.of(g, "progress")[-1].progress.ranks[0].count
        await launcher.wait_for_steps(g, before + 20)
        await launcher.stop(g)
        await launcher.wait(g, "attempt_stopped", timeout_s=2)
        await launcher.command(g, verify=pb.VerifyCheckpoints())
        again = next(generations)
        await launcher.start(again)
        assert launcher.supervisor.heartbeat().heartbeat.sequence > 0
        assert not launcher.of(g, "verify_result")
    finally:
        released.set()
    await launcher.wait(g, "verify_result")
    await launcher.pids(again)
    await launcher.stop(again)
    await launcher.wait(again, "attempt_stopped")


async def test_random_numbers_are_those_of_fresh_processes(launcher: Launcher, g: int) -> None:
    """torch begins with its own fixed seed, everything else from the kernel's entropy, in each rank and attempt."""
    script = "import random, numpy, torch; print(random.random(), numpy.random.rand(), float(torch.rand(1)))"
    again = next(generations)
    for generation in (g, again):
        await launcher.run(script, generation=generation)
    lines = [launcher.log(generation, rank).split() for generation in (g, again) for rank in (0, 1)]
    assert [len(set(column)) for column in zip(*lines, strict=True)] == [4, 4, 1]


async def test_when_the_zygote_dies_its_ranks_and_their_children_die_and_the_next_attempt_runs(
    launcher: Launcher, g: int
) -> None:
    launcher.becomes("import subprocess, time; print(subprocess.Popen(['sleep', '60']).pid); time.sleep(60)")
    await launcher.start(g)
    pids = await launcher.pids(g)
    await until(lambda: all(launcher.log(g, rank).endswith("\n") for rank in (0, 1)))
    others = [int(launcher.log(g, rank)) for rank in (0, 1)]
    zygote = int(Path(f"/proc/{pids[0]}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(zygote, signal.SIGKILL)
    await launcher.wait(g, "attempt_stopped", timeout_s=3)
    assert alive([*pids, *others]) == []
    exits = [r.rank_exited for r in launcher.of(g, "rank_exited")]
    assert [(e.exit_code, e.stopped_by_us) for e in exits] == [(-9, False), (-9, False)]
    assert "the process that forks the ranks ended with -9" in exits[0].stderr_tail
    assert exits[0].exception == "switchgear: the process that forks the ranks ended with -9"
    later = next(generations)
    assert [e.exit_code for e in await launcher.run("print('again')", generation=later)] == [0, 0]
