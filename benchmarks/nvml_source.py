"""What reading NVIDIA GPUs costs: processor time of the agent's NVML source, on the test double of the driver's library.

    python benchmarks/nvml_source.py [--gpus 8] [--ticks 500]

Prints JSON: microseconds of processor time for one GPU and tick, fast and slow, from the driver's library up to readings; series of one
GPU; memory that `pynvml` takes. A real driver adds its own time, most of which it waits. Exit code 1 when a fast tick of one GPU costs
more than 300 microseconds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from switchgear.agent.nvml.driver import NvmlDriver
from switchgear.agent.nvml.lifecycle import Lifecycle
from switchgear.agent.sources.gpu import GpuSource
from switchgear.agent.xids import XidHistory
from switchgear.core.clock import SystemClock

FAST_US_MAX = 300.0
_INSIDE = "--inside"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--ticks", type=int, default=500)
    parser.add_argument(_INSIDE, action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        return measure(args.ticks)
    sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
    from nvml_double.scenario import Scenario

    with tempfile.TemporaryDirectory() as folder:
        scenario = Scenario(Path(folder), args.gpus, moving=True)
        # The loader looks for the library before a process begins.
        command = [sys.executable, __file__, _INSIDE, "--ticks", str(args.ticks)]
        return subprocess.run(command, env=scenario.environment, check=False).returncode


def measure(ticks: int) -> int:
    """In a process whose driver library is the double."""
    clock = SystemClock()
    before = psutil.Process().memory_info().rss
    driver = NvmlDriver(lambda _: None, XidHistory(clock), clock)
    lifecycle = Lifecycle(driver, lambda _: None, lambda: None, clock)
    threading.Thread(target=lifecycle.run, daemon=True).start()
    lifecycle.wait(30)
    memory_mb = (psutil.Process().memory_info().rss - before) / 1e6
    fast = [GpuSource(driver, device, "node") for device in driver.devices()]
    slow = [GpuSource(driver, device, "node", slow=True) for device in driver.devices()]
    for source in (*fast, *slow, *fast, *slow):  # what is supported, and the first sample of GPM
        source.sample()
    report = {
        "gpus": len(fast),
        "series_fast": len(fast[0].sample()),
        "series_slow": len(slow[0].sample()),
        "fast_us_per_gpu": cost_us(lambda: [source.sample() for source in fast], ticks) / len(fast),
        "slow_us_per_gpu": cost_us(lambda: [source.sample() for source in slow], max(ticks // 15, 10)) / len(slow),
        "fast_us_per_gpu_max": FAST_US_MAX,
        "memory_mb": memory_mb,
    }
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    return int(report["fast_us_per_gpu"] > FAST_US_MAX)


def cost_us(call: Callable[[], object], times: int) -> float:
    start_s = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - start_s) / times * 1e6


if __name__ == "__main__":
    sys.exit(main())
