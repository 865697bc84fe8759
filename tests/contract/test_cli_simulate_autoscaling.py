"""`switchgear simulate autoscaling`: what it prints, what it writes, and what it says about input that is wrong."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from switchgear.autoscaler.decision_log import Head, Record, read
from switchgear.cli.main import main


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Five minutes, three requests a second."""
    draw = random.Random(1)
    lines = [f"{at / 3:.3f},{draw.randint(50, 1500)},{draw.randint(20, 200)}" for at in range(900)]
    path = tmp_path / "requests.csv"
    path.write_text("t_s,input_tokens,output_tokens\n" + "\n".join(lines) + "\n")
    return path


def told(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    assert main(["simulate", "autoscaling", *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_one_policy_is_told_with_its_cost_beside_static_peak(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, "--trace", str(trace), "--policy", "hpa", "--target", "8", "--cold-start", "30")
    assert (found["policy"], found["target"], found["requests"]) == ("hpa", 8.0, 900)
    assert 0 <= found["attainment"] <= 1
    hours = found["static_peak_replicas"] * 899 / 3 / 3600
    assert found["ratio_to_static_peak"] == pytest.approx(found["gpu_hours"] / hours, rel=0.01)
    assert found["initial_replicas"] == found["static_peak_replicas"]
    assert {"starts", "failed_starts", "flaps_per_hour", "held_max", "ready_max", "causes", "ttft_s"} <= set(found)


def test_ours_runs_with_failing_starts_and_promises_of_its_own(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faults = ("--cold-jitter", "0.5", "--cold-fail", "0.1", "--throttle-at", "100", "--blind-at", "200")
    found = told(capsys, "--trace", str(trace), "--slo-ttft", "5", "--slo-e2e", "60", "--seed", "3", *faults)
    assert found["policy"] == "switchgear"
    assert found["attainment"] > 0.9


def test_all_policies_make_a_table_at_their_best_targets(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "autoscaling", "--trace", str(trace), "--policy", "all", "--duration", "60"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:5] == ["POLICY", "TARGET", "KEPT_PCT", "GPU_HOURS", "TO_STATIC"]
    names = ["switchgear", "static-peak", "hpa", "kpa", "keda", "ray-serve", "apa", "wva", "oracle"]
    assert [line.split()[0] for line in lines[2:]] == names
    found = told(capsys, "--trace", str(trace), "--policy", "keda,hpa:9", "--target", "best", "--duration", "60")
    assert [one["policy"] for one in found["policies"]] == ["keda", "hpa"]
    assert found["policies"][0]["attainment"] >= 0.99
    assert found["policies"][1]["target"] == 9


def test_processes_beside_each_other_find_the_same(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--trace", str(trace), "--policy", "hpa,keda,oracle", "--duration", "60")
    assert told(capsys, *options, "--jobs", "2") == told(capsys, *options)


def test_the_decision_log_can_be_replayed_and_is_a_trace(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.jsonl"
    told(capsys, "--trace", str(trace), "--policy", "switchgear", "--decisions", str(log))
    with log.open() as lines:
        entries = list(read(lines, "log"))
    assert isinstance(entries[0], Head)
    assert all(isinstance(entry, Record) for entry in entries[1:])
    assert main(["services", "replay", str(log)]) == 0
    assert "all the same" in capsys.readouterr().out
    assert told(capsys, "--trace", str(log), "--policy", "static-peak")["requests"] == 900


@pytest.mark.parametrize("silently", [[], ["--blind-silently"]])
def test_ours_holds_when_the_metrics_vanish_where_keda_goes_to_zero(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], silently: list[str]
) -> None:
    blind = ("--blind-at", "90", *silently)
    for name in ("switchgear", "keda"):
        told(
            capsys,
            "--trace",
            str(trace),
            "--policy",
            name,
            "--speed",
            "0.5",
            *blind,
            "--decisions",
            str(tmp_path / name),
        )
    desired = {}
    for name in ("switchgear", "keda"):
        with (tmp_path / name).open() as lines:
            records = [entry for entry in read(lines, name) if isinstance(entry, Record) and entry.now_s >= 90]
        desired[name] = [record.seen.bounded(record.decision.replicas) for record in records]
    assert desired["switchgear"] == sorted(desired["switchgear"])
    assert desired["keda"][-1] == 0


def test_a_model_without_tokens_has_slots_and_waits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "images.csv"
    path.write_text("t_s,service_s\n" + "".join(f"{20 * at},{5 + at % 3}\n" for at in range(60)))
    found = told(capsys, "--trace", str(path), "--policy", "ray-serve", "--slo-wait", "1", "--concurrency", "2")
    assert (found["static_peak_replicas"], found["attainment"]) == (1, 1.0)
    assert found["e2e_s"]["p50"] == pytest.approx(6.0, abs=0.01)


def test_rates_are_sampled_and_lend_their_lengths(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rates.csv"
    path.write_text("t_s,rate_rps\n0,100\n600,300\n")
    options = ("--trace", str(path), "--scale", "0.005", "--policy", "static-peak")
    assert told(capsys, *options)["requests"] == pytest.approx(1200, rel=0.15)
    assert told(capsys, *options, "--lengths", str(trace), "--speed", "2")["gpu_hours"] > 0


def test_a_service_that_no_fixed_fleet_can_hold_is_told(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(
        capsys, "--trace", str(trace), "--policy", "hpa,oracle,static-peak", "--max", "1", "--slo-ttft", "0.01"
    )
    assert found["static_peak_replicas"] is None
    assert [one["note"] for one in found["policies"]][1:] == [
        "no plan reaches the objective",
        "no fixed fleet reaches the objective",
    ]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--policy", "hps"], "there is no policy 'hps'; there are switchgear, static-peak, hpa"),
        (["--policy", "switchgear:5"], "policy switchgear has no target"),
        (["--policy", "hpa,hpa:3"], "named twice"),
        (["--policy", "hpa", "--target", "-1"], "the target is a number above 0"),
        (["--policy", "hpa,kpa", "--decisions", "x"], "--decisions is the log of one policy"),
        (["--start", "1000"], "it has them from 0 s to 300 s"),
        (["--scale", "2"], "--scale is for rates"),
        (["--min", "3", "--max", "2"], "--min 3 is above --max 2"),
        (["--target", "3"], "--target is for hpa, kpa"),
        (["--lengths", "x.csv"], "--lengths is for rates"),
        (["--throttle-told"], "give --throttle-at as well"),
        (["--blind-silently"], "give --blind-at as well"),
        (["--speed", "1e-9"], "are its times in seconds?"),
        (["--initial", "5", "--max", "2"], "--initial 5 is not within"),
        (["--step-ms", "0", "--step-ms-per-sequence", "0"], "an iteration takes time"),
    ],
)
def test_flags_that_are_wrong_are_refused_with_the_remedy(
    trace: Path, capsys: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    assert main(["simulate", "autoscaling", "--trace", str(trace), *options]) != 0
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (["--jobs", "0"], "'0' is no whole number from 1 on"),
        (["--cold-fail", "1.0"], "'1.0' is no number from 0 to 0.9"),
        (["--cold-start", "1e300"], "'1e300' is no number from 0 to 604800"),
        (["--cold-jitter", "1e6"], "'1e6' is no number from 0 to 3"),
        (["--max", "1e12"], "'1e12' is no whole number from 1 to 10000"),
    ],
)
def test_numbers_beyond_all_measure_are_refused(
    trace: Path, capsys: pytest.CaptureFixture[str], option: list[str], says: str
) -> None:
    with pytest.raises(SystemExit):
        main(["simulate", "autoscaling", "--trace", str(trace), *option])
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_processes_end_with_the_one_that_started_them(how: signal.Signals) -> None:
    command = (sys.executable, "-m", "switchgear.cli.main", "simulate", "autoscaling", "--trace", "synthetic:step")
    options = ("--policy", "kpa,apa,oracle", "--target", "best", "--jobs", "2")
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        told = process.stderr.readline()
        assert "looks for its best target" in told
        process.send_signal(how)
        # The pipe ends with the last process that has it.
        process.communicate(timeout=10)


def test_a_file_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "autoscaling", "--trace", "nowhere.csv"]) != 0
    assert "nowhere.csv" in capsys.readouterr().err
