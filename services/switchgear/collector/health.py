"""From signals to what is wrong with a node now: conditions that open and end, and the verdict that follows from them. Pure.

What ends a condition stands in `core.catalog.ends`. Every function returns the health as it was, the same object, when nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from switchgear.collector.model import Event, Severity, Signal
from switchgear.core.catalog import NODE_HEARD, RECOVERY_ACTION_CHANGED, End, Until, end_of
from switchgear.core.catalog import kind as kind_of

#: Open at once on a node. 16 GPUs that fail in three ways have 48; beyond it the mildest and oldest is given up.
CONDITIONS_MAX = 64
#: Of a condition: the beginning says what it is, and the signal has all of it.
EVIDENCE_CHARS_MAX = 500
SILENT = "NODE_SILENT"
_RECOVERY_ACTION = "GPU_RECOVERY_ACTION"
#: Details that name what an event is about, where that is no GPU.
_SUBJECTS = ("link", "mountpoint", "device", "controller")
#: They name their source at the begin of their text.
_OF_SOURCES = frozenset({"SOURCE_STALLED", "SOURCE_RESUMED"})
#: Sources whose boot_id is not the node's.
_FOREIGN_SOURCES = ("import/", "collector")


class NodeVerdict(StrEnum):
    """Of a node. FORGOTTEN: it was silent for so long that it is no longer listed."""

    HEALTHY = "HEALTHY"
    DEGRADED = "DEGRADED"
    FAILED = "FAILED"
    SILENT = "SILENT"
    FORGOTTEN = "FORGOTTEN"


@dataclass(frozen=True, slots=True)
class Subject:
    """What an event is about. gpu: index. pci, uuid: of a GPU. name: of anything else: a link, a mount point, a switch."""

    gpu: int | None = None
    pci: str = ""
    uuid: str = ""
    name: str = ""

    def is_same(self, other: Subject) -> bool:
        """Sources name a GPU by index, address or UUID; one that agrees is enough. What names nothing is the whole node."""
        if self == other:
            return True
        return self.name == other.name and (
            (self.gpu is not None and self.gpu == other.gpu)
            or (self.pci != "" and self.pci == other.pci)
            or (self.uuid != "" and self.uuid == other.uuid)
        )

    def joined(self, other: Subject) -> Subject:
        """With what another name of the same adds."""
        gpu = other.gpu if self.gpu is None else self.gpu
        return Subject(gpu, self.pci or other.pci, self.uuid or other.uuid, self.name)

    @property
    def text(self) -> str:
        """For people, without the GPU's index."""
        return self.name or (self.pci or self.uuid if self.gpu is None else "")


@dataclass(frozen=True, slots=True)
class Condition:
    """A signal, or several of the same, that has not ended. Times are the events' own, but never later than they came.

    signal_id: of the first signal; it names the condition.
    """

    signal_id: str
    kind: str
    code: int | None
    subject: Subject
    severity: Severity
    action: str
    evidence: str
    begin_unix_ns: int
    newest_unix_ns: int
    simulated: bool
    count: int = 1

    @property
    def end(self) -> End:
        return end_of(self.kind, self.code, self.action, self.severity)

    @property
    def expires_unix_ns(self) -> int | None:
        quiet_s = self.end.quiet_s
        return None if quiet_s is None else self.newest_unix_ns + round(quiet_s * 1e9)

    @property
    def text(self) -> str:
        """`XID 79 on GPU 3`"""
        what = self.kind if self.code is None else f"{self.kind} {self.code}"
        where = f"GPU {self.subject.gpu}" if self.subject.gpu is not None else self.subject.text
        return f"{what} on {where}" if where else what


