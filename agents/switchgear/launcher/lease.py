"""How long ranks may run without word from the control plane."""

from __future__ import annotations

from dataclasses import dataclass, replace

#: Heartbeats go out each second; a grant for an older one than these could extend nothing.
_UNANSWERED_MAX = 64


@dataclass(frozen=True, slots=True)
class Lease:
    """A permission that ends by itself.

    It counts from when the heartbeat was *sent*: the control plane, which counts from when it received it, then never believes
    the lease over while ranks may still run, however long the answer took.

    expires_at_s: on the monotonic clock; None: never granted yet, which allows nothing.
    """

    expires_at_s: float | None = None
    sequence: int = 0
    _sent: tuple[tuple[int, float], ...] = ()

    def sent(self, now_s: float) -> Lease:
        """After a heartbeat with the next sequence went out; read `sequence` from the result."""
        number = self.sequence + 1
        return replace(self, sequence=number, _sent=(*self._sent, (number, now_s))[-_UNANSWERED_MAX:])

    def granted(self, sequence: int, duration_s: float) -> Lease:
        """After the grant for that heartbeat; an unknown or late one changes nothing."""
        sent_at_s = next((at for number, at in self._sent if number == sequence), None)
        if sent_at_s is None or duration_s <= 0:
            return self
        expires_at_s = sent_at_s + duration_s
        if self.expires_at_s is not None:
            expires_at_s = max(expires_at_s, self.expires_at_s)
        return replace(self, expires_at_s=expires_at_s, _sent=tuple(s for s in self._sent if s[0] > sequence))

    def is_valid(self, now_s: float) -> bool:
        return self.expires_at_s is not None and now_s < self.expires_at_s
