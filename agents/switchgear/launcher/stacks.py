"""Python stacks of ranks as values: read from py-spy or faulthandler, made text, and whose code a frame is. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

STACK_BYTES_MAX = 8192
#: As faulthandler writes a frame.
_FAULTHANDLER = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>.*)$', re.MULTILINE)
_STANDARD_LIBRARY = re.compile(r"/lib(64)?/python3[^/]*/(?!site-packages/|dist-packages/)|^<")
_INSTALLED = re.compile(r"/(site|dist)-packages/|/torchinductor_[^/]*/")


@dataclass(frozen=True, slots=True)
class Frame:
    """One call: a function of a file, at a line."""

    function: str
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.function} ({self.file}:{self.line})"

    @property
    def of_torch(self) -> bool:
        return "/torch/" in self.file

    @property
    def of_python(self) -> bool:
        """Of the standard library, or made from a string."""
        return _STANDARD_LIBRARY.search(self.file) is not None

    @property
    def of_user(self) -> bool:
        """Of the program itself, and no library that is installed."""
        return not (self.of_torch or self.of_python or _INSTALLED.search(self.file))


Stack = Sequence[Frame]
"""Outermost frame first."""


def from_faulthandler(text: str, ours: str) -> list[Frame]:
    """The stack that faulthandler has written of one thread, the newest of several. ours: folder of the frames that are left out."""
    # One that was asked for before, and given up, may have come together with it.
    newest = text.rpartition("(most recent call first):")[2]
    frames = [Frame(m["function"], m["file"], int(m["line"])) for m in _FAULTHANDLER.finditer(newest)]
    return [frame for frame in reversed(frames) if not frame.file.startswith(ours)]


def from_py_spy(text: str, pid: int, ours: str) -> list[Frame]:
    """The main thread's stack in the JSON of `py-spy dump`. Raises ValueError when it is not in there."""
    try:
        threads = json.loads(text)
        found = next(thread["frames"] for thread in threads if thread["os_thread_id"] == pid)
        frames = [Frame(str(f["name"]), str(f["filename"]), int(f["line"])) for f in found]
    except (KeyError, TypeError, StopIteration) as error:
        raise ValueError(f"no stack of thread {pid} in what py-spy said") from error
    return [frame for frame in reversed(frames) if not frame.file.startswith(ours)]


def where(stack: Stack) -> str:
    """The innermost frame of the user's program, or of a library beside torch when none is the user's; empty when there is none."""
    for wanted in (lambda frame: frame.of_user, lambda frame: not (frame.of_torch or frame.of_python)):
        for frame in reversed(stack):
            if wanted(frame):
                return str(frame)
    return ""


def text(stack: Stack, note: str = "") -> str:
    """As in a traceback, innermost frame last, under a note; outer frames that do not fit into STACK_BYTES_MAX are left out."""
    lines: list[str] = []
    room = STACK_BYTES_MAX - len(note.encode("utf-8", "replace"))
    for frame in reversed(stack):
        line = f'  File "{frame.file}", line {frame.line}, in {frame.function}\n'
        room -= len(line.encode("utf-8", "replace"))
        if room < 0:
            break
        lines.append(line)
    return "".join([note, *reversed(lines)]).encode("utf-8", "replace").decode()
