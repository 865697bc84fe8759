"""The rules by which blocks and events are taken in: clocks, rates, pressure, acks, dictionaries."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from switchgear.agent import messages as agent_messages
from switchgear.collector import dictionary as dictionaries
from switchgear.collector.clock_offset import ClockOffset
from switchgear.collector.clocks import Clocks
from switchgear.collector.delays import BLOCKS_MIN, Delays
from switchgear.collector.dictionary import dictionary_of
from switchgear.collector.outgoing import ACK_BLOCKS_MAX, Outgoing
from switchgear.collector.pressure import Pressure
from switchgear.collector.rates import Bucket
from switchgear.collector.series import Keys
from switchgear.core.errors import Invalid
from switchgear.v1alpha import telemetry_service_pb2 as pb

SECOND = 1_000_000_000
NOW = 1_700_000_000 * SECOND


def ticks(clock: ClockOffset, seconds: int, offset_s: float, *, begin_s: int = 0, delay_s: float = 0.01) -> list[float]:
    """A block a second of a node whose clock is `offset_s` behind; how far from its true time each was put."""
    errors = []
    for second in range(begin_s, begin_s + seconds):
        true_ns = NOW + second * SECOND
        arrival_ns = true_ns + round(delay_s * SECOND)
        errors.append((clock.corrected(true_ns - round(offset_s * SECOND), arrival_ns) - true_ns) / SECOND)
    return errors


def test_times_of_a_clock_that_is_right_are_the_agents_own() -> None:
    clock = ClockOffset()
    assert ticks(clock, 60, 0.4) == [-0.4] * 60
    assert not clock.is_skewed


def test_a_clock_that_is_ahead_is_seen_with_the_first_block() -> None:
    clock = ClockOffset()
    assert ticks(clock, 30, -30) == pytest.approx([0.01] * 30)
    assert clock.offset_ns == pytest.approx(-29.99 * SECOND)


def test_a_clock_that_is_behind_is_seen_when_two_windows_agree() -> None:
    clock = ClockOffset()
    errors = ticks(clock, 60, 30)
    assert errors[0] == -30
    assert errors[25:] == pytest.approx([0.01] * 35)


def test_a_clock_that_lost_its_battery_is_corrected_at_once() -> None:
    clock = ClockOffset()
    assert ticks(clock, 3, NOW / SECOND) == pytest.approx([0.01] * 3)


def test_blocks_that_waited_for_a_slow_connection_are_no_skew() -> None:
    clock = ClockOffset()
    ticks(clock, 15, 0)
    for waiting in range(40, 0, -1):  # the queue shrinks by a second each second
        clock.corrected(NOW + (100 - waiting) * SECOND, NOW + (100 - waiting // 2) * SECOND)
        assert not clock.is_skewed


def test_blocks_that_wait_in_a_collector_that_is_behind_are_no_skew() -> None:
    clock = ClockOffset()
    for second in range(60):
        clock.corrected(NOW + second * SECOND, NOW + (second + 5) * SECOND, waited=True)
    assert not clock.is_skewed
    ticks(clock, 25, 0, begin_s=60)
    assert not clock.is_skewed


def test_a_clock_that_is_set_right_is_right_at_once() -> None:
    behind = ClockOffset()
    ticks(behind, 60, 30)
    assert ticks(behind, 2, 0, begin_s=60) == [0, 0]
    ahead = ClockOffset()
    ticks(ahead, 60, -30)
    assert ticks(ahead, 2, 0, begin_s=60) == [0, 0], "its time went back"


@given(times=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=30))
def test_whatever_time_an_agent_says_a_row_is_never_of_the_future(times: list[int]) -> None:
    clock = ClockOffset()
    for number, time in enumerate(times):
        arrival = NOW + number * SECOND
        assert arrival - 2 * 86_400 * SECOND <= clock.corrected(time, arrival) <= arrival


def test_a_wrong_clock_is_told_once_and_its_end_too_but_not_each_time_it_flaps() -> None:
    clocks = Clocks(2.0, "run")
    clock = clocks.of("nodes/n1")
    ticks(clock, 2, -30)
    event = clocks.changed("nodes/n1", clock, NOW)
    assert event is not None
    assert (event.kind, event.boot_id, event.sequence) == ("CLOCK_SKEW", "run", 1)
    assert event.text == "the node's clock is 30.0 s ahead of the collector's"
    assert clocks.changed("nodes/n1", clock, NOW) is None
    assert clocks.offsets_s() == {"nodes/n1": pytest.approx(-29.99)}
    ticks(clock, 2, 0, begin_s=2)
    assert clocks.changed("nodes/n1", clock, NOW + 10 * SECOND) is None, "it may be wrong again in a moment"
    ended = clocks.changed("nodes/n1", clock, NOW + 60 * SECOND)
    assert ended is not None
    assert (ended.kind, ended.sequence, clocks.offsets_s()) == ("CLOCK_RIGHT", 2, {})


def test_a_bucket_has_its_burst_and_then_its_rate() -> None:
    bucket = Bucket(10.0, 5, 0.0)
    assert [bucket.spend(0.0) for _ in range(6)] == [4, 3, 2, 1, 0, -1]
    assert bucket.spend(0.2) == 0
    assert bucket.spend(1000.0) == 4


def test_agents_are_slowed_down_step_by_step_and_let_go_when_all_has_been_well_for_long() -> None:
    pressure = Pressure(1.0)
    asked = []
    for second in range(60):
        pressure.step(2.5 if second < 20 else 0.1, float(second))
        asked.append(pressure.interval_s_min)
    assert asked[:5] == [0] * 5, "a burst is over by then"
    assert (asked[6], asked[13], asked[59]) == (2, 5, 5)
    for second in range(60, 1000):
        pressure.step(0.1, float(second))
        asked.append(pressure.interval_s_min)
    assert (asked.index(2, 20), asked.index(0, 20)) == (80, 141), "after a minute each, however far it rose at once"


def test_slowing_down_that_ended_too_early_lasts_longer_the_next_time() -> None:
    def time_slow_s(pressure: Pressure, begin_s: int) -> int:
        second = begin_s
        while not pressure.interval_s_min:
            pressure.step(2.5, float(second))
            second += 1
        slow_since = second
        while pressure.interval_s_min:
            pressure.step(0.1, float(second))
            second += 1
        return second - slow_since

    pressure = Pressure(1.0)
    assert time_slow_s(pressure, 0) < time_slow_s(pressure, 200) < time_slow_s(pressure, 400)


def test_the_middle_of_the_delays_is_of_those_since_the_last_look() -> None:
    delays = Delays()
    for _ in range(BLOCKS_MIN):
        delays.add(3.0)
    assert delays.middle_s() == 2.5
    for number in range(BLOCKS_MIN):
        delays.add(3.0 if number % 3 == 0 else 0.001)
    assert delays.middle_s() == 0
    delays.add(100.0)
    assert delays.middle_s() == 0, "one block says nothing"


def sequences(outgoing: Outgoing) -> list[int]:
    return [message.block_ack.sequence for message in outgoing.take() if message.HasField("block_ack")]


def test_the_first_block_is_acked_at_once_and_then_many_together() -> None:
    outgoing = Outgoing(0.0, 5.0)
    outgoing.ack_block(1, 0.0)
    assert outgoing.wake.is_set()
    assert sequences(outgoing) == [1]
    for sequence in range(2, 2 + ACK_BLOCKS_MAX):
        assert not outgoing.wake.is_set()
        outgoing.ack_block(sequence, 0.1)
    assert sequences(outgoing) == [1 + ACK_BLOCKS_MAX]
    outgoing.ack_block(100, 4.0)
    assert not outgoing.wake.is_set()
    outgoing.ack_block(101, 5.2)
    assert sequences(outgoing) == [101]


def test_what_waits_on_a_stream_that_fell_silent_is_acked_in_the_end() -> None:
    outgoing = Outgoing(0.0, 5.0)
    for sequence in (1, 2):
        outgoing.ack_block(sequence, 0.0)
        outgoing.flush(0.1)
    assert sequences(outgoing) == [2]
    outgoing.ack_block(3, 0.2)
    outgoing.flush(4.0)
    assert not outgoing.wake.is_set()
    outgoing.flush(5.2)
    assert sequences(outgoing) == [3]


texts = st.text(max_size=150)
wire_series = st.builds(
    pb.Series,
    metric=texts.filter(bool),
    unit=texts,
    kind=st.sampled_from([pb.Series.GAUGE, pb.Series.COUNTER, pb.Series.KIND_UNSPECIFIED]),
    labels=st.dictionaries(texts, texts, max_size=6),
)


@given(found=st.lists(wire_series, max_size=8), first=st.integers(0, 4000))
def test_a_packed_dictionary_says_the_same_as_a_plain_one(found: list[pb.Series], first: int) -> None:
    for number, series in enumerate(found):
        series.id = first + number
    plain = pb.Dictionary(series=found)
    packed = pb.Dictionary(packed=zlib.compress(plain.SerializeToString()))
    assert dictionary_of(packed) == dictionary_of(plain)


@given(found=st.lists(wire_series, max_size=8), first=st.integers(0, 4000))
def test_a_dictionary_with_sets_of_labels_says_the_same_as_a_plain_one(found: list[pb.Series], first: int) -> None:
    for number, series in enumerate(found):
        series.id = first + number
    plain = pb.Dictionary(series=found)
    first_id, keys = dictionary_of(agent_messages.packed(plain, label_sets=True))
    assert (first_id, tuple(keys)) == dictionary_of(plain)
    assert keys[:] == tuple(keys)
    assert [keys[at] for at in range(len(keys))] == list(keys)


def told(node: str, *metrics: str) -> pb.Dictionary:
    series = [
        pb.Series(id=number, metric=metric, labels={"gpu": "0", "node": node}) for number, metric in enumerate(metrics)
    ]
    return agent_messages.packed(pb.Dictionary(series=series), label_sets=True)


def test_nodes_of_the_same_make_are_read_once() -> None:
    one, other = told("a", "power", "temperature"), told("b", "power", "temperature")
    assert one.packed == other.packed
    (_, ones), (_, others) = dictionary_of(one), dictionary_of(other)
    assert isinstance(ones, Keys)
    assert isinstance(others, Keys)
    assert ones.layout is others.layout
    assert ones != others
    assert ones == dictionary_of(one)[1]
    assert [dict(key.labels)["node"] for key in (*ones, *others)] == ["a", "a", "b", "b"]


def test_labels_that_are_not_told_or_told_twice_are_refused() -> None:
    alone = told("a", "power")
    none = pb.Dictionary(packed=alone.packed)
    beyond = pb.Dictionary(series=[pb.Series(metric="power", label_set=2)], label_sets=alone.label_sets)
    both = pb.Dictionary(
        series=[pb.Series(metric="power", label_set=1, labels={"gpu": "0"})], label_sets=alone.label_sets
    )
    long = pb.Dictionary(packed=alone.packed, label_sets=[pb.LabelSet(labels={"gpu": "x" * 300})])
    many = pb.Dictionary(packed=alone.packed, label_sets=[pb.LabelSet(labels={str(n): "x" for n in range(33)})])
    for wrong in (none, beyond, both, long, many):
        with pytest.raises(Invalid):
            dictionary_of(wrong)


@pytest.mark.parametrize(
    "data",
    [b"\x0a", b"\x0a\x7f", b"\x0a\x03abc", b"\x0a\x02\x12\x7f", b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x00", b"\x0a\x03\x12\x01\xff"],
)  # fmt: skip
def test_a_packed_dictionary_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(Invalid):
        dictionary_of(pb.Dictionary(packed=zlib.compress(data)))


def test_what_is_remembered_of_dictionaries_is_bounded() -> None:
    for number in range(100):
        dictionary_of(told("a", f"metric_{number}"))
    assert dictionaries._packed_told.cache_info().currsize <= 32
