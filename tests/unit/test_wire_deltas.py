"""From the agent's deltas to the collector's values: nothing is lost, and nonsense is refused."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from switchgear.agent import sampler
from switchgear.agent.deltas import DIVISORS, Encoder, plain_keyframe
from switchgear.agent.messages import DETAIL_MAX, NAME_CHARS_MAX, packed
from switchgear.agent.readings import Kind, Reading, known, series, unknown
from switchgear.agent.sample_spool import CHUNK_BLOCKS_MAX
from switchgear.agent.sampler import Sampler
from switchgear.collector import dictionary, messages, windows
from switchgear.collector.blocks import Decoder
from switchgear.collector.messages import block_of
from switchgear.core.errors import Invalid
from switchgear.v1alpha import telemetry_service_pb2 as pb

KEYS = [series(f"metric_{n}", "", Kind.COUNTER if n % 2 else Kind.GAUGE) for n in range(6)]


def bits(value: float) -> bytes:
    return struct.pack("<d", value + 0.0)  # zero has no sign on the wire


decimals = st.builds(lambda n, digits: n / 10**digits, st.integers(-(10**9), 10**9), st.integers(0, 9))
pages = st.integers(0, 2**40).map(lambda n: float(4096 * n))
counts = st.integers(-(2**60), 2**60).map(float)
values = st.one_of(st.floats(allow_nan=False), decimals, pages, counts)
rows = st.lists(values | st.none(), min_size=len(KEYS), max_size=len(KEYS))


@given(ticks=st.lists(rows, min_size=1, max_size=15), keyframe_every=st.integers(2, 8))
@example(ticks=[[0.1 + 0.2] * 6, [0.5] * 6, [math.inf] * 6, [2.0**53] * 6, [-0.0] * 6, [5e-324] * 6], keyframe_every=8)
def test_every_float_comes_out_as_it_went_in(ticks: list[list[float | None]], keyframe_every: int) -> None:
    agent, decoder = Sampler(keyframe_every=keyframe_every), Decoder()
    now: dict[int, bytes] = {}
    for time_ns, row in enumerate(ticks):
        readings = [unknown(k, "why") if v is None else known(k, v) for k, v in zip(KEYS, row, strict=True)]
        # Series join one by one, as sources answer.
        block = agent.tick(readings[: 1 + 2 * time_ns], time_ns)
        message = pb.Block.FromString(block.message)
        ids, decoded = decoder.decode(block_of(message), block.series)
        now = {} if block.keyframe else now
        now |= dict(zip(ids.tolist(), map(bits, decoded.tolist()), strict=True))
        for item in message.unknown:
            now.pop(item.id, None)
        shown = [bits(value) if (value := reading.value) is not None else None for reading in agent.latest()]
        assert [now.get(number) for number in range(len(shown))] == shown


def message_of(value: list[float], encoder: Encoder, *, keyframe: bool = False) -> pb.Block:
    readings = [Reading(KEYS[0], item) for item in value]
    return encoder.encode(enumerate(readings), len(readings), keyframe=keyframe)


@pytest.mark.parametrize(
    ("first", "second", "size_max"),
    [
        (64.0, 65.0, 1),  # degrees
        (512.345, 512.41, 2),  # watts in milliwatts
        (73_014_444_032.0, 73_014_448_128.0, 1),  # bytes in pages
        (0.512345, 0.512401, 1),  # a ratio with six digits
        (1.7e9 + 0.25, 1.7e9 + 1.25, 2),  # seconds of processors
    ],
)
def test_what_hardware_reports_changes_in_a_byte_or_two(first: float, second: float, size_max: int) -> None:
    encoder = Encoder()
    message_of([first], encoder, keyframe=True)
    change = message_of([second], encoder)
    assert not change.values_f64
    assert len(pb.Block(deltas=change.deltas).SerializeToString()) - 2 <= size_max


def test_a_counter_under_steady_load_costs_what_its_rate_varies() -> None:
    encoder = Encoder()
    load = [1e12 + 1 + 25e9 * tick + tick % 3 for tick in range(4)]
    sizes = [
        list(encoder.encode([(0, Reading(KEYS[1], value))], 1, keyframe=not tick).deltas)
        for tick, value in enumerate(load)
    ]
    assert sizes[2:] == [[0], [-3]]


def test_a_series_that_found_no_divisor_is_tried_again_at_a_keyframe() -> None:
    encoder = Encoder()
    message_of([math.pi], encoder, keyframe=True)
    assert not message_of([2.0], encoder).deltas
    assert message_of([3.0], encoder, keyframe=True).deltas == [3]
    assert message_of([4.0], encoder).deltas == [1]


def test_both_ends_divide_alike() -> None:
    decoder = Decoder()
    for class_, divisor in enumerate(DIVISORS[1:], 1):
        block = pb.Block(keyframe=True, changed=b"\x01", classes=bytes([class_]), deltas=[7])
        _, decoded = decoder.decode(block_of(block), 1)
        assert decoded.tolist() == [7 / divisor]


def test_both_ends_have_the_same_bounds() -> None:
    assert CHUNK_BLOCKS_MAX <= messages.BLOCKS_MAX
    assert sampler.SERIES_MAX == windows.SERIES_MAX
    assert NAME_CHARS_MAX == dictionary.NAME_CHARS_MAX
    assert DETAIL_MAX == messages.DETAIL_MAX


def test_a_dictionary_beyond_all_bounds_is_refused_before_it_is_looked_at() -> None:
    series = [pb.Series(id=number, metric="m") for number in range(windows.SERIES_MAX + 1)]
    with pytest.raises(Invalid, match="4096 series"):
        dictionary.dictionary_of(packed(pb.Dictionary(series=series), label_sets=True))


def test_a_plain_keyframe_has_every_value_and_every_reason() -> None:
    message = plain_keyframe([known(KEYS[0], 1.5), unknown(KEYS[1], "why"), known(KEYS[2], -2)], 7, 3)
    ids, decoded = Decoder().decode(block_of(message), 3)
    assert (ids.tolist(), decoded.tolist()) == ([0, 2], [1.5, -2.0])
    assert [(item.id, item.reason) for item in message.unknown] == [(1, "why")]
    assert (message.time_unix_ns, message.sequence, message.keyframe) == (7, 3, True)


KEYFRAME = pb.Block(
    keyframe=True, changed=b"\x03", classes=b"\x03\x00", deltas=[5], values_f64=struct.pack("<d", math.pi)
)


@pytest.mark.parametrize(
    "bad",
    [
        pb.Block(changed=b"\x01"),
        pb.Block(changed=b"\x01", deltas=[1, 2]),
        pb.Block(changed=b"\x02", deltas=[1]),
        pb.Block(changed=b"\x04", deltas=[1]),
        pb.Block(changed=b"\x01", deltas=[1], reclassed=[2 << 8 | 3]),
        pb.Block(changed=b"\x01", deltas=[1], reclassed=[11]),
        pb.Block(changed=b"\x01", deltas=[1], reclassed=[0x10]),
        pb.Block(keyframe=True, changed=b"\x01", classes=b"\x20", deltas=[1]),
        pb.Block(keyframe=True, changed=b"\x01", classes=b"\x03\x03\x03", deltas=[1]),
        pb.Block(changed=b"\x02", values_f64=b"1234567"),
        pb.Block(changed=b"\x01\x00", deltas=[1]),
    ],
)
def test_a_block_that_contradicts_itself_is_refused_and_a_keyframe_mends_it(bad: pb.Block) -> None:
    decoder = Decoder()
    decoder.decode(block_of(KEYFRAME), 2)
    with pytest.raises(Invalid):
        decoder.decode(block_of(bad), 2)
    with pytest.raises(Invalid, match="keyframe"):
        decoder.decode(block_of(pb.Block(changed=b"\x01", deltas=[1])), 2)
    _, decoded = decoder.decode(block_of(KEYFRAME), 2)
    assert decoded.tolist() == [5.0, math.pi]


@given(data=st.binary(max_size=60), count=st.integers(0, 70))
def test_whatever_bytes_come_the_answer_is_values_or_a_refusal(data: bytes, count: int) -> None:
    decoder = Decoder()
    decoder.decode(block_of(pb.Block(keyframe=True, classes=b"\x03" * count)), count)
    message = pb.Block()
    try:
        message.ParseFromString(data)
    except Exception:  # not even a message: gRPC refuses it before us
        return
    try:
        ids, decoded = decoder.decode(block_of(message), count)
    except Invalid:
        return
    assert len(ids) == len(decoded)
    assert not len(ids) or ids.max() < count
    assert decoded.dtype == np.float64
