"""A scenario as text: what befalls a calm cluster above the line, what comes of it below.

fleet nodes=3 job=2x2 steps=80 max_restarts=3     the job on 2 nodes with 2 ranks each; job=1:2x2 goes on with one
at 20s kill rank 1                                other faults: see `_FAULTS`
on CHECKING generation=1 kill recovery for 2s     as soon as recovery enters the phase, once
run 90s
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from functools import partial

from simworld.cluster import Cluster

from switchgear.recovery import model as m

LINE = "----"
_FLEET = re.compile(r"fleet nodes=(\d) job=(?:(\d):)?(\d)x(\d)(?: steps=(\d+))?(?: max_restarts=(\d+))?")
_AT = re.compile(r"at ([\d.]+)s (.+)")
_ON = re.compile(r"on ([A-Z]+) generation=(\d+) (.+)")
_RUN = re.compile(r"run ([\d.]+)s")

Fault = Callable[..., None]
_FAULTS: list[tuple[str, Fault]] = [
    (r"kill rank (\d+)", lambda c, rank: c.end_rank(int(rank))),
    (r"end rank (\d+) with (SIG\w+)", lambda c, rank, name: c.end_rank(int(rank), -signal.Signals[name])),
    (r"raise in rank (\d+): (.+)", lambda c, rank, text: c.end_rank(int(rank), 1, text)),
    (r"break step (\d+) in rank (\d+): (.+)", lambda c, step, rank, text: c.break_step(int(step), int(rank), text)),
    (r"hang rank (\d+)", lambda c, rank: c.get_stuck(int(rank), "hung")),
    (r"stop rank (\d+)", lambda c, rank: c.get_stuck(int(rank), "stopped")),
    (r"block rank (\d+)", lambda c, rank: c.get_stuck(int(rank), "blocked")),
    (r"kill launcher on (\S+)", Cluster.kill_launcher),
    (r"lose (\S+)", Cluster.lose),
    (r"lose (\S+) with resets", partial(Cluster.lose, loud=True)),
    (r"bring back (\S+)", Cluster.come_back),
    (r"cut off (\S+)", Cluster.cut_off),
    (r"cut off (\S+) with resets", partial(Cluster.cut_off, loud=True)),
    (
        r"cut off (\S+) from the control plane with resets",
        lambda c, name: c.cut_off(name, ranks_too=False, loud=True),
    ),
    (r"free", Cluster.free),
    (r"heal (\S+)", Cluster.heal),
    (r"xid (\d+) on (\S+) gpu (\d+)", lambda c, xid, node, gpu: c.xid(node, int(gpu), int(xid))),
    (r"repair (\S+)", Cluster.repair),
    (r"damage newest checkpoint", Cluster.damage),
    (r"poison newest checkpoint", Cluster.poison),
    (r"kill recovery for ([\d.]+)s", lambda c, seconds: c.control.crash(float(seconds))),
    (r"hang store for ([\d.]+)s", lambda c, seconds: c.control.stall(float(seconds))),
    (r"scheduler away for ([\d.]+)s", lambda c, seconds: c.scheduler_away(float(seconds))),
    (r"fail start on (\S+): (before|one rank|for ever)", Cluster.fail_start),
    (r"cancel", lambda c: c.scheduler.cancel()),
    (r"preempt", lambda c: c.scheduler.preempt()),
]


def play(script: str) -> list[str]:
    """The transcript. Raises ValueError for a line that says nothing, Violation when a promise is broken."""
    lines = [line.strip() for line in script.splitlines() if line.strip() and not line.startswith("#")]
    cluster = _fleet(lines[0])
    for line in lines[1:]:
        if found := _AT.fullmatch(line):
            cluster.kernel.after(float(found[1]), _fault(cluster, found[2]))
        elif found := _ON.fullmatch(line):
            cluster.control.on_phase.append((m.Phase(found[1]), int(found[2]), _fault(cluster, found[3])))
        elif found := _RUN.fullmatch(line):
            cluster.kernel.run(float(found[1]))
            if cluster.over:
                cluster.promises.kept()
        else:
            raise ValueError(f"not a line of a scenario: {line}")
    return cluster.kernel.lines()


def _fleet(line: str) -> Cluster:
    found = _FLEET.fullmatch(line)
    if not found:
        raise ValueError(f"a scenario begins with its fleet, not with: {line}")
    nodes, nnodes_min, nnodes, nproc, steps, max_restarts = found.groups()
    return Cluster(
        nodes=int(nodes),
        nnodes=int(nnodes),
        nnodes_min=int(nnodes_min or 0),
        nproc=int(nproc),
        steps=int(steps or 80),
        max_restarts=int(max_restarts or 3),
    )


def _fault(cluster: Cluster, text: str) -> Callable[[], None]:
    for pattern, fault in _FAULTS:
        if found := re.fullmatch(pattern, text):
            return partial(fault, cluster, *found.groups())
    raise ValueError(f"no such fault: {text}")
