"""`switchgear inference probe` against real HTTP servers: what it prints, and what it says where there is nothing to read."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from serving_plane import Alphabet

from switchgear.access import pki
from switchgear.autoscaler.adapters.fetch import Fetcher, FetchFailed
from switchgear.autoscaler.adapters.page import BYTES_MAX
from switchgear.cli.main import main
from switchgear.serve.replica import ReplicaSettings, serving

PAGES = Path(__file__).parents[1] / "pages"
Answer = Callable[[BaseHTTPRequestHandler], None]


def says(text: str, status: int = 200, **headers: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        body = text.encode()
        request.send_response(status)
        request.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)

    return answer


def a_hundred_megabytes(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    line = b"vllm:num_requests_waiting 1\n" * 1000
    try:
        for _ in range(100_000_000 // len(line)):
            request.wfile.write(line)
    except OSError:
        pass  # the client has heard enough


def broken_off(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Length", "1000")
    request.end_headers()
    request.wfile.write(b"vllm:num_requests_waiting 1\n")


def for_a_token(request: BaseHTTPRequestHandler) -> None:
    allowed = request.headers.get("Authorization") == "Bearer open-sesame"
    (says((PAGES / "vllm.txt").read_text()) if allowed else says("", 401))(request)


class Served:
    """A server on a port of its own. answers: one after the other, the last one for ever; paths: what was asked for."""

    def __init__(self, *answers: Answer, tls: ssl.SSLContext | None = None) -> None:
        self.paths: list[str] = []
        left = list(answers)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(handler) -> None:  # noqa: N805 -- the outer one is self
                self.paths.append(handler.path)
                (left.pop(0) if len(left) > 1 else left[0])(handler)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def served() -> Iterator[Callable[..., Served]]:
    servers: list[Served] = []

    def serve(*answers: Answer, tls: ssl.SSLContext | None = None) -> Served:
        servers.append(Served(*answers, tls=tls))
        return servers[-1]

    yield serve
    for server in servers:
        server.close()


def probe(*arguments: str) -> int:
    return main(["inference", "probe", *arguments, "--watch", "0.05"])


def test_it_shows_what_is_told_what_is_missing_and_what_that_costs(
    served: Callable[..., Served], capsys: pytest.CaptureFixture[str]
) -> None:
    page = (PAGES / "vllm_old.txt").read_text()
    later = page.replace(
        'generation_tokens_total{model_name="llama"} 700', 'generation_tokens_total{model_name="llama"} 705'
    )
    server = served(says(page), says(later))
    assert probe(server.url) == 0
    assert server.paths == ["/metrics", "/metrics"]
    shown = capsys.readouterr().out
    assert shown.startswith(f"{server.url}/metrics: vLLM 0.10 or older\n")
    assert "waiting           vllm:num_requests_waiting           gauge      requests  1\n" in shown
    assert "kv_use            vllm:gpu_cache_usage_perc           gauge      ratio     25%\n" in shown
    # Five more in at least 0.05 s; how long it took in truth depends on the machine.
    assert 0 < float(re.findall(r"705, ([0-9.]+) a second", shown)[0]) <= 100
    assert "no queue_time (vllm:request_queue_time_seconds is missing): time in the queue cannot be told" in shown
    assert "no awake (vllm:engine_sleep_state is missing): a sleeping replica counts as capacity; vLLM 0.11" in shown
    assert shown.endswith("\nusable for autoscaling\n")


def test_a_page_that_comes_slowly_is_no_faster_engine(
    served: Callable[..., Served], capsys: pytest.CaptureFixture[str]
) -> None:
    page = (PAGES / "vllm_old.txt").read_text()
    later = page.replace('generation_tokens_total{model_name="llama"} 700', 'generation_tokens_total{model_name="llama"} 705')  # fmt: skip

    def slowly(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(0.2)
        says(later)(handler)

    assert probe(served(says(page), slowly).url, "--json") == 0
    told = {one["quantity"]: one["value"] for one in json.loads(capsys.readouterr().out)["told"]}
    assert told["generated_tokens"] <= 5 / 0.25


def test_json_has_the_same(served: Callable[..., Served], capsys: pytest.CaptureFixture[str]) -> None:
    assert probe(served(says((PAGES / "tgi.txt").read_text())).url, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["engine"], shown["usable"]) == ("tgi", True)
    told = {one["quantity"]: one for one in shown["told"]}
    assert told["waiting"] == {"quantity": "waiting", "series": "tgi_queue_size", "type": "gauge", "unit": "requests", "value": 1, "mismatch": ""}  # fmt: skip
    lacks = {one["quantity"]: one for one in shown["missing"]}
    assert lacks["ttft"]["series"] == []
    assert lacks["ttft"]["cost"].startswith("the promise can only be held on end-to-end time")


def test_what_tells_too_little_is_not_usable_and_what_helps_is_said(
    served: Callable[..., Served], capsys: pytest.CaptureFixture[str]
) -> None:
    assert probe(served(says("llamacpp:kv_cache_usage_ratio 0.5\n")).url) == 1
    assert "not usable for autoscaling" in capsys.readouterr().out
    assert probe(served(says("node_load1 0.5\n")).url) == 1
    assert "--engine names the kind" in capsys.readouterr().err


def test_a_gateway_is_said_to_be_one(served: Callable[..., Served], capsys: pytest.CaptureFixture[str]) -> None:
    assert probe(served(says((PAGES / "llm_d.txt").read_text())).url) == 0
    assert "usable as the gateway of a service" in capsys.readouterr().out


def test_an_engine_that_is_named_has_its_own_path(served: Callable[..., Served]) -> None:
    server = served(says((PAGES / "trtllm.txt").read_text()))
    assert probe(server.url, "--engine", "trtllm") == 0
    assert server.paths[0] == "/prometheus/metrics"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (says("<html></html>"), "web page (HTML), not metrics"),
        (says("", 401), "401 Unauthorized: --token-file names"),
        (says("", 404), "404 Not Found: no page is under /metrics of this port; servers have it at vLLM :8000"),
        (
            says("", 302, Location="http://127.0.0.1:1/x"),
            "it redirects to 'http://127.0.0.1:1/x', which is not followed",
        ),
        (says("", 500), "it answers 500"),
        (says("[]"), "it is JSON"),
        (says("vllm:num_requests_waiting 1\nvllm:num_requ"), "it is cut"),
        (says("x", **{"Content-Encoding": "gzip"}), "it compresses the page"),
        (a_hundred_megabytes, f"more than {BYTES_MAX} bytes"),
        (broken_off, "cannot be reached"),
    ],
)
def test_what_is_no_page_is_told_with_the_remedy(
    served: Callable[..., Served], capsys: pytest.CaptureFixture[str], answer: Answer, why: str
) -> None:
    assert probe(served(answer).url) == 2
    assert why in capsys.readouterr().err


def test_nobody_at_the_port_and_no_url_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert probe("http://127.0.0.1:1", "--json") == 2
    answer = capsys.readouterr()
    assert "check host and port" in answer.err
    assert json.loads(answer.out)["usable"] is False
    for wrong in ("127.0.0.1:8000", "ftp://127.0.0.1/metrics", "http://127.0.0.1:99999999/", "http://"):
        assert probe(wrong) == 2
        assert "is no URL of a page" in capsys.readouterr().err


def test_a_token_comes_from_a_file(
    served: Callable[..., Served], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "token").write_text("open-sesame\n")
    server = served(for_a_token)
    assert probe(server.url, "--token-file", str(tmp_path / "token")) == 0
    (tmp_path / "token").write_text("two\nlines")
    assert probe(server.url, "--token-file", str(tmp_path / "token")) == 2
    assert "one line of printable ASCII" in capsys.readouterr().err


def test_tls_believes_the_ca_that_is_named(
    served: Callable[..., Served], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tls, ca = own_tls(tmp_path)
    server = served(says((PAGES / "vllm.txt").read_text()), tls=tls)
    assert probe(server.url, "--ca", str(ca)) == 0
    capsys.readouterr()
    assert probe(server.url) == 2
    assert "--ca names the file of the CA" in capsys.readouterr().err
    (tmp_path / "no.crt").write_text("nothing")
    assert probe(server.url, "--ca", str(tmp_path / "no.crt")) == 2
    assert "certificates in PEM" in capsys.readouterr().err


async def test_a_server_that_hangs_costs_no_more_than_the_time_allowed() -> None:
    async def hold(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nvllm:")
        await writer.drain()
        await asyncio.sleep(30)

    async with await asyncio.start_server(hold, "127.0.0.1", 0) as server, Fetcher(timeout_s=0.2) as fetcher:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(FetchFailed, match=r"within 0\.2 s") as failed:
            await fetcher.fetch(f"http://127.0.0.1:{port}/metrics")
        assert failed.value.outcome == "timeout"


async def test_our_own_server_is_recognized_with_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    model = Alphabet()
    async with serving(
        lambda: model, ReplicaSettings(model="chat", running_max=2, waiting_max=2, grace_s=30)
    ) as replica:
        url = f"http://{replica.address}"
        async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
            async with asyncio.timeout(30):
                while (await client.get("/health")).status_code != 200:  # noqa: ASYNC110 -- the model loads on a thread
                    await asyncio.sleep(0.01)
            answer = await client.post("/v1/completions", json={"model": "chat", "prompt": "abc", "max_tokens": 3})
            assert answer.status_code == 200
        assert await asyncio.to_thread(probe, url, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["engine"] == "switchgear"
    assert shown["version"]
    assert {one["quantity"] for one in shown["missing"] if one["series"]} == set()
    assert all(one["mismatch"] == "" for one in shown["told"])


def own_tls(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's side of TLS, and the CA that signed it."""
    pki.create(folder / "pki", ["127.0.0.1"], time.time_ns())
    files = pki.Pki(folder / "pki").tls_files
    assert files.certificate is not None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.certificate, files.key)
    return context, files.ca
