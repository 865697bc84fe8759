"""Calls that may hang for ever, each timed and given up after a deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

_LOOK_S = 0.02


@dataclass(slots=True)
class CallTime:
    """How long a function took, as often as it was called."""

    calls: int = 0
    total_ms: float = 0.0
    max_ms: float = 0.0


class TimedCalls(ModuleType):
    """Stands for the module `pynvml`: what one thread calls of it is timed. Another thread may ask which call is under way."""

    def __init__(self, module: ModuleType) -> None:
        super().__init__(module.__name__)
        self._module = module
        self._times = dict[str, CallTime]()
        self._under_way: tuple[str, float] | None = None

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        if name == "_nvmlGetFunctionPointer":  # gives a function of the library itself
            return lambda function: self.timed(function, found(function))
        if not name.startswith("nvml") or not callable(found):
            return found
        setattr(self, name, timed := self.timed(name, found))
        return timed

    @property
    def times(self) -> Mapping[str, CallTime]:
        return dict(self._times)

    def late(self, deadline_s: float) -> str:
        """The function whose call has lasted longer than that; "" when none has."""
        under_way = self._under_way
        return under_way[0] if under_way is not None and time.monotonic() - under_way[1] > deadline_s else ""

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The call under this name."""

        def timed(*arguments: Any, **options: Any) -> Any:
            begun_s = time.monotonic()
            self._under_way = (name, begun_s)
            try:
                return call(*arguments, **options)
            finally:
                self._under_way = None
                spent = self._times.setdefault(name, CallTime())
                taken_ms = (time.monotonic() - begun_s) * 1e3
                spent.calls += 1
                spent.total_ms += taken_ms
                spent.max_ms = max(spent.max_ms, taken_ms)

        return timed


def run(work: Callable[[], None], calls: TimedCalls, deadline_s: float) -> str:
    """Does the work in a thread of its own; the name of the call that hangs, with the thread left to it, or "".

    deadline_s: for each call, not for all of them. Raises what the work raises.
    """
    failed = list[BaseException]()

    def guarded() -> None:
        try:
            work()
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=guarded, name="doctor", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_LOOK_S)
        if late := calls.late(deadline_s):
            return late
    if failed:
        raise failed[0]
    return ""
