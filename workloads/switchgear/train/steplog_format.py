"""The step log: what a rank tells its launcher through shared memory, without a system call or a lock.

A file of fixed size that the launcher makes and both map. All numbers are signed 64-bit in the machine's own order, aligned, so
that each is stored and seen whole. One process writes; anyone reads. In order:

    header   HEADER_BYTES: the words named `*_AT` below (index in 8-byte words), then the texts of the uncaught exception and of the
             call of the step
    events   EVENT_SLOTS x EVENT_BYTES ring: sequence (from 1), kind, count, time (monotonic ns), length, UTF-8 path
    records  RECORD_SLOTS x RECORD_BYTES ring: count (from 1), start and end of the optimizer's step (monotonic ns)

A record or event is written before the word that announces it (`COUNT_AT`; an event's own sequence), and carries its own number, so
a reader takes it only when both agree. The ring bounds the file: at 20 reads a second a reader misses records only beyond a million
steps a second. `MAGIC_AT` is written last: zero means that the rank has not come so far.

The launcher's reader states the same constants again, since the job's interpreter need not have Switchgear installed; a test holds
both equal.
"""

from __future__ import annotations

import mmap
import os
import time

MAGIC = int.from_bytes(b"SWGSTEPS", "little")
VERSION = 2

MAGIC_AT = 0
VERSION_AT = 1
GENERATION_AT = 2
RANK_AT = 3
PID_AT = 4
#: Unix time minus monotonic time when the rank started, in ns.
WALL_OFFSET_AT = 5
#: Optimizer steps completed.
COUNT_AT = 6
#: The optimizer's own count after the first step of this process; -1 = it keeps none.
ADAM_STEP_AT = 7
EXCEPTION_LENGTH_AT = 8
#: What the training thread is at besides steps, one of PHASE_*.
PHASE_AT = 9
#: When it was last done with something like that, monotonic ns: a sign of progress that is no step.
PHASE_END_AT = 10
#: Time that it has spent writing checkpoints.
CHECKPOINT_NS_AT = 11
#: When it opened a file under the checkpoint directory for writing that it has not renamed since, monotonic ns; 0 = none in this step.
WRITING_AT = 12
#: One of EVALUATING_*.
EVALUATING_AT = 13
#: Descriptor of the memory file that answers STACK_SIGNAL with the stack of the main thread; -1 = it does not answer.
STACK_FD_AT = 14
CALL_LENGTH_AT = 15
#: The step at which COUNT_AT is zero, as the script says; -1 = it does not say.
NAMED_BASE_AT = 16
#: When an optimizer that is not counted has stepped last, monotonic ns: a sign of life; 0 = never.
OTHER_STEP_AT = 17

PHASE_NONE = 0
PHASE_CHECKPOINT = 1
PHASE_EVALUATION = 2
PHASE_DATA = 3
PHASE_COMPILE = 4

#: A model was last told to train, or to evaluate.
EVALUATING_NO = 0
EVALUATING_YES = 1
#: Steps are made with a model that was told to evaluate: in this script that means nothing.
EVALUATING_UNKNOWN = -1

#: SIGRTMAX - 2 where glibc counts; no library that scripts use is known to take it.
STACK_SIGNAL = 62
STACK_FILE = "switchgear-stack"

EXCEPTION_OFFSET = 1024
EXCEPTION_BYTES_MAX = 1024
#: A line for each frame from the program down to the call that counted a step: line number, function and file with tabs between.
CALL_OFFSET = 2048
CALL_BYTES_MAX = 6144
HEADER_BYTES = 8192

EVENT_SLOTS = 32
EVENT_BYTES = 1024
EVENT_TEXT_OFFSET = 40
EVENT_LOADED = 1
EVENT_COMMITTED = 2
#: Count of a commit whose state may be older than the newest step: another thread than the training one made it.
COUNT_UNKNOWN = -1

RECORD_SLOTS = 65536
RECORD_BYTES = 24

EVENTS_OFFSET = HEADER_BYTES
RECORDS_OFFSET = EVENTS_OFFSET + EVENT_SLOTS * EVENT_BYTES
FILE_BYTES = RECORDS_OFFSET + RECORD_SLOTS * RECORD_BYTES

_EVENT_WORDS = EVENT_BYTES // 8
_RECORD_WORDS = RECORD_BYTES // 8


