"""Writes down what comes in and what happens, in threads of its own."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from switchgear.collector.detectors import Moment
from switchgear.collector.health import SILENT
from switchgear.collector.model import Signal
from switchgear.collector.recording import files, happenings, sample_files
from switchgear.collector.recording.files import Reel
from switchgear.collector.recording.happenings import Happening, What
from switchgear.collector.recording.metrics import RecordingMetrics
from switchgear.collector.recording.record import Found
from switchgear.collector.recording.samples import FILE_SAMPLES_MAX, Chunk, SampleTap
from switchgear.collector.recording.settings import Recording
from switchgear.collector.taps import Tap
from switchgear.core.clock import Clock
from switchgear.core.errors import Invalid, Reason

log = logging.getLogger(__name__)

_TICK_S = 1.0
#: Looks for silent nodes, twice a second, that wait for something else to be written.
_LOOKS_MAX = 20
#: A crash loses the samples of so long, and no event.
SAMPLES_S_MAX = 10.0
#: Events wait no longer for a disk that hangs; then they are lost to the recording, and to nothing else.
WRITE_S_MAX = 5.0
#: An open file is about such a part of the folder at most, so that the oldest that goes is little.
_FOLDER_PARTS = 8


class Recorder:
    """See `record.Record`. Events wait for no sample: each has its own thread."""

    def __init__(
        self, settings: Recording, folder: Path, clock: Clock, metrics: RecordingMetrics, silence_s: float
    ) -> None:
        """Raises Invalid (BAD_FIELD) when the folder cannot be made."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Invalid(
                f"cannot record to {folder}: {error.strerror}; give [recording] another folder",
                Reason.BAD_FIELD,
                field="recording.folder",
            ) from error
        self._settings, self._folder, self._clock, self._metrics = settings, folder, clock, metrics
        self._file_s = 60 * settings.file_minutes
        self._file_bytes_max = settings.bytes_max // _FOLDER_PARTS
        self._run_id = uuid.uuid4().hex
        self._tap = SampleTap(settings.keep, settings.drop)
        self._events = Reel(folder, "events", self._run_id, happenings.SCHEMA, happenings.seal)
        self._samples = Reel(folder, "samples", self._run_id, sample_files.OPEN_SCHEMA, sample_files.seal)
        self._of_events = ThreadPoolExecutor(1, "recording-events")
        self._of_samples = ThreadPoolExecutor(1, "recording-samples")
        #: Where the newest step failed.
        self._failing = set[ThreadPoolExecutor]()
        self._new: list[Happening] = []
        #: What each node's connection was after all that was taken out of `_new`, as the next file must tell again.
        self._nodes: dict[str, Happening] = {}
        self._began = Happening(What.STARTED, self._now(), self._run_id, silence_s=silence_s)
        #: Of the events that were told last: when they cannot be committed they come again.
        self._told = set[tuple[str, str, int]]()
        #: The newest write of events; while it hangs there is no other.
        self._writing: asyncio.Task[None] | None = None
        self._hangs = False
        self._events_end_s = clock.monotonic_s()
        self._samples_end_s = clock.monotonic_s() + self._file_s

    @property
    def taps(self) -> Sequence[Tap]:
        return (self._tap,)

    def connected(self, node: str, boot_id: str, epoch: str) -> None:
        self._new.append(Happening(What.CONNECTED, self._now(), self._run_id, node, boot_id, epoch))

    def gone(self, node: str, since_s: float) -> None:
        self._new.append(Happening(What.GONE, Moment(self._clock.unix_ns(), since_s), self._run_id, node))

    def heard(self, node: str) -> None:
        self._new.append(Happening(What.HEARD, self._now(), self._run_id, node))

    def cleared(self, node: str, gpu: int | None, why: str) -> None:
        self._new.append(Happening(What.CLEARED, self._now(), self._run_id, node, gpu=gpu, text=why))

    def raised(self, signal: Signal, *, found_elsewhere: bool = False) -> None:
        what = What.FOUND if found_elsewhere else What.RAISED
        self._new.append(Happening(what, self._now(), self._run_id, signal.node, signal=signal))

    def told(self, found: Found) -> None:
        now = self._now()
        fresh = [(event, signals) for event, signals in found if event.key not in self._told]
        if not fresh:
            return
        self._told = {event.key for event, _ in found}
        for event, signals in fresh:
            self._new.append(Happening(What.TOLD, now, self._run_id, event.node, event=event))
            self._new += [Happening(What.RAISED, now, self._run_id, event.node, signal=one) for one in signals]

    def looked(self, now: Moment) -> None:
        self._new.append(Happening(What.LOOKED, now, self._run_id))

    async def written(self) -> None:
        while await self._is_writing():
            pass  # with others that waited too, one of whom has begun the next write
        rows, self._new = self._new, []
        if not rows:
            return
        now_s = self._clock.monotonic_s()
        begins = now_s >= self._events_end_s or self._events.nbytes >= self._file_bytes_max
        # Each file can be replayed without the ones before it.
        before = [self._began, *self._nodes.values()] if begins else []
        self._remember(rows)
        if self._hangs:
            self._lost(rows)
            return
        if begins:
            self._events_end_s = now_s + self._file_s
        rows = [*before, *rows]
        self._writing = asyncio.create_task(self._write_events(rows, begins))
        await self._is_writing()

    async def _is_writing(self) -> bool:
        """Waits for a write of events that is under way, unless it hangs; whether there was one."""
        writing = self._writing
        if writing is None or writing.done():
            self._hangs = False
            return False
        if not self._hangs:
            await asyncio.wait([writing], timeout=WRITE_S_MAX)
            self._hangs = not writing.done()
        return not self._hangs

    async def _write_events(self, rows: Sequence[Happening], begins: bool) -> None:
        if not await self._in(self._of_events, self._put_events, rows, begins):
            self._lost(rows)

    def _lost(self, rows: Sequence[Happening]) -> None:
        self._events_end_s = self._clock.monotonic_s()
        self._metrics.lost.labels("events").inc(sum(row.what is What.TOLD for row in rows))

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._run_events())
                tasks.create_task(self._run_samples())
        finally:
            await self._end()

    async def _run_events(self) -> None:
        await self._end_left(self._of_events, "events", happenings.seal)
        while True:
            # That time passed is worth no write of its own.
            if len(self._new) > _LOOKS_MAX or any(one.what is not What.LOOKED for one in self._new):
                await self.written()
            self._count_lost()  # also while the disk hangs for the samples
            await asyncio.sleep(_TICK_S)

    async def _run_samples(self) -> None:
        await self._end_left(self._of_samples, "samples", sample_files.seal)
        written_s = self._clock.monotonic_s()
        while True:
            now_s = self._clock.monotonic_s()
            if not self._tap.begins and (
                now_s >= self._samples_end_s
                or self._tap.samples >= FILE_SAMPLES_MAX
                or self._samples.nbytes >= self._file_bytes_max
            ):
                self._samples_end_s = now_s + self._file_s
                self._tap.begin()
            if self._tap.is_full or now_s - written_s >= SAMPLES_S_MAX:
                written_s = now_s
                await self._write_samples()
            await asyncio.sleep(_TICK_S)

    async def _end_left(self, thread: ThreadPoolExecutor, kind: str, how: files.Seal) -> None:
        """Files of collectors that died."""
        left = list[Path]()
        await self._in(thread, lambda: left.extend(files.left_open(self._folder, kind)))
        for path in left:
            await self._in(thread, files.seal, path, how)

    async def _end(self) -> None:
        await self.written()
        await self._write_samples()
        await self._in(self._of_events, self._events.end)
        await self._in(self._of_samples, self._samples.end)
        self._of_events.shutdown(wait=False)
        self._of_samples.shutdown(wait=False)

    def _remember(self, rows: Sequence[Happening]) -> None:
        for row in rows:
            if row.what in (What.CONNECTED, What.GONE):
                self._nodes[row.node] = row
            elif row.what is What.RAISED and row.signal is not None and row.signal.kind == SILENT:
                known = self._nodes.get(row.node)
                if known is not None and known.what is What.GONE:  # it is told once; and it may have come back
                    del self._nodes[row.node]

    async def _write_samples(self) -> None:
        chunks = self._tap.take()
        for at, chunk in enumerate(chunks):
            if not await self._in(self._of_samples, self._put_samples, chunk):
                # What came meanwhile builds on what is lost.
                self._tap.restart()
                self._metrics.lost.labels("samples").inc(sum(lost.used for lost in chunks[at:]))
                break
            self._metrics.samples.inc(chunk.used)
        self._count_lost()

    def _count_lost(self) -> None:
        self._metrics.lost.labels("samples").inc(self._tap.lost)
        self._tap.lost = 0

    def _put_events(self, rows: Sequence[Happening], begins: bool) -> None:
        if begins:
            self._events.end()
            self._prune()
        self._events.write(happenings.batch_of(rows), self._clock.unix_ns())

    def _put_samples(self, chunk: Chunk) -> None:
        if chunk.begins:
            self._samples.end()
        for batch in sample_files.batches_of(chunk):
            self._samples.write(batch, self._clock.unix_ns())
        self._prune()

    def _prune(self) -> None:
        self._metrics.bytes.set(files.prune(self._folder, self._settings.bytes_max))

    async def _in(self, thread: ThreadPoolExecutor, step: Callable[..., None], *args: object) -> bool:
        try:
            await asyncio.get_running_loop().run_in_executor(thread, step, *args)
        except Exception:
            if thread not in self._failing:  # it is tried again each second
                log.exception(
                    "cannot write to the recording in %s; going on without what was to be written", self._folder
                )
            self._failing.add(thread)
            return False
        if thread in self._failing:
            log.warning("the recording in %s can be written to again", self._folder)
            self._failing.discard(thread)
        return True

    def _now(self) -> Moment:
        return Moment(self._clock.unix_ns(), self._clock.monotonic_s())
