"""What pages of dcgm-exporter and node_exporter mean: faults are told once, and old ones are not taken for new."""

from __future__ import annotations

import pytest

from switchgear.collector.detectors import signals_of
from switchgear.collector.imports.exposition import Reader
from switchgear.collector.imports.rules import RULES, SUBJECTS_MAX, Baseline, Finding, look
from switchgear.collector.model import Event, Severity
from switchgear.core.catalog import kind

SECOND = 1_000_000_000
GPU = (
    'gpu="{gpu}",UUID="GPU-{gpu}04ac76c-d9cf-fef3-62e9-d92044ab6e52",pci_bus_id="00000000:{gpu}B:00.0",device="nvidia{gpu}",'
    'modelName="NVIDIA H100 80GB HBM3",Hostname="gpu-01",DCGM_FI_DRIVER_VERSION="550.54.15"'
)


class Node:
    """Pages of a node's exporters, one a quarter of a minute."""

    def __init__(self) -> None:
        self.reader, self.baseline, self.now = Reader(), Baseline(0), 0

    def shows(self, *lines: str, after_s: float = 15) -> list[Finding]:
        self.now += round(after_s * SECOND)
        page = self.reader.read("\n".join(lines) + "\n")
        return look(self.baseline, zip(page.keys, page.values, strict=True), self.now)

    def told(self, *lines: str, after_s: float = 15) -> list[tuple[str, int | None, int | None]]:
        return [(found.kind, found.code, found.gpu) for found in self.shows(*lines, after_s=after_s)]


def dcgm(metric: str, value: float, gpu: int = 0, more: str = "") -> str:
    return f"{metric}{{{GPU.format(gpu=gpu)}{more}}} {value:g}"


def xid(value: float, gpu: int = 0, more: str = "") -> str:
    return dcgm("DCGM_FI_DEV_XID_ERRORS", value, gpu, more)


def test_an_xid_is_told_when_it_comes_and_not_again_while_it_stays() -> None:
    node = Node()
    assert node.told(xid(0), xid(0, gpu=3)) == []
    (found,) = node.shows(xid(0), xid(79, gpu=3))
    assert found == Finding(
        "XID",
        79,
        3,
        "0000:3b:00",
        "GPU 3: the newest XID is 79",
        {"metric": "DCGM_FI_DEV_XID_ERRORS", "uuid": "GPU-304ac76c-d9cf-fef3-62e9-d92044ab6e52"},
    )
    assert node.told(xid(0), xid(79, gpu=3)) == []
    assert node.told(xid(31), xid(79, gpu=3)) == [("XID", 31, 0)]


def test_an_xid_that_was_there_at_the_first_look_may_be_old_and_alarms_nobody() -> None:
    (found,) = Node().shows(xid(79))
    assert (found.kind, found.code) == ("XID_BEFORE", 79)
    event = Event(
        "nodes/n", "b", "import/x", 1, 1, found.kind, found.gpu, found.code, found.text, False, "", found.detail
    )
    assert [signal.severity for signal in signals_of(event)] == [Severity.INFO]


def test_an_exporter_that_restarts_shows_zero_and_then_news() -> None:
    node = Node()
    node.told(xid(0))
    assert node.told(xid(31)) == [("XID", 31, 0)]
    assert node.told() == []
    assert node.told(xid(0)) == []
    assert node.told(xid(31)) == []  # within the minute: the same
    assert node.told(xid(0), after_s=120) == []
    assert node.told(xid(31)) == [("XID", 31, 0)]


def test_a_pod_that_comes_or_goes_makes_no_news_of_an_old_xid() -> None:
    node = Node()
    node.told(xid(0, more=',pod="a"'))
    assert node.told(xid(13, more=',pod="a"')) == [("XID", 13, 0)]
    assert node.told(xid(13, more=',pod="b"'), after_s=300) == []


