"""The proofs of the demo and the soak can fail, and each fails on what it is there for."""

from __future__ import annotations

from pathlib import Path

from switchgear.cli.demo.proofs import (
    Loss,
    Span,
    bounded_redo,
    no_overlap,
    read_losses,
    same_losses,
    same_redo,
    same_step_counts,
    steps_redone,
)


def run_of(*parts: tuple[int, range], rank: int = 0) -> list[Loss]:
    """Losses of one rank: for each (generation, steps)."""
    return [Loss(rank, step, float(step).hex(), generation) for generation, steps in parts for step in steps]


REFERENCE = run_of((0, range(1, 11)))


def test_equal_losses_hold_also_where_steps_were_made_again() -> None:
    assert same_losses(run_of((1, range(1, 8)), (2, range(5, 11))), REFERENCE, steps=10, ranks=1).held


def test_a_loss_that_differs_in_the_last_bit_is_found() -> None:
    run = run_of((1, range(1, 11)))
    run[4] = Loss(0, 5, "0x1.4000000000001p+2", 1)
    proof = same_losses(run, REFERENCE, steps=10, ranks=1)
    assert not proof.held
    assert "rank 0 step 5" in proof.detail


def test_a_missing_step_or_rank_is_found() -> None:
    assert not same_losses(run_of((1, range(1, 10))), REFERENCE, steps=10, ranks=1).held
    assert not same_losses(run_of((1, range(1, 11))), REFERENCE, steps=10, ranks=2).held
    assert not same_losses([], [], steps=10, ranks=1).held


def test_generations_that_overlap_are_found() -> None:
    first = [Span(1, 0, 10, 5, 100, 200), Span(1, 1, 11, 5, 100, 230)]
    assert no_overlap([*first, Span(2, 0, 12, 5, 231, 300)]).held
    proof = no_overlap([*first, Span(2, 0, 12, 5, 229, 300)])
    assert not proof.held
    assert "rank 0 of generation 2" in proof.detail


def test_two_logs_of_one_rank_in_a_generation_are_two_runs_of_it() -> None:
    assert not no_overlap([Span(1, 0, 10, 5, 100, 200), Span(1, 0, 99, 5, 100, 200)]).held


def test_no_step_logs_prove_nothing() -> None:
    assert not no_overlap([]).held


def test_steps_made_again_are_counted_by_generation() -> None:
    run = run_of((1, range(1, 8)), (2, range(5, 9)), (3, range(9, 11)))
    assert steps_redone(run) == {2: 3, 3: 0}


def test_too_many_steps_made_again_are_found() -> None:
    run = run_of((1, range(1, 9)), (2, range(2, 11)))  # 7 again
    assert not bounded_redo(run, interval=5, damaged={}).held
    assert bounded_redo(run, interval=5, damaged={2: 1}).held
    assert bounded_redo(run, interval=6, damaged={}).held


def test_a_hook_that_lost_steps_is_found() -> None:
    run = run_of((1, range(1, 11)))
    assert same_step_counts(run, [Span(1, 0, 1, 10, 0, 1)]).held
    assert same_step_counts(run, [Span(1, 0, 1, 9, 0, 1)]).held
    assert not same_step_counts(run, [Span(1, 0, 1, 8, 0, 1)]).held
    assert not same_step_counts(run, []).held


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "loss-rank1.jsonl").write_text('{"step": 1, "loss": "0x1p+0", "generation": 2}\n{"step": 2, "lo')
    assert read_losses(tmp_path) == [Loss(1, 1, "0x1p+0", 2)]


def test_an_incident_that_counts_wrongly_is_found() -> None:
    run = run_of((1, range(1, 8)), (2, range(5, 11)))  # 5, 6, 7 again
    assert same_redo(run, {2: 3}).held
    assert same_redo(run, {2: 2}).held
    assert not same_redo(run, {2: 5}).held
    assert not same_redo(run, {}).held
