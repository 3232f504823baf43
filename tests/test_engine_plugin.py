"""The entry point that vLLM finds: the same in a working tree and an installation, and the only one it is let load."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orchestrator.engine_settings import base_environment
from workloads import engine_plugin

ROOT = Path(__file__).parent.parent
FIND = """
import json, sys
from importlib.metadata import distribution, entry_points
found = [(p.name, p.value, p.load().__module__) for p in entry_points(group="vllm.general_plugins")]
print(json.dumps([found, "vllm" in sys.modules]))
"""


def test_a_working_tree_has_the_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a fresh interpreter elsewhere that sees no installation of this project, as an engine would start."""
    monkeypatch.setenv("MPSCAPE_CACHE", str(tmp_path / "caches"))
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    environment = base_environment()
    assert environment["VLLM_PLUGINS"] == engine_plugin.NAME
    assert environment["PYTHONPATH"].split(":")[::2] == [str(ROOT), "/nowhere"]
    # Without site-packages, where an editable installation would be.
    ended = subprocess.run(
        [sys.executable, "-S", "-c", FIND], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    found, imported = json.loads(ended.stdout)
    assert found == [[engine_plugin.NAME, engine_plugin.TARGET, "workloads.engine_plugin"]]
    assert not imported  # an engine that wants no ablated model pays nothing for them


def test_an_installation_has_the_same_entry_point() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"] == {engine_plugin.GROUP: {engine_plugin.NAME: engine_plugin.TARGET}}


def test_the_folder_may_be_asked_for_by_many_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        (folder,) = set(pool.map(engine_plugin.metadata_folder, [tmp_path] * 32))
    (information,) = folder.iterdir()
    assert {file.name for file in information.iterdir()} == {"METADATA", "entry_points.txt"}


def test_an_older_folder_is_brought_up_to_date(tmp_path: Path) -> None:
    (information,) = engine_plugin.metadata_folder(tmp_path).iterdir()
    (information / "entry_points.txt").write_text("[vllm.general_plugins]\nmpscape = elsewhere:gone\n")
    engine_plugin.metadata_folder(tmp_path)
    assert engine_plugin.TARGET in (information / "entry_points.txt").read_text()
