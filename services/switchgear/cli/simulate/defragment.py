"""`switchgear simulate defragment`: moves that pay for themselves; advice, nothing is moved."""

from __future__ import annotations

import argparse

from switchgear.cli import exits
from switchgear.cli.output import print_json, print_table
from switchgear.cli.simulate.snapshot import add_source, snapshot_of
from switchgear.planner.defrag import Move, defragment

EXAMPLES = """examples:
  switchgear simulate defragment
  switchgear simulate defragment --snapshot now.json --json

Gain: GPU-seconds that are used instead of idle, since the job that waits starts now and not later. Cost: work that is done again, and the restart.
All moves for one job belong together.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    add_source(parser)


def main(args: argparse.Namespace) -> int:
    moves = defragment(*snapshot_of(args))
    if args.json:
        print_json({"moves": [_json(move) for move in moves]})
        return exits.OK
    print_table(
        ("MOVE", "TO", "FOR", "GAIN_GPU_S", "COST_GPU_S"),
        ((one.job, _to(one), one.for_job, f"{one.gain_gpu_s:.0f}", f"{one.cost_gpu_s:.0f}") for one in moves),
        "no move of a running job would make room that is worth it",
    )
    return exits.OK


def _to(move: Move) -> str:
    return ", ".join(dict.fromkeys(seat.node for seat in move.seats))


def _json(move: Move) -> dict[str, object]:
    return {
        "job": move.job,
        "seats": [{"node": seat.node, "gpus": list(seat.gpus)} for seat in move.seats],
        "forJob": move.for_job,
        "gainGpuSeconds": move.gain_gpu_s,
        "costGpuSeconds": move.cost_gpu_s,
        "change": str(move.change),
    }
