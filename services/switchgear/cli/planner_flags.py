"""How a process with the scheduler is told what operators choose of the planner."""

from __future__ import annotations

import argparse
import os
from typing import Any

from switchgear.cli.queue_flags import seconds
from switchgear.core.errors import Invalid, Reason
from switchgear.planner.model import Policy

VARIABLE = "SWITCHGEAR_PLANNER"
_TIMES = {
    "guaranteed-run": "guaranteed_run_s",
    "checkpoint-wait": "checkpoint_wait_s",
    "half-life": "half_life_s",
    "starving": "starving_s",
}
#: More than any fleet.
_SPARES_MAX = 10_000


def add_planner_argument(parser: argparse.ArgumentParser) -> None:
    """`--planner`, which may also come from the environment."""
    parser.add_argument(
        "--planner",
        default=os.environ.get(VARIABLE, ""),
        metavar="KEY=VALUE,...",
        help="scheduler: spares=N healthy nodes kept free for recovery (default 0); guaranteed-run=10m before a job may be stopped for another; "
        "checkpoint-wait=10m for a victim's next checkpoint at most; half-life=7d of past use in fair share; starving=24h until a job "
        f"goes before younger ones whatever its share; preemption=on|off (or ${VARIABLE})",
    )


def policy_from(args: argparse.Namespace) -> Policy:
    """Raises Invalid for a key or value that there is not."""
    chosen: dict[str, Any] = {}
    for pair in filter(None, (part.strip() for part in args.planner.split(","))):
        key, _, value = pair.partition("=")
        if key in _TIMES:
            chosen[_TIMES[key]] = seconds(value, "planner")
        elif key == "spares" and value.isdecimal() and int(value) <= _SPARES_MAX:
            chosen["spares"] = int(value)
        elif key == "preemption" and value in ("on", "off"):
            chosen["preemption"] = value == "on"
        else:
            known = ", ".join(("spares=N", *(f"{name}=TIME" for name in _TIMES), "preemption=on|off"))
            raise Invalid(f"--planner {pair!r}: there are {known}", Reason.BAD_FIELD, field="planner")
    policy = Policy(**chosen)
    if policy.half_life_s <= 0:
        raise Invalid("--planner half-life must be more than 0", Reason.BAD_FIELD, field="planner")
    return policy
