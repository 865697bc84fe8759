"""Blocks that many simulated nodes share, taken in as the collector takes in those of agents."""

from __future__ import annotations

import numpy as np
import pytest

from switchgear.collector import messages
from switchgear.collector.chain import Chain, Outcome
from switchgear.collector.dictionary import dictionary_of
from switchgear.core.errors import Invalid
from switchgear.sim.faults import History, Scheduled, parse_fault
from switchgear.sim.fleet.collector import dated
from switchgear.sim.fleet.variant import BEFORE_S, KEYFRAME_EVERY, Variant, check_series, packed_dictionary
from switchgear.v1alpha import telemetry_service_pb2 as pb

SERIES = 20


def taken_in(chain: Chain, block: bytes, sequence: int) -> Outcome:
    return chain.apply(messages.block_of(pb.Block.FromString(dated(block, sequence * 10**9, sequence))))


def a_chain(node: str = "sim-0001") -> Chain:
    chain = Chain("epoch")
    chain.define(*dictionary_of(pb.Dictionary.FromString(packed_dictionary(node, SERIES))))
    return chain


def now(variant: Variant) -> list[float]:
    return [np.nan if reading.value is None else reading.value for reading in variant.readings]


def test_nodes_that_begin_at_different_ticks_have_the_same_values() -> None:
    variant = Variant(7, SERIES, 1.0)
    chains = {tick: a_chain() for tick in (1, 2, 30)}
    for tick in range(1, 2 * KEYFRAME_EVERY):
        variant.advance(tick)
        for began, chain in chains.items():
            if tick >= began:
                assert taken_in(chain, variant.block(began), tick) is Outcome.APPLIED
                assert chain.latest().tolist() == now(variant)


def test_a_node_that_was_told_to_sample_less_often_has_the_values_of_its_own_ticks() -> None:
    variant, chain = Variant(7, SERIES, 1.0), a_chain()
    for tick in range(1, 4 * KEYFRAME_EVERY):
        variant.advance(tick)
        if tick >= 4 and (tick - 4) % 3 == 0:
            assert taken_in(chain, variant.block(4, 3), (tick - 1) // 3) is Outcome.APPLIED
            assert chain.latest().tolist() == now(variant)


def test_a_backlog_holds_the_ticks_that_a_node_missed() -> None:
    variant = Variant(7, SERIES, 1.0)
    rows = {}
    for tick in range(1, 12):
        variant.advance(tick)
        rows[tick] = now(variant)
    chain = a_chain()
    for tick, block in enumerate(variant.backlog(4, 9), 4):
        assert taken_in(chain, block, tick) is Outcome.APPLIED
        assert chain.latest().tolist() == rows[tick]


def test_a_gpu_that_falls_off_the_bus_is_unknown_from_then_on() -> None:
    lost = History([Scheduled(BEFORE_S + 5, parse_fault("gpu 1 xid 79"))])
    variant = Variant(7, SERIES, 1.0, [lost if gpu == 1 else History() for gpu in range(8)])
    variant.advance(4)
    assert not np.isnan(now(variant)).any()
    variant.advance(5)
    assert {reading.key.labels[0][1] for reading in variant.readings if reading.value is None} == {"1"}


def test_each_node_has_its_own_labels() -> None:
    keys = a_chain("sim-10001").series
    assert {dict(key.labels)["hostname"] for key in keys} == {"sim-10001"}
    others = {dict(key.labels)["UUID"] for key in a_chain("sim-10002").series}
    assert others.isdisjoint(dict(key.labels)["UUID"] for key in keys)


@pytest.mark.parametrize("count", [7, 10_000])
def test_a_node_cannot_have_any_number_of_series(count: int) -> None:
    with pytest.raises(Invalid, match="choose --series in between"):
        check_series(count)
