"""Stacks of processes that run: by the signal that a rank answers, by py-spy, and never at the price of the process."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from launcher_world import alive

from switchgear.core.clock import ManualClock, SystemClock
from switchgear.launcher import proc, stacks, steplog
from switchgear.launcher.stack_taker import StackTaker
from switchgear.launcher.state import Process
from switchgear.launcher.steplog import StepLog

RANK = """
import os, sys, time
from switchgear.train import hook, steplog_format
log = steplog_format.StepLogWriter(sys.argv[1], 1, 0)
hook.answer_stack_requests(log, steplog_format.STACK_SIGNAL, steplog_format.STACK_FILE)
def inner():
    {body}
print("ready", flush=True)
inner()
"""
#: One C call that keeps the interpreter's lock for many seconds.
HOLDS_THE_LOCK = "sum(range(3_000_000_000))"

CLOCK = SystemClock()


class Rank:
    def __init__(self, folder: Path, body: str) -> None:
        self.log_path = folder / "log"
        steplog.create(self.log_path)
        self.script = folder / "rank.py"
        self.script.write_text(RANK.format(body=body))
        command = [sys.executable, str(self.script), str(self.log_path)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        self.identity = Process(self.process.pid, proc.start_ticks(self.process.pid) or 0)
        self.fd = StepLog(self.log_path).stack_fd
        assert self.fd is not None

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[list[Rank]]:
    made: list[Rank] = []
    yield made
    for rank in made:
        rank.close()


def py_spy(folder: Path, body: str) -> str:
    """An interpreter beside which there is a py-spy of that kind."""
    path = folder / "py-spy"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(folder / "python")


async def test_a_rank_answers_again_and_again_while_c_code_holds_the_interpreter(
    tmp_path: Path, ranks: list[Rank]
) -> None:
    ranks.append(rank := Rank(tmp_path, HOLDS_THE_LOCK))
    taker = StackTaker(py_spy(tmp_path, "exit 1"), CLOCK)
    for _ in range(3):
        stack = await taker.take(rank.identity, rank.fd)
        assert stacks.where(stack) == f"inner ({rank.script}:7)"
        assert [frame.function for frame in stack] == ["<module>", "inner"]
    assert alive([rank.process.pid]) == [rank.process.pid]


@pytest.mark.parametrize("body", ["os.execvp('sleep', ['sleep', '60'])", "os.closerange(3, 100); time.sleep(60)"])
async def test_a_process_that_cannot_answer_any_more_is_left_alone(
    tmp_path: Path, ranks: list[Rank], body: str
) -> None:
    ranks.append(rank := Rank(tmp_path, body))
    taker = StackTaker(py_spy(tmp_path, "exit 1"), CLOCK)
    while rank.fd is not None and Path(f"/proc/{rank.process.pid}/fd/{rank.fd}").exists():  # noqa: ASYNC110  # the kernel sets no event
        await asyncio.sleep(0.01)
    assert await taker.take(rank.identity, rank.fd) == []
    await asyncio.sleep(0.1)
    assert alive([rank.process.pid]) == [rank.process.pid]


async def test_another_process_under_the_same_number_is_not_asked(tmp_path: Path, ranks: list[Rank]) -> None:
    ranks.append(rank := Rank(tmp_path, "time.sleep(60)"))
    stranger = Process(rank.identity.pid, rank.identity.start_ticks + 1)
    assert await StackTaker(py_spy(tmp_path, "exit 1"), CLOCK).take(stranger, rank.fd) == []


async def test_py_spy_beside_the_interpreter_of_the_job_is_asked_first(tmp_path: Path, ranks: list[Rank]) -> None:
    ranks.append(rank := Rank(tmp_path, "time.sleep(60)"))
    frame = '{"name": "spied", "filename": "/job/a.py", "line": 3}'
    taker = StackTaker(
        py_spy(tmp_path, f'echo \'[{{"os_thread_id": {rank.process.pid}, "frames": [{frame}]}}]\''), CLOCK
    )
    assert [str(frame) for frame in await taker.take(rank.identity, rank.fd)] == ["spied (/job/a.py:3)"]


async def test_a_py_spy_that_has_failed_is_asked_again_after_a_minute(tmp_path: Path, ranks: list[Rank]) -> None:
    ranks.append(rank := Rank(tmp_path, "time.sleep(60)"))
    told = (
        f'[{{"os_thread_id": {rank.process.pid}, "frames": [{{"name": "spied", "filename": "/job/a.py", "line": 3}}]}}]'
    )
    clock = ManualClock()
    taker = StackTaker(py_spy(tmp_path, f"cat {tmp_path}/answer"), clock)
    seen = []
    for wait_s in (0, 59, 1):
        clock.advance(wait_s)
        seen.append(stacks.where(await taker.take(rank.identity, rank.fd)))
        (tmp_path / "answer").write_text(told)
    assert seen == [f"inner ({rank.script}:7)", f"inner ({rank.script}:7)", "spied (/job/a.py:3)"]


@pytest.mark.skipif(shutil.which("py-spy") is None, reason="py-spy is not on PATH")
async def test_the_true_py_spy_tells_what_the_signal_tells(tmp_path: Path, ranks: list[Rank]) -> None:
    ranks.append(rank := Rank(tmp_path, "time.sleep(60)"))
    by_signal = await StackTaker(py_spy(tmp_path, "exit 1"), CLOCK).take(rank.identity, rank.fd)
    (tmp_path / "py-spy").unlink()
    assert await StackTaker("", CLOCK).take(rank.identity, None) == by_signal
