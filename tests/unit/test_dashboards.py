"""The committed dashboards are what the code makes, and each panel and alert says what it is about."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_stack import check

ROOT = Path(__file__).parents[2]
DASHBOARDS = sorted((ROOT / "dashboards/grafana").glob("*.json"))
RULES = sorted((ROOT / "dashboards/rules").glob("*.yaml"))


def load(path: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(path.read_text())
    return read


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def rules() -> list[dict[str, Any]]:
    return [rule for path in RULES for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def test_the_committed_json_is_what_the_code_makes(tmp_path: Path) -> None:
    """If this fails: `make dashboards`, and commit what it writes."""
    command = [sys.executable, str(ROOT / "dashboards/build.py"), "--out", str(tmp_path)]
    subprocess.run(command, check=True, timeout=60)
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_text() for path in DASHBOARDS}


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_grafanas_own_model_reads_a_dashboard_without_loss(path: Path) -> None:
    committed = load(path)
    assert json.loads(json.dumps(Dashboard.from_json(committed), cls=JSONEncoder)) == committed


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_every_panel_explains_itself_and_fits_the_grid(path: Path) -> None:
    dashboard = load(path)
    assert dashboard["uid"] == path.stem
    assert dashboard["description"]
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    titles = [panel["title"] for panel in panels(dashboard)]
    assert len(titles) >= 15
    for panel in panels(dashboard):
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"][0]["value"] is None, panel["title"]
        assert panel["targets"], panel["title"]


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_lie_side_by_side_and_not_over_each_other(path: Path) -> None:
    taken = set[tuple[int, int]]()
    for panel in load(path)["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_queries_use_the_chosen_data_source_and_only_declared_variables(path: Path) -> None:
    dashboard = load(path)
    declared = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert "datasource" in declared
    used = {"datasource"}
    for panel in panels(dashboard):
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            used |= {name for name in re.findall(r"\$(\w+)", target["expr"]) if not name.startswith("__")}
    assert used == declared


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_lead_to_each_other(path: Path) -> None:
    dashboard = load(path)
    (link,) = dashboard["links"]
    assert (link["type"], link["tags"], link["keepTime"]) == ("dashboards", dashboard["tags"], True)


def test_gpus_by_account_count_jobs_that_have_ended_and_jobs_that_come_again(tmp_path: Path) -> None:
    training = load(ROOT / "dashboards/grafana/switchgear-training.json")
    (panel,) = [one for one in panels(training) if one["title"] == "GPUs at new steps, by account"]
    booked, info = 'switchgear_job_gpu_seconds_total{job="%s", bucket="productive"}', "switchgear_job_info{%s}"
    series = [
        (booked % "live", "0+480x60"),
        (info % 'job="live", account="chem"', "1x60"),
        (booked % "short", "0+240x30 stale"),
        (info % 'job="short", account="physics"', "1x30 stale"),
        (booked % "again", "0+60x60"),
        (info % 'job="again", account="chem"', "1x10 stale"),
        (info % 'job="again", account="bio"', "_x20 1x40"),
    ]
    (query,) = panel["targets"]
    told = [("sum(%s)", "{}", 11), ("sum by (account) (%s) > 1.5 < 3", '{account="physics"}', 2)]
    asked = [
        {
            "expr": f"round({form % query['expr']})",
            "eval_time": "1h",
            "exp_samples": [{"labels": labels, "value": value}],
        }
        for form, labels, value in told
    ]
    case = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series],
        "promql_expr_test": asked,
    }
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump({"tests": [case]}))
    check("promtool", "test", "rules", tmp_path / "tests.yaml")


def test_rules_are_valid() -> None:
    check("promtool", "check", "rules", *RULES)


@pytest.mark.parametrize("path", sorted((ROOT / "dashboards/rules/tests").glob("*.yaml")), ids=lambda path: path.stem)
def test_alerts_fire_when_they_should_and_only_then(path: Path) -> None:
    check("promtool", "test", "rules", path)


def test_every_alert_has_a_test_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    fires, stays_silent = set[str](), set[str]()
    for path in (ROOT / "dashboards/rules/tests").glob("*.yaml"):
        for case in yaml.safe_load(path.read_text())["tests"]:
            for expected in case.get("alert_rule_test", []):
                (fires if expected["exp_alerts"] else stays_silent).add(expected["alertname"])
            for expected in case.get("promql_expr_test", []):
                named = re.findall(r'alertname="(\w+)"', expected["expr"])
                (fires if expected["exp_samples"] else stays_silent).update(named)
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    assert fires == alerts
    assert stays_silent == alerts


def test_every_alert_says_what_happened_what_to_do_and_where_to_read_on() -> None:
    runbook = (ROOT / "docs/runbook.md").read_text()
    sections = {heading.lower() for heading in re.findall(r"^## (\w+)$", runbook, re.MULTILINE)}
    named = set[str]()
    for rule in rules():
        if "alert" not in rule:
            continue
        assert rule["labels"]["severity"] in ("critical", "warning"), rule["alert"]
        assert set(rule["annotations"]) == {"summary", "description", "runbook"}, rule["alert"]
        file, _, section = rule["annotations"]["runbook"].partition("#")
        assert (file, section) == ("docs/runbook.md", rule["alert"].lower())
        named.add(section)
    assert sections == named
