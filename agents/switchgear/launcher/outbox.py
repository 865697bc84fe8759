"""Reports on their way to the control plane: progress is replaced by newer progress, everything else waits its turn."""

from __future__ import annotations

import asyncio
from collections import deque

from switchgear.v1alpha import launcher_service_pb2 as pb

#: An attempt makes a handful of reports a rank and one or two a checkpoint, and no new attempt starts without a control plane:
#: this is hours of an outage. Beyond it the oldest go, which the hello after a reconnect makes good.
REPORTS_MAX = 8192


class Outbox:
    """One reader, any number of writers on the same loop."""

    def __init__(self) -> None:
        self._reports: deque[pb.LauncherReport] = deque(maxlen=REPORTS_MAX)
        self._progress: pb.LauncherReport | None = None
        self._filled = asyncio.Event()
        self._closed = False

    def put(self, report: pb.LauncherReport) -> None:
        if report.WhichOneof("kind") == "progress":
            self._progress = report
        else:
            self._reports.append(report)
        self._filled.set()

    def put_back(self, report: pb.LauncherReport) -> None:
        """Returns a report that could not be sent to the front; stale progress is dropped."""
        if report.WhichOneof("kind") != "progress":
            self._reports.appendleft(report)
            self._filled.set()

    def drop_hellos(self) -> None:
        """Forgets hellos that wait: a newer one goes first on a new connection."""
        for report in [report for report in self._reports if report.WhichOneof("kind") == "hello"]:
            self._reports.remove(report)

    async def get(self) -> pb.LauncherReport | None:
        """The oldest report; progress only when nothing else waits; None when the outbox is closed and empty."""
        while True:
            if self._reports:
                return self._reports.popleft()
            if self._progress is not None:
                report, self._progress = self._progress, None
                return report
            if self._closed:
                return None
            self._filled.clear()
            await self._filled.wait()

    def close(self) -> None:
        """No more reports come."""
        self._closed = True
        self._filled.set()
