"""Requests at a rate that the demo turns up and down while they flow."""

from __future__ import annotations

import asyncio
import threading

from switchgear.serve import load

#: Arrivals are drawn for so long ahead; a new rate holds from the next slice on.
SLICE_S = 1.0
TOKENS = (16, 24, 32)
END_S = 120.0


class Traffic:
    """A thread with an open-loop load generator. Use it as a context: it ends when all requests are answered.

    retries: see `load.LoadSettings`.
    """

    def __init__(self, url: str, model: str, *, retries: int = 0) -> None:
        self._url, self._model, self._retries = url, model, retries
        self._thread = threading.Thread(target=lambda: asyncio.run(self._flow()), daemon=True)
        self._ended = threading.Event()
        self._reports: list[load.Report] = []
        #: Requests a second; 0 is a pause.
        self.rate = 0.0
        self.sent = 0

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(END_S)

    @property
    def quiet(self) -> bool:
        """Whether every request that was sent has its answer."""
        return self.sent == sum(len(report.outcomes) for report in self._reports)

    def report(self) -> load.Report:
        """All outcomes so far, answers compared across slices."""
        return load.Report(load.compared([outcome for report in self._reports for outcome in report.outcomes]))

    async def _flow(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            number = 0
            while not self._ended.is_set():
                number += 1
                if self.rate:
                    settings = load.LoadSettings(
                        url=self._url,
                        model=self._model,
                        phases=[load.Phase(SLICE_S, self.rate)],
                        seed=number,
                        tokens=TOKENS,
                        retries=self._retries,
                    )
                    self.sent += len(load.schedule(settings))
                    tasks.create_task(self._slice(settings))
                await asyncio.sleep(SLICE_S)

    async def _slice(self, settings: load.LoadSettings) -> None:
        self._reports.append(await load.run(settings))
