"""A step has a name only when evidence gives it one."""

from __future__ import annotations

from pathlib import Path

import pytest

from switchgear.launcher import steplog
from switchgear.launcher.progress import Commit, Load, RankProgress, checkpoint_of, step_base
from switchgear.launcher.steplog import StepLog
from switchgear.train.steplog_format import StepLogWriter


@pytest.mark.parametrize(
    ("catalog_step", "adam_step", "loaded", "resumed", "fresh", "base"),
    [
        (120, None, True, True, False, 120),  # the catalog knows the file that was read
        (None, 121, True, True, False, 120),  # the optimizer counts its own steps
        (120, 100, True, True, False, 99),  # it read one and took another
        (120, 1, True, True, False, 120),  # its optimizer began anew, as when a script does not restore it
        (None, 1, False, False, False, 0),
        (None, None, False, False, True, 0),  # nothing was there to be read: from the beginning
        (None, None, False, False, False, None),  # it may have read what nobody watches
        (None, None, True, False, True, None),  # something was read, and nothing says what it was
        (None, None, False, True, True, None),  # another rank may have read it and sent it here
        (None, 0, True, False, False, None),
    ],
)
def test_the_base_of_an_attempt(
    catalog_step: int | None, adam_step: int | None, loaded: bool, resumed: bool, fresh: bool, base: int | None
) -> None:
    found = step_base(catalog_step=catalog_step, adam_step=adam_step, loaded=loaded, resumed=resumed, fresh=fresh)
    assert found == base


@pytest.fixture
def rank(tmp_path: Path) -> StepLogWriter:
    steplog.create(tmp_path / "log")
    return StepLogWriter(str(tmp_path / "log"), 1, 0)


def progress(
    tmp_path: Path,
    known: dict[str, int],
    high_water_step: int = 0,
    resumed: bool = False,
    first: bool = True,
    watched: bool = True,
) -> RankProgress:
    catalog = {tmp_path / name: step for name, step in known.items()}
    directory = tmp_path if watched else None
    return RankProgress(StepLog(tmp_path / "log"), directory, catalog, high_water_step, resumed=resumed, first=first)


@pytest.mark.parametrize(
    ("first", "watched", "known", "step"),
    [(True, False, {}, 1), (False, False, {}, None), (False, True, {}, 1), (False, True, {"5.pt": 5}, None)],
)
def test_a_later_attempt_begins_at_zero_only_when_it_is_seen_to_have_read_nothing(
    tmp_path: Path, rank: StepLogWriter, first: bool, watched: bool, known: dict[str, int], step: int | None
) -> None:
    follow = progress(tmp_path, known, first=first, watched=watched)
    rank.step(1, 2)
    follow.poll()
    assert follow.step() == step


def test_the_optimizer_is_believed_when_it_contradicts_what_was_read(
    tmp_path: Path, rank: StepLogWriter, caplog: pytest.LogCaptureFixture
) -> None:
    follow = progress(tmp_path, {"20.pt": 20}, resumed=True, first=False)
    rank.loaded("20.pt")
    rank.adam_step(11)
    rank.step(1, 2)
    follow.poll()
    assert follow.step() == 11
    assert "rank 0 read the checkpoint of step 20, and its optimizer says that it goes on from step 10" in caplog.text


def test_a_file_whose_name_is_not_utf_8_is_read_without_being_told_of(tmp_path: Path, rank: StepLogWriter) -> None:
    follow = progress(tmp_path, {})
    rank.loaded("step-\udcff.pt")
    rank.step(1, 2)
    assert follow.poll() == []
    assert follow.step() is None


def test_the_newest_known_checkpoint_that_was_read_before_the_first_step_gives_the_base(
    tmp_path: Path, rank: StepLogWriter
) -> None:
    """A script may try the newest, find it wanting and take the one before; what it reads later it only looks at."""
    follow = progress(tmp_path, {"20.pt": 20, "10.pt": 10, "5.pt": 5})
    for name in ("model.py", "20.pt", "10.pt", "notes.txt", "other.pt", "10.pt"):
        rank.loaded(name)
    rank.step(1, 2)
    rank.loaded("5.pt")
    found = follow.poll()
    assert [(item.path.name, item.step) for item in found] == [("20.pt", 20), ("10.pt", 10), ("other.pt", None)]
    assert all(isinstance(item, Load) for item in found)
    assert (follow.base, follow.step()) == (10, 11)
    assert follow.poll() == []


def test_the_first_new_step_is_the_first_beyond_the_high_water_mark(tmp_path: Path, rank: StepLogWriter) -> None:
    follow = progress(tmp_path, {"10.pt": 10}, high_water_step=12, resumed=True)
    rank.loaded("10.pt")
    rank.step(100, 110)
    rank.step(200, 210)
    follow.poll()
    assert (follow.first_step_unix_ns, follow.first_new_step_unix_ns) == (follow.log.unix_ns(110), 0)
    rank.step(300, 310)
    rank.step(400, 410)
    follow.poll()
    assert follow.first_new_step_unix_ns == follow.log.unix_ns(310)
    reported = follow.to_proto(0)
    assert (reported.step, reported.count, reported.time_unix_ns) == (14, 4, follow.log.unix_ns(410))


def test_reading_code_beside_the_checkpoints_is_not_loading_one(tmp_path: Path, rank: StepLogWriter) -> None:
    follow = progress(tmp_path, {})
    rank.loaded("model.py")
    rank.loaded("__pycache__/model.cpython-311.pyc")
    rank.step(1, 2)
    assert follow.poll() == []
    assert follow.step() == 1


def test_a_commit_carries_the_step_of_its_moment(tmp_path: Path, rank: StepLogWriter) -> None:
    follow = progress(tmp_path, {})
    rank.step(1, 2)
    rank.step(3, 4)
    rank.committed("2.pt", in_step_order=True)
    rank.step(5, 6)
    rank.committed("late.pt", in_step_order=False)
    commits = [item for item in follow.poll() if isinstance(item, Commit)]
    assert [(commit.path.name, commit.step) for commit in commits] == [("2.pt", 2), ("late.pt", None)]


def test_a_file_time_names_a_step_only_when_no_step_ended_within_a_tick_of_it(
    tmp_path: Path, rank: StepLogWriter
) -> None:
    follow = progress(tmp_path, {})
    ms = 1_000_000
    for end in (100, 200, 300):
        rank.step((end - 10) * ms, end * ms)
    follow.poll()
    at = [follow.step_at(follow.log.unix_ns(time * ms)) for time in (50, 100, 150, 189, 195, 205, 999)]
    assert at == [None, 1, 1, 1, None, 2, 3]


def test_a_file_inside_a_dcp_folder_stands_for_the_folder(tmp_path: Path) -> None:
    assert checkpoint_of(tmp_path, "step-5/__0_0.distcp") == tmp_path / "step-5"
    assert checkpoint_of(tmp_path, "step-5/.metadata") == tmp_path / "step-5"
    assert checkpoint_of(tmp_path, "rank0/state.pt") == tmp_path / "rank0/state.pt"
