"""What the views of the CLI show."""

from __future__ import annotations

from switchgear.cli.show import telemetry_rows, users_by_gpu
from switchgear.v1alpha import telemetry_service_pb2 as telemetry


def gpu(index: int, **labels: str) -> dict[str, str]:
    return {"gpu": str(index), "UUID": f"GPU-{9 - index}", "device": f"nvidia{index}", "hostname": "n1", **labels}


def test_series_are_in_order_of_the_gpus_and_name_a_network_interface_but_not_again_a_gpus_identity() -> None:
    values = [
        telemetry.SeriesValue(metric="temperature", unit="celsius", labels=gpu(10), value=41),
        telemetry.SeriesValue(metric="temperature", unit="celsius", labels=gpu(9), unknown_reason="GPU is lost"),
        telemetry.SeriesValue(metric="links", labels=gpu(2, nvlink="11"), value=1),
        telemetry.SeriesValue(metric="links", labels=gpu(2, nvlink="3"), value=1),
        telemetry.SeriesValue(metric="up", labels={"device": "eth1"}, value=0),
        telemetry.SeriesValue(metric="load", value=1.5),
    ]
    assert telemetry_rows(values) == [
        ("links", "1", "gpu=2,nvlink=3"),
        ("links", "1", "gpu=2,nvlink=11"),
        ("load", "1.5", "-"),
        ("temperature", "unknown: GPU is lost", "gpu=9"),
        ("temperature", "41 celsius", "gpu=10"),
        ("up", "0", "device=eth1"),
    ]


def test_each_user_of_a_gpu_is_named_by_what_is_known_of_it() -> None:
    associations = [
        telemetry.Association(gpu=1, job="jobs/a", pids=[7]),
        telemetry.Association(gpu=1, mig_gpu_instance=3, namespace="ml", pod="train-0", hpc_job=""),
        telemetry.Association(gpu=0, hpc_job="4711", pids=[8]),
        telemetry.Association(gpu=0, pids=[9, 10]),
    ]
    assert users_by_gpu(associations) == {
        1: ["jobs/a", "pod ml/train-0 (instance 3)"],
        0: ["Slurm job 4711", "pid 9, 10"],
    }
