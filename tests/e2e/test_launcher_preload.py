"""What a job has imported before its ranks are forked, and programs that are no Python files; on an interpreter without torch."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from launcher_world import Launcher, alive, until

PID = "import os\nPID = os.getpid()\n"
TELL = "import mine, os; print(mine.PID == os.getpid())"


@pytest.fixture
def spec(bare_python: str) -> dict[str, Any]:
    return {"python": bare_python, "preload": ["mine"]}


async def test_a_preloaded_module_is_imported_once_and_shared_by_all_ranks(
    tmp_path: Path, spec: dict[str, Any]
) -> None:
    (tmp_path / "mine.py").write_text(PID)
    async with Launcher(tmp_path, TELL, spec=spec) as launcher:
        for generation in (1, 2):
            exits = await launcher.run(TELL, generation=generation)
            assert [e.stderr_tail for e in exits] == ["", ""]
            assert [launcher.log(generation, rank) for rank in (0, 1)] == ["False\n", "False\n"]


async def test_a_module_that_cannot_be_imported_is_named_and_the_ranks_start_without_it(
    tmp_path: Path, spec: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mine.py").write_text(PID)
    (tmp_path / "broken.py").write_text("import sys; sys.exit('not here')")
    spec["preload"] = ["broken", "missing.module", "mine"]
    async with Launcher(tmp_path, TELL, spec=spec) as launcher:
        exits = await launcher.run(TELL, generation=1)
    assert ([e.exit_code for e in exits], launcher.log(1, 0)) == ([0, 0], "False\n")
    told = [r.getMessage() for r in caplog.records if "preload" in r.getMessage()]
    assert told == [
        "the preload goes without broken: SystemExit: not here",
        "the preload goes without missing.module: ModuleNotFoundError: No module named 'missing'",
    ]


@pytest.mark.parametrize(
    ("left", "reason"),
    [
        (
            "import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
            "2 threads run after the imports",
        ),
        (
            "import subprocess; open('child', 'w').write(str(subprocess.Popen(['sleep', '60']).pid))",
            "the imports left a process of their own running",
        ),
        ("import torch.cuda; torch.cuda.initialized = True", "the imports have initialised CUDA"),
    ],
    ids=["a thread", "a process", "a CUDA context"],
)
async def test_what_a_fork_would_break_has_ranks_spawned_with_the_reason_told(
    tmp_path: Path, spec: dict[str, Any], caplog: pytest.LogCaptureFixture, left: str, reason: str
) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("__version__ = 'pretended'\ndef set_num_threads(n): pass\n")
    (tmp_path / "torch/cuda.py").write_text("initialized = False\ndef is_initialized(): return initialized\n")
    (tmp_path / "mine.py").write_text(f"{PID}{left}\n")
    spec["environment"] = {"PYTHONPATH": str(tmp_path)}
    async with Launcher(tmp_path, TELL, nproc=1, spec=spec) as launcher:
        (exited,) = await launcher.run(f"{TELL}; os._exit(0)", generation=1)
        assert exited.exit_code == 0
    assert f"ranks are spawned, not forked: {reason}" in caplog.messages
    if (tmp_path / "child").exists():
        assert alive([int((tmp_path / "child").read_text())]) == []


async def test_a_preload_that_computes_with_one_thread_is_forked_and_its_ranks_may_compute_with_two(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """After one parallel operation of torch in the parent, a forked child hangs at its first."""
    (tmp_path / "mine.py").write_text(f"{PID}import torch\nx = torch.ones(600, 600) @ torch.ones(600, 600)\n")
    spec = {"preload": ["mine"], "environment": {"OMP_NUM_THREADS": "2"}}
    async with Launcher(tmp_path, "", nproc=1, spec=spec) as launcher:
        await launcher.run(f"{TELL}; print(float((mine.x @ mine.x)[0, 0]))", generation=1)
    assert launcher.log(1, 0).split() == ["False", "216000000.0"]
    assert not [m for m in caplog.messages if "spawned" in m]


async def test_a_program_of_any_kind_is_run_watched_and_ended_like_a_script(
    tmp_path: Path, spec: dict[str, Any]
) -> None:
    spec |= {"no_python": True, "preload": []}
    async with Launcher(tmp_path, spec=spec) as launcher:
        launcher.spec.argv[:] = ["sh", "-c", "echo $RANK of $WORLD_SIZE; exec sleep 60"]
        await launcher.start(1)
        pids = await launcher.pids(1)
        await until(lambda: [launcher.log(1, r) for r in (0, 1)] == ["0 of 2\n", "1 of 2\n"])
        os.kill(pids[1], signal.SIGKILL)
        exits = await launcher.wait(1, "rank_exited", 2)
        assert {(e.rank, e.exit_code, e.stopped_by_us) for e in exits} == {(1, -9, False), (0, -9, True)}
        await launcher.wait(1, "attempt_stopped")
        launcher.spec.argv[:] = [str(tmp_path / "script.py")]
        await launcher.start(2)
        failed = (await launcher.wait(2, "start_failed"))[0]
        assert failed.permanent
        assert failed.message == f"there is no program {tmp_path}/script.py on nodes/here"
