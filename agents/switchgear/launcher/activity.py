"""What a rank that makes no step is at, told from its stack and the marks in its step log. Pure.

Only STEP and COLLECTIVE mean that it should be getting on; whatever has a reason to take long comes before them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum

from switchgear.launcher.loops import Place
from switchgear.launcher.stacks import Frame, Stack
from switchgear.launcher.steplog import Phase

#: A function of the user's or of a training library that is called so evaluates, whatever the model was told.
_EVALUATES = re.compile(
    r"_*(do_|run_|on_)?(eval|evaluate|evaluation|evaluating|validate|validation|val|test|testing|predict|generate)(_.*)?"
    r"|.*_(eval|evaluate|evaluation|validate|validation|val|test|predict|generate)(_(epoch|loop|step|end|model))?"
)
#: Frames that are on the stack while something is compiled, and never while what was compiled runs.
_COMPILERS = (
    "/torch/_dynamo/convert_frame.py",
    "/torch/_inductor/async_compile.py",
    "/torch/_inductor/codecache.py",
    "/torch/_inductor/graph.py",
    "/torch/_inductor/select_algorithm.py",
    "/torch/utils/cpp_extension.py",
    "/triton/compiler/",
    "/triton/runtime/autotuner.py",
)
_COLLECTIVES = "/torch/distributed/distributed_c10d.py"
_DDP = "/torch/nn/parallel/distributed.py"
_BACKWARD = ("/torch/autograd/graph.py", "_engine_run_backward")
#: Methods that wait until the device has the value, and functions of torch's that call them.
_WAITS_FOR_DEVICE = re.compile(r"\.(item|tolist|cpu|numpy|synchronize)\(")
_DEVICE_FILES = ("/torch/cuda/__init__.py", "/torch/cuda/streams.py", "/torch/_tensor.py", "/torch/_tensor_str.py")


class Activity(Enum):
    """As in the contract. UNKNOWN: no mark helps, and no stack could be had or it lies between two loops of steps."""

    UNKNOWN = "unknown"
    STARTUP = "startup"
    STEP = "step"
    COLLECTIVE = "collective"
    CHECKPOINT = "checkpoint"
    EVALUATION = "evaluation"
    DATA = "data"
    COMPILE = "compile"


_MARKED = {
    Phase.CHECKPOINT: Activity.CHECKPOINT,
    Phase.EVALUATION: Activity.EVALUATION,
    Phase.DATA: Activity.DATA,
    Phase.COMPILE: Activity.COMPILE,
}


def from_mark(phase: Phase) -> Activity | None:
    """What the rank itself says; None when it says nothing."""
    return _MARKED.get(phase)


def from_stack(
    stack: Stack,
    *,
    writing: bool,
    importing: bool,
    sleeps: bool,
    beyond: Stack,
    place_of: Callable[[Stack], Place],
    line_of: Callable[[Frame], str],
) -> Activity:
    """What a rank is at that has made a step and has left no mark.

    stack: of its training thread; empty when it could not be had. writing: it has a file of its checkpoint directory open that it
    has begun to write after its last step. importing: it imports a module, as the first `torch.compile` does for seconds. sleeps: its
    training thread does not run. beyond: its frames that no step is made in. place_of: where a stack lies beside the loop that makes
    steps. line_of: the source of a frame's line, empty when that cannot be read.
    """
    if writing or any(map(_saves, stack)):
        return Activity.CHECKPOINT
    if not stack:
        return Activity.UNKNOWN
    if any("/torch/utils/data/" in frame.file for frame in stack):
        return Activity.DATA
    if importing or any(map(_compiles, stack)):
        return Activity.COMPILE
    place = Place.OUTSIDE if any(map(_evaluates, beyond)) else place_of(stack)
    if place is not Place.INSIDE:
        # Between epochs a script does nobody knows what, and comes back from it.
        return Activity.UNKNOWN if place is Place.BETWEEN else Activity.EVALUATION
    return Activity.COLLECTIVE if waits_for_ranks(stack, sleeps=sleeps, line_of=line_of) else Activity.STEP


def waits_for_ranks(stack: Stack, *, sleeps: bool, line_of: Callable[[Frame], str]) -> bool:
    """Whether a training thread waits in a collective operation.

    Inside torch's own functions for collectives it does, running or not, since a waiter of NCCL may spin. So it does when it wants a
    value from its device: that is where the missing rank is waited for then. C++ code that Python entered elsewhere (the reducer of
    DDP in a backward pass, a `wait` on the handle of an operation) waits when the thread sleeps.
    """
    for frame in reversed(stack):
        if not (frame.of_torch or frame.of_python):
            break
        if _COLLECTIVES in frame.file:
            return True
    innermost = stack[-1]
    if innermost.file.endswith(_DEVICE_FILES):
        return True
    line = "" if innermost.of_torch or innermost.of_python else line_of(innermost)
    if _WAITS_FOR_DEVICE.search(line):
        return True
    if not sleeps:
        return False
    backward = innermost.file.endswith(_BACKWARD[0]) and innermost.function == _BACKWARD[1]
    return backward or "/torch/distributed/" in innermost.file or _DDP in innermost.file or ".wait(" in line


def _saves(frame: Frame) -> bool:
    if frame.file.endswith("/torch/serialization.py") or "/safetensors/" in frame.file or "/numpy/" in frame.file:
        return "save" in frame.function
    return "/torch/distributed/checkpoint/" in frame.file or "/orbax/" in frame.file


def _compiles(frame: Frame) -> bool:
    if frame.file.endswith("/torch/_inductor/compile_fx.py"):
        return "compile" in frame.function
    return any(part in frame.file for part in _COMPILERS)


def _evaluates(frame: Frame) -> bool:
    return not (frame.of_torch or frame.of_python) and _EVALUATES.fullmatch(frame.function) is not None
