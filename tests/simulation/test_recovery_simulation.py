"""Jobs through storms of faults in virtual time. A failure prints its seed and the whole story.

SWITCHGEAR_SEED=7 runs that seed alone, SWITCHGEAR_SEEDS=100000 a longer campaign from SWITCHGEAR_SEED (or 0) on.
"""

from __future__ import annotations

import os

import pytest
from simworld.storm import run

FIRST = int(os.environ.get("SWITCHGEAR_SEED", "0"))
COUNT = int(os.environ.get("SWITCHGEAR_SEEDS", "1" if "SWITCHGEAR_SEED" in os.environ else "300"))
#: Seeds that one test goes through, so that a campaign shows where it is and keeps within the time of a test.
SEEDS_PER_TEST = 25
#: Seeds that have found something once; the first line of their violation is what they found.
FOUND = {
    203: "a job that was to leave its nodes while an incident waited for its first new step was taken for failed",
    1734: "an answer to a check that was asked a generation ago made the job start from scratch",
    5355: "an attempt that had made steps counted as one without, as the ranks of a lost node had not told theirs",
    5479: "the ranks that a launcher was just starting when it came back were never stopped, and its check waited for them",
    6515: "such ranks met those of the next generation",
    20411: "nodes that were lost between two attempts counted as attempts without a new step",
    20851: "so did nodes with fatal evidence that came after one that had fallen silent",
}


@pytest.mark.parametrize("first", range(FIRST, FIRST + COUNT, SEEDS_PER_TEST))
def test_whatever_befalls_a_job_recovery_keeps_its_promises(first: int) -> None:
    for seed in range(first, min(first + SEEDS_PER_TEST, FIRST + COUNT)):
        run(seed)


@pytest.mark.parametrize("seed", FOUND)
def test_what_a_seed_has_found_stays_mended(seed: int) -> None:
    run(seed)


def test_a_seed_tells_the_same_story_each_time() -> None:
    assert run(5).kernel.lines() == run(5).kernel.lines()
