"""What the double shall answer: a folder with three files, written here and read by the library while it runs.

- `scenario`: lines of `[GPU.]key value`. Without GPU it is of the system, `*.key` holds for each GPU that has no such key
  itself. A key that is not there: NVML_ERROR_NOT_SUPPORTED; the value `! CODE`: that error. Read again within 50 ms of a change.
- `events`: lines of `GPU XID [TYPE [GPU_INSTANCE COMPUTE_INSTANCE]]`, only ever appended to.
- `calls`: written by the library: how often each function and each field was asked, by GPU.

Values are numbers or text, or move by themselves: `ramp START PER_SECOND`, `sine MEAN AMPLITUDE PERIOD_S`,
`noise MEAN AMPLITUDE HOLD_S` (another value each HOLD_S). Field values stand under `fi.ID` or `fi.ID.SCOPE` with their type
before them, as in `fi.138.0 ull ramp 0 4000000`; types: double uint ulong ull sll sint ushort. Keys of the i-th MIG device
begin with `mig.i.`, and it is there once it has `mig.i.gpu_instance`. The other keys are those of boards.py.

Orders for a GPU (`3.hang 1`) or for calls that belong to none (`hang.nvmlEventSetWait_v2 1`): `lost`, `present`; `hang`,
`hang.FUNCTION`; `delay_ms`, `delay_ms.FUNCTION`; `error.FUNCTION CODE`. Orders for the driver: `driver.loaded`,
`driver.generation` (another one is a restart: all answers are NVML_ERROR_UNINITIALIZED until nvmlInit),
`struct_max.FUNCTION N` (the newest version of its struct that it takes).
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from nvml_double import boards
from nvml_double.build import build

SYSTEM = -1
EVERY_GPU = -2
#: NVML_ERROR_*: what the orders mostly need.
NOT_SUPPORTED, NO_PERMISSION, GPU_IS_LOST, UNKNOWN = 3, 4, 15, 999
XID_EVENT = 0x8
_GPUS_MAX = 16
_ROW = struct.Struct(f"64s{_GPUS_MAX + 2}I")


class Calls(NamedTuple):
    """How often each name was asked of a GPU; SYSTEM is whatever belongs to none. Names: `nvmlDevice...`, `field 142`."""

    by_name: Mapping[tuple[str, int], int]

    def of(self, name: str, gpu: int) -> int:
        return self.by_name.get((name, gpu), 0)

    def on(self, gpu: int) -> int:
        """Calls of any function on this GPU."""
        return sum(count for (name, of), count in self.by_name.items() if of == gpu and not name.startswith("field "))


class Scenario:
    """A node with the double as its driver. Each method takes effect within 50 ms in the processes that run on it."""

    def __init__(
        self, folder: Path, gpus: int = 8, *, board: str = "h100", moving: bool = False, without: Sequence[str] = ()
    ) -> None:
        """gpus: healthy ones. board: of `BOARDS`. moving: their values change.

        without: functions that the library does not have. Raises Unbuildable.
        """
        self.folder = folder
        self._library = build(without)
        self._values = {(SYSTEM, key): value for key, value in boards.system().items()}
        self._values[SYSTEM, "epoch"] = str(int(time.time()))
        for index in range(gpus):
            self._values |= {(index, key): value for key, value in boards.gpu(board, index, moving=moving).items()}
        self._as_made = dict(self._values)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "events").touch()
        self._write()

    @property
    def environment(self) -> dict[str, str]:
        """For a process that shall see these GPUs."""
        return {**os.environ, "LD_LIBRARY_PATH": str(self._library), "SWITCHGEAR_NVML_DOUBLE": str(self.folder)}

    def set(self, gpu: int, **values: float | str) -> None:
        """Keys with `__` for each dot: `set(0, power_mw=300_000, utilization__gpu="sine 50 50 60")`."""
        self.put(gpu, {key.replace("__", "."): value for key, value in values.items()})

    def put(self, gpu: int, values: Mapping[str, float | str]) -> None:
        self._values |= {(gpu, key): str(value) for key, value in values.items()}
        self._write()

    def remove(self, gpu: int, *keys: str) -> None:
        for key in keys:
            self._values.pop((gpu, key), None)
        self._write()

    def field(self, gpu: int, field: int, value: float | str, *, kind: str = "ull", scope: int | None = None) -> None:
        """A field value. value: a number, a movement as text, or `! CODE`."""
        key = f"fi.{field}" if scope is None else f"fi.{field}.{scope}"
        text = str(value)
        self.put(gpu, {key: text if text.startswith("!") else f"{kind} {text}"})

    def unsupport(self, gpu: int, *functions: str) -> None:
        self.put(gpu, {f"error.{function}": NOT_SUPPORTED for function in functions})

    def fail(self, gpu: int, function: str, code: int) -> None:
        self.put(gpu, {f"error.{function}": code})

    def lose(self, gpu: int) -> None:
        """Every call on the GPU answers NVML_ERROR_GPU_IS_LOST, in what hangs too."""
        self.set(gpu, lost=1)

    def hang(self, gpu: int, function: str | None = None) -> None:
        """Calls on the GPU do not return until `release`."""
        self.put(gpu, {f"hang.{function}" if function else "hang": 1})

    def release(self, gpu: int, function: str | None = None) -> None:
        self.remove(gpu, f"hang.{function}" if function else "hang")

    def unload_driver(self) -> None:
        self.set(SYSTEM, driver__loaded=0)

    def restart_driver(self) -> None:
        """Loaded again: handles of before are dead, and every call wants nvmlInit first."""
        generation = int(self._values[SYSTEM, "driver.generation"]) + 1
        self.set(SYSTEM, driver__loaded=1, driver__generation=generation)

    def mend(self) -> None:
        """All values as they were made, with the driver started once more."""
        generation = self._values[SYSTEM, "driver.generation"]
        self._values = self._as_made | {(SYSTEM, "driver.generation"): generation}
        self.restart_driver()

    def xid(self, gpu: int, code: int, *, event: int = XID_EVENT) -> None:
        """Whoever waits for events of the GPU gets one. event: bit of NVML_EVENT_TYPE_*."""
        with (self.folder / "events").open("a") as file:
            file.write(f"{gpu} {code} {event}\n")

    def mig(self, gpu: int, instances: Sequence[tuple[int, int]]) -> None:
        """Divides the GPU into (GPU instance, compute instance) of an eighth of its memory each; none: MIG off."""
        values: dict[str, float | str] = {"mig.mode": int(bool(instances)), "mig.pending": int(bool(instances))}
        for index, (gpu_instance, compute_instance) in enumerate(instances):
            values |= {
                f"mig.{index}.gpu_instance": gpu_instance,
                f"mig.{index}.compute_instance": compute_instance,
                f"mig.{index}.name": "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
                f"mig.{index}.uuid": f"MIG-{gpu:08x}-0000-4000-8000-0000000000{gpu_instance:02x}",
                f"mig.{index}.memory.total": 10 * boards.GIBIBYTE,
                f"mig.{index}.memory.used": boards.GIBIBYTE,
                f"mig.{index}.memory.reserved": 0,
                f"mig.{index}.attributes.multiprocessors": 16,
                f"mig.{index}.attributes.gpu_slices": 1,
                f"mig.{index}.attributes.compute_slices": 1,
                f"mig.{index}.attributes.memory_mb": 9_728,
                f"mig.{index}.processes": "",
                f"mig.{index}.gpm.1": 40 + index,
            }
        self.put(gpu, values)

    def calls(self) -> Calls:
        """All calls since the folder was made."""
        path = self.folder / "calls"
        content = path.read_bytes() if path.exists() else b""
        by_name = dict[tuple[str, int], int]()
        for row in range(0, len(content), _ROW.size):
            name, *counts = _ROW.unpack_from(content, row)
            text = name.rstrip(b"\0").decode()
            by_name |= {(text, gpu if gpu < _GPUS_MAX else SYSTEM): n for gpu, n in enumerate(counts[:-1]) if n}
        return Calls(by_name)

    def _write(self) -> None:
        prefix = {SYSTEM: "", EVERY_GPU: "*."}
        lines = [f"{prefix.get(gpu, f'{gpu}.')}{key} {value}\n" for (gpu, key), value in self._values.items()]
        written = self.folder / "scenario.next"
        written.write_text("".join(lines))
        # At once: the library never reads half a scenario.
        written.replace(self.folder / "scenario")