@dataclass(frozen=True, slots=True)
class NodeHealth:
    """Of `nodes/{node}`. boot_id, epoch: of the agent that was heard last, "" when none was. conditions: worst first.

    since_unix_ns: when it came to its verdict. change: what changed last, in a sentence.
    """

    node: str
    verdict: NodeVerdict = NodeVerdict.HEALTHY
    since_unix_ns: int = 0
    boot_id: str = ""
    epoch: str = ""
    change: str = ""
    conditions: tuple[Condition, ...] = ()

    @property
    def expires_unix_ns(self) -> int | None:
        """When `passed` is to be called next."""
        return min((at for one in self.conditions if (at := one.expires_unix_ns) is not None), default=None)


def told(health: NodeHealth, event: Event, signal: Signal, now_unix_ns: int) -> NodeHealth:
    """After an event that was not seen before, and the signal that it raised."""
    subject = subject_of(event)
    if signal.severity is Severity.INFO:
        ender = _ender(event)
        return _without(
            health,
            lambda one: ender in one.end.ended_by and subject.is_same(one.subject),
            f"{event.kind} was told",
            now_unix_ns,
        )
    time_unix_ns = min(event.time_unix_ns, now_unix_ns)
    found = Condition(
        signal.signal_id,
        signal.kind,
        event.code,
        subject,
        signal.severity,
        signal.action,
        signal.evidence[:EVIDENCE_CHARS_MAX],
        time_unix_ns,
        time_unix_ns,
        signal.simulated,
    )
    boot_id = _boot_of(event)
    if found.end.until in (Until.BOOT, Until.AGENT) and boot_id and health.boot_id and boot_id != health.boot_id:
        return health  # kept by the agent from before the boot, which ended it
    return _opened(health, found, now_unix_ns)


def silent(health: NodeHealth, signal: Signal, now_unix_ns: int) -> NodeHealth:
    """After the signal NODE_SILENT."""
    time_unix_ns = signal.time_unix_ns
    found = Condition(
        signal.signal_id,
        signal.kind,
        None,
        Subject(),
        signal.severity,
        signal.action,
        signal.evidence,
        time_unix_ns,
        time_unix_ns,
        signal.simulated,
    )
    return _opened(health, found, now_unix_ns)


def heard(health: NodeHealth, boot_id: str, epoch: str, now_unix_ns: int) -> NodeHealth:
    """After the node's agent has come; with both empty, after somebody else has told of the node."""
    boot_id = _kernel_boot(boot_id)
    if health.verdict is NodeVerdict.FORGOTTEN:
        health = _with(health, (), "the node is heard again", now_unix_ns)
    health = _without(health, lambda one: NODE_HEARD in one.end.ended_by, "the node is heard again", now_unix_ns)
    if boot_id and health.boot_id and boot_id != health.boot_id:
        health = _without(
            health, lambda one: one.end.until in (Until.BOOT, Until.AGENT), "the node was booted", now_unix_ns
        )
    elif epoch and health.epoch and epoch != health.epoch:
        health = _without(health, lambda one: one.end.until is Until.AGENT, "the agent started anew", now_unix_ns)
    if boot_id and (boot_id, epoch) != (health.boot_id, health.epoch):
        health = replace(health, boot_id=boot_id, epoch=epoch)
    return health


def restarted(health: NodeHealth, now_unix_ns: int) -> NodeHealth:
    """After the collector of the node has started."""
    return _without(
        health, lambda one: one.end.until is Until.COLLECTOR, "the collector started anew and looks again", now_unix_ns
    )


def passed(health: NodeHealth, now_unix_ns: int) -> NodeHealth:
    """After time has passed."""
    return _without(
        health,
        lambda one: (at := one.expires_unix_ns) is not None and at <= now_unix_ns,
        "it was not told again for long enough",
        now_unix_ns,
    )


def cleared(health: NodeHealth, gpu: int | None, why: str, now_unix_ns: int) -> NodeHealth:
    """After somebody has said that it is over. gpu: only what is about this one. why: with whom, as a sentence's end."""
    return _without(
        health,
        lambda one: NODE_HEARD not in one.end.ended_by and (gpu is None or one.subject.gpu == gpu),
        why,
        now_unix_ns,
    )


