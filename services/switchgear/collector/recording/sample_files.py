"""The files `samples-*`: rows of nodes as they come in an open one; in an ended one a row a sample, series by series."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

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
    """metrics, labels, units: of each series."""

    number: int
    node: str
    source: str
    metrics: pa.StringArray
    labels: pa.StringArray
    units: pa.StringArray


@dataclass(slots=True)
class _Group:
    """A row group that is being made, of so many rows."""

    rows: int = 0
    streams: list[_Stream] = field(default_factory=list)
    times: list[Times] = field(default_factory=list)
    values: list[Values] = field(default_factory=list)
    #: Ticks of each stream.
    ticks: list[int] = field(default_factory=list)

    def add(self, stream: _Stream, times: Times, values: Values) -> None:
        """values: shape (times, series)."""
        ticks, width = values.shape
        self.rows += ticks * width
        self.streams.append(stream)
        self.times.append(np.tile(times, width))
        self.values.append(values.T.ravel())
        self.ticks.append(ticks)

    def table(self) -> pa.Table:
        widths = [len(stream.metrics) for stream in self.streams]
        of_stream, of_series = np.multiply(widths, self.ticks), np.repeat(self.ticks, widths)
        columns = [
            *(
                _repeated(pa.array([getattr(one, name) for one in self.streams]), of_stream)
                for name in ("node", "source")
            ),
            *(
                _repeated(pa.concat_arrays([getattr(one, name) for one in self.streams]), of_series)
                for name in ("metrics", "labels", "units")
            ),
            pa.array(np.concatenate(self.times)).cast(_TIME),
            pa.array(np.concatenate(self.values), from_pandas=True),
        ]
        return pa.Table.from_arrays(columns, schema=SCHEMA)


def _repeated(texts: pa.StringArray, times: Ids) -> pa.DictionaryArray:
    encoded = texts.dictionary_encode()
    indices = np.repeat(encoded.indices.to_numpy(), times)
    return pa.DictionaryArray.from_arrays(pa.array(indices), encoded.dictionary)


def _defining(defined: Sequence[Defined]) -> pa.RecordBatch:
    keys = [key for one in defined for key in one.series]
    # All series of a GPU have the same labels.
    labels = {pairs: json.dumps(dict(pairs)) for pairs in {key.labels for key in keys}}
    columns = [key.metric for key in keys], [labels[key.labels] for key in keys], [key.unit for key in keys]
    texts = pa.StructArray.from_arrays([pa.array(column, pa.string()) for column in columns], fields=list(_KEY))
    ends = np.cumsum([0, *(len(one.series) for one in defined)]).astype(np.int32)
    return pa.RecordBatch.from_arrays(
        [
            pa.array([one.number for one in defined], pa.int32()),
            pa.nulls(len(defined), _TIME),
            pa.nulls(len(defined), OPEN_SCHEMA.field("values").type),
            pa.array([one.node for one in defined], pa.string()),
            pa.array([one.source for one in defined], pa.string()),
            pa.ListArray.from_arrays(pa.array(ends), texts),
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
        ends = batch.column("series").offsets.to_pylist()
        texts = batch.column("series").values.flatten()
        told = batch.select(["stream", "node", "source"]).to_pylist()
        for row, begin, end in zip(told, ends, ends[1:], strict=False):
            streams[row["stream"]] = _Stream(*row.values(), *(column[begin:end] for column in texts))
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
