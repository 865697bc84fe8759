"""Network interfaces, InfiniBand ports and drivers' statistics, from files laid out as the kernel does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from node_tree import NodeTree, Told

from switchgear.agent.events import Finding
from switchgear.agent.readings import Kind, Reading
from switchgear.agent.sources import counter_gate
from switchgear.agent.sources.counter_gate import COMPLAINT, PROBE_S, TRIAL_S, Access, CounterGate
from switchgear.agent.sources.ethtool import EthtoolSocket, EthtoolSource, metric_name
from switchgear.agent.sources.infiniband import InfinibandCounterSource, InfinibandSource
from switchgear.agent.sources.infiniband_names import COUNTERS, HW_COUNTERS, LEGACY_COUNTERS, TROUBLE
from switchgear.agent.sources.kernel_log.parser import QUIET_FOLD_S, KernelLogParser
from switchgear.agent.sources.link_speed import SpeedWatch
from switchgear.agent.sources.link_watch import LinkWatch
from switchgear.agent.sources.links import LOST_S
from switchgear.agent.sources.network import INTERFACES_MAX, InterfaceSource, NetworkSource
from switchgear.agent.sources.protocols import ProtocolSource

ADDRESS = "0000:9a:00.1"


def by_name(readings: list[Reading]) -> dict[str, Reading]:
    return {f"{reading.key.metric}{dict(reading.key.labels)}": reading for reading in readings}


@pytest.fixture
def tree(tmp_path: Path) -> NodeTree:
    return NodeTree(tmp_path / "machine")


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Told]:
    told = Told(tmp_path)
    yield told
    told.close()


def network(tree: NodeTree, told: Told) -> NetworkSource:
    watch = LinkWatch("network", told.events, told.clock, tree.sysfs)
    return NetworkSource(watch, procfs=tree.procfs, sysfs=tree.sysfs)


def infiniband(tree: NodeTree, told: Told) -> tuple[InfinibandSource, InfinibandCounterSource]:
    gate = CounterGate(told.events)
    watch = LinkWatch("infiniband", told.events, told.clock, tree.sysfs)
    return (
        InfinibandSource(watch, gate, told.clock, tree.sysfs),
        InfinibandCounterSource(SpeedWatch(told.events), gate, told.clock, tree.sysfs),
    )


def test_interfaces_have_traffic_state_and_speed_in_bytes(tree: NodeTree, told: Told) -> None:
    tree.interface("eth0", ADDRESS)
    tree.interface("veth12ab")
    readings = by_name([*network(tree, told).sample(), *InterfaceSource(SpeedWatch(told.events), tree.sysfs).sample()])
    assert readings["node_network_receive_bytes_total{'device': 'eth0'}"].value == 5
    assert readings["node_network_transmit_drop_total{'device': 'eth0'}"].value == 6
    assert readings["node_network_up{'device': 'eth0'}"].value == 1
    assert readings["node_network_carrier_changes_total{'device': 'eth0'}"].value == 2
    assert readings["node_network_speed_bytes{'device': 'eth0'}"].value == 50e9
    assert readings["node_network_mtu_bytes{'device': 'eth0'}"].value == 9000
    assert not any("veth" in name for name in readings)


def test_what_an_interface_does_not_tell_is_unknown_and_not_zero(tree: NodeTree, told: Told) -> None:
    folder = tree.interface("ib0", speed="-1")
    (folder / "carrier_changes").unlink()
    readings = by_name([*network(tree, told).sample(), *InterfaceSource(SpeedWatch(told.events), tree.sysfs).sample()])
    speed = readings["node_network_speed_bytes{'device': 'ib0'}"]
    changes = readings["node_network_carrier_changes_total{'device': 'ib0'}"]
    assert (speed.value, speed.reason) == (None, "no link speed")
    assert (changes.value, changes.reason) == (None, "carrier_changes: No such file or directory")


def test_interfaces_without_end_are_bounded(tree: NodeTree, told: Told) -> None:
    for index in range(INTERFACES_MAX + 9):
        tree.interface(f"gre{index}")
    devices = {dict(reading.key.labels)["device"] for reading in network(tree, told).sample()}
    assert len(devices) == INTERFACES_MAX


def test_a_bond_counts_its_members_and_those_that_work(tree: NodeTree, told: Told) -> None:
    bond = tree.interface("bond0")
    tree.write(bond, {"bonding/slaves": "eth0 eth1", "lower_eth0/bonding_slave/mii_status": "up"})
    tree.write(bond, {"lower_eth1/bonding_slave/mii_status": "down"})
    (tree.sysfs / "class/net/bonding_masters").write_text("bond0\n")
    readings = by_name(InterfaceSource(SpeedWatch(told.events), tree.sysfs).sample())
    assert readings["node_bonding_slaves{'master': 'bond0'}"].value == 2
    assert readings["node_bonding_active{'master': 'bond0'}"].value == 1


def test_a_nic_that_loses_its_link_is_told_and_cleared(tree: NodeTree, told: Told) -> None:
    folder = tree.interface("eth2", ADDRESS)
    source = network(tree, told)
    source.sample()
    (folder / "operstate").write_text("down\n")
    for _ in range(4):
        source.sample()
        told.clock.advance(1)
    [event] = told.new()
    assert (event.source, event.kind, event.pci) == ("network", "LINK_DOWN", "0000:9a:00")
    (folder / "operstate").write_text("up\n")
    source.sample()
    assert told.kinds() == ["LINK_UP"]


@pytest.mark.parametrize(
    "files", [{"type": "32"}, {"phys_port_name": "pf0vf3"}, {"phys_port_name": "c1pf0sf88"}, {"address": ""}]
)
def test_links_that_say_nothing_about_a_port_of_the_machine_are_not_told(
    tree: NodeTree, told: Told, files: dict[str, str]
) -> None:
    """IPoIB over a port that tells itself, representors, and what has no device."""
    folder = tree.interface("eth2", files.pop("address", ADDRESS), **files)
    source = network(tree, told)
    source.sample()
    (folder / "operstate").write_text("down\n")
    for _ in range(9):
        source.sample()
        told.clock.advance(1)
    assert told.kinds() == []


def test_a_virtual_function_is_told_by_its_physical_one(tree: NodeTree, told: Told) -> None:
    folder = tree.interface("eth2", ADDRESS)
    (tree.pci_device(ADDRESS) / "physfn").mkdir()
    source = network(tree, told)
    source.sample()
    (folder / "operstate").write_text("down\n")
    told.clock.advance(9)
    source.sample()
    assert told.kinds() == []


def test_a_nic_that_leaves_the_bus_is_lost_and_one_that_moves_to_a_container_is_not(tree: NodeTree, told: Told) -> None:
    tree.interface("eth2", ADDRESS)
    tree.interface("eth3", "0000:1b:00.0")
    source = network(tree, told)
    source.sample()
    tree.remove_interface("eth2")
    tree.remove_device(ADDRESS)
    tree.remove_interface("eth3")
    for _ in range(3):
        source.sample()
        told.clock.advance(LOST_S)
    assert [(event.kind, event.pci) for event in told.new()] == [("NIC_LOST", "0000:9a:00")]


def test_a_device_that_answers_with_ones_only_is_off_the_bus(tree: NodeTree, told: Told) -> None:
    tree.interface("eth2", ADDRESS)
    source = network(tree, told)
    source.sample()
    tree.remove_interface("eth2")
    (tree.pci_device(ADDRESS) / "config").write_bytes(b"\xff" * 64)
    source.sample()
    told.clock.advance(LOST_S + 1)
    source.sample()
    assert told.kinds() == ["NIC_LOST"]


def test_a_restart_of_the_agent_replays_nothing_and_knows_what_was_there(tree: NodeTree, told: Told) -> None:
    folder = tree.interface("eth2", ADDRESS)
    source = network(tree, told)
    source.sample()
    (folder / "operstate").write_text("down\n")
    for _ in range(3):
        source.sample()
        told.clock.advance(2)
    assert told.kinds() == ["LINK_DOWN"]
    told.restart()
    source = network(tree, told)
    for _ in range(9):
        source.sample()
        told.clock.advance(2)
    assert told.kinds() == []
    tree.remove_interface("eth2")
    tree.remove_device(ADDRESS)
    for _ in range(2):
        source.sample()
        told.clock.advance(LOST_S)
    assert told.kinds() == ["NIC_LOST"]


def test_a_port_that_comes_back_slower_than_it_was_is_told_and_cleared(tree: NodeTree, told: Told) -> None:
    folder, port = tree.interface("eth2", ADDRESS), tree.port("mlx5_0", "0000:1b:00.0")
    tree.interface("ib0", "0000:1b:00.0", type="32")
    _, slow = infiniband(tree, told)
    interfaces = InterfaceSource(SpeedWatch(told.events), tree.sysfs)

    def look(times: int) -> list[tuple[str, str]]:
        for _ in range(times):
            interfaces.sample()
            slow.sample()
        return [(event.kind, event.text) for event in told.new()]

    assert look(3) == []
    (folder / "speed").write_text("200000\n")
    tree.write(port, {"rate": "200 Gb/sec (2X NDR)"})
    assert look(1) == []
    assert look(9) == [
        ("LINK_SLOW", "eth2 runs at 200 Gbit/s, and ran at 400 Gbit/s since the boot"),
        ("LINK_SLOW", "mlx5_0/1 runs at 200 Gbit/s, and ran at 400 Gbit/s since the boot"),
    ]
    (folder / "speed").write_text("-1\n")
    tree.write(port, {"phys_state": "2: Polling", "rate": "10 Gb/sec (4X SDR)"})
    assert look(9) == []
    (folder / "speed").write_text("400000\n")
    assert look(9) == [("LINK_FULL_SPEED", "eth2 is back at 400 Gbit/s")]


def test_what_was_told_of_a_speed_is_known_after_a_restart_and_a_boot_begins_anew(told: Told) -> None:
    def look(speed_bytes: float) -> list[str]:
        for _ in range(3):
            watch.see("eth2", ADDRESS, speed_bytes)
        return told.kinds()

    watch = SpeedWatch(told.events)
    assert look(50e9) == []
    told.restart()
    watch = SpeedWatch(told.events)
    assert look(25e9) == ["LINK_SLOW"]
    told.restart()
    watch = SpeedWatch(told.events)
    assert look(25e9) == []
    assert look(50e9) == ["LINK_FULL_SPEED"]
    told.restart(boot="boot-2")
    watch = SpeedWatch(told.events)
    assert look(25e9) == []


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


@pytest.mark.parametrize(
    ("statistic", "metric"),
    [
        ("rx_discards_phy", "node_ethtool_received_discards_phy"),
        ("rx_prio3_pause", "node_ethtool_received_prio3_pause"),
        ("tx_errors", "node_ethtool_transmitted_errors_total"),
        ("port.rx_crc_errors", "node_ethtool_port_received_crc_errors"),
        ("module_high_temp", "node_ethtool_module_high_temp"),
        ("_Foo-bar", "node_ethtool_foo_bar"),
    ],
)
def test_statistics_of_drivers_have_node_exporters_names(statistic: str, metric: str) -> None:
    assert metric_name(statistic) == metric


def test_the_kernel_answers_our_ethtool_questions() -> None:
    """On any interface of this machine whose driver says who it is."""
    ethtool = EthtoolSocket()
    try:
        for path in Path("/sys/class/net").iterdir():
            try:
                driver, count = ethtool.driver(path.name), ethtool.count(path.name)
                names, values = ethtool.strings(path.name, count), ethtool.values(path.name, count)
            except OSError:
                continue
            assert driver.driver
            assert len(names) == len(values) == count
            assert all(name.isprintable() and name for name in names)
            return
    finally:
        ethtool.close()
    pytest.skip("no interface here whose driver has statistics")


def test_statistics_are_asked_of_physical_interfaces_alone(tree: NodeTree, told: Told) -> None:
    tree.interface("lo")
    assert EthtoolSource(CounterGate(told.events), told.clock, tree.sysfs).sample() == []


def test_retransmits_and_timeouts_of_tcp_are_told_under_node_exporters_names(tree: NodeTree) -> None:
    tree.write(
        tree.procfs / "net",
        {
            "snmp": "Tcp: RtoMin RetransSegs CurrEstab\nTcp: 200 31 4\nUdp: InErrors\nUdp: 2",
            "netstat": "TcpExt: Other TCPTimeouts\nTcpExt: 1 38\nMPTcpExt: A\nMPTcpExt: 1",
        },
    )
    readings = {reading.key.metric: reading for reading in ProtocolSource(tree.procfs).sample()}
    assert {name: reading.value for name, reading in readings.items()} == {
        "node_netstat_Tcp_RetransSegs": 31,
        "node_netstat_Tcp_CurrEstab": 4,
        "node_netstat_Udp_InErrors": 2,
        "node_netstat_TcpExt_TCPTimeouts": 38,
    }
    assert readings["node_netstat_Tcp_CurrEstab"].key.kind is Kind.GAUGE
