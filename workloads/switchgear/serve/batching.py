"""Continuous batching as a pure core: which sequences take part in the next iteration of the model, and which have ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Items
from dataclasses import dataclass
from enum import StrEnum

from switchgear.core.errors import Reason, Unavailable
from switchgear.serve.model import Sequence


class FinishReason(StrEnum):
    """The names are those of OpenAI's API; `abort` is vLLM's, for requests that nobody waits for any more."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


@dataclass(frozen=True, slots=True)
class Finished:
    sequence: Sequence
    reason: FinishReason


class Batch:
    """Sequences join and leave between any two iterations, in the order in which they came.

    running_max: sequences of one iteration. waiting_max: beyond it a request is refused, since its answer would come too late.
    """

    def __init__(self, *, running_max: int, waiting_max: int) -> None:
        self._running_max = running_max
        self._waiting_max = waiting_max
        self._running: dict[int, Sequence] = {}
        self._waiting: deque[Sequence] = deque()

    @property
    def remaining_tokens(self) -> int:
        """That may still be generated, at most."""
        return sum(one.max_tokens - len(one.generated) for one in (*self._running.values(), *self._waiting))

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def add(self, sequence: Sequence) -> None:
        """Raises Unavailable when too many wait already."""
        if len(self._waiting) >= self._waiting_max:
            raise Unavailable(
                f"{len(self._waiting)} requests wait here already; try again in a moment or at another replica",
                Reason.LIMIT_EXCEEDED,
                waiting_max=str(self._waiting_max),
            )
        self._waiting.append(sequence)

    def next(self) -> list[Sequence]:
        """Lets waiting sequences in where there is room, and gives those of the next iteration; empty when there is nothing to do."""
        while self._waiting and len(self._running) < self._running_max:
            sequence = self._waiting.popleft()
            self._running[sequence.number] = sequence
        return list(self._running.values())

    def advance(self, sequences: Items[Sequence], tokens: Items[int], end_token: int | None) -> list[Finished]:
        """Books the result of an iteration over `sequences` (from `next`); gives those that ended.

        One that was cancelled during the iteration is left alone.
        """
        finished = list[Finished]()
        for sequence, token in zip(sequences, tokens, strict=True):
            if sequence.number not in self._running:
                continue
            if token == end_token:
                finished.append(Finished(sequence, FinishReason.STOP))
            else:
                sequence.generated.append(token)
                if len(sequence.generated) >= sequence.max_tokens:
                    finished.append(Finished(sequence, FinishReason.LENGTH))
        for end in finished:
            del self._running[end.sequence.number]
        return finished

    def cancel(self, number: int) -> bool:
        """Takes a sequence out; False when it is not here any more."""
        if self._running.pop(number, None) is not None:
            return True
        for sequence in self._waiting:
            if sequence.number == number:
                self._waiting.remove(sequence)
                return True
        return False

    def abandon(self) -> list[Sequence]:
        """Takes out all that run, after an iteration that failed."""
        abandoned = list(self._running.values())
        self._running.clear()
        return abandoned
