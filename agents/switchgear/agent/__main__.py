"""`python -m switchgear.agent`: the node agent without the command line of the control plane."""

from __future__ import annotations

import argparse
import sys

from switchgear.agent.main import add_arguments, main
from switchgear.core import log
from switchgear.core.errors import SwitchgearError

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m switchgear.agent")
    add_arguments(parser)
    log.configure()
    try:
        sys.exit(main(parser.parse_args()))
    except SwitchgearError as error:
        sys.exit(f"error: {error.message}")
