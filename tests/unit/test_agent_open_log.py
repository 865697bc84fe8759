"""Which log of the kernel the agent reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from switchgear.agent.sources import open_log
from switchgear.agent.sources.journal import JournalLog
from switchgear.agent.sources.log_reader import TextLog


def journal_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    """A journalctl that prints the message when it is asked for one, and follows without end otherwise."""
    script = f'#!/bin/sh\ncase "$*" in *--lines=1*) echo {message};; *) exec sleep 60;; esac\n'
    (tmp_path / "journalctl").write_text(script)
    (tmp_path / "journalctl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")


def test_a_file_that_is_given_counts_instead_of_all_others(tmp_path: Path) -> None:
    assert isinstance(open_log.open_kernel_log(tmp_path / "kern.log", "boot", ""), TextLog)


@pytest.mark.parametrize("ring", ["none", "folder"], ids=["not there", "opened and not read"])
def test_the_journal_is_read_where_the_ring_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, ring: str
) -> None:
    (tmp_path / "folder").mkdir()
    journal_shows(tmp_path, monkeypatch, "a message")
    monkeypatch.setattr(open_log, "KMSG", tmp_path / ring)
    reader = open_log.open_kernel_log(None, "boot", "boot:7")
    assert isinstance(reader, JournalLog)
    reader.close()
    assert not caplog.text


def test_a_journal_without_kernel_messages_is_said_to_show_no_faults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    journal_shows(tmp_path, monkeypatch, "")
    monkeypatch.setattr(open_log, "KMSG", tmp_path / "none")
    open_log.open_kernel_log(None, "boot", "")
    assert "the journal shows no kernel message" in caplog.text


@pytest.mark.parametrize("name", ["none", "folder"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "folder").mkdir()
    open_log.open_kernel_log(tmp_path / name, "boot", "")
    assert f"{tmp_path / name} cannot be read" in caplog.text


def test_without_ring_and_journal_it_says_that_faults_stay_unseen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(open_log, "KMSG", tmp_path / "none")
    assert open_log.open_kernel_log(None, "boot", "") is None
    assert "XIDs stay unseen" in caplog.text
