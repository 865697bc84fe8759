"""How the engine uses its Slurm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from switchgear.core.tls import TlsFiles
from switchgear.scheduler.engines.slurm.keys import Key
from switchgear.slurm.client import Slurm
from switchgear.slurm.commands import Commands
from switchgear.slurm.rest import Rest

#: How long a launcher may wait in Slurm for what need not pass by itself; nodes that are idle so long for its sake are a loss that is worth
#: another try, and a backfill scheduler has looked at it by then (`bf_interval`, 30 s).
PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmSettings:
    """cluster: name of this installation in comments, another one than that of each other installation on this Slurm;
    empty: that of the database, which whoever starts the scheduler puts in.
    user: as whom it submits, by Slurm's name.
    state_dir: each launcher has a folder of its own below it, on its node; it need not be shared.
    command: how a launcher is called there, before its arguments. environment: what it finds besides what Slurm sets.
    partitions: nodes and submissions of these alone; empty: all nodes, and Slurm's default partition.
    rest: address of slurmrestd, `unix:/path` or `http://host:port`; empty: Slurm's programs are asked.
    patience_s: how long a launcher may wait in Slurm, beyond a moment's reasons, before it is taken elsewhere or its job gives its nodes back.
    tls: files on each node with which its launchers prove that they are of that node; None: services are plain, on loopback.
    """

    cluster: str
    user: str
    state_dir: Path
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    partitions: tuple[str, ...] = ()
    rest: str = ""
    patience_s: float = PATIENCE_S
    tls: TlsFiles | None = None

    def client(self) -> Slurm:
        return Rest(self.rest) if self.rest else Commands()

    def folder(self, key: Key) -> Path:
        """Private to a job and a node, as launchers need it."""
        return self.state_dir / "launchers" / f"{key.job_id}@{key.node_id}"
