"""Events survive what an agent and a machine go through."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from switchgear.agent.spool import Event, Spool


def open_spool(folder: Path, boot: str = "boot-1", pending_bytes_max: int = 1 << 20) -> Spool:
    return Spool(folder / "spool", boot, pending_bytes_max)


def add(spool: Spool, text: str, cursor: str = "") -> Event | None:
    return spool.append("kernel_log", "XID", text, time_unix_ns=1, gpu=0, code=79, cursor=cursor)


def texts(spool: Spool) -> list[str]:
    return [event.text for _, event in spool.pending(0, 100)]


def test_events_are_numbered_from_one_for_each_source(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    first, second = add(spool, "a"), add(spool, "b")
    other = spool.append("agent", "SOURCE_STALLED", "c", time_unix_ns=1)
    assert [event and event.sequence for event in (first, second, other)] == [1, 2, 1]


def test_a_restart_keeps_events_numbers_and_cursor(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    before = [add(spool, "a", "7:100"), add(spool, "b", "7:200")]
    reopened = open_spool(tmp_path)  # the first was never closed: as after kill -9
    assert [event for _, event in reopened.pending(0, 100)] == before
    assert reopened.cursor("kernel_log") == "7:200"
    third = add(reopened, "c")
    assert third is not None
    assert (third.boot_id, third.sequence) == (spool.boot_id, 3)


def test_a_reboot_begins_new_numbers_and_keeps_old_events_and_the_cursor(tmp_path: Path) -> None:
    old = add(open_spool(tmp_path), "a", "7:100")
    spool = open_spool(tmp_path, boot="boot-2")
    new = add(spool, "b", "7:200")
    assert old is not None
    assert new is not None
    assert new.sequence == 1
    assert new.boot_id != old.boot_id
    spool.ack(new.boot_id, "kernel_log", 1)
    again = open_spool(tmp_path, boot="boot-2")
    assert texts(again) == ["a"]
    assert again.cursor("kernel_log") == "7:200"
    following = add(again, "c")
    assert following is not None
    assert following.sequence == 2


def test_a_full_disk_is_said_once_and_what_it_refused_is_written_when_there_is_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = open_spool(tmp_path)
    add(spool, "a")
    size, limits = (tmp_path / "spool").stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 30, limits[1]))
    try:
        for text in ("half a line", "none", "none again"):
            add(spool, text)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (spool.write_errors, len(caplog.records)) == (3, 1)
    add(spool, "b")
    again = open_spool(tmp_path)  # as after kill -9
    assert texts(again) == ["a", "half a line", "none", "none again", "b"]
    assert [path.name for path in tmp_path.iterdir()] == ["spool"]


def test_a_lost_spool_never_uses_the_numbers_of_the_lost_one_again(tmp_path: Path) -> None:
    first = add(open_spool(tmp_path), "a")
    (tmp_path / "spool").unlink()
    second = add(open_spool(tmp_path), "b")
    assert first is not None
    assert second is not None
    assert first.boot_id != second.boot_id


def test_acked_events_are_gone_for_good(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    for text in "abc":
        add(spool, text)
    spool.ack(spool.boot_id, "kernel_log", 2)
    assert texts(spool) == ["c"]
    assert texts(open_spool(tmp_path)) == ["c"]


def test_an_ack_touches_its_own_source_and_boot_only(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    add(spool, "a")
    spool.ack(spool.boot_id, "agent", 9)
    spool.ack("another boot", "kernel_log", 9)
    assert texts(spool) == ["a"]


def test_pending_goes_on_after_what_was_taken_although_acks_come_in_between(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    for text in "abcd":
        add(spool, text)
    taken = spool.pending(0, 2)
    spool.ack(spool.boot_id, "kernel_log", 1)
    assert [event.text for _, event in spool.pending(taken[-1][0], 100)] == ["c", "d"]


def test_a_full_spool_keeps_the_first_events_and_counts_the_rest(tmp_path: Path) -> None:
    spool = open_spool(tmp_path, pending_bytes_max=1000)
    for number in range(20):
        add(spool, f"event {number}")
    kept = texts(spool)
    assert kept == [f"event {number}" for number in range(len(kept))]
    assert spool.dropped == 20 - len(kept) > 0
    spool.ack(spool.boot_id, "kernel_log", len(kept))
    assert add(spool, "room again") is not None


def test_the_file_stays_small_while_events_come_and_go(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    for number in range(300):
        event = add(spool, "x" * 500)
        assert event is not None
        spool.ack(spool.boot_id, "kernel_log", event.sequence)
        assert event.sequence == number + 1
    assert (tmp_path / "spool").stat().st_size < 100_000
    assert texts(open_spool(tmp_path)) == []


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_write_that_a_crash_cut_short_is_as_if_never_begun(tmp_path: Path, cut: int) -> None:
    spool = open_spool(tmp_path)
    add(spool, "a", "7:100")
    add(spool, "b", "7:200")
    path = tmp_path / "spool"
    path.write_bytes(path.read_bytes()[:-cut])
    reopened = open_spool(tmp_path)
    assert texts(reopened) == ["a"]
    assert reopened.cursor("kernel_log") == "7:100"
    again = add(reopened, "b", "7:200")
    assert again is not None
    assert again.sequence == 2


def test_a_spool_of_rubbish_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "spool").write_bytes(b"\x00\xffrubbish\n" * 10)
    spool = open_spool(tmp_path)
    assert texts(spool) == []
    assert add(spool, "a") is not None


def test_on_a_full_disk_a_spool_opens_as_it_was_and_catches_up(tmp_path: Path) -> None:
    add(open_spool(tmp_path), "a", "7:100")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, limits[1]))
    try:
        spool = open_spool(tmp_path)
        assert texts(spool) == ["a"]
        add(spool, "b", "7:200")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    add(spool, "c", "7:300")
    reopened = open_spool(tmp_path)
    assert texts(reopened) == ["a", "b", "c"]
    assert reopened.boot_id == spool.boot_id
