"""One run of a program is bounded, whatever the program does."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from switchgear.slurm.program import Ended, Program

PLENTY = 1 << 20


def run(script: str, *, timeout_s: float = 30, out_max_bytes: int = PLENTY, stdin: str = "") -> Ended:
    return Program(["/bin/sh", "-c", script], {"PATH": os.environ["PATH"]}, stdin).run(timeout_s, out_max_bytes, PLENTY)


def test_what_it_writes_and_how_it_ends_is_told() -> None:
    assert run("cat; echo wrong >&2; exit 3", stdin="read me") == Ended(3, b"read me", "wrong\n")


def test_a_script_may_be_longer_than_a_pipe_holds_and_need_not_be_read() -> None:
    assert run("exit 0", stdin="#" * 500_000).code == 0
    assert len(run("cat", stdin="#" * 500_000).out) == 500_000


def test_its_environment_is_the_given_one() -> None:
    assert run("echo $HOME").out == b"\n"


def test_it_is_killed_with_its_children_when_it_takes_too_long(tmp_path: Path) -> None:
    ended = run(f"echo started >&2; sleep 60 & echo $! > {tmp_path}/child; wait", timeout_s=0.5)

    assert (ended.code, ended.timed_out, ended.errors) == (-9, True, "started\n")
    child = int((tmp_path / "child").read_text())
    assert not _runs(child)


def test_one_that_closes_its_output_and_goes_on_is_killed_too() -> None:
    ended = run("exec >&- 2>&-; sleep 60", timeout_s=0.3)

    assert (ended.code, ended.timed_out) == (-9, True)


def test_it_is_killed_when_it_writes_too_much() -> None:
    ended = run("yes", out_max_bytes=100_000)

    assert (ended.code, ended.overflowed, ended.timed_out) == (-9, True, False)


def test_another_thread_can_end_it_before_and_after_it_starts() -> None:
    early = Program(["/bin/sleep", "60"], {}, "")
    early.stop()
    late = Program(["/bin/sleep", "60"], {}, "")
    threading.Timer(0.05, late.stop).start()

    assert early.run(30, PLENTY, PLENTY).code == -9
    assert late.run(30, PLENTY, PLENTY).code == -9


def _runs(pid: int) -> bool:
    """Soon false for one that was killed, even where nobody reaps it."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return False
        except OSError:
            return False
        time.sleep(0.01)
    return True
