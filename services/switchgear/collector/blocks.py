"""Blocks from the wire into values, for all samples of a block at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from switchgear.core.errors import Invalid, Reason

#: By class, as the contract lists them; class 0 is the value itself.
_DIVISORS = np.array([1, 1 / 4096, 1 / 1024, 1, 10, 100, 1e3, 1e4, 1e5, 1e6, 1e9])
_STEADY = 0x10
_CLASS = 0x0F
#: By class byte, of those that exist.
_STEADY_BITS = np.where(np.arange(2 * _STEADY) & _STEADY, -1, 0)

Values = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

_NO_VALUES: Values = np.zeros(0)


class Deltas(NamedTuple):
    """The part of a block that builds on the blocks before it; see `switchgear.v1alpha.Block`."""

    changed: bytes
    numbers: npt.NDArray[np.int64]
    classes: bytes
    reclassed: npt.NDArray[np.uint32]


class Block(NamedTuple):
    """One tick as it came over the wire; see `switchgear.v1alpha.Block`. deltas: None in a plain block.

    A tuple: of a frozen dataclass making one costs a tenth of taking in the block.
    """

    time_unix_ns: int
    sequence: int
    keyframe: bool
    series_ids: bytes
    values_f64: bytes
    unknown: Mapping[int, str]
    deltas: Deltas | None = None


class Decoder:
    """The chain of one epoch. Blocks must come in sequence from a keyframe on; whoever calls it sees to that.

    After Invalid (STREAM_PROTOCOL: a block contradicts itself or the dictionary) the chain goes on at a keyframe.
    """

    def __init__(self) -> None:
        self._in_step = False
        self._classes = np.zeros(0, np.uint8)
        self._divisors = np.zeros(0)
        #: All bits where the class says "steady", none elsewhere: what is kept of a step.
        self._steady = np.zeros(0, np.int64)
        self._numbers = np.zeros(0, np.int64)
        self._steps = np.zeros(0, np.int64)

    def decode(self, block: Block, count: int) -> tuple[Ids, Values]:
        """Ids and values of a block. count: series in the dictionary. Integers wrap around at 64 bits, as the agent's do not."""
        in_step, self._in_step = self._in_step, False
        if len(block.values_f64) % 8 or len(block.series_ids) % 4:
            raise protocol("values must be float64 and ids uint32")
        if block.unknown and max(block.unknown) >= count:
            raise protocol("an unknown value has an id that is not in the dictionary")
        values = np.frombuffer(block.values_f64, "<f8") if block.values_f64 else _NO_VALUES
        if block.deltas is None:
            # One in which nothing changed is neither plain nor with deltas.
            self._in_step = in_step and not block.keyframe and not len(values)
            return _plain(block, values, count)
        if not (in_step or block.keyframe):
            raise protocol("a block with deltas follows a plain one; begin with a keyframe")
        decoded = self._decode(block.keyframe, block.deltas, values, count)
        self._in_step = True
        return decoded

    def _decode(self, keyframe: bool, deltas: Deltas, plain: Values, count: int) -> tuple[Ids, Values]:
        if keyframe:
            self._begin(deltas.classes, count)
        elif count > len(self._classes):
            self._grow(count)
        if len(deltas.reclassed):
            self._reclass(deltas.reclassed, count)
        # Its length first: unpacked it is 64 times as large.
        ids = _set_bits(deltas.changed) if len(deltas.changed) <= -(-count // 8) else None
        if ids is None or (len(ids) and ids[-1] >= count):
            raise protocol("a block has a value of a series that is not in the dictionary")
        # As many zeros of the classes as plain values: where there are none, nothing has to be told apart.
        found = self._classes[ids]
        scaled = None if np.count_nonzero(found) == len(ids) else found != 0
        at = ids if scaled is None else ids[scaled]
        if len(deltas.numbers) != len(at) or len(plain) != len(ids) - len(at):
            raise protocol("a block's deltas and values do not match the classes of its series")
        if keyframe:
            numbers = deltas.numbers
        else:
            steps = self._steps[at] + deltas.numbers
            numbers = self._numbers[at] + steps
            self._steps[at] = steps & self._steady[at]
            if len(deltas.reclassed):
                self._steps[deltas.reclassed >> 8] = 0
        self._numbers[at] = numbers
        quotients = numbers / self._divisors[at]
        if scaled is None:
            return ids, quotients
        values = np.empty(len(ids))
        values[scaled] = quotients
        values[~scaled] = plain
        return ids, values

    def _begin(self, classes: bytes, count: int) -> None:
        given = np.frombuffer(classes, np.uint8)
        if len(given) > count:
            raise protocol("a keyframe has more classes than the dictionary has series")
        _check_classes(given)
        self._classes = np.zeros(count, np.uint8)
        self._classes[: len(given)] = given
        self._divisors = _DIVISORS[self._classes & _CLASS]
        self._steady = _STEADY_BITS[self._classes]
        self._numbers = np.zeros(count, np.int64)
        self._steps = np.zeros(count, np.int64)

    def _grow(self, count: int) -> None:
        more = count - len(self._classes)
        self._classes = np.concatenate([self._classes, np.zeros(more, np.uint8)])
        self._divisors = np.concatenate([self._divisors, np.ones(more)])
        self._steady = np.concatenate([self._steady, np.zeros(more, np.int64)])
        self._numbers = np.concatenate([self._numbers, np.zeros(more, np.int64)])
        self._steps = np.concatenate([self._steps, np.zeros(more, np.int64)])

    def _reclass(self, reclassed: npt.NDArray[np.uint32], count: int) -> None:
        ids, classes = reclassed >> 8, (reclassed & 0xFF).astype(np.uint8)
        if ids.max() >= count:
            raise protocol("a class is given to a series that is not in the dictionary")
        _check_classes(classes)
        self._classes[ids] = classes
        self._divisors[ids] = _DIVISORS[classes & _CLASS]
        self._steady[ids] = _STEADY_BITS[classes]
        self._numbers[ids] = 0
        self._steps[ids] = 0


def _set_bits(bitmap: bytes) -> Ids:
    return np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little").view(np.bool_).nonzero()[0]


def _plain(block: Block, values: Values, count: int) -> tuple[Ids, Values]:
    if not block.series_ids and block.keyframe:
        if len(values) > count:
            raise protocol("a keyframe has more values than the dictionary has series")
        return np.arange(len(values)), values
    ids = np.frombuffer(block.series_ids, "<u4").astype(np.int64)
    if len(ids) != len(values) or (len(ids) and int(ids.max()) >= count):
        raise protocol("ids and values differ in number, or an id is not in the dictionary")
    return ids, values


def _check_classes(classes: npt.NDArray[np.uint8]) -> None:
    if len(classes) and ((classes & ~np.uint8(_STEADY)).max() >= len(_DIVISORS) or (classes == _STEADY).any()):
        raise protocol("a block names a class of series that does not exist")


def protocol(message: str) -> Invalid:
    """What the other end did against the contract."""
    return Invalid(message, Reason.STREAM_PROTOCOL)
