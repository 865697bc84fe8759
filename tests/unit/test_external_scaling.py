"""Services that others run: what is made of a look at them, and what is published of it."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from engine_pages import EnginePage

from switchgear.autoscaler.adapters import scrape
from switchgear.autoscaler.adapters.scrape import Reading
from switchgear.autoscaler.external import prometheus, settings, state
from switchgear.autoscaler.external.board import Board, Published
from switchgear.autoscaler.external.deciding import Decided, Deciding
from switchgear.autoscaler.external.main import deciding_of
from switchgear.autoscaler.external.presence import Look, NoPage
from switchgear.autoscaler.external.settings import Service
from switchgear.autoscaler.external.starts import Starts
from switchgear.autoscaler.observation import Phase
from switchgear.core.clock import ManualClock
from switchgear.core.errors import FailedPrecondition, Invalid, NotFound, Unavailable

REFUSED, TIMEOUT = NoPage("nothing listens there", off=True), NoPage("no whole answer within 5 s")


def service(**keys: object) -> Service:
    given = {"name": "chat", "endpoints": ("http://h1:8000/metrics",), "max_replicas": 8, "policy": "static:2"}
    return settings.of_flags(given | keys).service[0]


def reading(page: EnginePage) -> Reading:
    return scrape.read(str(page))


class World:
    """A service of vLLM pages under virtual time; ten seconds a look."""

    def __init__(self, names: str, **keys: object) -> None:
        self.service = service(**keys)
        self.deciding = Deciding(self.service, None)
        self.pages = {name: EnginePage() for name in names}
        self.lost: dict[str, NoPage] = {}
        self.look_with = Look({})
        self.now_s = 0.0

    def look(self, seconds: float = 10.0) -> Decided:
        self.now_s += seconds
        found = {name: self.lost.get(name) or reading(page) for name, page in self.pages.items()}
        return self.deciding.step(self.now_s, 1.7e9 + self.now_s, replace(self.look_with, found=found))

    def state(self) -> state.State:
        return self.deciding.state(self.now_s, 1.7e9 + self.now_s)


def test_a_first_look_decides_nothing_and_takes_what_is_there_for_what_is_desired() -> None:
    world = World("ab")
    first, second = world.look(), world.look()
    assert (first.record, first.desired, first.current) == (None, 2, 2)
    assert second.record is not None
    assert (second.record.seen.desired, second.blind) == (2, "")


def test_what_is_asked_for_starts_until_it_answers_and_its_time_is_measured() -> None:
    world = World("a", policy="static:3", cold_start_s=90)
    world.look()
    assert world.look().desired == 3
    seen = world.look().record.seen  # type: ignore[union-attr]
    starting = [row for row in seen.replicas if row.phase is Phase.STARTING]
    assert [row.age_s for row in starting] == [10.0, 10.0]
    assert (seen.cold_start_s, seen.cold_starts_s) == (90, ())
    world.pages["b"] = EnginePage()
    seen = world.look().record.seen  # type: ignore[union-attr]
    assert seen.cold_starts_s == (20.0,)
    assert [row.phase for row in seen.replicas] == [Phase.READY, Phase.READY, Phase.STARTING]


def test_a_replica_that_is_replaced_is_asked_for_when_the_old_one_is_gone() -> None:
    world = World("ab")
    world.look(), world.look()
    del world.pages["a"]
    assert [row.name for row in world.look().record.seen.replicas] == ["b", "starting-0"]  # type: ignore[union-attr]
    world.pages["c"] = EnginePage()
    assert world.look(40).record.seen.cold_starts_s == (40.0,)  # type: ignore[union-attr]


def test_a_wish_that_is_taken_back_is_the_youngest() -> None:
    starts = Starts()
    starts.want(0, 2, 1)
    starts.want(5, 4, 1)
    assert starts.asked_s == (0, 5, 5)
    starts.want(9, 2, 1)
    assert starts.asked_s == (0,)


def test_listed_replicas_that_stop_answering_blind_and_hold_whatever_the_policy_says() -> None:
    world = World("abc", policy="static:1")
    kept = replace(world.state(), desired=3, answered=("a", "b", "c"))
    world.deciding = Deciding(world.service, kept)
    world.lost = {"a": TIMEOUT, "b": TIMEOUT}
    world.look()
    told = world.look()
    assert told.desired == 3
    assert "no whole answer within 5 s" in told.blind
    assert told.text == f"stays at 3, since it is not seen: {told.blind}"
    world.lost = {}
    seen = world.look()
    assert (seen.desired, seen.blind) == (1, "")


def test_in_a_fixed_list_what_refuses_the_connection_is_off_as_long_as_others_answer() -> None:
    world = World("abc", policy="static:2")
    world.look_with = Look({}, certain=False)
    world.look(), world.look()
    world.lost = {"c": REFUSED}
    told = world.look()
    assert (told.blind, told.current, len(told.record.seen.replicas)) == ("", 2, 2)  # type: ignore[union-attr]
    world.lost = dict.fromkeys("abc", REFUSED)
    world.look()
    assert "nothing listens there" in world.look().blind


def test_a_replica_that_was_listed_before_it_answers_is_starting_for_a_while() -> None:
    world = World("ab")
    world.lost = {"b": REFUSED}
    assert [world.look(100).blind for _ in range(7)][1:] == [""] * 6
    world.look(100)
    assert "has never answered in the 700 s since it is listed" in world.look(0.5).blind


def test_a_replica_that_comes_and_answers_with_an_error_is_starting_for_a_while() -> None:
    """Prometheus' targets are there before their engine listens, and some engines answer 503 while they load."""
    world = World("ab", policy="static:3")
    world.look(), world.look()
    world.pages["c"], world.lost = EnginePage(), {"c": NoPage("Prometheus cannot scrape it")}
    told = [world.look(100) for _ in range(6)][-1]
    assert (told.blind, told.current, told.desired) == ("", 2, 3)
    assert [row.phase for row in told.record.seen.replicas] == [Phase.READY, Phase.READY, Phase.STARTING]  # type: ignore[union-attr]
    world.look(100), world.look(100)
    assert "has never answered in the 800 s since it is listed: Prometheus cannot scrape it" in world.look(100).blind
    world.lost = {}
    world.look()
    world.lost = {"c": NoPage("it answers 503")}
    world.look()
    assert "it answers 503 (c)" in world.look().blind


