"""What comes back of rows that are kept as float32, and of minutes."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from switchgear.collector.windows import Kind, NodeWindow, SeriesKey

NAN = float("nan")
S = 1_000_000_000
#: A full minute.
T0 = 60 * 1000 * S


def window_of(gauges: int = 0, counters: int = 0, *, ticks: int = 120, minutes: int = 120) -> NodeWindow:
    window = NodeWindow("epoch", ticks, minutes=minutes)
    keys = [SeriesKey(f"gauge_{number}", "", ()) for number in range(gauges)]
    keys += [SeriesKey(f"counter_{number}", "", (), Kind.COUNTER) for number in range(counters)]
    window.define(0, keys)
    return window


def tell(window: NodeWindow, times_s: list[float], *rows: list[float]) -> None:
    """rows: one for each series."""
    for time_s, *values in zip(times_s, *rows, strict=True):
        window.append(T0 + round(time_s * S), np.arange(len(values)), np.array(values, np.float64))


def late(window: NodeWindow, times_s: list[float], values: list[float]) -> int:
    """Rows of the past of the one series."""
    times = np.array([T0 + round(time_s * S) for time_s in times_s], np.int64)
    return window.merge(times, np.array(values, np.float64)[:, None], np.array([0]))


def test_a_large_counter_shows_small_steps_and_the_newest_value_is_exact() -> None:
    window = window_of(counters=1)
    told = [2.0**50 + 3 * tick for tick in range(300)]
    tell(window, list(range(300)), told)
    assert window.history()[1][:, 0].tolist() == told[-120:]
    assert window.newest.tolist() == [told[-1]]


def test_a_large_counter_that_comes_later_or_again_shows_small_steps_at_once() -> None:
    window = window_of(gauges=1, counters=2)
    told = [2.0**50 + 3 * tick for tick in range(50)]
    late_one, again = [NAN] * 7 + told[7:], [*told[:3], *[NAN] * 5, *told[8:]]
    tell(window, list(range(50)), [1.0] * 50, late_one, again)
    np.testing.assert_array_equal(window.history()[1][:, 1:], np.array([late_one, again]).T)


def test_a_counter_that_is_reset_shows_what_it_counts_from_then_on() -> None:
    window = window_of(counters=2)
    told = [1e15, 1e15 + 7, 3.0, 4.0, 1.0, 2.0]
    tell(window, list(range(6)), told, told[::-1])
    np.testing.assert_allclose(window.history()[1], np.array([told, told[::-1]]).T, rtol=2**-23)
    assert window.history()[1][2:, 0].tolist() == told[2:]


def test_unknown_and_infinite_values_come_back() -> None:
    window = window_of(gauges=1, counters=1)
    told = [NAN, 5.0, NAN, np.inf, -np.inf, 7.0]
    tell(window, list(range(6)), told, told)
    np.testing.assert_array_equal(window.history()[1], np.array([told, told]).T)


def test_what_float32_does_not_have_is_unknown_in_history_and_never_infinite() -> None:
    window = window_of(gauges=1, counters=1)
    gauge, counter = [1.0, 1e39, -1e300, 2.0, np.inf], [1e300, 1e300, 5.0, 6.0, 7.0]
    with warnings.catch_warnings(action="error"):
        tell(window, [0, 1, 2, 3, 4], gauge, counter)
        window.merge(np.array([T0 + S // 2]), np.array([[1.7e308, 1.7e308]]), np.arange(2))
        (minutes, history) = window.minutes(), window.history()[1]
    np.testing.assert_array_equal(history[:, 0], [1, NAN, NAN, NAN, 2, np.inf])
    np.testing.assert_array_equal(history[3:, 1], [5, 6, 7])
    assert not np.isinf(history[:, 1]).any()
    assert minutes.mean[0].tolist() == [np.inf, 6]
    assert minutes.max[0].tolist() == [np.inf, 7]
    tell(window, [5], [1e40], [8])
    assert window.newest.tolist() == [1e40, 8], "the newest value is exact"


#: Within what float32 has; what is smaller than its smallest normal number is 0.
numbers = st.floats(-1e38, 1e38, allow_subnormal=False).filter(lambda x: x == 0 or abs(x) > 1e-37) | st.just(NAN)


@settings(max_examples=30)
@given(rows=st.lists(st.tuples(numbers, numbers), min_size=1, max_size=30), ticks=st.integers(1, 12))
def test_every_value_is_right_to_float32_whatever_came_before_it(rows: list[tuple[float, float]], ticks: int) -> None:
    window = window_of(gauges=1, counters=1, ticks=ticks)
    for number, row in enumerate(rows):
        window.append(T0 + number, np.arange(2), np.array(row))
        np.testing.assert_array_equal(window.newest, row)
        times, values = window.history()
        assert times.tolist() == list(range(T0, T0 + number + 1))[-ticks:]
        np.testing.assert_allclose(values, np.array(rows[: number + 1])[-ticks:], rtol=2**-22, atol=1e-37)
    for columns in ([1], [0], [1, 0]):
        np.testing.assert_array_equal(window.history(np.array(columns))[1], values[:, columns])


def test_each_minute_has_what_was_known_in_it() -> None:
    window = window_of(gauges=2)
    times = [0, 20, 59, 60, 61, 200]
    tell(window, times, [1, 5, 3, NAN, NAN, 9], [NAN, 4, NAN, 7, 8, NAN])
    minutes = window.minutes()
    assert ((minutes.times - T0) // S).tolist() == [0, 60, 180], "a minute without a row is not there"
    np.testing.assert_array_equal(minutes.min, [[1, 4], [NAN, 7], [9, NAN]])
    np.testing.assert_array_equal(minutes.mean, [[3, 4], [NAN, 7.5], [9, NAN]])
    np.testing.assert_array_equal(minutes.max, [[5, 4], [NAN, 8], [9, NAN]])
    np.testing.assert_array_equal(minutes.last, [[3, 4], [NAN, 8], [9, NAN]])
    np.testing.assert_array_equal(window.minutes(np.array([1])).mean, minutes.mean[:, 1:])
    assert minutes.mean.dtype == np.float32


def test_looking_while_a_minute_goes_on_changes_nothing() -> None:
    often, once = window_of(gauges=1), window_of(gauges=1)
    for tick in range(150):
        for window in (often, once):
            tell(window, [tick], [float(tick % 17)])
        often.minutes()
    for name in ("times", "min", "max", "last"):
        np.testing.assert_array_equal(getattr(often.minutes(), name), getattr(once.minutes(), name))
    np.testing.assert_allclose(often.minutes().mean, once.minutes().mean, rtol=1e-6)


def test_the_oldest_minutes_go_and_a_clock_that_was_wrong_does_not_keep_them() -> None:
    window = window_of(gauges=1, ticks=4, minutes=3)
    tell(window, [60.0 * minute for minute in range(5)], [float(minute) for minute in range(5)])
    assert window.minutes().last[:, 0].tolist() == [2, 3, 4]
    tell(window, [60.0 * 1000, 300.0], [99.0, 5.0])
    minutes = window.minutes()
    assert ((minutes.times - T0) // (60 * S)).tolist() == [3, 5]
    tell(window, [360.0], [6.0])
    assert window.minutes().last[:, 0].tolist() == [5, 6]


def test_samples_of_an_outage_are_in_their_minutes_though_the_rows_have_no_room() -> None:
    window = window_of(gauges=1, ticks=10)
    tell(window, [0, 10], [1, 3])
    tell(window, list(range(240, 250)), [float(tick) for tick in range(10)])
    assert late(window, [30, 70, 90, 130], [2, 10, 20, 7]) == 0
    assert late(window, [245.5, 110, 9999], [100, 30, 5]) == 1
    minutes = window.minutes()
    assert ((minutes.times - T0) // S).tolist() == [0, 60, 120, 240]
    assert minutes.min[:, 0].tolist() == [1, 10, 7, 0]
    assert minutes.max[:, 0].tolist() == [3, 30, 7, 100]
    assert minutes.mean[:2, 0].tolist() == [2, 20]
    assert minutes.last[:, 0].tolist() == [2, 30, 7, 9], "the newest of a minute, in whichever order they came"
    assert window.history()[1][:, 0].tolist() == [1, 2, 3, 4, 5, 100, 6, 7, 8, 9]


def test_series_that_come_later_are_unknown_before() -> None:
    window = window_of(gauges=1, ticks=4)
    tell(window, [0, 60, 61], [1, 2, 3])
    window.define(1, [SeriesKey(f"more_{number}", "", ()) for number in range(20)])
    window.append(T0 + 62 * S, np.array([20]), np.array([7.0]))
    _, values = window.history()
    assert values.shape == (4, 21)
    np.testing.assert_array_equal(values[:, [0, 20]], [[1, NAN], [2, NAN], [3, NAN], [3, 7]])
    np.testing.assert_array_equal(window.minutes().last[:, [0, 20]], [[1, NAN], [3, 7]])
    assert window.reasons == dict.fromkeys(range(1, 20), "not reported yet")


@pytest.mark.filterwarnings("error")
def test_unknown_values_make_no_noise() -> None:
    window = window_of(gauges=2, counters=2)
    for minute in range(3):
        tell(window, [60 * minute, 60 * minute + 1], *[[NAN, NAN]] * 4)
    assert np.isnan(window.minutes().mean).all()


def test_nodes_with_the_same_series_share_them() -> None:
    keys = [SeriesKey(f"metric_{number}", "", ()) for number in range(3)]
    one, other, longer = NodeWindow("a"), NodeWindow("b"), NodeWindow("c")
    one.define(0, keys)
    other.define(0, keys[:2])
    other.define(2, keys[2:])
    longer.define(0, [*keys, SeriesKey("more", "", ())])
    assert one.schema is other.schema
    assert one.schema is not longer.schema
