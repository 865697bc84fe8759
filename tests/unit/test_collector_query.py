"""Which series a selector means, and what comes back of them at which times."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import numpy as np
import pytest

from switchgear.cli.query import sparkline
from switchgear.collector.queries import WAITING_MAX, Queries, grid_of
from switchgear.collector.query import SERIES_AT_ONCE, Grid, Reduction, select
from switchgear.collector.selector import parse
from switchgear.collector.series import Keys, Labels, Layout, Name
from switchgear.collector.windows import NodeWindow, SeriesKey, Windows
from switchgear.core.clock import ManualClock
from switchgear.core.errors import Invalid, ResourceExhausted
from switchgear.v1alpha import telemetry_service_pb2 as pb

NAN = float("nan")
S = 1_000_000_000
#: A full minute.
T0 = 60 * 1000 * S


def laid_out(keys: Sequence[SeriesKey]) -> Keys:
    """The same as agents tell them."""
    sets: dict[Labels, int] = {}
    names = tuple(Name(key.metric, key.unit, key.kind, sets.setdefault(key.labels, len(sets))) for key in keys)
    return Keys(Layout(names), tuple(sets))


def fleet(*nodes: str, gpus: int = 2, as_told: bool = False) -> Windows:
    windows = Windows(bytes_max=1 << 30)
    keys = [SeriesKey(name, "", (("gpu", str(gpu)),)) for name in ("temp", "power") for gpu in range(gpus)]
    told = [*keys, SeriesKey("up", "", ())]
    for node in nodes:
        windows.define(windows.connect(f"nodes/{node}", "epoch"), 0, laid_out(told) if as_told else told)
    scraped = windows.connect(f"nodes/{nodes[0]}", "epoch", source="scrape/dcgm")
    windows.define(scraped, 0, keys[:1])
    return windows


def meant(text: str, windows: Windows) -> list[str]:
    selector = parse(text)
    return [
        " ".join([window.node[6:], window.source, window.series[at].metric, *dict(window.series[at].labels).values()])
        for window in windows.all()
        for at in selector.columns(window)
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("up", ["a agent up", "b agent up"]),
        ('temp{node="a"}', ["a agent temp 0", "a agent temp 1", "a scrape/dcgm temp 0"]),
        ("temp{ node = 'a' , source=\"agent\",}", ["a agent temp 0", "a agent temp 1"]),
        ('{__name__=~"t.*", gpu!="0"}', ["a agent temp 1", "b agent temp 1"]),
        ('temp{gpu=~"1|2",node!~"[b-z]"}', ["a agent temp 1"]),
        ("{source=~`scrape/.+`}", ["a scrape/dcgm temp 0"]),
        ('up{gpu=""}', ["a agent up", "b agent up"]),
        ('up{gpu=~".+"}', []),
        ('temp{node=~"[ab]", node!="a", gpu="0"}', ["b agent temp 0"]),
        ('{__name__="up", __name__="temp"}', []),
        ('temp{node=~"A"}', []),
        ('temp{node=~"(?i)B", gpu="0"}', ["b agent temp 0"]),
        (r'{gpu="\"\n\\"}', []),
    ],
)
@pytest.mark.parametrize("as_told", [False, True])
def test_a_selector_means_what_it_means_in_promql(text: str, expected: list[str], as_told: bool) -> None:
    assert meant(text, fleet("a", "b", as_told=as_told)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "every series"),
        ("{}", "every series"),
        ('{gpu=~".*"}', "every series"),
        ("temp{", "column 6: expected the name"),
        ('temp{gpu="1"', "column 13: expected `,` or `}`"),
        ('temp{gpu~"1"}', "column 9: expected `=`"),
        ("temp{gpu=1}", "column 10: expected a value in quotes"),
        ('temp{gpu="1}', "column 10: expected a value in quotes"),
        ('temp{gpu=~"("}', "column 11: no regular expression of RE2: missing"),
        ('temp{gpu=~"(?=a)"}', "column 11: no regular expression"),
        (r'temp{gpu=~"\d"}', r"column 12: unknown escape \\d"),
        ("temp[5m]", "column 5: nothing may follow"),
        ("5m", "column 1: expected a metric"),
        ("temp" * 2000, "characters"),
        ('temp{gpu=~"(((((a{1,99}){1,99}){1,99}){1,99}){1,99})"}', "no regular expression"),
        ("temp{" + ",".join(['a="b"'] * 40) + "}", "matchers"),
    ],
)
def test_what_is_no_selector_is_told_with_its_column(text: str, message: str) -> None:
    with pytest.raises(Invalid, match=message):
        parse(text)


def test_an_expression_that_would_take_others_forever_takes_milliseconds() -> None:
    value = "a" * 256
    window = NodeWindow("epoch", node="nodes/a")
    window.define(0, [SeriesKey("temp", "", (("label", value),))])
    begun_s = time.process_time()
    assert not len(parse('temp{label=~"(a*)*(a|aa)*(.*a.*)*b"}').columns(window))
    assert time.process_time() - begun_s < 1


def tell(window: NodeWindow, times_s: list[float], values: list[float]) -> None:
    for time_s, value in zip(times_s, values, strict=True):
        window.append(T0 + round(time_s * S), np.array([0]), np.array([value]))


def values(
    window: NodeWindow, start_s: int, end_s: int, step_s: int, reduction: Reduction = Reduction.LAST
) -> list[float]:
    grid = Grid.covering(T0 + start_s * S, T0 + end_s * S, step_s * S)
    (found,) = select([window], parse("m"), grid, reduction)
    assert found.values.shape == (len(grid.times), 1)
    return found.values[:, 0].tolist()


@pytest.fixture
def window() -> NodeWindow:
    window = NodeWindow("epoch", 10, node="nodes/a")
    window.define(0, [SeriesKey("m", "", ())])
    return window


def test_values_within_a_step_become_one(window: NodeWindow) -> None:
    tell(window, [0, 1, 2, 3, 4, 7, 8], [5, 1, 3, NAN, 7, NAN, NAN])
    expected = {
        Reduction.LAST: [3, 7, NAN, NAN],
        Reduction.MIN: [1, 7, NAN, NAN],
        Reduction.MAX: [5, 7, NAN, NAN],
        Reduction.MEAN: [3, 7, NAN, NAN],
    }
    for reduction, wanted in expected.items():
        np.testing.assert_array_equal(values(window, 1, 11, 3, reduction), wanted)
    np.testing.assert_array_equal(values(window, 20, 22, 1), [NAN] * 3)


def test_samples_that_come_a_little_early_or_late_leave_no_holes_and_missing_ones_do(window: NodeWindow) -> None:
    tell(window, [0.99, 2.01, 2.99, 4.0, 6.02, 7.0], [1, 2, 3, 4, 6, 7])
    np.testing.assert_array_equal(values(window, 0, 7, 1), [1, 1, 3, 3, 4, NAN, 6, 7])


def test_where_full_resolution_ends_the_minutes_go_on(window: NodeWindow) -> None:
    tell(window, list(range(0, 300, 20)), [float(tick) for tick in range(0, 300, 20)])
    assert window.history()[0][0] == T0 + 100 * S
    assert values(window, 0, 299, 60) == [40, 100, 160, 220, 280]
    assert values(window, 0, 299, 60, Reduction.MIN) == [0, 60, 120, 180, 240]
    assert values(window, 0, 299, 150, Reduction.MEAN) == [80, 220], "a minute counts where it begins"
    np.testing.assert_array_equal(values(window, 50, 120, 10), [NAN, 100, *[NAN] * 3, 100, NAN, 120])


def test_a_step_in_which_full_resolution_begins_and_no_minute_does_keeps_its_samples(window: NodeWindow) -> None:
    tell(window, [float(tick) for tick in range(25)], [float(tick) for tick in range(25)])
    assert window.history()[0][0] == T0 + 15 * S
    np.testing.assert_array_equal(values(window, 0, 24, 10), [24, 19, 24])


def test_a_window_with_room_has_no_need_of_minutes(window: NodeWindow) -> None:
    tell(window, [0, 61, 122], [1, 2, 3])
    np.testing.assert_array_equal(values(window, 0, 122, 61), [1, 2, 3])


def test_a_window_with_many_series_is_answered_in_parts_that_are_short() -> None:
    window = NodeWindow("epoch", node="nodes/a")
    window.define(0, [SeriesKey("m", "", (("at", f"{at:03}"),)) for at in range(300)])
    window.append(T0, np.arange(300), np.arange(300.0))
    found = list(select([window], parse("m"), Grid(T0, S, 1), Reduction.LAST))
    assert max(len(part.series) for part in found) == SERIES_AT_ONCE
    assert [key for part in found for key in part.series] == list(window.series)
    assert np.concatenate([part.values[0] for part in found]).tolist() == list(range(300))


NOW = T0 + 7200 * S


def test_a_query_of_nothing_special_is_of_the_last_two_minutes_by_the_second() -> None:
    assert grid_of(pb.QueryRequest(), NOW) == Grid(NOW - 120 * S, S, 121)
    assert grid_of(pb.QueryRequest(range_seconds=3600), NOW) == Grid(NOW - 3600 * S, 60 * S, 61)
    back = pb.QueryRequest()
    back.start_time.FromNanoseconds(NOW - 3600 * S + 5)
    assert grid_of(back, NOW) == Grid(NOW - 3600 * S, 60 * S, 61)
    back.step_seconds = 0.5
    back.end_time.FromNanoseconds(NOW - 3599 * S)
    assert grid_of(back, NOW) == Grid(NOW - 3600 * S, S // 2, 3)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"step_seconds": NAN}, "step_seconds"),
        ({"step_seconds": -1}, "step_seconds"),
        ({"step_seconds": 1e300}, "step_seconds"),
        ({"start_time": {"seconds": 10}, "step_seconds": 1}, "steps are more than 10000"),
        ({"start_time": {"seconds": -1}}, "years"),
        ({"range_seconds": NAN}, "range_seconds"),
        ({"range_seconds": 60, "start_time": {"seconds": 10}}, "one of them"),
        ({"end_time": {"seconds": 2**62}}, "years"),
        ({"end_time": {"seconds": 50}, "start_time": {"seconds": 60}}, "after"),
    ],
)
def test_times_that_make_no_sense_are_refused(request_: dict[str, object], message: str) -> None:
    with pytest.raises(Invalid, match=message):
        grid_of(pb.QueryRequest(**request_), NOW)


async def test_an_answer_that_is_too_large_is_refused_with_the_remedy_and_so_are_too_many_askers() -> None:
    windows = fleet("a", gpus=400)
    window = windows.get("nodes/a")
    window.append(NOW, np.arange(801), np.arange(801.0))
    queries = Queries(windows, ManualClock(NOW))
    found = await queries.answer(pb.QueryRequest(selector="temp"))
    assert [one.labels["gpu"] for one in found.series][:400] == [str(gpu) for gpu in range(400)]
    assert (found.series[7].values[-1], found.series[7].node, len(found.series[7].values)) == (7, "nodes/a", 121)
    with pytest.raises(Invalid, match="name fewer series, a shorter time or a longer step"):
        await queries.answer(pb.QueryRequest(selector="temp", step_seconds=0.05))
    # The first takes more than its slice, so the others come while it goes on.
    requests = [pb.QueryRequest(selector="temp", step_seconds=0.2), *[pb.QueryRequest(selector="up")] * WAITING_MAX]
    asked = [asyncio.create_task(queries.answer(request)) for request in requests]
    ended = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(one) for one in ended] == [pb.QueryResponse] * WAITING_MAX + [ResourceExhausted]


def test_a_sparkline_shows_the_shape_and_what_is_unknown() -> None:
    assert sparkline([0, 7, NAN, 3.5]) == "▁█·▅"
    assert sparkline([5, 5]) == "▁▁"
    assert sparkline([NAN]) == "·"
    assert sparkline([0.0] * 60 + [1.0] * 60) == "▁" * 20 + "█" * 20
