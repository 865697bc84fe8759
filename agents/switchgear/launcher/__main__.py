"""`python -m switchgear.launcher`: what a node agent starts for a job."""

from __future__ import annotations

import argparse
import sys

from switchgear.launcher.main import add_arguments, main

parser = argparse.ArgumentParser("switchgear launcher", description="Supervises the ranks of one job on one node.")
add_arguments(parser)
sys.exit(main(parser.parse_args()))
