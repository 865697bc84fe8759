"""Samples on their way to real HTTP servers that answer, fail, refuse, are slow or are not there."""

from __future__ import annotations

import base64
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from export_world import STALE_BITS, Exporting, Sink, exporting, key, samples_v1, samples_v2, window
from prometheus_stack import free_port

from switchgear.access import pki
from switchgear.collector.export.feed import STALE_S_MIN
from switchgear.collector.export.settings import BasicAuth, RemoteWrite
from switchgear.core.errors import Invalid

Answer = Callable[[bytes], tuple[int, Mapping[str, str], str]]
#: What a store that knows remote write 2.0 says.
WRITTEN = {"X-Prometheus-Remote-Write-Samples-Written": "1"}
KEYS = [key("power", ("gpu", str(gpu))) for gpu in range(4)]


@pytest.fixture
def sinks() -> Iterator[Callable[..., Sink]]:
    opened: list[Sink] = []

    def open_sink(*args: Any, **kwargs: Any) -> Sink:
        opened.append(Sink(*args, **kwargs))
        return opened[-1]

    yield open_sink
    for sink in opened:
        sink.close()


def target(url: str, name: str = "sink", **settings: Any) -> RemoteWrite:
    return RemoteWrite(url=url, name=name, **{"interval_s": 0, **settings})


def nodes_of(body: bytes) -> set[str]:
    return {dict(labels)["node"] for labels, _, _, _ in samples_v1(body)}


def fates(world: Exporting, name: str = "sink") -> dict[str, float]:
    found = {
        fate: world.counted("remote_write_samples_total", name, outcome=fate) for fate in ("sent", "failed", "dropped")
    }
    lost = world.counted("remote_write_samples_lost_total", name)
    assert lost == found["failed"] + found["dropped"]
    return found


async def test_every_sample_arrives_once_and_those_of_a_node_in_order(sinks: Callable[..., Sink]) -> None:
    sink = sinks()
    async with exporting(target(sink.url, samples_max=500, connections=4)) as world:
        nodes = [window(f"n{at}", *KEYS) for at in range(40)]
        for second in range(30):
            for at, node in enumerate(nodes):
                world.tick(node, second, *(at + gpu / 10 + second * 100 for gpu in range(4)))
    samples = sink.samples
    assert len(samples) == len(set(samples)) == 40 * 30 * 4
    assert fates(world) == {"sent": 4800, "failed": 0, "dropped": 0}
    times: dict[object, list[int]] = {}
    for labels, ms, _, _ in samples:
        times.setdefault(labels, []).append(ms)
    assert all(seen == sorted(seen) and len(seen) == 30 for seen in times.values())
    assert world.counted("remote_write_queue_bytes") == 0
    assert world.counted("remote_write_lag_seconds") == 0
    head = sink.headers[0]
    assert head["content-encoding"] == "snappy"
    assert head["x-prometheus-remote-write-version"] == "0.1.0"


async def test_batches_that_do_not_fill_up_go_out_after_a_second(sinks: Callable[..., Sink]) -> None:
    sink = sinks()
    async with exporting(target(sink.url)) as world:
        world.tick(window("n", *KEYS), 0, 1, 2, 3, 4)
        await world.until(lambda: sink.bodies)
        assert world.clock.monotonic_s() >= 1


async def test_each_target_gets_what_it_wants(sinks: Callable[..., Sink]) -> None:
    first, second, newer = sinks(), sinks(), sinks(lambda _: (204, WRITTEN, ""))
    async with exporting(
        target(first.url, "first"),
        target(second.url, "second", headers={"X-Scope-OrgID": "team"}),
        target(newer.url, "newer", protocol="2.0", external_labels={"cluster": "a"}, keep="power"),
    ) as world:
        node = window("n", *KEYS, key("clock"))
        for at in range(3):
            world.tick(node, at, 1, 2, 3, 4, 5)
    assert first.bodies == second.bodies
    assert second.headers[0]["x-scope-orgid"] == "team"
    assert len(first.samples) == 15
    found = [dict(sample[0]) for body in newer.bodies for sample, _, _ in samples_v2(body)]
    assert {(one["__name__"], one["cluster"]) for one in found} == {("power", "a")}
    assert len(found) == 12
    assert newer.headers[0]["content-type"] == "application/x-protobuf;proto=io.prometheus.write.v2.Request"


