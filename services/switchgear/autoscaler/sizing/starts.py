"""How long starts take and how often they fail, as measured."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: Newest starts that count. Enough for a 95th percentile, few enough that a new image shows within a day.
STARTS_MAX = 40
#: Starts that the nominal time weighs.
NOMINAL_STARTS = 3
#: When nobody says how long one takes: what a large model needs from a warm disk.
UNKNOWN_S = 60.0
#: One start in this many fails, before any is seen.
FAILED, TRIED = 0.05, 2.0


@dataclass(slots=True)
class Starts:
    """took_s: of those that became READY, oldest first. failed, tried: faded counts."""

    took_s: deque[float] = field(default_factory=lambda: deque(maxlen=STARTS_MAX))
    failed: float = FAILED * TRIED
    tried: float = TRIED
    nominal_s: float = UNKNOWN_S
    _draws: int = 0

    def take(self, took_s: tuple[float, ...], failed_s: tuple[float, ...], nominal_s: float | None) -> None:
        """What happened in an interval."""
        self.nominal_s = nominal_s if nominal_s is not None else self.nominal_s
        self.took_s.extend(took_s)
        for happened, ended_badly in ((len(took_s), 0), (len(failed_s), 1)):
            for _ in range(happened):
                self.failed = self.failed * (1 - 1 / STARTS_MAX) + ended_badly
                self.tried = self.tried * (1 - 1 / STARTS_MAX) + 1

    @property
    def failure_odds(self) -> float:
        """Of one start."""
        return min(0.9, self.failed / self.tried)

    def quantile_s(self, share: float) -> float:
        """That share of starts takes at most so long."""
        known = sorted((*self.took_s, *([self.nominal_s] * max(0, NOMINAL_STARTS - len(self.took_s)))))
        return known[min(len(known) - 1, math.floor(share * len(known)))]

    def draw_s(self) -> float:
        """The next start of a fleet that might have been: quantiles in an order that fills the distribution evenly, failures included."""
        self._draws += 1
        took_s = self.quantile_s(_spread(self._draws, 0.6180339887))
        # A start that fails is asked for again.
        return took_s * 2 if _spread(self._draws, 0.7548776662) < self.failure_odds else took_s

    def memory(self) -> dict[str, object]:
        """For `restored`."""
        return {
            "tookS": list(self.took_s),
            "failed": self.failed,
            "tried": self.tried,
            "nominalS": self.nominal_s,
            "draws": self._draws,
        }

    @classmethod
    def restored(cls, memory: Mapping[str, Any]) -> Starts:
        """As it was."""
        return cls(
            deque(memory["tookS"], maxlen=STARTS_MAX),
            float(memory["failed"]),
            float(memory["tried"]),
            float(memory["nominalS"]),
            int(memory["draws"]),
        )


def _spread(count: int, step: float) -> float:
    # Multiples of an irrational number modulo 1 are spread evenly (Weyl), without chance.
    return count * step % 1.0
