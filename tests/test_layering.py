"""Imports go one way: workloads <- orchestrator <- dashboards. Only the driver's side knows Ray, only the engine's own
process knows vLLM and torch.
"""

from __future__ import annotations

import ast
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("workloads", "orchestrator", "dashboards")

# The engine's process, what runs inside EngineCore (a probe, and steps that are replayed and profiled), the process
# that imports vLLM once and forks engines, the target that drives one, the plugin that vLLM loads and the models that
# it makes known.
ENGINE_SIDE = {
    "orchestrator.engine_main",
    "orchestrator.engine_probe",
    "orchestrator.nursery_main",
    "orchestrator.step_profile",
    "orchestrator.step_replay",
    "workloads.ablation_models",
    "workloads.engine_plugin",
    "workloads.vllm_target",
}
HEAVY = ("vllm", "torch")


def modules(package: str) -> list[str]:
    found = pkgutil.walk_packages([str(ROOT / package)], prefix=f"{package}.")
    return sorted([package, *(module.name for module in found)])


def imports(module: str) -> set[str]:
    """Every module that the source of `module` names in an import, at whatever depth."""
    path = ROOT.joinpath(*module.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    named: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            named |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return named


def roots(module: str) -> set[str]:
    return {name.partition(".")[0] for name in imports(module)}


# Stands in for every module of the given roots: importing one is noted, then fails as if it were not installed.
LOOKOUT = """
import importlib, importlib.abc, importlib.machinery, sys

class Lookout(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, roots):
        self.roots, self.seen = roots, []
    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name.partition(".")[0] in self.roots else None
    def create_module(self, spec):
        self.seen.append(spec.name)
        raise ImportError(f"no module named {spec.name!r} here", name=spec.name)

lookout = Lookout(sys.argv[1].split(","))
sys.meta_path.insert(0, lookout)
for module in sys.argv[2:]:
    importlib.import_module(module)
    if lookout.seen:
        sys.exit(f"{module} imports {lookout.seen[0]}")
"""


def import_all(forbidden: tuple[str, ...], names: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LOOKOUT, ",".join(forbidden), *names],
        cwd=ROOT, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip


def test_dashboards_do_without_ray_and_engines() -> None:
    ended = import_all(("ray", "vllm", "torch"), modules("dashboards"))
    assert ended.returncode == 0, ended.stderr


def test_the_driver_does_without_engines() -> None:
    ended = import_all(
        HEAVY, ["orchestrator.sweep", "orchestrator.verdicts", "orchestrator.doctor", "orchestrator.host"]
    )
    assert ended.returncode == 0, ended.stderr


def test_verdicts_do_without_ray() -> None:
    ended = import_all(("ray", *HEAVY), ["orchestrator.verdicts", "orchestrator.store", "orchestrator.spec"])
    assert ended.returncode == 0, ended.stderr


def test_the_lookout_sees() -> None:
    ended = import_all(("json",), ["orchestrator.trial"])
    assert ended.returncode != 0
    assert "json" in ended.stderr


@pytest.mark.parametrize("module", [name for package in PACKAGES for name in modules(package)])
def test_directions(module: str) -> None:
    named = imports(module)
    package = module.partition(".")[0]
    if module not in ENGINE_SIDE:
        assert not roots(module) & set(HEAVY)
    if package == "workloads":
        ours = {name for name in named if name.partition(".")[0] in PACKAGES and not name.startswith("workloads")}
        assert {name for name in ours if not name.startswith("orchestrator.errors")} <= {"orchestrator"}
    if package == "orchestrator":
        assert "dashboards" not in roots(module)
    if package == "dashboards":
        assert "ray" not in roots(module)
    assert "tests" not in roots(module)


def test_three_modules_know_ray() -> None:
    knowing = {name for name in modules("orchestrator") if "ray" in roots(name)}
    assert knowing == {"orchestrator.cluster", "orchestrator.fleet_metrics", "orchestrator.hosts", "orchestrator.pool"}
