"""What recovery says of ranks that went with the process that forks them."""

from __future__ import annotations

import signal

from switchgear.recovery.diagnosis import root_cause
from switchgear.recovery.model import Exit, Fault, Rank


def cause_of(exception: str) -> tuple[Fault, str, str, int | None]:
    rank_exit = Exit(0, "nodes/a", 7, 5, -signal.SIGKILL, by_us=False, exception=exception, step=15, made_steps=True)
    found = root_cause({0: Rank("nodes/a", started_ns=1, exit=rank_exit)})
    assert found is not None
    return found[0].fault, found[0].clause, found[0].known_by, found[0].rank


def test_ranks_that_went_with_the_process_that_forks_them_are_not_said_to_have_been_killed() -> None:
    said = "the process that forks the ranks ended with -9"
    lost = "the ranks on nodes/a were lost with the process that forks them after step 15"
    assert cause_of(f"switchgear: {said}") == (Fault.LAUNCHER_LOST, lost, said, None)


def test_an_exception_of_its_own_does_not_hide_that_a_rank_was_killed() -> None:
    killed = "rank 0 on nodes/a was killed by SIGKILL after step 15"
    assert cause_of("ValueError: no") == (Fault.RANK_KILLED, killed, "its launcher saw process 7 end", 0)
