"""What a rank marks in its step log besides steps, and what that costs."""

from __future__ import annotations

import importlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from switchgear.launcher import steplog
from switchgear.launcher.steplog import Phase, StepLog
from switchgear.train import hook, phases, progress
from switchgear.train.steplog_format import PHASE_CHECKPOINT, PHASE_DATA, StepLogWriter


@pytest.fixture
def logs(tmp_path: Path) -> Iterator[tuple[StepLogWriter, StepLog]]:
    """Both ends of a step log."""
    path = tmp_path / "rank-0.steplog"
    steplog.create(path)
    reader = StepLog(path)
    yield StepLogWriter(str(path), 1, 0), reader
    reader.close()


class Optimizer:
    """What the hook looks at of a torch optimizer."""

    def __init__(self) -> None:
        self.param_groups: list[dict[str, Any]] = []
        self.state: dict[str, dict[str, int]] = {}


def test_the_time_of_a_checkpoint_counts_once(logs: tuple[StepLogWriter, StepLog]) -> None:
    writer, log = logs
    with phases.during(writer, PHASE_CHECKPOINT, checkpoint=True):
        assert log.phase is Phase.CHECKPOINT
        began_ns = time.monotonic_ns()
        with phases.during(writer, PHASE_CHECKPOINT, checkpoint=True):
            time.sleep(0.01)
        inner_ns = time.monotonic_ns() - began_ns
        assert (log.phase, log.checkpoint_ns) == (Phase.CHECKPOINT, 0)
    assert inner_ns <= log.checkpoint_ns < inner_ns + 5_000_000
    assert log.phase is Phase.NONE
    assert began_ns < log.phase_end_ns <= time.monotonic_ns()


def test_a_phase_that_raises_is_over(logs: tuple[StepLogWriter, StepLog]) -> None:
    writer, log = logs
    with pytest.raises(ValueError, match="no room"), phases.during(writer, PHASE_DATA, checkpoint=False):
        raise ValueError("no room")
    assert (log.phase, log.checkpoint_ns) == (Phase.NONE, 0)


def test_other_threads_and_children_mark_nothing(logs: tuple[StepLogWriter, StepLog]) -> None:
    writer, log = logs
    seen = []

    def work() -> None:
        with phases.during(writer, PHASE_DATA, checkpoint=False):
            seen.append(log.phase)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(seen[-1])
    _, status = os.waitpid(pid, 0)
    assert (seen, os.waitstatus_to_exitcode(status)) == ([Phase.NONE], Phase.NONE)


def test_a_model_that_evaluates_does_so_until_it_trains(logs: tuple[StepLogWriter, StepLog]) -> None:
    writer, log = logs
    writer.step(1, 2)
    writer.evaluates(True)
    assert log.phase is Phase.EVALUATION
    writer.evaluates(False)
    ended_ns = log.phase_end_ns
    assert (log.phase, ended_ns > 0) == (Phase.NONE, True)
    writer.evaluates(False)
    assert log.phase_end_ns == ended_ns, "a call of `train` without an evaluation before it means nothing"


def test_a_teacher_that_was_told_to_evaluate_before_the_first_step_means_nothing(
    logs: tuple[StepLogWriter, StepLog],
) -> None:
    writer, log = logs
    writer.evaluates(True)
    writer.step(1, 2)
    assert log.phase is Phase.NONE
    writer.evaluates(True)
    assert log.phase is Phase.EVALUATION


def test_a_script_that_trains_with_a_part_that_evaluates_is_not_believed(logs: tuple[StepLogWriter, StepLog]) -> None:
    writer, log = logs
    writer.step(1, 2)
    writer.evaluates(True)
    writer.step(3, 4)
    writer.evaluates(True)
    assert log.phase is Phase.NONE


