"""The router's key file: what is in it, who may read it, and that a change holds without a restart."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from switchgear.core.clock import ManualClock
from switchgear.core.errors import FailedPrecondition, Reason, Unauthenticated
from switchgear.serve.api_keys import FILE_BYTES_MAX, FRESH_S, KEY_LENGTH_MIN, ApiKeys, read

OLD, NEW = "old-" + "o" * 40, "new-" + "n" * 40


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "keys", f"# team a\n{OLD}\n")


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def admitted(keys: ApiKeys, authorization: str | None) -> bool:
    try:
        keys.require(authorization)
    except Unauthenticated:
        return False
    return True


def test_blank_lines_and_comments_are_no_keys(file: Path) -> None:
    write(file, f"\n  # of team a\r\n {OLD} \r\n\n#{'x' * 50}\n{NEW}")
    assert list(read(file)) == [OLD, NEW]


def test_only_a_whole_key_of_the_file_is_let_in(file: Path) -> None:
    keys = ApiKeys(file, ManualClock())
    assert admitted(keys, f"Bearer {OLD}")
    assert admitted(keys, f"bearer  {OLD} ")
    for wrong in (
        None,
        "",
        "Bearer",
        "Bearer ",
        OLD,
        f"Basic {OLD}",
        f"Bearer {OLD}x",
        f"Bearer {OLD[:-1]}",
        "Bearer é\udcff",
    ):
        assert not admitted(keys, wrong), wrong


def test_a_change_holds_within_a_second_and_the_file_is_left_alone_in_between(file: Path) -> None:
    clock = ManualClock()
    keys = ApiKeys(file, clock)
    write(file, NEW)
    clock.advance(FRESH_S * 0.9)
    assert admitted(keys, f"Bearer {OLD}")
    clock.advance(FRESH_S * 0.2)
    assert not admitted(keys, f"Bearer {OLD}")
    assert admitted(keys, f"Bearer {NEW}")


def test_the_last_good_keys_hold_while_the_file_cannot_be_used_and_the_log_says_so_once(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock()
    keys = ApiKeys(file, clock)
    with caplog.at_level(logging.ERROR):
        file.unlink()
        for _ in range(3):
            clock.advance(FRESH_S)
            assert admitted(keys, f"Bearer {OLD}")
        assert len(caplog.records) == 1
        write(file, f"{NEW}\nshort\n")
        clock.advance(FRESH_S)
        assert admitted(keys, f"Bearer {OLD}")
        assert len(caplog.records) == 2
    assert "short" not in caplog.text
    assert NEW not in caplog.text
    write(file, NEW)
    clock.advance(FRESH_S)
    assert admitted(keys, f"Bearer {NEW}")
    assert not admitted(keys, f"Bearer {OLD}")


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o620, 0o644, 0o666])
def test_a_file_that_others_may_read_or_change_is_refused_with_the_remedy(file: Path, mode: int) -> None:
    file.chmod(mode)
    assert f"chmod 600 {file}" in refusal(file)


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o440, 0o640])
def test_a_file_for_its_owner_and_for_a_group_that_may_only_read_is_good(file: Path, mode: int) -> None:
    file.chmod(mode)
    assert list(read(file)) == [OLD]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no key in it"),
        ("# nothing yet\n", "no key in it"),
        (f"{OLD}\n{'x' * (KEY_LENGTH_MIN - 1)}\n", "line 2 is no key"),
        (f"{OLD} {NEW}\n", "line 1 is no key"),
        (f"{OLD}é\n", "line 1 is no key"),
        (f"{OLD}\n" * (FILE_BYTES_MAX // len(OLD)), f"more than {FILE_BYTES_MAX} bytes"),
    ],
)
def test_what_is_no_list_of_keys_is_refused_and_no_key_is_told(file: Path, text: str, told: str) -> None:
    message = refusal(write(file, text))
    assert told in message
    assert OLD not in message


def test_what_is_not_there_or_no_regular_file_is_refused(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path / "nowhere")
    assert "no regular file" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    assert "no regular file" in refusal(tmp_path / "pipe")


def refusal(path: Path) -> str:
    with pytest.raises(FailedPrecondition) as caught:
        ApiKeys(path, ManualClock())
    assert caught.value.reason is Reason.KEY_FILE
    return caught.value.message
