"""The flags of `switchgear run` that count inside of a Slurm allocation."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass

from switchgear.core.errors import Invalid, Reason
from switchgear.core.modes import Mode

MODE_VARIABLE = "SWITCHGEAR_POLICY_RECOVERY_CORDON"
REQUEUES_MAX_DEFAULT = 5
#: A slip of the finger; a job of so many runs of a day each is at work for 27 years.
RUNS_MAX = 10_000
_MODES = {"act": Mode.ACT, "advise": Mode.ADVISE, "off": Mode.OBSERVE, "observe": Mode.OBSERVE}


@dataclass(frozen=True, slots=True)
class RideOptions:
    """drain: what is done about a node that was given up. restarts_max: requeues of the job, by whomever, after which it is not requeued
    by us any more. chains: whether it is requeued when its time limit is near."""

    drain: Mode
    restarts_max: int
    chains: bool


def add_slurm_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("inside of a Slurm job (srun --ntasks-per-node=1 switchgear run …)")
    group.add_argument(
        "--drain",
        metavar="act|advise|off",
        help=f"what happens to a node that the job had to give up: it is drained, the command for it is printed, or nothing "
        f"(default: ${MODE_VARIABLE}, or advise)",
    )
    group.add_argument(
        "--max-requeues",
        metavar="N",
        help=f"requeue the job when too few of its nodes are left, while Slurm has started it again less than N times (default: {REQUEUES_MAX_DEFAULT})",
    )
    group.add_argument(
        "--chain",
        metavar="N",
        help="requeue the job when its time limit is near, until it has had N runs; it goes on from its newest checkpoint",
    )


def given(args: argparse.Namespace) -> list[str]:
    """Those of the flags that were given."""
    return [f"--{name.replace('_', '-')}" for name in ("drain", "max_requeues", "chain") if getattr(args, name)]


def options_from(args: argparse.Namespace, environment: Mapping[str, str]) -> RideOptions:
    """Raises Invalid."""
    word = args.drain or environment.get(MODE_VARIABLE) or "advise"
    if word.lower() not in _MODES:
        raise _bad("drain", f"{word!r} must be act, advise or off")
    runs = _number("chain", args.chain or "0", 2) if args.chain else 0
    requeues = _number("max_requeues", args.max_requeues or str(REQUEUES_MAX_DEFAULT), 0)
    return RideOptions(_MODES[word.lower()], max(requeues, runs - 1), chains=runs > 0)


def _number(field: str, text: str, least: int) -> int:
    if text.isdigit() and least <= int(text) <= RUNS_MAX:
        return int(text)
    raise _bad(field, f"{text!r} must be a number of {least} to {RUNS_MAX}")


def _bad(field: str, problem: str) -> Invalid:
    return Invalid(f"--{field.replace('_', '-')} {problem}", Reason.BAD_FIELD, field=field)
