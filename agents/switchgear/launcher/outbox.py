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

    async def get(self) -> pb.LauncherReport:
        """The oldest report; progress only when nothing else waits."""
        while True:
            if self._reports:
                return self._reports.popleft()
            if self._progress is not None:
                report, self._progress = self._progress, None
                return report
            self._filled.clear()
            await self._filled.wait()

    @property
    def is_empty(self) -> bool:
        return not self._reports and self._progress is None
