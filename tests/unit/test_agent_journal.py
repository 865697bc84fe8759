"""The kernel log through journalctl, for which a shell script stands in: a child process, its end, and where it goes on."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from switchgear.agent.sources import journal
from switchgear.agent.sources.journal import MATCHES, JournalLog
from switchgear.agent.sources.kernel_log import classify

WAIT_S = 5.0
#: A descriptor that is never readable.
NEVER, _ = os.pipe()


def entry(number: int, message: str | list[int], *, transport: str = "kernel") -> str:
    fields = {"__CURSOR": f"s=0;i={number}", "MESSAGE": message, "_TRANSPORT": transport}
    return json.dumps({**fields, "_SOURCE_MONOTONIC_TIMESTAMP": str(number * 1_000_000)})


@pytest.fixture
def follow(tmp_path: Path) -> Iterator[Callable[..., JournalLog]]:
    """Opens a journal whose entries are given; the command notes its arguments, prints them, and stays unless it ends."""
    opened = list[JournalLog]()

    def open_(*entries: str, cursor: str = "", ends: bool = False) -> JournalLog:
        (tmp_path / "entries").write_text("".join(f"{line}\n" for line in entries))
        script = tmp_path / "journalctl"
        stay = "" if ends else "exec sleep 60"
        script.write_text(
            f'#!/bin/sh\necho $$ > {tmp_path}/pid\necho "$@" >> {tmp_path}/arguments\ncat {tmp_path}/entries\n{stay}\n'
        )
        script.chmod(0o755)
        opened.append(JournalLog(cursor, [str(script), "--follow"]))
        return opened[-1]

    yield open_
    for log in opened:
        log.close()


def read(log: JournalLog, count: int) -> list[tuple[str, str]]:
    lines = list[tuple[str, str]]()
    deadline_s = time.monotonic() + WAIT_S
    while len(lines) < count and time.monotonic() < deadline_s:
        lines += log.read()
        log.wait(0.05, NEVER)
    return lines


def test_entries_come_as_lines_stamped_as_dmesg_does_with_the_journals_cursor(
    follow: Callable[..., JournalLog], tmp_path: Path
) -> None:
    log = follow(
        entry(7, "NVRM: Xid (PCI:0000:3b:00): 31, pid=1, name=x, MMU Fault"), "no JSON", "[]", entry(8, "two\nlines")
    )
    assert read(log, 3) == [
        ("[7.000000] NVRM: Xid (PCI:0000:3b:00): 31, pid=1, name=x, MMU Fault", "s=0;i=7"),
        ("[8.000000] two", "s=0;i=8"),
        ("[8.000000] lines", "s=0;i=8"),
    ]
    # A fresh installation is told nothing old.
    assert (tmp_path / "arguments").read_text().split() == ["--follow", "--lines=0", *MATCHES]


def test_it_goes_on_behind_the_cursor_that_an_earlier_agent_kept(
    follow: Callable[..., JournalLog], tmp_path: Path
) -> None:
    read(follow(entry(9, "x"), cursor="s=0;i=8"), 1)
    assert "--after-cursor=s=0;i=8" in (tmp_path / "arguments").read_text()


def test_the_cursor_of_another_kind_of_log_is_none(follow: Callable[..., JournalLog], tmp_path: Path) -> None:
    read(follow(entry(9, "x"), cursor="12:4711"), 1)
    assert "--lines=0" in (tmp_path / "arguments").read_text()


def test_a_program_is_not_believed_what_only_the_kernel_knows(follow: Callable[..., JournalLog]) -> None:
    told = "Kernel panic - not syncing: said somebody"
    log = follow(entry(1, told), entry(2, told, transport="syslog"), entry(3, [0x4B, 0xFF]))
    lines = [line for line, _ in read(log, 3)]
    assert [found.kind if (found := classify(line)) else None for line in lines] == ["KERNEL_PANIC", None, None]
    assert lines[2] == "[3.000000] K\N{REPLACEMENT CHARACTER}"


def test_a_journalctl_that_ends_is_started_again_where_it_was(
    follow: Callable[..., JournalLog], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "RESTART_S", 0.0)
    log = follow(entry(5, "x"), ends=True)
    assert len(read(log, 2)) == 2  # the script begins anew; a real one would not
    assert log.restarts >= 1
    first, second = (tmp_path / "arguments").read_text().splitlines()[:2]
    assert "--lines=0" in first
    assert "--after-cursor=s=0;i=5" in second


def test_closing_ends_the_child(follow: Callable[..., JournalLog], tmp_path: Path) -> None:
    log = follow(entry(1, "x"))
    read(log, 1)
    pid = int((tmp_path / "pid").read_text())
    assert Path(f"/proc/{pid}").exists()
    log.close()
    assert not Path(f"/proc/{pid}").exists()
    assert list(log.read()) == []


def test_where_there_is_no_journalctl_it_says_so() -> None:
    with pytest.raises(FileNotFoundError):
        JournalLog("", ["no-such-journalctl"])
