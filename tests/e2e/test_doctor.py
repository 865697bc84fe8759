"""`switchgear doctor` as a process: on the double of the driver's library, and on a machine without a GPU."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from amdsmi_double.build import build_or_skip as build_amdsmi_or_skip
from nvml_double.fixtures import run_python, scenario_or_skip
from nvml_double.scenario import NO_PERMISSION, SYSTEM, UNKNOWN, Scenario
from terminal import SWITCHGEAR

from switchgear.agent.nvml.library import SONAME


@pytest.fixture
def node(tmp_path: Path) -> Scenario:
    return scenario_or_skip(tmp_path / "nvml", gpus=4)


def doctor(node: Scenario | None, *options: str) -> subprocess.CompletedProcess[str]:
    command = [*SWITCHGEAR, "doctor", *options]
    environment = node.environment if node is not None else None
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def report(node: Scenario | None, *options: str) -> dict[str, Any]:
    """What it prints as JSON; its exit code must agree."""
    ended = doctor(node, "--json", *options)
    found: dict[str, Any] = json.loads(ended.stdout)
    assert ended.returncode == (1 if found["problems"] else 0), ended.stderr
    return found


def problems(found: dict[str, Any]) -> dict[str, tuple[str, list[int]]]:
    """Text and GPUs by topic, of problems of GPUs; each must have a remedy."""
    of_gpus = [check for check in found["checks"] if check["state"] == "problem" and check["gpus"]]
    assert all(check["remedy"] for check in of_gpus)
    return {check["topic"]: (check["text"], check["gpus"]) for check in of_gpus}


def test_a_healthy_node_is_told_once_for_all_gpus_and_with_every_call_timed(node: Scenario) -> None:
    found = report(node, "--gpu")
    texts = {check["topic"]: check for check in found["checks"]}
    assert texts["driver"]["text"] == "driver 570.133.20, NVML 12.570.133.20, CUDA 12.8"
    assert texts["NVLink"]["gpus"] == [0, 1, 2, 3]
    assert {"model", "profiling", "driver events", "NVLink fabric", "metrics", "kernel log", "clock"} <= texts.keys()
    assert problems(found) == {}
    gpu = found["gpus"][3]
    assert (gpu["model"], gpu["pciBusId"]) == ("NVIDIA H100 80GB HBM3", "00000000:4B:00.0")
    assert gpu["info"]["DCGM_FI_DEV_SERIAL"] == "1652023000003"
    assert {"DCGM_FI_DEV_POWER_USAGE", "DCGM_FI_PROF_SM_ACTIVE"} <= set(gpu["supported"])
    assert "DCGM_FI_DEV_FAN_SPEED" in gpu["unsupported"]
    assert gpu["calls"]["nvmlDeviceGetFieldValues"]["calls"] > 0
    assert gpu["calls"]["nvmlDeviceGetFieldValues"]["maxMs"] > 0


def test_what_is_wrong_with_a_gpu_is_told_with_its_number_and_a_remedy(node: Scenario) -> None:
    node.set(0, persistence=0)
    node.set(2, persistence=0, remapped__pending=1, fi__144="uint 1", pcie__width=8, fi__230="uint 2")
    node.put(3, {"fi.165.5": "uint 0", "nvlink.5.state": 0, "fi.1": "uint 0"})
    ended = doctor(node, "--gpu")
    assert ended.returncode == 1
    assert "problem  GPU 0,2: persistence mode" in ended.stdout
    assert "-> `systemctl enable --now nvidia-persistenced`" in ended.stdout
    assert problems(report(node)) == {
        "persistence mode": (
            "off: the driver is unloaded when nobody uses the GPU, and the next first call takes seconds",
            [0, 2],
        ),
        "memory": ("rows or pages with errors are taken out at the next reset", [2]),
        "PCIe": ("x8 where GPU and slot have x16", [2]),
        "recovery": ("the driver wants NODE_REBOOT", [2]),
        "NVLink": ("17 of 18 links are up", [3]),
        "ECC": ("off: errors of the memory corrupt results and are counted by nobody", [3]),
    }


def test_a_gpu_that_hangs_costs_one_deadline_and_hides_nothing_of_the_others(node: Scenario) -> None:
    node.hang(1, "nvmlDeviceGetPowerUsage")
    node.lose(2)
    begun_s = time.monotonic()
    found = report(node, "--gpu", "--deadline-s", "1")
    assert time.monotonic() - begun_s < 30
    assert {gpu["index"]: gpu["hangsIn"] for gpu in found["gpus"]} == {
        0: "",
        1: "nvmlDeviceGetPowerUsage",
        2: "",
        3: "",
    }
    told = [(check["text"], check["gpus"]) for check in found["checks"] if check["topic"] == "driver calls"]
    assert told == [
        ("nvmlDeviceGetPowerUsage does not come back within 1 s; nothing more was asked of this GPU", [1]),
        ("does not answer: GPU is lost", [2]),
    ]
    assert found["gpus"][1]["uuid"], "what it said before it hung stands"
    assert found["gpus"][0]["supported"] == found["gpus"][3]["supported"]


def test_a_driver_that_refuses_the_first_questions_hides_nothing_of_the_node(node: Scenario) -> None:
    node.fail(SYSTEM, "nvmlSystemGetCudaDriverVersion_v2", UNKNOWN)
    found = report(node)
    assert {check["topic"]: check["text"] for check in found["checks"]}[
        "driver"
    ] == "driver 570.133.20, NVML 12.570.133.20"
    assert len(found["gpus"]) == 4
    node.fail(SYSTEM, "nvmlDeviceGetCount_v2", UNKNOWN)
    checks = {check["topic"]: check for check in report(node)["checks"]}
    assert (checks["driver"]["state"], checks["driver"]["text"]) == (
        "problem",
        "does not say what GPUs there are: Unknown Error",
    )
    assert {"kernel log", "clock"} <= checks.keys()


def test_a_gpu_whose_answers_nobody_understands_hides_nothing_of_the_others(node: Scenario) -> None:
    with (node.folder / "scenario").open("ab") as file:
        file.write(b"1.name \xff\xfe\n")  # what pynvml cannot decode
    found = report(node)
    text, gpus = problems(found)["driver calls"]
    assert (text.partition(":")[0], gpus) == ("what it answers is not understood", [1])
    assert "UnicodeDecodeError" in text
    assert [bool(gpu["supported"]) for gpu in found["gpus"]] == [True, False, True, True]


def test_a_driver_that_hangs_or_is_not_loaded_is_told_instead_of_waited_for(node: Scenario) -> None:
    node.put(SYSTEM, {"hang.nvmlInitWithFlags": 1})
    hanging = [check for check in report(node, "--deadline-s", "0.5")["checks"] if check["topic"] == "driver"]
    assert hanging[0]["text"] == "nvmlInit does not come back within 0.5 s"
    node.remove(SYSTEM, "hang.nvmlInitWithFlags")
    node.unload_driver()
    unloaded = [check for check in report(node, "--gpu")["checks"] if check["topic"] == "driver"]
    assert (unloaded[0]["state"], "modprobe nvidia" in unloaded[0]["remedy"]) == ("problem", True)


def test_a_refused_metric_is_told_with_the_reason(node: Scenario) -> None:
    node.fail(0, "nvmlDeviceGetPowerUsage", NO_PERMISSION)
    found = report(node)
    assert found["gpus"][0]["refused"] == {"DCGM_FI_DEV_POWER_USAGE": "Insufficient Permissions"}
    assert problems(found)["metrics"] == ("1 refused: Insufficient Permissions", [0])


def test_a_gpu_that_is_asleep_is_not_woken_and_one_that_the_driver_lacks_is_missed(
    node: Scenario, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    for bus in ("18", "29", "3a", "4b"):
        folder = root / f"sys/bus/pci/devices/0000:{bus}:00.0"
        (folder / "power").mkdir(parents=True)
        for name, text in (("vendor", "0x10de"), ("class", "0x030200"), ("power/runtime_status", "active")):
            (folder / name).write_text(f"{text}\n")
        (root / "sys/bus/pci/drivers/nvidia").mkdir(parents=True, exist_ok=True)
        (folder / "driver").symlink_to(root / "sys/bus/pci/drivers/nvidia")
    (root / "sys/bus/pci/devices/0000:29:00.0/power/runtime_status").write_text("suspended\n")
    code = f"""
