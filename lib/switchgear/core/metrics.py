"""Prometheus metrics of a process: one registry, and `/metrics` on a port of its own."""

from __future__ import annotations

import functools
import gzip
import logging
import socket
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.process_collector import ProcessCollector

from switchgear.core import rpc
from switchgear.core.errors import FailedPrecondition, Reason
from switchgear.core.tls import TlsFiles
from switchgear.core.version import VERSION

log = logging.getLogger(__name__)

#: In the state directory of a process: where its `/metrics` is.
ADDRESS_FILE = "metrics-address"
#: Scrapes at a time: each holds a thread, and a Prometheus makes one.
SCRAPES_MAX = 16
#: A client that says nothing must not hold its thread for ever.
_TIMEOUT_S = 10
#: The fastest: such a page becomes a twentieth at half a millisecond for 300 kB; the smallest would take thrice that for a fifth less.
_GZIP_LEVEL = 1
_ANY = frozenset({"0.0.0.0", "[::]", "::"})

# The time at which each counter began, as a second series beside it: Prometheus' text format has no use for it.
disable_created_metrics()  # type: ignore[no-untyped-call]


def new_registry(*components: str) -> CollectorRegistry:
    """A registry for the whole process, with the process' own metrics and the version of each component in it."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    info = Gauge(
        "switchgear_build_info", "1; the labels say what runs here", ["version", "component"], registry=registry
    )
    for component in components:
        info.labels(VERSION, component).set(1)
    return registry


class ServerMetrics:
    """What every gRPC server of ours counts, under the names that go-grpc-middleware made common.

    started: calls that came; those not in `handled` yet are open, which for streams says how many there are.
    handled: calls that were answered, by the code that the client got.
    handling: seconds from call to answer, of unary methods only: the length of a stream is no latency.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        method = ["grpc_service", "grpc_method"]
        self.started = Counter("grpc_server_started", "Calls that came", method, registry=registry)
        self.handled = Counter(
            "grpc_server_handled", "Calls that were answered", [*method, "grpc_code"], registry=registry
        )
        self.handling = Histogram(
            "grpc_server_handling_seconds",
            "From call to answer, of unary methods",
            method,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
            registry=registry,
        )


class MetricsServer(ThreadingHTTPServer):
    """Serves what `page` makes at `/metrics`, from threads of its own. `address` is what was bound; port 0 takes a free one.

    tls: our certificate and key, and the CA whose clients may read; None: plain HTTP, on loopback only.
    Raises FailedPrecondition when the port is taken or the address is beyond loopback without TLS, Invalid when it is none.
    """

    daemon_threads = True

    def __init__(self, page: Callable[[], bytes], address: str, tls: TlsFiles | None = None) -> None:
        host, port = rpc.split_address(address)
        if tls is None:
            rpc.require_loopback(host)
        rpc.require_free_port(host, port)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._tls = None if tls is None else _context(tls)
        self._free = threading.BoundedSemaphore(SCRAPES_MAX)
        super().__init__((host.strip("[]"), port), _handler(page))
        self.address = f"{host}:{self.server_address[1]}"
        # It looks for nothing between two requests: `close` wakes it.
        forever = functools.partial(self.serve_forever, poll_interval=3600.0)
        threading.Thread(target=forever, name="metrics", daemon=True).start()

    def server_bind(self) -> None:
        # Not HTTPServer's, which asks the name server who we are: that may take seconds, and nobody wants to know.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    @classmethod
    def of(cls, registry: CollectorRegistry, address: str, tls: TlsFiles | None = None) -> MetricsServer:
        """A server of all that is in the registry."""
        return cls(lambda: generate_latest(registry), address, tls)

    def reached_at(self, host: str) -> str:
        """The address for others: `host`, this machine's own, where we listen on all of them."""
        bound, port = rpc.split_address(self.address)
        return f"{host if bound in _ANY else bound}:{port}"

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def finish_request(self, request: Any, client_address: Any) -> None:
        request.settimeout(_TIMEOUT_S)
        if self._tls is None:
            super().finish_request(request, client_address)
            return
        # Here and not where connections are taken: a handshake that hangs must not keep others out.
        with self._tls.wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base class names them
        log.info("a scrape failed", extra={"peer": str(client_address)}, exc_info=True)

    def close(self) -> None:
        # The kernel then calls it readable, for ever.
        self.socket.shutdown(socket.SHUT_RDWR)
        self.shutdown()
        self.server_close()


def _context(tls: TlsFiles) -> ssl.SSLContext:
    if tls.certificate is None:
        raise FailedPrecondition("metrics over TLS need a certificate of ours; see `switchgear init`", Reason.TLS_FILES)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(tls.certificate, tls.key)
        context.load_verify_locations(tls.ca)
    except OSError as error:  # also ssl.SSLError
        raise FailedPrecondition(
            f"cannot use {tls.certificate}, its key or {tls.ca} ({error.strerror or error}); "
            "make certificates with `switchgear init` or join the node again",
            Reason.TLS_FILES,
            path=str(tls.certificate),
        ) from error
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def _handler(page: Callable[[], bytes]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(404, "only /metrics is here")
                return
            body = page()
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE_PLAIN_0_0_4)
            self.send_header("Vary", "Accept-Encoding")
            if "gzip" in self.headers.get("Accept-Encoding", ""):
                body = gzip.compress(body, _GZIP_LEVEL)
                self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
            pass  # one line a scrape says nothing

    return Handler