def forgotten(health: NodeHealth, now_unix_ns: int) -> NodeHealth:
    """After a node has been silent for too long to be listed."""
    return replace(
        health,
        verdict=NodeVerdict.FORGOTTEN,
        since_unix_ns=now_unix_ns,
        conditions=(),
        change="it was silent for so long that it is no longer listed",
    )


def verdict_of(conditions: Sequence[Condition]) -> NodeVerdict:
    """A fault that is known outweighs that nothing more is known."""
    if any(one.severity is Severity.FATAL for one in conditions):
        return NodeVerdict.FAILED
    if any(one.kind == SILENT for one in conditions):
        return NodeVerdict.SILENT
    return NodeVerdict.DEGRADED if conditions else NodeVerdict.HEALTHY


def subject_of(event: Event) -> Subject:
    """What the event is about."""
    known = kind_of(event.kind)
    if event.gpu is not None or (known is not None and known.subject == "gpu"):
        # Who resets a GPU by hand names it by its UUID.
        uuid = event.detail.get("uuid") or event.detail.get("device", "")
        return Subject(event.gpu, event.pci, uuid if uuid.startswith("GPU-") else "")
    if event.kind in _OF_SOURCES:
        return Subject(name=event.text.partition(" ")[0])
    return Subject(name=next((event.detail[name] for name in _SUBJECTS if event.detail.get(name)), event.pci))


def _opened(health: NodeHealth, found: Condition, now_unix_ns: int) -> NodeHealth:
    old = next((one for one in health.conditions if _is_same(one, found)), None)
    if old is not None:
        found = replace(
            found,
            signal_id=old.signal_id,
            subject=found.subject.joined(old.subject),
            begin_unix_ns=min(old.begin_unix_ns, found.begin_unix_ns),
            newest_unix_ns=max(old.newest_unix_ns, found.newest_unix_ns),
            count=old.count + 1,
        )
    conditions = [one for one in health.conditions if one is not old] + [found]
    conditions.sort(key=lambda one: (one.severity is not Severity.FATAL, -one.newest_unix_ns))
    change = f"{found.text} {'was told again' if old else 'was told'}"
    return _with(health, conditions[:CONDITIONS_MAX], change, now_unix_ns)


def _is_same(one: Condition, other: Condition) -> bool:
    return (one.kind, one.code) == (other.kind, other.code) and one.subject.is_same(other.subject)


def _without(health: NodeHealth, ends: Callable[[Condition], bool], why: str, now_unix_ns: int) -> NodeHealth:
    gone = [one for one in health.conditions if ends(one)]
    if not gone:
        return health
    more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
    kept = [one for one in health.conditions if one not in gone]
    return _with(health, kept, f"{gone[0].text}{more} ended: {why}", now_unix_ns)


def _with(health: NodeHealth, conditions: Sequence[Condition], change: str, now_unix_ns: int) -> NodeHealth:
    verdict = verdict_of(conditions)
    return replace(
        health,
        verdict=verdict,
        since_unix_ns=health.since_unix_ns if verdict is health.verdict else now_unix_ns,
        change=change,
        conditions=tuple(conditions),
    )


def _ender(event: Event) -> str:
    """As the table of ends calls it."""
    is_recovery_action = event.kind == "XID" and event.code == RECOVERY_ACTION_CHANGED
    return _RECOVERY_ACTION if is_recovery_action else event.kind


def _boot_of(event: Event) -> str:
    """The boot of the node in which it happened; "" when the event does not say."""
    return "" if event.source.startswith(_FOREIGN_SOURCES) else _kernel_boot(event.boot_id)


def _kernel_boot(boot_id: str) -> str:
    """Agents put what names their spool behind the kernel's id: a new spool is no boot."""
    return boot_id.partition(".")[0]
