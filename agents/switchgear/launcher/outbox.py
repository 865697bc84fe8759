"""Reports on their way to the control plane: of progress and watches only the newest counts, everything else waits its turn."""

from __future__ import annotations

import asyncio
from collections import deque

from switchgear.v1alpha import launcher_service_pb2 as pb

#: An attempt makes a handful of reports a rank and one or two a checkpoint, and no new attempt starts without a control plane:
#: this is hours of an outage. Beyond it the oldest go, which the hello after a reconnect makes good.
REPORTS_MAX = 8192
_ONLY_NEWEST = ("progress", "watch")


class Outbox:
    """One reader, any number of writers on the same loop."""

    def __init__(self) -> None:
        self._reports: deque[pb.LauncherReport] = deque(maxlen=REPORTS_MAX)
        self._newest: dict[str, pb.LauncherReport] = {}
        self._filled = asyncio.Event()
        self._closed = False

    def put(self, report: pb.LauncherReport) -> None:
        kind = report.WhichOneof("kind")
        if kind in _ONLY_NEWEST:
            self._newest[kind] = report
        else:
            if kind == "rank_exited" and (steps := self._newest.pop("progress", None)):
                self._reports.append(steps)  # what the rank has done comes before its end
            self._reports.append(report)
        self._filled.set()

    def put_back(self, report: pb.LauncherReport) -> None:
        """Returns a report that could not be sent to the front; what a newer one makes stale is dropped."""
        if report.WhichOneof("kind") not in _ONLY_NEWEST:
            self._reports.appendleft(report)
            self._filled.set()

    def drop_hellos(self) -> None:
        """Forgets hellos that wait: a newer one goes first on a new connection."""
        for report in [report for report in self._reports if report.WhichOneof("kind") == "hello"]:
            self._reports.remove(report)

    async def get(self) -> pb.LauncherReport | None:
        """The oldest report; progress and watches only when nothing else waits; None when the outbox is closed and empty."""
        while True:
            if self._reports:
                return self._reports.popleft()
            for kind in _ONLY_NEWEST:
                if kind in self._newest:
                    return self._newest.pop(kind)
            if self._closed:
                return None
            self._filled.clear()
            await self._filled.wait()

    def close(self) -> None:
        """No more reports come."""
        self._closed = True
        self._filled.set()
