"""`/metrics` for Prometheus: the node's series under the names that dashboards know, and the agent's own."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from switchgear.agent.readings import Reading, SeriesKey
from switchgear.agent.sampler import Sampler
from switchgear.core import rpc

#: Without TLS nothing of ours listens further than this.
HOST = "127.0.0.1"


def exposition(readings: Iterable[Reading]) -> str:
    """Prometheus' text format 0.0.4; an unknown series is left out, never written as 0.

    Not prometheus_client's: it puts `_total` behind every counter's name, and dcgm-exporter's counters have none.
    """
    families = dict[str, list[tuple[SeriesKey, float]]]()
    for reading in readings:
        if reading.value is not None:
            families.setdefault(reading.key.metric, []).append((reading.key, reading.value))
    lines = list[str]()
    for metric, family in families.items():
        lines.append(f"# TYPE {metric} {family[0][0].kind.value}")
        for key, value in family:
            labels = ",".join(f'{name}="{_escape(text)}"' for name, text in key.labels)
            lines.append(f"{metric}{{{labels}}} {_number(value)}" if labels else f"{metric} {_number(value)}")
    return "".join(f"{line}\n" for line in lines)


def _number(value: float) -> str:
    return f"{'+' if value > 0 else '-'}Inf" if math.isinf(value) else repr(value)


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


class Exporter:
    """Serves on loopback from a thread of its own; port 0 takes a free one and `address` is what was bound.

    Raises FailedPrecondition when the port is taken.
    """

    def __init__(self, sampler: Sampler, registry: CollectorRegistry, port: int) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = 10  # a client that sends nothing must not hold its thread for ever

            def do_GET(self) -> None:
                if self.path.partition("?")[0] != "/metrics":
                    self.send_error(404, "only /metrics is here")
                    return
                body = exposition(sampler.latest()).encode() + generate_latest(registry)
                self.send_response(200)
                self.send_header("Content-Type", CONTENT_TYPE_PLAIN_0_0_4)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
                pass  # one line a scrape says nothing

        rpc.require_free_port(HOST, port)
        self._server = ThreadingHTTPServer((HOST, port), Handler)
        self._server.daemon_threads = True
        self.address = f"{HOST}:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
