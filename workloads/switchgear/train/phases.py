"""Marks in the step log what the training thread is at besides steps: checkpoints, evaluations, and what the script names itself.

Of a process whose progress has stopped, these marks tell waiting with a reason from waiting without. The functions that the script
calls are wrapped, in ranks only: `torch.save` opens its file in C++, where no audit hook sees it.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from switchgear.train.steplog_format import StepLogWriter


@contextmanager
def during(log: StepLogWriter, phase: int, *, checkpoint: bool) -> Iterator[None]:
    """Marks the block as one of PHASE_*; other threads than the main one, and forked processes, mark nothing.

    checkpoint: its time counts as that of a checkpoint, unless one is already being written around it.
    """
    if not log.attached or threading.get_ident() != threading.main_thread().ident:
        yield
        return
    before, began_ns = log.phase, time.monotonic_ns()
    log.enter(phase)
    try:
        yield
    finally:
        counts = checkpoint and before != phase
        log.leave(before, checkpoint_ns=time.monotonic_ns() - began_ns if counts else 0)


def watch_saves(log: StepLogWriter, phase: int) -> None:
    """Marks `torch.save` and what `torch.distributed.checkpoint` saves, as far as it is imported, as `phase`."""
    names = (
        "torch",
        "torch.serialization",
        "torch.distributed.checkpoint",
        "torch.distributed.checkpoint.state_dict_saver",
    )
    wrapped: dict[int, Callable[..., Any]] = {}
    for module in (sys.modules.get(name) for name in names):
        for name in ("save", "async_save"):
            original = getattr(module, name, None)
            if isinstance(module, ModuleType) and callable(original):
                marked = wrapped.setdefault(id(original), _marked(log, phase, original))
                setattr(module, name, marked)


def _marked(log: StepLogWriter, phase: int, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def save(*args: Any, **kwargs: Any) -> Any:
        with during(log, phase, checkpoint=True):
            return original(*args, **kwargs)

    return save


def watch_evaluations(log: StepLogWriter) -> None:
    """Marks the time between `Module.eval` and `Module.train`, whichever module it is."""
    from torch.nn import Module

    evaluate, train = Module.eval, Module.train
    main_thread = threading.main_thread().ident

    @functools.wraps(evaluate)
    def marked_eval(module: Any) -> Any:
        if log.attached and threading.get_ident() == main_thread:
            log.evaluates(True)
        return evaluate(module)

    @functools.wraps(train)
    def marked_train(module: Any, mode: bool = True) -> Any:
        # It calls itself for every module inside; only the first of them finds something to do.
        if mode and log.attached and threading.get_ident() == main_thread:
            log.evaluates(False)
        return train(module, mode)

    Module.eval = marked_eval
    Module.train = marked_train
