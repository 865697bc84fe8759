"""Whose nodes the scheduler uses, as options of `up` and `serve`."""

from __future__ import annotations

import argparse
import os
import pwd
import sys
from collections.abc import Mapping
from pathlib import Path

from switchgear.core import names
from switchgear.core.errors import Invalid, Reason
from switchgear.core.modes import Mode
from switchgear.core.tls import NodeFiles
from switchgear.scheduler.engines.slurm.settings import PATIENCE_S, SlurmSettings
from switchgear.store.policies import CORDON

#: Of our own environment what launchers in Slurm find as well; all else may hold secrets.
_PASSED = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TZ", "SLURM_CONF")
_ENGINES = ("local", "slurm")


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """The same for all processes of an installation."""
    group = parser.add_argument_group("engine")
    group.add_argument(
        "--engine",
        choices=_ENGINES,
        default=os.environ.get("SWITCHGEAR_ENGINE", "local"),
        help="who starts launchers: the agents of our own nodes, or Slurm on its nodes (or $SWITCHGEAR_ENGINE; default: local)",
    )
    group.add_argument(
        "--slurm-partition",
        action="append",
        default=[],
        metavar="P",
        help="with slurm: use the nodes of this partition and submit to it; repeatable (default: all nodes, Slurm's default partition)",
    )
    group.add_argument(
        "--slurm-name",
        default=os.environ.get("SWITCHGEAR_SLURM_NAME", ""),
        metavar="NAME",
        help="with slurm: by which this installation knows its Slurm jobs again, another one than those of other installations "
        "(or $SWITCHGEAR_SLURM_NAME; default: made once, in the database)",
    )
    group.add_argument(
        "--slurm-rest",
        default=os.environ.get("SWITCHGEAR_SLURM_REST", ""),
        metavar="ADDRESS",
        help="with slurm: ask slurmrestd at unix:/PATH or http://HOST:PORT instead of Slurm's programs, with the token in $SLURM_JWT "
        "(or $SWITCHGEAR_SLURM_REST)",
    )
    group.add_argument(
        "--slurm-patience-seconds",
        type=float,
        default=PATIENCE_S,
        metavar="S",
        help="with slurm: how long a launcher may wait there for a node that others have got first, while its job's other nodes are "
        "held; then the job goes back to the queue (default: %(default)g)",
    )
    group.add_argument(
        "--slurm-tls",
        type=Path,
        metavar="DIR",
        help="with slurm and TLS: folder on each node with what `switchgear agent --join` got there",
    )


def slurm_from(args: argparse.Namespace, state_dir: Path) -> SlurmSettings | None:
    """None with another engine. Raises Invalid for a name that cannot be one."""
    if args.engine not in _ENGINES:  # from the environment, which argparse does not look at
        raise Invalid(
            f"$SWITCHGEAR_ENGINE must be local or slurm, not {args.engine[:50]!r}", Reason.BAD_FIELD, field="engine"
        )
    if args.engine != "slurm":
        if args.slurm_partition or args.slurm_tls:
            raise Invalid("--slurm-… is for --engine slurm: give that too", Reason.BAD_FIELD, field="engine")
        return None
    if not 1 <= args.slurm_patience_seconds <= 86_400:  # also true for NaN
        raise Invalid(
            f"--slurm-patience-seconds {args.slurm_patience_seconds:g}: give 1 to 86400",
            Reason.BAD_FIELD,
            field="slurm_patience_seconds",
        )
    return SlurmSettings(
        cluster=names.check_id(args.slurm_name, "--slurm-name") if args.slurm_name else "",
        user=_user(),
        state_dir=state_dir / "slurm",
        command=(sys.executable, "-m", "switchgear.launcher"),
        environment={name: os.environ[name] for name in _PASSED if name in os.environ},
        partitions=tuple(args.slurm_partition),
        rest=args.slurm_rest,
        patience_s=args.slurm_patience_seconds,
        tls=NodeFiles(args.slurm_tls.absolute()).tls if args.slurm_tls else None,
    )


def policies_of(args: argparse.Namespace, configured: Mapping[str, Mode]) -> Mapping[str, Mode]:
    """With the defaults of an engine whose nodes are not ours alone: they are drained once somebody says so."""
    return {CORDON: Mode.ADVISE, **configured} if args.engine == "slurm" else configured


def _user() -> str:
    """As Slurm names us."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # one that this machine does not know by name is unknown to Slurm as well
        return str(os.geteuid())
