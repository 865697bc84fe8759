"""Many replicas, scrape after scrape, made into what a policy sees."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from switchgear.autoscaler.adapters.fleet import UNSEEN_MAX, Fleet
from switchgear.autoscaler.adapters.scrape import Reading, read
from switchgear.autoscaler.adapters.watched import STILL_S
from switchgear.autoscaler.observation import Observation, Work

PAGES = Path(__file__).parents[1] / "pages"


def vllm(
    *,
    waiting: int = 0,
    running: int = 2,
    done: int = 0,
    prompt: int = 0,
    generated: int = 0,
    kv: str = "kv_cache_usage_perc",
) -> str:
    """A page of vLLM with what sizing needs."""
    return f"""\
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{{model_name="m"}} {waiting}
vllm:num_requests_running{{model_name="m"}} {running}
vllm:{kv}{{model_name="m"}} 0.5
vllm:request_success_total{{finished_reason="stop",model_name="m"}} {done}
vllm:prompt_tokens_total{{model_name="m"}} {prompt}
vllm:generation_tokens_total{{model_name="m"}} {generated}
vllm:time_to_first_token_seconds_bucket{{le="0.5",model_name="m"}} {done}
vllm:time_to_first_token_seconds_bucket{{le="+Inf",model_name="m"}} {done}
vllm:time_to_first_token_seconds_count{{model_name="m"}} {done}
vllm:time_to_first_token_seconds_sum{{model_name="m"}} {done * 0.2}
"""


def steps(*found: dict[str, str | Reading], every_s: float = 10.0) -> list[Observation]:
    """Observations of a fleet whose pages are these, one after the other. A page with one line is why there is none."""
    fleet = Fleet()
    return [
        fleet.step(
            at * every_s,
            {name: read(got) if isinstance(got, str) and "\n" in got else got for name, got in pages.items()},
        )
        for at, pages in enumerate(found)
    ]


def test_arrivals_are_what_ended_plus_the_growth_of_what_is_inside() -> None:
    first, second = steps(
        {"a": vllm(done=10, prompt=1000), "b": vllm(done=20, prompt=2000)},
        {"a": vllm(done=14, prompt=1500, waiting=3), "b": vllm(done=26, prompt=2500, running=1, generated=60)},
    )
    assert (first.arrived, first.completed) == (None, None)
    assert "first scrape" in first.blind
    assert second.interval_s == 10
    assert second.completed == Work(10, 1000, 60)
    assert second.arrived == Work(12, 1200)  # 10 ended, 3 more wait in a, 1 less runs in b
    assert second.ttft_s == ((0.5, 10),)
    assert second.blind == ""


def test_where_the_server_counts_arrivals_they_are_taken() -> None:
    page = (PAGES / "tgi.txt").read_text()
    _, second = steps({"a": page}, {"a": page.replace("tgi_request_count 12", "tgi_request_count 19")})
    assert second.arrived is not None
    assert second.arrived.requests == 7


def test_models_without_tokens_tell_the_seconds_that_replicas_worked() -> None:
    page = (PAGES / "triton.txt").read_text()
    later = page.replace("success{model=\"resnet\",version=\"1\"} 100", "success{model=\"resnet\",version=\"1\"} 110").replace("5000000", "8000000").replace("1000000", "2000000")  # fmt: skip
    _, second = steps({"a": page}, {"a": later})
    assert second.completed == Work(10, None, None, pytest.approx(2.0))


def test_a_replica_that_misses_once_is_taken_to_do_as_the_others_and_nothing_is_counted_twice() -> None:
    start = {"a": vllm(done=0), "b": vllm(done=0)}
    _, missed, back = steps(start, {"a": vllm(done=10), "b": "timed out"}, {"a": vllm(done=20), "b": vllm(done=20)})
    assert missed.completed == Work(20, 0, 0)
    assert missed.blind == ""
    assert [(one.name, one.running) for one in missed.replicas] == [("a", 2), ("b", None)]
    assert back.completed == Work(20, 0, 0)  # b did 20 in two intervals, so 10 of them now
    assert [one.busy_s for one in back.replicas] == [10, 10]


def test_a_replica_of_few_that_misses_twice_makes_it_blind_and_says_why() -> None:
    start = {"a": vllm(), "b": vllm()}
    *_, twice, back = steps(start, {"a": vllm(), "b": "timed out"}, {"a": vllm(), "b": "timed out"}, start)
    assert twice.blind == "1 of 2 replicas do not tell: timed out (b)"
    assert back.blind == ""


def test_one_of_many_that_misses_is_filled_in_by_the_others() -> None:
    count = round(1 / UNSEEN_MAX)
    all_well = {f"r{n}": vllm(done=0) for n in range(count)}
    dead = [{**{name: vllm(done=9 * at) for name in all_well}, "r0": "timed out"} for at in (1, 2, 3)]
    *_, last = steps(all_well, *dead)
    assert last.blind == ""
    assert last.completed == Work(9 * count, 0, 0)


def test_when_nobody_tells_it_is_blind_at_once_and_nothing_reads_as_zero() -> None:
    _, none = steps({"a": vllm(), "b": vllm()}, {"a": "it answers 500", "b": "timed out"})
    assert none.blind == "2 of 2 replicas do not tell: it answers 500, and others (a, b)"
    assert (none.arrived, none.completed) == (None, None)
    assert all(one.running is None for one in none.replicas)


def test_a_series_that_vanished_keeps_it_blind_until_it_is_back() -> None:
    page = vllm(waiting=4)
    without = "".join(line for line in page.splitlines(keepends=True) if "num_requests_waiting" not in line)
    _, _, gone, still_gone, back, well = steps(
        {"a": page}, {"a": page}, {"a": without}, {"a": without}, {"a": page}, {"a": page}
    )
    assert gone.blind == still_gone.blind == "vllm:num_requests_waiting vanished (a)"
    assert gone.replicas[0].waiting is None
    assert back.blind == "vllm:num_requests_waiting is back and counts from now on (a)"
    assert well.blind == ""


@pytest.mark.parametrize(
    "name", ["num_requests_running", "generation_tokens_total", "time_to_first_token_seconds_count"]
)
def test_a_series_without_a_figure_keeps_it_blind_though_its_name_is_there(name: str) -> None:
    """NaN is no zero: what is not known is not idle."""
    page = vllm(done=3, generated=7)
    latency = 'vllm:e2e_request_latency_seconds_{}{{model_name="m"}} 3\n'
    page += latency.format("count") + latency.format(
        "sum"
    )  # a latency is enough for sizing, so that nothing else is missed
    without = re.sub(rf"(vllm:{name}\{{.*\}}) .*", r"\1 NaN", page)
    _, well, unknown, back = steps({"a": page}, {"a": page}, {"a": without}, {"a": page})
    told = name.removesuffix("_count")
    assert (well.blind, unknown.blind) == ("", f"vllm:{told} is there and has no figure that can be read (a)")
    assert f"vllm:{told} is back" in back.blind


def test_a_renamed_series_is_used_under_its_new_name_and_named() -> None:
    _, renamed, well = steps({"a": vllm(kv="gpu_cache_usage_perc")}, {"a": vllm()}, {"a": vllm()})
    assert renamed.blind == "vllm:gpu_cache_usage_perc vanished; vllm:kv_cache_usage_perc is there now and is used (a)"
    assert renamed.replicas[0].kv_use == 0.5
    assert well.blind == ""


def test_a_better_name_beside_the_old_one_is_no_doubt() -> None:
    page = (PAGES / "sglang.txt").read_text()
    young = "".join(line for line in page.splitlines(keepends=True) if "realtime_tokens" not in line)
    _, better, well = steps({"a": young}, {"a": page}, {"a": page})
    assert better.blind == ""
    assert better.replicas[0].decode_tokens is None  # it counts from another time than the old one
    assert well.replicas[0].decode_tokens == 0


def test_counters_that_vanished_and_came_back_do_not_count_their_whole_past() -> None:
    page = (PAGES / "tgi.txt").read_text()
    empty = read("", "tgi")
    *_, gone, back, well = steps({"a": page}, {"a": page}, {"a": empty}, {"a": page}, {"a": page})
    assert "tgi_request_success vanished" in gone.blind
    assert back.completed is None
    assert "tgi_request_success is back" in back.blind
    assert (well.blind, well.completed) == ("", Work(0, 0, 0))


def test_a_page_that_lacks_what_its_server_always_tells_is_blind_all_the_time() -> None:
    poor = "vllm:kv_cache_usage_perc 0.5\n"
    _, second, third = steps({"a": vllm()}, {"a": vllm(), "b": poor}, {"a": vllm(), "b": poor})
    assert second.blind == third.blind
    assert second.blind.startswith("its page lacks vllm:num_requests_waiting, vllm:num_requests_running")
    assert second.blind.endswith("(b)")


def test_a_server_that_tells_nothing_before_its_first_request_is_idle_not_blind() -> None:
    page = (PAGES / "tgi.txt").read_text()
    _, second = steps({"a": page}, {"a": page, "b": read("", "tgi")})
    assert second.blind == ""


def test_a_replica_that_went_is_gone_and_one_that_came_brings_its_requests() -> None:
    _, second = steps({"a": vllm(running=2), "old": vllm(running=5)}, {"a": vllm(running=2), "new": vllm(running=3)})
    assert [one.name for one in second.replicas] == ["a", "new"]
    assert second.arrived is not None
    assert second.arrived.requests == 3
    assert second.blind == ""


def test_a_replica_that_hangs_is_said_after_a_minute() -> None:
    seen = steps(*[{"a": vllm(running=2)}] * 9)
    assert [bool(one.blind) for one in seen] == [True, *[False] * 5, True, True, True]
    assert f"nothing for {STILL_S:.0f} s" in seen[6].blind


def test_a_page_from_a_store_whose_times_stand_still_is_said_after_a_minute() -> None:
    page = (PAGES / "openmetrics.txt").read_text()
    newer = page.replace("1700000000.5", "1700000080.5")
    seen = steps(*[{"a": page}] * 8, {"a": newer})
    assert [bool(one.blind) for one in seen] == [True, *[False] * 5, True, True, False]
    assert "stand still for 60 s" in seen[6].blind


def test_another_server_in_the_place_of_one_begins_anew() -> None:
    _, other, later = steps(
        {"a": vllm()}, {"a": (PAGES / "tgi.txt").read_text()}, {"a": (PAGES / "tgi.txt").read_text()}
    )
    assert (other.blind, other.completed) == ("", None)
    assert (later.blind, later.completed) == ("", Work(0, 0, 0))


def test_what_a_policy_can_do_without_is_no_reason_to_hold() -> None:
    page = (PAGES / "vllm.txt").read_text()
    poorer = "".join(
        line for line in page.splitlines(keepends=True) if "cache_config" not in line and "sleep" not in line
    )
    _, second = steps({"a": page}, {"a": poorer})
    assert second.blind == ""


def test_a_gateway_tells_the_queue_and_is_missed_when_it_is_gone() -> None:
    fleet, front = Fleet(), read((PAGES / "llm_d.txt").read_text())
    assert fleet.step(0, {"a": read(vllm())}, front).queue == Work(6)
    assert fleet.step(10, {"a": read(vllm())}, "timed out").blind == ""
    lost = fleet.step(20, {"a": read(vllm())}, "timed out")
    assert (lost.queue, lost.blind) == (None, "the gateway does not tell (timed out)")


def test_an_empty_service_is_seen_as_such() -> None:
    (nobody,) = steps({})
    assert (nobody.replicas, nobody.blind, nobody.arrived) == ((), "", None)


def test_blind_text_names_three_replicas_at_most() -> None:
    *_, last = steps({f"r{n}": vllm() for n in range(6)}, {f"r{n}": "no" for n in range(6)})
    assert last.blind == "6 of 6 replicas do not tell: no (r0, r1, r2 and 3 more)"


def test_the_engine_is_told_with_what_fits_into_it() -> None:
    (first,) = steps({"a": (PAGES / "vllm.txt").read_text()})
    assert (first.engine.name, first.engine.version, first.engine.kv_tokens) == ("vllm", "0.11 or newer", 16_000)
    assert Fleet("tgi").step(0, {}).engine.name == "tgi"
