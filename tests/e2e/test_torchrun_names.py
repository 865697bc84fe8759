"""What users of torchrun type and write, with `switchgear run`: real processes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from terminal import Terminal, wait_for


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path)
    yield terminal
    terminal.close()


def test_a_program_of_any_kind_runs_with_the_numbers_of_the_environment(terminal: Terminal, bare_python: str) -> None:
    terminal.environment |= {
        "PET_NPROC_PER_NODE": "2",
        "PET_ROLE": "worker",
        "PET_NO_PYTHON": "1",
        "PET_REDIRECTS": "0:1",
    }
    script = ("/bin/sh", "-c", "echo $ROLE_NAME $LOCAL_RANK of $LOCAL_WORLD_SIZE; echo $0 >&2", "said")
    ended = terminal.run("run", "--standalone", "--python", bare_python, *script)
    assert (ended.returncode, ended.stdout) == (0, "[rank 1] worker 1 of 2\n"), ended.stderr
    said = sorted(line for line in ended.stderr.splitlines() if "[rank" in line)
    assert said == ["[rank 0] said", "[rank 1] said"]
    (log,) = (terminal.folder / "state" / "standalone").glob("sh-*/logs/1/rank-0.stdout.log")
    assert log.read_text() == "worker 0 of 2\n"


def test_a_signal_of_the_users_choice_reaches_the_ranks_and_ends_the_run(terminal: Terminal, bare_python: str) -> None:
    handler = "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(print('saved')))"
    (terminal.folder / "wait.py").write_text(f"import signal, sys, time; {handler}\nprint('up')\ntime.sleep(60)\n")
    given = ("--signals-to-handle", "SIGUSR1,SIGTERM", "--python", bare_python, "--nnodes", "1:1", "wait.py")
    process = terminal.start("run", "--standalone", *given)
    assert process.stdout is not None
    wait_for(lambda: "up" in process.stdout.readline())  # type: ignore[union-attr]
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=20)
    assert (process.returncode, "[rank 0] saved" in output) == (128 + signal.SIGUSR1, True), output


def test_one_node_that_names_a_place_to_meet_runs_here_and_flags_without_use_are_told_once(
    terminal: Terminal, bare_python: str
) -> None:
    (terminal.folder / "a.py").write_text("import os\nprint(os.environ['TORCHELASTIC_RUN_ID'])\n")
    place = ("--nnodes=1", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "--rdzv-id", "Run/7")
    ended = terminal.run("run", *place, "--monitor-interval", "1", "--python", bare_python, "a.py")
    assert (ended.returncode, ended.stdout) == (0, "[rank 0] Run/7\n"), ended.stderr
    assert [path.name for path in (terminal.folder / "state" / "standalone").iterdir()] == ["run-7"], "nothing random"
    assert [line for line in ended.stderr.splitlines() if "ignored" in line] == [
        "switchgear: ignored, see docs/torchrun.md: --monitor-interval"
    ]
