"""Which imported nodes have fallen silent. Pure: times are passed in, in seconds of one monotonic clock."""

from __future__ import annotations

from switchgear.collector.detectors import Silence


class Presence:
    """An exporter has no stream that breaks: what it told is good for a while, and then the node is as gone as one whose agent went."""

    def __init__(self, silence_s: float) -> None:
        self._silence = Silence(silence_s)
        self._heard_s: dict[str, float] = {}
        self._good_until_s: dict[str, float] = {}

    def heard(self, node: str, now_s: float, good_s: float) -> None:
        """Something came of `nodes/{node}`; the next is due within `good_s`."""
        self._heard_s[node] = now_s
        self._good_until_s[node] = max(now_s + good_s, self._good_until_s.get(node, 0.0))
        self._silence.heard(node)

    def forget(self, node: str) -> None:
        """It was told that the node is silent, or nobody asks about it any more."""
        self._heard_s.pop(node, None)
        self._good_until_s.pop(node, None)
        self._silence.heard(node)

    def due(self, now_s: float) -> list[tuple[str, float]]:
        """Nodes whose silence is to be told now, each with the seconds since it was heard; call `forget` when that is done."""
        for node, until_s in self._good_until_s.items():
            if until_s < now_s:
                self._silence.gone(node, until_s)
        return [(node, now_s - self._heard_s[node]) for node, _ in self._silence.due(now_s)]
