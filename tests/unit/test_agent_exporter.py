"""What Prometheus reads."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.parser import text_string_to_metric_families

from switchgear.agent.exporter import exposition, page
from switchgear.agent.readings import Kind, known, series, unknown
from switchgear.agent.sampler import Sampler
from switchgear.core.errors import FailedPrecondition
from switchgear.core.metrics import MetricsServer

TEMPERATURE = series("DCGM_FI_DEV_GPU_TEMP", "celsius", Kind.GAUGE, ("gpu", "0"), ("modelName", 'a "b"\\\n'))
ENERGY = series("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "millijoules", Kind.COUNTER, ("gpu", "0"))
LOAD = series("node_load1", "", Kind.GAUGE)


def test_counters_keep_the_name_that_dashboards_know() -> None:
    assert exposition([known(ENERGY, 5e9), known(LOAD, 0.25)]).splitlines() == [
        "# TYPE DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION counter",
        'DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{gpu="0"} 5000000000.0',
        "# TYPE node_load1 gauge",
        "node_load1 0.25",
    ]


def test_label_values_survive_the_way_to_prometheus() -> None:
    (family,) = text_string_to_metric_families(exposition([known(TEMPERATURE, 41)]))
    assert family.samples[0].labels == {"gpu": "0", "modelName": 'a "b"\\\n'}


def test_an_unknown_series_is_absent() -> None:
    assert exposition([unknown(TEMPERATURE, "GPU is lost")]) == ""


def test_infinity_is_written_as_prometheus_reads_it() -> None:
    assert "node_load1 +Inf" in exposition([known(LOAD, float("inf"))])


def test_the_page_has_the_nodes_series_and_the_agents_own() -> None:
    sampler, registry = Sampler(), CollectorRegistry()
    sampler.tick([known(LOAD, 0.5)], 0)
    Counter("switchgear_agent_things", "things", registry=registry).inc()
    exporter = MetricsServer(lambda: page(sampler, registry), "127.0.0.1:0")
    try:
        with urllib.request.urlopen(f"http://{exporter.address}/metrics") as response:
            text = response.read().decode()
        assert "node_load1 0.5" in text
        assert "switchgear_agent_things_total 1.0" in text
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://{exporter.address}/else")
        with pytest.raises(FailedPrecondition, match="choose another port"):
            MetricsServer(lambda: b"", exporter.address)
    finally:
        exporter.close()
