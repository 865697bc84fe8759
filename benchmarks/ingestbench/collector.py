"""A real collector as a process of its own, on SQLite: what `switchgear serve collector` runs on PostgreSQL, and `up` beside the others.

python -m ingestbench.collector STATE_DIR GRPC METRICS [CONFIG]
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from switchgear.cli.compose import ENDPOINTS, PlaneSettings, running
from switchgear.collector import config
from switchgear.core import log, loop
from switchgear.core.process import until_signal
from switchgear.store.database import sqlite_url


async def serve(state_dir: Path, grpc: str, metrics: str, configuration: Path | None) -> None:
    settings = PlaneSettings(
        services=("collector",),
        state_dir=state_dir,
        database_url=sqlite_url(state_dir / "state.db"),
        grpc=grpc,
        metrics=metrics,
        elsewhere=dict.fromkeys(ENDPOINTS, "127.0.0.1:9"),
        collector=config.load(configuration) if configuration else config.CollectorConfig(),
    )
    async with running(settings):
        await asyncio.Event().wait()


if __name__ == "__main__":
    log.configure("warning", component="collector")
    folder, listen, page, *rest = sys.argv[1:]
    loop.run(until_signal(serve(Path(folder), listen, page, Path(rest[0]) if rest else None)))
