"""An outage of the collector with a killed agent in it, as `benchmarks/outage.py` makes it, only shorter."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

COMMAND = Path(__file__).parents[2] / "benchmarks" / "outage.py"
WITHIN_S = 90.0


async def test_after_an_outage_with_a_killed_agent_nothing_is_missing_and_live_data_came_first() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(COMMAND), "--seconds", "4", "--interval", "0.2", stdout=asyncio.subprocess.PIPE
    )
    try:
        out, _ = await asyncio.wait_for(process.communicate(), WITHIN_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    found = json.loads(out)
    assert found["epochs"] == 2
    assert found["xids_stored"] == found["xids_injected"] > 10
    assert found["xids_stored_twice"] == 0
    assert found["blocks_received"] + found["blocks_counted_lost"] == found["blocks_made"]
    assert found["blocks_late"] > 0
    assert found["live_blocks_before_the_backlog"] >= 1
