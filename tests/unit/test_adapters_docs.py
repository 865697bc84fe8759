"""The table of docs/autoscaling.md is that of the code. UPDATE=1 writes it anew."""

from __future__ import annotations

import os
from pathlib import Path

from switchgear.autoscaler.adapters.model import Kind, Quantity, Server
from switchgear.autoscaler.adapters.table import SERVERS

NOTE = Path(__file__).parents[2] / "docs" / "autoscaling.md"
BEGIN, END = "<!-- adapters: written by tests/unit/test_adapters_docs.py -->\n", "<!-- adapters: end -->\n"
Q = Quantity
COLUMNS = {
    "waiting": (Q.WAITING,),
    "running": (Q.RUNNING,),
    "KV use, 0 to 1": (Q.KV_USE,),
    "TTFT": (Q.TTFT,),
    "per token": (Q.TPOT,),
    "end-to-end": (Q.E2E,),
    "in the queue": (Q.QUEUE_TIME,),
    "came, ended, failed": (Q.ARRIVED, Q.COMPLETED, Q.FAILED),
    "tokens read, generated": (Q.PROMPT_TOKENS, Q.GENERATED_TOKENS),
}
UNITS = {1e-6: " µs", 1e-3: " ms", 1.0: ""}
LETTERS = {Kind.GAUGE: "", Kind.COUNTER: "", Kind.HISTOGRAM: " H", Kind.SUM: " mean"}


def cell(server: Server, quantities: tuple[Quantity, ...]) -> str:
    names = []
    for quantity in quantities:
        for series in server.series.get(quantity, ()):
            selected = series.where or series.without
            label = f"{{{selected[0]}{'=' if series.where else '!='}{'/'.join(selected[1])}}}" if selected else ""
            names.append(f"`{series.name}{label}`{LETTERS[series.kind]}{UNITS[series.unit]}")
    return ", ".join(dict.fromkeys(names)) or "none"


def table() -> str:
    lines = [f"| server, page | {' | '.join(COLUMNS)} | how it was checked |", "|" + "---|" * (len(COLUMNS) + 2)]
    for server in SERVERS:
        where = f"{server.title} `:{server.port}{server.path}`" if server.port else server.title
        cells = (cell(server, quantities) for quantities in COLUMNS.values())
        lines.append(f"| {where} | {' | '.join(cells)} | {server.checked} |")
    return "\n".join(lines) + "\n"


def test_the_note_has_the_table_of_the_code() -> None:
    text = NOTE.read_text()
    before, _, rest = text.partition(BEGIN)
    shown, _, after = rest.partition(END)
    if os.environ.get("UPDATE") == "1":
        NOTE.write_text(before + BEGIN + table() + END + after)
    else:
        assert shown == table(), "UPDATE=1 python -m pytest tests/unit/test_adapters_docs.py writes it anew"
