"""GPUs in the words of several versions of Slurm."""

from __future__ import annotations

import pytest

from switchgear.slurm.gres import gpus
from switchgear.slurm.model import Gpus


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gpu:8", Gpus({"": 8})),
        ("gpu:h100:8(S:0-1)", Gpus({"h100": 8})),
        ("gpu:h100:3(IDX:0-2)", Gpus({"h100": 3}, (0, 1, 2))),
        ("gpu:(null):2(IDX:0,5)", Gpus({"": 2}, (0, 5))),
        ("gpu:h100:0(IDX:N/A)", Gpus({}, ())),
        ("gpu:h100:2(IDX:0-1),gpu:a100:1(IDX:4),nic:1(IDX:0)", Gpus({"h100": 2, "a100": 1}, (0, 1, 4))),
        ("gpu:a100_1g.10gb:4", Gpus({"a100_1g.10gb": 4})),
        ("gres:gpu:3", Gpus({"": 3})),
        ("gres:gpu:h100:3", Gpus({"h100": 3})),
        ("gres/gpu:h100:3", Gpus({"h100": 3})),
        ("gres/gpu:h100=3", Gpus({"h100": 3})),
        ("cpu=2,mem=8G,node=2,billing=2,gres/gpu=4,gres/gpu:h100=4", Gpus({"h100": 4})),
        ("gpu", Gpus({"": 1})),
        ("shard:h100:16,mps:100", Gpus({}, ())),
        ("", Gpus({}, ())),
        (None, Gpus({}, ())),
    ],
)
def test_gpus_are_found_among_the_resources(text: str | None, expected: Gpus) -> None:
    assert gpus(text) == expected


def test_indices_that_do_not_fit_the_number_are_not_believed() -> None:
    assert gpus("gpu:h100:3(IDX:0-1)").indices is None
    assert gpus("gpu:h100:3(IDX:0-)").indices is None
