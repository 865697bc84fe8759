"""What exporters carry: rows of series, batches of rows, and what turns them into a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol
from weakref import ref

from switchgear.collector.blocks import Values
from switchgear.collector.windows import SeriesKey

#: What a row takes beside its values: three objects of Python.
ROW_BYTES = 300


class Selection:
    """Series of one source of a node, in the order of the values in its rows; the same object as long as these do not change.

    node: its id. since_unix_ns: when they were seen first. stale: their rows say that they have ended.
    """

    __slots__ = ("_prepared", "keys", "node", "since_unix_ns", "source", "stale")

    def __init__(
        self, node: str, source: str, keys: Sequence[SeriesKey], *, since_unix_ns: int, stale: bool = False
    ) -> None:
        self.node = node
        self.source = source
        self.keys = keys
        self.since_unix_ns = since_unix_ns
        self.stale = stale
        self._prepared: Any = None

    @property
    def is_prepared(self) -> bool:
        return self._prepared is not None

    def prepared(self, encoder: Encoder) -> Any:
        """What `encoder` made of the series; made at the first call, which takes a millisecond or two. A selection has one encoder."""
        if self._prepared is None:
            self._prepared = encoder.prepare(self)
        return self._prepared


class Row(NamedTuple):
    """values: float64, one for each series of the selection, none of them unknown."""

    selection: Selection
    time_unix_ns: int
    values: Values


@dataclass(frozen=True, slots=True)
class Encoded:
    """A request's body, and how many samples are in it: fewer than in the rows when a series was there twice."""

    body: bytes
    samples: int


class Encoder(Protocol):
    """Makes requests of rows. headers: what a request says of its form over HTTP."""

    headers: Mapping[str, str]

    def prepare(self, selection: Selection) -> Any:
        """What stays the same in all rows of a selection."""

    def encode(self, rows: Sequence[Row]) -> Encoded:
        """The body of a request. Fast when the selections are prepared."""


class Held:
    """An encoded request, as long as somebody sends it."""

    __slots__ = ("__weakref__", "encoded")

    def __init__(self, encoded: Encoded) -> None:
        self.encoded = encoded


@dataclass(slots=True, eq=False)
class Batch:
    """Rows that go in one request, in the order in which they came. opened_s: when the first came. late: they are of an outage."""

    lane: int
    opened_s: float
    late: bool
    rows: list[Row] = field(default_factory=list)
    samples: int = 0
    nbytes: int = 0
    oldest_unix_ns: int = 0
    newest_unix_ns: int = 0
    _held: ref[Held] | None = None

    def add(self, row: Row) -> None:
        self.rows.append(row)
        self.samples += len(row.values)
        self.nbytes += row.values.nbytes + ROW_BYTES
        self.oldest_unix_ns = min(self.oldest_unix_ns or row.time_unix_ns, row.time_unix_ns)
        self.newest_unix_ns = max(self.newest_unix_ns, row.time_unix_ns)

    def part(self, begin: int, end: int) -> Batch:
        """Some of its rows."""
        part = Batch(self.lane, self.opened_s, self.late)
        for row in self.rows[begin:end]:
            part.add(row)
        return part

    def encoded(self, encoder: Encoder) -> Held:
        """The request. Targets that send the same batch at the same time share one; who comes later makes it again."""
        held = self._held() if self._held is not None else None
        if held is None:
            held = Held(encoder.encode(self.rows))
            self._held = ref(held)
        return held
