"""A live service under recorded traffic: real replicas behind the real router, sized by the policy, and every decision decided again.

    python benchmarks/autoscaling_live.py --trace requests.csv.gz --minutes 10

The trace (columns t_s and output_tokens) is pressed into the run, thinned, and its answers shortened, so that two processors carry it
with one to four replicas, which are throttled as a slow device would be. It ends with 1 when a request was lost, cut or answered wrongly,
when the number of replicas never changed, or when the decision log does not replay to the same decisions.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from switchgear.autoscaler import replay
from switchgear.autoscaler.decision_log import Record, read
from switchgear.cli.client import Client, connect
from switchgear.cli.demo.patience import Patience
from switchgear.cli.demo.stage import NODES, Stage, example, wait_for
from switchgear.serve import load, load_trace
from switchgear.v1 import autoscaler_service_pb2 as autoscaler
from switchgear.v1 import fleet_service_pb2 as fleet

SERVICE = "inferenceServices/chat"
REPLICAS_MAX = 4
#: What a replica generates at most: four together are within what two processors do.
TOKENS_PER_SECOND = 60.0
TOKENS_MEAN = 24.0
#: After the last answer the policy looks once more.
INTERVAL_S = 6.0
_MODEL = (
    "import sys, torch; from train_gpt import Gpt; torch.manual_seed(1); "
    "torch.save({'model': Gpt().state_dict()}, sys.argv[1])"
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, required=True, metavar="FILE")
    parser.add_argument("--minutes", type=float, default=10.0, help="default: %(default)g")
    parser.add_argument(
        "--rate", type=float, default=3.5, metavar="R", help="requests a second, on average (%(default)g)"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--shadow", default="hpa:4", metavar="NAME[:TARGET]", help="decides beside (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--log", type=Path, metavar="FILE", help="gets the decision log")
    args = parser.parse_args()
    rows = load_trace.fitted(
        load_trace.read(args.trace),
        seconds=60 * args.minutes,
        requests_per_second=args.rate,
        tokens_mean=TOKENS_MEAN,
        seed=args.seed,
    )
    with ExitStack() as ends:
        folder = Path(tempfile.mkdtemp(prefix="switchgear-live-"))
        ends.callback(shutil.rmtree, folder, ignore_errors=True)
        stage = Stage(folder)
        ends.callback(stage.close)
        stage.start_control()
        stage.start_agents()
        checkpoint = model(folder)
        client = ends.enter_context(connect(stage.addresses.grpc, Patience(stage.check)))
        wait_for("three healthy nodes", lambda: healthy(client), 60, stage.check)
        create(client, folder, checkpoint, args.shadow)
        wait_for("the first replica", lambda: serving(client).ready_replicas or None, 60, stage.check)
        settings = load.LoadSettings(
            url=f"http://{stage.addresses.router}", model="chat", phases=(), trace=rows, seed=args.seed
        )
        told: list[load.Report] = []
        traffic = threading.Thread(target=lambda: told.append(asyncio.run(load.run(settings))), daemon=True)
        traffic.start()
        went = watch(client, stage, traffic)
        time.sleep(INTERVAL_S)
        service = serving(client)
        lines = [
            response.line
            for response in client.autoscaler.WatchDecisions(autoscaler.WatchDecisionsRequest(name=SERVICE))
        ]
    if args.log:
        args.log.write_text("\n".join(lines) + "\n")
    return verdict(args, told[0], went, service, lines)


def verdict(
    args: argparse.Namespace,
    report: load.Report,
    went: list[tuple[float, int]],
    service: autoscaler.InferenceService,
    lines: list[str],
) -> int:
    """Prints what came of it; 0 when all of it held."""
    records = [entry for entry in read(lines, "the decision log") if isinstance(entry, Record)]
    again = replay.again(read(lines, "the decision log"))
    counted = max(1, service.kept_requests + service.broken_requests)
    used_h, span_h = used(records) / 3600, sum(one.seen.interval_s for one in records) / 3600
    held = report.lost == 0 and again.difference is None and len({ready for _, ready in went}) > 1
    result = {
        "held": held,
        **report.to_json(),
        "kept": round(service.kept_requests / counted, 4),
        "ready_replicas": went,
        "replica_hours": round(used_h, 3),
        "replica_hours_of_a_fixed_fleet": round(span_h * max(ready for _, ready in went), 3),
        "shadow": service.shadow.policy,
        "shadow_replica_hours": round(service.shadow.replica_seconds / 3600, 3),
        "decisions": again.decisions,
        "replays_the_same": again.difference is None,
    }
    print(load.table(report, [load.Phase(60 * args.minutes, args.rate)]))
    print(f"ready replicas: {' → '.join(str(ready) for _, ready in went)}")
    print(f"promise kept by {result['kept']:.2%} of {counted} requests")
    print(
        f"{used_h:.3f} replica-hours; always {max(ready for _, ready in went)}: {result['replica_hours_of_a_fixed_fleet']}; "
        f"{service.shadow.policy} would have wanted {result['shadow_replica_hours']}"
    )
    if again.difference:
        print(f"decision {again.difference.number} differs: {again.difference.logged} / {again.difference.again}")
    print(f"{again.decisions} decisions replayed; {'held' if held else 'FAILED'}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if held else 1


def used(records: list[Record]) -> float:
    """Seconds times replicas that existed, starting and draining ones included."""
    return sum(one.seen.interval_s * len(one.seen.replicas) for one in records)


def model(folder: Path) -> Path:
    """A checkpoint of an untrained model: it answers as fast as a trained one."""
    checkpoint = folder / "model.pt"
    environment = {**os.environ, "PYTHONPATH": str(example("train_gpt.py").parent)}
    subprocess.run([sys.executable, "-c", _MODEL, str(checkpoint)], check=True, env=environment)
    return checkpoint


def healthy(client: Client) -> bool | None:
    nodes = client.fleet.ListNodes(fleet.ListNodesRequest()).nodes
    return True if sum(node.state == fleet.Node.HEALTHY for node in nodes) == len(NODES) else None


def serving(client: Client) -> autoscaler.InferenceService:
    return client.autoscaler.GetInferenceService(autoscaler.GetInferenceServiceRequest(name=SERVICE))


def create(client: Client, folder: Path, checkpoint: Path, shadow: str) -> None:
    script = [str(example("serve_gpt.py")), "--checkpoint", str(checkpoint)]
    spec = autoscaler.InferenceServiceSpec(
        argv=[*script, "--tokens-per-second-max", str(TOKENS_PER_SECOND)],
        working_directory=str(folder),
        python=sys.executable,
        min_replicas=1,
        max_replicas=REPLICAS_MAX,
        tokens_per_second=TOKENS_PER_SECOND,
        cold_start_seconds=10,
        shadow_policy=shadow,
    )
    service = autoscaler.InferenceService(spec=spec)
    client.autoscaler.CreateInferenceService(
        autoscaler.CreateInferenceServiceRequest(inference_service=service, service_id="chat", request_id="chat")
    )


def watch(client: Client, stage: Stage, traffic: threading.Thread) -> list[tuple[float, int]]:
    """The numbers of ready replicas in order, each with its second."""
    start_s, went = time.monotonic(), list[tuple[float, int]]()
    while traffic.is_alive():
        time.sleep(0.5)
        stage.check()
        service = serving(client)
        if not went or went[-1][1] != service.ready_replicas:
            went.append((round(time.monotonic() - start_s, 1), service.ready_replicas))
            print(
                f"{went[-1][0]:6.1f} s  ready: {service.ready_replicas}, wanted: {service.desired_replicas}; {service.message}",
                flush=True,
            )
    return went


if __name__ == "__main__":
    sys.exit(main())
