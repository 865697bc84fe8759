"""What attempts that are over tell of jobs and nodes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from switchgear.scheduler.evidence import JOBS_SEEN_MAX, JOBS_SEEN_MIN, speeds, steps_per_s, straggling
from switchgear.scheduler.model import Alike, AttemptRecord

BERT: Alike = ("ann", "bert", 1, 8, "")


def ran(number: int, model: str = "H100", rate: float | None = None, alike: Alike = BERT) -> AttemptRecord:
    return AttemptRecord(f"jobs/{model}-{number}", 1, 1, alike, ("nodes/a",), model, rate)


def of(model: str, *rates: float, alike: Alike = BERT) -> list[AttemptRecord]:
    return [ran(number, model, rate, alike) for number, rate in enumerate(rates)]


def test_the_speed_on_each_model_is_relative_to_the_others_with_one_in_their_middle() -> None:
    attempts = [*of("H100", 4.0, 4.1, 4.0), *of("A100", 2.0, 2.0, 1.9)]
    assert speeds(attempts) == {BERT: {"H100": 1.41, "A100": 0.71}}


@pytest.mark.parametrize(
    "attempts",
    [
        of("H100", 4.0, 4.1, 4.0),  # nothing to compare with
        [*of("H100", 4.0, 4.1, 4.0), *of("A100", 2.0, 2.0)],  # too few
        [*of("H100", 4.0, 4.1, 4.0), *of("A100", 2.0, 0.2, 7.0)],  # different work under one name
        [*of("H100", 4.0, 4.1, 4.0), *of("A100", 2.0, 2.0, 2.0, alike=("bob", "bert", 1, 8, ""))],
        [*of("H100", 4.0, 4.1, 4.0), *of("", 2.0, 2.0, 2.0)],  # on several models at once
        [*of("H100", 4.0, 4.1, 4.0), *[ran(0, "A100", 2.0)] * 3],  # one job, restarted
    ],
)
def test_what_is_not_enough_to_compare_is_not_known(attempts: Sequence[AttemptRecord]) -> None:
    assert speeds(attempts) == {}


def test_of_a_job_that_was_restarted_the_newest_speed_counts() -> None:
    slow_first = [ran(0, "A100", 1.0), *of("A100", 2.0, 2.0, 2.0), *of("H100", 4.0, 4.0, 4.0)]
    assert speeds(slow_first) == {BERT: {"A100": 0.71, "H100": 1.41}}


def test_a_few_steps_tell_no_speed() -> None:
    assert (steps_per_s(100, 50.0), steps_per_s(19, 50.0), steps_per_s(100, 29.0)) == (2.0, None, None)


def test_the_share_of_jobs_that_a_node_held_up_is_of_its_newest_jobs() -> None:
    def attempt(job: int, held_up_by: str = "", generation: int = 1) -> AttemptRecord:
        return AttemptRecord(f"jobs/{job}", 1, generation, BERT, ("nodes/a", "nodes/b"), held_up_by=held_up_by)

    few = [attempt(job, "nodes/a") for job in range(JOBS_SEEN_MIN - 1)]
    assert straggling(few) == {}
    # The same job twice is one job, whatever became of its other attempt.
    some = [attempt(0, "nodes/a"), attempt(0, "", 2), *(attempt(job) for job in range(1, JOBS_SEEN_MIN))]
    assert straggling(some) == {"nodes/a": 1 / JOBS_SEEN_MIN, "nodes/b": 0.0}
    well_again = [*few, *(attempt(100 + job) for job in range(JOBS_SEEN_MAX))]
    assert straggling(well_again) == {"nodes/a": 0.0, "nodes/b": 0.0}
    # Who is to blame may be told before where it ran.
    early = [AttemptRecord(f"jobs/{job}", 1, 1, BERT, held_up_by="nodes/c") for job in range(JOBS_SEEN_MIN)]
    assert straggling(early) == {"nodes/c": 1.0}