def test_one_that_answered_and_is_gone_unasked_lets_none_go_until_it_is_replaced_or_long_gone() -> None:
    world = World("abc", policy="static:3")
    world.look(), world.look()
    world.deciding = Deciding(service(policy="static:1"), replace(world.state(), policy="static:1"))
    world.look()
    gone = world.pages.pop("c")
    told = world.look()
    assert (told.blind, told.current, told.desired) == ("", 2, 3)
    assert "one that answered is gone" in told.text
    assert world.look(500).desired == 3
    world.pages["d"] = gone
    assert world.look().desired == 1


def test_what_left_the_list_is_not_waited_for_for_ever() -> None:
    world = World("abc", policy="static:3")
    world.look(), world.look()
    world.deciding = Deciding(service(policy="static:1"), replace(world.state(), policy="static:1"))
    world.look()
    del world.pages["c"]
    assert world.look().desired == 3
    assert world.look(601).desired == 1


def test_when_all_that_answered_are_gone_at_once_none_counts_as_taken_away() -> None:
    world = World("ab")
    world.look(), world.look()
    world.pages.clear()
    told = world.look()
    assert (told.blind, told.desired) == ("no replica is left of those that answered", 2)
    world.pages["c"] = EnginePage()
    assert world.look().blind == ""


@pytest.mark.parametrize(
    ("lost", "told"),
    [(TIMEOUT, "3 of 3 replicas do not tell"), (REFUSED, "none of the listed replicas has answered yet")],
)
def test_a_service_that_has_never_answered_keeps_what_is_listed(lost: NoPage, told: str) -> None:
    world = World("abc", policy="static:1")
    world.lost = dict.fromkeys("abc", lost)
    world.look()
    assert (world.look().desired, world.look().desired) == (3, 3)
    assert told in world.look().blind
    world.lost = {}
    world.look()
    assert world.look().desired == 1


