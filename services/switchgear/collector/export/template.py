"""Requests that are compressed once: a compressed message in which only values and times change.

All rows of the same series differ in their values and their time alone, and a raw snappy stream
(https://github.com/google/snappy/blob/main/format_description.txt) is literals and copies from a distance back. A message that is compressed
with random bytes in the place of its values has these in literals, so later values are written over them without compressing again, and
such streams one behind the other are one.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import cramjam
import numpy as np

from switchgear.collector.blocks import Ids, Values

#: snappy looks for copies within blocks of so many bytes.
_BLOCK_BYTES = 65536
_VALUE_BYTES = 8
#: Series of one template at most. It bounds how long one takes to make (two milliseconds), and a series that comes or goes costs no more.
SERIES_MAX = 192
_RANDOM = random.Random(0)
#: What stands for a value. Both ends differ between any two: a copy that begins or ends at a value must not reach into it.
_MARKS = [bytes([at, *_RANDOM.randbytes(6), 7 * at % 256]) for at in range(256)]
_TRIES = 4

#: Makes the message of the bytes of values, one for each series, and those of the time.
Build = Callable[[Sequence[bytes], bytes], bytes]


@dataclass(frozen=True, slots=True)
class Template:
    """The message of one row, compressed. plain_bytes: its length before. values_at: where values go.

    times_at: where bytes of the time go, and from which to which; the other times are copies of these.
    It takes about 35 bytes a series, and 8 for its place.
    """

    data: bytes
    plain_bytes: int
    values_at: Ids
    times_at: tuple[tuple[int, int, int], ...]


def compiled(build: Build, series: int, time_bytes: int) -> Template:
    """The template of a message with one value and one time for each of `series` series (SERIES_MAX at most), in their order."""
    time, marks = _RANDOM.randbytes(time_bytes), list(_MARKS)
    for pack in (*[_compressed] * _TRIES, _literal):
        plain = build(marks[:series], time)
        values_at = _places(plain, marks[:series])
        times_at = np.array([found.start() for found in re.finditer(re.escape(time), plain)])
        template, torn = _template(pack(plain, values_at), plain, values_at, times_at, time_bytes)
        if not torn and _holds(template, plain, values_at, time):
            return template
        # Some mark has an end with which something else begins or ends: others take their places. A literal has no copies.
        marks = [*(mark for at, mark in enumerate(marks) if at not in torn), *(marks[at] for at in torn)]
    raise AssertionError("a literal holds every byte of a message in its place")


def rendered(rows: Sequence[tuple[Template, Values, bytes]]) -> bytes:
    """One compressed message of all rows, each with its values (float64, one a series) and its time's bytes."""
    head = varint(sum(template.plain_bytes for template, _, _ in rows))
    out = bytearray().join([head, *(template.data for template, _, _ in rows)])
    places, base = [], len(head)
    for template, _, time in rows:
        places.append(template.values_at + base)
        for at, begin, end in template.times_at:
            out[base + at : base + at + end - begin] = time[begin:end]
        base += len(template.data)
    put_values(out, np.concatenate(places), np.concatenate([values for _, values, _ in rows]))
    return bytes(out)


def put_values(out: bytearray, places: Ids, values: Values) -> None:
    """Writes each value, eight bytes, to its place."""
    # One overlapping element for each byte: a place is an index, whatever its alignment.
    view = np.ndarray((len(out) - _VALUE_BYTES + 1,), "<u8", buffer=out, strides=(1,))
    view[places] = values.view("<u8")


def plain_of(message: bytes) -> bytes:
    """What was compressed."""
    return bytes(cramjam.snappy.decompress_raw(message))


def varint(number: int) -> bytes:
    """Protobuf's and snappy's form of a number that is not negative."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number: int, payload: bytes) -> bytes:
    """Protobuf's form of bytes or of a message."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def distinct(identities: Sequence[Hashable]) -> list[int]:
    """Positions of those that are not there before: a store refuses a request that has a series twice."""
    first = dict(zip(reversed(identities), range(len(identities) - 1, -1, -1), strict=True))
    return sorted(first.values())


def _template(data: bytes, plain: bytes, values_at: Ids, times_at: Ids, time_bytes: int) -> tuple[Template, list[int]]:
    """Also the numbers of the values that are not whole within a literal."""
    literals: Ids = np.array(list(_literals(data)), np.int64)

    def placed(at: Ids) -> tuple[Ids, Ids]:
        """Where bytes of the message are in `data`, and how many from there on are; none that are copies."""
        literal = literals[np.searchsorted(literals[:, 1], at, "right") - 1]
        return literal[:, 0] + at - literal[:, 1], literal[:, 1] + literal[:, 2] - at

    values_there, room = placed(values_at)
    torn = np.flatnonzero(room < _VALUE_BYTES).tolist()
    of_times: list[tuple[int, int, int]] = []
    for begin in range(time_bytes):
        there, room = placed(times_at + begin)
        of_times += ((int(at), begin, begin + 1) for at in there[room > 0])
    return Template(data, len(plain), values_there, tuple(_runs(of_times))), torn


def _holds(template: Template, plain: bytes, values_at: Ids, time: bytes) -> bool:
    """Whether other values and another time come out where they should, and nothing else changes."""
    other = _RANDOM.randbytes(len(time))
    expected = bytearray(plain.replace(time, other))
    values: Values = np.arange(len(values_at), dtype=np.float64) / 3
    put_values(expected, values_at, values)
    return plain_of(rendered([(template, values, other)])) == expected


def _runs(pieces: list[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
    """Single bytes that follow each other, joined."""
    run: tuple[int, int, int] | None = None
    for at, begin, end in sorted(pieces):
        if run is not None and (at, begin) == (run[0] + run[2] - run[1], run[2]):
            run = run[0], run[1], end
            continue
        if run is not None:
            yield run
        run = at, begin, end
    if run is not None:
        yield run


def _literals(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Of a stream without its head: where each literal is, where it comes out, and how many bytes it has."""
    at = out = 0
    while at < len(data):
        tag, at = data[at], at + 1
        length = (tag >> 2) + 1
        match tag & 3:
            case 0:
                if length > 60:
                    width = length - 60
                    length, at = int.from_bytes(data[at : at + width], "little") + 1, at + width
                yield at, out, length
                at += length
            case 1:
                length = (tag >> 2 & 7) + 4
                at += 1
            case 2:
                at += 2
            case _:
                at += 4
        out += length


def _places(data: bytes, marks: Sequence[bytes]) -> Ids:
    places, at = np.empty(len(marks), np.int64), 0
    for number, mark in enumerate(marks):
        places[number] = at = data.index(mark, at)
    return places


def _compressed(plain: bytes, values_at: Ids) -> bytes:
    """Without the head, and cut behind values, so that no block of snappy's ends within one."""
    out, begin = [], 0
    cuts = [*(values_at + _VALUE_BYTES).tolist(), len(plain)]
    for cut, following in zip(cuts, [*cuts[1:], len(plain) + _BLOCK_BYTES], strict=True):
        if following - begin > _BLOCK_BYTES:
            block = bytes(cramjam.snappy.compress_raw(plain[begin:cut]))
            out.append(block[len(varint(cut - begin)) :])
            begin = cut
    return b"".join(out)


def _literal(plain: bytes, _values_at: Ids) -> bytes:
    """Not compressed: one literal, its length less one in four bytes."""
    return b"\xfc" + (len(plain) - 1).to_bytes(4, "little") + plain
