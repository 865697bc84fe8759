"""What a slurmrestd newer than the installed one is asked: a server that writes down what it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from slurm_samples import SAMPLES

from switchgear.core.errors import FailedPrecondition, Reason, ResourceExhausted, SwitchgearError
from switchgear.slurm import rest
from switchgear.slurm.model import Submission
from switchgear.slurm.rest import Rest

RUNNING, _, NODE = SAMPLES["24.05.4"]


class Server(ThreadingHTTPServer):
    """Serves the API in these versions; answers are by method and path below the version."""

    def __init__(self, *versions: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.told: list[tuple[str, str, Any]] = []
        self.versions = versions
        self.answers: dict[tuple[str, str], tuple[int, Any]] = {
            ("GET", "ping"): (200, {"pings": [{"responding": True}], "meta": {"slurm": {"release": "24.05.4", "cluster": "c"}}}),
            ("GET", "nodes"): (200, {"nodes": [NODE]}),
            ("GET", "jobs"): (200, {"jobs": [RUNNING]}),
            ("POST", "job/submit"): (200, {"job_id": 7, "step_id": "batch", "errors": []}),
        }  # fmt: skip
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def spec(self) -> Any:
        methods = {"jobs/": ["get"], "node/{node_name}": ["get", "post"], "job/{job_id}": ["get", "post", "delete"]}
        if "0.0.45" in self.versions:
            methods["job/{job_id}/requeue"] = ["get"]
        paths: dict[str, Any] = {
            f"/slurm/v{version}/{path}": dict.fromkeys(verbs)
            for version in self.versions
            for path, verbs in methods.items()
        }
        return {"paths": {**paths, "/slurmdb/v0.0.99/jobs/": {"get": None}}}


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Quiet."""

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/openapi/v3":
            status, answer = 200, self.server.spec()
        else:
            self.server.told.append((self.command, self.path, json.loads(body) if body else None))
            path = self.path.split("/", 3)[3]
            status, answer = self.server.answers.get((self.command, path), (200, {"errors": []}))
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def new() -> Iterator[Server]:
    with Server("0.0.41", "0.0.45", "0.0.40") as server:
        yield server
        server.shutdown()


@pytest.fixture
def old() -> Iterator[Server]:
    with Server("0.0.38", "0.0.39") as server:
        yield server
        server.shutdown()


async def test_the_newest_version_is_asked_for_all_that_can_be_done(new: Server) -> None:
    client = Rest(new.address)
    answers = await client.ping()
    (node,), (job,) = await client.nodes(), await client.jobs([43, 44])
    submitted = await client.submit("#!/bin/sh", Submission(name="x", gpus_per_node=2))
    await client.drain("gpu01", "switchgear: fan\nis broken")
    await client.resume("gpu01")
    await client.requeue(43)
    await client.exclude(43, ["gpu01"])
    await client.cancel([43])
    await client.close()

    assert (answers.version, answers.cluster, node.name, job.id, submitted) == ("24.05.4", "c", "gpu01", 43, 7)
    assert [(method, path.removeprefix("/slurm/v0.0.45/")) for method, path, _ in new.told] == [
        ("GET", "ping"), ("GET", "nodes"), ("GET", "jobs"), ("POST", "job/submit"), ("POST", "node/gpu01"),
        ("POST", "node/gpu01"), ("GET", "job/43/requeue"), ("POST", "job/43"), ("DELETE", "job/43"),
    ]  # fmt: skip
    assert new.told[3][2]["job"]["tres_per_node"] == "gres/gpu:2"
    assert [body for _, _, body in new.told[4:8]] == [
        {"state": ["DRAIN"], "reason": "switchgear: fan is broken"}, {"state": ["RESUME"]}, None, {"excluded_nodes": ["gpu01"]},
    ]  # fmt: skip


async def test_a_version_that_lacks_something_says_so_and_is_told_what_it_requires(old: Server) -> None:
    client = Rest(old.address)
    with pytest.raises(FailedPrecondition, match=r"0\.0\.39\) cannot requeue"):
        await client.requeue(43)
    await client.exclude(43, ["gpu01"])
    await client.start_now(43)
    await client.close()

    assert [(path, sorted(body)) for _, path, body in old.told] == [
        ("/slurm/v0.0.39/job/43", ["environment", "excluded_nodes"]),
        ("/slurm/v0.0.39/job/43", ["begin_time", "environment"]),
    ]


@pytest.mark.parametrize(
    ("status", "answer", "reason"),
    [
        (
            500,
            {"errors": [{"error": "Unable to contact slurm controller (connect failure)"}]},
            Reason.SLURM_UNREACHABLE,
        ),
        (500, {"errors": [{"error": "Socket timed out on send/recv operation"}]}, Reason.SLURM_OUTCOME_UNKNOWN),
        (200, {"errors": []}, Reason.SLURM_OUTCOME_UNKNOWN),
        (502, "Bad gateway", Reason.SLURM_OUTCOME_UNKNOWN),
        (500, {"errors": [{"error": "Invalid qos specification"}]}, Reason.SLURM_REFUSED),
        (401, "Authentication failure", Reason.SLURM_REFUSED),
    ],
)
async def test_an_answer_to_a_submission_says_whether_there_can_be_a_job(
    new: Server, status: int, answer: object, reason: Reason
) -> None:
    new.answers["POST", "job/submit"] = (status, answer)
    client = Rest(new.address)
    with pytest.raises(SwitchgearError) as refused:
        await client.submit("#!/bin/sh", Submission(name="x"))
    await client.close()

    assert refused.value.reason == reason


async def test_after_an_upgrade_the_new_version_is_found(new: Server) -> None:
    client = Rest(new.address)
    await client.nodes()
    new.versions = ("0.0.46",)
    new.answers["GET", "nodes"] = (404, {"errors": [{"error": "Unable to find requested URL endpoint"}]})
    with pytest.raises(SwitchgearError):
        await client.nodes()
    new.answers["GET", "nodes"] = (200, {"nodes": []})
    await client.nodes()
    await client.close()

    assert [path for _, path, _ in new.told] == ["/slurm/v0.0.45/nodes", "/slurm/v0.0.45/nodes", "/slurm/v0.0.46/nodes"]


async def test_a_server_without_the_api_is_named_with_the_remedy() -> None:
    with Server() as server:
        client = Rest(server.address)
        with pytest.raises(FailedPrecondition, match="-s openapi/slurmctld"):
            await client.nodes()
        await client.close()
        server.shutdown()


async def test_more_than_the_bound_is_not_read(new: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Rest(new.address)
    await client.ping()
    monkeypatch.setattr(rest, "OUTPUT_MAX_BYTES", 100)
    with pytest.raises(ResourceExhausted):
        await client.jobs()
    await client.close()
