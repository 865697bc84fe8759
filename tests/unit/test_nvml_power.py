"""Whether a GPU sleeps, asked from its own thread and from the one that waits for events."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from switchgear.agent.nvml.power import RuntimePower


def test_threads_that_ask_for_the_first_time_at_once_open_one_file_which_is_closed_at_the_end(tmp_path: Path) -> None:
    status = tmp_path / "bus/pci/devices/0000:18:00.0/power/runtime_status"
    status.parent.mkdir(parents=True)
    status.write_text("active\n")
    gpus = [RuntimePower("0000:18:00.0", tmp_path) for _ in range(400)]
    together = threading.Barrier(2)

    def ask() -> None:
        for gpu in gpus:
            together.wait()
            gpu.suspended()

    def open_files() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    before, interval_s = open_files(), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval_s)
    assert open_files() - before == len(gpus)
    gpus.clear()
    assert open_files() == before
