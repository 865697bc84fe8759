"""From readings to blocks."""

from __future__ import annotations

import math

from switchgear.agent.readings import Kind, Reading, SeriesKey, known, series, unknown
from switchgear.agent.sampler import Block, Sampler
from switchgear.collector.blocks import Decoder
from switchgear.collector.messages import block_of
from switchgear.v1alpha import telemetry_service_pb2 as pb


def key(name: str) -> SeriesKey:
    return series(name, "watts", Kind.GAUGE, ("gpu", "0"))


def message(block: Block) -> pb.Block:
    return pb.Block.FromString(block.message)


def unknowns(block: Block) -> list[tuple[int, str]]:
    return [(item.id, item.reason) for item in message(block).unknown]


class Chain:
    """What a collector makes of blocks that come one after the other."""

    def __init__(self) -> None:
        self.decoder = Decoder()

    def content(self, block: Block) -> dict[int, float]:
        ids, values = self.decoder.decode(block_of(message(block)), block.series)
        return dict(zip(ids.tolist(), values.tolist(), strict=True))


def test_the_first_block_is_a_keyframe_and_later_ones_have_only_what_changed() -> None:
    sampler = Sampler()
    first = sampler.tick([known(key("a"), 1), known(key("b"), 2)], 10)
    second = sampler.tick([known(key("a"), 1), known(key("b"), 3)], 20)
    third = sampler.tick([known(key("a"), 1), known(key("b"), 3)], 30)
    chain = Chain()
    assert (first.keyframe, chain.content(first)) == (True, {0: 1.0, 1: 2.0})
    assert (second.keyframe, chain.content(second), second.time_unix_ns) == (False, {1: 3.0}, 20)
    assert (third.keyframe, chain.content(third), unknowns(third)) == (False, {}, [])
    assert [block.sequence for block in (first, second, third)] == [1, 2, 3]


def test_unknown_is_told_once_with_its_reason_and_never_as_a_number() -> None:
    sampler = Sampler()
    chain = Chain()
    chain.content(sampler.tick([known(key("a"), 1)], 0))
    lost = sampler.tick([unknown(key("a"), "GPU is lost")], 1)
    still = sampler.tick([unknown(key("a"), "GPU is lost")], 2)
    back = sampler.tick([known(key("a"), 1)], 3)
    assert (chain.content(lost), unknowns(lost)) == ({}, [(0, "GPU is lost")])
    assert (chain.content(still), unknowns(still)) == ({}, [])
    assert (chain.content(back), unknowns(back)) == ({0: 1.0}, [])


def test_a_keyframe_with_unknown_series_names_the_ids_of_the_others() -> None:
    sampler = Sampler()
    block = sampler.tick([unknown(key("a"), "why"), known(key("b"), 2)], 0)
    assert (block.keyframe, unknowns(block), Chain().content(block)) == (True, [(0, "why")], {1: 2.0})


def test_a_keyframe_comes_every_sixty_ticks_and_after_one_was_asked_for() -> None:
    sampler = Sampler()
    frames = [sampler.tick([known(key("a"), 1)], number).keyframe for number in range(121)]
    assert [number for number, keyframe in enumerate(frames) if keyframe] == [0, 60, 120]
    sampler.restart()
    assert [sampler.tick([], 0).keyframe for _ in range(61)] == [True, *[False] * 59, True]


def test_the_newest_block_can_be_told_again_to_somebody_who_knows_nothing() -> None:
    sampler = Sampler()
    for number in range(3):
        newest = sampler.tick([known(key("a"), number), unknown(key("b"), "why")], number)
    again = sampler.keyframe()
    assert (again.sequence, again.time_unix_ns, again.keyframe) == (newest.sequence, newest.time_unix_ns, True)
    assert (Chain().content(again), unknowns(again)) == ({0: 2.0}, [(1, "why")])
    assert sampler.tick([known(key("a"), 7)], 3).keyframe  # nothing may build on what others have not seen


def test_the_dictionary_grows_to_its_bound_and_refuses_the_rest() -> None:
    sampler = Sampler(series_max=2)
    block = sampler.tick([known(key(name), 1) for name in "abcd"], 0)
    sampler.tick([known(key(name), 2) for name in "abcd"], 1)
    assert sampler.dictionary() == [key("a"), key("b")]
    assert Chain().content(block) == {0: 1.0, 1: 1.0}
    assert sampler.refused == 2


def test_nan_is_unknown() -> None:
    assert known(key("a"), math.nan) == Reading(key("a"), None, "not a number")
