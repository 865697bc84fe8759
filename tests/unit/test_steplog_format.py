"""The step log: writer (in the rank) and reader (in the launcher) agree, and a reader never takes half a record."""

from __future__ import annotations

import errno
import gc
import os
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from switchgear.launcher import steplog
from switchgear.launcher.state import StateFolder
from switchgear.launcher.steplog import EventKind, StepLog
from switchgear.launcher.steplog_files import StepLogFiles
from switchgear.train import hook, steplog_format
from switchgear.train.steplog_format import StepLogWriter


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "rank-0.steplog"
    steplog.create(path)
    return path


def writer(path: Path) -> StepLogWriter:
    return StepLogWriter(str(path), generation=7, rank=3)


def test_reader_and_writer_state_the_same_constants() -> None:
    names = [name for name in vars(steplog_format) if name.isupper() and not name.startswith("_")]
    assert len(names) > 20
    assert {n: getattr(steplog, n) for n in names} == {n: getattr(steplog_format, n) for n in names}


def test_a_log_that_no_rank_has_opened_has_not_started(path: Path) -> None:
    log = StepLog(path)
    assert (log.started, log.count, log.adam_step, log.exception) == (False, 0, None, "")


def test_what_is_written_is_read(path: Path) -> None:
    rank, log = writer(path), StepLog(path)
    rank.step(10, 20)
    rank.adam_step(41)
    rank.step(30, 40)
    rank.exception("ValueError: ü")
    assert (log.started, log.generation, log.rank, log.pid) == (True, 7, 3, os.getpid())
    assert (log.count, log.adam_step, log.exception) == (2, 41, "ValueError: ü")
    assert [(r.count, r.start_ns, r.end_ns) for r in log.records()] == [(1, 10, 20), (2, 30, 40)]
    assert abs(log.unix_ns(time.monotonic_ns()) - time.time_ns()) < 1e9


def test_the_ring_keeps_the_newest_records(path: Path) -> None:
    rank, log = writer(path), StepLog(path)
    for n in range(1, steplog.RECORD_SLOTS + 3):
        rank.step(n, n)
    assert log.count == steplog.RECORD_SLOTS + 2
    assert [log.record(1), log.record(2), log.record(log.count + 1)] == [None, None, None]
    counts = [record.count for record in log.records()]
    assert counts == list(range(3, steplog.RECORD_SLOTS + 3))


