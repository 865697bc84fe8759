"""Which checkpoint is handed out, and what happens to those that must not be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from switchgear.launcher import checkpoints
from switchgear.launcher.checkpoints import QUARANTINE, Known, checkpoint_paths, digest_file, verify_newest
from switchgear.launcher.disk import DiskThread
from switchgear.launcher.verify import verify
from switchgear.v1alpha import launcher_service_pb2 as pb


def save(folder: Path, step: int, *, written_s: int | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"step-{step:08d}.pt"
    torch.save({"weight": torch.full((100,), float(step))}, path)
    os.utime(path, (written_s or step, written_s or step))
    return path


def truncate(path: Path) -> None:
    written = path.stat().st_mtime
    os.truncate(path, path.stat().st_size // 2)
    os.utime(path, (written, written))


def test_the_newest_good_one_wins_and_older_ones_are_not_read(tmp_path: Path) -> None:
    old, newest = save(tmp_path, 10), save(tmp_path, 20)
    truncate(old)
    outcome = verify_newest(tmp_path, {str(newest): Known(20, digest_file(newest))})
    assert outcome.newest_good is not None
    assert (outcome.newest_good.path, outcome.newest_good.step) == (newest, 20)
    assert outcome.newest_good.proven
    assert outcome.newest_good.digest == digest_file(newest)
    assert outcome.newest_good.size_bytes == newest.stat().st_size
    assert outcome.newest_good.commit_time_unix_ns == 20 * 10**9
    assert outcome.checked == [outcome.newest_good]
    assert old.exists()


def test_a_good_one_that_attempts_did_not_survive_is_walked_past_and_stays_where_it_is(tmp_path: Path) -> None:
    older, newest = save(tmp_path, 10), save(tmp_path, 20)
    outcome = verify_newest(tmp_path, {}, frozenset({digest_file(newest)}))
    assert [(c.path, c.damage) for c in outcome.checked] == [(newest, ""), (older, "")]
    assert outcome.newest_good is not None
    assert outcome.newest_good.path == older
    assert newest.exists()


def test_damaged_ones_move_into_quarantine_until_a_good_one_is_found(tmp_path: Path) -> None:
    good, worse, worst = (save(tmp_path, step) for step in (10, 20, 30))
    truncate(worse)
    worst.write_bytes(b"")
    content = worse.read_bytes()
    outcome = verify_newest(tmp_path, {})
    assert [(c.path, bool(c.damage)) for c in outcome.checked] == [(worst, True), (worse, True), (good, False)]
    assert outcome.newest_good is not None
    assert outcome.newest_good.path == good
    moved = outcome.checked[1].quarantine_path
    assert moved is not None
    assert moved.parent == tmp_path / QUARANTINE
    assert moved.read_bytes() == content
    assert not worse.exists()
    assert verify_newest(tmp_path, {}).checked == [outcome.newest_good], "a second call finds the work done"


def test_no_checkpoint_is_left_when_all_are_damaged(tmp_path: Path) -> None:
    for step in (10, 20):
        truncate(save(tmp_path, step))
    outcome = verify_newest(tmp_path, {})
    assert outcome.newest_good is None
    assert len(outcome.checked) == 2
    assert checkpoint_paths(tmp_path) == []


def test_a_file_of_the_same_name_can_go_bad_twice(tmp_path: Path) -> None:
    for _ in range(2):
        truncate(save(tmp_path, 10))
        verify_newest(tmp_path, {})
    assert len(list((tmp_path / QUARANTINE).iterdir())) == 2


def test_only_checkpoints_are_touched(tmp_path: Path) -> None:
    good = save(tmp_path, 10)
    known = tmp_path / "state_without_suffix"
    known.write_bytes(b"anything")
    os.utime(known, (5, 5))
    zipped = tmp_path / "weights"
    zipped.write_bytes(good.read_bytes())
    os.utime(zipped, (4, 4))
    others = ["loss.jsonl", "train.log", ".hidden.pt", "step-30.pt.tmp", "step-30.tmp.1234.pt"]
    for name in others:
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "model.pt").touch()
    assert checkpoint_paths(tmp_path, {str(known): Known(None, "")}) == [good, known, zipped]
    verify_newest(tmp_path, {})
    assert all((tmp_path / name).exists() for name in others)


def test_a_link_to_a_checkpoint_of_the_folder_is_no_checkpoint_of_its_own(tmp_path: Path) -> None:
    newest = save(tmp_path, 10)
    (tmp_path / "latest.pt").symlink_to(newest.name)
    (tmp_path / "dangling.pt").symlink_to("nowhere")
    assert checkpoint_paths(tmp_path) == [newest]


def test_known_steps_order_before_the_time_of_the_last_write(tmp_path: Path) -> None:
    copied_late, newest = save(tmp_path, 10, written_s=99), save(tmp_path, 20, written_s=50)
    steps = {str(copied_late): Known(10, ""), str(newest): Known(20, "")}
    assert checkpoint_paths(tmp_path, steps) == [newest, copied_late]
    assert checkpoint_paths(tmp_path, {str(newest): Known(20, "")}) == [copied_late, newest]


def test_the_step_of_a_file_that_was_written_anew_is_unknown(tmp_path: Path) -> None:
    path = save(tmp_path, 10)
    stale = {str(path): Known(10, digest_file(path))}
    path.write_bytes(save(tmp_path / "elsewhere", 20).read_bytes())
    newest = verify_newest(tmp_path, stale).newest_good
    assert newest is not None
    assert newest.step is None
    assert newest.digest == digest_file(path)


def test_names_order_what_was_written_at_the_same_time(tmp_path: Path) -> None:
    first, second = save(tmp_path, 10, written_s=5), save(tmp_path, 20, written_s=5)
    assert checkpoint_paths(tmp_path) == [second, first]


def test_what_cannot_be_read_is_reported_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, unreadable = save(tmp_path, 10), save(tmp_path, 20)
    real_open = Path.open

    def failing_open(self: Path, *args: object, **kwargs: object) -> object:
        if self == unreadable:
            raise OSError(5, "Input/output error")
        return real_open(self, *args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", failing_open)  # a disk that fails cannot be had otherwise
    outcome = verify_newest(tmp_path, {})
    assert outcome.checked[0].damage == "it cannot be read: Input/output error"
    assert outcome.checked[0].quarantine_path is None
    assert unreadable.exists()
    assert outcome.newest_good is not None
    assert outcome.newest_good.path == good


def test_a_damaged_file_that_cannot_be_moved_does_not_stop_the_search(tmp_path: Path) -> None:
    good, damaged = save(tmp_path, 10), save(tmp_path, 20)
    truncate(damaged)
    (tmp_path / QUARANTINE).write_text("a file where the folder should be")
    outcome = verify_newest(tmp_path, {})
    assert "it stays where it is" in outcome.checked[0].damage
    assert outcome.newest_good is not None
    assert outcome.newest_good.path == good


def test_a_file_without_sums_is_accepted_but_not_proven(tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    torch.save({"weight": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    outcome = verify_newest(tmp_path, {})
    assert outcome.newest_good is not None
    assert not outcome.newest_good.proven
    outcome = verify_newest(tmp_path, {str(path): Known(None, digest_file(path))})
    assert outcome.newest_good is not None
    assert outcome.newest_good.proven


def test_a_folder_that_does_not_exist_has_no_checkpoints(tmp_path: Path) -> None:
    assert verify_newest(tmp_path / "none", {}) == checkpoints.VerifyOutcome([], None)


def test_damaged_dcp_folders_move_as_a_whole(tmp_path: Path) -> None:
    for step in (10, 20):
        folder = tmp_path / f"step-{step}"
        folder.mkdir()
        (folder / "__0_0.distcp").write_bytes(b"shard")
        (folder / ".metadata").write_bytes(b"\x80\x04N.")
        os.utime(folder / ".metadata", (step, step))
    (tmp_path / "step-20" / "__0_0.distcp").write_bytes(b"")
    outcome = verify_newest(tmp_path, {})
    assert [c.path.name for c in outcome.checked] == ["step-20", "step-10"]
    moved = outcome.checked[0].quarantine_path
    assert moved is not None
    assert (moved / ".metadata").exists()
    assert outcome.newest_good is not None
    assert outcome.newest_good.size_bytes == 9


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        verify_newest(tmp_path / "file", {})


def test_what_cannot_even_be_looked_at_is_reported_before_an_older_one_wins(tmp_path: Path) -> None:
    good, closed = save(tmp_path, 10), tmp_path / "step-20.pt"
    closed.symlink_to(closed.name)
    outcome = verify_newest(tmp_path, {})
    assert [(c.path, c.damage) for c in outcome.checked] == [
        (closed, "it cannot be read: Too many levels of symbolic links"),
        (good, ""),
    ]
    assert closed.is_symlink()


def test_a_name_that_is_not_utf_8_is_left_out_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = save(tmp_path, 10)
    strange = Path(os.fsdecode(os.fsencode(tmp_path) + b"/step-\xff.pt"))
    strange.write_bytes(b"")
    for _ in range(2):
        assert [c.path for c in verify_newest(tmp_path, {}).checked] == [good]
    assert len(caplog.records) == 1
    assert "step-\\xff.pt' is left out" in caplog.text
    assert strange.exists()


async def answer(directory: Path) -> pb.VerifyResult:
    disk = DiskThread("disk")
    try:
        return await verify(disk, directory, pb.VerifyCheckpoints())
    finally:
        disk.close()


async def test_recovery_is_told_what_to_mend_when_the_folder_cannot_be_listed(tmp_path: Path) -> None:
    assert await answer(tmp_path / "none") == pb.VerifyResult()
    (tmp_path / "file").touch()
    assert (await answer(tmp_path / "file")).error == (
        f"checkpoint folder {tmp_path}/file cannot be listed: Not a directory; "
        "mount it again or let the job's user read it, then submit the job again"
    )


async def test_damage_that_quotes_a_name_which_is_not_utf_8_can_be_told(tmp_path: Path) -> None:
    folder = tmp_path / "step-20"
    folder.mkdir()
    (folder / ".metadata").write_bytes(b"\x80\x04N.")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.distcp")).touch()
    (report,) = (await answer(tmp_path)).checkpoints
    assert report.damage == "?.distcp is empty"
