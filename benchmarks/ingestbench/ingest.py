"""What the collector costs by itself: at its pace, as fast as it goes, and in memory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ingestbench.processes import collector, connected, fleet, fleet_summary, run_fleet, until

SERIES = 320
#: So long the fleet runs before anything is measured, beyond the time in which its nodes join.
_SETTLE_S = 15.0
_JOIN_WITHIN_S = 600.0
#: Settling times that agents which were slowed down get; then what there is is measured, and the bar is missed.
_SLOWED_DOWN_MAX = 12
#: A fleet that is there already is not to be measured while it comes.
GENTLY = ("--connects-per-s", 100)
_FLOOD_STREAMS, _FLOOD_BLOCKS = 64, 2000
_LARGE_NODES, _LARGE_GB_MAX = 10_000, 10.0
_ASKED = "switchgear_collector_interval_asked_seconds"
_HISTOGRAM = "switchgear_collector_block_delay_seconds"


def steady(folder: Path, nodes: int, seconds: float) -> dict[str, Any]:
    """All nodes at 1 Hz, each on its own connection; measured after all have joined."""
    with collector(folder) as target:
        with fleet(folder, target.grpc, "--nodes", nodes, "--series", SERIES, *GENTLY) as process:
            joined_s = await_nodes(nodes, folder)
            time.sleep(_SETTLE_S)
            # Agents that were slowed down while all joined are let go.
            for _ in range(_SLOWED_DOWN_MAX):
                if not target.page().get(_ASKED, 0.0):
                    break
                time.sleep(_SETTLE_S)
            before, cpu_s, start_s = target.page(), target.program.cpu_s(), time.monotonic()
            time.sleep(seconds)
            after, cpu_s = target.page(), target.program.cpu_s() - cpu_s
            span_s = time.monotonic() - start_s
            rss_mb = target.program.rss_mb()
            process.terminate()
            process.wait(60)
        told = fleet_summary(folder)
    applied = grown(before, after, 'switchgear_collector_blocks_total{outcome="applied"}')
    delays = {f"p{100 * share:g}": quantile(before, after, _HISTOGRAM, share) for share in (0.5, 0.99)}
    return {
        "nodes": nodes,
        "series": SERIES,
        "seconds": span_s,
        "joined_s": joined_s,
        "blocks_per_s": applied / span_s,
        "cores": cpu_s / span_s,
        "cpu_us_a_block": 1e6 * cpu_s / applied if applied else None,
        "samples_per_cpu_s": applied * SERIES / cpu_s,
        "block_to_window_s": delays,
        "rss_mb": rss_mb,
        "blocks_lost": grown(before, after, "switchgear_collector_blocks_lost_total"),
        "interval_asked_s": after.get(_ASKED, 0.0),
        "fleet": told,
        "passed": cpu_s <= span_s and applied >= 0.99 * nodes * span_s and (delays["p99"] or 1.0) < 1.0,
    }


def await_nodes(nodes: int, folder: Path) -> float:
    """Waits until all of a fleet stream; returns how long that took, to the second."""
    began_s = time.monotonic()
    until(lambda: connected(folder) >= nodes, _JOIN_WITHIN_S, lambda: f"only {connected(folder)} of {nodes} nodes came")
    return time.monotonic() - began_s


def saturation(folder: Path) -> dict[str, Any]:
    """64 streams as fast as blocks are acked: decoding, deduplication, windows and acks."""
    with collector(folder) as target:
        run_fleet(folder, target.grpc, "--nodes", _FLOOD_STREAMS, "--series", SERIES, "--flood", 120)
        cpu_s = target.program.cpu_s()
        told = run_fleet(folder, target.grpc, "--nodes", _FLOOD_STREAMS, "--series", SERIES, "--flood", _FLOOD_BLOCKS)
        cpu_s = target.program.settled_cpu_s() - cpu_s
        page = target.page()
    samples = told["blocks_acked"] * SERIES
    return {
        "streams": _FLOOD_STREAMS,
        "samples": samples,
        "cpu_s": cpu_s,
        "cpu_us_a_block": 1e6 * cpu_s / told["blocks_acked"],
        "samples_per_cpu_s": samples / cpu_s,
        "samples_per_s": samples / told["flood_s"],
        "blocks": {name: value for name, value in page.items() if name.startswith("switchgear_collector_blocks_total")},
        "fleet": told,
        "passed": samples / cpu_s >= 2e6,
    }


def memory(folder: Path, nodes: int) -> dict[str, Any]:
    """A collector with full windows and all connections: 400 ticks, a minute apart, fill the newest ticks and hours of minutes.

    What the windows take by themselves: `window_memory.py`.
    """
    with collector(folder) as target:
        run_fleet(folder, target.grpc, "--nodes", 1, "--series", SERIES, "--flood", 1)
        empty_mb = target.program.rss_mb()
        told = run_fleet(folder, target.grpc, "--nodes", nodes, "--series", SERIES, "--flood", 400, "--interval", 60)
        full_mb = target.program.rss_mb()
    large_gb = 1e-3 * (empty_mb + (full_mb - empty_mb) / nodes * _LARGE_NODES)
    return {
        "nodes": nodes,
        "series": nodes * SERIES,
        "rss_empty_mb": empty_mb,
        "rss_full_mb": full_mb,
        "bytes_a_series_with_connections": 1e6 * (full_mb - empty_mb) / nodes / SERIES,
        f"gb_for_{_LARGE_NODES}_nodes": large_gb,
        "fleet": told,
        "passed": large_gb <= _LARGE_GB_MAX,
    }


def grown(before: dict[str, float], after: dict[str, float], name: str) -> float:
    """How much a counter grew."""
    return after.get(name, 0.0) - before.get(name, 0.0)


def quantile(before: dict[str, float], after: dict[str, float], name: str, share: float) -> float | None:
    """Upper bound of the bucket in which that share of what was observed in between lies; None without such a histogram."""
    buckets = sorted(
        (float(key.rpartition('le="')[2].partition('"')[0]), grown(before, after, key))
        for key in after
        if key.startswith(f"{name}_bucket")
    )
    if not buckets or not buckets[-1][1]:
        return None
    return next(bound for bound, count in buckets if count >= share * buckets[-1][1])
