"""Samples wait on disk through kill -9, full disks and damage; what is given up is counted."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from switchgear.agent.intervals import Intervals
from switchgear.agent.readings import Kind, known, series
from switchgear.agent.sample_spool import CHUNK_BLOCKS_MAX, CHUNK_BYTES_MAX, SampleSpool
from switchgear.agent.sampler import Block, Sampler
from switchgear.v1alpha import telemetry_service_pb2 as pb

BEFORE_ALL = 10**9
KEYS = [series(f"metric_{number}", "", Kind.GAUGE) for number in range(20)]


class Agent:
    """Ticks into a spool; opened again it is the next agent, as after kill -9: nothing was closed."""

    def __init__(self, folder: Path, epoch: str = "one", bytes_max: int = 1 << 20, age_s_max: float = 3600) -> None:
        self.spool = SampleSpool(folder, epoch, bytes_max=bytes_max, age_s_max=age_s_max)
        self.sampler = Sampler(keyframe_every=10)
        self.random = random.Random(epoch)

    def tick(self, count: int = 1, *, live: bool = False, time_s: int = 0) -> Block:
        for _ in range(count):
            readings = [known(key, self.random.randrange(10**6)) for key in KEYS]
            block = self.sampler.tick(readings, (time_s or self.sampler.sequence) * 10**9)
            self.spool.append(block, self.sampler.keys, live=live)
        return block

    def drain(self) -> Iterator[tuple[str, list[int], int]]:
        """(epoch, fresh sequences, lost) of each chunk, acked one after the other."""
        self.spool.begin_reading()
        while (chunk := self.spool.next_chunk(BEFORE_ALL)) is not None:
            sequences = [pb.Block.FromString(block).sequence for block in chunk.blocks]
            yield chunk.epoch, [number for number in sequences if number >= chunk.fresh_from], chunk.lost
            self.spool.delivered(chunk.epoch, chunk.fresh_from, chunk.last, lost=chunk.lost)

    def drained(self) -> tuple[list[tuple[str, int]], int]:
        chunks = list(self.drain())
        return [(epoch, number) for epoch, fresh, _ in chunks for number in fresh], sum(lost for *_, lost in chunks)


def test_what_an_agent_wrote_is_read_in_order_by_the_next_one(tmp_path: Path) -> None:
    first = Agent(tmp_path)
    first.tick(25)
    second = Agent(tmp_path, "two")
    second.tick(5)
    assert second.spool.blocks_waiting == 30
    assert second.drained() == ([*(("one", n) for n in range(1, 26)), *(("two", n) for n in range(1, 6))], 0)
    assert second.spool.blocks_waiting == 0


def test_each_epoch_and_each_gap_begins_with_a_dictionary_and_a_keyframe_that_it_can_build_on(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    agent.tick(35)
    agent.spool.delivered("one", 1, 16)
    agent.spool.begin_reading()
    chunk = agent.spool.next_chunk(BEFORE_ALL)
    assert chunk is not None
    blocks = [pb.Block.FromString(block) for block in chunk.blocks]
    assert ([block.sequence for block in blocks], blocks[0].keyframe) == (list(range(11, 36)), True)
    assert chunk.fresh_from == 17
    assert [item.metric for item in chunk.dictionary.series] == [key.metric for key in KEYS]


def test_blocks_that_are_under_way_are_not_sent_twice(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    agent.tick(20)
    agent.spool.begin_reading()
    chunk = agent.spool.next_chunk(before=12)
    assert chunk is not None
    assert (chunk.fresh_from, chunk.last) == (1, 11)
    agent.spool.delivered("one", 1, 11)
    assert agent.spool.next_chunk(before=12) is None


def test_a_chunk_is_small_and_the_next_goes_on_where_it_ended(tmp_path: Path) -> None:
    agent = Agent(tmp_path, bytes_max=8 << 20)
    agent.tick(500)
    sizes = []
    agent.spool.begin_reading()
    told = 0
    while (chunk := agent.spool.next_chunk(BEFORE_ALL)) is not None:
        assert chunk.fresh_from == told + 1
        assert len(chunk.dictionary.series) == (0 if told else len(KEYS)), "the series are told once"
        assert len(chunk.blocks) == chunk.last - told <= CHUNK_BLOCKS_MAX, "no block is sent again to build on"
        sizes.append(sum(map(len, chunk.blocks)))
        told = chunk.last
        agent.spool.delivered(chunk.epoch, chunk.fresh_from, chunk.last)
    assert told == 500
    assert max(sizes) < CHUNK_BYTES_MAX + 200


def test_an_ack_that_never_came_means_that_it_is_sent_again(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    agent.tick(5)
    agent.spool.begin_reading()
    first = agent.spool.next_chunk(BEFORE_ALL)
    agent.spool.begin_reading()
    assert agent.spool.next_chunk(BEFORE_ALL) == first


def test_what_the_collector_has_is_known_after_a_restart_and_its_files_are_gone(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    agent.tick(30)
    agent.spool.delivered("one", 1, 12)
    agent.spool.delivered("one", 20, 30)
    again = Agent(tmp_path, "two")
    assert again.drained() == ([("one", number) for number in range(13, 20)], 0)
    assert list(tmp_path.glob("*.segment")) == []


def test_the_oldest_go_first_when_there_is_no_room_and_every_one_is_counted(tmp_path: Path) -> None:
    agent = Agent(tmp_path, bytes_max=16 * 1024)
    agent.tick(1000)
    sequences, lost = agent.drained()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 20 * 1024
    assert [number for _, number in sequences] == list(range(1001 - len(sequences), 1001))
    assert lost == 1000 - len(sequences) > 0
    assert (agent.spool.lost, agent.spool.lost_untold) == (lost, 0)


def test_losses_that_the_collector_does_not_know_of_survive_a_restart(tmp_path: Path) -> None:
    agent = Agent(tmp_path, bytes_max=16 * 1024)
    agent.tick(1000)
    again = Agent(tmp_path, "two", bytes_max=16 * 1024)
    sequences, lost = again.drained()
    assert len(sequences) + lost == 1000
    assert Agent(tmp_path, "three").drained() == ([], 0)


def test_what_is_too_old_is_given_up(tmp_path: Path) -> None:
    agent = Agent(tmp_path, bytes_max=16 * 1024, age_s_max=60)
    agent.tick(20, time_s=1000)
    second = Agent(tmp_path, "two", bytes_max=16 * 1024, age_s_max=60)
    second.tick(10, time_s=1061)
    assert second.drained() == ([("two", number) for number in range(1, 11)], 20)


@pytest.mark.parametrize("cut", [1, 20, 150])
def test_a_write_that_a_crash_cut_short_costs_the_blocks_it_held(tmp_path: Path, cut: int) -> None:
    Agent(tmp_path).tick(10)
    (path,) = tmp_path.glob("*.segment")
    path.write_bytes(path.read_bytes()[:-cut])
    sequences, _ = Agent(tmp_path, "two").drained()
    assert sequences == [("one", number) for number in range(1, len(sequences) + 1)]
    assert 7 <= len(sequences) <= 9


def test_damage_in_the_middle_ends_its_file_there_and_the_others_are_read(tmp_path: Path) -> None:
    agent = Agent(tmp_path, bytes_max=16 * 1024)
    agent.tick(60)
    paths = sorted(tmp_path.glob("*.segment"))
    assert len(paths) > 1
    data = bytearray(paths[0].read_bytes())
    data[len(data) // 2] ^= 1
    paths[0].write_bytes(data)
    (tmp_path / "delivered").write_bytes(b"rubbish")
    sequences, _ = Agent(tmp_path, "two", bytes_max=16 * 1024).drained()
    numbers = [number for _, number in sequences]
    assert numbers[0] == 1
    assert numbers[-1] == 60
    assert 30 < len(numbers) < 60


def test_a_disk_that_refuses_costs_what_is_not_sent_at_once_and_the_rest_goes_on_at_a_keyframe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = Agent(tmp_path)
    agent.tick(4)
    with monkeypatch.context() as full:
        full.setattr("os.write", _full)
        agent.tick(2)
        agent.tick(2, live=True)
    agent.tick(12)  # 9 and 10 build on what is not there; 11 is a keyframe
    sequences, lost = agent.drained()
    assert [number for _, number in sequences] == [1, 2, 3, 4, *range(11, 21)]
    assert (lost, agent.spool.write_errors) == (4, 1)


def test_a_file_that_cannot_be_read_costs_its_own_blocks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Agent(tmp_path).tick(3)
    (tmp_path / "0000000007.segment").mkdir()  # reading it is an error, as of a damaged disk
    agent = Agent(tmp_path, "two")
    agent.tick(2)
    assert agent.drained() == ([("one", 1), ("one", 2), ("one", 3), ("two", 1), ("two", 2)], 0)
    assert "0000000007.segment" in caplog.text


def test_a_disk_that_stays_full_is_said_once_and_leaves_no_empty_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    agent = Agent(tmp_path)
    with monkeypatch.context() as full:
        full.setattr("os.write", _full)
        full.setattr("os.pwrite", lambda fd, data, _: _full(fd, data))
        agent.tick(30)
        agent.spool.delivered("one", 30, 30)
    assert (agent.spool.write_errors, len(caplog.records)) == (4, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["delivered"]
    agent.tick(10)
    assert agent.drained() == ([("one", number) for number in range(31, 41)], 30)


def _full(_fd: int, _data: bytes) -> int:
    raise OSError(28, "No space left on device")


def test_blocks_that_never_reached_the_spool_are_a_counted_gap(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    agent.tick(4)
    agent.sampler.tick([], 5)  # too many jobs waited for the disk
    agent.tick(15)
    sequences, lost = agent.drained()
    assert [number for _, number in sequences] == [1, 2, 3, 4, *range(11, 21)]
    assert len(sequences) + lost == 20


def test_intervals_join_where_they_touch() -> None:
    have = Intervals([(1, 3), (10, 12), (5, 6)])
    assert list(have) == [(1, 3), (5, 6), (10, 12)]
    have.add(4, 4)
    have.add(20, 19)
    assert list(have) == [(1, 6), (10, 12)]
    assert [number for number in range(15) if number in have] == [1, 2, 3, 4, 5, 6, 10, 11, 12]
    assert have.missing(0, 14) == 6
    assert have.missing(7, 9) == 3
    have.add(0, 30)
    assert list(have) == [(0, 30)]
