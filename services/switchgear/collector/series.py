"""What a node's samples are of: keys of series, shared between all nodes that have the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from itertools import chain
from operator import is_
from weakref import WeakValueDictionary

import numpy as np

from switchgear.collector.blocks import Ids

#: What Python takes for a key whose texts are shared: the key, its tuple of labels, its place in the schema.
_KEY_BYTES = 200


class Kind(Enum):
    GAUGE = auto()
    #: It only rises, but for resets.
    COUNTER = auto()


@dataclass(slots=True, unsafe_hash=True)
class SeriesKey:
    """labels: in the order of their names. Never changed; not frozen, since making one would take three times as long."""

    metric: str
    unit: str
    labels: tuple[tuple[str, str], ...]
    kind: Kind = Kind.GAUGE


def chars_of(keys: Iterable[SeriesKey]) -> int:
    """Length of all names and labels. Those of one GPU share their labels and are told one after the other."""
    labels: tuple[tuple[str, str], ...] = ()
    chars = labels_chars = 0
    for key in keys:
        if key.labels is not labels:
            labels, labels_chars = key.labels, sum(map(len, chain.from_iterable(key.labels)))
        chars += len(key.metric) + len(key.unit) + labels_chars
    return chars


class Schema:
    """The series of a window, in the order of their ids. Nodes whose keys are the same objects have the same schema object.

    chars: of all names and labels. nbytes: about what it takes.
    """

    __slots__ = ("__weakref__", "chars", "counters", "keys")

    def __init__(self, keys: tuple[SeriesKey, ...], counters: Ids, chars: int) -> None:
        self.keys = keys
        #: Ids of those that are counters, rising.
        self.counters = counters
        self.chars = chars

    @property
    def nbytes(self) -> int:
        return _KEY_BYTES * len(self.keys) + self.chars

    def extended(self, more: Sequence[SeriesKey]) -> Schema:
        """The schema with these series behind its own; the same object as long as somebody has it."""
        keys = (*self.keys, *more)
        identity = hash(tuple(map(id, keys)))
        schema = _schemas.get(identity)
        if schema is None or len(schema.keys) != len(keys) or not all(map(is_, schema.keys, keys)):
            first = len(self.keys)
            counters = np.array([first + at for at, key in enumerate(more) if key.kind is Kind.COUNTER], np.int64)
            chars = self.chars + chars_of(more)
            schema = _schemas[identity] = Schema(keys, np.concatenate([self.counters, counters]), chars)
        return schema

    def columns(self, keys: Sequence[SeriesKey]) -> Ids:
        """The id of each key here, -1 for one that is not here."""
        if keys is self.keys:
            return np.arange(len(keys))
        ids = {key: series_id for series_id, key in enumerate(self.keys)}
        return np.array([ids.get(key, -1) for key in keys], np.int64)


#: By a hash of the keys' identities, which stay theirs as long as the schema lives.
_schemas: WeakValueDictionary[int, Schema] = WeakValueDictionary()
#: Where every window begins.
EMPTY = Schema((), np.empty(0, np.int64), 0)
