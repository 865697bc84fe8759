"""How `up` and `serve` are told whose nodes they use."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from switchgear.cli.engine_flags import add_engine_arguments, policies_of, slurm_from
from switchgear.core.errors import Invalid
from switchgear.core.modes import Mode
from switchgear.store.policies import CORDON

POSTGRES = "postgresql+asyncpg://ann:secret@db:5432/switchgear"


def _parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_engine_arguments(parser)
    return parser.parse_args(arguments)


def test_without_a_word_agents_start_the_launchers_and_nodes_are_ours_alone(tmp_path: Path) -> None:
    args = _parsed()
    assert slurm_from(args, tmp_path) is None
    assert policies_of(args, {}) == {}
    with pytest.raises(Invalid, match="--engine slurm"):
        slurm_from(_parsed("--slurm-partition", "gpu"), tmp_path)


def test_an_engine_that_does_not_exist_is_not_taken_for_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWITCHGEAR_ENGINE", "Slurm")
    with pytest.raises(Invalid, match="local or slurm, not 'Slurm'"):
        slurm_from(_parsed(), tmp_path)


def test_nodes_of_slurm_are_drained_once_somebody_says_so() -> None:
    args = _parsed("--engine", "slurm")
    assert policies_of(args, {}) == {CORDON: Mode.ADVISE}
    assert policies_of(args, {CORDON: Mode.ACT}) == {CORDON: Mode.ACT}


def test_what_is_said_of_slurm_is_what_its_engine_is_told(tmp_path: Path) -> None:
    flags = ("--engine", "slurm", "--slurm-partition", "gpu", "--slurm-partition", "big")
    found = slurm_from(_parsed(*flags), tmp_path)
    assert found
    assert (found.cluster, found.partitions) == ("", ("gpu", "big"))
    assert found.state_dir == tmp_path / "slurm"
    chosen = slurm_from(_parsed(*flags, "--slurm-name", "lab", "--slurm-patience-seconds", "5"), tmp_path)
    assert chosen
    assert (chosen.cluster, chosen.patience_s) == ("lab", 5)
    with pytest.raises(Invalid, match="--slurm-name"):
        slurm_from(_parsed(*flags, "--slurm-name", "a:b"), tmp_path)
    with pytest.raises(Invalid, match="give 1 to 86400"):
        slurm_from(_parsed(*flags, "--slurm-patience-seconds", "nan"), tmp_path)


def test_launchers_find_no_secret_of_the_control_plane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWITCHGEAR_DATABASE_URL", POSTGRES)
    monkeypatch.setenv("SLURM_JWT", "token")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/other.conf")
    found = slurm_from(_parsed("--engine", "slurm", "--slurm-tls", str(tmp_path)), tmp_path)
    assert found
    assert found.environment["SLURM_CONF"] == "/etc/slurm/other.conf"
    assert not {"SWITCHGEAR_DATABASE_URL", "SLURM_JWT"} & set(found.environment)
    assert found.tls
    assert found.tls.certificate == tmp_path / "node.crt"