def test_a_record_that_is_announced_but_not_there_is_not_taken(path: Path) -> None:
    rank, log = writer(path), StepLog(path)
    rank._words[steplog.COUNT_AT] = 1
    assert log.record(1) is None
    rank._words[steplog.RECORDS_OFFSET // 8] = 1
    assert log.record(1) is None
    assert list(log.records()) == []


def test_the_newest_record_at_a_time_is_found(path: Path) -> None:
    rank, log = writer(path), StepLog(path)
    for end in (100, 200, 300):
        rank.step(end - 50, end)
    at = [log.record_at(log.unix_ns(ns)) for ns in (99, 100, 250, 999)]
    assert [record and record.count for record in at] == [None, 1, 2, 3]


def test_events_come_in_order_and_the_oldest_give_way(path: Path) -> None:
    rank, log = writer(path), StepLog(path)
    rank.loaded("a.pt")
    rank.step(1, 2)
    rank.committed("b.pt", in_step_order=True)
    rank.committed("c.pt", in_step_order=False)
    rank.committed("x" * 2000, in_step_order=True)
    loaded, committed, unordered = log.events(after=0)
    assert (loaded.kind, loaded.path, loaded.count) == (EventKind.LOADED, "a.pt", 0)
    assert (committed.kind, committed.path, committed.count) == (EventKind.COMMITTED, "b.pt", 1)
    assert unordered.count is None
    for n in range(40):
        rank.committed(f"{n}.pt", in_step_order=True)
    assert [event.path for event in log.events(after=3)] == [f"{n}.pt" for n in range(8, 40)]
    assert [event.path for event in log.events(after=log.events(after=3)[-2].sequence)] == ["39.pt"]


def test_a_forked_child_does_not_count_as_the_rank(path: Path) -> None:
    rank, log = writer(path), StepLog(path)
    before, after = hook.step_hooks(rank)
    optimizer = SimpleOptimizer()
    pid = os.fork()
    if pid == 0:
        before(optimizer, (), {})
        after(optimizer, (), {})
        os._exit(0)
    os.waitpid(pid, 0)
    assert log.count == 0


def test_only_the_first_optimizer_counts_until_it_is_gone(path: Path) -> None:
    rank, log = writer(path), StepLog(path)
    before, after = hook.step_hooks(rank)
    first, second = SimpleOptimizer(), SimpleOptimizer()
    for optimizer in (first, second, first, second):
        before(optimizer, (), {})
        after(optimizer, (), {})
    assert log.count == 2
    del first, optimizer
    gc.collect()
    before(second, (), {})
    after(second, (), {})
    assert log.count == 3


def step(hooks: tuple[Callable[..., None], Callable[..., None]], *optimizers: SimpleOptimizer) -> None:
    for optimizer in optimizers:
        for one in hooks:
            one(optimizer, (), {})


def test_an_optimizer_that_goes_on_alone_takes_over_the_count_with_all_its_steps(path: Path) -> None:
    rank, log = writer(path), StepLog(path)
    hooks = hook.step_hooks(rank)
    head, full = SimpleOptimizer(), SimpleOptimizer()
    step(hooks, *[head] * 40, *[full] * 9)
    assert log.count == 40
    step(hooks, *[full] * 31)
    assert log.count == 80
    records = [log.record(count) for count in range(39, 60)]
    assert all(a and b and a.end_ns < b.start_ns <= b.end_ns for a, b in pairwise(records))
    step(hooks, *[head] * 9, full)
    assert log.count == 81, "the first one is a mere companion now"


@pytest.mark.parametrize("companions", [1, 5, 9])
def test_optimizers_that_take_turns_count_once(path: Path, companions: int) -> None:
    """Whichever comes first, as in the training of a critic and its generator; or two groups after a third one."""
    rank, log = writer(path), StepLog(path)
    generator, critic = SimpleOptimizer(), SimpleOptimizer()
    step(hook.step_hooks(rank), *[generator, *[critic] * companions] * 20)
    assert log.count == 20


def test_one_of_two_optimizers_takes_over_from_a_third(path: Path) -> None:
    rank, log = writer(path), StepLog(path)
    warm_up, a, b = SimpleOptimizer(), SimpleOptimizer(), SimpleOptimizer()
    step(hook.step_hooks(rank), *[warm_up] * 5, *[a, b] * 30)
    assert log.count == 35


def test_each_step_of_any_optimizer_is_a_sign_of_life(path: Path) -> None:
    rank, log = writer(path), StepLog(path)
    hooks, other = hook.step_hooks(rank), SimpleOptimizer()
    step(hooks, first := SimpleOptimizer())
    assert log.other_step_ns == 0
    before_ns = time.monotonic_ns()
    step(hooks, other)
    assert (log.count, before_ns <= log.other_step_ns <= time.monotonic_ns()) == (1, True)
    rank.manual = True
    before_ns = time.monotonic_ns()
    step(hooks, first)
    assert (log.count, log.other_step_ns >= before_ns) == (1, True), "also where the script counts by itself"


def test_optimizers_that_are_made_anew_for_each_step_are_forgotten(path: Path) -> None:
    hooks = hook.step_hooks(writer(path))
    made = [SimpleOptimizer() for _ in range(3000)]
    step(hooks, *made)
    others = next(c.cell_contents for c in hooks[1].__closure__ or () if isinstance(c.cell_contents, dict))
    assert len(others) <= 1024


def test_an_optimizer_with_a_strange_state_is_counted_without_a_name(path: Path) -> None:
    rank, log = writer(path), StepLog(path)
    before, after = hook.step_hooks(rank)
    strange = SimpleOptimizer()
    strange.param_groups = [{}]
    before(strange, (), {})
    after(strange, (), {})
    assert (log.count, log.adam_step) == (1, None)


def test_the_hook_costs_a_step_less_than_twenty_microseconds(path: Path) -> None:
    before, after = hook.step_hooks(writer(path))
    optimizer, rounds = SimpleOptimizer(), 20_000
    began = time.process_time()
    for _ in range(rounds):
        before(optimizer, (), {})
        after(optimizer, (), {})
    assert (time.process_time() - began) / rounds < 20e-6


class SimpleOptimizer:
    """What the hook looks at of a torch optimizer that keeps no count."""

    def __init__(self) -> None:
        self.param_groups = [{"params": ["weight"]}]
        self.state: dict[str, dict[str, int]] = {}


def test_live_logs_are_archived_without_what_was_never_written(tmp_path: Path) -> None:
    files = StepLogFiles(tmp_path / "state", shared_memory=tmp_path)
    (tmp_path / "state").mkdir()
    live = files.create(4, 1)
    rank = StepLogWriter(str(live), 4, 1)
    rank.step(1, 2)
    files.create(5, 1)
    files.archive(4)
    archived = files.archived(4, 1)
    assert (live.exists(), archived.stat().st_size) == (False, steplog.RECORDS_OFFSET + steplog.RECORD_BYTES)
    assert [r.count for r in StepLog(archived).records()] == [1]
    assert not files.archived(5, 1).exists()
    files.archive(5)
    files.close()
    assert not files.archived(5, 1).exists(), "its rank never started"
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_what_a_launcher_that_never_came_back_left_in_memory_is_swept_after_a_day(tmp_path: Path) -> None:
    folders = {}
    for name in ("gone", "held", "fresh"):
        (tmp_path / name).mkdir()
        folders[name] = StepLogFiles(tmp_path / name, shared_memory=tmp_path).create(1, 0).parent
        if name != "fresh":
            os.utime(folders[name], (0, 0))
    holder = StateFolder(tmp_path / "held", "jobs/held")
    StepLogFiles(tmp_path / "other", shared_memory=tmp_path).sweep()
    holder.close()
    assert [name for name, folder in folders.items() if folder.exists()] == ["held", "fresh"]


def test_a_folder_of_somebody_else_in_shared_memory_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    files = StepLogFiles(tmp_path / "state", shared_memory=tmp_path)
    trap = files.create(1, 0).parent
    files.archive(1)
    files.close()
    trap.symlink_to(tmp_path)
    assert files.create(2, 0).is_relative_to(tmp_path / "state")
    trap.unlink()
    trap.mkdir()
    trap.chmod(0o777)
    assert files.create(3, 0).is_relative_to(tmp_path / "state")


def test_when_shared_memory_is_full_the_state_folder_takes_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state").mkdir()
    files = StepLogFiles(tmp_path / "state", shared_memory=tmp_path)
    allocate = os.posix_fallocate

    def full_once(fd: int, offset: int, length: int) -> None:
        monkeypatch.setattr(os, "posix_fallocate", allocate)
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "posix_fallocate", full_once)
    assert files.create(1, 0).is_relative_to(tmp_path / "state")
