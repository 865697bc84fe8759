"""From series that exporters have to faults that agents tell: one table. Pure.

An exporter shows states and counts, an agent tells events; so what counts is a change. What a series had when it was first looked at
may be of last year: it is told with severity INFO (an XID as `XID_BEFORE`), or, for a count, not at all. What was looked at before the collector restarted is
remembered (`Baseline`), so that a fault of that moment is told and none is told twice.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

from switchgear.collector.series import SeriesKey
from switchgear.core.catalog import Severity

XID = "XID"
#: What an XID is that was there at the first look.
XID_BEFORE = "XID_BEFORE"
#: Different series tell of the same XID within one scrape or two of 15 s and more.
SAME_FAULT_NS = 60 * 1_000_000_000
#: Series of one node that are judged: 16 GPUs with 8 rules, and as many ports, links and memory controllers.
SUBJECTS_MAX = 1024
FAULTS_MAX = 256
_PCI = re.compile(r"(?:([0-9a-fA-F]{4,8}):)?([0-9a-fA-F]{2}):([0-9a-fA-F]{2})(?:\.\d)?")
#: Ports that carry a job's traffic, as systemd and the drivers name them: no bridge, tunnel or container's end of a pair.
_PORT = re.compile(r"(en[opsx]|eth|ib|hsn|roce)\w+")
#: Of an InfiniBand port's states.
_ACTIVE = 4
#: The catalog ends below 200.
_CODES_END = 10_000


class Change(Enum):
    """What of a series is a fault. XID: another value than before, except 0. FLAG: it was 0 and is not. COUNT: it rose.

    PORT: it was 1 and is 0, and back. STATE: the same of an InfiniBand port, whose 4 is 1.
    """

    XID = auto()
    FLAG = auto()
    COUNT = auto()
    PORT = auto()
    STATE = auto()


@dataclass(frozen=True, slots=True)
class Rule:
    """kind, ended: of `core.catalog`; ended: what tells the end. xid: the code that means the same fault. labels: what names the subject beside
    its GPU. text: what is told; `value` is how much a count rose.
    """

    change: Change
    kind: str
    text: str
    labels: tuple[str, ...] = ()
    ended: str = ""
    xid: int | None = None


_XID_VALUE = Rule(Change.XID, XID, "the newest XID is {value:.0f}")
_PORTS = Rule(Change.PORT, "LINK_DOWN", "has no carrier", ("device",), ended="LINK_UP")
RULES: Mapping[str, Rule] = {
    "DCGM_FI_DEV_XID_ERRORS": _XID_VALUE,
    "dcgm_xid_errors": _XID_VALUE,
    "DCGM_EXP_XID_ERRORS_COUNT": Rule(Change.COUNT, XID, "XID {xid} came", ("xid",)),
    "DCGM_FI_DEV_ROW_REMAP_FAILURE": Rule(
        Change.FLAG, "DRAM_RETIREMENT_FAILED", "a row of its memory could not be remapped", xid=64
    ),
    "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL": Rule(
        Change.COUNT, "ECC_DOUBLE_BIT", "{value:.0f} memory errors uncorrected", xid=48
    ),
    "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS": Rule(
        Change.COUNT, "DRAM_RETIREMENT", "{value:.0f} rows remapped for uncorrected errors", xid=63
    ),
    "DCGM_FI_DEV_RETIRED_DBE": Rule(
        Change.COUNT, "DRAM_RETIREMENT", "{value:.0f} pages retired for uncorrected errors", xid=63
    ),
    "node_edac_uncorrectable_errors_total": Rule(
        Change.COUNT, "EDAC_UE", "{value:.0f} errors of main memory uncorrected", ("controller",)
    ),
    "node_vmstat_oom_kill": Rule(Change.COUNT, "OOM", "the kernel killed {value:.0f} processes for want of memory"),
    # Not `node_network_up`: it is 0 for a port that somebody took down on purpose, and this one is not there then.
    "node_network_carrier": _PORTS,
    "node_infiniband_state_id": Rule(Change.STATE, "LINK_DOWN", "is not active", ("device", "port"), ended="LINK_UP"),
}


@dataclass(slots=True)
class Baseline:
    """What is known of one node from one source.

    values: by rule and subject. sequence: of the newest event. begin_unix_ns: when it was first looked at; with it, events are numbered.
    silent: whether it was told that nothing comes any more. told: when a fault of (gpu, code) was told last, of this life.
    changed: whether it is to be stored.
    """

    begin_unix_ns: int
    sequence: int = 0
    silent: bool = False
    values: dict[str, float] = field(default_factory=dict)
    told: dict[tuple[str, int], int] = field(default_factory=dict)
    changed: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault, as `collector.model.Event` has it."""

    kind: str
    code: int | None
    gpu: int | None
    pci: str
    text: str
    detail: Mapping[str, str]


