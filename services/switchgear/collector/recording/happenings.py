"""What the detectors were told, one thing a row, and what they concluded: the files `events-*`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from switchgear.collector.detectors import Moment
from switchgear.collector.model import Event, Severity, Signal
from switchgear.collector.recording import files
from switchgear.core.errors import Invalid, Reason

_TIME = pa.timestamp("ns", "UTC")
SCHEMA = pa.schema([
    ("what", pa.string()), ("time", _TIME), ("monotonic_s", pa.float64()), ("run_id", pa.string()),
    ("node", pa.string()), ("gpu", pa.int64()), ("kind", pa.string()), ("code", pa.int64()), ("severity", pa.string()),
    ("action", pa.string()), ("text", pa.string()), ("fault_time", _TIME), ("simulated", pa.bool_()),
    ("pci", pa.string()), ("detail", pa.string()), ("boot_id", pa.string()), ("epoch", pa.string()),
    ("source", pa.string()), ("sequence", pa.int64()), ("signal_id", pa.string()), ("silence_s", pa.float64()),
])  # fmt: skip


class What(StrEnum):
    """STARTED: a collector, with its silence_s. CONNECTED, GONE: a node's agent. HEARD: the node, by somebody else. TOLD: an event.

    LOOKED: for silent nodes. CLEARED: by an operator. RAISED: a signal. FOUND: a signal that did not come from here.
    """

    STARTED = "STARTED"
    CONNECTED = "CONNECTED"
    GONE = "GONE"
    HEARD = "HEARD"
    TOLD = "TOLD"
    LOOKED = "LOOKED"
    CLEARED = "CLEARED"
    RAISED = "RAISED"
    FOUND = "FOUND"


@dataclass(frozen=True, slots=True)
class Happening:
    """moment: when; of GONE since when. run_id: of the collector's life, whose monotonic clock it is. Further fields as `what` has them."""

    what: What
    moment: Moment
    run_id: str
    node: str = ""
    boot_id: str = ""
    epoch: str = ""
    gpu: int | None = None
    text: str = ""
    silence_s: float | None = None
    event: Event | None = None
    signal: Signal | None = None


def batch_of(happenings: Iterable[Happening]) -> pa.RecordBatch:
    """Rows of SCHEMA."""
    return pa.RecordBatch.from_pylist([_row(one) for one in happenings], schema=SCHEMA)


def seal(journal: Path, ended: Path) -> None:
    """See `files.Seal`."""
    pq.write_table(pa.Table.from_batches(files.batches(journal), SCHEMA), ended, compression="zstd")


def read(path: Path) -> Iterator[Happening]:
    """What a file has, in its order; of one that is being written or was not ended, what was written whole.

    Raises Invalid for a file that is none.
    """
    for batch in files.batches(path):
        if batch.schema.names != SCHEMA.names:
            raise Invalid(f"{path} has no events of a recording; give files events-*", Reason.BAD_FIELD)
        columns = [
            batch.column(name).cast(pa.int64()).to_pylist() if field.type == _TIME else batch.column(name).to_pylist()
            for name, field in zip(SCHEMA.names, SCHEMA, strict=True)
        ]
        for values in zip(*columns, strict=True):
            yield _happening(dict(zip(SCHEMA.names, values, strict=True)))


def _row(one: Happening) -> dict[str, Any]:
    row: dict[str, Any] = {
        "what": one.what.value,
        "time": one.moment.unix_ns,
        "monotonic_s": one.moment.monotonic_s,
        "run_id": one.run_id,
        "node": one.node,
        "gpu": one.gpu,
        "text": one.text,
        "boot_id": one.boot_id,
        "epoch": one.epoch,
        "silence_s": one.silence_s,
    }
    if (event := one.event) is not None:
        row |= {
            name: getattr(event, name)
            for name in ("node", "boot_id", "source", "sequence", "kind", "gpu", "code", "text", "simulated", "pci")
        }
        row["fault_time"] = event.time_unix_ns
        row["detail"] = json.dumps(dict(event.detail), sort_keys=True)
    if (signal := one.signal) is not None:
        row |= {name: getattr(signal, name) for name in ("signal_id", "node", "gpu", "kind", "action", "simulated")}
        row |= {"severity": signal.severity.value, "text": signal.evidence, "fault_time": signal.time_unix_ns}
    return row


def _happening(row: dict[str, Any]) -> Happening:
    what = What(row["what"])
    event, signal = None, None
    if what is What.TOLD:
        event = Event(
            node=row["node"],
            boot_id=row["boot_id"],
            source=row["source"],
            sequence=row["sequence"],
            time_unix_ns=row["fault_time"],
            kind=row["kind"],
            gpu=row["gpu"],
            code=row["code"],
            text=row["text"],
            simulated=row["simulated"],
            pci=row["pci"],
            detail=json.loads(row["detail"]),
        )
    elif what in (What.RAISED, What.FOUND):
        signal = Signal(
            signal_id=row["signal_id"],
            node=row["node"],
            gpu=row["gpu"],
            kind=row["kind"],
            severity=Severity(row["severity"]),
            action=row["action"],
            evidence=row["text"],
            time_unix_ns=row["fault_time"],
            simulated=row["simulated"],
        )
    return Happening(
        what,
        Moment(row["time"], row["monotonic_s"]),
        row["run_id"],
        row["node"],
        row["boot_id"],
        row["epoch"],
        row["gpu"],
        row["text"],
        row["silence_s"],
        event,
        signal,
    )
