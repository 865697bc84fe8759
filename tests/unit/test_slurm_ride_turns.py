"""Whose turn it is among runs of one job that may not know of each other's end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from switchgear.cli.slurm.turns import Turns


def test_the_first_run_finds_nobody_and_the_next_one_what_it_left(tmp_path: Path) -> None:
    turns = Turns(tmp_path / "runs")
    assert turns.newest() is None
    first = turns.begin(7, 0)
    turns.write(replace(first, generation=12, given_up=("n2",)))
    second = Turns(tmp_path / "runs").begin(7, 1)
    assert (second.number, second.generation, second.given_up, second.stopped) == (2, 12, ("n2",), False)


def test_a_run_has_lost_its_turn_once_another_one_has_begun(tmp_path: Path) -> None:
    turns = Turns(tmp_path)
    first = turns.begin(7, 0)
    assert turns.has(first)
    second = turns.begin(7, 1)
    assert (turns.has(first), turns.has(second)) == (False, True)


def test_a_run_that_lost_its_turn_can_still_say_that_it_has_stopped(tmp_path: Path) -> None:
    turns = Turns(tmp_path)
    first = turns.begin(7, 0)
    second = turns.begin(7, 1)
    turns.write(replace(first, stopped=True))
    read = turns.read(first.number)
    assert read is not None
    assert read.stopped
    assert turns.has(second)


def test_of_a_run_that_cannot_be_read_is_known_that_it_may_run_and_which_generation_came_before(tmp_path: Path) -> None:
    turns = Turns(tmp_path)
    turns.write(replace(turns.begin(7, 0), generation=9, stopped=True))
    second = turns.begin(7, 1)
    (tmp_path / "run-2.json").write_text('{"number": 2, "job')
    found = turns.newest()
    assert found is not None
    assert (found.number, found.generation, found.stopped) == (second.number, 9, False)


def test_two_runs_that_begin_at_once_have_numbers_of_their_own_and_one_of_them_the_turn(tmp_path: Path) -> None:
    """The second one has read what there was before the first had written."""
    turns = Turns(tmp_path)
    (tmp_path / "run-1.json").write_text("")
    late = turns.begin(7, 1)
    assert late.number == 2
    assert turns.has(late)


def test_when_nobody_can_read_whose_turn_it_is_it_is_that_of_the_last_run(tmp_path: Path) -> None:
    turns = Turns(tmp_path)
    turns.begin(7, 0)
    second = turns.begin(7, 1)
    (tmp_path / "newest").write_text("")
    assert turns.has(second)
    assert turns.begin(7, 2).number == 3
