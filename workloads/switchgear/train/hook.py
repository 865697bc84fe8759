"""Watches a training script from inside its process, with no line of it changed: optimizer steps, checkpoints read and committed.

It writes only into the step log, so it costs some microseconds a step and never waits.
"""
# ruff: noqa: PTH100, PTH120 -- audit events carry strings, and pathlib offers no absolute path that keeps symbolic links and folds `..`

from __future__ import annotations

import faulthandler
import fcntl
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from switchgear.train.steplog_format import StepLogWriter

#: Where this rank's progress goes, for `switchgear.train.progress`; None outside of a rank.
recorder: StepLogWriter | None = None

#: The call of the step is noted at the first and then this often: it changes when one loop follows another.
_CALL_NS = 10_000_000_000
#: Steps of another optimizer, while the counted one makes none, after which the other is counted: more than a critic makes for one of
#: its generator, and few enough that no checkpoint comes in between.
_TAKES_OVER = 10
#: Optimizers that are followed beside the counted one.
_OTHERS_MAX = 1024
_OUR_FOLDER = os.path.dirname(os.path.abspath(__file__)) + os.sep
_TORCH = f"{os.sep}torch{os.sep}"


def answer_stack_requests(log: StepLogWriter, number: int, name: str) -> None:
    """From now on the signal `number` has the main thread's stack written into a memory file called `name`.

    It is written by C code in the signal handler, so it works while other C code holds the interpreter. Raises OSError.
    """
    fd = os.memfd_create(name)
    # The reader cuts it to nothing before it asks again.
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
    faulthandler.register(number, file=fd, all_threads=False, chain=False)
    log.answers(fd)


def watch_steps(log: StepLogWriter) -> None:
    """Counts the steps of the first optimizer that steps.

    Others of the same script that step beside it (a discriminator's, an embedding's) are not counted. The next one takes its place when
    it is garbage-collected, or when it steps no more while the other goes on: what that has done by then counts too.
    """
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    before, after = step_hooks(log)
    register_optimizer_step_pre_hook(before)
    register_optimizer_step_post_hook(after)


def step_hooks(log: StepLogWriter) -> tuple[Callable[..., None], Callable[..., None]]:
    """The pair that runs before and after each `Optimizer.step`."""
    now = time.monotonic_ns
    write = log.step
    counted: weakref.ref[Any] | None = None
    start_ns = 0
    #: Times of the steps that others have made since the counted one's last, by identity.
    others: dict[int, list[tuple[int, int]]] = {}
    note = call_noter(log)

    def before(optimizer: Any, _args: Any, _kwargs: Any) -> None:
        nonlocal counted, start_ns
        if counted is None or counted() is None:
            counted = weakref.ref(optimizer)
        start_ns = now()

    def after(optimizer: Any, _args: Any, _kwargs: Any) -> None:
        nonlocal counted
        if not log.attached:
            return
        end_ns = now()
        if log.manual or counted is None or counted() is not optimizer:
            log.other_step(end_ns)
            if log.manual or not takes_over(optimizer, end_ns):
                return
            counted = weakref.ref(optimizer)
            steps = others[id(optimizer)]
        else:
            steps = [(start_ns, end_ns)]
        if not log.count:
            log.adam_step(_own_count(optimizer))
        for times in steps:
            write(*times)
        others.clear()
        note(end_ns)

    def takes_over(optimizer: Any, end_ns: int) -> bool:
        if len(others) >= _OTHERS_MAX:  # made anew for each step
            others.clear()
        steps = others.setdefault(id(optimizer), [])
        steps.append((start_ns, end_ns))
        return len(steps) >= _TAKES_OVER

    return before, after


def call_noter(log: StepLogWriter) -> Callable[[int], None]:
    """A function to be called after each step with its end, which now and then leaves the call that made it in the step log."""
    due_ns = 0

    def note(now_ns: int) -> None:
        nonlocal due_ns
        if now_ns >= due_ns:
            due_ns = now_ns + _CALL_NS
            log.call(_call(sys._getframe(2)))

    return note


def _call(frame: FrameType | None) -> list[str]:
    """The frames from the program's first to the innermost that is neither ours nor torch's, as the step log has them."""
    lines: list[str] = []
    while frame is not None:
        path = frame.f_code.co_filename
        if not path.startswith(_OUR_FOLDER) and (lines or _TORCH not in path):
            lines.append(f"{frame.f_lineno}\t{frame.f_code.co_name}\t{path}")
        frame = frame.f_back
    return lines[::-1]


def _own_count(optimizer: Any) -> int:
    """Steps that the optimizer's state says it has made, -1 when it keeps no count (SGD)."""
    try:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                step = optimizer.state.get(parameter, {}).get("step")
                if step is not None:
                    return int(step)
    except (
        Exception
    ):  # state has any shape in third-party optimizers; not knowing is an answer, stopping the script is not
        return -1
    return -1


def watch_checkpoints(log: StepLogWriter, directory: str) -> None:
    """Notes which files under `directory` are opened for reading and which are renamed into place.

    A commit from another thread than the main one gets no count: an asynchronous writer may be steps behind.
    """
    prefixes = tuple({path.rstrip("/") + "/" for path in (os.path.abspath(directory), os.path.realpath(directory))})
    main_thread = threading.main_thread().ident

    def relative(named: Any) -> str | None:
        if not isinstance(named, (str, bytes)):
            return None
        path = os.fsdecode(named)
        if not path.startswith("/"):
            try:
                path = os.path.abspath(path)
            except OSError:  # the working directory was removed; the caller's own call will say so
                return None
        for prefix in prefixes:
            if path.startswith(prefix) and len(path) > len(prefix):
                return os.path.normpath(path[len(prefix) :])
        return None

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path = relative(args[0])
            if path is None or not log.attached:
                return
            if _reads(args[1], args[2]):
                log.loaded(path)
            elif threading.get_ident() == main_thread and not _appends(args[1], args[2]):
                log.writes()
        elif event == "os.rename":
            path = relative(args[1])
            if path is not None and log.attached:
                in_step_order = threading.get_ident() == main_thread
                log.committed(path, in_step_order=in_step_order)
                if in_step_order:
                    log.written()

    sys.addaudithook(audit)


def _reads(mode: Any, flags: Any) -> bool:
    if isinstance(mode, str):
        return not set(mode) & set("wax+")
    return isinstance(flags, int) and flags & (os.O_ACCMODE | os.O_DIRECTORY) == os.O_RDONLY


def _appends(mode: Any, flags: Any) -> bool:
    """As logs are written."""
    return "a" in mode if isinstance(mode, str) else isinstance(flags, int) and bool(flags & os.O_APPEND)
