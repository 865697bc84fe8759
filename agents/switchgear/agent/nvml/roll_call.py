"""Who the GPUs are. Each is asked in a thread of its own, for a call about one may hang and must not hide the others."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator

from switchgear.agent.nvml.device import NvmlDevice

#: What it said of itself, or what was raised instead.
Answer = NvmlDevice | Exception


class RollCall:
    """Asks all GPUs of `indices` at once. All but the asking itself is for one thread."""

    def __init__(self, ask: Callable[[int], NvmlDevice], indices: Iterable[int]) -> None:
        self._ask = ask
        self._answers: queue.SimpleQueue[tuple[int, Answer]] = queue.SimpleQueue()
        #: Those that have not answered yet.
        self.silent = set(indices)
        for index in sorted(self.silent):
            threading.Thread(target=self._run, args=(index,), name=f"nvml-identify-{index}", daemon=True).start()

    def answers(self, patience_s: float) -> Iterator[tuple[int, Answer]]:
        """As they come, until all have answered, or none has for so long: waking GPUs takes seconds, and one may wait for another."""
        while self.silent:
            try:
                index, answer = self._answers.get(timeout=patience_s)
            except queue.Empty:
                return
            self.silent.discard(index)
            yield index, answer

    def _run(self, index: int) -> None:
        try:
            self._answers.put((index, self._ask(index)))
        except Exception as error:  # it is raised again, or told, by who takes the answer
            self._answers.put((index, error))
