"""Whether a stack lies in the loop that makes steps, told from the source of the program.

What a script does after its last step (a report, an upload, a last evaluation) may take as long as it likes; a step may not.
"""

from __future__ import annotations

import ast
from functools import lru_cache
from pathlib import Path

from switchgear.launcher.stacks import Frame, Stack

_SOURCE_BYTES_MAX = 1 << 20
#: faulthandler leaves out what lies further out.
_FRAMES_MAX = 100
_LOOPS = (ast.For, ast.AsyncFor, ast.While, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def in_same_loop(stack: Stack, call: Stack) -> bool:
    """Whether a loop of the program goes on around both calls; True when that cannot be told.

    call: where a step was made. The frame in which both part decides: whatever they have in common above it goes on, and in it some
    loop must hold the lines of both. Reads the source of that frame's file, which may take as long as its disk.
    """
    for depth, (here, there) in enumerate(zip(stack, call, strict=False)):
        if (here.file, here.function) != (there.file, there.function):
            # At the top the program is over, and its interpreter winds up. Below, one line calls different functions.
            return depth > 0 or len(stack) >= _FRAMES_MAX
        if here.line != there.line:
            spans = loops(here.file)
            return spans is None or any(
                first <= here.line <= last and first <= there.line <= last for first, last in spans
            )
    return True


def imports(stack: Stack, call: Stack) -> bool:
    """Whether a stack is in an import that the call of the step is not in: a program may run whole inside one."""
    return sum(map(_of_import, stack)) > sum(map(_of_import, call))


def _of_import(frame: Frame) -> bool:
    return frame.file.startswith("<frozen importlib")


def loops(path: str) -> tuple[tuple[int, int], ...] | None:
    """First and last lines of each loop in a file; None when it cannot be read as the Python that we know."""
    try:
        found = Path(path).stat()
        return _loops(path, found.st_mtime_ns) if found.st_size <= _SOURCE_BYTES_MAX else None
    except (OSError, ValueError, SyntaxError, RecursionError):
        return None


@lru_cache(maxsize=64)
def _loops(path: str, _mtime_ns: int) -> tuple[tuple[int, int], ...]:
    nodes = ast.walk(ast.parse(Path(path).read_bytes()))
    return tuple((node.lineno, node.end_lineno or node.lineno) for node in nodes if isinstance(node, _LOOPS))


def line_of(frame: Frame) -> str:
    """The source line of a frame; empty when it cannot be read."""
    try:
        if Path(frame.file).stat().st_size > _SOURCE_BYTES_MAX:
            return ""
        lines = Path(frame.file).read_text(encoding="utf-8", errors="replace").splitlines()
    except (OSError, ValueError):
        return ""
    return lines[frame.line - 1] if 0 < frame.line <= len(lines) else ""
