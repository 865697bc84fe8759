"""InfiniBand ports, and devices whose counters are left alone, from files laid out as the kernel does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from node_tree import NodeTree, Told, by_name, infiniband, network

from switchgear.agent.events import Finding
from switchgear.agent.readings import Kind
from switchgear.agent.sources import counter_gate
from switchgear.agent.sources.counter_gate import COMPLAINT, PROBE_S, TRIAL_S, Access, CounterGate
from switchgear.agent.sources.infiniband_names import COUNTERS, HW_COUNTERS, LEGACY_COUNTERS, TROUBLE
from switchgear.agent.sources.kernel_log.parser import QUIET_FOLD_S, KernelLogParser
from switchgear.agent.sources.links import LOST_S

ADDRESS = "0000:9a:00.1"


@pytest.fixture
def tree(tmp_path: Path) -> NodeTree:
    return NodeTree(tmp_path / "machine")


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Told]:
    told = Told(tmp_path)
    yield told
    told.close()


def test_an_infiniband_port_has_node_exporters_names_and_units(tree: NodeTree, told: Told) -> None:
    port = tree.port("mlx5_0", ADDRESS, symbol_error="3")
    tree.write(port / "hw_counters", {"lifespan": "10", "out_of_sequence": "7", "np_cnp_sent": "9"})
    tree.write(port / "counters_ext", {"port_rcv_data_64": "100"})
    fast, slow = infiniband(tree, told)
    fast.sample()
    told.clock.advance(PROBE_S)
    readings = by_name([*fast.sample(), *slow.sample()])
    labels = "{'device': 'mlx5_0', 'port': '1'}"
    values = {
        name: readings[f"node_infiniband_{name}{labels}"].value
        for name in (
            *("state_id", "physical_state_id", "rate_bytes_per_second", "symbol_error_total", "link_downed_total"),
            *("port_data_received_bytes_total", "legacy_data_received_bytes_total", "lifespan_seconds"),
            *("out_of_sequence_packets_received_total", "np_cnp_packets_sent_total"),
        )
    }
    assert list(values.values()) == [4, 5, 50e9, 3, 0, 400, 400, 0.01, 7, 9]
    info = {"device": "mlx5_0", "board_id": "MT_0000000838", "firmware_version": "28.39.1002", "hca_type": "MT4129"}
    assert readings[f"node_infiniband_info{info}"].value == 1
    assert readings[f"node_infiniband_lifespan_seconds{labels}"].key.kind is Kind.GAUGE


def test_no_two_files_of_a_port_have_the_same_metric() -> None:
    metrics = [*COUNTERS.values(), *LEGACY_COUNTERS.values(), *HW_COUNTERS.values()]
    assert len(metrics) == len(set(metrics)) == 60
    assert set(TROUBLE) <= COUNTERS.keys()


def test_a_counter_that_an_adapter_does_not_have_has_no_series(tree: NodeTree, told: Told) -> None:
    tree.port("irdma0", ADDRESS, "Ethernet", port_xmit_wait="N/A (no PMA)", symbol_error="N/A (no PMA)")
    fast, slow = infiniband(tree, told)
    fast.sample()
    told.clock.advance(PROBE_S)
    names = {reading.key.metric for reading in [*fast.sample(), *slow.sample()]}
    assert "node_infiniband_link_downed_total" in names
    assert not names & {"node_infiniband_port_transmit_wait_total", "node_infiniband_symbol_error_total"}


def test_an_infiniband_link_is_told_by_its_port_and_a_roce_link_by_its_interface(tree: NodeTree, told: Told) -> None:
    ports = [tree.port("mlx5_0", ADDRESS), tree.port("mlx5_1", "0000:1b:00.0", "Ethernet")]
    folder = tree.interface("eth2", "0000:1b:00.0")
    source, (fast, _) = network(tree, told), infiniband(tree, told)
    source.sample()
    fast.sample()
    for port in ports:
        tree.write(port, {"state": "1: DOWN", "phys_state": "2: Polling"})
    (folder / "operstate").write_text("down\n")
    for _ in range(4):
        source.sample()
        fast.sample()
        told.clock.advance(1)
    events = {event.detail["link"]: event for event in told.new()}
    assert {name: (event.source, event.kind) for name, event in events.items()} == {
        "eth2": ("network", "LINK_DOWN"),
        "mlx5_0/1": ("infiniband", "LINK_DOWN"),
    }
    assert events["mlx5_0/1"].detail["state"] == "DOWN, Polling"


def test_a_port_that_waits_for_its_subnet_manager_is_down_and_a_disabled_one_is_not(tree: NodeTree, told: Told) -> None:
    waiting, disabled = tree.port("mlx5_0", ADDRESS), tree.port("mlx5_1", "0000:1b:00.0")
    fast, _ = infiniband(tree, told)
    fast.sample()
    tree.write(waiting, {"state": "2: INIT"})
    tree.write(disabled, {"state": "1: DOWN", "phys_state": "3: Disabled"})
    for _ in range(4):
        fast.sample()
        told.clock.advance(1)
    assert [event.detail for event in told.new()] == [{"link": "mlx5_0/1", "state": "INIT, LinkUp"}]


def test_an_infiniband_adapter_that_leaves_the_bus_is_lost(tree: NodeTree, told: Told) -> None:
    tree.port("mlx5_0", ADDRESS)
    tree.port("mlx5_1", "0000:1b:00.0")
    fast, _ = infiniband(tree, told)
    fast.sample()
    tree.remove_port("mlx5_1")
    tree.remove_device("0000:1b:00.0")
    for _ in range(int(LOST_S) + 20):
        readings = fast.sample()
        told.clock.advance(1)
    assert [(event.source, event.kind, event.pci) for event in told.new()] == [("infiniband", "NIC_LOST", "0000:1b:00")]
    assert {dict(reading.key.labels)["device"] for reading in readings} == {"mlx5_0"}


def test_a_virtual_function_of_an_adapter_is_read_and_its_link_not_told(tree: NodeTree, told: Told) -> None:
    port = tree.port("mlx5_0", ADDRESS)
    (tree.pci_device(ADDRESS) / "physfn").mkdir()
    fast, _ = infiniband(tree, told)
    assert fast.sample()
    tree.write(port, {"state": "1: DOWN"})
    for _ in range(9):
        fast.sample()
        told.clock.advance(1)
    assert told.kinds() == []


def test_infiniband_ports_that_come_later_are_found(tree: NodeTree, told: Told) -> None:
    fast, _ = infiniband(tree, told)
    assert fast.sample() == []
    assert fast.period_s > 0
    tree.port("mlx5_0", ADDRESS)
    assert fast.sample()
    assert fast.period_s == 0


def test_a_device_whose_counters_make_the_kernel_complain_is_read_once_and_left_alone(
    tree: NodeTree, told: Told
) -> None:
    tree.port("mlx5_0", ADDRESS)
    tree.port("mlx5_1", "0000:1b:00.0")
    fast, slow = infiniband(tree, told)
    probe = {reading.key.metric for reading in fast.sample()}
    assert probe == {f"node_infiniband_{name}" for name in ("state_id", "physical_state_id", "link_downed_total")}
    told.events.tell("kernel_log", Finding(COMPLAINT, "ACCESS_REG(0x805) op_mod(0x1) failed", pci="0000:9a:00"))
    told.clock.advance(PROBE_S)
    readings = [*fast.sample(), *slow.sample()]
    of_restricted = [reading for reading in readings if ("device", "mlx5_0") in reading.key.labels]
    known = {reading.key.metric for reading in of_restricted if reading.value is not None}
    assert known == {f"node_infiniband_{n}" for n in ("state_id", "physical_state_id", "info", "rate_bytes_per_second")}
    assert {reading.reason for reading in of_restricted if reading.value is None} == {counter_gate.REASON}
    assert any(("device", "mlx5_1") in r.key.labels and "symbol_error" in r.key.metric for r in readings)
    fast.sample()
    assert [(event.kind, event.pci) for event in told.new()] == [
        (COMPLAINT, "0000:9a:00"),
        ("NIC_COUNTERS_RESTRICTED", "0000:9a:00"),
    ]


def test_a_device_whose_counters_fail_as_restricted_ones_do_is_left_alone_without_a_kernel_log(
    tree: NodeTree, told: Told
) -> None:
    counter = tree.port("mlx5_0", ADDRESS) / "counters/link_downed"
    counter.unlink()
    counter.symlink_to("/sys/class/net/lo/speed")  # of which a read fails with EINVAL
    fast, _ = infiniband(tree, told)
    fast.sample()
    told.clock.advance(PROBE_S)
    assert counter_gate.REASON in {reading.reason for reading in fast.sample()}
    assert told.kinds() == ["NIC_COUNTERS_RESTRICTED"]


def test_a_restriction_holds_over_a_restart_of_the_agent_until_the_next_boot(told: Told) -> None:
    gate = CounterGate(told.events)
    gate.probed(ADDRESS, 0)
    gate.close(ADDRESS, "EINVAL")
    told.restart()
    assert CounterGate(told.events).access(ADDRESS, 0) is Access.CLOSED
    told.restart(boot="boot-2")
    assert CounterGate(told.events).access(ADDRESS, 0) is Access.PROBE


def test_complaints_that_others_cause_later_change_nothing(told: Told) -> None:
    gate = CounterGate(told.events)
    gate.probed(ADDRESS, 0)
    told.events.tell("kernel_log", Finding(COMPLAINT, "…", pci="0000:1b:00"))
    assert gate.access(ADDRESS, PROBE_S / 2) is Access.WAIT
    assert gate.access(ADDRESS, PROBE_S) is Access.OPEN
    assert gate.access(ADDRESS, TRIAL_S) is Access.OPEN
    told.events.tell("kernel_log", Finding(COMPLAINT, "…", pci="0000:9a:00"))
    assert gate.access(ADDRESS, TRIAL_S + 1) is Access.OPEN


def test_the_line_that_mlx5_logs_closes_the_device_that_it_names(told: Told) -> None:
    line = (
        "mlx5_core 0000:9a:00.1: mlx5_cmd_out_err:838:(pid 4711): ACCESS_REG(0x805) op_mod(0x1) failed, status bad operation(0x2), "
        "syndrome (0x9a6171), err(-22)"
    )
    gate, parser = CounterGate(told.events), KernelLogParser()
    gate.probed(ADDRESS, 0)
    gate.probed("0000:1b:00.0", 0)
    for finding in [*parser.feed(line, 0), *parser.due(10)]:
        told.events.tell("kernel_log", finding)
    assert gate.access(ADDRESS, PROBE_S) is Access.CLOSED
    assert gate.access("0000:1b:00.0", PROBE_S) is Access.OPEN


def test_a_complaint_that_is_told_late_since_another_tool_caused_one_before_still_counts(told: Told) -> None:
    gate = CounterGate(told.events)
    gate.probed(ADDRESS, 0)
    assert gate.access(ADDRESS, PROBE_S) is Access.OPEN
    told.events.tell("kernel_log", Finding(COMPLAINT, "…", pci="0000:9a:00"))
    assert gate.access(ADDRESS, QUIET_FOLD_S + 1) is Access.CLOSED
    assert TRIAL_S > QUIET_FOLD_S
