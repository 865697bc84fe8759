"""Requests that are lost while an inference service scales: from none to two replicas, down, to none and back, with one killed.

    python benchmarks/serving.py --minutes 3

A model is trained for a moment, then served by a control plane with three simulated nodes. The load is open loop and seeded, each
answer is checked, and no client sends anything twice. It ends with 1 when a request was lost, cut or answered wrongly, or when the
replicas did not do what the run is about.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from switchgear.cli.client import Client, connect
from switchgear.cli.demo.patience import Patience
from switchgear.cli.demo.serving import TOKENS_PER_SECOND
from switchgear.cli.demo.stage import NODES, Stage, example, wait_for
from switchgear.serve import load
from switchgear.v1 import autoscaler_service_pb2 as autoscaler
from switchgear.v1 import fleet_service_pb2 as fleet
from switchgear.v1 import recovery_service_pb2 as recovery

SERVICE = "inferenceServices/chat"
#: Shares of the run and requests a second. The pause is longer than what the service waits before it scales to zero.
PROFILE = ((0.10, 1.0), (0.40, 5.0), (0.12, 1.0), (0.13, 0.0), (0.25, 5.0))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3.0, help="default: %(default)g, at least 2")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    if args.minutes < 2:
        parser.error("--minutes must be 2 or more: replicas need time to come and go")
    with ExitStack() as ends:
        folder = Path(tempfile.mkdtemp(prefix="switchgear-serving-"))
        ends.callback(shutil.rmtree, folder, ignore_errors=True)
        checkpoints = train(folder)
        stage = Stage(folder)
        ends.callback(stage.close)
        stage.start_control()
        stage.start_agents()
        client = ends.enter_context(connect(stage.addresses.grpc, Patience(stage.check)))
        wait_for("three healthy nodes", lambda: healthy(client), 60, stage.check)
        create(client, folder, checkpoints)
        phases = [load.Phase(args.minutes * 60 * share, rate) for share, rate in PROFILE]
        router = f"http://{stage.addresses.router}"
        settings = load.LoadSettings(url=router, model="chat", phases=phases, seed=args.seed, tokens=(16, 24, 32))
        told: list[load.Report] = []
        traffic = threading.Thread(target=lambda: told.append(asyncio.run(load.run(settings))), daemon=True)
        traffic.start()
        went, killed = watch(client, stage, traffic)
    report = told[0]
    print(load.table(report, phases))
    print(f"ready replicas: {' → '.join(map(str, went))}; {killed}")
    well = report.lost == 0 and bool(killed) and in_order(went, (0, 1, 2, 1, 2, 1, 0, 1))
    print("held" if well else "FAILED: lost requests, or replicas did not go 0 → 2, killed, 2, 0, 1")
    if args.json:
        told_json = {"held": well, "ready_replicas": went, "killed": killed, **report.to_json()}
        args.json.write_text(json.dumps(told_json, indent=2) + "\n")
    return 0 if well else 1


def in_order(went: list[int], wanted: Sequence[int]) -> bool:
    """Whether all of `wanted` came in this order, whatever else came between."""
    rest = iter(went)
    return all(count in rest for count in wanted)


def train(folder: Path) -> Path:
    """Checkpoints of a model that has seen a little."""
    checkpoints = folder / "checkpoints"
    command = [sys.executable, str(example("train_gpt.py")), "--steps", "20", "--checkpoint-dir", str(checkpoints)]
    subprocess.run([*command, "--log-dir", str(folder / "losses")], check=True, stdout=subprocess.DEVNULL)
    return checkpoints


def healthy(client: Client) -> bool | None:
    nodes = client.fleet.ListNodes(fleet.ListNodesRequest()).nodes
    return True if sum(node.state == fleet.Node.HEALTHY for node in nodes) == len(NODES) else None


def create(client: Client, folder: Path, checkpoints: Path) -> None:
    script = [str(example("serve_gpt.py")), "--checkpoint", str(checkpoints)]
    spec = autoscaler.InferenceServiceSpec(
        argv=[*script, "--tokens-per-second-max", str(TOKENS_PER_SECOND)],
        working_directory=str(folder),
        python=sys.executable,
        min_replicas=0,
        max_replicas=2,
        tokens_per_second=TOKENS_PER_SECOND,
        scale_down_delay_seconds=5,
    )
    service = autoscaler.InferenceService(spec=spec)
    client.autoscaler.CreateInferenceService(
        autoscaler.CreateInferenceServiceRequest(inference_service=service, service_id="chat", request_id="chat")
    )


def watch(client: Client, stage: Stage, traffic: threading.Thread) -> tuple[list[int], str]:
    """The numbers of ready replicas in order, and who was killed: one of the first two that are ready together."""
    start_s, went, killed = time.monotonic(), list[int](), ""
    while traffic.is_alive():
        time.sleep(0.2)
        stage.check()
        ready = client.autoscaler.GetInferenceService(
            autoscaler.GetInferenceServiceRequest(name=SERVICE)
        ).ready_replicas
        at_s = time.monotonic() - start_s
        if not went or went[-1] != ready:
            went.append(ready)
            print(f"{at_s:6.1f} s  replicas ready: {ready}", flush=True)
        if not killed and ready == 2:
            killed = kill(client)
            print(f"{at_s:6.1f} s  {killed}", flush=True)
    return went, killed


def kill(client: Client) -> str:
    """SIGKILL of a replica in the middle of its requests; empty while there is none."""
    replicas = client.autoscaler.ListReplicas(autoscaler.ListReplicasRequest(parent=SERVICE)).replicas
    for replica in replicas:
        if replica.state == autoscaler.Replica.READY and replica.running_requests:
            request = recovery.GetJobProgressRequest(name=f"{replica.job}/progress")
            for rank in client.recovery.GetJobProgress(request).ranks:
                os.kill(rank.pid, signal.SIGKILL)
                return f"SIGKILL of {replica.name} with {replica.running_requests} requests in it"
    return ""


if __name__ == "__main__":
    sys.exit(main())
