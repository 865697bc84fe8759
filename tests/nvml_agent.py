"""The agent's NVIDIA part in a process of its own, on the driver double: asked line by line, since only a new process loads the double.

Run as a program it is that process; imported, `NvmlAgent` starts and asks it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from switchgear.agent.events import Events, Finding
from switchgear.agent.fault_join import FaultJoin
from switchgear.agent.nvml.driver import NvmlDriver
from switchgear.agent.nvml.lifecycle import Lifecycle
from switchgear.agent.spool import Spool
from switchgear.agent.xids import XidHistory
from switchgear.core.clock import ManualClock

if TYPE_CHECKING:  # the process has no use for it, and starts sooner without
    from nvml_double.scenario import Scenario

#: A read that takes longer hangs.
HANGS_S = 1.5

#: Metric and labels to value, or to the reason why there is none.
Values = Mapping[tuple[Any, ...], float | str]


class NvmlAgent:
    """Asks the process; `close` ends it."""

    def __init__(self, scenario: Scenario, folder: Path, *, patience_s: float = 10.0) -> None:
        """patience_s: how long it waits for the driver."""
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, __file__, str(folder), str(patience_s)]
        self._process = subprocess.Popen(
            command, env=scenario.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.devices: list[dict[str, Any]] = self.ask("devices")

    def ask(self, what: str, **arguments: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"what": what, **arguments}) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def fast(self, gpu: int) -> Values:
        """What the GPU's worker would get now; empty when the call hangs."""
        return self._values(gpu, slow=False)

    def slow(self, gpu: int) -> Values:
        return self._values(gpu, slow=True)

    def told(self) -> list[tuple[str, int | None, int | None]]:
        """Kind, code and GPU of each event, oldest first."""
        return [(kind, code, gpu) for kind, code, gpu, _ in self.ask("told")]

    def told_later(self) -> list[tuple[str, int | None, int | None]]:
        """`told`, each time half a second later."""
        self.advance(0.5)
        return self.told()

    def advance(self, seconds: float) -> None:
        self.ask("advance", seconds=seconds)

    def until(self, ask: Callable[[], Any], expected: Any) -> None:
        """Asks until a change of the scenario has arrived."""
        end_s = time.monotonic() + 8
        while (last := ask()) != expected:
            assert time.monotonic() < end_s, f"it is still {last}, not {expected}"
            time.sleep(0.01)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _values(self, gpu: int, *, slow: bool) -> Values:
        answer = self.ask("read", gpu=gpu, slow=slow)
        return {(metric, *(tuple(label) for label in labels)): value for metric, labels, value in answer}


class _Program:
    def __init__(self, folder: Path, patience_s: float) -> None:
        self.clock = ManualClock()
        self.told = list[tuple[str, int | None, int | None, str]]()
        events = Events(Spool(folder / "spool", "boot"), {}, self.clock, lambda: None, simulated=False)
        xids = XidHistory(self.clock)
        events.observe(xids.observe)
        events.observe(lambda found: self.told.append((found.kind, found.code, found.gpu, found.text)))
        self.events = events
        faults = FaultJoin(events, self.clock, log_source="kernel_log", kernel_log=True)
        self.driver = NvmlDriver(faults.tell, xids, self.clock, sysfs=folder / "sys")
        self._lifecycle = lifecycle = Lifecycle(
            self.driver, faults.tell, self._late, self.clock, retry_s_min=0.05, drain_s=0.5, silent_s=1.0
        )
        self._thread = threading.Thread(target=lifecycle.run, daemon=True)
        self._thread.start()
        lifecycle.wait(patience_s)

    def stop(self) -> bool:
        """Whether it has ended, as the agent does."""
        self._lifecycle.close()
        self._thread.join(5)
        return not self._thread.is_alive()

    def _late(self) -> None:
        self.told.append(("late", None, None, ""))

    def devices(self) -> list[dict[str, Any]]:
        return [{name: getattr(device, name) for name in device.__slots__} for device in self.driver.devices()]

    def read(self, gpu: int, slow: bool) -> list[Any]:
        answer = list[Any]()
        thread = threading.Thread(target=lambda: answer.extend(self.driver.read(gpu, slow=slow)), daemon=True)
        thread.start()
        thread.join(HANGS_S)
        return answer

    def processes(self, gpu: int) -> list[Any]:
        return list(self.driver.processes(gpu))

    def xids(self, pci: str) -> list[Any]:
        return list(self.driver.xids.values(pci))

    def kernel_log(self, code: int, pci: str, kind: str = "XID") -> None:
        finding = Finding(kind, f"NVRM: Xid (PCI:{pci}): {code}", code=code if kind == "XID" else None, pci=pci)
        self.events.tell("kernel_log", finding)

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)


def _main() -> None:
    program = _Program(Path(sys.argv[1]), float(sys.argv[2]))
    for line in sys.stdin:
        request = json.loads(line)
        what = request.pop("what")
        answer = program.told if what == "told" else getattr(program, what)(**request)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main()
