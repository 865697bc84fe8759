"""Which kernel-log lines are events, and which are not."""

from __future__ import annotations

import pytest

from switchgear.agent.events import Finding
from switchgear.agent.sources.gpu import normal_pci
from switchgear.agent.sources.kernel_log import TEXT_BYTES_MAX, KernelLogParser


def findings(*lines: str, seconds_apart: float = 0.0) -> list[Finding]:
    """What a follower tells of the lines, the last of which is a while ago."""
    parser = KernelLogParser()
    found = [parser.feed(line, 100.0 + number * seconds_apart) for number, line in enumerate(lines)]
    return [finding for some in (*found, parser.due(1000.0)) for finding in some]


@pytest.mark.parametrize(
    ("line", "code", "pci"),
    [
        (
            "[ 12.345678] NVRM: Xid (PCI:0000:3b:00): 79, pid=77, name=python, GPU has fallen off the bus.",
            79,
            "0000:3b:00",
        ),
        ("NVRM: Xid (PCI:0000:3b:00): 31", 31, "0000:3b:00"),
        ("NVRM: Xid (PCI:0000:3b:00.0): 79, GPU has fallen off the bus!", 79, "0000:3b:00"),
        ("NVRM: Xid (PCI:0000:3b:00 GPU-I:03): 94, pid=5, Contained: CE User Channel", 94, "0000:3b:00"),
        ("kernel: NVRM: Xid (0000:3b:00): 14, Channel 00000007", 14, "0000:3b:00"),
        ("NVRM: Xid (PCI:0000:3b:00): 154 (", 154, "0000:3b:00"),
        ("NVRM: Xid (PCI:0008:01:00): 145, RLW_REMAP Nonfatal XC1 i0 Link 10 (0x00000004 0x40)", 145, "0008:01:00"),
        ("NVRM: Xid (PCI:0000:3b:00): 45, pid=9, name=python3, Ch 1 caused by previous Xid 149", 45, "0000:3b:00"),
        ("NVRM: Xid (PCI:0000:3b:00): 4711, a code of a driver to come", 4711, "0000:3b:00"),
        ("NVRM: Xid: 62", 62, ""),
    ],
)
def test_every_form_of_an_xid_line_gives_its_code_and_device(line: str, code: int, pci: str) -> None:
    assert [(found.kind, found.text, found.code, found.pci) for found in findings(line)] == [("XID", line, code, pci)]


@pytest.mark.parametrize(
    "line",
    ["[9.5] NVRM: GPU 0000:29:00.0: GPU has fallen off the bus.", "NVRM: GPU 29:00.0: GPU has fallen off the bus."],
)
def test_a_gpu_that_is_gone_without_an_xid_counts_as_the_xid_of_that(line: str) -> None:
    assert [(found.kind, found.code, found.pci) for found in findings(line)] == [
        ("GPU_FALLEN_OFF_BUS", 79, "0000:29:00")
    ]


def test_a_finding_tells_what_the_line_does() -> None:
    (found,) = findings(
        "NVRM: Xid (PCI:0009:01:00): 145, pid=77, name=trainer, RLW_RXPIPE Nonfatal XC0 i0 Link 07 (0x040000c2 0x00000008 0x1)"
    )
    assert found.detail == {
        "pid": "77",
        "process": "trainer",
        "unit": "RLW_RXPIPE",
        "severity": "Nonfatal",
        "link": "7",
        "intrinfo": str(0x040000C2),
        "error_status": "8",
        "action": "IGNORE",
        "level": "INFO",
    }


@pytest.mark.parametrize(
    "line",
    [
        "NVRM: loading NVIDIA UNIX x86_64 Kernel Module  580.82.09",
        "NVRM: GPU at PCI:0000:3b:00: GPU-00000000-1111-2222-3333-444444444444",
        "NVRM: Xid (PCI:0000:3b:00): garbled",
        "NVRM: Xid (PCI:0000:3b:00), pid=1234",
        "NVRM: _kgspLogXid119: ***** GSP Timeout *****",
        "NVRM: The NVIDIA GPU nonsense.0",
        "somebody wrote Xid 79 into a log of his own",
        f"NVRM: Xid (PCI:0000:3b:00): {2**31}, more than any code",
        "nvidia-nvswitch0: SXid (PCI:0000:c1:00.0): none, Fatal",
        "eth0: Link is up",
        "",
    ],
)
def test_lines_that_are_no_event_match_nothing(line: str) -> None:
    assert findings(line) == []


def test_the_sentence_over_three_lines_is_one_lost_gpu() -> None:
    lines = (
        "[ 84.1] NVRM: The NVIDIA GPU 0000:b3:00.0",
        "        NVRM: (PCI ID: 10de:2330) installed in this system has",
        "        NVRM: fallen off the bus and is not responding to commands.",
    )
    assert [(found.code, found.pci) for found in findings(*lines)] == [(79, "0000:b3:00")]
    assert findings(lines[0], lines[1], lines[1], lines[2]) == []  # too far apart to be the same sentence


