"""Several lines that are one event. Pure: lines in, events out, each at its first line.

A fault is often told as a block: an OOM kill with its dump, a hung task that ends in a panic, a hardware error in five records. The
first line is the event, told once; what follows of the same block adds to it (who was killed, how bad it is) or makes it a worse one.
Lines that merely look alike stay events of their own: what joins them must be in the lines, and so must that they are of one moment.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from switchgear.agent.sources.gpu import normal_pci
from switchgear.agent.sources.kernel_log.classified import Classified
from switchgear.agent.sources.kernel_log.joins import DUMP, Open, join
from switchgear.agent.sources.kernel_log.nvidia import fallen_off_bus
from switchgear.agent.sources.kernel_log.prefix import Line
from switchgear.agent.sources.kernel_log.rule import PCI

T = TypeVar("T")

#: Without another line of it a block has ended.
HOLD_S = 1.0
#: Lines of one moment have stamps no further apart.
TOGETHER_S = 2.0
_DAY_S = 86_400
#: Of a line that is no event; the dumps of the kernel have short lines.
_SEEN_CHARS_MAX = 256
#: More lines than the dump of a node with thousands of tasks.
_LINES_MAX = 8192

_SENTENCE = re.compile(rf"NVRM: {{0,8}}The NVIDIA GPU (?P<pci>{PCI})(?![\w:])", re.ASCII)
_SENTENCE_LINES_MAX = 3
_TRACE = re.compile(r"Call [Tt]race|<TASK>|\bWorkqueue: |state:D ")
_TRACE_END = re.compile(r"</TASK>|---\[ end trace")
_AT = re.compile(r"CPU: \d{1,5} (?:UID: \d{1,10} )?PID: (?P<pid>\d{1,10}) Comm: (?P<process>\S{1,64})", re.ASCII)


@dataclass(slots=True)
class _Block(Generic[T]):
    token: T
    open: Open
    lines: int = 1
    told: bool = False


class Blocks(Generic[T]):
    """Fed line by line. A token stands for a line of the caller's; an event comes with that of its first line."""

    def __init__(self) -> None:
        self._block: _Block[T] | None = None
        self._in_trace = False
        self._sentence: tuple[T, str, int] | None = None
        self._read_s = float("-inf")

    @property
    def held(self) -> T | None:
        """The first line of which it is not yet known whether it is an event, or which."""
        if self._block is not None and not self._block.told:
            return self._block.token
        return self._sentence[0] if self._sentence is not None else None

    def add(self, token: T, line: Line, found: Classified | None, now_s: float = 0.0) -> list[tuple[T, Classified]]:
        """Events that are complete now. found: what the line says on its own merits. now_s: when it was read, monotonic."""
        if not line.text and not line.form:
            return self.close()
        ended = self.due(now_s)
        self._read_s = now_s
        if found is None and (lost := self._read_sentence(token, line)):
            ended += self._end()
            # Its XID may follow, in the form of the line that ends the sentence.
            self._block = _Block(lost[0], Open(lost[1], line, in_trace=False, waits=True))
            return ended
        block = self._block
        if block is not None and not self._belongs(block, line, found):
            ended += self._end()
            block = None
        self._follow_trace(line, found)
        if found is not None:
            self._sentence = None
        if block is None:
            if found is None:
                return ended
            block = self._block = _Block(token, Open(found, line, in_trace=self._in_trace))
        block.lines += 1
        if not block.told and block.open.complete:
            block.told = True
            ended.append((block.token, block.open.lead))
        return ended

    def due(self, now_s: float) -> list[tuple[T, Classified]]:
        """Events whose block has ended because nothing more came."""
        if now_s - self._read_s >= HOLD_S:
            return self.close()
        return []

    def close(self) -> list[tuple[T, Classified]]:
        """Ends what is open; for the end of the log."""
        self._sentence, self._in_trace = None, False
        return self._end()

    def _end(self) -> list[tuple[T, Classified]]:
        block, self._block = self._block, None
        return [(block.token, block.open.lead)] if block is not None and not block.told else []

    def _belongs(self, block: _Block[T], line: Line, found: Classified | None) -> bool:
        together = _together(block.open, line)
        if found is None:
            if block.open.at_s is not None and line.at_s is not None and not together:
                return False
            block.open.quiet_lines += 1
            if together:
                block.open.dumped |= DUMP.search(line.text, 0, _SEEN_CHARS_MAX) is not None
                _whose(block.open, line.text)
            return block.open.quiet_lines <= block.open.quiet_lines_max and block.lines < _LINES_MAX
        if not together or line.form != block.open.form:
            return False
        lead = join(block.open, line, found, in_trace=self._in_trace)
        if lead is None:
            return False
        block.open.lead, block.open.quiet_lines = lead, 0
        return True

    def _read_sentence(self, token: T, line: Line) -> tuple[T, Classified] | None:
        """The lost GPU that a sentence over up to three lines tells, at its first line."""
        if match := _SENTENCE.search(line.text, 0, _SEEN_CHARS_MAX):
            pci = normal_pci(match["pci"])
            self._sentence = (token, pci, _SENTENCE_LINES_MAX) if pci else None
        if self._sentence is None:
            return None
        first, pci, left = self._sentence
        left -= 1
        self._sentence = (first, pci, left) if left and "NVRM:" in line.text else None
        if "fallen off the bus" in line.text and "NVRM:" in line.text:
            self._sentence = None
            return first, fallen_off_bus(pci)
        return None

    def _follow_trace(self, line: Line, found: Classified | None) -> None:
        if found is not None:
            self._in_trace &= found.kind == "NFS_WRITEBACK_HANG"
        elif _TRACE_END.search(line.text, 0, _SEEN_CHARS_MAX):
            self._in_trace = False
        elif _TRACE.search(line.text, 0, _SEEN_CHARS_MAX):
            self._in_trace = True


def _whose(opened: Open, text: str) -> None:
    """A panic names whom it hit in the line about its processor."""
    if (
        opened.lead.kind == "KERNEL_PANIC"
        and opened.lead.pid is None
        and (match := _AT.search(text, 0, _SEEN_CHARS_MAX))
    ):
        opened.lead = replace(opened.lead, pid=int(match["pid"]), process=match["process"])


def _together(opened: Open, line: Line) -> bool:
    """Whether both lines can be of one moment: the same kind of prefix, and stamps near each other where there are any."""
    if line.form != opened.form:
        # The second line of a message of several has no prefix of its own.
        return not line.form and line.text.startswith(" ")
    if line.at_s is None or opened.at_s is None:
        return True
    apart_s = abs(line.at_s - opened.at_s)
    return min(apart_s, abs(_DAY_S - apart_s)) <= TOGETHER_S
