"""What faults cost: a collector that is killed at full load, and targets of remote write that are slow, refuse or are not there."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agentbench.processes import free_port

from ingestbench.accounts import account, agree
from ingestbench.ingest import GENTLY, SERIES, await_nodes
from ingestbench.processes import Collector, collector, fleet, fleet_summary
from ingestbench.sinks import sink

#: None that loses its GPU.
_XIDS = (13, 31, 43, 45, 63, 74, 94, 95, 119)
#: XIDs of the whole fleet in a second, at any time: also while there is no collector.
_EVENTS_PER_S = 20
_DOWN_S = 2.0
BACK_WITHIN_S = 10.0
_DRAIN_WITHIN_S = 180.0


def kill(folder: Path, nodes: int, seconds: float) -> dict[str, Any]:
    """kill -9 at full load, started again after two seconds: no acked event missing, everybody back, the gap counted."""
    faults = folder / "faults.txt"
    with collector(folder / "collector") as target:
        faults.write_text(_xids(nodes, 600.0))
        flags = ("--nodes", nodes, "--series", SERIES, "--faults", faults, *GENTLY)
        with fleet(folder, target.grpc, *flags) as process:
            joined_s = await_nodes(nodes, folder)
            time.sleep(seconds)
            target.program.kill()
            time.sleep(_DOWN_S)
            target.program.start()
            up_s = time.monotonic()
            # What the fleet said a second ago may be of the time before.
            time.sleep(1.1)
            back_s = 1.1 + await_nodes(nodes, folder)
            # The backlog of all nodes comes behind the live samples.
            before, drained_s = -1.0, 0.0
            while time.monotonic() - up_s < _DRAIN_WITHIN_S:
                late = target.page().get("switchgear_collector_blocks_late_total", 0.0)
                if late == before:
                    break
                before, drained_s = late, time.monotonic() - up_s
                time.sleep(5.0)
            time.sleep(seconds)
            page = target.page()
            process.terminate()
            process.wait(60)
        told = fleet_summary(folder)
        # What was acked is in the database, whatever the collector still remembers.
        stored = _stored(folder / "collector" / "state.db")
    acked = {
        (f"nodes/{node}", sequence)
        for node, newest in told.pop("events_acked_to").items()
        for sequence in range(1, newest + 1)
    }
    missing, twice = len(acked.difference(stored)), len(stored) - len(set(stored))
    return {
        "nodes": nodes,
        "joined_s": joined_s,
        "down_s": _DOWN_S,
        "all_back_s": back_s,
        "drained_s": drained_s,
        "events_made": told["events_made"],
        "events_acked": told["events_acked"],
        "events_stored": len(stored),
        "events_acked_and_missing": missing,
        "events_stored_twice": twice,
        "blocks_late": page.get("switchgear_collector_blocks_late_total", 0.0),
        "blocks_counted_lost": page.get("switchgear_collector_blocks_lost_total", 0.0),
        "blocks_given_up": told["blocks_lost"],
        "fleet": told,
        "passed": bool(acked) and not missing and not twice and back_s <= BACK_WITHIN_S,
    }


def targets(folder: Path, nodes: int, seconds: float) -> dict[str, Any]:
    """A good, a slow, a refusing and an absent target at once: what ingest notices, and whether each lost sample is counted."""
    with sink(folder, "ok") as good, sink(folder, "slow") as slow, sink(folder, "failing") as failing:
        addresses = {
            "good": good.address,
            "slow": slow.address,
            "failing": failing.address,
            "absent": f"127.0.0.1:{free_port()}",
        }
        configuration = "".join(
            f'[[remote_write]]\nname = "{name}"\nurl = "http://{address}/api/v1/write"\ninterval_s = 0\n'
            f"queue_bytes_max = {_QUEUE_BYTES}\n"
            for name, address in addresses.items()
        )
        rows = {"without targets": _ingest(folder / "without", nodes, seconds, "")}
        with collector(folder / "with", configuration) as target:
            rows["with four targets"] = _measured(target, folder / "with", nodes, seconds)
            _settle(target, nodes)
            before = target.page()
            decoded = {"good": good.decoded(), "slow": slow.decoded()}
            page = target.page()
    accounts = {name: account(page, name) for name in addresses}
    agreeing = {name: agree(account(before, name), found["samples"], accounts[name]) for name, found in decoded.items()}
    taken, lossless = _taken(page), accounts["good"]
    values = decoded["good"]["samples"] - decoded["good"]["ended"]
    return {
        "nodes": nodes,
        "queue_bytes_max": _QUEUE_BYTES,
        "samples": taken,
        "ingest": rows,
        "targets": {name: asdict(found) for name, found in accounts.items()},
        "decoded": decoded,
        "counts_agree": agreeing,
        "passed": lossless.sent == lossless.made
        and taken <= values <= taken + lossless.in_doubt
        and all(agreeing.values())
        # All were to get the same, and each sample is in one place of each account.
        and len({found.made for found in accounts.values()}) == 1
        and all(row["blocks_sent"] == row["blocks_applied"] for row in rows.values()),
    }


_QUEUE_BYTES = 8 * 1024**2
_SETTLE_WITHIN_S = 180.0


def _taken(page: Mapping[str, float]) -> float:
    """Samples of all blocks."""
    blocks = 'switchgear_collector_blocks_total{outcome="applied"}', "switchgear_collector_blocks_late_total"
    return SERIES * sum(page.get(name, 0.0) for name in blocks)


def _settle(target: Collector, nodes: int) -> None:
    """Waits until the series of a fleet that is gone have ended and nothing waits for a target that takes samples, but not for ever."""
    end_s = time.monotonic() + _SETTLE_WITHIN_S
    while time.monotonic() < end_s:
        page = target.page()
        taking = [account(page, name) for name in ("good", "slow")]
        if all(found.made >= _taken(page) + nodes * SERIES and not found.waiting for found in taking):
            return
        time.sleep(2.0)


def _ingest(folder: Path, nodes: int, seconds: float, configuration: str) -> dict[str, Any]:
    with collector(folder, configuration) as target:
        return _measured(target, folder, nodes, seconds)


def _measured(target: Collector, folder: Path, nodes: int, seconds: float) -> dict[str, Any]:
    warm_up_s = nodes / 500 + 10
    flags = ("--nodes", nodes, "--series", SERIES, "--warm-up", warm_up_s, "--seconds", warm_up_s + seconds)
    with fleet(folder, target.grpc, *flags) as process:
        process.wait()
    told = fleet_summary(folder)
    applied = target.page().get('switchgear_collector_blocks_total{outcome="applied"}', 0.0)
    return {
        "blocks_sent": told["blocks_sent"],
        "blocks_applied": applied,
        "ack_p50_s": told["ack_p50_s"],
        "ack_p99_s": told["ack_p99_s"],
    }


def _xids(nodes: int, seconds: float) -> str:
    """A fault script with XIDs in random places."""
    rng = random.Random(7)
    lines = [
        f"at {number * 1000 // _EVENTS_PER_S}ms node sim-{rng.randint(1, nodes):04} gpu {rng.randrange(8)} "
        f"xid {rng.choice(_XIDS)}"
        for number in range(min(10_000, int(seconds * _EVENTS_PER_S)))
    ]
    return "\n".join(lines)


def _stored(database: Path) -> list[tuple[str, int]]:
    """Node and number of each event of an agent in the database; the collector has some of its own."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        rows = connection.execute("SELECT node, sequence FROM collector_events WHERE source != 'collector'").fetchall()
    return [(str(node), int(sequence)) for node, sequence in rows]
