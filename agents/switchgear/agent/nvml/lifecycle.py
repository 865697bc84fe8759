"""The thread that opens the driver, waits for its events, and opens it again when it went away."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from switchgear.agent.events import RESUMED, STALLED, Finding
from switchgear.agent.nvml import library
from switchgear.agent.nvml.device import NvmlDevice, identify
from switchgear.agent.nvml.driver import NvmlDriver, Session
from switchgear.agent.nvml.events import EventSet
from switchgear.agent.nvml.library import Nvml, NvmlUnavailable, code_of
from switchgear.agent.nvml.power import RuntimePower, sleepers
from switchgear.agent.nvml.roll_call import RollCall
from switchgear.core.clock import Clock

log = logging.getLogger(__name__)

DRIVER_UNAVAILABLE = "GPU_DRIVER_UNAVAILABLE"
DRIVER_AVAILABLE = "GPU_DRIVER_AVAILABLE"
DRIVER_HANGS = "GPU_DRIVER_HANGS"
#: How long the driver may take for the next GPU to say who it is; waking one takes up to three seconds.
SILENT_S = 4.0
#: Between attempts to initialise: doubled each time, and as at first again after a session that lasted.
RETRY_S_MIN, RETRY_S_MAX = 1.0, 60.0
#: How long a call may take to return before the library is shut down under it. It is then not shut down at all.
DRAIN_S = 5.0
#: Between looks at whether the driver still waits for calls to return, or may be stopped.
_POLL_S = 0.05


class Lifecycle:
    """Runs in a thread of its own, since initialising may hang.

    tell: takes what is noticed. late: called when GPUs are there, or awake, only after `wait` returned without them; they are
    not watched until someone begins anew, and that finds the driver awake.
    """

    def __init__(
        self,
        driver: NvmlDriver,
        tell: Callable[[Finding], None],
        late: Callable[[], None],
        clock: Clock,
        *,
        retry_s_min: float = RETRY_S_MIN,
        drain_s: float = DRAIN_S,
        silent_s: float = SILENT_S,
    ) -> None:
        self._driver = driver
        self._tell = tell
        self._late = late
        self._clock = clock
        self._retry_s_min = retry_s_min
        self._drain_s = drain_s
        self._silent_s = silent_s
        self._stopping = threading.Event()
        self._nvml: Nvml | None = None
        self._unavailable = ""
        self._count = 0
        self._ready = threading.Event()
        self._waited = False
        self._came_late = False
        self._asleep: Mapping[int, RuntimePower] = {}
        self._roll_call: RollCall | None = None

    def wait(self, patience_s: float) -> bool:
        """Waits for the first attempt to end, well or not, so that `driver.devices()` is what there is; False when it does not."""
        ready = self._ready.wait(patience_s)
        self._waited = True
        return ready

    def run(self) -> None:
        """Until `close`; for a thread."""
        retry_s = self._retry_s_min
        while not self._stopping.is_set():
            begun_s = self._clock.monotonic_s()
            try:
                self._serve()
            except NvmlUnavailable as error:
                self._note_unavailable(str(error))
            except (
                Exception
            ):  # the driver may answer anything, and GPUs are to be watched again when it comes to its senses
                log.exception("NVML")
            self._ready.set()
            if self._clock.monotonic_s() - begun_s > RETRY_S_MAX:
                retry_s = self._retry_s_min
            self._stopping.wait(retry_s)
            retry_s = min(2 * retry_s, RETRY_S_MAX)

    def close(self) -> None:
        self._stopping.set()

    def _serve(self) -> None:
        """One session, from its begin to its end. Raises NvmlUnavailable when it cannot begin."""
        session, devices = self._open()
        self._came_late |= self._waited and bool(devices) and not self._driver.devices()
        self._driver.begin(session, devices)
        self._ready.set()
        self._note_available()
        if self._came_late:
            self._late()
        self._follow(session)
        self._end(session)

    def _open(self) -> tuple[Session, Sequence[NvmlDevice]]:
        self._nvml = self._nvml or library.load()
        self._nvml.init()
        try:
            return Session(self._nvml), self._devices(self._nvml)
        except self._nvml.Error as error:
            self._nvml.shutdown()
            raise NvmlUnavailable(code_of(error), str(error)) from error

    def _devices(self, nvml: Nvml) -> Sequence[NvmlDevice]:
        """Those of the first session; later ones only say whether there are more."""
        count = nvml.py.nvmlDeviceGetCount()
        known = self._driver.devices()
        if known:
            if count > self._count:
                log.warning("%d GPUs are there, %d were: restart the agent to have them watched", count, self._count)
            return known
        self._count = count
        found = list[NvmlDevice]()
        self._asleep = sleepers(count, self._driver.sysfs)
        for index in self._asleep:
            log.info("GPU %d is asleep and is watched once something wakes it", index)
        self._roll_call = RollCall(partial(identify, nvml), set(range(count)) - set(self._asleep))
        for index, answer in sorted(self._roll_call.answers(self._silent_s), key=lambda item: item[0]):
            if isinstance(answer, NvmlDevice):
                found.append(answer)
            elif code_of(answer) in library.BROKEN:
                raise answer
            elif code_of(answer) == library.NO_PERMISSION:  # NVML counts those too that are kept from a container
                log.warning("GPU %d may not be used by the agent and is not watched", index)
            else:
                log.error("GPU %d cannot be identified: %s", index, answer)
                text = f"NVML: GPU {index} cannot be identified: {answer}"
                self._tell(Finding("GPU_UNAVAILABLE", text, gpu=index, detail={"reason": str(answer)}))
        for index in sorted(self._roll_call.silent):
            text = f"NVML: GPU {index} does not say who it is within {self._silent_s:g} s; it is watched once it does"
            log.error("%s", text)
            self._tell(Finding(STALLED, text, gpu=index))
        return found

    def _follow(self, session: Session) -> None:
        """Carries the driver's events, until the session is broken or `close`."""
        events = EventSet(session.nvml, self._driver.gpus, self._tell)
        while not (self._stopping.is_set() or session.broken.is_set()):
            events.wait(session.broken)
            if self._asleep and any(not power.suspended() for power in self._asleep.values()):
                self._asleep = {}
                self._announce_late()
            self._call_again()
        events.close()

    def _call_again(self) -> bool:
        """Whether a GPU still does not say who it is; those that did meanwhile are announced."""
        roll_call = self._roll_call
        if roll_call is None or not roll_call.silent:
            return False
        late = [index for index, _ in roll_call.answers(0.0)]
        if late and not self._stopping.is_set():
            for index in late:
                self._tell(Finding(RESUMED, f"NVML: GPU {index} answers now", gpu=index))
            self._announce_late()
        return bool(roll_call.silent)

    def _announce_late(self) -> None:
        self._came_late = True
        self._late()

    def _end(self, session: Session) -> None:
        reason = "the driver was restarted" if session.broken.is_set() else "the agent stops"
        waited_s = 0.0
        while not self._driver.end(reason) or self._call_again():
            if self._stopping.wait(_POLL_S) and waited_s > self._drain_s:
                return  # the process ends, and the call that hangs with it
            if waited_s <= self._drain_s < waited_s + _POLL_S and not self._stopping.is_set():
                self._note_hang()
            waited_s += _POLL_S
        # Those who came late are opened anew at once: without persistence mode, waking them again would take as long again.
        if session.broken.is_set() or not self._came_late:
            session.nvml.shutdown()

    def _note_hang(self) -> None:
        """No GPU is watched, for as long as one of them holds up all."""
        busy = (
            ", ".join(str(gpu.identity.index) for gpu in self._driver.gpus if gpu.busy) or "that was never identified"
        )
        self._unavailable = (
            f"NVML was restarted while a call about GPU {busy} hangs: it cannot be opened again before that returns, "
            "and no GPU is watched; look into the kernel log"
        )
        log.error("%s", self._unavailable)
        self._tell(Finding(DRIVER_HANGS, self._unavailable))

    def _note_unavailable(self, reason: str) -> None:
        if reason == self._unavailable:
            return
        self._unavailable = reason
        log.error("no NVIDIA GPU is watched: %s", reason)
        # A node that never had its driver may be without on purpose: its GPUs belong to guests, or it gets one later.
        if self._driver.devices():
            self._tell(Finding(DRIVER_UNAVAILABLE, reason))

    def _note_available(self) -> None:
        if not self._unavailable:
            return
        self._unavailable = ""
        log.info("NVML answers, with %d GPUs", len(self._driver.devices()))
        if not self._came_late:
            self._tell(Finding(DRIVER_AVAILABLE, f"NVML answers, with {len(self._driver.devices())} GPUs"))
