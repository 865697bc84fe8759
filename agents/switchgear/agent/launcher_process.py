"""How a launcher becomes a process: apart from the agent, so that it outlives it."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from switchgear.core.tls import TlsFiles

#: What the agent, or a control plane in the same process, was given for itself. A job that is to have one of them names it.
_SECRETS = frozenset(
    {
        "SWITCHGEAR_DATABASE_URL",
        "SWITCHGEAR_JOIN_TOKEN",
        "SWITCHGEAR_TOKEN",
        "SWITCHGEAR_TOKEN_FILE",
        "PGPASSWORD",
        "PGPASSFILE",
    }
)


@dataclass(frozen=True, slots=True)
class LauncherSettings:
    """What all launchers of a node have in common.

    command: how a launcher is called, before its arguments. address: where other nodes reach its ranks.
    recovery: where a launcher reports; empty: where the command to start it says. autoscaler: where replicas report.
    stop_grace_s: what a launcher gets after SIGTERM to stop its ranks, before SIGKILL. tls: how it proves to be of this node.
    """

    command: tuple[str, ...]
    node: str
    address: str
    recovery: str
    state_dir: Path
    autoscaler: str = ""
    stop_grace_s: float = 10.0
    tls: TlsFiles | None = None


def start_launcher(
    settings: LauncherSettings, arguments: Sequence[str], log_path: Path, stdin: int | None = None
) -> int:
    """Starts one in a session of its own; returns its pid. stdin: None for none. Raises OSError."""
    inherited = {name: value for name, value in os.environ.items() if name not in _SECRETS}
    tls = settings.tls.environment() if settings.tls else {}
    given = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0) if stdin is None else (os.POSIX_SPAWN_DUP2, stdin, 0)
    output = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        return os.posix_spawn(
            settings.command[0],
            [*settings.command, *arguments],
            inherited | tls,
            file_actions=[given, (os.POSIX_SPAWN_DUP2, output, 1), (os.POSIX_SPAWN_DUP2, output, 2)],
            setsid=True,
            setsigmask=[],
            setsigdef=[signal.SIGTERM, signal.SIGINT, signal.SIGPIPE],
        )
    finally:
        os.close(output)
