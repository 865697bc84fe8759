"""Rows go in batches that fill no more than three of the driver's four buffers, unless they are few."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from switchgear.store.batches import BUFFERS, BYTES_MAX, batches

VALUES = st.one_of(
    st.none(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.integers(0, 90_000).map(lambda n: "é" * n), st.binary()
)


def buffers_filled(batch: list[tuple[object, ...]]) -> int:
    """As asyncpg fills them: a buffer is closed by the row that brings it over its size."""
    filled = size = 0
    for row in batch:
        size += sum(len(value.encode()) if isinstance(value, str) else 8 for value in row)
        if size >= BYTES_MAX // BUFFERS:
            filled, size = filled + 1, 0
    return filled


@given(st.lists(st.tuples(VALUES, VALUES), max_size=40))
def test_no_batch_fills_all_buffers_and_none_is_lost(rows: list[tuple[object, ...]]) -> None:
    cut = list(batches(rows))
    assert [row for batch in cut for row in batch] == rows
    assert all(batch and buffers_filled(batch) < BUFFERS for batch in cut)


def test_small_rows_go_together() -> None:
    rows = [("jobs/a", number, 0.5, None) for number in range(200)]
    assert list(batches(rows)) == [rows]
