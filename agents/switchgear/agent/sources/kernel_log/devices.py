"""What drivers of disks, file systems, networks and AMD GPUs write.

Source of the forms: Linux 3.13 to 6.18 (block, drivers/nvme, drivers/ata, drivers/md, fs/ext4, fs/xfs, fs/btrfs, fs/nfs, net/sunrpc,
drivers/net/ethernet, net/sched/sch_generic.c, drivers/gpu/drm/amd), systemd-networkd.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from switchgear.agent.sources.kernel_log.classified import Classified
from switchgear.agent.sources.kernel_log.rule import PCI, Rule, event, named, rules
from switchgear.core.catalog import Severity


def _raid(match: re.Match[str], _driver: str) -> Classified:
    return event("RAID_ARRAY_FAILURE", Severity.WARNING if match["goes_on"] else None, **named(match))


def _lost_carrier(match: re.Match[str], _driver: str) -> Classified:
    return event(
        "IB_LINK_LOST_CARRIER" if match["device"].startswith("ib") else "NET_LINK_LOST_CARRIER", **named(match)
    )


_MLX5 = rf"mlx5_core(?: (?P<pci>{PCI}))?"
_WATCHDOG = r"NETDEV WATCHDOG: .{0,60}transmit queue(?: \d{1,5})? timed out"
_UNCORRECTABLE = r"(?:(?<![\d.])[1-9]\d{0,9} (?:new )?[Uu]ncorrectable (?:hardware )?errors?\b|(?<![Nn]o )(?<!\d )(?<!new )[Uu]ncorrectable (?:hardware )?errors?(?: ?\(\w| (?:detected|occurred)\b)|RAS.{0,40}[Uu]ncorrectable (?:[Ee]rror|RAS)|[Uu]ncorrectable RAS)"

_NVME = r"nvme (?P<device>nvme\d{1,6}|[0-9a-f]{4,8}:[0-9a-f:.]{5,9})"

# Not "operation not supported": that is a disk that cannot discard.
_REFUSALS = (
    "I/O|timeout|critical (?:target|medium|nexus|space allocation)|(?:recoverable )?transport|protection|device resource|kernel resource"
    "|reservation conflict|nonblocking retry|device offline|dm internal retry|(?:open|active) zones exceeded|duration limit exceeded|invalid"
)

RULES: Sequence[Rule] = (
    *rules(
        "MLX5_PCI_POWER_INSUFFICIENT",
        (
            "Detected insufficient power",
            rf"(?:{_MLX5}.{{0,64}})?Detected insufficient power on the PCIe slot \(\d{{1,6}}W\)",
        ),
    ),
    *rules(
        "MLX5_PORT_MODULE_HIGH_TEMPERATURE",
        ("Port module event", rf"(?:{_MLX5}.{{0,64}})?Port module event.{{0,64}}High Temperature"),
    ),
    *rules(
        "MLX5_MODULE_UNPLUGGED",
        ("Cable unplugged", rf"(?:{_MLX5}.{{0,64}})?Port module event.{{0,32}}, Cable unplugged"),
        before=160,
    ),
    *rules(
        "MLX5_ACCESS_REG_FAILED",
        ("ACCESS_REG", rf"(?:{_MLX5}.{{0,32}})?mlx5_cmd_(?:out_err|check)\b.{{0,48}}ACCESS_REG.{{0,64}}\bfailed"),
    ),
    *rules(
        "MLX5_CMD_EXEC_TIMEOUT",
        ("timeout. Will cause a leak", rf"{_MLX5}.{{0,120}}timeout\. Will cause a leak"),
        ("cmd_exec timeout", rf"{_MLX5}.{{0,64}}cmd_exec timeout"),
        ("No done completion", rf"{_MLX5}.{{0,120}}No done completion"),
        before=192,
    ),
    *rules(
        "MLX5_HEALTH_POLL_FAILED",
        ("device's health compromised", rf"{_MLX5}.{{0,64}}device's health compromised"),
        ("Fatal error ", rf"{_MLX5}.{{0,64}}poll_health.{{0,40}}Fatal error \d{{1,4}} detected"),
        before=128,
    ),
    *rules(
        "MLX5_UNRECOVERABLE_ERROR",
        ("unrecoverable", rf"{_MLX5}.{{0,96}}\bunrecoverable (?:hardware |FW |firmware )?(?:error|state)"),
        before=160,
    ),
    *rules(
        "MLX5_NETDEV_WATCHDOG",
        (
            "NETDEV WATCHDOG: ",
            rf"NETDEV WATCHDOG: (?P<device>\S{{1,32}}) \(mlx5_core\): .{{0,20}}transmit queue(?: \d{{1,5}})? timed out|{_MLX5}.{{0,48}}{_WATCHDOG}",
        ),
        before=96,
    ),
    Rule(
        "Disk failure on ",
        re.compile(
            r"\b(?:md/)?(?:raid|linear)[\w:]{0,40}: ?Disk failure on (?P<device>[^\s,]{1,64})(?:(?P<goes_on>, disabling device)| detected\b)",
            re.ASCII,
        ),
        _raid,
        before=56,
    ),
    *rules("RAID_ARRAY_FAILURE", ("Cannot continue operation", r"md/raid[\w:]{0,40}: ?Cannot continue operation")),
    *rules(
        "FILESYSTEM_READ_ONLY",
        ("emounting filesystem read-only", r"\b[Rr]emounting filesystem read-only"),
        (
            "Filesystem has been set read-only",
            r"\bFAT-fs \((?P<device>[^()\s]{1,64})\): Filesystem has been set read-only",
        ),
        ("forced readonly", r"BTRFS .{0,80}forced readonly"),
    ),
    *rules(
        "NVME_PATH_FAILURE",
        ("no available path", r"block (?P<device>nvme\w{1,24}): no available path - failing I/O"),
    ),
    *rules(
        "NVME_CONTROLLER_TIMEOUT",
        (
            " timeout, ",
            rf"{_NVME}: I/O .{{1,100}} timeout, (?:aborting|reset|completion polled|disable|canceling)",
        ),
        (" QID ", rf"{_NVME}: I/O .{{1,100}} QID \d{{1,6}} timeout$"),  # over a network
        before=128,
    ),
    *rules(
        "NVME_DEVICE_DISABLED",
        ("Disabling device after reset failure", rf"{_NVME}: Disabling device after reset failure"),
        ("after probe failure", rf"{_NVME}: Removing after probe failure"),
    ),
    *rules(
        "NVME_CONTROLLER_DOWN",
        ("controller is down", rf"{_NVME}: controller is down; will reset"),
        ("Failed status: 0x", rf"{_NVME}: Failed status: 0x[0-9a-f]{{1,8}}, reset controller"),
        ("Device not ready; aborting", rf"{_NVME}: Device not ready; aborting"),
    ),
    *rules(
        "BEYOND_END_OF_DEVICE", ("attempt to access beyond end of device", r"attempt to access beyond end of device")
    ),
    *rules(
        "BUFFER_IO_ERROR",
        ("Buffer I/O error on dev ", r"Buffer I/O error on dev (?P<device>[^\s,]{1,64}), logical block \d"),
        ("Buffer I/O error on device ", r"Buffer I/O error on device (?P<device>[^\s,]{1,64})"),
        ("BUFFER I/O ERROR ON DEVICE ", r"BUFFER I/O ERROR ON DEVICE (?P<device>[^\s,]{1,64})"),
    ),
    *rules(
        "SUPERBLOCK_WRITE_ERROR",
        (
            "I/O error while writing superblock",
            r"(?:\((?P<device>[^\s()]{1,64})\): )?I/O error while writing superblock",
        ),
        (
            "lost super block write",
            r"BTRFS .{0,16}\(device (?P<device>[^()\s]{1,64}).{0,24}\): lost super block write due to IO error",
        ),
    ),
    *rules(
        "BLOCK_IO_ERROR",
        (
            " error, dev ",
            rf"\b(?:{_REFUSALS}) error, dev (?P<device>[^\s,]{{1,64}}), (?:sector|logical block) \d",
        ),
    ),
    *rules(
        "XFS_ERROR",
        (
            "XFS",
            r"\bXFS(?: \((?P<device>[^)\n]{1,64})\))?: (?!First \d+ bytes).{0,160}?(?:I/O error|\berror -?\d|[Ii]nternal error|[Cc]orrupt(?:ion|ed)|xfs_do_force_shutdown|force_shutdown|[Ss]hutting down filesystem|[Ff]ilesystem has been shut down|writeback error|unable to .{1,40}log)",
        ),
        before=0,
    ),
    *rules(
        "EXT4_ERROR",
        (
            "EXT4-fs error",
            r"EXT4-fs error \(device (?P<device>[^)\n]{1,64})\)|EXT4-fs error: (?!\d+ callbacks suppressed)",
        ),
    ),
    *rules(
        "SATA_LINK_ERROR",
        (": exception Emask", r"\b(?P<device>ata\d{1,4})(?:\.\d{1,2})?: exception Emask 0x"),
        (": SError: {", r"\b(?P<device>ata\d{1,4})(?:\.\d{1,2})?: SError: \{"),
        ("COMRESET failed", r"\b(?P<device>ata\d{1,4}): COMRESET failed"),
        ("limiting SATA link speed", r"\b(?P<device>ata\d{1,4})(?:\.\d{1,2})?: limiting SATA link speed"),
    ),
    *rules(
        "NFS_SERVER_NOT_RESPONDING",
        (" not responding", r"\b(?:nfs|lockd): server (?P<device>\S{1,255}) not responding"),
    ),
    *rules("NFS_SERVER_RECOVERED", (": server ", r"\b(?:nfs|lockd): server (?P<device>\S{1,255}) OK\b")),
    *rules("NFS_LOCK_RECLAIM_FAILED", ("Lock reclaim failed", r"nfs4_reclaim_open_state: Lock reclaim failed")),
    *rules(
        "NFS_WRITEBACK_HANG",
        # A line of a stack dump; "? " before a name would be a leftover of an older call.
        (
            "nfs_",
            r"(?:^|[^?\s])\s{0,8}\b(?:nfs_lock_and_join_requests|nfs_wb_all|nfs_page_async_flush|nfs_writepages_callback)\+0x[0-9a-f]{1,8}",
        ),
        before=32,
    ),
    Rule(
        "ost carrier",
        re.compile(r"(?:^|[\s:])(?P<device>[A-Za-z][\w.@-]{0,31}): [Ll]ost carrier\b", re.ASCII),
        _lost_carrier,
        userspace=True,
    ),
    *rules(
        "NET_LINK_DOWN",
        # Not a port of a disk controller, and not a PCIe slot, which stands in brackets.
        (
            "ink is Down",
            r"(?<![\w.])(?!ata\d|\S*pcie)(?P<device>[A-Za-z][\w.@-]{1,31}):? (?:NIC (?:\w{2,12} ){0,2})?Link is Down\b",
        ),
        *(
            (word, rf"(?<![\w.])(?!pcie)[a-z]\w{{1,15}} (?P<pci>{PCI}): (?:NIC )?[Ll]ink is [Dd]own\b")
            for word in ("ink is Down", "ink is down")
        ),
        ("ink is down", r"(?<![\w.])(?!ata\d|\S*pcie)(?P<device>[A-Za-z][\w.@-]{1,31}):? (?:NIC )?[Ll]ink is down\b"),
        ("ink down", r"(?<![\w.])(?!ata\d|SATA|\S*pcie)(?P<device>[A-Za-z][\w.@-]{1,31}):? [Ll]ink down\b(?! \()"),
        ("ink Down", r"(?<![\w.])(?!ata\d|SATA|\S*pcie)(?P<device>[A-Za-z][\w.@-]{1,31}):? [Ll]ink Down\b"),
        ("link status definitely down", r"\b(?P<device>bond\S{0,24}): .{0,60}link status definitely down"),
    ),
    *rules(
        "AMDGPU_RESET",
        (
            "GPU reset",
            rf"amdgpu(?: (?P<pci>{PCI}))?: .{{0,24}}?GPU reset(?: begin| due to|\(\d{{1,6}}\) failed| end with ret = -)",
        ),
        ("GPU reset (amdgpu", r"GPU reset \(amdgpu\b[^)]{0,24}\) issued"),
        ("GPU Recovery Failed", rf"amdgpu(?: (?P<pci>{PCI}): .{{0,24}}?|.{{0,40}} )GPU Recovery Failed"),
        ("ASIC reset failed", rf"amdgpu(?: (?P<pci>{PCI}))?: .{{0,24}}?ASIC reset failed"),
        *(
            (word, rf"amdgpu(?: (?P<pci>{PCI}))?: (?:amdgpu: )?(?:GPU )?[Mm](?i:ode)[12] reset failed")
            for word in ("ode1 reset failed", "ode2 reset failed")
        ),
    ),
    *rules(
        "AMDGPU_RAS_UNCORRECTABLE",
        ("ncorrectable", rf"amdgpu(?:(?: (?P<pci>{PCI}))?: |\]\] ).{{0,120}}?{_UNCORRECTABLE}"),
        before=192,
    ),
)
