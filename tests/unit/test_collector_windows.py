"""What the windows hold after blocks, gaps and nonsense."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from switchgear.agent.readings import Kind, known, series, unknown
from switchgear.agent.sampler import Sampler
from switchgear.collector import windows as windows_of
from switchgear.collector.backlog import Backlog
from switchgear.collector.blocks import Block
from switchgear.collector.chain import TEXT_CHARS_MAX
from switchgear.collector.dictionary import dictionary_of
from switchgear.collector.messages import block_of
from switchgear.collector.series import Keys, Layout, Name, chars_of
from switchgear.collector.taps import Taps
from switchgear.collector.windows import NodeWindow, Outcome, SeriesKey, Windows
from switchgear.core.errors import Invalid, ResourceExhausted
from switchgear.v1alpha import telemetry_service_pb2 as pb

NAN = float("nan")


def keys(count: int) -> list[SeriesKey]:
    return [SeriesKey(f"metric_{number}", "", ()) for number in range(count)]


def block(
    sequence: int,
    values: dict[int, float],
    *,
    keyframe: bool = False,
    unknown: dict[int, str] | None = None,
) -> Block:
    return Block(
        time_unix_ns=sequence * 10,
        sequence=sequence,
        keyframe=keyframe,
        series_ids=np.array(list(values), "<u4").tobytes(),
        values_f64=np.array(list(values.values()), "<f8").tobytes(),
        unknown=unknown or {},
    )


def frame(sequence: int, *values: float) -> Block:
    return Block(sequence * 10, sequence, True, b"", np.array(values, "<f8").tobytes(), {})


@pytest.fixture
def window() -> NodeWindow:
    window = NodeWindow("epoch", ticks=4)
    window.define(0, keys(3))
    return window


def test_a_delta_changes_its_series_and_keeps_the_others(window: NodeWindow) -> None:
    window.apply(frame(1, 1, 2, 3))
    window.apply(block(2, {1: 20.0}))
    times, values = window.history()
    assert times.tolist() == [10, 20]
    assert values.tolist() == [[1, 2, 3], [1, 20, 3]]


def test_the_ring_keeps_the_newest_ticks(window: NodeWindow) -> None:
    window.apply(frame(1, 0, 0, 0))
    for sequence in range(2, 8):
        window.apply(block(sequence, {0: float(sequence)}))
    times, values = window.history()
    assert times.tolist() == [40, 50, 60, 70]
    assert values[:, 0].tolist() == [4, 5, 6, 7]


def test_unknown_is_nan_with_a_reason_until_a_value_comes(window: NodeWindow) -> None:
    window.apply(frame(1, 1, 2, 3))
    window.apply(block(2, {}, unknown={1: "GPU is lost"}))
    assert np.isnan(window.latest()[1])
    assert window.reasons == {1: "GPU is lost"}
    window.apply(block(3, {1: 5.0}))
    assert (window.latest().tolist(), window.reasons) == ([1, 5, 3], {})


def test_a_series_that_no_block_has_told_is_not_zero(window: NodeWindow) -> None:
    window.apply(block(1, {0: 1.0}, keyframe=True, unknown={1: "why"}))
    np.testing.assert_array_equal(window.latest(), [1, NAN, NAN])
    assert window.reasons == {1: "why", 2: "not reported yet"}


def test_nan_on_the_wire_is_unknown(window: NodeWindow) -> None:
    window.apply(frame(1, 1, NAN, 3))
    assert window.reasons == {1: "not a number"}
    window.apply(block(2, {2: NAN}))
    assert window.reasons == {1: "not a number", 2: "not a number"}


def test_after_a_gap_nothing_is_taken_before_a_keyframe_and_all_losses_count(window: NodeWindow) -> None:
    window.apply(frame(1, 1, 2, 3))
    assert window.apply(block(4, {0: 9.0})) is Outcome.NEED_KEYFRAME  # 2, 3 and itself
    assert window.apply(block(5, {0: 9.0})) is Outcome.NEED_KEYFRAME
    assert window.latest().tolist() == [1, 2, 3]
    assert window.apply(frame(6, 7, 8, 9)) is Outcome.APPLIED
    assert (window.latest().tolist(), window.blocks_lost) == ([7, 8, 9], 4)


def test_a_keyframe_repairs_its_own_gap(window: NodeWindow) -> None:
    window.apply(frame(1, 1, 2, 3))
    assert window.apply(frame(5, 4, 5, 6)) is Outcome.APPLIED
    assert window.blocks_lost == 3


def test_a_block_that_comes_again_changes_nothing(window: NodeWindow) -> None:
    window.apply(frame(1, 1, 2, 3))
    window.apply(block(2, {0: 5.0}))
    assert window.apply(frame(1, 0, 0, 0)) is Outcome.DUPLICATE
    assert (window.latest().tolist(), window.blocks_lost) == ([5, 2, 3], 0)


def test_the_dictionary_may_grow_and_be_told_again_but_not_change(window: NodeWindow) -> None:
    window.apply(frame(1, 1, 2, 3))
    window.define(0, keys(100))
    window.apply(block(2, {99: 7.0}))
    assert window.latest()[[0, 99]].tolist() == [1, 7]
    with pytest.raises(Invalid, match="another meaning"):
        window.define(1, [SeriesKey("other", "", ())])
    with pytest.raises(Invalid, match="gap"):
        window.define(101, keys(1))


@pytest.mark.parametrize(
    "bad",
    [
        Block(0, 1, True, b"", b"1234567", {}),
        Block(0, 1, True, b"123", b"", {}),
        frame(1, 1, 2, 3, 4),
        block(1, {3: 1.0}),
        block(1, {2**32 - 1: 1.0}),
        block(1, {}, unknown={3: "why"}),
        Block(0, 1, False, np.array([0, 1], "<u4").tobytes(), np.array([1.0]).tobytes(), {}),
    ],
)
def test_a_block_that_contradicts_the_dictionary_is_refused_and_changes_nothing(window: NodeWindow, bad: Block) -> None:
    with pytest.raises(Invalid):
        window.apply(bad)
    assert window.history()[0].size == 0
    assert window.apply(frame(1, 1, 2, 3)) is Outcome.APPLIED


ticks = st.lists(st.lists(st.none() | st.floats(allow_nan=False), min_size=4, max_size=4), min_size=1, max_size=12)


@pytest.mark.filterwarnings("ignore:overflow")  # beyond float32 the history is infinite, the newest value never
@given(ticks=ticks, lost=st.sets(st.integers(1, 11)))
def test_the_window_shows_what_the_sampler_saw_whatever_is_lost_on_the_way(
    ticks: list[list[float | None]], lost: set[int]
) -> None:
    sampler, window = Sampler(keyframe_every=5), NodeWindow("epoch", ticks=20)
    names = [series(f"metric_{number}", "", Kind.GAUGE) for number in range(4)]
    window.define(0, keys(4))
    for number, values in enumerate(ticks):
        readings = [unknown(k, "why") if v is None else known(k, v) for k, v in zip(names, values, strict=True)]
        made = sampler.tick(readings, number)
        if number in lost:
            continue
        if window.apply(block_of(pb.Block.FromString(made.message))) is Outcome.APPLIED:
            np.testing.assert_array_equal(window.latest(), [NAN if v is None else v for v in values])
            assert window.reasons == {at: "why" for at, v in enumerate(values) if v is None}


def merged(window: NodeWindow, *times: int) -> int:
    """Rows of the past whose columns are series 2 and 0, and one that the window does not have."""
    rows = np.array([[-time, time, 7.0] for time in times], np.float64)
    return window.merge(np.array(times, np.int64), rows, np.array([2, 0, -1]))


def test_rows_of_the_past_find_their_place_and_the_newest_stays_the_newest(window: NodeWindow) -> None:
    window.apply(frame(1, 1, 2, 3))
    window.apply(frame(5, 4, 5, 6))
    assert merged(window, 20, 30) == 2
    window.apply(block(6, {0: 7.0}))
    times, values = window.history()
    assert times.tolist() == [20, 30, 50, 60]
    np.testing.assert_array_equal(values, [[20, NAN, -20], [30, NAN, -30], [4, 5, 6], [7, 5, 6]])


def test_rows_that_are_there_already_too_old_or_newer_than_what_is_live_are_left_out(window: NodeWindow) -> None:
    assert merged(window, 20) == 0, "nothing is live yet"
    for sequence in (3, 4, 6, 7):
        window.apply(frame(sequence, 0, 0, 0))
    assert merged(window, 10, 40, 80) == 0
    assert merged(window, 50) == 1
    assert window.history()[0].tolist() == [40, 50, 60, 70]


@given(
    live=st.lists(st.integers(1, 40), min_size=1, max_size=12, unique=True).map(sorted),
    chunks=st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=6, unique=True).map(sorted), max_size=6),
    ticks=st.integers(1, 9),
)
def test_whatever_rows_come_late_the_window_has_the_newest_in_order(
    live: list[int], chunks: list[list[int]], ticks: int
) -> None:
    window = NodeWindow("epoch", ticks)
    window.define(0, keys(3))
    for sequence, time in enumerate(live, 1):
        window.apply(Block(time, sequence, True, b"", np.array([time, NAN, -time]).tobytes(), {}))
    expected = live[-ticks:]
    for chunk in chunks:
        before = set(expected)
        late = [time for time in chunk if time < expected[-1] and (len(expected) < ticks or time > expected[0])]
        expected = sorted(before.union(late))[-ticks:]
        assert merged(window, *chunk) == len(set(expected) - before)
        times, values = window.history()
        assert times.tolist() == expected
        np.testing.assert_array_equal(values, [[time, NAN, -time] for time in expected])


def test_a_clock_that_was_set_back_does_not_make_an_old_row_the_newest(window: NodeWindow) -> None:
    for sequence, time in ((1, 90), (2, 95), (3, 50)):
        window.apply(Block(time, sequence, True, b"", np.full(3, float(sequence)).tobytes(), {}))
    assert merged(window, 40) == 1
    times, values = window.history()
    assert times.tolist() == [40, 90, 95, 50]
    assert values[:, 1].tolist()[1:] == [1, 2, 3]
    assert window.latest().tolist() == [3, 3, 3]


def test_an_agent_that_lost_only_its_connection_finds_its_window_again() -> None:
    windows = Windows(ticks=4, bytes_max=1 << 20)
    window = windows.connect("nodes/a", "epoch-1")
    windows.define(window, 0, keys(2))
    assert windows.connect("nodes/a", "epoch-1") is window
    assert windows.connect("nodes/a", "epoch-2") is not window


def test_memory_is_bounded_and_nodes_that_are_gone_make_room_first() -> None:
    shared = keys(64)
    one = Windows(ticks=100, bytes_max=1 << 30)
    one.define(one.connect("nodes/a", "epoch"), 0, shared)
    windows = Windows(ticks=100, bytes_max=one.nbytes * 5 // 2)
    first, second = (windows.connect(f"nodes/{name}", "epoch") for name in "ab")
    windows.define(first, 0, shared)
    windows.define(second, 0, shared)
    third = windows.connect("nodes/c", "epoch")
    with pytest.raises(ResourceExhausted, match="3 nodes"):
        windows.define(third, 0, shared)
    windows.disconnect("nodes/a")
    windows.define(third, 0, shared)
    assert windows.get("nodes/a") is None
    assert windows.get("nodes/b") is second


def test_what_nodes_of_one_make_share_is_counted_once_and_goes_with_the_last() -> None:
    layout = Layout(tuple(Name(f"metric_{number}", "", windows_of.Kind.COUNTER, 1) for number in range(50)))
    windows = Windows(ticks=4, bytes_max=1 << 30)
    sizes = [windows.nbytes]
    for name in "abc":
        window = windows.connect(f"nodes/{name}", "epoch")
        windows.define(window, 0, Keys(layout, ((), (("node", name),))))
        sizes.append(windows.nbytes)
    assert sizes[1] - sizes[0] == layout.nbytes + sizes[2] - sizes[1]
    assert sizes[3] - sizes[2] == sizes[2] - sizes[1]
    assert window.schema.counters.tolist() == list(range(50))
    windows.define(window, 50, [SeriesKey("of_its_own", "", ())])
    assert [key.metric for key in window.series][48:] == ["metric_48", "metric_49", "of_its_own"]
    assert window.series[0].labels == (("node", "c"),)
    for name in "abc":
        windows.connect(f"nodes/{name}", "epoch-2")
    assert windows.nbytes == sum(window.nbytes for window in windows.all())


def test_an_agent_that_comes_back_may_tell_what_is_known_and_nothing_else_by_the_same_ids() -> None:
    layout = Layout((Name("power", "watts", windows_of.Kind.GAUGE, 1),))
    window = NodeWindow("epoch")
    window.define(0, Keys(layout, ((), (("gpu", "0"),))))
    known = window.series
    window.define(0, Keys(layout, ((), (("gpu", "0"),))))
    window.define(0, [SeriesKey("power", "watts", (("gpu", "0"),))])
    assert window.series is known
    with pytest.raises(Invalid):
        window.define(0, Keys(layout, ((), (("gpu", "1"),))))


def test_what_is_set_aside_ends_with_the_windows_that_it_was_for() -> None:
    windows = Windows(ticks=100, bytes_max=1 << 20)
    window = windows.connect("nodes/a", "epoch")
    empty = windows.nbytes
    windows.define(window, 0, keys(10))
    windows.define(window, 5, keys(10)[5:])
    with pytest.raises(Invalid):
        windows.define(window, 11, keys(1))
    told = windows.nbytes
    assert told - window.nbytes == pytest.approx(windows.get("nodes/a").schema.nbytes)
    assert windows.connect("nodes/a", "epoch-2") is not window
    assert windows.nbytes == empty
    windows.define(window, 10, keys(30))
    assert windows.nbytes == empty, "a stream that was replaced changes nothing"
    windows.set_aside(1000)
    windows.give_back(1000)
    assert windows.nbytes == empty


def test_a_node_has_a_window_for_each_source() -> None:
    windows = Windows(ticks=4, bytes_max=1 << 20)
    agent = windows.connect("nodes/a", "epoch")
    scraped = windows.connect("nodes/a", "epoch", source="scrape/dcgm")
    other = windows.connect("nodes/b", "epoch", source="otlp")
    assert (windows.get("nodes/a"), windows.get("nodes/b")) == (agent, None)
    assert windows.of("nodes/a") == [agent, scraped]
    assert windows.all() == [agent, scraped, other]
    assert windows.of("nodes/c") == []


def test_names_and_labels_of_a_node_are_bounded_however_many_dictionaries_bring_them() -> None:
    window = NodeWindow("epoch", ticks=4)
    long = SeriesKey("m", "", tuple((f"{number}", "x" * 256) for number in range(32)))
    fitting = TEXT_CHARS_MAX // chars_of([long])
    for number in range(fitting):
        window.define(number, [long])
    with pytest.raises(Invalid, match="characters"):
        window.define(fitting, [long])


def test_a_node_has_at_most_4096_series() -> None:
    windows = Windows(ticks=2, bytes_max=1 << 30)
    window = windows.connect("nodes/a", "epoch")
    windows.define(window, 0, keys(4096))
    with pytest.raises(ResourceExhausted, match="4097"):
        windows.define(window, 4096, keys(1))


def test_a_backlog_counts_as_memory_until_it_has_come_or_its_stream_ends() -> None:
    windows = Windows(ticks=4, bytes_max=200_000)
    window = windows.connect("nodes/a", "epoch")
    before = windows.nbytes
    backlog = Backlog(window, windows, Taps())
    told = pb.Dictionary(series=[pb.Series(id=number, metric=f"metric_{number}") for number in range(100)])

    def took(message: pb.Backlog) -> None:
        backlog.take(message, dictionary_of(message.dictionary))

    took(pb.Backlog(number=1, epoch="older", dictionary=told))
    assert windows.nbytes > before + 100 * 42
    took(pb.Backlog(number=2, epoch="older", last=True))
    assert windows.nbytes == before
    took(pb.Backlog(number=3, epoch="older", dictionary=told))
    more = pb.Dictionary(series=[pb.Series(id=number, metric="m" * 200) for number in range(100, 1000)])
    with pytest.raises(ResourceExhausted):
        took(pb.Backlog(number=4, epoch="older", dictionary=more))
    backlog.close()
    assert windows.nbytes == before


def test_a_node_is_never_turned_away_before_it_tells_what_it_has() -> None:
    windows = Windows(ticks=4, bytes_max=1)
    for name in "abc":
        windows.connect(f"nodes/{name}", "epoch")
    with pytest.raises(ResourceExhausted, match="memory_gib"):
        windows.define(windows.get("nodes/c"), 0, keys(1))
    windows.disconnect("nodes/a")
    windows.connect("nodes/d", "epoch")
    assert [window.node for window in windows.all()] == ["nodes/b", "nodes/c", "nodes/d"]
