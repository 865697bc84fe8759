"""Logs, the state folder and the outbox of a launcher."""

from __future__ import annotations

import io
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from switchgear.core.errors import FailedPrecondition, Reason
from switchgear.launcher.logs import STDERR_TAIL_BYTES_MAX, Echo, LogFolder
from switchgear.launcher.outbox import REPORTS_MAX, Outbox
from switchgear.launcher.state import Process, State, StateFolder, is_held
from switchgear.v1alpha import launcher_service_pb2 as pb


def test_the_tail_of_stderr_is_whole_lines_within_its_bound(tmp_path: Path) -> None:
    logs = LogFolder(tmp_path)
    logs.prepare(1, 0)
    path = logs.path(1, 0, "stderr")
    path.write_text("short\n")
    assert logs.stderr_tail(1, 0) == "short\n"
    path.write_text("".join(f"line {n}\n" for n in range(2000)))
    tail = logs.stderr_tail(1, 0)
    assert tail.startswith("line ")
    assert tail.endswith("line 1999\n")
    assert STDERR_TAIL_BYTES_MAX - 20 < len(tail) <= STDERR_TAIL_BYTES_MAX
    path.write_bytes(b"\xff" * 10_000)
    assert 0 < len(logs.stderr_tail(1, 0).encode()) <= STDERR_TAIL_BYTES_MAX
    assert logs.stderr_tail(1, 9) == ""


def test_old_generations_are_pruned_and_files_of_the_user_stay(tmp_path: Path) -> None:
    logs = LogFolder(tmp_path)
    for generation in range(1, 26):
        logs.prepare(generation, 0)
    (tmp_path / "2/notes.txt").touch()
    (tmp_path / "events").mkdir()
    for _ in range(2):
        logs.prune(25)
    left = sorted((path.name for path in tmp_path.iterdir()), key=lambda name: (len(name), name))
    assert left == ["2", *map(str, range(6, 26)), "events"]
    assert [path.name for path in (tmp_path / "2").iterdir()] == ["notes.txt"]


def test_the_echo_copies_whole_lines_and_the_rest_at_the_end(tmp_path: Path) -> None:
    path, out = tmp_path / "log", io.StringIO()
    echo = Echo(path, 3, out)
    echo.poll()
    path.write_text("one\ntw")
    echo.poll()
    assert out.getvalue() == "[rank 3] one\n"
    with path.open("a") as file:
        file.write("o\nthree")
    echo.drain()
    echo.drain()
    assert out.getvalue() == "[rank 3] one\n[rank 3] two\n[rank 3] three\n"


def test_a_state_folder_has_one_launcher_at_a_time(tmp_path: Path) -> None:
    assert not is_held(tmp_path)
    folder = StateFolder(tmp_path, "jobs/llama")
    assert is_held(tmp_path)
    with pytest.raises(FailedPrecondition, match=f"jobs/llama already runs here under launcher {os.getpid()}") as error:
        StateFolder(tmp_path, "jobs/llama")
    assert error.value.reason is Reason.JOB_ALREADY_RUNNING
    folder.close()
    assert not is_held(tmp_path)
    StateFolder(tmp_path, "jobs/llama").close()


def test_the_generation_and_the_processes_are_read_back(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path, "jobs/llama")
    assert folder.load() == State(0, ())
    state = State(4, (Process(123, 456),))
    folder.save(state)
    assert folder.load() == state
    folder.close()


def test_processes_of_an_earlier_boot_are_forgotten_and_the_generation_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = StateFolder(tmp_path, "jobs/llama")
    monkeypatch.setattr("switchgear.launcher.state.boot_id", lambda: "before")
    folder.save(State(4, (Process(123, 456),)))
    monkeypatch.undo()
    assert folder.load() == State(4, ())
    folder.close()


async def everything(outbox: Outbox) -> list[pb.LauncherReport]:
    found = []
    while (report := await outbox.get()) is not None:
        found.append(report)
    return found


async def test_progress_gives_way_to_newer_progress_and_nothing_else_is_lost() -> None:
    outbox = Outbox()
    for generation in (1, 2, 3):
        outbox.put(pb.LauncherReport(generation=generation, progress=pb.Progress()))
        outbox.put(pb.LauncherReport(generation=generation, loaded=pb.Loaded()))
    first = await outbox.get()
    assert first is not None
    outbox.put_back(first)
    outbox.close()
    got = [f"{report.WhichOneof('kind')}{report.generation}" for report in await everything(outbox)]
    assert got == ["loaded1", "loaded2", "loaded3", "progress3"]


async def test_what_a_rank_has_done_is_told_before_its_end() -> None:
    outbox = Outbox()
    for generation in (1, 2):
        outbox.put(pb.LauncherReport(generation=generation, progress=pb.Progress()))
    outbox.put(pb.LauncherReport(generation=2, rank_exited=pb.RankExited()))
    outbox.put(pb.LauncherReport(generation=3, progress=pb.Progress()))
    outbox.close()
    got = [f"{report.WhichOneof('kind')}{report.generation}" for report in await everything(outbox)]
    assert got == ["progress2", "rank_exited2", "progress3"]


async def test_the_outbox_is_bounded() -> None:
    outbox = Outbox()
    for generation in (1, 2, 3):
        outbox.put(pb.LauncherReport(generation=generation, progress=pb.Progress()))
        outbox.put(pb.LauncherReport(generation=generation, loaded=pb.Loaded()))
    first = await outbox.get()
    assert first is not None
    outbox.put_back(first)
    for _ in range(REPORTS_MAX):
        outbox.put(pb.LauncherReport(attempt_stopped=pb.AttemptStopped()))
    outbox.close()
    got = [f"{report.WhichOneof('kind')}{report.generation}" for report in await everything(outbox)]
    assert got == [*["attempt_stopped0"] * REPORTS_MAX, "progress3"], "the oldest give way when the bound is reached"


def test_an_exception_about_a_full_disk_is_told_with_the_folder_of_the_logs_when_that_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = LogFolder(tmp_path)
    said = "OSError: [Errno 28] No space left on device"
    assert logs.full(said) == "", "this disk has room"
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0))
    assert [logs.full(said), logs.full("ValueError: no")] == [f" (the disk of the logs in {tmp_path} is full)", ""]