async def test_a_target_that_fails_gets_all_of_it_later(sinks: Callable[..., Sink]) -> None:
    answers = iter([(503, {}, "starting"), (429, {"Retry-After": "0"}, "slower"), (500, {}, "")])
    sink = sinks(lambda _: next(answers, (204, {}, "")))
    async with exporting(target(sink.url)) as world:
        world.tick(window("n", *KEYS), 0, 1, 2, 3, 4)
        await world.until(lambda: sink.bodies)
    assert len(sink.samples) == 4
    assert fates(world) == {"sent": 4, "failed": 0, "dropped": 0}
    codes = {code: world.counted("remote_write_requests_total", code=code) for code in ("503", "429", "500", "204")}
    assert codes == {"503": 1, "429": 1, "500": 1, "204": 1}
    assert world.counted("remote_write_samples_in_doubt_total") == 2 * 4


async def test_a_request_that_arrives_after_its_time_is_in_doubt_is_not_given_up_and_counts_once(
    sinks: Callable[..., Sink],
) -> None:
    asked, go = threading.Event(), threading.Event()

    def late(_: bytes) -> tuple[int, Mapping[str, str], str]:
        asked.set()
        go.wait(20)
        return 204, {}, ""

    sink = sinks(late)
    small: dict[str, Any] = {"queue_bytes_max": 1024**2, "samples_max": 1000, "connections": 1, "timeout_s": 0.5}
    async with exporting(target(sink.url, **small)) as world:
        node = window("n", *(key(f"m{at}") for at in range(1000)))
        world.tick(node, 0, *range(1000))
        await world.until(lambda: world.counted("remote_write_queue_samples"))
        await world.until(asked.is_set, step_s=0)
        for second in range(1, 201):
            world.tick(node, second, *range(1000))
        # The newest row is in a batch that is still open.
        assert world.counted("remote_write_queue_samples") + fates(world)["dropped"] == 200_000
        await world.until(lambda: world.counted("remote_write_queue_samples") + fates(world)["dropped"] == 201_000)
        full = world.counted("remote_write_samples_lost_total", reason="queue_full")
        assert full > 70_000
        await world.until(lambda: world.counted("remote_write_requests_total", code="timeout"), step_s=0)
        go.set()
        await world.until(lambda: sum(fates(world).values()) == 201_000, step_s=0)
        sent, in_doubt = fates(world)["sent"], world.counted("remote_write_samples_in_doubt_total")
        await world.until(lambda: len(sink.bodies) * 1000 > sent, step_s=0)
    assert fates(world) == {"sent": sent, "failed": 0, "dropped": full}
    assert world.counted("remote_write_queue_samples") == 0
    assert sent < len(sink.bodies) * 1000 <= sent + in_doubt
    assert sink.bodies.count(sink.bodies[0]) > 1


async def test_a_request_that_is_under_way_at_the_end_is_dropped_and_in_doubt(sinks: Callable[..., Sink]) -> None:
    requests: list[bytes] = []
    go = threading.Event()

    def late(body: bytes) -> tuple[int, Mapping[str, str], str]:
        requests.append(body)
        go.wait(20)
        return 204, {}, ""

    sink = sinks(late)
    async with exporting(target(sink.url, timeout_s=1)) as world:
        world.tick(window("n", *KEYS), 0, 1, 2, 3, 4)
        await world.until(lambda: world.counted("remote_write_queue_samples"))
        await world.until(lambda: len(requests) > 1, step_s=0)
    go.set()
    await world.until(lambda: len(sink.bodies) == len(requests))
    assert fates(world) == {"sent": 0, "failed": 0, "dropped": 4}
    assert 2 * 4 <= len(sink.samples) <= world.counted("remote_write_samples_in_doubt_total")


async def test_rows_that_end_series_after_all_else_is_sent_count_like_others(sinks: Callable[..., Sink]) -> None:
    sink = sinks()
    async with exporting(target(sink.url)) as world:
        world.tick(window("n", *KEYS), 0, 1, 2, 3, 4)
        await world.until(lambda: fates(world)["sent"] == 4)
        world.clock.advance(STALE_S_MIN)
        await world.until(lambda: fates(world)["sent"] == 8)
    assert [bits == STALE_BITS for *_, bits in sink.samples] == [False] * 4 + [True] * 4


