"""docker-compose.yml, read by the real Compose: its command lines are ours, its files exist, its addresses agree with each other."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_stack import check

from switchgear.cli.main import parser
from switchgear.serve import api_keys

ROOT = Path(__file__).parents[2]
PLACE = ROOT / "deploy/compose"
SERVICES = ("collector", "scheduler", "recovery", "autoscaler", "gateway")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """What Compose makes of the file: merged, with absolute paths."""
    binary = Path(sys.executable).parent / "docker-compose"
    command = [str(binary), "--file", str(ROOT / "docker-compose.yml"), "config", "--format", "json"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 0, ended.stderr
    read: dict[str, Any] = json.loads(ended.stdout)
    return read


def ours(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: made for name, made in compose["services"].items() if made["image"].startswith("switchgear/")}


def option(service: dict[str, Any], flag: str) -> str:
    command: list[str] = service["command"]
    return command[command.index(flag) + 1]


def command_of(service: dict[str, Any]) -> list[str]:
    """The words behind `switchgear`; agents get the first and the last of them from their script."""
    is_agent = service["entrypoint"] == ["sh", "/deploy/agent.sh"]
    return ["agent", *service["command"], "--join", "TOKEN"] if is_agent else list(service["command"])


def scripted_commands() -> list[list[str]]:
    """Calls of ours in the shell scripts, whose variables are as good as any other word."""
    found = list[list[str]]()
    for script in sorted(PLACE.glob("*.sh")):
        text = script.read_text().replace("\\\n", " ")
        for call in re.findall(r"(?:^|\|\| )\s*switchgear (.+)$", text, re.MULTILINE):
            found.append(shlex.split(call.partition(" >")[0]))
    return found


def test_every_command_line_is_one_that_we_understand(compose: dict[str, Any]) -> None:
    commands = [command_of(service) for service in ours(compose).values() if service.get("command")]
    assert len(commands) == len(SERVICES) + 3  # router and two agents
    calls = scripted_commands()
    assert [call[0] for call in calls] == ["tokens", "join-token", "init"]
    for command in [*commands, *calls]:
        parser(command[0]).parse_args(command)


def test_no_script_shows_a_secret_to_ps() -> None:
    assert [
        script.name for script in PLACE.glob("*.sh") if re.search(r"switchgear .*\$\(cat", script.read_text())
    ] == []


def test_everything_that_is_mounted_from_here_exists(compose: dict[str, Any]) -> None:
    mounted = {
        Path(volume["source"])
        for service in compose["services"].values()
        for volume in service.get("volumes", [])
        if volume["type"] == "bind"
    }
    assert len(mounted) >= 5
    assert [path for path in mounted if not path.exists()] == []


def test_ports_are_published_on_loopback_only(compose: dict[str, Any]) -> None:
    published = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert published
    assert {port["host_ip"] for port in published} == {"127.0.0.1"}


def test_images_are_pinned_and_secrets_are_no_environment(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert re.search(r":v?\d+\.\d+(\.\d+)?(-\w+)?$", service["image"]), name
        for variable, value in (service.get("environment") or {}).items():
            assert "PASSWORD" not in variable or variable.endswith("_FILE"), (name, variable)
            assert "://" not in value or "@" not in value or ":" not in value.partition("://")[2].partition("@")[0], (
                name
            )
    assert "USER switchgear" in (ROOT / "Dockerfile").read_text()


def test_services_listen_where_the_others_look_for_them(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name in SERVICES:
        flag = "--machines" if name == "gateway" else "--grpc"
        port = option(services[name], flag).rpartition(":")[2]
        assert services[name]["environment"][f"SWITCHGEAR_{name.upper()}"] == f"{name}:{port}"
        assert services[name]["healthcheck"]["test"][-1] == f"127.0.0.1:{port}"
    assert option(services["router"], "--autoscaler") == services["recovery"]["environment"]["SWITCHGEAR_AUTOSCALER"]
    assert (
        services["enroll"]["environment"]["SWITCHGEAR_SERVER"] == f"gateway:{option(services['gateway'], '--grpc')[8:]}"
    )


def test_the_certificate_is_good_for_every_name_at_which_a_service_is_reached() -> None:
    (made,) = (call for call in scripted_commands() if call[0] == "init")
    parsed = parser("init").parse_args(made)
    assert (set(parsed.host), parsed.router_host) == (set(SERVICES), ["router"])


def test_the_identity_of_the_control_plane_is_with_the_control_plane_alone(compose: dict[str, Any]) -> None:
    having = {
        name
        for name, service in compose["services"].items()
        if any(volume["source"] in ("services", "pki") for volume in service.get("volumes", []))
    }
    assert having == {*SERVICES, "passwords", "init", "enroll"}


def test_init_hands_out_what_the_others_read(compose: dict[str, Any], tmp_path: Path) -> None:
    for folder in ("state/pki", "services", "router-tls", "prometheus"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "state/token").touch()  # so that nothing is made anew
    for name in ("ca", "service", "router", "metrics"):
        for suffix in ("crt", "key"):
            (tmp_path / f"state/pki/{name}.{suffix}").touch()
    environment = {"PATH": "/usr/bin:/bin", "SWITCHGEAR_STATE_DIR": str(tmp_path / "state")}
    script = (PLACE / "init.sh").read_text().replace("/secrets/", f"{tmp_path}/")
    subprocess.run(["sh", "-c", script], check=True, env=environment, timeout=60)
    router = compose["services"]["router"]
    wanted = {Path(option(router, f"--tls-{name}")).name for name in ("ca", "certificate", "key")}
    assert {path.name for path in (tmp_path / "router-tls").iterdir()} == wanted
    assert {path.name for path in (tmp_path / "prometheus").iterdir()} == {"ca.crt", "metrics.crt", "metrics.key"}
    assert {path.name for path in (tmp_path / "services").iterdir()} == {"ca.crt", "service.crt", "service.key"}


def test_prometheus_scrapes_every_process_of_the_control_plane(compose: dict[str, Any], tmp_path: Path) -> None:
    read = yaml.safe_load((PLACE / "prometheus.yml").read_text())
    control_plane, _ = read["scrape_configs"]
    processes = (*SERVICES, "router")
    expected = [f"{name}:{option(compose['services'][name], '--metrics').rpartition(':')[2]}" for name in processes]
    assert control_plane["static_configs"] == [{"targets": expected}]
    assert [scraped["honor_labels"] for scraped in read["scrape_configs"]] == [True, True]

    # promtool also looks for the files that are named; in the container they are mounted.
    for name in ("ca.crt", "metrics.crt", "metrics.key", "token"):
        (tmp_path / name).touch()
    text = (PLACE / "prometheus.yml").read_text().replace("/etc/prometheus/switchgear", str(tmp_path))
    (tmp_path / "prometheus.yml").write_text(text.replace("/etc/prometheus/rules", str(ROOT / "dashboards/rules")))
    check("promtool", "check", "config", tmp_path / "prometheus.yml")


def test_the_router_has_a_key_that_only_it_and_the_script_that_makes_it_see(
    compose: dict[str, Any], tmp_path: Path
) -> None:
    key_file = Path(option(compose["services"]["router"], "--api-key-file"))
    having = {
        name
        for name, service in compose["services"].items()
        if any(volume["target"] == str(key_file.parent) for volume in service.get("volumes", []))
    }
    assert having == {"passwords", "router"}

    for folder in ("postgres", "grafana", "services", "router"):
        (tmp_path / folder).mkdir()
    script = (PLACE / "passwords.sh").read_text().replace("/secrets/", f"{tmp_path}/")
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    made = list[object]()
    for _ in range(2):
        subprocess.run(["sh", "-c", script], check=True, env=environment, timeout=60)
        made.append(api_keys.read(tmp_path / "router" / key_file.name))
    assert made[0] == made[1]


def test_the_alertmanager_understands_its_configuration() -> None:
    check("amtool", "check-config", PLACE / "alertmanager.yml")


def test_grafana_finds_its_data_source_and_our_dashboards(compose: dict[str, Any]) -> None:
    grafana = compose["services"]["grafana"]
    targets = {volume["target"]: Path(volume["source"]) for volume in grafana["volumes"] if volume["type"] == "bind"}
    provisioning = PLACE / "grafana/provisioning"
    assert targets["/etc/grafana/provisioning"] == provisioning
    (provider,) = yaml.safe_load((provisioning / "dashboards/switchgear.yml").read_text())["providers"]
    assert targets[provider["options"]["path"]] == ROOT / "dashboards/grafana"
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (targets[str(home.parent)] / home.name).exists()
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    read = yaml.safe_load((PLACE / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == read["global"]["scrape_interval"]
    assert source["url"] == "http://prometheus:9090"
