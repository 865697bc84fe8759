"""`deploy/kubernetes` names what the code has."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from switchgear.autoscaler.external import settings
from switchgear.autoscaler.external.board import Board
from switchgear.autoscaler.external.metrics import BoardCollector
from switchgear.cli.main import parser
from switchgear.core.clock import ManualClock

FOLDER = Path(__file__).parents[2] / "deploy/kubernetes"


def objects(name: str) -> dict[str, dict[str, Any]]:
    return {found["kind"]: found for found in yaml.safe_load_all((FOLDER / name).read_text())}


@pytest.fixture
def service(tmp_path: Path) -> settings.Service:
    file = tmp_path / "services.toml"
    file.write_text(objects("scale.yaml")["ConfigMap"]["data"]["services.toml"])
    (one,) = settings.load(file).service
    return one


def test_the_command_line_of_the_pod_is_understood() -> None:
    (container,) = objects("scale.yaml")["Deployment"]["spec"]["template"]["spec"]["containers"]
    words = [" ".join(container["args"][:2]), *container["args"][2:]]
    assert parser(words[0]).parse_args(words).config == Path("/etc/switchgear/services.toml")


def test_keda_asks_for_a_service_that_is_there_within_the_same_bounds(service: settings.Service) -> None:
    spec = objects("keda.yaml")["ScaledObject"]["spec"]
    (trigger,) = spec["triggers"]
    assert trigger["metadata"]["service"] == service.name
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (service.min_replicas, service.max_replicas)


def test_the_hpa_follows_a_metric_that_is_there(service: settings.Service) -> None:
    hpa = objects("hpa.yaml")["HorizontalPodAutoscaler"]["spec"]
    (metric,) = (one["external"]["metric"] for one in hpa["metrics"])
    families: Iterable[Any] = BoardCollector(Board((), ManualClock()), ManualClock()).collect()
    assert metric["name"] in {family.name for family in families}
    assert metric["selector"]["matchLabels"] == {"service": service.name}
    assert (hpa["minReplicas"], hpa["maxReplicas"]) == (service.min_replicas, service.max_replicas)
