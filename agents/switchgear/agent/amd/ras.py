"""Which part of an AMD GPU had memory errors (RAS: UMC is the memory, GFX the compute units, XGMI_WAFL the links, …)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from switchgear.agent.amd.library import AmdSmi, Failed
from switchgear.agent.sources.gpu import Value

METRIC = "switchgear_gpu_ecc_block_errors_total"
_TYPES = ("correctable", "uncorrectable", "deferred")


class BlockErrors:
    """Of one GPU; only blocks that had errors have a series."""

    def __init__(self, smi: AmdSmi, handle: Any) -> None:
        self._smi = smi
        self._handle = handle
        self._total = 0.0
        self._values: list[Value] = []

    def values(self, total: float) -> list[Value]:
        """total: errors of the whole GPU. The blocks are asked only when it has changed, for that is a call for each of twenty."""
        if total != self._total:
            self._values = list(self._read())
            self._total = total
        return self._values

    def _read(self) -> Iterator[Value]:
        for block in self._smi.blocks():
            try:
                counts = self._smi.call("gpu_ecc_count", self._handle, block)
            except Failed:  # mostly: this GPU has no such block
                continue
            for kind in _TYPES:
                if count := counts.get(f"{kind}_count", 0):
                    yield METRIC, (("block", block.name), ("type", kind)), float(count)
