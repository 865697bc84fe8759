"""What the agent makes of its flags: whom it joins, and where the services are."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from switchgear.agent.enroll import read_token
from switchgear.agent.flags import add_arguments, settings_from
from switchgear.core.errors import Invalid
from switchgear.core.tls import NodeFiles

APART = ("--collector", "c:1", "--scheduler", "s:2", "--autoscaler", "a:4")


@pytest.fixture
def joined(tmp_path: Path) -> NodeFiles:
    files = NodeFiles(tmp_path / "tls")
    files.save("ca", "certificate", "key")
    return files


def parsed(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(["--node", "n1", "--state-dir", "/nowhere", *flags])


def test_a_node_that_joined_services_apart_and_is_not_told_where_they_are_ends_with_the_flags_that_say_it(
    joined: NodeFiles,
) -> None:
    with pytest.raises(Invalid, match="--collector, --scheduler, --autoscaler"):
        settings_from(parsed(), joined)
    with pytest.raises(Invalid, match=r"connect: --collector, --autoscaler \("):
        settings_from(parsed("--scheduler", "s:2"), joined)


def test_the_services_are_where_the_flags_or_the_invitation_say_and_without_either_on_this_machine(
    joined: NodeFiles, tmp_path: Path
) -> None:
    settings = settings_from(parsed(*APART), joined)
    assert (settings.collector, settings.scheduler, settings.recovery, settings.autoscaler) == ("c:1", "s:2", "", "a:4")
    assert settings_from(parsed("--server", "plane:7443"), joined).collector == "plane:7443"
    (joined.folder / "server").write_text("plane:7443")
    assert settings_from(parsed(), joined).scheduler == "plane:7443"
    assert settings_from(parsed(), NodeFiles(tmp_path / "plain")).scheduler == "127.0.0.1:7070"


def test_a_join_token_need_not_be_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "join").write_text("token of a file\n")
    assert read_token(parsed("--join", f"@{tmp_path / 'join'}").join) == "token of a file\n"
    assert read_token(parsed("--join", "token").join) == "token"
    monkeypatch.setenv("SWITCHGEAR_JOIN_TOKEN", "token of the environment")
    assert read_token(parsed().join) == "token of the environment"
    with pytest.raises(Invalid, match="No such file"):
        read_token("@/nowhere/join")


def test_a_fault_script_without_simulated_gpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="--sim-gpus"):
        settings_from(parsed("--sim-script", "faults.txt"), NodeFiles(tmp_path / "tls"))
