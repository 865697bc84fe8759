"""Reading a log on from where one left off."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from switchgear.agent.sources.log_reader import LINE_BYTES_MAX, TextLog, parse_record


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "kern.log"
    path.write_text("one\ntwo\n")
    return path


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def lines(reader: TextLog) -> list[str]:
    return [line for line, _ in reader.read()]


def test_each_line_comes_once_and_only_when_it_is_whole(log: Path) -> None:
    reader = TextLog(log)
    assert lines(reader) == ["one", "two"]
    append(log, "thr")
    assert lines(reader) == []
    append(log, "ee\nfour\n")
    assert lines(reader) == ["three", "four"]


def test_a_cursor_continues_after_its_line(log: Path) -> None:
    _, cursor = next(TextLog(log).read())
    assert lines(TextLog(log, cursor)) == ["two"]


def test_without_a_cursor_old_lines_are_skipped_on_request(log: Path) -> None:
    reader = TextLog(log, from_end=True)
    append(log, "three\n")
    assert lines(reader) == ["three"]


def test_a_log_that_does_not_exist_yet_is_read_from_its_begin(tmp_path: Path) -> None:
    reader = TextLog(tmp_path / "later.log", from_end=True)
    assert lines(reader) == []
    append(tmp_path / "later.log", "first\n")
    assert lines(reader) == ["first"]


def test_rotation_loses_nothing_of_the_old_file_nor_of_the_new(log: Path) -> None:
    reader = TextLog(log)
    lines(reader)
    append(log, "last of the old\n")
    log.rename(log.with_suffix(".1"))
    log.write_text("first of the new\n")
    assert [line for _ in range(3) for line in lines(reader)] == ["last of the old", "first of the new"]


def test_a_cursor_of_a_rotated_file_starts_the_new_one_from_its_begin(log: Path) -> None:
    cursor = list(TextLog(log).read())[-1][1]
    log.rename(log.with_suffix(".1"))
    log.write_text("new\n")
    assert lines(TextLog(log, cursor)) == ["new"]


def test_a_truncated_file_is_read_again_from_its_begin(log: Path) -> None:
    reader = TextLog(log)
    lines(reader)
    os.truncate(log, 0)
    append(log, "x\n")
    assert lines(reader) == ["x"]


def test_a_line_without_end_is_cut_and_what_follows_is_whole(log: Path) -> None:
    reader = TextLog(log)
    lines(reader)
    append(log, "a" * 3 * LINE_BYTES_MAX)
    assert lines(reader) == []
    append(log, "end\nnext\n")
    first, second = lines(reader)
    assert (len(first), first[-3:], second) == (LINE_BYTES_MAX, "end", "next")


def test_a_record_of_the_kernels_ring_has_sequence_stamp_and_text() -> None:
    record = b"6,3983,240602554,-;NVRM: Xid (PCI:0000:3b:00): 31\n SUBSYSTEM=pci\n"
    assert parse_record(record) == (3983, ["[240.602554] NVRM: Xid (PCI:0000:3b:00): 31"])


def test_a_message_of_several_lines_is_one_record_with_its_escapes_undone() -> None:
    record = rb"4,12,1843308145,-;NVRM: The NVIDIA GPU 0000:b3:00.0\x0aNVRM: fallen \xc3\xa9"
    assert parse_record(record) == (
        12,
        ["[1843.308145] NVRM: The NVIDIA GPU 0000:b3:00.0", "[1843.308145] NVRM: fallen é"],
    )


def test_what_a_program_wrote_into_the_ring_is_marked_as_that() -> None:
    assert parse_record(b"30,7,1000000,-;systemd[1]: Started X.")[1] == ["user:info: [1.000000] systemd[1]: Started X."]


def test_a_cursor_of_another_kind_of_log_is_none(log: Path) -> None:
    assert lines(TextLog(log, "s=0a1;i=7")) == ["one", "two"]
