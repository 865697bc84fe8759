"""How a process with the collector is told of its configuration file."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from switchgear.collector import config

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
    """Raises Invalid for a file that cannot be read or is not as it should be."""
    return config.load(Path(args.collector_config)) if args.collector_config else config.CollectorConfig()
