"""One target: its page again and again, into the windows of the nodes that it tells of."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Sequence

import numpy as np

from switchgear.collector.imports.exposition import Page, Reader
from switchgear.collector.imports.feed import Feed
from switchgear.collector.imports.fetch import Fetcher, FetchFailed
from switchgear.collector.imports.intake import Intake
from switchgear.collector.imports.keys import node_of
from switchgear.collector.imports.rules import RULES
from switchgear.collector.imports.settings import Scrape
from switchgear.collector.imports.targets import Target
from switchgear.collector.series import SeriesKey

log = logging.getLogger(__name__)

#: A larger page is read in a thread, so that streams do not wait for it.
_LARGE_CHARS = 128 * 1024
#: Nodes that one page may tell of.
NODES_MAX = 1024
UP = "switchgear_import_up"
_ByNode = dict[str, tuple[list[SeriesKey], list[float]]]


class Scraping:
    """Keeps what the target told last: a series that is missing in the next page is unknown from then on."""

    def __init__(self, scrape: Scrape, target: Target, fetcher: Fetcher, intake: Intake) -> None:
        self._scrape, self._target, self._fetcher = scrape, target, fetcher
        self._feeds, self._judging, self._clock = intake.feeds, intake.judging, intake.clock
        self._metrics, self._elsewhere = intake.metrics, intake.elsewhere
        self._source = f"scrape/{scrape.name}"
        self._reader = Reader(scrape.metrics)
        self._up = SeriesKey(UP, "", (("target", target.url),))
        self._told: dict[Feed, list[SeriesKey]] = {}
        self._failure = ""

    async def run(self) -> None:
        """Until cancelled. Targets are spread over the interval by their URLs."""
        if self._target.node:
            # It is expected even when it never answers; its first scrape may be an interval away.
            self._judging.expect_target(self._target.node, self._source, 2 * self._good_s)
        digest = hashlib.sha256(self._target.url.encode()).digest()
        await asyncio.sleep(int.from_bytes(digest[:4]) / 2**32 * self._scrape.interval_s)
        try:
            while True:
                began_s = self._clock.monotonic_s()
                try:
                    await self.scrape()
                except Exception:
                    self._metrics.scrapes.labels(self._scrape.name, "error").inc()
                    log.exception("a scrape of %s failed", self._target.url)
                took_s = self._clock.monotonic_s() - began_s
                await asyncio.sleep(max(0.0, self._scrape.interval_s - took_s))
        finally:
            self._forget()

    async def scrape(self) -> None:
        """Fetches and takes in one page."""
        try:
            text = await self._fetcher.fetch(self._target.url, doubtful=bool(self._failure))
            try:
                large = len(text) > _LARGE_CHARS
                page = await asyncio.to_thread(self._reader.read, text) if large else self._reader.read(text)
            except ValueError as error:
                raise FetchFailed("garbage", str(error)) from error
        except FetchFailed as failed:
            self._metrics.scrapes.labels(self._scrape.name, failed.outcome).inc()
            self._failed(failed)
            return
        self._metrics.scrapes.labels(self._scrape.name, "ok").inc()
        if self._failure:
            log.info("%s answers again", self._target.url)
            self._failure = ""
        await self._take(page)

    @property
    def _good_s(self) -> float:
        """How long a page is good: until the next has come, or failed to."""
        return self._scrape.interval_s + self._scrape.timeout_s

    def _failed(self, failed: FetchFailed) -> None:
        if failed.outcome != self._failure:
            log.warning("cannot scrape %s: %s", self._target.url, failed.why)
            self._failure = failed.outcome
        now = self._clock.unix_ns()
        for feed, keys in self._told.items():
            self._write(feed, [self._up], [0.0], keys, now)
        self._told = {feed: [] for feed in self._told}

    async def _take(self, page: Page) -> None:
        for reason, count in page.rejected.items():
            self._metrics.rejected.labels(reason).inc(count)
        now = self._clock.unix_ns()
        told = dict[Feed, list[SeriesKey]]()
        looks = list[tuple[str, list[tuple[SeriesKey, float]]]]()
        for node, (keys, values) in self._by_node(page).items():
            if self._elsewhere(node):
                continue
            feed = self._feeds.of(node, self._source)
            if feed is None:
                self._metrics.rejected.labels("nodes").inc(len(keys))
                continue
            self._write(feed, [self._up, *keys], [1.0, *values], self._gone(feed, keys), now)
            self._metrics.samples.labels(self._source).inc(len(keys))
            told[feed] = keys
            looks.append((node, [pair for pair in zip(keys, values, strict=True) if pair[0].metric in RULES]))
        for feed, keys in self._told.items():
            if feed not in told:
                self._write(feed, [self._up], [0.0], keys, now)
        self._told = told
        for node, samples in looks:
            await self._judging.look(node, self._source, samples, now, self._good_s)

    def _by_node(self, page: Page) -> _ByNode:
        label = self._scrape.node_label
        if not label:
            return {self._target.node: (page.keys, page.values)}
        nodes: _ByNode = {}
        unnamed = list[tuple[SeriesKey, float]]()
        for key, value in zip(page.keys, page.values, strict=True):
            node = next((node_of(text) for name, text in key.labels if name == label), "")
            if not node:
                unnamed.append((key, value))
            elif node in nodes or len(nodes) < NODES_MAX:
                _add(nodes, node, key, value)
            else:
                self._metrics.rejected.labels("nodes").inc()
        # An exporter's own series have no such label; they are of its node, when that is beyond doubt.
        own = self._target.node or (next(iter(nodes)) if len(nodes) == 1 else "")
        for key, value in unnamed if own else ():
            _add(nodes, own, key, value)
        self._metrics.rejected.labels("no_node").inc(0 if own else len(unnamed))
        return nodes

    def _gone(self, feed: Feed, keys: Sequence[SeriesKey]) -> Sequence[SeriesKey]:
        before = self._told.get(feed, ())
        return () if before == keys else list(set(before).difference(keys))

    def _write(
        self, feed: Feed, keys: Sequence[SeriesKey], values: Sequence[float], gone: Sequence[SeriesKey], now: int
    ) -> None:
        ids = feed.ids(keys, now)
        known = ids >= 0
        missing = feed.known(gone)
        feed.put(
            now,
            np.concatenate([ids[known], missing]),
            np.concatenate([np.array(values)[known], np.full(len(missing), np.nan)]),
            now,
        )

    def _forget(self) -> None:
        """All that it told is unknown from now on, and nobody waits for more."""
        now = self._clock.unix_ns()
        for feed, keys in self._told.items():
            self._write(feed, [], [], [self._up, *keys], now)
        for node in {self._target.node, *(feed.node for feed in self._told)}:
            self._judging.forget(node)


def _add(nodes: _ByNode, node: str, key: SeriesKey, value: float) -> None:
    keys, values = nodes.setdefault(node, ([], []))
    keys.append(key)
    values.append(value)