from pathlib import Path
from switchgear.agent.doctor.report import examine
found = examine(gpus_expected=True, deadline_s=10, root=Path({str(root)!r}))
print([(check.state.value, check.text, check.gpus) for check in found.checks if check.topic in ("power", "GPUs")])
"""
    asleep = "asleep (PCI runtime suspend); the agent does not wake it, and neither does this"
    assert run_python(node, code) == f"[('ok', 'the driver has 4', ()), ('note', '{asleep}', (1,))]\n"
    assert (node.calls().on(1), node.calls().on(0) > 10) == (0, True)
    node.remove(3, "present")
    assert run_python(node, code) == "[('problem', 'the PCI bus has 4, the driver 3', ())]\n"


def test_amd_gpus_are_told_beside_and_their_samples_timed(tmp_path: Path) -> None:
    (tmp_path / "sys/module/amdgpu").mkdir(parents=True)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/kfd").touch()
    code = f"""
import json
from pathlib import Path
from amdsmi_double import board
from switchgear.agent.doctor.report import examine
board.node(2)
print(json.dumps(examine(gpus_expected=True, deadline_s=10, root=Path({str(tmp_path)!r})).as_json()))
"""
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "ROCM_PATH": str(build_amdsmi_or_skip()), "PYTHONPATH": paths}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    found = json.loads(ended.stdout)
    texts = {check["topic"]: (check["text"], check["gpus"]) for check in found["checks"]}
    assert texts["AMD driver"] == ("amdgpu 6.12.12; 2 GPUs", [])
    assert texts["model"] == ("AMD Instinct MI300X", [0, 1])
    assert texts["metrics"][1] == [0, 1]
    assert {"DCGM_FI_DEV_POWER_USAGE", "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL"} <= set(found["gpus"][1]["supported"])
    assert found["gpus"][1]["calls"].keys() == {"fast sample", "slow sample"}


def test_without_a_gpu_there_is_a_note_and_a_problem_only_where_one_should_be() -> None:
    try:
        ctypes.CDLL(SONAME)
    except OSError:
        pass
    else:
        pytest.skip("this machine has an NVIDIA driver")
    here = {check["topic"]: check["state"] for check in report(None)["checks"]}
    assert here["driver"] == "note"
    wanted = [check for check in report(None, "--gpu")["checks"] if check["topic"] == "driver"]
    assert (wanted[0]["state"], wanted[0]["text"]) == ("problem", "libnvidia-ml.so.1 is not found")
    assert wanted[0]["remedy"].startswith("install the NVIDIA driver")


def test_help_says_how_to_use_it_and_a_deadline_out_of_bounds_is_refused() -> None:
    assert "switchgear doctor --gpu --json | jq" in doctor(None, "--help").stdout
    refused = doctor(None, "--deadline-s", "0")
    assert (refused.returncode, "deadline_s must be more than 0" in refused.stderr) == (2, True)
