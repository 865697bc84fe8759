"""All feeds of this collector's imports."""

from __future__ import annotations

import asyncio

from switchgear.collector.imports.feed import Feed
from switchgear.collector.imports.metrics import ImportMetrics
from switchgear.collector.taps import Taps
from switchgear.collector.windows import Windows
from switchgear.core.clock import Clock

#: Nodes and sources at a time; each has a window.
FEEDS_MAX = 20_000
#: One of which nothing came for so long is closed; scrapes are an hour apart at most.
IDLE_NS = 2 * 3600 * 1_000_000_000
_FLUSH_S = 0.5


class Feeds:
    """One feed for each node and source."""

    def __init__(self, windows: Windows, taps: Taps, metrics: ImportMetrics, clock: Clock) -> None:
        self._windows, self._taps, self._metrics, self._clock = windows, taps, metrics, clock
        self._feeds: dict[tuple[str, str], Feed] = {}
        metrics.watch(
            lambda: len({node for node, _ in self._feeds}), lambda: sum(f.series for f in self._feeds.values())
        )

    def of(self, node: str, source: str) -> Feed | None:
        """The feed; None when there are as many as there may be."""
        feed = self._feeds.get((node, source))
        if feed is None and len(self._feeds) < FEEDS_MAX:
            feed = Feed(self._windows, self._taps, self._metrics, node, source)
            self._feeds[node, source] = feed
        return feed

    async def run(self) -> None:
        """Writes what waits for its row, until cancelled."""
        while True:
            await asyncio.sleep(_FLUSH_S)
            now = self._clock.unix_ns()
            for origin, feed in list(self._feeds.items()):
                feed.flush(now)
                if feed.seen_unix_ns and now - feed.seen_unix_ns > IDLE_NS:
                    feed.close()
                    del self._feeds[origin]
