"""What one line of a kernel log says."""

from __future__ import annotations

from dataclasses import dataclass

from switchgear.core.catalog import Severity, Verdict


@dataclass(frozen=True, slots=True)
class Classified:
    """An event in one line, or in the first line of several.

    kind: of `core.catalog.KINDS`. code: XID or SXid. pci: `dddd:bb:dd`, "" when none is named. mig_gpu_instance, unit, severity (the
    line's own word), link, intrinfo, error_status, caused_by (an XID): as the NVIDIA driver prints them. pid, process: whom it befell.
    device: what else sets it apart from others of its kind: a disk, an interface, a server, a page, the number of a block.
    fatal: whether the subject cannot do its work; None when that is not known.
    """

    kind: str
    verdict: Verdict
    fatal: bool | None
    code: int | None = None
    pci: str = ""
    mig_gpu_instance: int | None = None
    pid: int | None = None
    process: str = ""
    unit: str = ""
    severity: str = ""
    link: int | None = None
    intrinfo: int | None = None
    error_status: int | None = None
    caused_by: int | None = None
    device: str = ""

    def detail(self) -> dict[str, str]:
        """What `Finding.detail` tells of it."""
        fields = {
            "unit": self.unit,
            "severity": self.severity,
            "link": self.link,
            "intrinfo": self.intrinfo,
            "error_status": self.error_status,
            "pid": self.pid,
            "process": self.process,
            "mig_gpu_instance": self.mig_gpu_instance,
            "caused_by": self.caused_by,
            "device": self.device,
            "action": self.verdict.action,
            "level": self.verdict.severity.value,
        }
        return {name: str(value) for name, value in fields.items() if value is not None and value != ""}


def fatal_of(verdict: Verdict) -> bool:
    return verdict.severity is Severity.FATAL
