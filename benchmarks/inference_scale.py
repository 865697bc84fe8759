"""`switchgear inference scale` beside a thousand replicas: how long a look at all of them takes, and what it costs.

The replicas are pages as vLLM has them, served over HTTP by another process on this machine, whose CPU is not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path

from prometheus_client import CollectorRegistry

from switchgear.autoscaler.external.main import ScaleSettings, running
from switchgear.autoscaler.external.settings import REPLICAS_MAX, of_flags
from switchgear.core.clock import SystemClock
from switchgear.core.process import allow_many_open_files

LATENCIES = (
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "request_time_per_output_token_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
    "request_inference_time_seconds",
    "request_prefill_time_seconds",
    "request_decode_time_seconds",
)
BOUNDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)


def page(count: int) -> bytes:
    """What an engine tells that has answered `count` requests."""
    label = '{engine="0",model_name="meta-llama/Llama-3.1-70B-Instruct"}'
    lines = [
        f"vllm:num_requests_waiting{label} 1.0",
        f"vllm:num_requests_running{label} 12.0",
        f"vllm:kv_cache_usage_perc{label} 0.4",
        f"vllm:prompt_tokens_total{label} {count * 900}",
        f"vllm:generation_tokens_total{label} {count * 200}",
        f'vllm:request_success_total{{engine="0",finished_reason="stop",model_name="meta-llama/Llama-3.1-70B-Instruct"}} {count}',
        *(f'python_gc_objects_collected_total{{generation="{number}"}} 17' for number in range(100)),
    ]
    for name in LATENCIES:
        lines += [f"# HELP vllm:{name} Histogram in seconds.", f"# TYPE vllm:{name} histogram"]
        lines += [f'vllm:{name}_bucket{{le="{bound}",{label[1:]} {count}.0' for bound in (*BOUNDS, "+Inf")]
        lines += [f"vllm:{name}_sum{label} {count * 0.3}", f"vllm:{name}_count{label} {count}.0"]
    return ("\n".join(lines) + "\n").encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512


def serve(pipe: Connection) -> None:
    """Serves pages that grow, until it is ended."""
    began_s = time.monotonic()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = page(1000 + int((time.monotonic() - began_s) * 4))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = _Server(("127.0.0.1", 0), Handler)
    pipe.send(server.server_address[1])
    server.serve_forever()


async def measure(port: int, replicas: int, interval_s: float, looks: int) -> tuple[float, float, float]:
    """Mean seconds of a look, CPU seconds of a look, and the largest one's bound in the histogram."""
    urls = tuple(f"http://127.0.0.1:{port}/{number}/metrics" for number in range(replicas))
    config = of_flags({"name": "chat", "endpoints": urls, "max_replicas": 2 * replicas, "interval_s": interval_s})
    registry = CollectorRegistry()
    with tempfile.TemporaryDirectory() as folder:
        settings = ScaleSettings(config.service, Path(folder), "127.0.0.1:0", "127.0.0.1:0")
        async with running(settings, SystemClock(), registry):
            done = 0.0
            while done < 2:  # names of series are new to the parser once
                done = await _looks(registry)
            cpu_s, took_s = _cpu_s(), _sum(registry)
            first = done
            while done < first + looks:
                done = await _looks(registry)
            many = done - first
            return (_sum(registry) - took_s) / many, (_cpu_s() - cpu_s) / many, many


async def _looks(registry: CollectorRegistry) -> float:
    await asyncio.sleep(0.1)
    return registry.get_sample_value("switchgear_autoscaler_look_seconds_count", {"service": "chat"}) or 0.0


def _sum(registry: CollectorRegistry) -> float:
    return registry.get_sample_value("switchgear_autoscaler_look_seconds_sum", {"service": "chat"}) or 0.0


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, default=1000)
    parser.add_argument("--interval", type=float, default=10.0, help="seconds between looks (default: %(default)g)")
    parser.add_argument("--looks", type=int, default=4, help="that are measured (default: %(default)s)")
    args = parser.parse_args()
    if not 1 <= args.replicas <= REPLICAS_MAX // 2:
        parser.error(f"--replicas is {args.replicas}; give 1 to {REPLICAS_MAX // 2}")
    if not 0.1 <= args.interval <= 300:
        parser.error(f"--interval is {args.interval:g}; give 0.1 to 300 seconds")
    if args.looks < 1:
        parser.error(f"--looks is {args.looks}; give 1 or more")
    allow_many_open_files()
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    try:
        look_s, cpu_s, looks = asyncio.run(measure(ours.recv(), args.replicas, args.interval, args.looks))
    finally:
        server.terminate()
        server.join()
    print(
        f"{args.replicas} replicas, pages of {len(page(1000)) / 1000:.0f} kB, {os.cpu_count()} processors: a look takes {look_s:.2f} s and "
        f"{cpu_s:.2f} s of CPU (mean of {looks:.0f}), each {args.interval:g} s"
    )
    return 0 if look_s < args.interval else 1


if __name__ == "__main__":
    sys.exit(main())