def test_instances_of_a_gpu_are_one_gpu() -> None:
    node = Node()
    node.told(xid(0, more=',GPU_I_ID="1"'), xid(0, more=',GPU_I_ID="2"'))
    assert node.told(xid(94, more=',GPU_I_ID="1"'), xid(0, more=',GPU_I_ID="2"')) == [("XID", 94, 0)]


def test_series_that_tell_the_same_fault_tell_it_once() -> None:
    node = Node()
    count, dbe = "DCGM_EXP_XID_ERRORS_COUNT", "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL"
    node.told(xid(0), dcgm(count, 0, more=',xid="48"'), dcgm(dbe, 0))
    assert node.told(xid(48), dcgm(count, 1, more=',xid="48"'), dcgm(dbe, 2)) == [("XID", 48, 0)]
    assert node.told(xid(48), dcgm(count, 2, more=',xid="48"'), dcgm(dbe, 2), after_s=300) == [("XID", 48, 0)]


def test_values_that_dcgm_does_not_have_are_no_faults() -> None:
    node = Node()
    node.told(xid(0))
    node.told(xid(31))
    for blank in (9223372036854775794, 140737488355328, float("nan"), float("inf"), 2147483632):
        assert node.told(xid(blank), after_s=100) == []
        assert node.told(xid(31), after_s=100) == []


def test_a_count_that_began_anew_is_what_it_counts() -> None:
    node = Node()
    metric = "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL"
    assert node.told(dcgm(metric, 7)) == []
    assert node.told(dcgm(metric, 0)) == []
    assert node.told(dcgm(metric, 1)) == [("ECC_DOUBLE_BIT", None, 0)]


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (dcgm("DCGM_FI_DEV_ROW_REMAP_FAILURE", 0), dcgm("DCGM_FI_DEV_ROW_REMAP_FAILURE", 1), "DRAM_RETIREMENT_FAILED"),
        (
            'node_edac_uncorrectable_errors_total{controller="0"} 0',
            'node_edac_uncorrectable_errors_total{controller="0"} 1',
            "EDAC_UE",
        ),
        ("node_vmstat_oom_kill 3", "node_vmstat_oom_kill 4", "OOM"),
        ('node_network_carrier{device="ib0"} 1', 'node_network_carrier{device="ib0"} 0', "LINK_DOWN"),
        ('node_network_carrier{device="eth1"} 0', 'node_network_carrier{device="eth1"} 1', "LINK_UP"),
        (
            'node_infiniband_state_id{device="mlx5_0",port="1"} 4',
            'node_infiniband_state_id{device="mlx5_0",port="1"} 1',
            "LINK_DOWN",
        ),
        ('node_network_carrier{device="veth3"} 1', 'node_network_carrier{device="veth3"} 0', None),
        # Taken down on purpose: its carrier cannot be read then.
        ('node_network_carrier{device="eth1"} 1', "other 1", None),
    ],
)
def test_changes_of_other_series(before: str, after: str, told: str | None) -> None:
    node = Node()
    assert node.told(before) == []
    assert [found[0] for found in node.told(after)] == ([told] if told else [])


def test_a_link_is_named_as_an_agent_names_it() -> None:
    node = Node()
    node.shows('node_infiniband_state_id{device="mlx5_0",port="1"} 4')
    (found,) = node.shows('node_infiniband_state_id{device="mlx5_0",port="1"} 2')
    assert (found.detail["link"], found.text) == ("mlx5_0/1", "mlx5_0/1 is not active")


def test_every_rule_tells_of_a_kind_that_has_a_verdict() -> None:
    assert {name for rule in RULES.values() for name in (rule.kind, rule.ended) if name and kind(name) is None} == set()


def test_what_is_remembered_is_bounded() -> None:
    node = Node()
    node.shows(*(f'node_edac_uncorrectable_errors_total{{controller="{number}"}} 0' for number in range(3000)))
    assert len(node.baseline.values) == SUBJECTS_MAX
