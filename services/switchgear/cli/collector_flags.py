"""How a process with the collector is told of its configuration file."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from switchgear.collector import config
from switchgear.core.errors import FailedPrecondition, Reason

_VARIABLE = "SWITCHGEAR_COLLECTOR_CONFIG"


def add_collector_arguments(parser: argparse.ArgumentParser) -> None:
    """`--collector-config`, which may also come from the environment."""
    parser.add_argument(
        "--collector-config",
        default=os.environ.get(_VARIABLE, ""),
        metavar="FILE",
        help="collector: TOML file with where its telemetry goes and what else it takes in; see docs/collector.md "
        f"(or ${_VARIABLE}; default: agents only)",
    )


def collector_config_from(args: argparse.Namespace) -> config.CollectorConfig:
    """Raises Invalid for a file that cannot be read or is not as it should be, FailedPrecondition for several collectors without a database of all."""
    found = config.load(Path(args.collector_config)) if args.collector_config else config.CollectorConfig()
    if len(found.sharding.collectors) > 1 and not args.database_url.startswith("postgresql"):
        raise FailedPrecondition(
            "several collectors share one PostgreSQL, in which the events and signals of all nodes are: name it with --database-url "
            "postgresql+asyncpg://USER@HOST/DATABASE, or take [sharding] out of the collector's configuration",
            Reason.DATABASE_UNUSABLE,
        )
    return found
