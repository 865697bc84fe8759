"""How a process with recovery is told how long ranks may outlive contact with it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping

from switchgear.core.errors import Invalid, Reason
from switchgear.recovery.values import LEASE_MARGIN_S, LEASE_S, Timing

_FLAGS = (
    ("--lease-seconds", LEASE_S, "recovery: a node out of contact ends its ranks after so long, 1 to 600"),
    ("--lease-margin-seconds", LEASE_MARGIN_S, "recovery: the job goes on elsewhere so much later, 3 to 600"),
)


def add_lease_arguments(parser: argparse.ArgumentParser) -> None:
    """`--lease-seconds` and its margin, which may also come from the environment; they count for jobs that begin from then on."""
    for flag, default, what in _FLAGS:
        variable = _variable(flag)
        # Text: a number that is none is told as every other bad setting is.
        parser.add_argument(
            flag,
            default=os.environ.get(variable, f"{default:g}"),
            metavar="SECONDS",
            help=f"{what}; for jobs that begin from now on (or ${variable}; default {default:g})",
        )


def timing_from(args: argparse.Namespace) -> Timing:
    """Raises Invalid for what is no number of seconds within the bounds."""
    return Timing(
        _seconds("--lease-seconds", args.lease_seconds),
        _seconds("--lease-margin-seconds", args.lease_margin_seconds),
    )


def timing_of(environment: Mapping[str, str]) -> Timing:
    """What the variables say. Raises Invalid as `timing_from` does."""
    lease, margin = ((_variable(flag), default) for flag, default, _ in _FLAGS)
    return Timing(*(_seconds(name, environment.get(name, f"{default:g}")) for name, default in (lease, margin)))


def _seconds(flag: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise Invalid(f"{flag} {text[:100]}: give a number of seconds", Reason.BAD_FIELD, field=flag) from None


def _variable(flag: str) -> str:
    return f"SWITCHGEAR_{flag.removeprefix('--').replace('-', '_').upper()}"