async def test_targets_that_are_absent_or_slow_lose_what_their_queues_do_not_hold_and_hold_up_nobody(
    sinks: Callable[..., Sink],
) -> None:
    def slow(_: bytes) -> tuple[int, Mapping[str, str], str]:
        time.sleep(1)
        return 204, {}, ""

    sink, behind = sinks(), sinks(slow)
    small = {"queue_bytes_max": 1024**2, "samples_max": 1000, "connections": 1}
    async with exporting(
        target(sink.url, "good", samples_max=5000),
        target(f"http://127.0.0.1:{free_port()}/", "absent", **small),
        target(behind.url, "slow", timeout_s=0.2, **small),
    ) as world:
        node = window("n", *(key(f"m{at}") for at in range(250)))
        longest_s = 0.0
        for second in range(800):
            before_s = time.thread_time()
            world.tick(node, second, *range(250))
            longest_s = max(longest_s, time.thread_time() - before_s)
        await world.until(lambda: world.counted("remote_write_samples_total", "good", outcome="sent") == 200_000)
        await world.until(lambda: world.counted("remote_write_requests_total", "absent", code="unreachable"))
        await world.until(lambda: world.counted("remote_write_requests_total", "slow", code="timeout"))
        # Nothing can have reached the one that is not there.
        assert world.counted("remote_write_samples_in_doubt_total", "absent") == 0
        assert world.counted("remote_write_samples_in_doubt_total", "slow") > 0
        for name in ("absent", "slow"):
            assert 0 < world.counted("remote_write_queue_bytes", name) <= 1024**2 + 1000 * 12
            assert world.counted("remote_write_lag_seconds", name) > 790
            # What does not wait has gone, the oldest first: 800 rows of 2.3 kB do not fit.
            full = world.counted("remote_write_samples_lost_total", name, reason="queue_full")
            assert 200_000 - 1024**2 / 8 < full < 110_000
    for name in ("absent", "slow"):
        assert fates(world, name) == {"sent": 0, "failed": 0, "dropped": 200_000}
    assert longest_s < 0.05


async def test_a_node_whose_samples_are_refused_costs_no_other_its_own(sinks: Callable[..., Sink]) -> None:
    sink = sinks(lambda body: (400, {}, "out of order sample") if "n7" in nodes_of(body) else (204, {}, ""))
    async with exporting(target(sink.url, connections=1)) as world:
        nodes = [window(f"n{at}", *KEYS) for at in range(20)]
        for second in range(5):
            for node in nodes:
                world.tick(node, second, 1, 2, 3, 4)
    assert fates(world) == {"sent": 19 * 20, "failed": 20, "dropped": 0}
    assert world.counted("remote_write_samples_lost_total", reason="out_of_order") == 20
    assert len(set(sink.samples)) == len(sink.samples) == 380


async def test_a_target_that_refuses_everything_is_not_asked_for_parts_each_time(sinks: Callable[..., Sink]) -> None:
    requests: list[int] = []

    def refuse(body: bytes) -> tuple[int, Mapping[str, str], str]:
        requests.append(len(body))
        return 400, {}, "no"

    sink = sinks(refuse)
    async with exporting(target(sink.url, samples_max=500, connections=1)) as world:
        nodes = [window(f"n{at}", *KEYS) for at in range(8)]
        for second in range(4):
            for node in nodes:
                world.tick(node, second, 1, 2, 3, 4)
            await world.until(lambda done=4 * 8 * (second + 1): fates(world)["failed"] == done)
    assert len(requests) == 15 + 3


async def test_refusals_that_are_not_about_samples_are_counted_and_told(
    sinks: Callable[..., Sink], caplog: pytest.LogCaptureFixture
) -> None:
    for status, headers in ((404, {}), (401, {}), (307, {"Location": "http://192.0.2.1/"})):
        sink = sinks(
            lambda _, status=status, headers=headers: (status, headers, "remote write receiver needs to be enabled")
        )
        async with exporting(target(sink.url)) as world:
            world.tick(window("n", *KEYS), 0, 1, 2, 3, 4)
            world.tick(window("m", *KEYS), 0, 1, 2, 3, 4)
        assert fates(world) == {"sent": 0, "failed": 8, "dropped": 0}
    assert "404 remote write receiver needs to be enabled" in caplog.text
    assert "307 it is elsewhere: http://192.0.2.1/" in caplog.text


