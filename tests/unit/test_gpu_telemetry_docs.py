"""docs/gpu-telemetry.md says of each metric where it comes from, as the code has it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from switchgear.agent.nvml import calls, fields, gpm
from switchgear.agent.sources.gpu_metrics import METRICS

DOCUMENT = Path(__file__).parents[2] / "docs/gpu-telemetry.md"
_ROW = re.compile(r"\| `(\w+)` \| (.*?) \| (.*?) \| (.*?) \|")
#: What is computed from several readings, or comes from events.
_DERIVED = {
    "DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL": ("fields 138 + 139", "tick"),
    "DCGM_FI_DEV_NVLINK_BANDWIDTH_L0": ("fields 138 + 139 of link 0", "15 s"),
    "switchgear_gpu_info": (
        "nvmlDeviceGetSerial, GetVbiosVersion, GetInforomVersion, GetBrand; labels as dcgm-exporter's",
        "once",
    ),
    "DCGM_FI_DEV_XID_ERRORS": ("kernel log and driver events", "tick"),
    "DCGM_EXP_XID_ERRORS_COUNT": ("kernel log and driver events", "tick"),
    "DCGM_FI_DEV_VGPU_LICENSE_STATUS": ("constant", "tick"),
    "DCGM_EXP_CLOCK_EVENTS_COUNT": ("bits of `DCGM_FI_DEV_CLOCKS_EVENT_REASONS`", "15 s"),
    "switchgear_gpu_nvlinks_active": ("field 165 of each link, else nvmlDeviceGetNvLinkState", "15 s"),
    "switchgear_gpu_nvlink_up": ("field 165 of each link, else nvmlDeviceGetNvLinkState", "15 s"),
    "switchgear_gpu_nvlink_errors_total": ("fields 161-163, 206-212 and 214 of one link", "15 s"),
}


def sources() -> Iterator[tuple[str, str, str]]:
    """Metric, where it comes from, and how often."""
    for pace, batch, direct in (("tick", fields.FAST, calls.FAST), ("15 s", fields.SLOW, calls.SLOW)):
        instead = {metric: call.ways[0].function for call in calls.INSTEAD_OF_FIELDS for metric in call.metrics}
        for field in batch:
            other = f", else {instead[field.metric]}" if field.metric in instead else ""
            yield field.metric, f"field {field.id}{other}", pace
        for call in direct:
            functions = ", else ".join(dict.fromkeys(way.function for way in call.ways))
            yield from ((metric, functions, pace) for metric in call.metrics)
    yield from ((metric.metric, f"GPM {metric.id}", "tick") for metric in gpm.METRICS)
    yield from ((field.metric, f"field {field.id}, sum of the links", "15 s") for field in fields.NVLINK5)
    yield from ((field.metric, f"field {field.id}, worst link", "15 s") for field in fields.NVLINK5_BER)
    yield from ((metric, source, pace) for metric, (source, pace) in _DERIVED.items())


def test_each_metric_of_an_nvidia_gpu_is_documented_with_its_source_unit_and_pace() -> None:
    expected = {metric: (source, METRICS[metric].unit, pace) for metric, source, pace in sources()}
    documented = {match[1]: match.group(2, 3, 4) for match in _ROW.finditer(DOCUMENT.read_text())}
    assert documented == expected


def test_no_metric_has_two_sources() -> None:
    names = [metric for metric, _, _ in sources()]
    assert sorted(names) == sorted(set(names))
