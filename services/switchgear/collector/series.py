"""What a node's samples are of: keys of series, shared between all nodes that have the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from itertools import chain
from operator import is_
from typing import NamedTuple, overload
from weakref import WeakValueDictionary

import numpy as np

from switchgear.collector.blocks import Ids

#: What Python takes for a key whose texts are shared: the key, its tuple of labels, its place in the schema.
_KEY_BYTES = 200
#: For a name and its place in the layout; for a label: the pair, its text and its place.
_NAME_BYTES, _LABEL_BYTES = 100, 130

Labels = tuple[tuple[str, str], ...]


class Kind(Enum):
    GAUGE = auto()
    #: It only rises, but for resets.
    COUNTER = auto()


@dataclass(slots=True, unsafe_hash=True)
class SeriesKey:
    """labels: in the order of their names. Never changed; not frozen, since making one would take three times as long."""

    metric: str
    unit: str
    labels: Labels
    kind: Kind = Kind.GAUGE


class Name(NamedTuple):
    """A series but for its labels, of which it has the place among the node's sets."""

    metric: str
    unit: str
    kind: Kind
    labels_at: int


class Layout:
    """The names of a node's series, by id: the same object for all nodes of one make. Compared by identity."""

    __slots__ = ("chars", "counters", "names")

    def __init__(self, names: tuple[Name, ...]) -> None:
        self.names = names
        self.counters = np.array([at for at, name in enumerate(names) if name.kind is Kind.COUNTER], np.int64)
        self.chars = sum(len(name.metric) + len(name.unit) for name in names)

    @property
    def nbytes(self) -> int:
        return _NAME_BYTES * len(self.names) + self.chars


class Keys(Sequence[SeriesKey]):
    """The series of one node: a layout, and the sets of labels that its names refer to. A key is made when it is asked for."""

    __slots__ = ("layout", "sets")

    def __init__(self, layout: Layout, sets: tuple[Labels, ...]) -> None:
        self.layout = layout
        self.sets = sets

    @property
    def chars(self) -> int:
        return self.layout.chars + sum(len(text) for labels in self.sets for pair in labels for text in pair)

    @property
    def nbytes(self) -> int:
        """Without the layout, which others share."""
        return _LABEL_BYTES * sum(map(len, self.sets)) + self.chars - self.layout.chars

    def __len__(self) -> int:
        return len(self.layout.names)

    def __iter__(self) -> Iterator[SeriesKey]:
        sets = self.sets
        return (SeriesKey(metric, unit, sets[at], kind) for metric, unit, kind, at in self.layout.names)

    @overload
    def __getitem__(self, at: int) -> SeriesKey: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[SeriesKey, ...]: ...
    def __getitem__(self, at: int | slice) -> SeriesKey | tuple[SeriesKey, ...]:
        if isinstance(at, slice):
            return tuple(self[place] for place in range(*at.indices(len(self))))
        name = self.layout.names[at]
        return SeriesKey(name.metric, name.unit, self.sets[name.labels_at], name.kind)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Keys):
            return NotImplemented
        return self.layout is other.layout and self.sets == other.sets

    __hash__ = None  # type: ignore[assignment]


def chars_of(keys: Iterable[SeriesKey]) -> int:
    """Length of all names and labels. Those of one GPU share their labels and are told one after the other."""
    labels: Labels = ()
    chars = labels_chars = 0
    for key in keys:
        if key.labels is not labels:
            labels, labels_chars = key.labels, sum(map(len, chain.from_iterable(key.labels)))
        chars += len(key.metric) + len(key.unit) + labels_chars
    return chars


class Schema:
    """The series of a window, in the order of their ids. Nodes whose keys are the same objects have the same schema object.

    chars: of all names and labels. nbytes: about what it takes, but for the layout of its keys.
    """

    __slots__ = ("__weakref__", "chars", "counters", "keys", "nbytes")

    def __init__(self, keys: Sequence[SeriesKey], counters: Ids, chars: int, nbytes: int) -> None:
        self.keys = keys
        #: Ids of those that are counters, rising.
        self.counters = counters
        self.chars = chars
        self.nbytes = nbytes

    @property
    def layout(self) -> Layout | None:
        """Of keys that have one."""
        return self.keys.layout if isinstance(self.keys, Keys) else None

    def extended(self, more: Sequence[SeriesKey]) -> Schema:
        """The schema with these series behind its own; the same object as long as somebody has it."""
        if isinstance(more, Keys) and not self.keys:
            return Schema(more, more.layout.counters, more.chars, more.nbytes)
        keys = (*self.keys, *more)
        identity = hash(tuple(map(id, keys)))
        schema = _schemas.get(identity)
        if schema is None or len(schema.keys) != len(keys) or not all(map(is_, schema.keys, keys)):
            first = len(self.keys)
            counters = np.array([first + at for at, key in enumerate(more) if key.kind is Kind.COUNTER], np.int64)
            chars = self.chars + chars_of(more)
            schema = _schemas[identity] = Schema(
                keys, np.concatenate([self.counters, counters]), chars, _KEY_BYTES * len(keys) + chars
            )
        return schema

    def columns(self, keys: Sequence[SeriesKey]) -> Ids:
        """The id of each key here, -1 for one that is not here."""
        if keys is self.keys or (isinstance(keys, Keys) and keys == self.keys):
            return np.arange(len(keys))
        ids = {key: series_id for series_id, key in enumerate(self.keys)}
        return np.array([ids.get(key, -1) for key in keys], np.int64)


#: By a hash of the keys' identities, which stay theirs as long as the schema lives.
_schemas: WeakValueDictionary[int, Schema] = WeakValueDictionary()
#: Where every window begins.
EMPTY = Schema((), np.empty(0, np.int64), 0, 0)
