"""The files `samples-*`: rows of nodes as they come in an open one; in an ended one a row a sample, series by series."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from switchgear.collector.blocks import Ids, Values
from switchgear.collector.recording import files
from switchgear.collector.recording.samples import Chunk, Defined
from switchgear.collector.windows import Times

#: Rows of a row group, the unit in which Parquet is read.
_GROUP_ROWS = 1024**2
_TIME = pa.timestamp("ns", "UTC")
_KEY = pa.struct([("metric", pa.string()), ("labels", pa.string()), ("unit", pa.string())])
#: A row has the values of one tick of a stream, or tells the stream's node, source and series.
OPEN_SCHEMA = pa.schema([
    ("stream", pa.int32()), ("time", _TIME), ("values", pa.list_(pa.float64())),
    ("node", pa.string()), ("source", pa.string()), ("series", pa.list_(_KEY)),
])  # fmt: skip
_TEXTS = ("node", "source", "metric", "labels", "unit")
#: labels: a JSON object. value: null when unknown.
SCHEMA = pa.schema([
    *((name, pa.dictionary(pa.int32(), pa.string())) for name in _TEXTS), ("time", _TIME), ("value", pa.float64())
])  # fmt: skip


def batches_of(chunk: Chunk) -> Iterator[pa.RecordBatch]:
    """Rows of OPEN_SCHEMA."""
    if chunk.defined:
        yield _defining(chunk.defined)
    if chunk.streams:
        rows = len(chunk.streams)
        values = pa.ListArray.from_arrays(
            pa.array(np.array([0, *chunk.ends], np.int32)), pa.array(chunk.values[: chunk.used])
        )
        yield pa.RecordBatch.from_arrays(
            [
                pa.array(chunk.streams, pa.int32()),
                pa.array(chunk.times, _TIME),
                values,
                *(pa.nulls(rows, OPEN_SCHEMA.field(name).type) for name in ("node", "source", "series")),
            ],
            schema=OPEN_SCHEMA,
        )


def seal(journal: Path, ended: Path) -> None:
    """Packs an open file: sorted by node, source and series, so that the values of a series are together."""
    streams, times, of, starts, values = _whole(journal)
    order = sorted(streams.values(), key=lambda one: (one.node, one.source, one.number))
    rows_of = _rows_of(of)
    with pq.ParquetWriter(
        ended,
        SCHEMA,
        compression="zstd",
        use_dictionary=[*_TEXTS, "time"],
        column_encoding={"value": "BYTE_STREAM_SPLIT"},
    ) as writer:
        group = _Group()
        for stream in order:
            rows = rows_of.get(stream.number)
            if rows is None:
                continue
            width = len(stream.metrics)
            group.add(stream, times[rows], values[starts[rows][:, None] + np.arange(width)])
            if group.rows >= _GROUP_ROWS:
                writer.write_table(group.table())
                group = _Group()
        if group.rows:
            writer.write_table(group.table())


@dataclass(frozen=True, slots=True)
class _Stream:
    number: int
    node: str
    source: str
    metrics: Sequence[str]
    labels: Sequence[str]
    units: Sequence[str]


@dataclass(slots=True)
class _Group:
    """A row group that is being made. texts: of each column, by the order in which they came."""

    rows: int = 0
    texts: dict[str, dict[str, int]] = field(default_factory=lambda: {name: {} for name in _TEXTS})
    indices: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in _TEXTS})
    times: list[Times] = field(default_factory=list)
    values: list[Values] = field(default_factory=list)

    def add(self, stream: _Stream, times: Times, values: Values) -> None:
        """values: shape (times, series)."""
        ticks, width = values.shape
        self.rows += ticks * width
        told = {
            "node": [stream.node] * width,
            "source": [stream.source] * width,
            "metric": stream.metrics,
            "labels": stream.labels,
            "unit": stream.units,
        }
        for name, texts in told.items():
            known = self.texts[name]
            indices = np.array([known.setdefault(text, len(known)) for text in texts], np.int32)
            self.indices[name].append(np.repeat(indices, ticks))
        self.times.append(np.tile(times, width))
        self.values.append(values.T.ravel())

    def table(self) -> pa.Table:
        columns = [
            pa.DictionaryArray.from_arrays(
                pa.array(np.concatenate(self.indices[name])), pa.array(list(self.texts[name]), pa.string())
            )
            for name in _TEXTS
        ]
        columns.append(pa.array(np.concatenate(self.times)).cast(_TIME))
        columns.append(pa.array(np.concatenate(self.values), from_pandas=True))
        return pa.Table.from_arrays(columns, schema=SCHEMA)


def _defining(defined: Sequence[Defined]) -> pa.RecordBatch:
    keys = [
        {"metric": key.metric, "labels": json.dumps(dict(key.labels)), "unit": key.unit}
        for one in defined
        for key in one.series
    ]
    ends = np.cumsum([0, *(len(one.series) for one in defined)]).astype(np.int32)
    return pa.RecordBatch.from_arrays(
        [
            pa.array([one.number for one in defined], pa.int32()),
            pa.nulls(len(defined), _TIME),
            pa.nulls(len(defined), OPEN_SCHEMA.field("values").type),
            pa.array([one.node for one in defined], pa.string()),
            pa.array([one.source for one in defined], pa.string()),
            pa.ListArray.from_arrays(pa.array(ends), pa.array(keys, _KEY)),
        ],
        schema=OPEN_SCHEMA,
    )


def _whole(journal: Path) -> tuple[dict[int, _Stream], Times, Ids, Ids, Values]:
    """All streams; of each row its time, its stream and where its values begin; all values."""
    streams = dict[int, _Stream]()
    times, of, starts, values = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0)]
    used = 0
    for batch in files.batches(journal):
        if batch.column("node").null_count:
            of.append(batch.column("stream").to_numpy())
            times.append(batch.column("time").cast(pa.int64()).to_numpy())
            lists = batch.column("values")
            starts.append(lists.offsets.to_numpy()[:-1].astype(np.int64) + used)
            values.append(lists.values.to_numpy())
            used += len(values[-1])
            continue
        for row in batch.select(["stream", "node", "source", "series"]).to_pylist():
            series = row["series"]
            texts = ([key[name] for key in series] for name in ("metric", "labels", "unit"))
            streams[row["stream"]] = _Stream(row["stream"], row["node"], row["source"], *texts)
    return (
        streams,
        np.concatenate(times),
        np.concatenate(of).astype(np.int64),
        np.concatenate(starts),
        np.concatenate(values),
    )


def _rows_of(of: Ids) -> dict[int, Ids]:
    """The rows of each stream, in their order."""
    order = np.argsort(of, kind="stable")
    numbers, begins = np.unique(of[order], return_index=True)
    return dict(zip(numbers.tolist(), np.split(order, begins[1:]), strict=True)) if len(of) else {}
