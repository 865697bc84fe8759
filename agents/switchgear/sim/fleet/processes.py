"""A fleet in several processes: each drives some of its nodes and tells once a second what it has done."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from switchgear.core import loop
from switchgear.core.clock import SystemClock
from switchgear.core.errors import SwitchgearError
from switchgear.core.process import until_signal
from switchgear.sim.fleet.counts import Counts
from switchgear.sim.fleet.fleet import Fleet
from switchgear.sim.fleet.flood import Flood
from switchgear.sim.fleet.settings import FleetSettings

TELL_S = 1.0
#: What a process gets to end its connections.
_END_S = 10.0


def drive(settings: FleetSettings, tell: Callable[[Counts], None]) -> None:
    """Runs in this process until the time is over, the flood is acked or a signal comes. tell: called each second and at the end.

    Raises as `Fleet` and `Flood` do.
    """
    driver = Flood(settings, SystemClock()) if settings.blocks else Fleet(settings, SystemClock())

    def now() -> Counts:
        if isinstance(driver, Fleet):
            driver.observe()
        driver.counts.cpu_s = time.process_time()
        return driver.counts

    async def work() -> None:
        async with asyncio.TaskGroup() as tasks:
            telling = tasks.create_task(_repeat(lambda: tell(now())))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(settings.seconds):
                    await driver.run()
            telling.cancel()

    try:
        loop.run(until_signal(work()))
    except* SwitchgearError as group:
        raise group.exceptions[0] from None
    finally:
        tell(now())


async def _repeat(what: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(TELL_S)
        what()


@dataclass(frozen=True, slots=True)
class Processes:
    """ends: of each process, which brings its `Counts`, or the words of an error that ended it, until it ends."""

    ends: Sequence[Connection]
    _started: Sequence[BaseProcess]

    def exit_code(self, end: Connection) -> int | None:
        """Of the process at this end, which has closed it; None when it does not end."""
        process = self._started[self.ends.index(end)]
        process.join(_END_S)
        return process.exitcode

    def stop(self) -> None:
        """Lets all of them end their connections."""
        for process in self._started:
            process.terminate()


@contextlib.contextmanager
def running(settings: FleetSettings, processes: int) -> Iterator[Processes]:
    """A fleet in so many processes, which have ended when the block has."""
    context = multiprocessing.get_context("spawn")
    begin, started, ends = settings.first, list[BaseProcess](), list[Connection]()
    for number in range(processes):
        nodes = settings.nodes // processes + (number < settings.nodes % processes)
        part = replace(
            settings,
            first=begin,
            nodes=nodes,
            total=settings.nodes,
            connects_per_s=max(1.0, settings.connects_per_s / processes),
        )
        begin += nodes
        ours, theirs = context.Pipe(duplex=False)
        process: BaseProcess = context.Process(target=_child, args=(part, theirs))
        process.start()
        theirs.close()
        started.append(process)
        ends.append(ours)
    fleet = Processes(ends, started)
    try:
        yield fleet
    finally:
        fleet.stop()
        for process in started:
            process.join(_END_S)
            process.kill()  # nothing happens to one that has ended
            process.join()


def _child(settings: FleetSettings, parent: Connection) -> None:
    try:
        drive(settings, parent.send)
    except SwitchgearError as error:
        parent.send(error.message)
    except BrokenPipeError:
        pass  # the parent has gone: nobody reads any more
