"""`python -m switchgear.launcher`: what a node agent starts for a job, or with `--standby FOLDER` before there is one."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from switchgear.launcher import standby
from switchgear.launcher.main import add_arguments, main

if sys.argv[1:2] == ["--standby"]:
    sys.exit(standby.main(Path(sys.argv[2])))
parser = argparse.ArgumentParser("switchgear launcher", description="Supervises the ranks of one job on one node.")
add_arguments(parser)
sys.exit(main(parser.parse_args()))
