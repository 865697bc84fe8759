"""What a recovered run must show, checked on what it left behind: the losses that its ranks wrote and the hook's step logs.

Identical losses alone do not prove that only one generation ran at a time: two deterministic ones write the same. The step logs do.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from switchgear.launcher.steplog import StepLog


@dataclass(frozen=True, slots=True)
class Loss:
    """One line of a rank's loss file; `value` is the float in hexadecimal, so equal means equal bit for bit."""

    rank: int
    step: int
    value: str
    generation: int


@dataclass(frozen=True, slots=True)
class Span:
    """The optimizer steps of one rank in one generation: how many, and from when to when (monotonic ns of this machine)."""

    generation: int
    rank: int
    pid: int
    steps: int
    start_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True)
class Proof:
    """A claim, whether it held, and what was counted to know it."""

    claim: str
    held: bool
    detail: str


def read_losses(folder: Path, rank: int | None = None) -> list[Loss]:
    """All lines of `loss-rank<R>.jsonl` in a folder, in file order, or those of one rank; a last line that a kill cut short is
    left out."""
    losses = []
    for path in sorted(folder.glob(f"loss-rank{'*' if rank is None else rank}.jsonl")):
        number = int(path.stem.removeprefix("loss-rank"))
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                entry = json.loads(line)
                losses.append(Loss(number, entry["step"], entry["loss"], entry["generation"]))
    return losses


def read_spans(launcher_state_dirs: Iterable[Path]) -> list[Span]:
    """The archived step logs of the launchers of one job."""
    spans = []
    for folder in launcher_state_dirs:
        for path in sorted(folder.glob("steplogs/*/rank-*.steplog")):
            log = StepLog(path)
            records = list(log.records())
            if records:
                spans.append(
                    Span(
                        log.generation,
                        log.rank,
                        log.pid,
                        log.count,
                        records[0].start_ns,
                        max(r.end_ns for r in records),
                    )
                )
            log.close()
    return sorted(spans, key=lambda span: (span.generation, span.rank))


def same_losses(run: Sequence[Loss], reference: Sequence[Loss], *, steps: int, ranks: int) -> Proof:
    """Every rank has a loss for each step from 1 to `steps`, and each one, also of a step made again, is the reference's."""
    claim = "the loss at every step equals the uninterrupted run's, bit for bit"
    expected = {(loss.rank, loss.step): loss.value for loss in reference}
    wanted = {(rank, step) for rank in range(ranks) for step in range(1, steps + 1)}
    for name, keys in (("reference", expected.keys()), ("run", {(loss.rank, loss.step) for loss in run})):
        if missing := sorted(wanted - keys):
            return Proof(
                claim,
                False,
                f"the {name} has no loss of rank {missing[0][0]} at step {missing[0][1]} ({len(missing)} missing)",
            )
    for loss in run:
        if loss.value != expected.get((loss.rank, loss.step)):
            want = expected.get((loss.rank, loss.step), "nothing")
            return Proof(
                claim,
                False,
                f"rank {loss.rank} step {loss.step} generation {loss.generation}: {loss.value}, reference {want}",
            )
    return Proof(claim, True, f"{len(run)} losses of {ranks} ranks over {steps} steps compared")


def no_overlap(spans: Sequence[Span]) -> Proof:
    """No rank of a generation made a step before the last step of the generation before it had ended."""
    claim = "generations never overlap in the step log"
    if not spans:
        return Proof(claim, False, "there are no step logs")
    ended: tuple[int, Span] | None = None
    for generation in sorted({span.generation for span in spans}):
        mine = [span for span in spans if span.generation == generation]
        if len({span.rank for span in mine}) != len(mine):
            return Proof(claim, False, f"generation {generation} has two step logs of one rank")
        first = min(mine, key=lambda span: span.start_ns)
        if ended and first.start_ns < ended[0]:
            early_ms = (ended[0] - first.start_ns) / 1e6
            return Proof(
                claim,
                False,
                f"rank {first.rank} of generation {generation} began {early_ms:.1f} ms before the last step of generation "
                f"{ended[1].generation} had ended",
            )
        final = max(mine, key=lambda span: span.end_ns)
        ended = (final.end_ns, final)
    count = len({span.generation for span in spans})
    return Proof(claim, True, f"{sum(span.steps for span in spans)} steps of {count} generations in order")


def same_step_counts(run: Sequence[Loss], spans: Sequence[Span]) -> Proof:
    """Hook and script tell the same story: a rank's step log has as many steps as it wrote losses in that generation.

    The script writes the loss just before the optimizer's step, so a kill between the two leaves one more loss.
    """
    claim = "the hook's step log agrees with what the script wrote"
    written: dict[tuple[int, int], int] = {}
    for loss in run:
        written[loss.generation, loss.rank] = written.get((loss.generation, loss.rank), 0) + 1
    counted = {(span.generation, span.rank): span.steps for span in spans}
    for key in sorted(written.keys() | counted.keys()):
        difference = written.get(key, 0) - counted.get(key, 0)
        if difference not in (0, 1):
            return Proof(
                claim,
                False,
                f"generation {key[0]} rank {key[1]}: {written.get(key, 0)} losses, {counted.get(key, 0)} logged steps",
            )
    return Proof(claim, True, f"{len(counted)} step logs compared")


def steps_redone(run: Sequence[Loss]) -> dict[int, int]:
    """For each generation but the first: the most steps that a rank made in it which it had made before."""
    again: dict[tuple[int, int], int] = {}
    seen: dict[int, set[int]] = {}
    for loss in sorted(run, key=lambda loss: loss.generation):
        key = (loss.generation, loss.rank)
        again[key] = again.get(key, 0) + (loss.step in seen.setdefault(loss.rank, set()))
        seen[loss.rank].add(loss.step)
    generations = sorted({generation for generation, _ in again})
    return {
        wanted: max(n for (generation, _), n in again.items() if generation == wanted) for wanted in generations[1:]
    }


def bounded_redo(run: Sequence[Loss], *, interval: int, damaged: Mapping[int, int]) -> Proof:
    """A restart repeats at most one checkpoint interval + 1 step, and one interval more for each damaged checkpoint skipped.

    damaged: checkpoints found damaged before a generation started.
    """
    claim = f"redone steps ≤ {interval} + 1, plus {interval} for each damaged checkpoint skipped"
    redone = steps_redone(run)
    for generation, count in redone.items():
        bound = interval + 1 + interval * damaged.get(generation, 0)
        if count > bound:
            return Proof(claim, False, f"generation {generation} made {count} steps again, {bound} are allowed")
    each = ", ".join(f"generation {generation}: {count}" for generation, count in redone.items()) or "no restart"
    return Proof(claim, True, each)


def same_redo(run: Sequence[Loss], told: Mapping[int, int]) -> Proof:
    """What the incidents say was made again is what the ranks made again.

    Ranks are cut off within one step of each other, and an incident counts what all of them had made: so 1 may differ.
    told: steps made again by each generation but the first, as the incidents have it.
    """
    claim = "the incidents' count of steps made again is what the ranks did"
    redone = steps_redone(run)
    if redone.keys() != told.keys():
        return Proof(claim, False, f"incidents speak of generations {sorted(told)}, the ranks of {sorted(redone)}")
    for generation, count in redone.items():
        if abs(count - told[generation]) > 1:
            return Proof(
                claim, False, f"generation {generation}: the incident says {told[generation]}, the ranks made {count}"
            )
    return Proof(claim, True, f"{len(told)} incidents compared")
