"""What agents are asked for while this process falls behind. Pure: times are passed in."""

from __future__ import annotations

#: Half of the blocks being later than this is no network's doing: it is us.
DELAY_S_MAX = 1.0
#: Shortest time from tick to tick that agents are asked for, by how bad it is; 0: their own.
INTERVALS_S = (0.0, 2.0, 5.0)
#: A burst, of a fleet that comes back, is over by then.
_RISE_S = 5.0
#: So long all must be well before agents are let go; doubled each time that it was too early.
_HOLD_S_MIN = 60.0
_HOLD_S_MAX = 600.0


class Pressure:
    """`interval_s_min` is what all agents are to be told. Times are of one monotonic clock, in seconds."""

    def __init__(self, delay_s_max: float = DELAY_S_MAX) -> None:
        self._delay_s_max = delay_s_max
        self._level = 0
        self._late_since_s: float | None = None
        self._well_since_s: float | None = None
        self._hold_s = _HOLD_S_MIN
        #: Whether agents were let go since it was well for as long as they are held.
        self._let_go = False

    @property
    def interval_s_min(self) -> float:
        return INTERVALS_S[self._level]

    @property
    def is_behind(self) -> bool:
        """Whether blocks wait here, as far as is known, or did a moment ago."""
        return self._level > 0 or self._late_since_s is not None

    def step(self, delay_s: float, now_s: float) -> None:
        """delay_s: half of the blocks since the last step were in their windows later than this after their tick."""
        late, well = delay_s > self._delay_s_max, delay_s <= self._delay_s_max / 2
        self._late_since_s = (now_s if self._late_since_s is None else self._late_since_s) if late else None
        self._well_since_s = (now_s if self._well_since_s is None else self._well_since_s) if well else None
        if self._late_since_s is not None and now_s - self._late_since_s >= _RISE_S:
            if self._level + 1 < len(INTERVALS_S):
                self._level += 1
                if self._let_go:
                    self._hold_s = min(2 * self._hold_s, _HOLD_S_MAX)
                    self._let_go = False
            self._late_since_s = None  # what was asked for must show first
        elif self._well_since_s is not None and now_s - self._well_since_s >= self._hold_s:
            self._let_go = self._level > 0
            if self._level:
                self._level -= 1
            else:
                self._hold_s = _HOLD_S_MIN
            self._well_since_s = None