async def test_secrets_come_from_files_and_change_without_a_restart(sinks: Callable[..., Sink], tmp_path: Path) -> None:
    bearer, basic, secret = sinks(), sinks(), tmp_path / "secret"
    secret.write_text("first\n")
    async with exporting(
        target(bearer.url, "bearer", bearer_token_file=secret, headers_files={"X-Key": secret}),
        target(basic.url, "basic", basic_auth=BasicAuth(username="me", password_file=secret)),
    ) as world:
        node = window("n", *KEYS)
        world.tick(node, 0, 1, 2, 3, 4)
        await world.until(lambda: bearer.bodies and basic.bodies)
        secret.write_text("second")
        world.tick(node, 1, 1, 2, 3, 4)
    assert [head["authorization"] for head in bearer.headers] == ["Bearer first", "Bearer second"]
    assert [head["x-key"] for head in bearer.headers] == ["first", "second"]
    expected = [f"Basic {base64.b64encode(both).decode()}" for both in (b"me:first", b"me:second")]
    assert [head["authorization"] for head in basic.headers] == expected


async def test_a_secret_that_is_away_for_a_moment_loses_nothing(sinks: Callable[..., Sink], tmp_path: Path) -> None:
    sink, secret = sinks(), tmp_path / "secret"
    async with exporting(target(sink.url, bearer_token_file=secret)) as world:
        world.tick(window("n", *KEYS), 0, 1, 2, 3, 4)
        await world.until(lambda: world.counted("remote_write_requests_total", code="secret"))
        secret.write_text("here")
        await world.until(lambda: sink.bodies)
    assert fates(world) == {"sent": 4, "failed": 0, "dropped": 0}


async def test_a_secret_that_no_header_can_have_is_not_in_the_log_and_loses_nothing(
    sinks: Callable[..., Sink], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink, secret = sinks(), tmp_path / "secret"
    secret.write_text("top\nsecret")
    async with exporting(target(sink.url, bearer_token_file=secret)) as world:
        world.tick(window("n", *KEYS), 0, 1, 2, 3, 4)
        await world.until(lambda: world.counted("remote_write_requests_total", code="secret"))
        secret.write_bytes(b"t\xc3\xb6p")
        await world.until(lambda: world.counted("remote_write_requests_total", code="secret") > 1)
        secret.write_text("here")
        await world.until(lambda: sink.bodies)
    assert fates(world) == {"sent": 4, "failed": 0, "dropped": 0}
    assert str(secret) in caplog.text
    assert "top" not in caplog.text


async def test_a_target_that_claims_more_than_it_got_is_not_believed(sinks: Callable[..., Sink]) -> None:
    for written in ("9" * 18, "9" * 5000):
        sink = sinks(lambda _, written=written: (400, {"X-Prometheus-Remote-Write-Samples-Written": written}, "no"))
        async with exporting(target(sink.url)) as world:
            world.tick(window("n", *KEYS), 0, 1, 2, 3, 4)
        assert fates(world) == {"sent": 4, "failed": 0, "dropped": 0}


async def test_targets_with_tls_are_known_and_know_us_by_our_ca(sinks: Callable[..., Sink], tmp_path: Path) -> None:
    pki.create(tmp_path / "pki", ["127.0.0.1"], time.time_ns())
    files = pki.Pki(tmp_path / "pki").tls_files
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=files.ca)
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_cert_chain(files.certificate, files.key)
    sink = sinks(tls=server)
    ours = {"ca_file": files.ca, "cert_file": files.certificate, "key_file": files.key}
    async with exporting(target(sink.url, **ours), target(sink.url, "stranger")) as world:
        world.tick(window("n", *KEYS), 0, 1, 2, 3, 4)
        await world.until(lambda: sink.bodies)
        await world.until(lambda: world.counted("remote_write_requests_total", "stranger", code="unreachable"))
    assert len(sink.samples) == 4


async def test_tls_files_that_cannot_be_used_are_named_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"none\.pem"):
        Exporting(target("https://127.0.0.1:1/", ca_file=tmp_path / "none.pem"))
