"""The beat goes on, whoever hangs."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry

from switchgear.agent import ticker
from switchgear.agent.events import Events
from switchgear.agent.metrics import AgentMetrics
from switchgear.agent.outbox import Outbox
from switchgear.agent.readings import Kind, Reading, known, series
from switchgear.agent.sample_spool import SampleSpool
from switchgear.agent.sampler import Sampler
from switchgear.agent.spool import Spool
from switchgear.agent.stream import Identity, TelemetryStream
from switchgear.agent.ticker import Ticker
from switchgear.agent.worker import Worker
from switchgear.core.clock import ManualClock

GPUS = 8
DEADLINE_S = 2.0


class Gpu:
    """Counts its samples; it answers until its gate is closed."""

    period_s = 0.0

    def __init__(self, index: int) -> None:
        self.name = f"gpu-{index}"
        self.key = series("samples", "", Kind.COUNTER, ("gpu", str(index)))
        self.samples = 0
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Event()
        #: The one that asked last.
        self.thread = 0
        self.takes_s = 0.0

    def sample(self) -> list[Reading]:
        self.begun.set()
        self.thread = threading.get_ident()
        self.gate.wait(30)
        time.sleep(self.takes_s)
        self.samples += 1
        return [known(self.key, self.samples)]


class World:
    """An agent's beat; `tick` makes one, a second after the one before."""

    def __init__(self, folder: Path) -> None:
        self.gpus = [Gpu(index) for index in range(GPUS)]
        self.workers = [Worker(gpu.name, [gpu], deadline_s=DEADLINE_S, gpu=i) for i, gpu in enumerate(self.gpus)]
        self.spool = Spool(folder / "spool", "boot")
        self.outbox = Outbox(Sampler(), self.spool, SampleSpool(folder / "samples", "epoch"))
        self.clock = ManualClock()
        stream = TelemetryStream("127.0.0.1:1", Identity("nodes/n1", "boot", "epoch", "1"), self.outbox, self.clock)
        self.ticker = Ticker(
            self.workers,
            self.outbox,
            stream,
            metrics=AgentMetrics(CollectorRegistry(), self.outbox, stream, int),
            events=Events(self.spool, {}, self.clock, self.outbox.wake_from_thread, simulated=False),
            clock=self.clock,
            interval_s=1.0,
        )

    async def tick(self) -> dict[str, float | None]:
        """What is known after it, by GPU. It must be over long before what hangs in this test."""
        async with asyncio.timeout(5):
            await self.ticker.tick()
        self.clock.advance(1.0)
        return {dict(reading.key.labels)["gpu"]: reading.value for reading in self.outbox.sampler.latest()}

    def threads(self) -> set[int]:
        """Those that asked GPUs in the last tick."""
        return {gpu.thread for gpu in self.gpus}

    def kinds(self) -> list[str]:
        return [event.kind for _, event in self.spool.pending(0, 100)]

    def close(self) -> None:
        for gpu in self.gpus:
            gpu.gate.set()
        self.ticker.close()
        self.outbox.close()
        self.spool.close()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


async def test_a_gpu_that_hangs_takes_nothing_from_the_others_but_the_thread(world: World) -> None:
    threads = threading.active_count()
    await world.tick()
    world.gpus[3].gate.clear()
    seen = [await world.tick() for _ in range(6)]
    for number, values in enumerate(seen, 2):
        assert [values[str(gpu)] for gpu in range(GPUS) if gpu != 3] == [number] * (GPUS - 1)
    # The last value stays until the deadline; then nobody knows.
    assert [values["3"] for values in seen] == [1, 1, None, None, None, None]
    for _ in range(3 * GPUS):
        await world.tick()
    assert threading.active_count() <= threads + GPUS + 1, "none at each tick"
    assert await asyncio.to_thread(world.kinds) == ["SOURCE_STALLED"]
    world.gpus[3].gate.set()
    async with asyncio.timeout(10):
        while (await world.tick())["3"] is None:
            pass
    assert await asyncio.to_thread(world.kinds) == ["SOURCE_STALLED", "SOURCE_RESUMED"]


async def test_one_thread_is_enough_as_long_as_all_answer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ticker, "PATIENCE_S", 30)
    monkeypatch.setattr(ticker, "RELIEF_S", 30)
    for _ in range(5):
        await world.tick()
        assert len(world.threads()) == 1


async def test_a_driver_that_is_slow_gets_more_threads(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ticker, "PATIENCE_S", 30)
    for gpu in world.gpus:
        gpu.takes_s = 0.04
    assert set((await world.tick()).values()) == {1}
    assert len(world.threads()) > 2


async def test_every_gpu_is_asked_though_all_hang(world: World) -> None:
    for gpu in world.gpus:
        gpu.gate.clear()
    await world.tick()
    for gpu in world.gpus:
        assert await asyncio.to_thread(gpu.begun.wait, 10)


async def test_only_the_tick_in_which_a_gpu_hangs_waits_for_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.tick()
    world.gpus[3].gate.clear()
    await world.tick()
    monkeypatch.setattr(ticker, "PATIENCE_S", 30)
    await world.tick()


async def test_a_disk_that_hangs_does_not_stop_the_beat(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    stuck = SimpleNamespace(tell=lambda *arguments, **options: release.wait(30))
    monkeypatch.setattr(world.ticker, "_events", stuck)
    world.gpus[0].gate.clear()
    for _ in range(6):
        await world.tick()
    assert world.outbox.blocks_made == 6
    release.set()


def test_beats_keep_their_step() -> None:
    assert ticker.next_beat_s(due_s=10.0, interval_s=1.0, now_s=10.3) == 11.0, "a tick that took 0.3 s"
    assert ticker.next_beat_s(due_s=10.0, interval_s=1.0, now_s=13.3) == 14.0, "three missed ticks are not made up for"
    assert ticker.next_beat_s(due_s=10.0, interval_s=1.0, now_s=9.999) == 11.0, "a timer that fired too soon"
    assert ticker.next_beat_s(due_s=10.7, interval_s=1.0, now_s=10.8) == 12.0, (
        "the first one is at once, and not a whole one"
    )


def test_beats_of_a_tenth_of_a_second_are_as_many_as_they_should_be() -> None:
    due_s = 1000.0
    for _ in range(36_000):
        due_s = ticker.next_beat_s(due_s, 0.1, due_s)
    assert due_s == pytest.approx(4600.0)
