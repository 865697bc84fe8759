"""Today's detectors over happenings that were recorded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from switchgear.cli.main import main
from switchgear.collector.detectors import Detection, Moment, silence_signal
from switchgear.collector.model import Event, Severity, Signal
from switchgear.collector.recording import happenings
from switchgear.collector.recording.files import Reel
from switchgear.collector.recording.happenings import Happening, What, read
from switchgear.collector.replay import Comparison, Outcome, Replay

NODE = "nodes/a"
BEGIN_NS = 1_700_000_000_000_000_000


def at(second: float) -> Moment:
    return Moment(BEGIN_NS + round(second * 1e9), 50.0 + second)


def xid(code: int, sequence: int, second: float) -> Event:
    return Event(
        NODE,
        "b",
        "kernel_log",
        sequence,
        at(second).unix_ns,
        "XID",
        3,
        code,
        f"Xid {code}",
        False,
        "0000:3b",
        {"x": "y"},
    )


def told(event: Event, second: float) -> list[Happening]:
    signals = Detection(10.0).told(event)
    return [
        Happening(What.TOLD, at(second), "run", NODE, event=event),
        *(Happening(What.RAISED, at(second), "run", NODE, signal=one) for one in signals),
    ]


def history() -> list[Happening]:
    """A node with two faults, one of which ends by itself, that is gone after 20 s and comes back after 60 s."""
    looks = [Happening(What.LOOKED, at(second), "run") for second in range(21, 720)]
    silence = Happening(What.RAISED, at(31), "run", NODE, signal=silence_signal(NODE, 11.0, at(31).unix_ns))
    return [
        Happening(What.STARTED, at(0), "run", silence_s=10.0),
        Happening(What.CONNECTED, at(1), "run", NODE, "b", "e"),
        *told(xid(31, 1, 2), 2),
        *told(xid(31, 1, 2), 3),  # sent again: its ack was lost
        Happening(What.GONE, at(20), "run", NODE),
        *looks[:11],
        silence,
        *looks[11:40],
        Happening(What.CONNECTED, at(60.5), "run", NODE, "b", "e"),
        *looks[40:],
        *told(xid(79, 2, 730), 730),
        Happening(What.CLEARED, at(740), "run", NODE, gpu=3, text="op says: reseated"),
    ]


def signals(outcomes: Iterable[Outcome]) -> list[tuple[str, Severity]]:
    return [(one.raised.kind, one.raised.severity) for one in outcomes if one.raised is not None]


def test_signals_and_verdicts_follow_as_they_did() -> None:
    outcomes = list(Replay().run(history()))
    assert signals(outcomes) == [
        ("XID", Severity.WARNING), ("NODE_SILENT", Severity.WARNING), ("GPU_LOST", Severity.FATAL)
    ]  # fmt: skip
    seconds = {one.time_unix_ns: (one.time_unix_ns - BEGIN_NS) / 1e9 for one in outcomes}
    assert [(seconds[one.time_unix_ns], one.verdict.after.value) for one in outcomes if one.verdict is not None] == [
        (2, "DEGRADED"),
        (31, "SILENT"),
        (60.5, "DEGRADED"),
        (602, "HEALTHY"),
        (730, "FAILED"),
        (740, "HEALTHY"),
    ]


def compared(outcomes: Iterable[Outcome]) -> Comparison:
    comparison = Comparison()
    for outcome in outcomes:
        comparison.take(outcome)
    return comparison


def test_nothing_differs_as_long_as_nothing_has_changed() -> None:
    assert compared(Replay().run(history())).differences() == []


@pytest.mark.parametrize(("silence_s", "changed"), [(20.0, ["evidence", "time_unix_ns"]), (100.0, None)])
def test_another_threshold_is_seen_on_history(silence_s: float, changed: list[str] | None) -> None:
    (difference,) = compared(Replay(silence_s).run(history())).differences()
    assert difference.then is not None
    assert difference.then.kind == "NODE_SILENT"
    assert (difference.today is None) == (changed is None)
    assert list(difference.changed) == (changed or [])


def test_what_was_judged_otherwise_then_is_told_with_what_changed() -> None:
    def as_then(one: Happening) -> Happening:
        milder = one.signal and replace(one.signal, severity=Severity.WARNING, action="")
        return replace(one, signal=milder) if one.signal and one.signal.kind == "GPU_LOST" else one

    lacking = [as_then(one) for one in history() if one.signal is None or one.signal.kind != "XID"]
    found = compared(Replay().run(lacking)).differences()
    assert [(one.then is None, one.today and one.today.kind, list(one.changed)) for one in found] == [
        (True, "XID", []),
        (False, "GPU_LOST", ["severity", "action"]),
    ]


def write(folder: Path, recorded: list[Happening]) -> None:
    reel = Reel(folder, "events", "run", happenings.SCHEMA, happenings.seal)
    half = len(recorded) // 2
    for part in (recorded[:half], recorded[half:]):
        reel.write(happenings.batch_of(part), BEGIN_NS)
    reel.end()


def test_happenings_come_back_from_a_file_as_they_were(tmp_path: Path) -> None:
    strange = xid(79, 3, 800)
    found: Signal = silence_signal(NODE, 11.0, 2**62 + 1, "scrape or export of its metrics")
    recorded = [
        *history(),
        Happening(What.TOLD, at(801), "run", NODE, event=replace(strange, gpu=None, code=None, text="\0é", detail={})),
        Happening(What.FOUND, at(802), "run", NODE, signal=found),
        Happening(What.HEARD, at(803), "run", NODE),
    ]
    write(tmp_path, recorded)
    (path,) = tmp_path.iterdir()
    back = list(read(path))
    assert [(one.what, one.moment, one.event, one.signal) for one in back] == [
        (one.what, one.moment, one.event, one.signal) for one in recorded
    ]
    assert list(Replay().run(back)) == list(Replay().run(recorded))


def test_the_same_files_give_the_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, history())
    arguments = [
        "replay",
        str(tmp_path),
        "--node",
        "a",
        "--from",
        "2023-11-14T22:13:30Z",
        "--to",
        "2023-11-14T22:14:00Z",
    ]
    printed = []
    for _ in range(2):
        assert main(arguments) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    silence = silence_signal(NODE, 11.0, at(31).unix_ns)
    assert printed[0].splitlines() == [
        f"2023-11-14T22:13:51.000000000Z  signal  {NODE}  NODE_SILENT  WARNING  {silence.evidence}  {silence.signal_id}",
        f"2023-11-14T22:13:51.000000000Z  verdict  {NODE}  DEGRADED -> SILENT  NODE_SILENT was told",
    ]


def test_a_silence_that_was_stored_after_the_end_of_a_part_is_no_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    late = [
        replace(one, moment=at(35)) if one.signal and one.signal.kind == "NODE_SILENT" else one for one in history()
    ]
    write(tmp_path, late)
    assert main(["replay", str(tmp_path), "--compare", "--to", "2023-11-14T22:13:53Z"]) == 0
    assert capsys.readouterr().err == "2 signals then, 2 today, 0 differences\n"


def test_compare_ends_as_diff_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, history())
    assert main(["replay", str(tmp_path), "--compare"]) == 0
    assert capsys.readouterr().err == "3 signals then, 3 today, 0 differences\n"
    assert main(["replay", str(tmp_path), "--compare", "--silence-s", "100"]) == 1
    assert "missing  nodes/a  NODE_SILENT" in capsys.readouterr().out
