"""Where the collector tells what happens, whether anybody records it or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry

from switchgear.collector.detectors import Moment
from switchgear.collector.model import Event, Signal
from switchgear.collector.recording.metrics import RecordingMetrics
from switchgear.collector.recording.settings import Recording
from switchgear.collector.taps import Tap
from switchgear.core.clock import Clock
from switchgear.core.errors import FailedPrecondition, Reason

Found = Sequence[tuple[Event, Sequence[Signal]]]


class Record(Protocol):
    """What `Detection` and health are told, in the same order. Nothing here raises: a disk that is full costs the record alone."""

    @property
    def taps(self) -> Sequence[Tap]:
        """What must see each row that comes."""

    def connected(self, node: str, boot_id: str, epoch: str) -> None: ...

    def gone(self, node: str, since_s: float) -> None:
        """since_s: when its silence begins, on the monotonic clock."""

    def heard(self, node: str) -> None:
        """Somebody else tells of the node."""

    def cleared(self, node: str, gpu: int | None, why: str) -> None: ...

    def raised(self, signal: Signal, *, found_elsewhere: bool = False) -> None:
        """Silence was told. found_elsewhere: not by `Detection`."""

    def told(self, found: Found) -> None:
        """Events with what they raise; those of the last time, which could not be committed, may come again."""

    def looked(self, now: Moment) -> None:
        """`Detection.silent` was asked."""

    async def written(self) -> None:
        """Returns when all that was told before is in a file: what is committed after that is not missing there."""

    async def run(self) -> None:
        """Writes until cancelled."""


class Unrecorded:
    """See `Record`."""

    taps: Sequence[Tap] = ()

    def connected(self, node: str, boot_id: str, epoch: str) -> None:
        pass

    def gone(self, node: str, since_s: float) -> None:
        pass

    def heard(self, node: str) -> None:
        pass

    def cleared(self, node: str, gpu: int | None, why: str) -> None:
        pass

    def raised(self, signal: Signal, *, found_elsewhere: bool = False) -> None:
        pass

    def told(self, found: Found) -> None:
        pass

    def looked(self, now: Moment) -> None:
        pass

    async def written(self) -> None:
        pass

    async def run(self) -> None:
        pass


def record_of(settings: Recording, clock: Clock, registry: CollectorRegistry, silence_s: float) -> Record:
    """silence_s: of the detectors. Raises FailedPrecondition (MISSING_EXTRA) without pyarrow, Invalid when the folder cannot be made."""
    metrics = RecordingMetrics(registry)
    if settings.folder is None:
        return Unrecorded()
    require_arrow()
    from switchgear.collector.recording.recorder import Recorder

    return Recorder(settings, settings.folder, clock, metrics, silence_s)


def require_arrow() -> None:
    """Raises FailedPrecondition (MISSING_EXTRA)."""
    try:
        import pyarrow  # noqa: F401
    except ModuleNotFoundError:
        raise FailedPrecondition(
            "recordings need pyarrow, which is not installed; install it with pip install 'switchgear[recording]'",
            Reason.MISSING_EXTRA,
        ) from None
