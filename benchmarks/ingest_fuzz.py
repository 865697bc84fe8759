"""A collector among honest agents and a flood of messages that no agent would send: nothing breaks, nothing leaks, nobody else notices.

    python benchmarks/ingest_fuzz.py [--blocks 1000000] [--seed 1] [--streams 32] [--json FILE]

A real collector process takes streams of malformed, oversized, replayed and hostile messages over real gRPC, made from the seed, beside twenty
simulated nodes that stream as agents do. Exit code 1 unless the collector lives to the end with a log without a traceback, no
stream ended with INTERNAL or UNKNOWN, no honest agent lost its connection or a block, and memory stayed level over the second half.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import grpc.aio

sys.path.append(str(Path(__file__).resolve().parent))
from ingestbench.hostile import Hostile
from ingestbench.processes import Collector, collector, fleet, fleet_summary, until

from switchgear.core import loop

HONEST = 20
INTERVAL_S = 0.5
#: Connections of the hostile side; each carries several streams.
CHANNELS = 4
#: Streams are numbered from the seed on, each with its own randomness, so that one that did harm can be had again alone.
SEED_STEP = 1_000_003
RSS_GROWTH_MB_MAX = 48.0
#: The collector answers within this time, or the stream counts as hanging.
WITHIN_S = 60.0
METHOD = "/switchgear.v1alpha.TelemetryService/Stream"
#: What the collector may answer.
CLEAR = {"OK", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "ALREADY_EXISTS", "ABORTED"}
#: What the client's gRPC makes of an answer that came while it was writing; the collector counts what it really was.
OVERTAKEN = "overtaken"


async def flood(address: str, blocks: int, seed: int, streams: int, half: asyncio.Event) -> tuple[Counter[str], int]:
    """Codes of all streams, and how many messages went out. half: set when half of the messages did."""
    codes, sent, number = Counter[str](), 0, 0
    honest = [f"nodes/sim-{node:04d}" for node in range(1, HONEST + 1)]
    options = [("grpc.max_send_message_length", 16 << 20), ("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(CHANNELS)]

    async def work(place: int) -> None:
        nonlocal sent, number
        begin = channels[place % CHANNELS].stream_stream(METHOD)
        hostile = Hostile(seed * SEED_STEP + place, honest, time.time_ns())
        while sent < blocks:
            number += 1
            call = begin()
            went, code = await asyncio.wait_for(_one(call, hostile.stream()), WITHIN_S)
            sent += went
            codes[code] += 1
            if 2 * sent >= blocks:
                half.set()

    async with asyncio.TaskGroup() as tasks:
        for place in range(streams):
            tasks.create_task(work(place))
    for channel in channels:
        await channel.close()
    return codes, sent


async def _one(call: Any, messages: list[bytes]) -> tuple[int, str]:
    """Says all of them, as far as the collector listens; how many, and what it answered."""
    went = 0
    try:
        for message in messages:
            await call.write(message)
            went += 1
        await call.done_writing()
        while await call.read() is not grpc.aio.EOF:
            pass
    except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
        pass
    if await call.details() == "Internal error from Core":
        return went, OVERTAKEN
    return went, (await call.code()).name


async def attack(target: Collector, args: argparse.Namespace) -> dict[str, Any]:
    half = asyncio.Event()
    start_s, cpu_s = time.monotonic(), target.program.cpu_s()
    flooding = asyncio.create_task(flood(target.grpc, args.blocks, args.seed, args.streams, half))
    halving = asyncio.create_task(half.wait())
    await asyncio.wait([flooding, halving], return_when=asyncio.FIRST_COMPLETED)
    rss_half_mb = target.program.rss_mb()
    codes, sent = await flooding
    halving.cancel()
    return {
        "messages": sent,
        "streams": sum(codes.values()),
        "seconds": time.monotonic() - start_s,
        "collector_cpu_seconds": target.program.cpu_s() - cpu_s,
        "codes_at_clients": dict(codes),
        "rss_half_mb": rss_half_mb,
        "rss_end_mb": target.program.rss_mb(),
    }


def run(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    with collector(folder / "collector") as target:
        flags = ("--nodes", HONEST, "--series", 40, "--interval", INTERVAL_S)
        with fleet(folder, target.grpc, *flags) as process:
            until(lambda: _streams(target) >= HONEST, WITHIN_S, lambda: "the honest agents did not come")
            result = loop.run(attack(target, args))
            # Their last blocks are acked together, some seconds later.
            time.sleep(6.0 if args.blocks >= 100_000 else 1.0)
            page = target.page()
            process.terminate()
            process.wait(60)
        alive = target.program.process is not None and target.program.process.poll() is None
        log = target.program.log.read_text()
    told = fleet_summary(folder)
    answers = {
        name.partition('grpc_code="')[2].partition('"')[0]: count
        for name, count in page.items()
        if name.startswith("grpc_server_handled_total") and 'grpc_method="Stream"' in name
    }
    # A client that is gone before its answer counts as one that cancelled.
    bad = (answers.keys() - CLEAR - {"CANCELLED"}) | (result["codes_at_clients"].keys() - CLEAR - {OVERTAKEN})
    result |= {
        "codes_at_collector": answers,
        "tracebacks": log.count("Traceback"),
        "honest": {
            name: told[name]
            for name in ("blocks_made", "blocks_acked", "reconnects", "refusals", "blocks_lost", "resyncs")
        },
    }
    honest = told["reconnects"] == told["refusals"] == told["blocks_lost"] == told["resyncs"] == 0
    level = result["rss_end_mb"] - result["rss_half_mb"] <= RSS_GROWTH_MB_MAX
    result["passed"] = alive and honest and level and not bad and not result["tracebacks"]
    return result


def _streams(target: Collector) -> float:
    return target.page().get("switchgear_collector_streams", 0.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--blocks", type=int, default=1_000_000, help="messages to send")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--streams", type=int, default=32, help="hostile streams at a time")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="switchgear-fuzz-") as folder:
        result = {"seed": args.seed} | run(Path(folder), args)
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
