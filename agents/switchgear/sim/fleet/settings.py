"""What a simulated fleet is told at its start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from switchgear.core.errors import Invalid, Reason
from switchgear.core.rpc import split_address
from switchgear.core.tls import TlsFiles
from switchgear.sim.fleet.script import parse_fleet_script
from switchgear.sim.fleet.variant import check_series, gpus_for

NODES_MAX = 20_000
#: Distinct recordings; each costs about 1.5 ms of a core a tick with 320 series.
VARIANTS_MAX = 20
#: Files and sockets of a process beside its connections.
OTHER_FILES = 64
#: Each takes about 40 MB beside what its nodes take.
PROCESSES_MAX = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSettings:
    """Raises Invalid when a value is out of its bounds, or the script is wrong.

    collector: HOST:PORT. nodes: 1 to 20,000, `sim-0001` and so on; this process drives those from the ordinal `first` (1 for the first) on,
    of `total` in all processes (0: these are all).
    series: of each node. interval_s: between samples, 0.1 to 60. seconds: how long; None: until it is stopped.
    warm_up_s: latencies of this time are not counted, 0 to a day. connects_per_s: how fast nodes come at the start, 1 to 5,000. script: text of a fault script (`script.parse_fleet_script`).
    blocks: 0 for samples at their pace; otherwise so many a node as fast as they are acked, with times that end now.
    tls: None for a collector on loopback without.
    """

    collector: str
    nodes: int
    first: int = 1
    total: int = 0
    series: int = 320
    interval_s: float = 1.0
    seconds: float | None = None
    warm_up_s: float = 0.0
    connects_per_s: float = 500.0
    script: str = ""
    seed: int = 7
    blocks: int = 0
    tls: TlsFiles | None = None

    def __post_init__(self) -> None:
        split_address(self.collector)
        check_series(self.series)
        _require(1 <= self.nodes <= NODES_MAX, "nodes", f"must be 1 to {NODES_MAX}")
        _require(0.1 <= self.interval_s <= 60, "interval", "must be 0.1 to 60 seconds")
        _require(self.seconds is None or 0 < self.seconds <= 1e6, "seconds", "must be above 0 and at most 1000000")
        _require(0 <= self.warm_up_s <= 86_400, "warm-up", "must be 0 to 86400 seconds")
        _require(1 <= self.connects_per_s <= 5000, "connects-per-s", "must be 1 to 5000")
        if self.script:  # before processes begin that would find it out by themselves
            parse_fleet_script(self.script, frozenset(self.names()), gpus_for(self.series))
        _require(0 <= self.blocks <= 100_000, "flood", "must be 1 to 100000")

    def names(self) -> list[str]:
        """Ids of the nodes of the whole fleet, `total` of them."""
        return [f"sim-{ordinal:04}" for ordinal in range(1, (self.total or self.nodes) + 1)]


def script_of(path: Path | None) -> str:
    """Raises Invalid when the file cannot be read as text."""
    if path is None:
        return ""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(
            f"cannot read the faults in {path} ({getattr(error, 'strerror', None) or 'no text'}); name a file of lines such as "
            "`at 12s node sim-0007 gpu 3 xid 79`",
            Reason.BAD_FIELD,
            field="faults",
        ) from error


def _require(condition: bool, field: str, message: str) -> None:
    if not condition:
        raise Invalid(f"--{field} {message}", Reason.BAD_FIELD, field=field)
