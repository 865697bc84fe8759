"""Inference servers of somebody else: real HTTP, pages under vLLM's names, moved by the test."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

KV_NEW, KV_OLD = "vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"
_BOUNDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass
class EnginePage:
    """Counters of one engine. kv: the name of its cache's series. status: of the answer; text: instead of the page."""

    waiting: int = 0
    running: int = 0
    finished: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    kv: str = KV_NEW
    status: int = 200
    text: str | None = None
    hidden: set[str] = field(default_factory=set)
    fetched: int = 0

    def serve(self, requests: int, *, prompt: int = 100, generated: int = 50) -> None:
        """So many more requests were answered."""
        self.finished += requests
        self.prompt_tokens += requests * prompt
        self.generated_tokens += requests * generated

    def __str__(self) -> str:
        label = '{engine="0",model_name="m"}'
        lines = [
            f"vllm:num_requests_waiting{label} {self.waiting}",
            f"vllm:num_requests_running{label} {self.running}",
            f"{self.kv}{label} {min(1.0, self.running / 10)}",
            f'vllm:request_success_total{{engine="0",finished_reason="stop",model_name="m"}} {self.finished}',
            f"vllm:prompt_tokens_total{label} {self.prompt_tokens}",
            f"vllm:generation_tokens_total{label} {self.generated_tokens}",
        ]
        for name in ("time_to_first_token_seconds", "e2e_request_latency_seconds"):
            lines += [
                f'vllm:{name}_bucket{{engine="0",le="{bound}",model_name="m"}} {self.finished if bound != _BOUNDS[0] else 0}'
                for bound in (*_BOUNDS, "+Inf")
            ]
            lines += [f"vllm:{name}_sum{label} {self.finished * 0.08}", f"vllm:{name}_count{label} {self.finished}"]
        shown = (line for line in lines if line.partition("{")[0] not in self.hidden)
        return "".join(f"{line}\n" for line in shown)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's asks the name server who we are


class Engines:
    """Several engines on one port, each under a path of its own."""

    def __init__(self, count: int) -> None:
        self.pages = [EnginePage() for _ in range(count)]
        pages = self.pages

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                page = pages[int(self.path.split("/")[1])]
                page.fetched += 1
                body = (str(page) if page.text is None else page.text).encode()
                self.send_response(page.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def url(self, number: int) -> str:
        return f"http://127.0.0.1:{self.port}/{number}/metrics"

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(self.url(number) for number in range(len(self.pages)))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
