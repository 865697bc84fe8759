"""One GPU's driver calls never return: what the others keep, and when it is known.

    python benchmarks/gpu_hang.py [--seconds 15] [--json FILE]

The real agent on the test double of the driver's library (`tests/nvml_double`), 8 GPUs at one sample a second, streaming to a real
control plane. After a while every call on GPU 3 hangs; later it answers again. A GPU's samples are seen as its energy counter changes
at /metrics, which is read every 25 ms, so an interval is exact to that. Prints JSON; exit code 1 when an interval of another GPU is
off by more than 0.2 s, the signal came later than 5 s after the hang, a value of the hanging GPU was shown after that, a thread was
started for it, or it was not heard again.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from agentbench.processes import agent, plane

from switchgear.core import rpc
from switchgear.v1.signal_service_pb2 import ListSignalsRequest
from switchgear.v1.signal_service_pb2_grpc import SignalServiceStub

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from nvml_double.scenario import Scenario

GPUS, HUNG = 8, 3
INTERVAL_S = 1.0
OFF_S_MAX = 0.2
TOLD_S_MAX = 5.0
POLL_S = 0.025
_ENERGY = re.compile(rb'^DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION\{gpu="(\d+)".*\} (\S+)$', re.MULTILINE)


class Watch(threading.Thread):
    """Reads /metrics over and over. changed_s: for each GPU the times at which another energy was shown; shown: those of the last page."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self.changed_s = {gpu: list[float]() for gpu in range(GPUS)}
        self.shown = set[int]()
        self._url = f"http://{address}/metrics"
        self._values = dict[int, bytes]()
        self._stopping = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._stopping.wait(POLL_S):
            with urllib.request.urlopen(self._url, timeout=10) as response:  # noqa: S310 - http, as built above
                page = response.read()
            now_s = time.monotonic()
            found = {int(gpu): value for gpu, value in _ENERGY.findall(page)}
            self.shown = set(found)
            for gpu, value in found.items():
                if self._values.get(gpu) != value:
                    self.changed_s[gpu].append(now_s)
            self._values |= found

    def close(self) -> None:
        self._stopping.set()
        self.join()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=15.0, help="how long it hangs (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures go as well")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="switchgear-hang-") as folder:
        figures = measure(Path(folder), args.seconds)
    figures["missed"] = missed(figures)
    text = json.dumps(figures, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text)
    return 1 if figures["missed"] else 0


def measure(folder: Path, seconds: float) -> dict[str, Any]:
    scenario = Scenario(folder / "nvml", GPUS, moving=True)
    with plane(folder) as server, agent(folder, server, scenario.environment) as process:
        watch = Watch(process.metrics)
        time.sleep(6 * INTERVAL_S)
        threads = _threads(process.pid)
        hung_s = time.monotonic()
        scenario.hang(HUNG)
        told_s = _signalled_s(server) - hung_s
        time.sleep(2 * INTERVAL_S)
        gone = HUNG not in watch.shown
        threads_more = _threads(process.pid) - threads
        time.sleep(max(0.0, hung_s + seconds - time.monotonic()))
        released_s = time.monotonic()
        scenario.release(HUNG)
        time.sleep(5 * INTERVAL_S)
        watch.close()
    others = [gap for gpu in range(GPUS) if gpu != HUNG for gap in _gaps(watch.changed_s[gpu], hung_s - 2, released_s)]
    heard = [at_s for at_s in watch.changed_s[HUNG] if at_s > released_s]
    return {
        "gpus": GPUS,
        "interval_s": INTERVAL_S,
        "hung_for_s": round(released_s - hung_s, 1),
        "others": {
            "intervals": len(others),
            "min_s": round(min(others), 3),
            "median_s": round(sorted(others)[len(others) // 2], 3),
            "max_s": round(max(others), 3),
        },
        "seconds_to_signal": round(told_s, 2),
        "its_values_are_unknown": gone,
        "threads_more": threads_more,
        "heard_again_after_s": round(heard[0] - released_s, 2) if heard else None,
    }


def missed(figures: dict[str, Any]) -> list[str]:
    others = figures["others"]
    checks = (
        (others["min_s"] >= INTERVAL_S - OFF_S_MAX, "samples of another GPU came too soon"),
        (others["max_s"] <= INTERVAL_S + OFF_S_MAX, "samples of another GPU came too late"),
        (figures["seconds_to_signal"] <= TOLD_S_MAX, "the hang was told too late"),
        (figures["its_values_are_unknown"], "values of the hanging GPU were still shown"),
        # One that goes on with the others may be new.
        (figures["threads_more"] <= 1, "threads were started for it"),
        (figures["heard_again_after_s"] is not None, "it was not heard again"),
    )
    return [text for kept, text in checks if not kept]


def _gaps(times_s: Sequence[float], start_s: float, end_s: float) -> list[float]:
    return [later - sooner for sooner, later in pairwise(times_s) if start_s <= sooner and later <= end_s]


def _signalled_s(server: str, within_s: float = 30.0) -> float:
    """When the control plane has the signal."""
    end_s = time.monotonic() + within_s
    with rpc.sync_channel(server) as channel:
        signals = SignalServiceStub(channel)
        while time.monotonic() < end_s:
            if any(signal.kind == "SOURCE_STALLED" for signal in signals.ListSignals(ListSignalsRequest()).signals):
                return time.monotonic()
            time.sleep(0.05)
    sys.exit(f"no signal within {within_s:g} s")


def _threads(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())


if __name__ == "__main__":
    sys.exit(main())
