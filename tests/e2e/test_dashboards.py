"""A running system under a real Prometheus: every query of every panel and rule finds what it asks for, an alert reaches its receiver."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_stack import Alertmanager, Prometheus, Webhook, program
from terminal import RANKS, Terminal, wait_for

from switchgear.cli.demo.stage import example_trainer
from switchgear.cli.state import Running, read_running
from switchgear.core.metrics import ADDRESS_FILE
from switchgear.launcher.state import is_held

ROOT = Path(__file__).parents[2]
DASHBOARDS = sorted((ROOT / "dashboards/grafana").glob("*.json"))
RULES = sorted((ROOT / "dashboards/rules").glob("*.yaml"))
CONFIGURATION = ROOT / "deploy/compose"
VARIABLES = {"$__rate_interval": "15s", "$__range": "10m", "$node": ".*", "$job": ".*", "$service": ".*"}
_METRIC = re.compile(r"\b(?:switchgear_|service:|vllm:|grpc_server_|DCGM_|node_|up\b|ALERTS\b)[\w:]*(?:\{[^}]*\})?")

#: What has no series in a system in which nothing of that kind happened. The metric must be declared all the same.
RARE = {
    "switchgear_incident_open_seconds": "exists only while an incident is open",
    "switchgear_access_refused_total": "nobody is refused where there is no TLS",
    'grpc_server_handled_total{grpc_code=~"INTERNAL|UNKNOWN|UNAVAILABLE|DATA_LOSS|DEADLINE_EXCEEDED"}': "no call failed",
    'switchgear_router_requests_total{code=~"5.."}': "every request was answered",
}


def rules() -> list[dict[str, Any]]:
    return [rule for path in RULES for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def replaced(expression: str) -> str:
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    return expression


def selectors(expressions: Iterable[str]) -> set[str]:
    return {found for expression in expressions for found in _METRIC.findall(expression)}


def is_rare(expression: str) -> bool:
    """Whether the expression asks for nothing but what is rare; one that has an answer for that case is not."""
    asked = {re.sub(r"\{\w+=~\"\.\*\"\}", "", selector) for selector in selectors([expression])}
    return asked <= RARE.keys() and "or vector(0)" not in expression


class System(Terminal):
    """`switchgear up` with a job that lost a rank, one that failed, and an inference service that answered a request."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        loopback = [word for flag in ("--grpc", "--http", "--metrics", "--router") for word in (flag, "127.0.0.1:0")]
        self._up = self.start("up", *loopback, "--node", "n1", "--sim-gpus", str(RANKS + 2))
        found: list[Running] = []

        def is_up() -> bool:
            assert self._up.poll() is None, self._up.communicate()[0]
            found.extend(filter(None, [read_running(folder / "state")]))
            return bool(found)

        wait_for(is_up)
        self.gateway, self.router = f"http://{found[0].http}", f"http://{found[0].router}"
        self.metrics = (folder / "state" / ADDRESS_FILE).read_text().strip()
        self._client = httpx.Client(timeout=60, trust_env=False)

    def rest(self, method: str, path: str, body: object = None, **parameters: str) -> dict[str, Any]:
        answer = self._client.request(method, f"{self.gateway}/v1/{path}", json=body, params=parameters)
        assert answer.status_code == 200, answer.text
        read: dict[str, Any] = answer.json()
        return read

    def run_job(self, job: str, ranks: int, restarts: int, *argv: str) -> None:
        spec = {
            "argv": argv,
            "workingDirectory": str(self.folder),
            "nnodes": 1,
            "nprocPerNode": ranks,
            "maxRestarts": restarts,
            "checkpointDirectory": str(self.folder / "checkpoints"),
        }
        self.rest("POST", "jobs", {"spec": spec}, job_id=job, request_id=job)

    def train_and_lose_a_rank(self) -> None:
        options = ("--steps", "100000", "--checkpoint-every", "5", "--step-sleep", "0.1")
        self.run_job("gpt", RANKS, 3, str(example_trainer()), *options)
        checkpoints = self.folder / "checkpoints"
        wait_for(lambda: any(checkpoints.glob("step-*.pt")))
        (state,) = (self.folder / "state/agent/launchers").glob("*/generation.json")
        os.kill(json.loads(state.read_text())["processes"][0]["pid"], signal.SIGKILL)

    def fail(self) -> None:
        (self.folder / "broken.py").write_text("raise SystemExit('no data')\n")
        self.run_job("broken", 1, 0, "broken.py")

    def serve(self) -> None:
        # No replica at first: the request that is held makes the autoscaler decide.
        server = str(Path(example_trainer()).with_name("serve_gpt.py"))
        spec = {"argv": [server, "--checkpoint", "checkpoints"], "workingDirectory": str(self.folder), "maxReplicas": 1}
        self.rest("POST", "inferenceServices", {"spec": spec}, service_id="chat", request_id="chat")

    def ask(self) -> None:
        known: list[int] = []

        def answered() -> bool:
            body = {"model": "chat", "prompt": "def ", "max_tokens": 8}
            known.append(self._client.post(f"{self.router}/v1/completions", json=body).status_code)
            return known[-1] != 404

        wait_for(answered, 20)  # a router hears of a new service within a moment
        assert known[-1] == 200

    def end(self) -> None:
        self.rest("DELETE", "inferenceServices/chat")
        jobs = self.rest("GET", "jobs")["jobs"]
        for job in jobs:
            if job["state"] not in ("SUCCEEDED", "FAILED", "CANCELLED"):
                self.rest("POST", f"{job['name']}:cancel", {})
        wait_for(lambda: not any(is_held(folder) for folder in (self.folder / "state/agent/launchers").iterdir()), 20)
        self._client.close()
        self.close()


