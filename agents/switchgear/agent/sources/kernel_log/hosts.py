"""What the kernel itself writes: memory, processes, processors, PCIe.

Source of the forms: Linux 3.13 to 6.18 (mm/oom_kill.c, mm/memory-failure.c, kernel/hung_task.c, kernel/watchdog.c, kernel/rcu, kernel/panic.c,
arch/x86, arch/arm64, drivers/pci/pcie/aer.c and dpc.c, drivers/firmware/efi/cper.c, drivers/edac, net/netfilter).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from switchgear.agent.sources.gpu import normal_pci
from switchgear.agent.sources.kernel_log.classified import Classified
from switchgear.agent.sources.kernel_log.rule import PCI, Rule, event, named, rules
from switchgear.core.catalog import Severity

_TASK = r"(?P<process>[^\s:](?:[^\n:]|:(?!\d+ blocked)){0,40}):(?P<pid>\d{1,10})"


def _aer(match: re.Match[str], _driver: str) -> Classified:
    groups = match.groupdict()
    pci = normal_pci(groups.get("source") or groups.get("pci") or "")
    if match["un"] is None:
        return event("PCIE_AER_CORRECTED", pci=pci)
    fatal = "Non" not in (match["grade"] or "Non")
    return event("PCIE_AER_UNCORRECTABLE", Severity.FATAL if fatal else Severity.WARNING, pci=pci)


#: Registers of a GPU, in the words of the firmware's reports; its driver says apart from them what failed.
_ACCELERATOR = re.compile(r"Accelerator Check Architecture |(?i:aca)(?: entry)?\[")
_GHES = re.compile(
    r"event severity|Hardware error from APEI| {0,8}Error \d{1,4}, type:| {0,8}section_type:| {0,8}fru_text:|It has been corrected by h/w"
)
_CPER_SEVERITIES = {"fatal": Severity.FATAL, "corrected": Severity.INFO, "info": Severity.INFO}
_MCE_FATAL = re.compile(r"context corrupt|\b[Ff]atal\b|Machine Check Exception: [45]")


def _hardware_error(match: re.Match[str], _driver: str) -> Classified | None:
    rest = match["rest"]
    if _ACCELERATOR.match(rest):
        return None
    if match["block"] is None and not _GHES.match(rest):
        severity = Severity.FATAL if _MCE_FATAL.search(rest) else None
        return event("MCE", Severity.INFO if rest.startswith("Corrected error") else severity)
    told = re.match(r"event severity: ([a-z]{1,16})", rest)
    return event(
        "GHES_HARDWARE_ERROR",
        _CPER_SEVERITIES.get(told[1]) if told else None,
        device=match["block"] or "",
        severity=told[1] if told else "",
    )


def _edac(match: re.Match[str], _driver: str) -> Classified | None:
    if match["count"] and int(match["count"]) == 0:
        return None
    return event("EDAC_UE" if match["type"] == "UE" else "EDAC_CE", device=match["device"])


def _segfault(match: re.Match[str], _driver: str) -> Classified:
    return event("NCCL_SEGFAULT" if match["library"] else "APP_SEGFAULT", **named(match))


_EXCEPTIONS = (
    "general protection fault|divide error|invalid opcode|stack segment|stack guard page|double fault|alignment check|int3|bounds|overflow"
    "|invalid TSS|segment not present|control protection fault|kernel stack overflow|trap \\w{1,20}"
)

RULES: Sequence[Rule] = (
    *rules(
        "KERNEL_PANIC",
        ("anic - ", r"[Kk]ernel [Pp]anic - (?:not )?syncing"),
        ("anic: ", r"[Kk]ernel [Pp]anic: (?:not )?syncing"),
        ("KERNEL PANIC", r"^KERNEL PANIC\b"),
        before=8,
    ),
    *rules(
        "CPU_SOFT_LOCKUP",
        (
            "soft lockup - CPU#",
            r"soft lockup - CPU#\d{1,5} stuck\b(?: for \d{1,9}s!)?(?: \[(?P<process>[^\]\n]{1,40}):(?P<pid>\d{1,10})\])?",
        ),
        ("soft lockup detected on CPU#", r"soft lockup detected on CPU#\d{1,5}"),  # up to Linux 2.6
    ),
    *rules(
        "CPU_HARD_LOCKUP",
        ("hard LOCKUP", r"\bdetected hard LOCKUP(?: on (?:cpu|other CPUs) \d| @ |$)"),
        ("Hard LOCKUP", r"^Watchdog CPU:\d{1,5} (?:detected )?Hard LOCKUP"),  # PowerPC, up to Linux 4.16
    ),
    *rules(
        "KERNEL_BUG",
        ("ernel BUG at", r"kernel BUG at \S{1,160}:\d{1,7}\b|Kernel BUG at [0-9a-fA-F]{4,16} \["),
        # Elsewhere than at the start of a message it is a word of somebody else's.
        ("BUG: ", r"^(?:kernel )?BUG: (?!soft lockup|[Uu]nable to handle|[Kk]ernel NULL)\S"),
        before=8,
    ),
    *rules(
        "KERNEL_OOPS",
        ("unable to handle", r"BUG: unable to handle (?:kernel |page fault)"),
        ("ernel NULL pointer dereference", r"BUG: [Kk]ernel NULL pointer dereference"),
        (
            "Unable to handle kernel",
            r"Unable to handle kernel (?:paging request|NULL pointer|pointer|data|instruction|access|execut|read|write|unknown)",
        ),
        ("Internal error: ", r"^Internal error: .{1,80} \[#\d{1,6}\]"),
        ("Oops", r"\bOops\b(?: - [\w ]{1,40})?: .{0,80}\[#\d{1,6}\]|\bOops: [0-9a-fA-F]{4,16}\b"),
        before=32,
        after=160,
    ),
    *rules(
        "KERNEL_OOPS",
        (" [#", rf"\b(?:{_EXCEPTIONS}|Oops)\b.{{0,120}} \[#\d{{1,6}}\]"),
        before=160,
        after=16,
    ),
    *rules(
        "RCU_STALL",
        ("detected stall", r"(?:rcu|RCU).{0,40} (?:self-)?detected stalls? on (?:CPU|task)"),
        ("detected expedited stall", r"rcu.{0,40} detected expedited stalls on CPUs"),
        ("kthread starved for", r"rcu.{0,40} kthread starved for \d{1,12} jiffies"),
        ("timer wakeup didn't happen", r"rcu.{0,40} kthread timer wakeup didn't happen for \d{1,12} jiffies"),
    ),
    *rules(
        "TASK_BLOCKED_TOO_LONG",
        (" for more than ", rf"\btask {_TASK} blocked (?:in I/O wait )?for more than \d{{1,9}} ?s(?:econds?)?\b"),
    ),
    *rules(
        "OOM_START",
        ("ed oom-killer:", r"(?<!\S)(?P<process>\S.{0,40}?) (?:invoked|triggered) oom-killer:"),
        before=64,
        after=20,
    ),
    *rules(
        "OOM",
        (
            "Killed process ",
            r"Killed process (?P<pid>\d{1,10})(?:,? ?,? UID:? ?\d{1,10},?)? ?\((?P<process>[^\n]{1,64}?)\)(?=$|[\s,.]|\))",
        ),
        ("Kill process ", r"\bKill process (?P<pid>\d{1,10}) \((?P<process>[^\n]{1,64}?)\)(?: |,|$)"),
        ("oom_reaper: reaped process", r"oom_reaper: reaped process (?P<pid>\d{1,10}) \((?P<process>[^\n]{1,64}?)\)"),
        ("ut of memory", r"Out of memory and no killable processes|out of memory and no killable process"),
        # Without a name.
        ("ut of memory: ", r"[Oo]ut of memory: [Kk]ill(?:ed)? process (?P<pid>\d{1,10})\b"),
    ),
    *rules(
        "OOM",
        (
            "oom-kill:constraint=",
            r"oom-kill:constraint=(?:.{0,700},task=(?P<process>[^\n]{1,64}?),pid=(?P<pid>\d{1,10})\b)?",
        ),
        before=0,
        after=1024,
    ),
    *rules(
        "MEMORY_FAILURE",
        (
            "Memory failure: 0x",
            r"Memory failure: (?P<device>0x[0-9a-fA-F]{1,16}): (?:(?:Sending .{0,24}? ?to|(?:forcibly k|K)illing) (?P<process>[^\s:]{1,32}):(?P<pid>\d{1,10}))?",
        ),
        # Up to Linux 4.12.
        (
            "MCE 0x",
            r"^MCE (?P<device>0x[0-9a-fA-F]{1,16}): (?:(?:forcibly k|K)illing (?P<process>[^\s:]{1,32}):(?P<pid>\d{1,10}))?",
        ),
        (
            "MCE: Killing ",
            r"^MCE: Killing (?P<process>[^\s:]{1,32}):(?P<pid>\d{1,10}) due to hardware memory corruption",
        ),
        before=1,
    ),
    Rule(
        "[Hardware Error]",
        re.compile(r"(?:\{(?P<block>\d{1,10})\})?\[Hardware Error\]: ?(?P<rest>.*)", re.ASCII | re.DOTALL),
        _hardware_error,
        before=12,
    ),
    *rules(
        "MCE",
        ("Machine Check Exception: ", r"\bMachine Check Exception: {1,4}[0-9a-f]{1,16}\b"),
        ("Uncorrected hardware memory error", r"[Mm][Cc][Ee]: Uncorrected hardware memory error in"),
        ("achine check events logged", r"^Machine check events logged"),
    ),
    *rules(
        "GHES_HARDWARE_ERROR",
        ("Hardware error from APEI ", r"^Hardware error from APEI Generic Hardware Error Source: \d"),
        before=1,
    ),
    Rule(
        "EDAC ",
        re.compile(r"\bEDAC (?P<device>(?:MC|DEVICE)\d{1,4}): (?:(?P<count>\d{1,9}) )?(?P<type>CE|UE)\b", re.ASCII),
        _edac,
        before=0,
    ),
    Rule(
        "AER: ",
        re.compile(
            rf"(?:(?P<pci>{PCI}): )?AER: (?:Multiple )?(?P<un>[Uu]n)?[Cc]orrect(?:ed|able)(?: \((?P<grade>Non-Fatal|Fatal)\))? error\b"
            rf"(?: message)?(?: received(?: from|:) (?P<source>{PCI}))?",
            re.ASCII,
        ),
        _aer,
        before=32,
    ),
    Rule(
        "PCIe Bus Error: severity=",
        re.compile(
            rf"(?:(?P<pci>{PCI}): (?:AER: )?)?PCIe Bus Error: severity=(?P<un>Un)?[Cc]orrect(?:ed|able)(?: \((?P<grade>Non-Fatal|Fatal)\))?",
            re.ASCII,
        ),
        _aer,
        before=48,
    ),
    *rules(
        "PCIE_AER_UNCORRECTABLE",
        (
            "DPC: ",
            rf"(?:(?P<pci>{PCI}): )?(?:pcie )?DPC: (?:unmasked uncorrectable error detected|containment event, status:)",
        ),
    ),
    Rule(
        "segfault at ",
        re.compile(
            r"(?:(?<!\S)(?P<process>[^\s\[][^\[\n]{0,40})\[(?P<pid>\d{1,10})\]: )?segfault at (?:0x)?[0-9a-fA-F]{1,16} "
            r"[re]?ip (?:0x)?[0-9a-fA-F]{1,16} [re]?sp (?:0x)?[0-9a-fA-F]{1,16} error [0-9a-f]{1,8}\b(?P<library> in libnccl\.so)?",
            re.ASCII,
        ),
        _segfault,
        before=64,
        after=160,
    ),
    *rules(
        "APP_SEGFAULT",
        (
            "traps: ",
            r"traps: (?P<process>[^\n\[]{1,64})\[(?P<pid>\d{1,10})\]:? (?:general protection(?: fault)?|trap [\w ]{1,24}) ip:[0-9a-f]{1,16} sp:",
        ),
        (
            ": segfault (",
            r"(?<!\S)(?P<process>[^\s\[][^\n\[]{0,40})\[(?P<pid>\d{1,10})\]: segfault \(\d{1,3}\) at [0-9a-f]{1,16} nip [0-9a-f]{1,16} ",
        ),
        (
            ": unhandled ",
            r"(?<!\S)(?P<process>[^\s\[][^\n\[]{0,40})\[(?P<pid>\d{1,10})\]: unhandled .{0,40}fault(?: \(\d{1,3}\))? at 0x[0-9a-f]{1,16}",
        ),
        before=96,
    ),
    *rules("VFS_FILE_MAX_LIMIT_REACHED", ("VFS: file-max limit ", r"\bVFS: file-max limit \d{1,20} reached")),
    *rules(
        "CONNTRACK_TABLE_FULL",
        ("_conntrack: ", r"\b(?:nf|ip)_conntrack: (?:nf_conntrack: )?(?:expectation )?table (?:\d{1,10} )?full\b"),
    ),
)
