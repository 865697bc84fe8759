"""What Prometheus reads."""

from __future__ import annotations

import gzip
import subprocess
import urllib.error
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.parser import text_string_to_metric_families
from prometheus_stack import program

from switchgear.agent.exporter import Exporter, UserLabels
from switchgear.agent.readings import Kind, Reading, known, series, unknown
from switchgear.core.errors import FailedPrecondition
from switchgear.core.metrics import MetricsServer

GPU = (("gpu", "0"), ("UUID", "GPU-0"))
TEMPERATURE = series("DCGM_FI_DEV_GPU_TEMP", "celsius", Kind.GAUGE, *GPU, ("modelName", 'a "b"\\\n'))
ENERGY = series("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "millijoules", Kind.COUNTER, *GPU)
MIG = series(
    "DCGM_FI_PROF_GR_ENGINE_ACTIVE", "ratio", Kind.GAUGE, *GPU, ("GPU_I_PROFILE", "1g.10gb"), ("GPU_I_ID", "5")
)
LOAD = series("node_load1", "", Kind.GAUGE)
OURS = series("switchgear_thing", "", Kind.GAUGE)


class World:
    """An exporter and what it shows."""

    def __init__(self, *readings: Reading, host_metrics: bool = True) -> None:
        self.readings = list(readings)
        self.users: UserLabels = {}
        self.registry = CollectorRegistry()
        self.exporter = Exporter(
            lambda: list(self.readings), self.registry, lambda: self.users, host_metrics=host_metrics
        )

    def text(self) -> str:
        return self.exporter.page().decode()

    def samples(self) -> dict[str, dict[str, str]]:
        families = text_string_to_metric_families(self.text())
        # This parser gives each counter the suffix; Prometheus itself leaves names alone.
        return {sample.name.removesuffix("_total"): sample.labels for family in families for sample in family.samples}


def test_counters_keep_the_name_that_dashboards_know() -> None:
    assert World(known(ENERGY, 5e9), known(LOAD, 0.25)).text().splitlines() == [
        "# HELP DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION Energy since the driver was loaded",
        "# TYPE DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION counter",
        'DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{gpu="0",UUID="GPU-0"} 5000000000.0',
        "# HELP node_load1 As node_exporter's metric of this name",
        "# TYPE node_load1 gauge",
        "node_load1 0.25",
    ]


def test_series_of_one_metric_stand_together_in_whatever_order_they_came() -> None:
    other = series("DCGM_FI_DEV_GPU_TEMP", "celsius", Kind.GAUGE, ("gpu", "1"))
    lines = World(known(TEMPERATURE, 41), known(LOAD, 1), known(other, 42)).text().splitlines()
    assert [line.partition("{")[0].partition(" ")[0] for line in lines if line[0] != "#"] == [
        "DCGM_FI_DEV_GPU_TEMP",
        "DCGM_FI_DEV_GPU_TEMP",
        "node_load1",
    ]


def test_label_values_survive_the_way_to_prometheus() -> None:
    assert World(known(TEMPERATURE, 41)).samples()["DCGM_FI_DEV_GPU_TEMP"]["modelName"] == 'a "b"\\\n'


def test_a_series_is_absent_as_long_as_it_is_unknown() -> None:
    world = World(known(TEMPERATURE, 41))
    world.text()
    world.readings[0] = unknown(TEMPERATURE, "GPU is lost")
    assert world.text() == ""
    world.readings[0] = known(TEMPERATURE, 42)
    assert 'modelName="a \\"b\\"\\\\\\n"} 42.0' in world.text()


def test_new_series_are_shown_beside_the_old_ones() -> None:
    world = World(known(LOAD, 1))
    world.text()
    world.readings.append(known(OURS, 2))
    assert "node_load1 1.0\n" in world.text()
    assert "switchgear_thing 2.0\n" in world.text()


def test_infinity_is_written_as_prometheus_reads_it() -> None:
    assert "node_load1 +Inf" in World(known(LOAD, float("inf"))).text()
    assert "node_load1 -Inf" in World(known(LOAD, float("-inf"))).text()


def test_a_second_scrape_within_a_tick_gets_the_same_text_and_the_agents_own_newest_numbers() -> None:
    world = World(known(LOAD, 1))
    things = Counter("switchgear_agent_things", "things", registry=world.registry)
    first = world.exporter._node()
    things.inc()
    assert world.exporter._node() is first
    assert "switchgear_agent_things_total 1.0" in world.text()


def test_who_uses_a_gpu_is_shown_at_its_series_until_another_does() -> None:
    world = World(known(ENERGY, 1), known(MIG, 0.5), known(LOAD, 1))
    world.users = {("0", ""): (("hpc_job", "17"),), ("0", "5"): (("pod", "a"), ("namespace", "b"))}
    samples = world.samples()
    assert samples["DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"] == {"gpu": "0", "UUID": "GPU-0", "hpc_job": "17"}
    assert samples["DCGM_FI_PROF_GR_ENGINE_ACTIVE"]["pod"] == "a"
    assert "hpc_job" not in samples["DCGM_FI_PROF_GR_ENGINE_ACTIVE"], "that of the MIG instance alone"
    assert samples["node_load1"] == {}
    world.users = {("0", ""): (("hpc_job", "18"),)}
    assert world.samples()["DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"]["hpc_job"] == "18"


def test_what_node_exporter_shows_can_be_left_to_it() -> None:
    assert set(World(known(LOAD, 1), known(ENERGY, 1), host_metrics=False).samples()) == {
        "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"
    }


def test_promtool_reads_the_page_and_finds_nothing_but_dcgm_exporters_names() -> None:
    page = World(known(ENERGY, 1), known(TEMPERATURE, 41), known(MIG, 0.5), known(LOAD, 1)).exporter.page()
    checked = subprocess.run([program("promtool"), "check", "metrics"], input=page, capture_output=True, check=False)
    complaints = checked.stderr.decode().splitlines()
    assert complaints == [
        "DCGM_FI_DEV_GPU_TEMP label names should be written in 'snake_case' not 'camelCase'",
        'DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION counter metrics should have "_total" suffix',
    ]


def test_the_page_is_served_small_to_who_can_unpack_it() -> None:
    world = World(known(LOAD, 0.5))
    Counter("switchgear_agent_things", "things", registry=world.registry).inc()
    server = MetricsServer(world.exporter.page, "127.0.0.1:0")
    try:
        url = f"http://{server.address}/metrics"
        with urllib.request.urlopen(url) as response:
            page = response.read()
            assert "Content-Encoding" not in response.headers
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept-Encoding": "gzip"})) as response:
            assert response.headers["Content-Encoding"] == "gzip"
            assert gzip.decompress(response.read()) == page
        assert b"node_load1 0.5" in page
        assert b"switchgear_agent_things_total 1.0" in page
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://{server.address}/else")
        with pytest.raises(FailedPrecondition, match="choose another port"):
            MetricsServer(lambda: b"", server.address)
    finally:
        server.close()
