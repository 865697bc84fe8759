from __future__ import annotations

import os

import pytest
from simworld.storm import run

FIRST = int(os.environ.get("SWITCHGEAR_SEED", "0"))
COUNT = int(os.environ.get("SWITCHGEAR_SEEDS", "1" if "SWITCHGEAR_SEED" in os.environ else "300"))
CHUNK = 25


@pytest.mark.parametrize("first", range(FIRST, FIRST + COUNT, CHUNK))
def test_whatever_befalls_a_job_recovery_keeps_its_promises(first: int) -> None:
    for seed in range(first, min(first + CHUNK, FIRST + COUNT)):
        run(seed)
