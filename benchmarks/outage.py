"""The collector goes away, the agent is killed meanwhile, faults go on: what arrives in the end, and in which order.

    python benchmarks/outage.py [--seconds 60] [--interval 1] [--json FILE]      (600 for the ten minutes of the claim)

A real agent process with two simulated GPUs streams to a real collector with its database. The collector is taken away for --seconds; half
way through the agent gets SIGKILL and is started again two seconds later; an XID is injected all the while, also while no agent lives. Then the
collector comes back, on the same database and with empty windows. Exit code 1 unless each XID is stored exactly once, blocks received
and blocks counted as lost are all that were made, the newest block comes before the first of the backlog, and live blocks go on coming in
time while the backlog comes in.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import sqlite3
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from wirebench.relay import Seen, relaying

from switchgear.collector.main import build
from switchgear.core import rpc
from switchgear.core.clock import SystemClock
from switchgear.core.service import Endpoints
from switchgear.sim.inject import inject_xid
from switchgear.store.database import Database, sqlite_url

#: Each GPU gets each code once before any comes again: the same fault within seconds would be told as one.
XIDS = range(1, 73)
DEAD_S = 2.0
#: How late a live block may be beside a backlog, on a machine that has other work as well.
LATE_S_MAX = 2.0
WITHIN_S = 60.0


class Plane:
    """A collector behind a relay on one address, there or not there."""

    def __init__(self, folder: Path) -> None:
        self.database = folder / "state.db"
        self.address = f"127.0.0.1:{free_port()}"
        self.seen = Seen()

    @asynccontextmanager
    async def up(self) -> AsyncIterator[None]:
        database = Database(sqlite_url(self.database))
        await database.migrate()
        service, server = build(database, SystemClock()), rpc.Server()
        service.register(server.grpc)
        target = await server.start("127.0.0.1:0", service.service_names)
        running = asyncio.create_task(service.run(Endpoints.all_at(target)))
        try:
            async with relaying(self.address, target, self.seen):
                yield
        finally:
            await server.stop(0)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await database.close()

    def stored(self) -> dict[str, int]:
        """How often each XID line is in the database."""
        with sqlite3.connect(f"file:{self.database}?mode=ro", uri=True) as connection:
            rows = connection.execute("SELECT text, count(*) FROM collector_events WHERE kind = 'XID' GROUP BY text")
            return dict(rows.fetchall())


class Node:
    """The agent's process, and its faults."""

    def __init__(self, folder: Path, address: str, interval_s: float) -> None:
        self.state_dir = folder / "agent"
        self.injected = 0
        self._command = [
            sys.executable, "-m", "switchgear.agent", "--server", address, "--node", "n1", "--state-dir", str(self.state_dir),
            "--sim-gpus", "2", "--interval", str(interval_s), "--warm-kinds", "0",
        ]  # fmt: skip
        self._log = (folder / "agent.log").open("ab")
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(*self._command, stderr=self._log)

    async def kill(self) -> None:
        assert self.process is not None
        if self.process.returncode is None:
            os.kill(self.process.pid, signal.SIGKILL)
        await self.process.wait()

    async def break_things(self, every_s: float) -> None:
        """An XID now and then, until cancelled."""
        while not (self.state_dir / "sim-gpus.json").exists():  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.05)
        while True:
            inject_xid(self.state_dir, self.injected % 2, XIDS[self.injected // 2 % len(XIDS)])
            self.injected += 1
            await asyncio.sleep(every_s)


async def outage(folder: Path, seconds: float, interval_s: float) -> dict[str, Any]:
    plane = Plane(folder)
    node = Node(folder, plane.address, interval_s)
    seen = plane.seen
    await node.start()
    breaking = asyncio.create_task(node.break_things(max(0.25, seconds / 60)))
    try:
        async with plane.up():
            await until(lambda: len(seen.arrivals) >= 5)
        down_s = time.monotonic()
        before = len(seen.arrivals)
        await asyncio.sleep(seconds / 2 - DEAD_S / 2)
        await node.kill()
        await asyncio.sleep(DEAD_S)
        await node.start()
        await asyncio.sleep(max(0.0, down_s + seconds - time.monotonic()))
        up_s = time.monotonic()
        async with plane.up():
            await until(lambda: any(arrival.late for arrival in seen.arrivals[before:]))
            breaking.cancel()
            await until(lambda: complete(seen) and len(plane.stored()) == node.injected)
            drained_s = seen_last_late(seen) - up_s
            await asyncio.sleep(2 * interval_s)
    finally:
        breaking.cancel()
        await node.kill()
    return report(seen, before, plane.stored(), node.injected) | {"seconds": seconds, "drained_after_s": drained_s}


def complete(seen: Seen) -> bool:
    """Whether nothing that was made is missing."""
    made, received = made_and_received(seen)
    return received + seen.lost >= made


def made_and_received(seen: Seen) -> tuple[int, int]:
    """Blocks of all epochs up to the newest of each, and how many different ones of them came."""
    newest: dict[str, int] = {}
    for arrival in seen.arrivals:
        newest[arrival.epoch] = max(arrival.sequence, newest.get(arrival.epoch, 0))
    return sum(newest.values()), len({(arrival.epoch, arrival.sequence) for arrival in seen.arrivals})


def seen_last_late(seen: Seen) -> float:
    return max(arrival.monotonic_s for arrival in seen.arrivals if arrival.late)


def report(seen: Seen, before: int, stored: dict[str, int], injected: int) -> dict[str, Any]:
    after = seen.arrivals[before:]
    first_late = next(number for number, arrival in enumerate(after) if arrival.late)
    live = [arrival for arrival in after if not arrival.late]
    beside = [arrival for arrival in live if arrival.monotonic_s <= seen_last_late(seen)]
    made, received = made_and_received(seen)
    result = {
        "xids_injected": injected,
        "xids_stored": len(stored),
        "xids_stored_twice": sum(count > 1 for count in stored.values()),
        "epochs": len({arrival.epoch for arrival in seen.arrivals}),
        "blocks_made": made,
        "blocks_received": received,
        "blocks_late": sum(arrival.late for arrival in after),
        "blocks_counted_lost": seen.lost,
        "blocks_received_twice": len(seen.arrivals) - received,
        "live_blocks_before_the_backlog": first_late,
        "live_age_s_max": max(arrival.age_s for arrival in beside),
    }
    result["passed"] = (
        result["xids_stored"] == injected
        and not result["xids_stored_twice"]
        and received + seen.lost == made
        and first_late >= 1
        and result["live_age_s_max"] <= LATE_S_MAX
    )
    return result


async def until(condition: Any) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not condition():  # noqa: ASYNC110 - the condition is in another process
            await asyncio.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="length of the outage, at least 4 (default: %(default)s)"
    )
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between samples (default: %(default)s)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="switchgear-outage-") as folder:
        result = asyncio.run(outage(Path(folder), args.seconds, args.interval))
    text = json.dumps(result, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text)
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
