"""A collector among honest agents and messages that no agent would send, as `benchmarks/ingest_fuzz.py` makes them, only fewer."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

COMMAND = Path(__file__).parents[2] / "benchmarks" / "ingest_fuzz.py"
WITHIN_S = 100.0


async def test_a_collector_stands_hostile_messages_and_honest_agents_notice_nothing() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(COMMAND), "--blocks", "3000", "--seed", "3", stdout=asyncio.subprocess.PIPE
    )
    try:
        out, _ = await asyncio.wait_for(process.communicate(), WITHIN_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    found = json.loads(out)
    assert found["tracebacks"] == 0
    assert found["codes_at_collector"].keys() <= {
        "OK", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "ALREADY_EXISTS", "ABORTED", "CANCELLED"
    }  # fmt: skip
    assert found["codes_at_collector"]["INVALID_ARGUMENT"] > 20
    assert found["honest"]["blocks_acked"] > 0
    assert found["honest"]["reconnects"] == found["honest"]["refusals"] == found["honest"]["blocks_lost"] == 0
    assert found["passed"]