def look(baseline: Baseline, samples: Iterable[tuple[SeriesKey, float]], time_unix_ns: int) -> list[Finding]:
    """What these samples tell beyond the baseline, which becomes what they are. NaN tells nothing."""
    return [found for sample in _judged(samples) if (found := _look(baseline, sample, time_unix_ns))]


class _Sample(NamedTuple):
    rule: Rule
    key: SeriesKey
    labels: Mapping[str, str]
    subject: str
    value: float


def _judged(samples: Iterable[tuple[SeriesKey, float]]) -> Iterable[_Sample]:
    """One sample for each rule and subject: instances of a GPU (MIG) show the same value of it."""
    greatest = dict[str, _Sample]()
    for key, value in samples:
        rule = RULES.get(key.metric)
        if rule is None or not math.isfinite(value) or (rule.change is Change.XID and not 0 <= value < _CODES_END):
            continue
        labels = dict(key.labels)
        if rule is _PORTS and not _PORT.fullmatch(labels.get("device", "")):
            continue
        subject = "|".join([key.metric, _gpu(labels), *(labels.get(name, "") for name in rule.labels)])
        if subject not in greatest or greatest[subject].value < value:
            greatest[subject] = _Sample(rule, key, labels, subject, value)
    return greatest.values()


def _look(baseline: Baseline, sample: _Sample, time_unix_ns: int) -> Finding | None:
    rule, value = sample.rule, sample.value
    before = baseline.values.get(sample.subject)
    if before is None and len(baseline.values) >= SUBJECTS_MAX:
        return None
    if value == before:
        return None
    baseline.values[sample.subject] = value
    baseline.changed = True
    kind = rule.kind
    match rule.change:
        case Change.XID:
            changed = value not in {0, before}
            kind = XID_BEFORE if before is None else XID
        case Change.FLAG:
            changed = value != 0 and not before
        case Change.COUNT:
            # A count that is smaller than it was began anew.
            value = value - (before if before <= value else 0) if before is not None else 0
            changed = value > 0
        case Change.PORT | Change.STATE:
            good = _ACTIVE if rule.change is Change.STATE else 1
            changed = before is not None and (value == good) != (before == good)
            kind = rule.ended if value == good else rule.kind
    code = _code(sample)
    if not changed or (rule.kind == XID and code is None):
        return None
    fault = code if code is not None else rule.xid
    if fault is not None and not _is_news(baseline, (_gpu(sample.labels), fault), time_unix_ns):
        return None
    return _finding(sample, kind, code, value, first=before is None)


def _code(sample: _Sample) -> int | None:
    if sample.rule.kind != XID:
        return None
    text = f"{sample.value:.0f}" if sample.rule.change is Change.XID else sample.labels.get("xid", "")
    return int(text) if text.isascii() and text.isdigit() and 0 < int(text[:6]) < _CODES_END else None


def _is_news(baseline: Baseline, fault: tuple[str, int], time_unix_ns: int) -> bool:
    told_ns = baseline.told.pop(fault, None)
    baseline.told[fault] = time_unix_ns
    if len(baseline.told) > FAULTS_MAX:
        del baseline.told[next(iter(baseline.told))]
    return told_ns is None or time_unix_ns - told_ns > SAME_FAULT_NS


def _finding(sample: _Sample, kind: str, code: int | None, value: float, *, first: bool) -> Finding:
    rule, labels = sample.rule, sample.labels
    gpu = labels.get("gpu", "")
    index = int(gpu) if gpu.isascii() and gpu.isdigit() and len(gpu) < 4 else None
    what = "/".join(labels.get(name, "") for name in rule.labels if name != "xid")
    text = "is up" if kind == rule.ended else rule.text.format(value=value, xid=code)
    told = " ".join(part for part in (f"GPU {gpu}:" if gpu else "", what, text) if part)
    detail = {"metric": sample.key.metric}
    if uuid := _uuid(labels):
        detail["uuid"] = uuid
    if what:
        detail["link" if rule.ended else rule.labels[0]] = what
    if first:
        detail["level"] = Severity.INFO.value
        told += "; it was so when it was first looked at"
    return Finding(kind, code, index, _pci(labels.get("pci_bus_id", "")), told, detail)


def _gpu(labels: Mapping[str, str]) -> str:
    """What names a GPU best: its index may be another's after a boot. "" for what is of no GPU."""
    return _uuid(labels) or labels.get("gpu", "")


def _uuid(labels: Mapping[str, str]) -> str:
    """As exporters of today and of before spell it."""
    return labels.get("UUID") or labels.get("uuid", "")


def _pci(text: str) -> str:
    """`dddd:bb:dd` in lower case, as agents write it."""
    match = _PCI.fullmatch(text)
    if match is None:
        return ""
    domain, bus, device = match.groups(default="0000")
    return f"{domain[-4:]}:{bus}:{device}".lower()
