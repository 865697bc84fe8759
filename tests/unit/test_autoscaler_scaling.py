"""The policies of one service from observation to observation, their log, and the log decided again."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from switchgear.autoscaler import replay
from switchgear.autoscaler.decision_file import DecisionFile, Tail, files
from switchgear.autoscaler.decision_log import Head, Record, head_line, read, record_line
from switchgear.autoscaler.journal import Journal
from switchgear.autoscaler.observation import Decision, Observation, Phase, ReplicaRow, Work
from switchgear.autoscaler.policies import scaler
from switchgear.autoscaler.scaling import Memory, Scaling, Shadow
from switchgear.core.errors import Invalid

CHAT = "inferenceServices/chat"
WALL_S = 1_700_000_000.0


def load(at: int, draw: random.Random, desired: int) -> Observation:
    """Five seconds of a service that is never quiet."""
    came = draw.randrange(0, 40)
    rows = tuple(
        ReplicaRow(str(number), Phase.READY, 100.0, running=draw.randrange(4), waiting=0, decode_tokens=300, busy_s=4.0, steps=90, prefill_tokens=200)
        for number in range(desired)
    )  # fmt: skip
    return Observation(
        5.0, desired, rows, max_replicas=6, queue=Work(0, 0, 0), arrived=Work(came, came * 50, came * 100),
        completed=Work(came, came * 50, came * 60), kept=came, broken=0, cold_start_s=30.0, unix_s=WALL_S + 5 * at,
    )  # fmt: skip


def run(scaling: Scaling, steps: int, *, begins: int = 10_000) -> list[str]:
    """Lines of a log; a file begins every `begins` decisions."""
    draw, desired, lines = random.Random(1), 2, list[str]()
    for at in range(steps):
        decided = scaling.decide(5.0 * at, load(at, draw, desired), mode="ACT", begins=at % begins == 0)
        if decided.head is not None:
            lines.append(head_line(decided.head))
        lines.append(record_line(decided.record))
        desired = scaling.wanted
    return lines


def test_a_log_is_decided_again_to_the_same_decisions_across_its_files() -> None:
    lines = run(Scaling(CHAT, None, 0.0, WALL_S), 60, begins=25)
    assert sum(line.startswith('{"log"') for line in lines) == 3
    outcome = replay.again(read(lines, "log"))
    assert (outcome.decisions, outcome.difference) == (60, None)
    # Each file can be replayed by itself.
    second = [at for at, line in enumerate(lines) if line.startswith('{"log"')][1]
    assert replay.again(read(lines[second:], "log")).difference is None


def test_the_first_decision_that_differs_is_named() -> None:
    head, *records = read(run(Scaling(CHAT, None, 0.0, WALL_S), 5), "log")
    third = records[2]
    assert isinstance(third, Record)
    records[2] = replace(third, decision=replace(third.decision, replicas=77))
    outcome = replay.again([head, *records])
    assert outcome.difference is not None
    assert (outcome.difference.number, outcome.difference.logged.replicas) == (3, 77)
    records[2] = replace(third, decision=replace(third.decision, evidence={"moon": 1.0}))
    figures = replay.again([head, *records]).difference
    assert figures is not None
    assert ("moon", 1.0, None) in figures.figures


def test_another_policy_on_the_log_says_what_it_would_have_wanted() -> None:
    entries = list(read(run(Scaling(CHAT, None, 0.0, WALL_S), 13), "log"))
    outcome = replay.instead(entries, scaler("static:4"))
    assert (outcome.span_s, outcome.wanted_replica_s) == (60.0, 240.0)
    assert [(at_s, one.replicas) for at_s, one in outcome.changes] == [(0.0, 4)]


def test_a_shadow_sees_the_same_decides_nothing_and_is_priced() -> None:
    alone, beside = Scaling(CHAT, None, 0.0, WALL_S), Scaling(CHAT, None, 0.0, WALL_S)
    beside.follow("static:4", WALL_S, 2)
    plain, shadowed = run(alone, 13), run(beside, 13)
    records = [entry for entry in read(shadowed, "log") if isinstance(entry, Record)]
    assert [one.decision for one in records] == [one.decision for one in read(plain, "log") if isinstance(one, Record)]
    assert {one.shadow.replicas for one in records if one.shadow} == {4}
    assert beside.shadow is not None
    assert (beside.shadow.replica_s, beside.shadow.live_replica_s) == (
        240.0,
        sum(5.0 * one.seen.desired for one in records[1:]),
    )
    beside.follow("", WALL_S, 2)
    assert beside.shadow is None
    beside.follow("no-such-policy", WALL_S, 2)
    assert beside.shadow is None


def test_the_clock_of_a_policy_goes_on_over_a_restart_and_never_back() -> None:
    first = Scaling(CHAT, None, 1000.0, WALL_S)
    draw = random.Random(1)
    first.decide(1005.0, load(0, draw, 1), mode="ACT", begins=True)
    memory = first.memory(1005.0, WALL_S + 5)
    assert memory.now_s == 1005.0
    # The machine was off for an hour, and its clock began anew; then the wall clock was set back.
    after = Scaling(CHAT, memory, 3.0, WALL_S + 3605)
    assert after.decide(4.0, load(1, draw, 1), mode="ACT", begins=True).record.now_s == pytest.approx(4606.0)
    back = Scaling(CHAT, memory, 3.0, WALL_S - 3600)
    assert back.decide(4.0, load(1, draw, 1), mode="ACT", begins=True).record.now_s == pytest.approx(1006.0)
    # What another version has learned may be nonsense to this one.
    odd = Scaling(CHAT, Memory("switchgear", {"load": 7, "steps": None}, 9.0, WALL_S), 3.0, WALL_S)
    odd.decide(4.0, load(1, draw, 1), mode="ACT", begins=True)
    # What another policy has learned is not ours.
    assert Scaling(CHAT, Memory("other", {}, 9e9, 0.0), 3.0, WALL_S).memory(3.0, WALL_S).now_s == 3.0


def test_a_decision_is_due_at_its_interval_or_when_something_waits_for_it() -> None:
    scaling = Scaling(CHAT, None, 0.0, WALL_S)
    assert scaling.due(0.0, urgent=False)
    scaling.decide(0.0, load(0, random.Random(1), 1), mode="ACT", begins=True)
    assert not scaling.due(1.0, urgent=False)
    assert scaling.due(1.0, urgent=True)
    assert scaling.due(5.0, urgent=False)


def test_files_are_bounded_in_size_and_number_and_each_begins_with_its_head(tmp_path: Path) -> None:
    log, tail = DecisionFile(tmp_path / "chat", bytes_max=2000, files_max=3), Tail(tmp_path / "chat")
    record = next(one for one in read(run(Scaling(CHAT, None, 0.0, WALL_S), 1), "log") if isinstance(one, Record))
    seen = list[str]()
    for at in range(20):
        log.append(replace(record, now_s=float(at)), Head(CHAT, "switchgear") if log.needs_head else None)
        seen += tail.lines()
    assert [path.suffix for path in files(tmp_path / "chat")] == [".gz", ".gz", ".jsonl"]
    assert [one.now_s for one in read(seen, "log") if isinstance(one, Record)] == [float(at) for at in range(20)]
    kept = list(read(Tail(tmp_path / "chat").lines(), "log"))
    assert isinstance(kept[0], Head)
    assert sum(isinstance(one, Head) for one in kept) == 3
    assert kept[-1] == replace(record, now_s=19.0)
    with pytest.raises(ValueError, match="begins with its head"):
        DecisionFile(tmp_path / "other").append(record, None)


def test_a_line_that_is_being_written_is_read_when_it_is_whole(tmp_path: Path) -> None:
    path, tail = tmp_path / "00000001.jsonl", Tail(tmp_path)
    path.write_text("one\ntw")
    assert list(tail.lines()) == ["one"]
    path.write_text("one\ntwo\n")
    assert list(tail.lines()) == ["two"]
    assert list(Tail(tmp_path / "nothing").lines()) == []
    # A service of the same name begins at the first file again.
    path.rename(tmp_path / "00000002.jsonl")
    assert list(tail.lines()) == ["one", "two"]
    (tmp_path / "00000002.jsonl").unlink()
    path.write_text("three\n")
    assert list(tail.lines()) == ["three"]


class Broken:
    name, interval_s = "broken", 5.0

    def decide(self, now_s: float, seen: Observation) -> Decision:
        raise ZeroDivisionError("by nought")


def test_a_shadow_that_cannot_decide_costs_the_live_policy_nothing() -> None:
    scaling = Scaling(CHAT, None, 0.0, WALL_S)
    scaling.shadow = Shadow("broken", Broken(), WALL_S, Decision(2, "NEW", ""))
    run(scaling, 3)
    assert scaling.shadow.decision == Decision(2, "FAILED", "could not decide: ZeroDivisionError by nought")


async def test_what_cannot_be_written_is_counted_and_the_next_decision_begins_a_file(tmp_path: Path) -> None:
    lost = list[int]()
    (tmp_path / "log").touch()  # a file where the folder should be
    journal = Journal(tmp_path / "log", lambda: lost.append(1))
    scaling, draw = Scaling(CHAT, None, 0.0, WALL_S), random.Random(1)
    for at in range(4):
        if at == 2:
            (tmp_path / "log").unlink()
        begins = journal.begins(CHAT)
        await journal.append({CHAT: scaling.decide(5.0 * at, load(at, draw, 1), mode="ACT", begins=begins)})
    assert len(lost) == 2
    (path,) = files(tmp_path / "log" / "chat")
    assert replay.again(read(path.read_text().splitlines(), "log")).decisions == 2
    await journal.keep([])
    assert files(tmp_path / "log" / "chat") == []


async def test_a_full_disk_takes_no_file_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = DecisionFile(tmp_path, bytes_max=2000, files_max=3)
    record = next(one for one in read(run(Scaling(CHAT, None, 0.0, WALL_S), 1), "log") if isinstance(one, Record))
    while len(files(tmp_path)) < 3:
        log.append(record, Head(CHAT, "switchgear") if log.needs_head else None)
    before = files(tmp_path)
    log.close()
    opened = Path.open

    def full(path: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
        file = opened(path, mode, *rest, **options)
        if "x" not in mode:
            return file
        file.close()
        return opened(Path("/dev/full"), "w", **options)

    monkeypatch.setattr(Path, "open", full)
    for _ in range(5):
        with pytest.raises(OSError, match="No space left"):
            log.append(record, Head(CHAT, "switchgear"))
    assert files(tmp_path) == before


def test_what_was_being_compressed_when_the_process_was_killed_is_no_file_of_the_log(tmp_path: Path) -> None:
    (tmp_path / ".00000001.jsonl.gz").write_bytes(b"half of it")
    (tmp_path / "copy.jsonl.gz").touch()
    log = DecisionFile(tmp_path)
    log.append(next(one for one in read(run(Scaling(CHAT, None, 0.0, WALL_S), 1), "log") if isinstance(one, Record)), Head(CHAT, "switchgear"))  # fmt: skip
    assert [path.name for path in files(tmp_path)] == ["00000001.jsonl"]
    assert len(list(Tail(tmp_path).lines())) == 2


def test_a_decision_that_cannot_be_a_line_ends_its_file(tmp_path: Path) -> None:
    log, head = DecisionFile(tmp_path), Head(CHAT, "switchgear")
    record = next(one for one in read(run(Scaling(CHAT, None, 0.0, WALL_S), 1), "log") if isinstance(one, Record))
    log.append(record, head)
    with pytest.raises(ValueError, match="JSON compliant"):
        log.append(replace(record, now_s=math.nan), None)
    assert log.needs_head


def test_a_log_of_another_policy_is_decided_again_by_that_one() -> None:
    policy, lines, desired = scaler("hpa:8"), [head_line(Head(CHAT, "hpa:8"))], 2
    for at in range(10):
        seen = load(at, random.Random(at), desired)
        decision = policy.decide(5.0 * at, seen)
        lines.append(record_line(Record(5.0 * at, seen, decision)))
        desired = seen.bounded(decision.replicas)
    outcome = replay.again(read(lines, "log"))
    assert (outcome.decisions, outcome.difference) == (10, None)
    with pytest.raises(Invalid, match="no policy 'oracle'"):
        replay.again(read([head_line(Head(CHAT, "oracle")), *lines[1:]], "log"))


@pytest.mark.parametrize(
    ("text", "why"), [("\n \n", "is empty"), ("NaN", "NaN is no number"), ("1e999", "is no number")]
)
def test_what_is_no_log_is_refused_and_not_decided(text: str, why: str) -> None:
    lines = run(Scaling(CHAT, None, 0.0, WALL_S), 1)
    odd = text.split("\n") if "\n" in text else [lines[0], lines[1].replace('"interval_s":5.0', f'"interval_s":{text}')]
    with pytest.raises(Invalid, match=why):
        list(read(odd, "log"))


def changed(memory: Any) -> Iterator[Any]:
    """With one thing in it that no policy writes, at each place."""
    if isinstance(memory, dict):
        for key, value in memory.items():
            yield {other: one for other, one in memory.items() if other != key}
            yield from ({**memory, key: one} for one in changed(value))
    elif isinstance(memory, list):
        for at in range(min(2, len(memory))):
            yield from ([*memory[:at], one, *memory[at + 1 :]] for one in changed(memory[at]))
    yield from ("7", [None, 7], math.nan, 10**400)


def test_a_memory_of_another_shape_begins_anew() -> None:
    first = Scaling(CHAT, None, 0.0, WALL_S)
    run(first, 30)
    kept = first.memory(150.0, WALL_S + 150)
    draw, tried = random.Random(2), 0
    for learned in changed(kept.learned):
        if not isinstance(learned, dict):
            continue
        scaling = Scaling(CHAT, replace(kept, learned=learned), 0.0, WALL_S)
        scaling.decide(5.0, load(1, draw, 2), mode="ACT", begins=True)
        json.dumps(scaling.memory(5.0, WALL_S).learned, allow_nan=False)
        tried += 1
    assert tried > 100
    again = Scaling(CHAT, kept, 0.0, WALL_S).memory(0.0, WALL_S + 150).learned
    assert again == kept.learned
    assert isinstance(kept.learned["experts"], dict)
    other = {**kept.learned, "experts": {**kept.learned["experts"], "rules": 1}}
    assert (
        Scaling(CHAT, replace(kept, learned=other), 0.0, WALL_S).memory(0.0, WALL_S).learned["means"]
        == kept.learned["means"]
    )


def test_a_policy_that_could_not_decide_begins_a_file_when_it_can() -> None:
    scaling, draw = Scaling(CHAT, None, 0.0, WALL_S), random.Random(1)
    scaling.decide(0.0, load(0, draw, 2), mode="ACT", begins=True)
    with pytest.raises(TypeError):
        scaling.decide(5.0, replace(load(1, draw, 2), interval_s=None), mode="ACT", begins=False)  # type: ignore[arg-type]
    assert scaling.decide(10.0, load(2, draw, 2), mode="ACT", begins=False).head is not None


def test_the_first_replica_is_asked_for_by_what_is_held_also_when_not_all_is_seen() -> None:
    scaling, lost = Scaling(CHAT, None, 0.0, WALL_S), "a router has gone a moment ago"
    idle = Observation(5.0, 0, (), max_replicas=6, queue=Work(0, 0, 0), arrived=Work(0), completed=Work(0), blind=lost)
    assert scaling.decide(0.0, idle, mode="ACT", begins=True).record.decision.replicas == 0
    first = scaling.decide(5.0, replace(idle, queue=Work(2, 100, 100)), mode="ACT", begins=False).record.decision
    assert (first.replicas, first.cause) == (1, "HELD")
    assert lost in first.text
    # Beyond the first nothing is known.
    later = replace(idle, desired=1, replicas=(ReplicaRow("1", Phase.STARTING),), queue=Work(50, 5000, 5000))
    assert scaling.decide(10.0, later, mode="ACT", begins=False).record.decision.replicas == 1
    full = replace(idle, queue=Work(2, 100, 100), gpu_budget=1, gpus_per_replica=2)
    assert Scaling(CHAT, None, 0.0, WALL_S).decide(0.0, full, mode="ACT", begins=True).record.decision.replicas == 0


def test_a_process_that_begins_again_and_again_does_not_push_out_what_was_logged_before(tmp_path: Path) -> None:
    record = next(one for one in read(run(Scaling(CHAT, None, 0.0, WALL_S), 1), "log") if isinstance(one, Record))
    for at in range(130):
        log = DecisionFile(tmp_path)
        log.append(replace(record, now_s=float(at)), Head(CHAT, "switchgear"))
        log.close()
    assert len(files(tmp_path)) == 100
    # What is too much on disk goes all the same.
    files(tmp_path)[50].write_bytes(bytes(17 << 20))
    DecisionFile(tmp_path).append(record, Head(CHAT, "switchgear"))
    assert [path.name.partition(".")[0] for path in files(tmp_path)] == [f"{number:08d}" for number in range(82, 132)]
