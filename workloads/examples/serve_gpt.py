"""Serves the model that `train_gpt.py` trained: a script that knows torch and `switchgear.serve`.

    python serve_gpt.py --checkpoint checkpoints --address 127.0.0.1:8000
    switchgear services create chat --min 0 --max 2 -- serve_gpt.py --checkpoint checkpoints

The model reads the last 64 bytes of prompt and answer. It keeps no cache of keys and values: the window slides, so that positions
change with each token, and at this size computing them again costs little.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence as Items
from pathlib import Path

import torch
from torch import Tensor
from train_gpt import CONTEXT, Gpt

from switchgear.serve import replica
from switchgear.serve.model import Sequence


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="file, or folder of which the newest readable one is taken"
    )
    parser.add_argument("--max-batch", type=int, default=4, metavar="N", help="requests that are generated together")
    parser.add_argument(
        "--max-waiting", type=int, default=256, metavar="N", help="requests that may wait for their turn"
    )
    parser.add_argument(
        "--tokens-per-second-max",
        type=float,
        default=0.0,
        metavar="RATE",
        help="generate no more than this in all, asleep in between: a small model then loads a replica as a large one does "
        "on a slow device (default: no limit)",
    )
    parser.add_argument(
        "--address", default="127.0.0.1:0", metavar="HOST:PORT", help="where it listens when it serves alone"
    )
    parser.add_argument("--model", default="gpt", metavar="NAME", help="its name when it serves alone")
    return parser.parse_args()


class ServedGpt:
    """The model of one checkpoint; its tokens are bytes."""

    end_token: int | None = None

    def __init__(self, checkpoint: Path) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = Gpt()
        self._model.load_state_dict(read_newest(checkpoint)["model"])
        self._model.to(self._device).eval()

    def encode(self, text: str) -> list[int]:
        return list(text.encode(errors="surrogatepass"))

    def decode(self, tokens: Items[int]) -> str:
        return bytes(tokens).decode(errors="replace")

    @torch.inference_mode()
    def next_tokens(self, sequences: Items[Sequence]) -> list[int]:
        windows = [sequence.tokens(CONTEXT) for sequence in sequences]
        # Filled up behind, where nothing before it looks, to a length that is always the same: sums of other lengths round
        # otherwise, and then an answer would depend on who else is in the batch.
        batch = torch.tensor([[*window, *[0] * (CONTEXT - len(window))] for window in windows], device=self._device)
        last = torch.tensor([len(window) - 1 for window in windows], device=self._device)
        logits = self._model.logits(batch)[torch.arange(len(windows), device=self._device), last].float().cpu()
        return [draw(row, sequence) for row, sequence in zip(logits, sequences, strict=True)]


def draw(logits: Tensor, sequence: Sequence) -> int:
    """The most likely token, or with a temperature one drawn by the sequence's own random number."""
    if sequence.temperature == 0:
        return int(logits.argmax())
    shares = torch.softmax(logits.double() / sequence.temperature, dim=0).cumsum(dim=0)
    at = torch.searchsorted(
        shares, torch.tensor(sequence.uniform() * float(shares[-1]), dtype=shares.dtype), right=True
    )
    return min(int(at), len(logits) - 1)


def read_newest(path: Path) -> dict[str, dict[str, Tensor]]:
    """The state of the file, or of the newest readable checkpoint of the folder; a damaged one is told and passed over."""
    if not path.is_dir():
        return read(path)
    for candidate in sorted(path.glob("step-*.pt"), reverse=True):
        try:
            return read(candidate)
        except Exception as error:  # torch raises many kinds for a damaged file
            print(f"{candidate} is not readable ({type(error).__name__}); trying an older one", file=sys.stderr)
    raise SystemExit(f"no readable step-*.pt in {path}; train first, for example with train_gpt.py")


def read(path: Path) -> dict[str, dict[str, Tensor]]:
    state: dict[str, dict[str, Tensor]] = torch.load(path, map_location="cpu", weights_only=True)
    print(f"loaded {path}", flush=True)
    return state


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)  # replicas share the machine's cores
    settings = replica.settings(
        os.environ,
        model=args.model,
        address=args.address,
        running_max=args.max_batch,
        waiting_max=args.max_waiting,
        tokens_per_second_max=args.tokens_per_second_max,
    )
    replica.run(lambda: ServedGpt(args.checkpoint), settings)


if __name__ == "__main__":
    main()
