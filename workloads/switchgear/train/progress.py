"""For loops without torch.optim: tells Switchgear that a step is done, or what takes time between two.

    from switchgear.train import progress
    for batch in batches:
        state = update(state, batch)
        progress.step()

Needs the standard library alone, and does nothing outside of a rank that Switchgear has started.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from switchgear.train import hook, phases
from switchgear.train import steplog_format as layout

if TYPE_CHECKING:
    from switchgear.train.steplog_format import StepLogWriter

_PHASES = {
    "checkpoint": layout.PHASE_CHECKPOINT,
    "evaluation": layout.PHASE_EVALUATION,
    "data": layout.PHASE_DATA,
    "compile": layout.PHASE_COMPILE,
}


_note_call: Callable[[int], None] | None = None
_end_ns = 0


def step(number: int | None = None) -> None:
    """A step is done. From the first call on these calls alone count, and not those of a torch optimizer.

    number: the step that this is, counted from 1 over all restarts.
    """
    global _note_call, _end_ns
    log = _log()
    if log is None or not log.attached:
        return
    end_ns = time.monotonic_ns()
    # A first call after an optimizer's step is about that very step.
    counted = not log.manual and log.count > 0
    if not log.manual:
        log.manual = True
        _note_call, _end_ns = hook.call_noter(log), end_ns
    if number is not None:
        # Before the count: whoever sees the step has its name then.
        log.named_base(number - log.count - (not counted))
    if not counted:
        log.step(_end_ns, end_ns)
    _end_ns = end_ns
    if _note_call is not None:
        _note_call(end_ns)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """What the block does is no step: one of "checkpoint", "evaluation", "data", "compile". Raises ValueError for another name.

    Only the main thread is watched.
    """
    kind = _PHASES.get(name)
    if kind is None:
        raise ValueError(f"no phase {name!r}: one of {', '.join(_PHASES)}")
    log = _log()
    if log is None:
        yield
        return
    with phases.during(log, kind, checkpoint=kind == layout.PHASE_CHECKPOINT):
        yield


def _log() -> StepLogWriter | None:
    # The zygote has loaded our files by path, under names that no script's modules have.
    module = sys.modules.get("_switchgear_hook")
    return cast("StepLogWriter | None", getattr(module, "recorder", None))
