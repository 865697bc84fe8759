"""What happened, from whichever source saw it, into the spool."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from switchgear.agent.spool import Spool
from switchgear.core.clock import Clock

#: Kinds of a source that hangs, and that answers again.
STALLED, RESUMED = "SOURCE_STALLED", "SOURCE_RESUMED"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that happened on this node.

    kind: in capitals: XID, GPU_FALLEN_OFF_BUS, LINK_DOWN, … text: verbatim where it is a log line.
    pci: `dddd:bb:dd` of the device, "" when none is named. gpu: index, where the source knows it.
    detail: what is known beyond that (unit, link, severity, …), at most 16 short texts.
    """

    kind: str
    text: str
    code: int | None = None
    pci: str = ""
    gpu: int | None = None
    detail: Mapping[str, str] = field(default_factory=dict)


#: Source, finding, and when it happened (Unix, nanoseconds): whether it is news.
Judge = Callable[[str, Finding, int], bool]

#: Sources that tell of simulated hardware where the GPUs are simulated: they bring a kernel log and network interfaces of their own.
SIMULATED_NETWORK = "simulated-network"
_SIMULATED_WITH_GPUS = frozenset({"kernel_log", SIMULATED_NETWORK})


class Events:
    """Numbers findings and keeps them on disk until the collector has them. Any thread may tell one; it may wait for the disk.

    gpus: index of each GPU by its PCI address as `normal_pci` writes it. notify: called after an event went into the spool.
    simulated: whether the node's GPUs are; events about the host never are.
    """

    def __init__(
        self, spool: Spool, gpus: Mapping[str, int], clock: Clock, notify: Callable[[], None], *, simulated: bool
    ) -> None:
        self._spool = spool
        self._gpus = gpus
        self._clock = clock
        self._notify = notify
        self._simulated = simulated
        self._observers = list[Callable[[Finding], None]]()
        self._judges = list[Judge]()

    def observe(self, observer: Callable[[Finding], None]) -> None:
        """From now on `observer` gets every finding, in the thread that tells it; it must return at once and not raise."""
        self._observers.append(observer)

    def judge(self, judge: Judge) -> None:
        """From now on `judge` says, in the thread that tells a finding, whether it is news; what is none to one of them goes no further."""
        self._judges.append(judge)

    @property
    def boot_id(self) -> str:
        """Changes with each boot of the machine."""
        return self._spool.boot_id

    def cursor(self, source: str) -> str:
        """Where `source` was when it last told something or moved; "" before the first."""
        return self._spool.cursor(source)

    def move(self, source: str, cursor: str) -> None:
        """Keeps where `source` goes on, when there is nothing to tell."""
        self._spool.move(source, cursor)

    def tell(self, source: str, finding: Finding, *, cursor: str = "", time_unix_ns: int | None = None) -> None:
        """cursor: where `source` goes on after this event. time_unix_ns: now, when not given."""
        gpu = finding.gpu if finding.gpu is not None else self._gpus.get(finding.pci)
        time_unix_ns = self._clock.unix_ns() if time_unix_ns is None else time_unix_ns
        if not all(judge(source, finding, time_unix_ns) for judge in self._judges):
            if cursor:
                self.move(source, cursor)
            return
        for observer in self._observers:
            observer(finding)
        self._spool.append(
            source,
            finding.kind,
            finding.text,
            time_unix_ns=time_unix_ns,
            gpu=gpu,
            code=finding.code,
            simulated=self._simulated and (gpu is not None or source in _SIMULATED_WITH_GPUS),
            pci=finding.pci,
            detail=finding.detail,
            cursor=cursor,
        )
        self._notify()
