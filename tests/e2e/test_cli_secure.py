"""An installation with TLS, as its users meet it: init, up, a node that joins, a job by an operator, and who is sent away."""

from __future__ import annotations

import json
import sqlite3
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from terminal import Terminal, wait_for

from switchgear.cli.state import Running, read_running
from switchgear.launcher.state import is_held

LISTEN = [
    part for flag in ("--grpc", "--http", "--machines", "--metrics", "--router") for part in (flag, "127.0.0.1:0")
]


class Secure(Terminal):
    """A terminal of the admin who ran `switchgear init`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.init = self.run("init")
        self.up()

    def up(self) -> None:
        process = self.start("up", *LISTEN)

        def running() -> Running | None:
            assert process.poll() is None, process.communicate()[0]
            found = read_running(self.folder / "state")
            return found if found and found.pid == process.pid else None

        wait_for(running)

    def agent(self, *arguments: str) -> subprocess.Popen[str]:
        return self.start(
            "agent", "--node", "n1", "--sim-gpus", "1", "--state-dir", str(self.folder / "agent"), *arguments
        )

    def ask(self, *arguments: str) -> Any:
        """What a command answers as JSON."""
        ended = self.run(*arguments, "--json")
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout)

    def as_user(self, token: str) -> Terminal:
        """A terminal of somebody with that token."""
        other = Terminal(self.folder)
        other.environment["SWITCHGEAR_TOKEN"] = token
        return other

    def rest(self, path: str, token: str) -> httpx.Response:
        running = read_running(self.folder / "state")
        assert running is not None
        believed = ssl.create_default_context(cafile=str(self.folder / "state" / "pki" / "ca.crt"))
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        address = f"https://{running.http}{path}"
        return httpx.get(address, headers=headers, verify=believed, timeout=10, trust_env=False)


@pytest.fixture
def admin(tmp_path: Path) -> Iterator[Secure]:
    admin = Secure(tmp_path)
    yield admin
    folders = list((tmp_path / "agent" / "launchers").glob("*"))
    wait_for(lambda: not any(is_held(folder) for folder in folders), 20)
    admin.close()


def test_init_then_a_node_joins_an_operator_submits_and_everybody_else_is_sent_away(
    admin: Secure, bare_python: str
) -> None:
    assert "jobs run as the user who runs the agent" in admin.init.stdout
    again = admin.run("init")
    assert (again.returncode, "remove" in again.stderr) == (20, True)
    token = (admin.folder / "state" / "token").read_text().strip()

    join = admin.ask("join-token", "--node", "n1")["joinToken"]
    agent = admin.agent("--join", join)
    wait_for(lambda: admin.rest("/v1/nodes", token).json().get("nodes"))
    assert [node["name"] for node in admin.rest("/v1/nodes", token).json()["nodes"]] == ["nodes/n1"]
    agent.terminate()
    agent.communicate()
    admin.agent()  # the certificate that it has is enough from now on

    script = admin.folder / "hello.py"
    script.write_text("print('hello')\n")
    submit = ("run", "--name", "hello", "--python", bare_python, "--", str(script))
    viewer, operator = (
        admin.as_user(admin.ask("tokens", "create", user, "--role", role)["secret"])
        for user, role in (("eve", "viewer"), ("ann", "operator"))
    )
    refused = viewer.run(*submit)
    assert (refused.returncode, "user:eve is viewer" in refused.stderr) == (24, True)
    submitted = operator.run(*submit)
    assert submitted.returncode == 0, submitted.stderr
    assert "hello" in submitted.stdout

    assert admin.rest("/v1/jobs", "").status_code == 401
    assert admin.rest("/v1/jobs", f"{token}x").status_code == 401
    (job,) = admin.rest("/v1/jobs", token).json()["jobs"]
    assert (job["name"], job["state"]) == ("jobs/hello", "SUCCEEDED")

    stolen = admin.run("agent", "--node", "n1", "--state-dir", str(admin.folder / "thief"), "--join", join)
    assert (stolen.returncode, "used already" in stolen.stderr) == (21, True)

    seen = {(entry.get("actor", ""), entry["method"], entry["outcome"]) for entry in admin.ask("audit")}
    assert seen >= {
        ("node:n1", "switchgear.v1.AccessService/EnrollNode", "OK"),
        ("", "switchgear.v1.AccessService/EnrollNode", "PERMISSION_DENIED"),
        ("user:eve", "switchgear.v1.JobService/CreateJob", "PERMISSION_DENIED"),
        ("user:ann", "switchgear.v1.JobService/CreateJob", "OK"),
        ("", "GET /v1/jobs", "UNAUTHENTICATED"),
    }


def test_with_tls_up_runs_an_agent_only_when_told_so_and_says_what_that_means(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path)
    terminal.run("init")
    try:
        for flags, hint in (((), "no node agent runs in this process"), (("--agent",), "can read the CA's key")):
            up = terminal.start("up", *LISTEN, "--sim-gpus", "1", *flags)
            assert up.stdout
            assert "Switchgear is up" in up.stdout.readline()
            assert hint in up.stdout.readline()
            up.terminate()
            up.communicate()
    finally:
        terminal.close()


def test_beyond_loopback_without_init_the_remedy_is_told_and_recorded(tmp_path: Path) -> None:
    refused = Terminal(tmp_path).run("up", *LISTEN, "--no-agent", "--http", "0.0.0.0:0")
    assert (refused.returncode, "switchgear init" in refused.stderr) == (18, True), refused.stderr
    with closing(sqlite3.connect(tmp_path / "state" / "switchgear.db")) as database:
        ((outcome, message),) = database.execute("SELECT outcome, message FROM audit_entries").fetchall()
    assert (outcome, "0.0.0.0" in message) == ("FAILED_PRECONDITION", True)
