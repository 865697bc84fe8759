"""What it costs the collector to take in others' metrics: CPU of one process, from the bytes to the row of the window.

    python benchmarks/imports.py [--rounds 200]

A node with eight GPUs and 40 series each, as dcgm-exporter shows them; every value changes. By scrape: the page is there, HTTP is not measured.
By OTLP: the request is there as bytes, gRPC is not measured. Beside them the page through prometheus_client's parser alone. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from switchgear.collector.imports.exposition import Reader
from switchgear.collector.imports.feed import Feed
from switchgear.collector.imports.metrics import ImportMetrics
from switchgear.collector.imports.points import Keys, read
from switchgear.collector.imports.settings import OtlpImport
from switchgear.collector.taps import Taps
from switchgear.collector.windows import Windows

GPUS, METRICS = 8, 40
SERIES = GPUS * METRICS
_SECOND_NS = 1_000_000_000


def labels(gpu: int) -> dict[str, str]:
    uuid = f"GPU-{gpu}04ac76c-d9cf-fef3-62e9-d92044ab6e52"
    told = {"gpu": str(gpu), "UUID": uuid, "pci_bus_id": f"00000000:{gpu}B:00.0", "device": f"nvidia{gpu}"}
    return told | {"modelName": "NVIDIA H100 80GB HBM3", "Hostname": "gpu-01", "DCGM_FI_DRIVER_VERSION": "550.54.15"}


def page(round_: int) -> str:
    lines = list[str]()
    for metric in range(METRICS):
        lines.append(f"# TYPE DCGM_FI_DEV_METRIC_{metric} gauge")
        for gpu in range(GPUS):
            named = ",".join(f'{name}="{value}"' for name, value in labels(gpu).items())
            lines.append(f"DCGM_FI_DEV_METRIC_{metric}{{{named}}} {round_ + gpu}.25")
    return "\n".join(lines) + "\n"


def request(round_: int) -> bytes:
    made = ExportMetricsServiceRequest()
    resource = made.resource_metrics.add()
    resource.resource.attributes.add(key="host.name").value.string_value = "gpu-01"
    scope = resource.scope_metrics.add()
    for metric in range(METRICS):
        points = scope.metrics.add(name=f"DCGM_FI_DEV_METRIC_{metric}").gauge.data_points
        for gpu in range(GPUS):
            point = points.add(time_unix_nano=(round_ + 1) * 10 * _SECOND_NS, as_double=round_ + gpu + 0.25)
            for name, value in labels(gpu).items():
                point.attributes.add(key=name).value.string_value = value
    return made.SerializeToString()


def us_a_sample(rounds: int, work: Callable[[int], None]) -> float:
    """After one round that is not counted: names are learnt once."""
    work(0)
    begin_s = time.process_time()
    for round_ in range(1, rounds):
        work(round_)
    return round((time.process_time() - begin_s) / (rounds - 1) / SERIES * 1e6, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    rounds: int = parser.parse_args().rounds
    windows, metrics = Windows(bytes_max=1024**3), ImportMetrics(CollectorRegistry())
    by_scrape = Feed(windows, Taps(), metrics, "nodes/a", "scrape/dcgm")
    by_otlp = Feed(windows, Taps(), metrics, "nodes/a", "otlp")
    pages, requests = [page(number) for number in range(rounds)], [request(number) for number in range(rounds)]
    reader, keys, settings = Reader(), Keys(), OtlpImport()

    def scrape(round_: int) -> None:
        now, found = (round_ + 1) * 15 * _SECOND_NS, reader.read(pages[round_])
        by_scrape.put(now, by_scrape.ids(found.keys, now), np.array(found.values), now)

    def otlp(round_: int) -> None:
        nodes, _ = read(ExportMetricsServiceRequest.FromString(requests[round_]), settings, keys)
        (points,) = nodes.values()
        now = points.times[0]
        by_otlp.put(now, by_otlp.ids(points.keys, now), np.array(points.values), now)

    def library(round_: int) -> None:
        for _ in text_string_to_metric_families(pages[round_]):
            pass

    told = {
        "scrape_us_per_sample": us_a_sample(rounds, scrape),
        "otlp_us_per_sample": us_a_sample(rounds, otlp),
        "prometheus_client_us_per_sample": us_a_sample(min(rounds, 10), library),
    }
    print(
        json.dumps({"series": SERIES, "page_bytes": len(pages[0]), "request_bytes": len(requests[0]), **told}, indent=2)
    )


if __name__ == "__main__":
    main()