class StepLogWriter:
    """The rank's end. The file must exist with FILE_BYTES; raises OSError or ValueError otherwise."""

    def __init__(self, path: str, generation: int, rank: int) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._map = mmap.mmap(fd, FILE_BYTES)
        finally:
            os.close(fd)
        self._words = memoryview(self._map).cast("q")
        self.count = 0
        #: False in a process that the rank forked: it shares the mapping but is no rank.
        self.attached = True
        #: The script counts its steps itself, through `switchgear.train.progress`.
        self.manual = False
        os.register_at_fork(after_in_child=self._detach)
        self._event_sequence = 0
        words = self._words
        words[VERSION_AT] = VERSION
        words[GENERATION_AT] = generation
        words[RANK_AT] = rank
        words[PID_AT] = os.getpid()
        words[WALL_OFFSET_AT] = time.time_ns() - time.monotonic_ns()
        words[ADAM_STEP_AT] = -1
        words[STACK_FD_AT] = -1
        words[NAMED_BASE_AT] = -1
        words[MAGIC_AT] = MAGIC

    def step(self, start_ns: int, end_ns: int) -> None:
        """Counts one completed optimizer step."""
        words = self._words
        at = RECORDS_OFFSET // 8 + (self.count % RECORD_SLOTS) * _RECORD_WORDS
        self.count = count = self.count + 1
        words[at + 1] = start_ns
        words[at + 2] = end_ns
        words[at] = count
        words[COUNT_AT] = count
        words[WRITING_AT] = 0
        if words[EVALUATING_AT] == EVALUATING_YES:
            # Before the first step it may be a teacher's or a frozen part's.
            words[EVALUATING_AT] = EVALUATING_NO if count == 1 else EVALUATING_UNKNOWN

    def other_step(self, end_ns: int) -> None:
        """An optimizer has stepped that is not counted."""
        self._words[OTHER_STEP_AT] = end_ns

    def adam_step(self, value: int) -> None:
        self._words[ADAM_STEP_AT] = value

    def named_base(self, step: int) -> None:
        """The script says that its count was zero at that step."""
        self._words[NAMED_BASE_AT] = max(-1, step)

    def loaded(self, path: str) -> None:
        """Notes that `path`, relative to the checkpoint directory, was opened for reading."""
        self._event(EVENT_LOADED, path, self.count)

    def committed(self, path: str, *, in_step_order: bool) -> None:
        """Notes that `path`, relative to the checkpoint directory, is being renamed into place.

        in_step_order: whether the state in it is that of the newest step; an asynchronous writer may be steps behind.
        """
        self._event(EVENT_COMMITTED, path, self.count if in_step_order else COUNT_UNKNOWN)

    def _event(self, kind: int, path: str, count: int) -> None:
        # A path that does not fit is left out: a cut one would name another file.
        text = path.encode("utf-8", "surrogateescape")
        if len(text) > EVENT_BYTES - EVENT_TEXT_OFFSET:
            return
        sequence = self._event_sequence
        self._event_sequence = sequence + 1
        slot = sequence % EVENT_SLOTS
        at = EVENTS_OFFSET // 8 + slot * _EVENT_WORDS
        words = self._words
        words[at] = 0
        words[at + 1] = kind
        words[at + 2] = count
        words[at + 3] = time.monotonic_ns()
        words[at + 4] = len(text)
        begin = EVENTS_OFFSET + slot * EVENT_BYTES + EVENT_TEXT_OFFSET
        self._map[begin : begin + len(text)] = text
        words[at] = sequence + 1

    @property
    def phase(self) -> int:
        return self._words[PHASE_AT]

    def enter(self, phase: int) -> None:
        """The training thread is at one of PHASE_* from now on."""
        self._words[PHASE_AT] = phase

    def leave(self, before: int, *, checkpoint_ns: int = 0) -> None:
        """It is done with that and back at what it was at before. checkpoint_ns: time to add to that of checkpoints."""
        words = self._words
        words[PHASE_AT] = before
        words[CHECKPOINT_NS_AT] += checkpoint_ns
        words[PHASE_END_AT] = time.monotonic_ns()

    def writes(self) -> None:
        """It has opened a file under the checkpoint directory for writing."""
        words = self._words
        if words[PHASE_AT] != PHASE_CHECKPOINT and not words[WRITING_AT]:
            words[WRITING_AT] = time.monotonic_ns()

    def written(self) -> None:
        """It renames a file under the checkpoint directory into place."""
        since_ns = self._words[WRITING_AT]
        if since_ns:
            self._words[WRITING_AT] = 0
            self.leave(self.phase, checkpoint_ns=time.monotonic_ns() - since_ns)

    def evaluates(self, value: bool) -> None:
        """A model was told to evaluate, or to train again."""
        words = self._words
        if words[EVALUATING_AT] == (EVALUATING_NO if value else EVALUATING_YES):
            words[EVALUATING_AT] = EVALUATING_YES if value else EVALUATING_NO
            words[PHASE_END_AT] = time.monotonic_ns()

    def answers(self, fd: int) -> None:
        """STACK_SIGNAL is answered in that file from now on."""
        self._words[STACK_FD_AT] = fd

    def call(self, lines: list[str]) -> None:
        """Leaves the call that counted a step, outermost frame first; inner frames that do not fit are left out."""
        data = "\n".join(lines).encode("utf-8", "replace")
        if len(data) > CALL_BYTES_MAX:
            data = data[:CALL_BYTES_MAX].rpartition(b"\n")[0]
        self._words[CALL_LENGTH_AT] = 0
        self._map[CALL_OFFSET : CALL_OFFSET + len(data)] = data
        self._words[CALL_LENGTH_AT] = len(data)

    def exception(self, text: str) -> None:
        """Leaves the uncaught exception's type and message for the launcher, cut to EXCEPTION_BYTES_MAX."""
        data = text.encode("utf-8", "replace")[:EXCEPTION_BYTES_MAX]
        self._map[EXCEPTION_OFFSET : EXCEPTION_OFFSET + len(data)] = data
        self._words[EXCEPTION_LENGTH_AT] = len(data)

    def _detach(self) -> None:
        self.attached = False