# The first test waits for the whole system: three imports of torch, which take long on a loaded machine.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Prometheus, Webhook]]:
    """The system under the configuration that we ship, at loopback's addresses and a faster pace."""
    program("prometheus")
    folder = tmp_path_factory.mktemp("dashboards")
    with ExitStack() as cleanup:
        system = System(folder)
        cleanup.callback(system.end)
        webhook = Webhook()
        cleanup.callback(webhook.close)
        alerting = yaml.safe_load((CONFIGURATION / "alertmanager.yml").read_text())
        alerting["route"]["group_wait"] = "1s"
        alerting["receivers"][0]["webhook_configs"] = [{"url": webhook.url}]
        alertmanager = Alertmanager(folder, alerting)
        cleanup.callback(alertmanager.close)
        prometheus = Prometheus(folder, configuration(system, alertmanager))
        cleanup.callback(prometheus.close)
        # A failure counts when Prometheus saw the time before it.
        wait_for(lambda: prometheus.query("switchgear_jobs_ended_total"), 20)
        system.train_and_lose_a_rank()
        system.fail()
        system.serve()
        system.ask()
        yield prometheus, webhook


def configuration(system: System, alertmanager: Alertmanager) -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((CONFIGURATION / "prometheus.yml").read_text())
    read["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    read["rule_files"] = [str(ROOT / "dashboards/rules/*.yaml")]
    read["alerting"]["alertmanagers"] = [{"static_configs": [{"targets": [alertmanager.address]}]}]
    control_plane, nodes = read["scrape_configs"]
    for scraped in (control_plane, nodes):
        del scraped["tls_config"]
    control_plane |= {"scheme": "http", "static_configs": [{"targets": [system.metrics]}]}
    nodes["http_sd_configs"] = [{"url": f"{system.gateway}/prometheus/targets", "refresh_interval": "1s"}]
    return read


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_every_query_of_every_panel_finds_something(path: Path, world: tuple[Prometheus, Webhook]) -> None:
    prometheus, _ = world
    pending = {
        (panel["title"], replaced(target["expr"]))
        for panel in json.loads(path.read_text())["panels"]
        for target in panel.get("targets", [])
    }
    rare = {(title, expression) for title, expression in pending if is_rare(expression)}
    assert [expression for _, expression in rare if not prometheus.parses(expression)] == []
    pending -= rare

    def nothing_pending() -> bool:
        pending.difference_update([(title, query) for title, query in pending if prometheus.query(query)])
        return not pending

    wait_unless_told(nothing_pending, pending)


def test_every_metric_that_is_asked_for_exists_with_its_labels(world: tuple[Prometheus, Webhook]) -> None:
    """`or`, `vector(0)` and comparisons hide a misspelt name from the test above."""
    prometheus, _ = world
    panels = [panel for path in DASHBOARDS for panel in json.loads(path.read_text())["panels"]]
    expressions = [replaced(target["expr"]) for panel in panels for target in panel.get("targets", [])]
    pending = selectors([*expressions, *(rule["expr"] for rule in rules())])

    def nothing_pending() -> bool:
        pending.difference_update([one for one in pending if prometheus.query(one)])
        return {re.sub(r"\{\w+=~\"\.\*\"\}", "", one) for one in pending} <= RARE.keys()

    wait_unless_told(nothing_pending, pending)
    declared = prometheus.get("metadata")
    assert [selector for selector in RARE if selector.partition("{")[0] not in declared] == []


def wait_unless_told(reached: Any, pending: object, timeout_s: float = 30) -> None:
    try:
        wait_for(reached, timeout_s)
    except AssertionError:
        pytest.fail(f"nothing was found for {pending}")


def test_every_choice_of_a_dashboard_has_values(world: tuple[Prometheus, Webhook]) -> None:
    prometheus, _ = world
    for path in DASHBOARDS:
        for variable in json.loads(path.read_text())["templating"]["list"]:
            if variable["type"] == "query":
                found = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])
                assert found, variable
                assert prometheus.query(f'{found[1]}{{{found[2]}!=""}}'), variable["name"]


def test_prometheus_evaluates_every_rule(world: tuple[Prometheus, Webhook]) -> None:
    prometheus, _ = world

    def evaluated() -> list[dict[str, Any]]:
        return [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]

    wait_for(lambda: all(rule["health"] != "unknown" for rule in evaluated()), 30)
    assert {rule.get("lastError", "") for rule in evaluated()} == {""}
    assert len(evaluated()) == len(rules())


def test_a_failed_job_reaches_the_one_who_is_to_be_told(world: tuple[Prometheus, Webhook]) -> None:
    _, webhook = world
    alert = webhook.alerts.get(timeout=30)
    assert (alert["status"], alert["labels"]) == ("firing", {"alertname": "JobFailed", "severity": "warning"})
    assert alert["annotations"]["summary"] == "1 training job(s) failed in the last ten minutes"
    assert alert["annotations"]["runbook"] == "docs/runbook.md#jobfailed"
