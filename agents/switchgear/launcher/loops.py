"""Where a stack lies beside the loop that makes steps, told from the source of the program.

What a script does after its last step (a report, an upload, a last evaluation) may take as long as it likes, and what it does between
epochs may take longer than a step; a step may not.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from pathlib import Path

from switchgear.launcher.stacks import Frame, Stack

_SOURCE_BYTES_MAX = 1 << 20
#: faulthandler leaves out what lies further out.
_FRAMES_MAX = 100
_FROZEN = "<frozen"
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_LOOPS = (ast.For, ast.AsyncFor, ast.While, *_COMPREHENSIONS)


class Place(Enum):
    """INSIDE: in the innermost loop around the step. BETWEEN: in a loop that is around that one. OUTSIDE: in none of them."""

    INSIDE = "inside"
    BETWEEN = "between"
    OUTSIDE = "outside"


@dataclass(frozen=True, slots=True)
class Loop:
    """first, last: its lines. turns: those on which it calls what it goes through, as a loop over optimizers does."""

    first: int
    last: int
    turns: frozenset[int]

    def holds(self, line: int) -> bool:
        return self.first <= line <= self.last


def place_of(stack: Stack, call: Stack) -> Place:
    """Where a stack lies; INSIDE when that cannot be told.

    call: where a step was made. The loops around it go on in the frames that both have in common, those of the frame in which they
    part when they hold the lines of both, and those further in are over. Where the program has loops of its own those of libraries do
    not count, which may go through the parts of a model. Reads the sources of all frames, which may take as long as their disk.
    """
    parting = next((n for n, (here, there) in enumerate(zip(stack, call, strict=False)) if here != there), None)
    if parting is None:
        return Place.INSIDE
    here, there = stack[parting], call[parting]
    same = (here.file, here.function) == (there.file, there.function)
    if parting == 0 and not same:
        # At the top the program is over, and its interpreter winds up.
        return Place.INSIDE if len(stack) >= _FRAMES_MAX else Place.OUTSIDE
    around: list[tuple[int, Frame, Loop]] = []
    for depth, frame in reversed(list(enumerate(call))):
        known = () if frame.file.startswith(_FROZEN) else loops(frame.file)
        if known is None:
            return Place.INSIDE
        held = [(depth, frame, loop) for loop in known if loop.holds(frame.line) and frame.line not in loop.turns]
        around.extend(sorted(held, key=lambda item: item[2].last - item[2].first))
    counted = [item for item in around if item[1].of_user] or [item for item in around if item[0] <= parting]
    if not counted:
        return Place.OUTSIDE if same else Place.INSIDE
    go_on = [n < parting or (n == parting and same and loop.holds(here.line)) for n, _, loop in counted]
    if go_on[0]:
        return Place.INSIDE
    return Place.BETWEEN if any(go_on) else Place.OUTSIDE


def beyond(stack: Stack, call: Stack) -> Stack:
    """The frames of a stack whose functions were not running when the step was made."""
    running = {(frame.file, frame.function) for frame in call}
    return [frame for frame in stack if (frame.file, frame.function) not in running]


def imports(stack: Stack, call: Stack) -> bool:
    """Whether a stack is in an import that the call of the step is not in: a program may run whole inside one."""
    return sum(map(_of_import, stack)) > sum(map(_of_import, call))


def _of_import(frame: Frame) -> bool:
    return frame.file.startswith(f"{_FROZEN} importlib")


def loops(path: str) -> tuple[Loop, ...] | None:
    """The loops in a file; None when it cannot be read as the Python that we know."""
    try:
        found = Path(path).stat()
        return _loops(path, found.st_mtime_ns) if found.st_size <= _SOURCE_BYTES_MAX else None
    except (OSError, ValueError, SyntaxError, RecursionError):
        return None


@lru_cache(maxsize=64)
def _loops(path: str, _mtime_ns: int) -> tuple[Loop, ...]:
    nodes = ast.walk(ast.parse(Path(path).read_bytes()))
    return tuple(
        Loop(node.lineno, node.end_lineno or node.lineno, _turns(node)) for node in nodes if isinstance(node, _LOOPS)
    )


def _turns(loop: ast.AST) -> frozenset[int]:
    """Lines on which a loop calls a method of what its target is at."""
    if isinstance(loop, ast.For | ast.AsyncFor):
        targets = [loop.target]
    elif isinstance(loop, _COMPREHENSIONS):
        targets = [generator.target for generator in loop.generators]
    else:
        return frozenset()
    stored = (node for target in targets for node in ast.walk(target) if isinstance(node, ast.Name))
    names = {node.id for node in stored if isinstance(node.ctx, ast.Store)}
    calls = (node for node in ast.walk(loop) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute))
    said = (node for node in calls if _root(node.func) in names)
    return frozenset(line for node in said for line in range(node.lineno, (node.end_lineno or node.lineno) + 1))


def _root(node: ast.expr) -> str:
    """The name that an expression of dots and brackets begins with; empty when it begins otherwise."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def line_of(frame: Frame) -> str:
    """The source line of a frame; empty when it cannot be read."""
    try:
        if Path(frame.file).stat().st_size > _SOURCE_BYTES_MAX:
            return ""
        lines = Path(frame.file).read_text(encoding="utf-8", errors="replace").splitlines()
    except (OSError, ValueError):
        return ""
    return lines[frame.line - 1] if 0 < frame.line <= len(lines) else ""
