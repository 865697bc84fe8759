"""What TCP had to repair, under node_exporter's names."""

from __future__ import annotations

from pathlib import Path

from switchgear.agent.readings import Kind, Reading, known, series
from switchgear.agent.sources.kernel_files import PROCFS, KernelFiles

#: Retransmits and time-outs tell of a lossy path, overflows of a process that does not accept; by protocol, in node_exporter's words.
FIELDS = {
    "Tcp": ("ActiveOpens", "PassiveOpens", "CurrEstab", "InSegs", "OutSegs", "RetransSegs", "InErrs", "OutRsts"),
    "TcpExt": ("ListenOverflows", "ListenDrops", "TCPSynRetrans", "TCPTimeouts", "TCPOFOQueue", "TCPRcvQDrop"),
    "Udp": ("InDatagrams", "OutDatagrams", "InErrors", "RcvbufErrors", "SndbufErrors"),
}
_GAUGES = frozenset({"CurrEstab"})


class ProtocolSource:
    """Counters of TCP and UDP. Slow: the kernel adds them up over all CPUs."""

    name = "protocols"
    period_s = 15.0

    def __init__(self, procfs: Path = PROCFS) -> None:
        self._paths = (f"{procfs}/net/snmp", f"{procfs}/net/netstat")
        self._files = KernelFiles()

    def sample(self) -> list[Reading]:
        readings = list[Reading]()
        for path in self._paths:
            try:
                lines = self._files.table(path).splitlines()
            except OSError:  # not built in
                continue
            # Pairs of lines: the names, then the numbers.
            for names, values in zip(lines[::2], lines[1::2], strict=False):
                protocol = names.partition(":")[0]
                wanted = FIELDS.get(protocol)
                if wanted is None:
                    continue
                row = dict(zip(names.split(), values.split(), strict=False))
                readings += [
                    known(
                        series(
                            f"node_netstat_{protocol}_{field}", "", Kind.GAUGE if field in _GAUGES else Kind.COUNTER
                        ),
                        int(row[field]),
                    )
                    for field in wanted
                    if field in row
                ]
        return readings