def test_a_lost_gpu_that_is_told_twice_is_one_event() -> None:
    lines = (
        "[ 84.100] NVRM: Xid (PCI:0000:b3:00): 79, pid=1, name=x, GPU has fallen off the bus.",
        "[ 84.101] NVRM: GPU 0000:b3:00.0: GPU has fallen off the bus.",
    )
    assert len(findings(*lines)) == 1


def test_lines_of_one_event_fold_and_a_later_one_is_new() -> None:
    line = "NVRM: Xid (PCI:0000:3b:00): 13, Graphics Exception: ESR 0x1"
    assert len(findings(line, line, seconds_apart=0.3)) == 1
    assert len(findings(line, line, seconds_apart=1.5)) == 2


def test_the_kernels_own_stamp_decides_what_is_later() -> None:
    line = "NVRM: Xid (PCI:0000:3b:00): 13, Graphics Exception"
    assert len(findings(f"[ 10.000000] {line}", f"[ 50.000000] {line}")) == 2
    assert len(findings(f"[ 50.000000] {line}", f"[ 10.000000] {line}")) == 2  # booted in between


def test_devices_instances_and_links_are_told_apart() -> None:
    assert len(findings("NVRM: Xid (PCI:0000:3b:00): 48, DBE", "NVRM: Xid (PCI:0000:3c:00): 48, DBE")) == 2
    instance = "NVRM: Xid (PCI:0000:3b:00 GPU-I:0{}): 94, Contained"
    assert len(findings(instance.format(1), instance.format(2))) == 2
    link = "NVRM: Xid (PCI:0000:3b:00): 149, NETIR_LINK_EVT Fatal XC0 i0 Link 0{} (0x1)"
    assert len(findings(link.format(1), link.format(2))) == 2


def test_an_sxid_counts_once_and_its_own_word_says_whether_it_is_fatal() -> None:
    lines = (
        "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 28006, Non-fatal, Link 46 MC TS crumbstore MCTO (First)",
        "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 28006, Severity 0 Engine instance 46 Sub-engine instance 00",
    )
    assert [(found.kind, found.code, found.detail["level"]) for found in findings(*lines)] == [
        ("SXID", 28006, "WARNING")
    ]
    fatal = "[1.5] nvidia-nvswitch0: SXid (PCI:0000:c1:00.0): 20034, Fatal, Link 24 LTSSM Fault Up"
    assert [(found.code, found.detail["level"]) for found in findings(fatal)] == [(20034, "FATAL")]


def test_a_text_is_cut_to_its_bound_at_a_whole_character() -> None:
    (found,) = findings("NVRM: Xid (PCI:0000:3b:00): 31, " + "é" * TEXT_BYTES_MAX)
    assert TEXT_BYTES_MAX - 1 <= len(found.text.encode()) <= TEXT_BYTES_MAX


@pytest.mark.parametrize(
    ("spelling", "normal"),
    [
        ("00000000:3B:00.0", "0000:3b:00"),
        ("0000:3b:00", "0000:3b:00"),
        ("3b:00.0", "0000:3b:00"),
        ("0008:01:00", "0008:01:00"),
        ("invalid-bdf.0", ""),
    ],
)
def test_every_spelling_of_a_pci_address_has_one_normal_form(spelling: str, normal: str) -> None:
    assert normal_pci(spelling) == normal


def test_what_asks_for_nothing_is_told_once_a_minute() -> None:
    line = "mlx5_core 0000:d2:00.0: mlx5_cmd_out_err:838:(pid 5): ACCESS_REG(0x805) op_mod(0x1) failed, status bad operation(0x2)"
    assert len(findings(*[line] * 50, seconds_apart=1.0)) == 2  # the first, and how many there were


def test_a_sentence_may_come_in_pieces_but_not_over_seconds() -> None:
    lines = (
        "NVRM: The NVIDIA GPU 0000:b3:00.0",
        "NVRM: (PCI ID: 10de:2330) installed in this system has",
        "NVRM: fallen off the bus and",
    )
    parser = KernelLogParser()
    told = [parser.feed(line, now_s) for now_s, line in zip((1.0, 1.1, 1.2), lines, strict=True)]
    assert told == [[], [], []]
    assert parser.holding
    assert len(parser.due(2.2)) == 1  # its XID did not follow
    assert findings(*lines, seconds_apart=2.0) == []


def test_a_finding_has_no_character_that_a_database_refuses() -> None:
    (found,) = findings("NVRM: Xid (PCI:0000:3b:00): 31, pid=5, name=tr\0in\ud800, MMU Fault")
    told = found.text + "".join(found.detail.values())
    assert "\0" not in told
    assert told.encode()
