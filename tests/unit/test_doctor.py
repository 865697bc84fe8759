"""What the doctor makes of values of a GPU, and of a node's files."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path
from types import ModuleType

import pytest

from switchgear.agent.doctor import faults, judgement, node, nvidia
from switchgear.agent.doctor.check import Check, State
from switchgear.agent.doctor.deadline import TimedCalls, run


def judged(**values: float | str) -> dict[str, State]:
    prefixes = {"gpu": "switchgear_gpu", "dev": "DCGM_FI_DEV"}
    named = {f"{prefixes[key.split('_')[0]]}_{key.partition('_')[2]}": value for key, value in values.items()}
    return {check.topic: check.state for check in judgement.judge(named)}


def test_a_gpu_of_which_nothing_is_known_has_no_problem() -> None:
    assert judged() == {}
    assert judged(dev_PERSISTENCE_MODE="no permission", gpu_nvlinks="no permission") == {}


def test_a_value_that_is_as_it_should_be_is_no_problem() -> None:
    fine = judged(
        dev_PERSISTENCE_MODE=1, dev_ECC_CURRENT=1, dev_ECC_PENDING=1, dev_PCIE_LINK_WIDTH=16, dev_PCIE_MAX_LINK_WIDTH=16
    )
    assert fine == {}
    assert judged(gpu_nvlinks=18, gpu_nvlinks_active=18, gpu_fabric_state=3) == {
        "NVLink": State.OK,
        "NVLink fabric": State.OK,
    }


@pytest.mark.parametrize(
    ("values", "topic", "state"),
    [
        ({"dev_PERSISTENCE_MODE": 0}, "persistence mode", State.PROBLEM),
        ({"dev_ECC_CURRENT": 1, "dev_ECC_PENDING": 0}, "ECC", State.NOTE),
        ({"dev_MIG_MODE": 1}, "MIG", State.NOTE),
        ({"dev_ROW_REMAP_FAILURE": 1}, "memory", State.PROBLEM),
        ({"dev_THRESHOLD_SRM": 1}, "memory", State.PROBLEM),
        ({"dev_RETIRED_PENDING": 1}, "memory", State.PROBLEM),
        ({"gpu_fabric_state": 2}, "NVLink fabric", State.PROBLEM),
        ({"gpu_fabric_state": 3, "gpu_fabric_status": 999}, "NVLink fabric", State.PROBLEM),
        ({"gpu_recovery_action": 4}, "recovery", State.PROBLEM),
        ({"gpu_recovery_action": 77}, "recovery", State.PROBLEM),
    ],
)
def test_what_is_not_as_it_should_be_is_told(values: dict[str, float | str], topic: str, state: State) -> None:
    assert judged(**values) == {topic: state}


def checks(root: Path) -> dict[str, Check]:
    return {check.topic: check for check in node.examine(root)}


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_bare_node_is_told_what_stays_unseen_and_how_to_mend_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no journalctl, no scontrol
    found = checks(tmp_path)
    states = {topic: found[topic].state for topic in ("kernel log", "InfiniBand", "pressure", "Kubernetes", "Slurm")}
    assert states == {
        "kernel log": State.PROBLEM,
        "InfiniBand": State.NOTE,
        "pressure": State.NOTE,
        "Kubernetes": State.NOTE,
        "Slurm": State.NOTE,
    }
    assert found["kernel log"].remedy.startswith("in a container: hand in the device")
    assert found["pressure"].remedy == "boot with `psi=1`"


def test_an_infiniband_port_that_is_down_is_a_problem_and_an_ethernet_port_is_not(tmp_path: Path) -> None:
    ports = tmp_path / "sys/class/infiniband"
    for device, layer, state in (
        ("mlx5_0", "InfiniBand", "4: ACTIVE"),
        ("mlx5_1", "Ethernet", "1: DOWN"),
        ("mlx5_2", "InfiniBand", "2: INIT"),
    ):
        write(ports / device / "ports/1/link_layer", f"{layer}\n")
        write(ports / device / "ports/1/state", f"{state}\n")
    assert (checks(tmp_path)["InfiniBand"].state, checks(tmp_path)["InfiniBand"].text) == (
        State.PROBLEM,
        "mlx5_2/1 is INIT",
    )
    write(ports / "mlx5_2/ports/1/state", "4: ACTIVE\n")
    assert checks(tmp_path)["InfiniBand"].text == "3 ports, none down"
    (tmp_path / "sys/module/nvidia").mkdir(parents=True)
    assert checks(tmp_path)["GPUDirect RDMA"].state is State.NOTE


def test_a_kubelet_without_its_socket_is_a_problem_and_with_it_pods_have_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "var/lib/kubelet/pod-resources"
    folder.mkdir(parents=True)
    assert checks(tmp_path)["Kubernetes"].state is State.PROBLEM
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(folder)  # the whole path may be too long for a socket
        listening.bind("kubelet.sock")
        assert checks(tmp_path)["Kubernetes"].state is State.OK


def test_a_kernel_log_that_can_be_read_is_fine(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    os.mkfifo(
        tmp_path / "dev/kmsg"
    )  # with somebody at its other end it blocks when it is empty, as the kernel's ring does
    held = os.open(tmp_path / "dev/kmsg", os.O_RDWR)
    try:
        found = checks(tmp_path)
    finally:
        os.close(held)
    assert found["kernel log"] == Check("kernel log", State.OK, "/dev/kmsg can be read")
    assert found["faults"].state is State.OK


def test_the_journal_stands_in_for_the_ring_where_it_shows_kernel_messages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    write(tmp_path / "journalctl", "#!/bin/sh\nexit 0\n")
    (tmp_path / "journalctl").chmod(0o755)
    assert checks(tmp_path)["kernel log"].state is State.PROBLEM
    write(tmp_path / "journalctl", "#!/bin/sh\necho Linux version 6.1\n")
    assert checks(tmp_path)["kernel log"].state is State.NOTE


def test_gpus_of_other_vendors_and_other_devices_are_left_out_of_the_bus(tmp_path: Path) -> None:
    devices = tmp_path / "sys/bus/pci/devices"
    for address, vendor, class_ in (
        ("0000:3b:00.0", "0x10de", "0x030200"),
        ("0000:3b:00.1", "0x10de", "0x040300"),  # its sound
        ("0000:86:00.0", "0x1002", "0x038000"),
        ("0000:18:00.0", "0x10de", "0x030000"),
    ):
        write(devices / address / "vendor", f"{vendor}\n")
        write(devices / address / "class", f"{class_}\n")
    assert [found.address for found in nvidia.pci_gpus(tmp_path)] == ["0000:18:00", "0000:3b:00"]


def test_a_call_that_does_not_come_back_is_named_and_its_work_given_up() -> None:
    module, released = ModuleType("driver"), threading.Event()
    vars(module).update(nvmlQuick=lambda: 7, nvmlHang=released.wait, NVML_CONSTANT=3)
    timed, answers = TimedCalls(module), list[int]()

    def work() -> None:
        answers.extend((timed.nvmlQuick(), timed.NVML_CONSTANT, timed.nvmlQuick()))
        timed.nvmlHang()

    assert run(work, timed, deadline_s=0.05) == "nvmlHang"
    released.set()
    assert (answers, timed.times["nvmlQuick"].calls) == ([7, 3, 7], 2)


def test_what_the_work_raises_is_raised_to_whoever_gave_it() -> None:
    timed = TimedCalls(ModuleType("driver"))

    def work() -> None:
        raise ValueError("as it is")

    with pytest.raises(ValueError, match="as it is"):
        run(work, timed, deadline_s=1.0)


def test_fatal_faults_of_the_kernel_log_are_named_with_how_often_and_lesser_ones_counted() -> None:
    lost = "NVRM: Xid (PCI:0000:3b:00): 79, pid=7, name=python, GPU has fallen off the bus."
    lesser = "NVRM: Xid (PCI:0000:3b:00): 31, pid=7, name=python, Ch 00000010, intr 10000000."
    log = [
        "[    1.000000] usb 1-1: new device",
        f"[    2.000000] {lost}",
        f"[    3.000000] {lesser}",
        f"[   99.000000] {lost}",
    ]
    (told,) = faults.judge(log)
    assert (told.state, told.text) == (State.NOTE, "XID 79 of 0000:3b:00, 2 times since the boot")
    assert told.remedy.endswith(", where it was not mended since")
    (fine,) = faults.judge([log[0], log[2]])
    assert (fine.state, fine.text) == (State.OK, "no fatal one in the kernel log since the boot; 1 of lesser weight")


def test_more_kinds_of_faults_than_a_screen_holds_are_counted() -> None:
    log = [f"[{n}.000000] NVRM: Xid (PCI:0000:{n:02x}:00): 79, GPU has fallen off the bus." for n in range(1, 13)]
    told = [check.text for check in faults.judge(log)]
    assert (len(told), told[-1]) == (9, "and 4 others")
