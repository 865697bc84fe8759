from __future__ import annotations

import random
from collections.abc import Sequence

import cramjam
import numpy as np
import pytest

from switchgear.collector.export import template
from switchgear.collector.export.template import compiled, field, plain_of, rendered


def messages(heads: Sequence[bytes], values: Sequence[bytes], time: bytes) -> bytes:
    return b"".join(
        field(1, head + b"\x09" + value + b"\x10" + time) for head, value in zip(heads, values, strict=True)
    )


def heads(rng: random.Random, series: int) -> list[bytes]:
    """As labels are: much of one is in the next."""
    words = [rng.randbytes(rng.randrange(1, 40)).hex().encode() for _ in range(6)]
    return [b"|".join(rng.choices(words, k=rng.randrange(1, 8))) + str(at).encode() for at in range(series)]


@pytest.mark.parametrize("seed", range(60))
def test_a_compressed_message_takes_other_values_and_times(seed: int) -> None:
    rng = random.Random(seed)
    texts = heads(rng, rng.choice([1, 2, 3, 17, 100, 191, 192]))
    made = compiled(lambda values, time: messages(texts, values, time), len(texts), 6)
    for _ in range(3):
        values, time = np.frombuffer(rng.randbytes(8 * len(texts)), np.float64), rng.randbytes(6)
        assert plain_of(rendered([(made, values, time)])) == messages(texts, [v.tobytes() for v in values], time)


def test_messages_one_behind_the_other_are_one() -> None:
    rng = random.Random(1)
    rows, expected = [], b""
    for at in range(9):
        texts = heads(rng, 50 + at)
        made = compiled(lambda values, time, texts=texts: messages(texts, values, time), len(texts), 6)
        values, time = np.arange(len(texts)) * 0.1, bytes([at] * 6)
        rows.append((made, values, time))
        expected += messages(texts, [value.tobytes() for value in values], time)
    assert plain_of(rendered(rows)) == expected


def test_series_that_are_larger_than_a_block_of_snappy_are_whole() -> None:
    texts = [random.Random(at).randbytes(50_000 + 9_001 * at) for at in range(4)]
    made = compiled(lambda values, time: messages(texts, values, time), 4, 6)
    values = np.array([1.0, 2.0, np.inf, -0.0])
    assert plain_of(rendered([(made, values, b"timeis")])) == messages(texts, [v.tobytes() for v in values], b"timeis")


def test_what_cannot_be_compressed_so_is_sent_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compressor that copies a part of a value from the one before, as when both have the same bytes there."""
    same = [b"MARK" + bytes([at]) + b"MARK"[:3] for at in range(40)]
    monkeypatch.setattr(template, "_MARKS", same)
    texts = [b"x" * 30] * 40
    made = compiled(lambda values, time: messages(texts, values, time), 40, 6)
    values = np.arange(40.0)
    assert len(made.data) > made.plain_bytes
    assert plain_of(rendered([(made, values, b"timeis")])) == messages(texts, [v.tobytes() for v in values], b"timeis")


def test_a_template_is_as_small_as_what_snappy_makes() -> None:
    texts = heads(random.Random(3), 192)
    made = compiled(lambda values, time: messages(texts, values, time), 192, 6)
    plain = messages(texts, [random.Random(at).randbytes(8) for at in range(192)], b"timeis")
    assert len(made.data) < 1.1 * len(cramjam.snappy.compress_raw(plain))
    assert sum(end - begin for _, begin, end in made.times_at) < 60
