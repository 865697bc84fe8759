"""How what is ours is known again in Slurm: launchers by the comments of their jobs, drains by the end of their reasons."""

from __future__ import annotations

import re
from dataclasses import dataclass

_PREFIX = "switchgear:"
#: Slurm keeps longer reasons, and cuts them in its tables.
_REASON_LENGTH_MAX = 200


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """A launcher. job, node: resource names; epoch: of the placement that it was started for; created: when its job was, in nanoseconds."""

    job: str
    epoch: int
    node: str
    created: int

    @property
    def job_id(self) -> str:
        return self.job.partition("/")[2]

    @property
    def node_id(self) -> str:
        return self.node.partition("/")[2]


def comment_of(key: Key, cluster: str) -> str:
    """The idempotency key of a submission. cluster: name of the installation; two on one Slurm have different ones."""
    return f"{_PREFIX}{cluster}:{key.job_id}:{key.epoch}:{key.node_id}:{key.created:x}"


def key_of(comment: str, cluster: str) -> Key | None:
    """None when the job is not ours."""
    match = re.fullmatch(f"{_PREFIX}{re.escape(cluster)}:([^:]+):([0-9]{{1,18}}):([^:]+):([0-9a-f]{{1,16}})", comment)
    return Key(f"jobs/{match[1]}", int(match[2]), f"nodes/{match[3]}", int(match[4], 16)) if match else None


def name_of(key: Key, cluster: str) -> str:
    """Name of its Slurm job. With the dependency `singleton` no two jobs of one name run at once, so an epoch is no part of it:
    a launcher waits until the one before it on its node has ended. That of another installation's job of the same name it need not wait for."""
    return f"{key.job_id}:{key.node_id}:{cluster}"


def drain_reason(reason: str, cluster: str) -> str:
    """Of a drain that is ours to undo."""
    return f"switchgear: {' '.join(reason.split())[:_REASON_LENGTH_MAX]} [{cluster}]"


def is_our_drain(reason: str, cluster: str) -> bool:
    return reason.startswith("switchgear: ") and reason.endswith(f"[{cluster}]")