def test_while_the_list_is_not_known_at_first_nothing_is_decided() -> None:
    world = World("", policy="static:1")
    world.look_with = Look({}, trouble="the name server has not answered")
    assert [world.look().record, world.look().record] == [None, None]
    world.look_with, world.pages = Look({}), {"a": EnginePage(), "b": EnginePage()}
    assert world.look().record.seen.desired == 2  # type: ignore[union-attr]


def test_a_list_that_is_empty_at_first_is_no_reason_for_the_least_number() -> None:
    """A slip in a DNS name or a selector would take away all replicas but one."""
    world = World("", policy="static:1")
    told = [world.look(), world.look(), world.look()]
    assert [one.record for one in told] == [None, None, None]
    assert told[-1].text == "no replica is listed; what there is, is left alone until one is"
    world.pages = {"a": EnginePage(), "b": EnginePage()}
    assert world.look().record.seen.desired == 2  # type: ignore[union-attr]


def test_a_maximum_that_was_lowered_holds_also_when_blind() -> None:
    world = World("abc", policy="static:3", max_replicas=2)
    world.deciding = Deciding(world.service, replace(world.state(), desired=3, answered=("a", "b", "c")))
    world.lost = dict.fromkeys("abc", TIMEOUT)
    world.look()
    assert world.look().desired == 2


def test_after_a_restart_a_silent_replica_is_still_missed() -> None:
    world = World("ab", policy="static:1")
    world.look(), world.look()
    kept = world.state()
    assert (kept.answered, kept.desired) == (("a", "b"), 1)
    world.deciding = Deciding(world.service, kept)
    world.lost = {"a": TIMEOUT}
    world.look(), world.look()
    assert "1 of 2 replicas do not tell" in world.look().blind


def test_trouble_with_the_list_blinds() -> None:
    world = World("a", policy="static:1")
    world.look(), world.look()
    world.look_with = Look({}, trouble="the name server has not answered")
    assert world.look().blind == "the name server has not answered"


# -- what is published --


def published(**fields: object) -> Published:
    plain = Published(3, 2, "", 3, good_until_s=30.0, seen_s=0.0)
    return replace(plain, **fields)  # type: ignore[arg-type]


def test_a_number_is_given_while_it_is_fresh_and_the_service_is_seen() -> None:
    clock = ManualClock()
    board = Board(["chat"], clock)
    with pytest.raises(Unavailable, match="nothing was decided lately"):
        board.desired("chat")
    board.post("chat", published())
    assert board.desired("chat") == 3
    clock.advance(30)
    with pytest.raises(Unavailable, match="nothing was decided lately"):
        board.desired("chat")
    with pytest.raises(NotFound, match="no service is named 'talk' here; there are: chat"):
        board.desired("talk")


def test_while_blind_no_number_is_given_that_would_let_replicas_go() -> None:
    board = Board(["chat"], ManualClock())
    board.post("chat", published(blind="a series vanished"))
    with pytest.raises(Unavailable, match=r"not seen \(a series vanished\); 3 replicas are to be kept"):
        board.desired("chat")
    board.post("chat", published(blind="a series vanished", desired=5))
    assert board.desired("chat") == 5


@pytest.mark.parametrize(
    ("fields", "active"),
    [({}, True), ({"desired": 0}, False), ({"desired": 0, "blind": "x"}, None), ({"blind": "x"}, True)],
)
def test_nobody_goes_to_zero_unseen(fields: dict[str, object], active: bool | None) -> None:
    assert published(**fields).active is active


