"""What a real Prometheus makes of what it is sent."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from export_world import START_NS, Exporting, exporting, key, window
from prometheus_stack import Prometheus

from switchgear.collector.export.settings import RemoteWrite

START_S = START_NS / 1e9
NAN = float("nan")


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    started = Prometheus(tmp_path_factory.mktemp("prometheus"), {}, "--web.enable-remote-write-receiver")
    yield started
    started.close()


def target(prometheus: Prometheus) -> RemoteWrite:
    return RemoteWrite(url=f"http://{prometheus.address}/api/v1/write", name="sink", interval_s=0)


def at(prometheus: Prometheus, expression: str, second: float) -> list[tuple[dict[str, str], object]]:
    """What an instant query gives at so many seconds after START_NS."""
    answer = prometheus.http.get("/api/v1/query", params={"query": expression, "time": START_S + second}).json()
    assert answer["status"] == "success", answer
    return [(series["metric"], series.get("values", series.get("value"))) for series in answer["data"]["result"]]


def sent(world: Exporting) -> float:
    return world.counted("remote_write_samples_total", outcome="sent")


async def test_it_gives_back_exactly_what_came(prometheus: Prometheus) -> None:
    keys = [key("exact_watts", ("gpu", str(gpu)), ("UUID", f"GPU-{gpu}")) for gpu in range(300)]
    rng = np.random.default_rng(5)
    rows = rng.standard_normal((3, 8, 300)) * 10.0 ** rng.integers(-30, 30, (3, 8, 300))
    async with exporting(target(prometheus)) as world:
        nodes = [window(f"n{number}", *keys) for number in range(3)]
        for second in range(8):
            for number, node in enumerate(nodes):
                world.tick(node, second, *rows[number, second])
    assert sent(world) == rows.size
    found = at(prometheus, "exact_watts[1m]", 8)
    assert len(found) == 900
    for labels, values in found:
        assert labels["instance"] == labels["node"]
        assert (labels["job"], labels["UUID"]) == ("switchgear", f"GPU-{labels['gpu']}")
        expected = rows[int(labels["node"][1:]), :, int(labels["gpu"])]
        assert isinstance(values, list)
        assert [(time_s, float(value)) for time_s, value in values] == [
            (START_S + second, value) for second, value in enumerate(expected)
        ]


async def test_one_that_knows_no_remote_write_2_is_told_apart_from_one_that_takes_it(prometheus: Prometheus) -> None:
    newer = target(prometheus).model_copy(update={"protocol": "2.0"})
    async with exporting(newer) as world:
        world.tick(window("n", key("newer")), 0, 1.0)
    arrived = len(at(prometheus, "newer", 0))
    assert (sent(world), world.counted("remote_write_samples_lost_total", reason="refused")) == (arrived, 1 - arrived)


async def test_a_series_ends_when_it_becomes_unknown_and_goes_on_when_it_is_back(prometheus: Prometheus) -> None:
    async with exporting(target(prometheus)) as world:
        node = window("n", key("fading", ("gpu", "0")), key("fading", ("gpu", "1")))
        for second, second_gpu in enumerate([5.0, 6.0, NAN, NAN, 9.0]):
            world.tick(node, second, 1.0, second_gpu)

    def gpus(second: float) -> dict[str, object]:
        return {labels["gpu"]: value for labels, value in at(prometheus, "fading", second)}

    assert [set(gpus(second)) for second in (1, 1.9, 2, 3, 4)] == [{"0", "1"}, {"0", "1"}, {"0"}, {"0"}, {"0", "1"}]


async def test_all_series_of_a_node_that_fell_silent_end_with_its_last_row(prometheus: Prometheus) -> None:
    async with exporting(target(prometheus)) as world:
        silent, other = window("silent", key("alive")), window("other", key("alive"))
        world.tick(silent, 0, 1)
        world.tick(other, 0, 1)
        for second in range(1, 40):
            world.clock.advance(1)
            world.tick(other, second, 1)
        await world.until(lambda: {labels["node"] for labels, _ in at(prometheus, "alive", 30)} == {"other"})
        assert len(at(prometheus, "alive", 0)) == 2


async def test_an_outage_that_it_does_not_take_costs_no_live_sample(prometheus: Prometheus) -> None:
    async with exporting(target(prometheus)) as world:
        node = window("n", key("gap"))
        world.tick(node, 20, 20)
        world.late(node, [10, 11], [[10.0], [11.0]])
        world.tick(node, 21, 21)
    assert at(prometheus, "gap[1m]", 30)[0][1] == [[START_S + 20, "20"], [START_S + 21, "21"]]
    assert sent(world) == 2
    assert world.counted("remote_write_samples_lost_total", reason="out_of_order") == 2
