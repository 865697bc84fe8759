"""A service that borrows the GPU it needs of training, is updated under load, and gives it back: what that costs both.

    python benchmarks/borrowing.py

Training has every GPU of three nodes. A service of a higher priority asks for one; training checkpoints and gives way. While requests
come, the replicas are updated one by one. Then the service goes, and training goes on. It ends with 1 when a request was lost, or when
more steps were made again than those since the checkpoint from which training went on.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from autoscaling_live import SERVICE, TOKENS_PER_SECOND, healthy, model, serving

from switchgear.cli.client import Client, connect, progress_of, whole_list
from switchgear.cli.demo.patience import Patience
from switchgear.cli.demo.stage import GPUS_PER_NODE, NODES, Stage, example, wait_for
from switchgear.serve import load
from switchgear.v1 import autoscaler_service_pb2 as autoscaler
from switchgear.v1 import job_service_pb2 as jobs
from switchgear.v1 import recovery_service_pb2 as recovery

JOB = "jobs/llama"
CHECKPOINT_EVERY = 20
#: A checkpoint each six seconds, on processors that serve meanwhile.
STEP_SLEEP_S = 0.2
LOAD_S, LOAD_RATE = 30.0, 2.0
WITHIN_S = 120.0
T = TypeVar("T")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    os.environ["SWITCHGEAR_PLANNER"] = "guaranteed-run=10s"
    with ExitStack() as ends:
        folder = Path(tempfile.mkdtemp(prefix="switchgear-borrowing-"))
        ends.callback(shutil.rmtree, folder, ignore_errors=True)
        stage = Stage(folder)
        ends.callback(stage.close)
        stage.start_control()
        stage.start_agents()
        client = ends.enter_context(connect(stage.addresses.grpc, Patience(stage.check)))
        wait_for("three healthy nodes", lambda: healthy(client), 60, stage.check)
        return measure(client, stage, folder)


def measure(client: Client, stage: Stage, folder: Path) -> int:
    def until(what: str, found: Callable[[], T | None]) -> T:
        return wait_for(what, found, WITHIN_S, stage.check)

    train(client, folder)
    checkpoint = model(folder)
    until("three checkpoints", lambda: True if step(client) >= 3 * CHECKPOINT_EVERY else None)
    began_s = time.monotonic()
    create(client, folder, checkpoint)
    lent = until("training to give way", lambda: of_job(client) if of_job(client).HasField("lent") else None)
    gave_way_s = time.monotonic() - began_s
    until("the replica", lambda: serving(client).ready_replicas or None)
    ready_s = time.monotonic() - began_s
    loan = serving(client).loans[0]
    print(f"gave way after {gave_way_s:.1f} s, the replica answered after {ready_s:.1f} s; {lent.message}")
    print(f"{SERVICE} has {loan.gpus} of {lent.lent.gpus} GPUs of {loan.lender}")

    report = loaded(client, stage, until)
    client.autoscaler.DeleteInferenceService(autoscaler.DeleteInferenceServiceRequest(name=SERVICE))
    back_s = time.monotonic()
    first = attempts(client)[0]
    until("training to go on", lambda: True if step(client) > first.last_step + 1 else None)
    again = attempts(client)[1]
    redone, since = progress_of_job(client).steps_redone, first.last_step - again.resume_step
    print(
        f"training goes on {time.monotonic() - back_s:.1f} s after the service was deleted, from step {again.resume_step}"
    )
    print(f"first attempt: {first.end_reason}, at step {first.last_step}; {redone} steps made again")
    print(f"{len(report.outcomes)} requests through the update, {report.lost} lost")
    held = report.lost == 0 and redone <= since + 1
    print("held" if held else "FAILED")
    return 0 if held else 1


def train(client: Client, folder: Path) -> None:
    spec = jobs.JobSpec(
        argv=[
            str(example("train_gpt.py")),
            *("--steps", "100000", "--checkpoint-every", str(CHECKPOINT_EVERY), "--step-sleep", str(STEP_SLEEP_S)),
            *("--checkpoint-dir", str(folder / "checkpoints")),
        ],
        working_directory=str(folder),
        python=sys.executable,
        nnodes=len(NODES),
        nproc_per_node=GPUS_PER_NODE,
        max_restarts=3,
        checkpoint_directory=str(folder / "checkpoints"),
    )
    client.jobs.CreateJob(jobs.CreateJobRequest(job=jobs.Job(spec=spec), job_id="llama", request_id="llama"))


def create(client: Client, folder: Path, checkpoint: Path) -> None:
    script = [str(example("serve_gpt.py")), "--checkpoint", str(checkpoint)]
    spec = autoscaler.InferenceServiceSpec(
        argv=[*script, "--tokens-per-second-max", str(TOKENS_PER_SECOND)],
        working_directory=str(folder),
        python=sys.executable,
        min_replicas=1,
        max_replicas=1,
        tokens_per_second=TOKENS_PER_SECOND,
        priority=10,
    )
    service = autoscaler.InferenceService(spec=spec)
    client.autoscaler.CreateInferenceService(
        autoscaler.CreateInferenceServiceRequest(inference_service=service, service_id="chat", request_id="chat")
    )


def loaded(client: Client, stage: Stage, until: Callable[[str, Callable[[], bool | None]], bool]) -> load.Report:
    """What came of requests that were sent while the replica was replaced."""
    settings = load.LoadSettings(
        url=f"http://{stage.addresses.router}", model="chat", phases=(load.Phase(LOAD_S, LOAD_RATE),)
    )
    told: list[load.Report] = []
    traffic = threading.Thread(target=lambda: told.append(asyncio.run(load.run(settings))), daemon=True)
    traffic.start()
    time.sleep(LOAD_S / 6)
    spec = serving(client).spec
    spec.environment["VERSION"] = "2"
    client.autoscaler.UpdateInferenceService(
        autoscaler.UpdateInferenceServiceRequest(name=SERVICE, spec=spec, request_id="update")
    )

    def replaced() -> bool | None:
        service = serving(client)
        return True if service.ready_replicas == 1 and not service.outdated_replicas else None

    time.sleep(1)
    until("the update", replaced)
    traffic.join()
    return told[0]


def of_job(client: Client) -> jobs.Job:
    return client.jobs.GetJob(jobs.GetJobRequest(name=JOB))


def progress_of_job(client: Client) -> recovery.JobProgress:
    return progress_of(client, JOB) or recovery.JobProgress()


def step(client: Client) -> int:
    return progress_of_job(client).step


def attempts(client: Client) -> list[recovery.Attempt]:
    """The oldest first."""
    request = recovery.ListAttemptsRequest(parent=JOB)
    return whole_list(client.recovery.ListAttempts, request, "attempts")


if __name__ == "__main__":
    sys.exit(main())