async def test_activity_is_told_when_it_changes_and_ends_well() -> None:
    board = Board(["chat"], ManualClock())
    told = board.activity("chat")
    first = asyncio.ensure_future(anext(told))
    await asyncio.sleep(0)
    board.post("chat", published(desired=0))
    assert await first is False
    board.post("chat", published(desired=0, blind="x"))
    board.post("chat", published(desired=2))
    assert await anext(told) is True
    board.close()
    assert [active async for active in told] == []


# -- configuration --


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "file: no service is given; begin each with [[service]]"),
        ("[service]\nname='a'", "service: there may be several; begin each with [[service]]"),
        ("[[service]]\nmax_replicas=1", "service 0.name: must be given"),
        ("[[service]]\nname='a'\nmax_replicas=1", "service 'a': nothing says where the replicas are; give one of endpoints,"),
        (
            "[[service]]\nname='a'\nmax_replicas=1\ndns='http://a:1/'\nendpoints=['http://a:1/']",
            "service 'a': endpoints and dns are given; give one of",
        ),
        ("[[service]]\nname='a'\nmax_replicas=1\nendpoints=['a:1']", "service 'a'.endpoints.0: 'a:1' must read http://"),
        ("[[service]]\nname='a'\nmax_replicas=1\nendpoint='x'", "service 'a'.endpoint: there is no such setting here"),
        ("[[service]]\nname='a'\nmax_replicas=1\nendpoints='x'", "service 'a'.endpoints: must be a list"),
        ("[[service]]\nname='a'\nmax_replicas=1\nmin_replicas=2\ndns='http://a:1/'", "min_replicas 2 is above max_replicas 1"),
        ("[[service]]\nname='a'\nmax_replicas=1\nmin_replicas=0\ndns='http://a:1/'", "min_replicas = 0 needs a gateway"),
        ("[[service]]\nname='a'\nmax_replicas=1\ndns='http://a:1/'\nengine='vlm'", "service 'a'.engine: 'vlm' is no inference server"),
        ("[[service]]\nname='a'\nmax_replicas=1\ndns='http://a:1/'\nslo={ttft_s=0}", "service 'a'.slo: nothing is promised"),
        ("[[service]]\nname='a'\nmax_replicas=1\ndns='http://a:1/'\nslo={ttft=1}", "service 'a'.slo.ttft: there is no such setting"),
        (
            "[[service]]\nname='a'\nmax_replicas=1\nengine='vllm'\nprometheus={url='http://p:9090',selector='app'}",
            "service 'a'.prometheus.selector: 'app' must be label matchers of PromQL",
        ),
        (
            "[[service]]\nname='a'\nmax_replicas=1\nprometheus={url='http://p:9090',selector='{a=\"b\"}'}",
            "service 'a': prometheus needs engine",
        ),
        (
            "[[service]]\nname='a'\nmax_replicas=1\nmin_replicas=1\ngpus_per_replica=4\ngpu_budget=3\ndns='http://a:1/'",
            "gpu_budget 3 is less than min_replicas x gpus_per_replica = 4",
        ),
        (
            "[[service]]\nname='a'\nmax_replicas=1\nengine='ray-serve'\ninterval_s=2\ndns='http://a:1/'",
            "service 'a': interval_s must be at least 10: ray-serve tells nothing new before",
        ),
        (2 * "[[service]]\nname='a'\nmax_replicas=1\ndns='http://a:1/'\n", "service: two are named 'a'"),
        ("[[service", "is no TOML"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_configuration_is_said_with_its_key(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "services.toml"
    path.write_text(text)
    with pytest.raises(Invalid) as refused:
        settings.load(path)
    assert told in refused.value.message
    assert str(path) in refused.value.message


def test_a_policy_that_does_not_exist_is_refused() -> None:
    with pytest.raises(Invalid, match="there is no policy 'best'"):
        Deciding(service(policy="best"), None)


# -- Prometheus, state --


def matrix(*series: tuple[dict[str, str], list[tuple[float, str]]]) -> str:
    result = [{"metric": metric, "values": values} for metric, values in series]
    return json.dumps({"status": "success", "data": {"resultType": "matrix", "result": result}})


def test_only_the_newest_scrape_of_a_replica_counts() -> None:
    text = matrix(
        ({"__name__": "up", "instance": "a"}, [(90, "1"), (100, "1")]),
        ({"__name__": "vllm:num_requests_running", "instance": "a", "m": 'x"\\'}, [(90, "3"), (100, "4")]),
        ({"__name__": "vllm:gpu_cache_usage_perc", "instance": "a"}, [(90, "0.5")]),
        ({"__name__": "up", "instance": "b"}, [(70, "1"), (101, "0")]),
        ({"__name__": "vllm:num_requests_running", "instance": "b"}, [(70, "1")]),
    )
    told = prometheus.told(text, "instance")
    line = 'vllm:num_requests_running{instance="a",m="x\\"\\\\"} 4 100000\n'
    assert told == {"a": prometheus.Told(100, line, True), "b": prometheus.Told(101, "", False)}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("<html>", "it is no JSON"),
        ("[]", "it is no answer of Prometheus"),
        ('{"status": "error", "error": "parse error"}', "refuses the query: parse error"),
        ('{"status": "success", "data": {"resultType": "vector", "result": []}}', "it is a vector, not a matrix"),
        (matrix(({"__name__": "up"}, [(1, "1")])), "up has no label 'instance'"),
    ],
)
def test_an_answer_that_is_none_is_named(text: str, told: str) -> None:
    with pytest.raises(prometheus.AnswerUnusable, match=told):
        prometheus.told(text, "instance")


