"""From readings to blocks."""

from __future__ import annotations

import math
import struct

from switchgear.agent.readings import Kind, Reading, SeriesKey, known, series, unknown
from switchgear.agent.sampler import Block, Sampler


def key(name: str) -> SeriesKey:
    return series(name, "watts", Kind.GAUGE, ("gpu", "0"))


def content(block: Block) -> dict[int, float]:
    values = [value for (value,) in struct.iter_unpack("<d", block.values_f64)]
    ids = [number for (number,) in struct.iter_unpack("<I", block.series_ids)] or list(range(len(values)))
    return dict(zip(ids, values, strict=True))


def test_the_first_block_is_a_keyframe_and_later_ones_have_only_what_changed() -> None:
    sampler = Sampler()
    first = sampler.tick([known(key("a"), 1), known(key("b"), 2)], 10)
    second = sampler.tick([known(key("a"), 1), known(key("b"), 3)], 20)
    third = sampler.tick([known(key("a"), 1), known(key("b"), 3)], 30)
    assert (first.keyframe, first.series_ids, content(first)) == (True, b"", {0: 1.0, 1: 2.0})
    assert (second.keyframe, content(second), second.time_unix_ns) == (False, {1: 3.0}, 20)
    assert (third.keyframe, content(third), third.unknown) == (False, {}, ())
    assert [block.sequence for block in (first, second, third)] == [1, 2, 3]


def test_unknown_is_told_once_with_its_reason_and_never_as_a_number() -> None:
    sampler = Sampler()
    sampler.tick([known(key("a"), 1)], 0)
    lost = sampler.tick([unknown(key("a"), "GPU is lost")], 1)
    still = sampler.tick([unknown(key("a"), "GPU is lost")], 2)
    back = sampler.tick([known(key("a"), 1)], 3)
    assert (content(lost), lost.unknown) == ({}, ((0, "GPU is lost"),))
    assert (content(still), still.unknown) == ({}, ())
    assert (content(back), back.unknown) == ({0: 1.0}, ())


def test_a_keyframe_with_unknown_series_names_the_ids_of_the_others() -> None:
    sampler = Sampler()
    block = sampler.tick([unknown(key("a"), "why"), known(key("b"), 2)], 0)
    assert (block.keyframe, block.unknown, content(block)) == (True, ((0, "why"),), {1: 2.0})
    assert block.series_ids == struct.pack("<I", 1)


def test_a_keyframe_comes_every_sixty_ticks_and_after_one_was_asked_for() -> None:
    sampler = Sampler()
    frames = [sampler.tick([known(key("a"), 1)], number).keyframe for number in range(121)]
    assert [number for number, keyframe in enumerate(frames) if keyframe] == [0, 60, 120]
    assert content(sampler.keyframe()) == {0: 1.0}
    assert not any(sampler.tick([], 0).keyframe for _ in range(59))
    assert sampler.tick([], 0).keyframe


def test_the_dictionary_grows_to_its_bound_and_refuses_the_rest() -> None:
    sampler = Sampler(series_max=2)
    block = sampler.tick([known(key(name), 1) for name in "abcd"], 0)
    sampler.tick([known(key(name), 2) for name in "abcd"], 1)
    assert sampler.dictionary() == [key("a"), key("b")]
    assert content(block) == {0: 1.0, 1: 1.0}
    assert sampler.refused == 2


def test_nan_is_unknown() -> None:
    assert known(key("a"), math.nan) == Reading(key("a"), None, "not a number")
