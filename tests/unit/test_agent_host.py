"""What is read from the host, from its own files and from a test's."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest
from node_tree import NodeTree, Told, by_name

from switchgear.agent.readings import Kind, Reading
from switchgear.agent.sources import blocked
from switchgear.agent.sources.base import Source
from switchgear.agent.sources.blocked import METRIC, BlockedProcessesSource
from switchgear.agent.sources.clock_sync import ClockSyncSource
from switchgear.agent.sources.filesystems import FILESYSTEMS_MAX, HANGS_S, FilesystemSource, mounts
from switchgear.agent.sources.host import HostSource
from switchgear.agent.sources.kernel_files import OPEN_MAX, PAGE_BYTES, KernelFiles, table_once
from switchgear.agent.sources.kernel_tables import KernelTablesSource
from switchgear.agent.sources.link_speed import SpeedWatch
from switchgear.agent.sources.link_watch import LinkWatch
from switchgear.agent.sources.mount_probes import THREADS_MAX, MountProbes
from switchgear.agent.sources.network import InterfaceSource, NetworkSource
from switchgear.agent.sources.pressure import PressureSource


def value(readings: Mapping[str, Reading], name: str) -> float:
    found = readings[name].value
    assert found is not None, readings[name].reason
    return found


@pytest.fixture
def tree(tmp_path: Path) -> NodeTree:
    return NodeTree(tmp_path / "machine")


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Told]:
    told = Told(tmp_path)
    yield told
    told.close()


def test_this_hosts_cpu_memory_and_disks_are_those_that_psutil_sees() -> None:
    readings = by_name(HostSource().sample())
    memory, times = psutil.virtual_memory(), psutil.cpu_times()
    assert value(readings, "node_memory_MemTotal_bytes{}") == memory.total
    assert value(readings, "node_memory_MemAvailable_bytes{}") == pytest.approx(memory.available, rel=0.1)
    for mode in ("user", "system", "idle"):
        seen = value(readings, f"node_cpu_seconds_total{{'mode': '{mode}'}}")
        assert seen == pytest.approx(getattr(times, mode), rel=0.05, abs=5)
    assert value(readings, "node_boot_time_seconds{}") == pytest.approx(psutil.boot_time(), abs=2)
    assert value(readings, "node_load1{}") >= 0
    for disk, counters in (psutil.disk_io_counters(perdisk=True, nowrap=False) or {}).items():
        name = f"node_disk_read_bytes_total{{'device': '{disk}'}}"
        if name in readings:
            assert value(readings, name) == pytest.approx(counters.read_bytes, rel=0.05, abs=1e8)


def test_this_hosts_clock_is_asked_without_being_set() -> None:
    readings = by_name(ClockSyncSource().sample())
    assert value(readings, "node_timex_sync_status{}") in (0, 1)
    assert value(readings, "node_timex_maxerror_seconds{}") >= 0
    assert value(readings, "node_timex_frequency_adjustment_ratio{}") == pytest.approx(1, abs=1e-3)


def test_pressure_is_told_in_seconds_with_that_of_interrupts(tree: NodeTree) -> None:
    line = "avg10=0.00 avg60=0.00 avg300=0.00 total="
    tree.write(
        tree.procfs / "pressure",
        {
            "cpu": f"some {line}1500000\nfull {line}7",
            "io": f"some {line}2000000\nfull {line}1000000",
            "irq": f"full {line}500000",
        },
    )
    readings = PressureSource(tree.procfs).sample()
    assert {reading.key.metric: reading.value for reading in readings} == {
        "node_pressure_cpu_waiting_seconds_total": 1.5,
        "node_pressure_io_waiting_seconds_total": 2,
        "node_pressure_io_stalled_seconds_total": 1,
        "node_pressure_irq_stalled_seconds_total": 0.5,
    }


def test_a_kernel_without_pressure_has_no_series(tree: NodeTree) -> None:
    assert PressureSource(tree.procfs).sample() == []


def test_a_kernel_without_some_of_its_files_still_tells_the_others(tree: NodeTree) -> None:
    tree.write(tree.procfs, {"loadavg": "1.5 2.5 3.5 1/80 99"})
    readings = by_name(HostSource(tree.procfs).sample())
    assert value(readings, "node_load5{}") == 2.5
    assert not any("memory" in name for name in readings)


def test_a_host_without_partitions_loops_and_interrupts_in_its_series(tree: NodeTree) -> None:
    disk = "7 0 14 30 9 0 18 60 0 4 90 0 0 0 0 0 0"
    names = ("loop0", "sda", "sda1", "nvme0n1", "nvme0n1p2", "dm-0", "ram1")
    tree.write(
        tree.procfs,
        {
            "stat": "cpu  100 200 300 400 0 0 0 0 50 60\ncpu0 1 1 1 1\nintr 1 2 3\nctxt 77\nbtime 1700000000\nprocs_blocked 3",
            "loadavg": "1.5 2.5 3.5 1/80 99",
            "meminfo": "MemTotal:       100 kB\nHardwareCorrupted:  4 kB\nHugePages_Total:  5",
            "vmstat": "oom_kill 2\nnr_free_pages 9\npgmajfault 8",
            "diskstats": "\n".join(f" 8 0 {name} {disk}" for name in names),
        },
    )
    readings = by_name(HostSource(tree.procfs).sample())
    assert value(readings, "node_cpu_seconds_total{'mode': 'nice'}") == 2
    assert value(readings, "node_memory_HardwareCorrupted_bytes{}") == 4096
    assert value(readings, "node_memory_HugePages_Total{}") == 5
    assert value(readings, "node_vmstat_oom_kill{}") == 2
    assert value(readings, "node_procs_blocked{}") == 3
    assert value(readings, "node_disk_read_bytes_total{'device': 'sda'}") == 14 * 512
    assert value(readings, "node_disk_io_time_weighted_seconds_total{'device': 'sda'}") == 0.09
    disks = {dict(reading.key.labels)["device"] for name, reading in readings.items() if name.startswith("node_disk")}
    assert disks == {"sda", "nvme0n1", "dm-0"}


def test_failing_memory_is_told_by_the_module_to_replace(tree: NodeTree) -> None:
    tree.write(
        tree.sysfs / "devices/system/edac/mc/mc1",
        {
            "ce_count": "12",
            "ue_count": "1",
            "csrow3/ch0_ce_count": "12",
            "csrow3/ch0_ue_count": "1",
            "csrow3/ch0_dimm_label": "CPU_SrcID#1_MC#0_Chan#2_DIMM#0",
        },
    )
    readings = by_name(KernelTablesSource(tree.procfs, tree.sysfs).sample())
    assert value(readings, "node_edac_uncorrectable_errors_total{'controller': '1'}") == 1
    labels = {"controller": "1", "csrow": "3", "channel": "0", "dimm_label": "CPU_SrcID1_MC0_Chan2_DIMM0"}
    assert value(readings, f"node_edac_channel_correctable_errors_total{labels}") == 12


def test_a_degraded_array_and_full_tables_are_seen(tree: NodeTree) -> None:
    members = {"dev-sda/state": "in_sync", "dev-sdb/state": "faulty,blocked", "dev-sdc/state": "spare"}
    state = {"raid_disks": "2", "degraded": "1", "array_state": "clean", "sync_action": "recover"}
    tree.write(tree.sysfs / "block/md0/md", {**state, **members})
    tree.write(
        tree.procfs / "sys",
        {
            "fs/file-nr": "1280\t0\t9223372036854775807",
            "net/netfilter/nf_conntrack_count": "262143",
            "net/netfilter/nf_conntrack_max": "262144",
            "kernel/hung_task_detect_count": "2",
        },
    )
    tree.write(tree.sysfs / "class/nvme/nvme0", {"state": "dead", "model": "X", "firmware_rev": "1", "serial": "S"})
    readings = by_name(KernelTablesSource(tree.procfs, tree.sysfs).sample())
    disks = {
        state: value(readings, f"node_md_disks{{'device': 'md0', 'state': '{state}'}}")
        for state in ("active", "failed", "spare")
    }
    assert disks == {"active": 1, "failed": 1, "spare": 1}
    assert value(readings, "node_md_disks_required{'device': 'md0'}") == 2
    assert value(readings, "node_md_state{'device': 'md0', 'state': 'recovering'}") == 1
    assert value(readings, "node_nf_conntrack_entries{}") == 262143
    assert value(readings, "node_filefd_allocated{}") == 1280
    assert readings["node_kernel_hung_tasks_total{}"].key.kind is Kind.COUNTER
    assert any("'state': 'dead'" in name for name in readings)


SHARED_MEMORY = "/dev/shm"  # noqa: S108 - a mount point


def mount_line(number: str, mountpoint: str, fstype: str, device: str, options: str = "rw") -> str:
    return f"36 35 {number} / {mountpoint} rw,noatime master:1 - {fstype} {device} {options}"


def test_mounts_are_those_that_can_fill_up_each_once_at_its_shortest_path() -> None:
    table = "\n".join((
        mount_line("0:5", "/proc", "proc", "proc"),
        mount_line("0:40", "/data", "nfs4", "filer:/export/data"),
        mount_line("8:1", "/var/lib/docker/overlay2/x", "overlay", "overlay"),
        mount_line("8:1", "/srv/deep/bind", "ext4", "/dev/sda1"),
        mount_line("8:1", "/", "ext4", "/dev/sda1"),
        mount_line("0:41", r"/with\040space", "xfs", "/dev/sdb", "ro"),
        mount_line("0:42", "/net", "autofs", "auto"),
        mount_line("0:6", "/dev", "tmpfs", "tmpfs"),
        mount_line("0:9", "/covered", "ext4", "/dev/sdc"),
        mount_line("0:10", "/covered", "overlay", "overlay"),
        mount_line("0:7", SHARED_MEMORY, "tmpfs", "hidden"),
        mount_line("0:8", SHARED_MEMORY, "tmpfs", "tmpfs"),
        mount_line("0:43", "/var/lib/kubelet/pods/a/volumes/secret", "tmpfs", "tmpfs"),
        mount_line("0:44", "/var/lib/kubelet/pods/a/volumes/data", "nfs4", "filer:/export/pods"),
        "garbage",
    ))  # fmt: skip
    found = {mount.mountpoint: mount for mount in mounts(table)}
    volume = "/var/lib/kubelet/pods/a/volumes/data"
    assert set(found) == {"/data", "/", "/with space", SHARED_MEMORY, volume}
    assert [name for name, mount in found.items() if mount.passing] == [volume]
    assert found[SHARED_MEMORY].device == "tmpfs", "the one that is mounted over the other"
    assert found["/data"].device == "filer:/export/data"
    assert found["/with space"].readonly
    assert not found["/"].readonly
    crowd = "\n".join(mount_line(f"0:{index}", f"/m{index}", "nfs", "filer:/m") for index in range(200))
    assert len(mounts(crowd)) == FILESYSTEMS_MAX


#: What the alerts and dashboards that come with node_exporter (docs/node-mixin) ask for, but for systemd's units and its own state.
MIXIN = """
node_cpu_seconds_total node_load1 node_memory_MemTotal_bytes node_memory_MemAvailable_bytes node_memory_MemFree_bytes
node_memory_Buffers_bytes node_memory_Cached_bytes node_memory_Slab_bytes node_vmstat_pgmajfault node_filesystem_size_bytes
node_filesystem_avail_bytes node_filesystem_files node_filesystem_files_free node_filesystem_readonly
node_disk_io_time_seconds_total node_disk_io_time_weighted_seconds_total node_disk_read_bytes_total node_disk_written_bytes_total
node_network_receive_bytes_total node_network_transmit_bytes_total node_network_receive_packets_total
node_network_transmit_packets_total node_network_receive_errs_total node_network_transmit_errs_total
node_network_receive_drop_total node_network_transmit_drop_total node_filefd_allocated node_filefd_maximum node_md_disks
node_md_disks_required node_nf_conntrack_entries node_nf_conntrack_entries_limit node_timex_offset_seconds
node_timex_maxerror_seconds node_timex_sync_status node_time_seconds node_boot_time_seconds node_bonding_active node_bonding_slaves
node_uname_info
"""


def test_everything_that_node_exporters_alerts_and_dashboards_ask_for_is_told(tree: NodeTree, told: Told) -> None:
    bond = tree.interface("bond0")
    tree.write(bond, {"bonding/slaves": "eth0", "lower_eth0/bonding_slave/mii_status": "up"})
    tree.write(tree.sysfs / "block/md0/md", {"raid_disks": "2", "array_state": "clean"})
    tree.write(tree.procfs / "sys/net/netfilter", {"nf_conntrack_count": "1", "nf_conntrack_max": "2"})
    tree.write(tree.procfs / "sys/fs", {"file-nr": "1 0 2"})
    watch = LinkWatch("network", told.events, told.clock, tree.sysfs)
    sources: list[Source] = [
        *(HostSource(), ClockSyncSource(), FilesystemSource(told.events, told.clock)),
        *(KernelTablesSource(tree.procfs, tree.sysfs), InterfaceSource(SpeedWatch(told.events), tree.sysfs)),
        NetworkSource(watch, procfs=tree.procfs, sysfs=tree.sysfs),
    ]
    metrics = {reading.key.metric for source in sources for reading in source.sample()}
    assert set(MIXIN.split()) - metrics == set()


class FileServer:
    """Mounts whose file systems can stop to answer."""

    def __init__(self) -> None:
        self.gone = set[str]()
        self.asked = list[str]()
        self._back = threading.Event()

    def statvfs(self, mountpoint: str) -> os.statvfs_result:
        self.asked.append(mountpoint)
        if mountpoint in self.gone:
            self._back.wait()
        return os.statvfs("/")

    def come_back(self) -> None:
        self.gone.clear()
        self._back.set()


def filesystems(tree: NodeTree, told: Told, server: FileServer, count: int = 3) -> FilesystemSource:
    lines = [mount_line(f"0:{index}", f"/data{index}", "nfs4", f"filer:/{index}") for index in range(count)]
    tree.write(tree.procfs / "self", {"mountinfo": "\n".join(lines)})
    return FilesystemSource(told.events, told.clock, MountProbes(server.statvfs), tree.procfs)


def test_a_mount_that_hangs_costs_its_own_series_alone_is_told_once_and_never_asked_twice(
    tree: NodeTree, told: Told
) -> None:
    server = FileServer()
    server.gone.add("/data1")
    source = filesystems(tree, told, server)
    try:
        for _ in range(4):
            readings = by_name(source.sample())
            told.clock.advance(HANGS_S)
        sizes = [reading for name, reading in readings.items() if "_size_bytes" in name]
        assert [size.value is not None for size in sizes] == [True, False, True]
        errors = [value(readings, name) for name in readings if "device_error" in name]
        assert errors == [0, 1, 0]
        [event] = told.new()
        assert (event.kind, event.detail["mountpoint"], event.detail["device"]) == ("MOUNT_HANGS", "/data1", "filer:/1")
        assert server.asked.count("/data1") == 1
    finally:
        server.come_back()
    readings = by_name(source.sample())
    while any(reading.value is None for reading in readings.values()):
        readings = by_name(source.sample())
    assert told.kinds() == ["MOUNT_ANSWERS"]


def test_a_restart_does_not_tell_the_same_hang_again_and_clears_a_mount_that_is_gone(
    tree: NodeTree, told: Told
) -> None:
    server = FileServer()
    server.gone.add("/data1")
    told_by_each = list[list[str]]()
    try:
        for _ in range(2):
            source = filesystems(tree, told, server)
            for _ in range(3):
                source.sample()
                told.clock.advance(HANGS_S)
            told_by_each.append(told.kinds())
            told.restart()
        assert told_by_each == [["MOUNT_HANGS"], []]
        filesystems(tree, told, server, count=1).sample()
        assert told.kinds() == ["MOUNT_ANSWERS"]
    finally:
        server.come_back()


def test_a_pods_volume_that_hangs_is_told_and_has_no_series(tree: NodeTree, told: Told) -> None:
    server = FileServer()
    volume = "/var/lib/kubelet/pods/a/volumes/data"
    server.gone.add(volume)
    tree.write(tree.procfs / "self", {"mountinfo": mount_line("0:44", volume, "nfs4", "filer:/pods")})
    source = FilesystemSource(told.events, told.clock, MountProbes(server.statvfs), tree.procfs)
    try:
        readings = source.sample()
        told.clock.advance(HANGS_S)
        readings += source.sample()
        assert readings == []
        assert [event.detail["mountpoint"] for event in told.new()] == [volume]
    finally:
        server.come_back()


def test_a_mount_that_cannot_be_named_is_not_one_that_hangs() -> None:
    def statvfs(mountpoint: str) -> os.statvfs_result:
        return os.statvfs(mountpoint.encode("ascii"))

    probes = MountProbes(statvfs)
    for _ in range(2):
        named, other = probes.ask(["/", "/m\u00fcll"], lambda: 0.0)
        assert named.stat is not None
        assert other.reason.startswith("statvfs: 'ascii' codec")


def test_threads_that_hang_are_bounded_and_the_mounts_behind_them_unknown_with_the_reason(
    tree: NodeTree, told: Told
) -> None:
    server = FileServer()
    server.gone.update(f"/data{index}" for index in range(THREADS_MAX + 2))
    before = threading.active_count()
    source = filesystems(tree, told, server, count=THREADS_MAX + 2)
    try:
        for _ in range(3):
            readings = source.sample()
        assert threading.active_count() - before <= THREADS_MAX
        assert any(f"{THREADS_MAX} other file systems hang" in reading.reason for reading in readings)
    finally:
        server.come_back()


def test_a_file_system_that_fails_is_unknown_with_its_error(tree: NodeTree, told: Told) -> None:
    tree.write(tree.procfs / "self", {"mountinfo": mount_line("0:9", f"{tree.procfs}/nowhere", "ext4", "/dev/sda")})
    readings = by_name(FilesystemSource(told.events, told.clock, procfs=tree.procfs).sample())
    reasons = {reading.reason for reading in readings.values() if reading.value is None}
    assert reasons == {"statvfs: No such file or directory"}


def process(tree: NodeTree, pid: int, state: str, wchan: str = "rpc_wait_bit_killable", parent: int = 1) -> None:
    tree.write(tree.procfs / str(pid), {"stat": f"{pid} (a ) D b) {state} {parent} 1 1 0", "wchan": wchan})


def test_processes_that_wait_uninterruptibly_from_one_look_to_the_next_are_counted_by_where(tree: NodeTree) -> None:
    for pid in (10, 11):
        process(tree, pid, "D")
    process(tree, 12, "D", "io_schedule")
    process(tree, 13, "S")
    process(tree, 14, "D", parent=2)
    source = BlockedProcessesSource(tree.procfs)
    assert {reading.key.metric: reading.value for reading in source.sample()} == {METRIC: 0}
    process(tree, 12, "R")
    places = f"{METRIC}_by_place{{'wchan': 'rpc_wait_bit_killable'}}"
    readings = by_name(source.sample())
    assert (value(readings, f"{METRIC}{{}}"), value(readings, places)) == (2, 2)
    process(tree, 10, "S")
    for file in (tree.procfs / "11").iterdir():
        file.unlink()
    (tree.procfs / "11").rmdir()
    readings = by_name(source.sample())
    assert (value(readings, f"{METRIC}{{}}"), value(readings, places)) == (0, 0)


def test_more_processes_than_one_look_holds_are_looked_at_in_turns(
    tree: NodeTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocked, "LOOKS_MAX", 3)
    for pid in range(10, 15):
        process(tree, pid, "D")
    source = BlockedProcessesSource(tree.procfs)
    counts = [source.sample()[0].value for _ in range(4)]
    assert counts == [0, 0, 3, 5]


def test_a_table_that_the_kernel_gives_in_pieces_is_read_to_its_end() -> None:
    """The mounts of a node with hundreds of containers are many pages; one read gives one."""
    files = KernelFiles()
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
        for text in (files.table("/proc/self/maps"), table_once("/proc/self/maps").decode()):
            assert len(text) > 2 * PAGE_BYTES
            assert text.splitlines()[-1] == lines[-1]
            assert len(text.splitlines()) >= 0.9 * len(lines)
    finally:
        files.close()


def test_files_that_are_read_again_and_again_are_bounded_and_follow_a_device_that_is_back(tmp_path: Path) -> None:
    files = KernelFiles()
    try:
        for index in range(OPEN_MAX + 5):
            (tmp_path / str(index)).write_text("1")
            assert files.read(str(tmp_path / str(index))) == b"1"
        (tmp_path / "0").write_text("2")
        assert files.read(str(tmp_path / "0")) == b"2"
        (tmp_path / "0").unlink()
        (tmp_path / "0").write_text("3")
        files.close_under(str(tmp_path / "0"))
        assert files.read(str(tmp_path / "0")) == b"3"
    finally:
        files.close()