def test_a_file_counts_as_a_checkpoint_from_its_opening_to_its_rename(logs: tuple[StepLogWriter, StepLog]) -> None:
    writer, log = logs
    writer.writes()
    assert log.writing
    time.sleep(0.01)
    writer.writes()
    writer.written()
    assert (log.writing, 0.01e9 <= log.checkpoint_ns < 0.1e9) == (False, True)
    writer.writes()
    writer.step(1, 2)
    writer.written()
    assert (log.writing, log.checkpoint_ns < 0.1e9) == (False, True), "what no rename ended before the step was none"


def test_saves_are_marked_under_each_of_their_names(
    logs: tuple[StepLogWriter, StepLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, log = logs
    seen = []

    def save(value: int) -> int:
        seen.append(log.phase)
        return value + 1

    for name in ("torch", "torch.serialization"):
        module = ModuleType(name)
        module.save = save  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("torch.distributed.checkpoint", "torch.distributed.checkpoint.state_dict_saver"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    phases.watch_saves(writer, PHASE_CHECKPOINT)
    torch, serialization = sys.modules["torch"], sys.modules["torch.serialization"]
    assert torch.save is serialization.save
    assert (torch.save(1), seen, log.phase) == (2, [Phase.CHECKPOINT], Phase.NONE)
    assert torch.save.__name__ == "save"


def test_the_call_of_the_step_is_left_without_frames_of_ours(logs: tuple[StepLogWriter, StepLog]) -> None:
    writer, log = logs
    before, after = hook.step_hooks(writer)
    optimizer = Optimizer()

    def train() -> None:
        before(optimizer, (), {})
        after(optimizer, (), {})

    thread = threading.Thread(target=train)  # with a stack of its own, which is not that of the test runner
    thread.start()
    thread.join()
    *_, caller, step = log.call
    assert (caller[1], step) == ("run", (train.__code__.co_firstlineno + 2, "train", __file__))


def test_a_call_that_is_too_deep_keeps_its_outer_frames(logs: tuple[StepLogWriter, StepLog]) -> None:
    writer, log = logs
    writer.call([f"{n}\tf\t/job/ü{'x' * 90}.py" for n in range(100)])
    kept = [line for line, _, _ in log.call]
    assert kept == list(range(len(kept)))
    assert 10 < len(kept) < 100
    assert len(log.call[0][2]) == len("/job/ü.py") + 90


def test_outside_of_a_rank_progress_does_nothing_and_still_knows_its_words() -> None:
    assert "_switchgear_hook" not in sys.modules
    progress.step()
    progress.step(5)
    with progress.phase("evaluation"):
        pass
    with pytest.raises(ValueError, match="no phase 'lunch': one of checkpoint, evaluation, data, compile"):
        progress.phase("lunch").__enter__()


def test_steps_that_are_counted_by_hand_have_the_name_that_the_script_gives_them(
    logs: tuple[StepLogWriter, StepLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, log = logs
    monkeypatch.setitem(sys.modules, "_switchgear_hook", hook)
    monkeypatch.setattr(hook, "recorder", writer)
    importlib.reload(progress)
    progress.step()
    assert (log.count, log.named_base) == (1, None)
    progress.step(42)
    progress.step(43)
    assert (log.count, log.named_base) == (3, 40)
    first, second, third = log.records()
    assert first.end_ns == second.start_ns < second.end_ns == third.start_ns
    before, after = hook.step_hooks(writer)
    optimizer = Optimizer()
    before(optimizer, (), {})
    after(optimizer, (), {})
    assert log.count == 3, "optimizers do not count beside it"


def test_the_hook_and_its_marks_cost_a_step_less_than_the_bar(logs: tuple[StepLogWriter, StepLog]) -> None:
    """20 microseconds of CPU, on a machine that does other things besides."""
    writer, _ = logs
    before, after = hook.step_hooks(writer)
    optimizer, rounds = Optimizer(), 10_000
    began = time.process_time()
    for _ in range(rounds):
        before(optimizer, (), {})
        after(optimizer, (), {})
        writer.evaluates(True)
        writer.evaluates(False)
    assert (time.process_time() - began) / rounds < 20e-6
