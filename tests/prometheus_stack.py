"""Real Prometheus and Alertmanager for tests, on loopback, and a place where alerts arrive.

SWITCHGEAR_REQUIRE_SERVICES=1 turns a missing program from a skip into a failure.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import socket
import subprocess
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from terminal import wait_for

_PACKAGES = {
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "amtool": "prometheus-alertmanager",
}


def program(name: str) -> str:
    """Path of a program of the Prometheus project; skips the test when it is not installed."""
    found = shutil.which(name)
    if found is None:
        reason = f"{name} is not installed; install the package {_PACKAGES[name]} to run this test"
        if os.environ.get("SWITCHGEAR_REQUIRE_SERVICES") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def check(name: str, *arguments: str | Path) -> None:
    """Runs promtool or amtool, and shows what it says when it is not content."""
    ended = subprocess.run([program(name), *map(str, arguments)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class _Program:
    """A server with an HTTP API; what it says goes into a file beside its configuration."""

    def __init__(self, folder: Path, name: str, configuration: dict[str, Any], options: Sequence[str]) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self.http = httpx.Client(base_url=f"http://{self.address}", timeout=10, trust_env=False)
        file = folder / f"{name}.yml"
        file.write_text(yaml.safe_dump(configuration))
        self._log = folder / f"{name}.log"
        command = [program(name), f"--config.file={file}", f"--web.listen-address={self.address}", *options]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for(self._ready, 30)

    def _ready(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        try:
            return self.http.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def close(self) -> None:
        self.http.close()
        self._process.terminate()
        self._process.wait(20)


class Prometheus(_Program):
    """configuration: that of prometheus.yml, as YAML reads it. options: further flags."""

    def __init__(self, folder: Path, configuration: dict[str, Any], *options: str) -> None:
        storage = f"--storage.tsdb.path={folder / 'prometheus'}"
        super().__init__(folder, "prometheus", configuration, [storage, *options])

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Series that the expression gives now. Fails when Prometheus refuses it."""
        answer = self.http.post("/api/v1/query", data={"query": expression}).json()
        assert answer["status"] == "success", (expression, answer)
        series: list[dict[str, Any]] = answer["data"]["result"]
        return series

    def parses(self, expression: str) -> bool:
        return bool(self.http.post("/api/v1/format_query", data={"query": expression}).json()["status"] == "success")

    def get(self, path: str) -> dict[str, Any]:
        answer: dict[str, Any] = self.http.get(f"/api/v1/{path}").json()["data"]
        return answer


class Alertmanager(_Program):
    """configuration: that of alertmanager.yml, as YAML reads it."""

    def __init__(self, folder: Path, configuration: dict[str, Any]) -> None:
        # Without an address for its cluster it opens no second port.
        options = [f"--storage.path={folder / 'alertmanager'}", "--cluster.listen-address="]
        super().__init__(folder, "prometheus-alertmanager", configuration, options)


class Webhook:
    """Where Alertmanager delivers to. alerts: each that has arrived, in order."""

    def __init__(self) -> None:
        self.alerts = queue.SimpleQueue[dict[str, Any]]()
        alerts = self.alerts

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                for alert in body["alerts"]:
                    alerts.put(alert)
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