@pytest.mark.parametrize(
    "wrong",
    [
        {"desired": "x"},
        {"desired": 10**9},
        {"desired": -1},
        {"now_s": None},
        {"now_s": math.nan},
        {"asked_s": [None]},
        {"memory": [1]},
    ],
)
def test_what_was_kept_and_is_not_as_it_should_be_is_left_out(tmp_path: Path, wrong: dict[str, object]) -> None:
    kept = asdict(state.State(1.0, 2.0, 3, (), ("a",), "hpa:4", None)) | {"version": state.VERSION}
    path = tmp_path / state.FILE
    path.write_text(json.dumps(kept))
    assert state.load(path) is not None
    path.write_text(json.dumps(kept | wrong))
    assert state.load(path) is None


@pytest.mark.parametrize("wrong", [{"learned": {}}, {"peaks": [["x"]]}, {"starts": None}])
def test_what_a_policy_learned_and_is_not_as_it_should_be_is_forgotten_alone(
    caplog: pytest.LogCaptureFixture, wrong: dict[str, object]
) -> None:
    world = World("ab", policy="switchgear")
    kept = replace(world.state(), desired=7)
    assert kept.memory is not None
    damaged = replace(kept, memory={**kept.memory, **wrong})
    assert deciding_of(world.service, damaged).state(1.0, 2.0).desired == 7
    assert "begins anew" in caplog.text
    with pytest.raises(Invalid, match="means nothing"):
        Deciding(world.service, damaged)


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    kept = state.State(12.5, 1.7e9, 3, (1.0, 2.5), ("h1:8000",), "switchgear", {"rates": [1.5]})
    state.save(tmp_path / state.FILE, kept)
    assert state.load(tmp_path / state.FILE) == kept
    assert state.load(tmp_path / "other.json") is None
    (tmp_path / "torn.json").write_text('{"version": 1, "now_s"')
    assert state.load(tmp_path / "torn.json") is None
    (tmp_path / "new.json").write_text('{"version": 2}')
    with pytest.raises(FailedPrecondition, match="newer version"):
        state.load(tmp_path / "new.json")
