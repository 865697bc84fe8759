"""The house rules that no linter knows."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PORTIONS = ("lib", "services", "agents", "workloads")
PYTHON_LINES_MAX = 500
# Path -> reason. A file that outgrows the bound holds more than one concept: split it before it lands here.
LONGER_WITH_REASON: dict[str, str] = {}

# Decisions are pure: time, identity and the world are passed in.
PURE = (
    "services/switchgear/*/model.py",
    "services/switchgear/recovery/values.py",
    "services/switchgear/recovery/events.py",
    "services/switchgear/recovery/effects.py",
    "services/switchgear/*/placement.py",
    "services/switchgear/*/nodes.py",
    "services/switchgear/*/decide.py",
    "services/switchgear/*/detectors.py",
    "services/switchgear/collector/health.py",
    "services/switchgear/collector/webhooks/alerts.py",
    "services/switchgear/collector/webhooks/forms.py",
    "services/switchgear/collector/webhooks/groups.py",
    "lib/switchgear/core/catalog/ends.py",
    "lib/switchgear/slurm/model.py",
    "lib/switchgear/slurm/hostlist.py",
    "lib/switchgear/slurm/gres.py",
    "lib/switchgear/slurm/parse.py",
    "lib/switchgear/slurm/scontrol.py",
    "lib/switchgear/slurm/sbatch.py",
    "lib/switchgear/slurm/rest_fields.py",
    "lib/switchgear/slurm/refusals.py",
    "services/switchgear/collector/replay.py",
    "services/switchgear/collector/imports/exposition.py",
    "services/switchgear/collector/imports/presence.py",
    "services/switchgear/collector/imports/rules.py",
    "lib/switchgear/core/catalog/judge*.py",
    "agents/switchgear/agent/fault_join.py",
    "agents/switchgear/agent/sources/kernel_log/*.py",
    "services/switchgear/*/machine.py",
    "services/switchgear/*/faults.py",
    "services/switchgear/*/records.py",
    "services/switchgear/*/diagnosis.py",
    "services/switchgear/*/policy.py",
    "services/switchgear/planner/*.py",
    "services/switchgear/autoscaler/observation.py",
    "services/switchgear/autoscaler/meter.py",
    "services/switchgear/autoscaler/observe.py",
    "services/switchgear/autoscaler/scaling.py",
    "services/switchgear/autoscaler/replay.py",
    "services/switchgear/autoscaler/decision_log.py",
    "services/switchgear/autoscaler/replicas.py",
    "services/switchgear/autoscaler/adapters/[!f]*.py",
    "services/switchgear/autoscaler/adapters/fleet.py",
    "services/switchgear/autoscaler/plan.py",
    "services/switchgear/autoscaler/baselines/*.py",
    "agents/switchgear/agent/sources/links.py",
    "agents/switchgear/launcher/lease.py",
    "agents/switchgear/launcher/watch.py",
    "agents/switchgear/launcher/stacks.py",
    "agents/switchgear/launcher/activity.py",
    "agents/switchgear/sim/profiles.py",
    "agents/switchgear/sim/workloads.py",
    "agents/switchgear/sim/faults.py",
    "agents/switchgear/sim/signals.py",
    "agents/switchgear/sim/nvidia.py",
    "agents/switchgear/sim/amd.py",
    "agents/switchgear/sim/kernel_lines.py",
    "workloads/switchgear/serve/model.py",
    "workloads/switchgear/serve/batching.py",
    "workloads/switchgear/serve/completions.py",
    "workloads/switchgear/serve/promise.py",
    "workloads/switchgear/serve/switchboard.py",
)
IMPURE_MODULES = frozenset({
    "grpc", "sqlalchemy", "fastapi", "asyncio", "os", "time", "random", "socket", "logging", "subprocess", "uuid",
    "switchgear.core.rpc", "switchgear.core.log", "switchgear.v1", "switchgear.v1alpha", "switchgear.store",
})  # fmt: skip


def tracked_files() -> list[Path]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "-c", "safe.directory=*", "-C", str(ROOT), "ls-files", "-z"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    # A file may be deleted in the working tree and not yet in the index.
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def text_of(path: Path) -> str:
    try:
        return path.read_text()
    except UnicodeDecodeError:  # binary
        return ""


def imported_modules(source: str) -> set[str]:
    """Each module that the source imports, with its parents: `import a.b` gives a and a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {
        ".".join(parts[:depth]) for name in names for parts in [name.split(".")] for depth in range(1, len(parts) + 1)
    }


def test_the_namespace_has_no_init_file() -> None:
    """One `switchgear/__init__.py` would hide the packages of all other folders."""
    assert [
        relative(ROOT / p / "switchgear/__init__.py")
        for p in PORTIONS
        if (ROOT / p / "switchgear/__init__.py").exists()
    ] == []


def test_every_package_is_typed() -> None:
    packages = [init.parent for portion in PORTIONS for init in (ROOT / portion / "switchgear").glob("*/__init__.py")]
    assert len(packages) >= 11
    assert [relative(package) for package in packages if not (package / "py.typed").exists()] == []


def test_generated_code_is_not_committed() -> None:
    generated = re.compile(r"_pb2(_grpc)?\.pyi?$")
    assert [relative(path) for path in tracked_files() if generated.search(path.name)] == []


def test_python_files_can_be_read_in_one_sitting() -> None:
    longer = {
        relative(p): n
        for p in tracked_files()
        if p.suffix == ".py" and (n := len(text_of(p).splitlines())) > PYTHON_LINES_MAX
    }
    assert set(longer) == set(LONGER_WITH_REASON), longer


def test_every_target_of_the_makefile_is_phony_and_told_by_help() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = makefile.partition(".PHONY:")[2].partition("\n")[0].split()
    assert sorted(phony) == sorted(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))


def test_no_path_of_a_developers_machine_is_committed() -> None:
    private = re.compile(rf"/(?:home|Users)/\w|{re.escape(str(ROOT))}\b")
    paths = [path for path in tracked_files() if path.name != "Dockerfile"]
    found = {relative(path): match.group() for path in paths if (match := private.search(text_of(path)))}
    assert found == {}


def test_work_left_undone_has_an_issue_number() -> None:
    mark = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME)\b(?!\(#\d+\))")
    found = {relative(path): match.group() for path in tracked_files() if (match := mark.search(text_of(path)))}
    assert found == {}


@pytest.mark.parametrize("pattern", PURE)
def test_decisions_are_pure(pattern: str) -> None:
    files = sorted(ROOT.glob(pattern))
    assert files, f"no file is named {pattern}: follow the rename here"
    touched = {
        relative(path): found for path in files if (found := imported_modules(path.read_text()) & IMPURE_MODULES)
    }
    assert touched == {}


@pytest.mark.parametrize(
    "source",
    ["import os.path", "from time import monotonic", "from switchgear.core import rpc", "def f():\n import grpc.aio"],
)
def test_an_impure_import_is_seen_in_every_form(source: str) -> None:
    assert imported_modules(source) & IMPURE_MODULES


def test_what_the_library_offers_is_documented() -> None:
    undocumented = [
        f"{relative(path)}: {node.name}"
        for path in sorted((ROOT / "lib").rglob("*.py"))
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if not node.name.startswith("_") and ast.get_docstring(node) is None
    ]
    assert undocumented == []
