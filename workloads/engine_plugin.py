"""What vLLM loads of this project in every process of an engine: a plugin that makes the ablated models known to it.

vLLM looks for entry points of the group `vllm.general_plugins` in its frontend, in EngineCore, in its workers and where
it inspects a model's class, and calls each of them. An installed project has entry points by its metadata; a working
tree has none, so `metadata_folder` writes some, for the PYTHONPATH of engines.
"""

from __future__ import annotations

from pathlib import Path

from workloads.variants import ARCHITECTURES
from workloads.whole_file import write_whole

GROUP = "vllm.general_plugins"
# The entry point in pyproject.toml is the same one (tests/test_engine_plugin.py). Where both are found, vLLM's
# dictionary of plugins keeps one of them.
NAME = "mpscape"
TARGET = "workloads.engine_plugin:register"
_METADATA = {
    "entry_points.txt": f"[{GROUP}]\n{NAME} = {TARGET}\n",
    # A distribution of its own, so that it is never taken for an installed project.
    "METADATA": "Metadata-Version: 2.1\nName: mpscape-engine-plugin\nVersion: 1\n",
}


def register() -> None:
    """Tell vLLM of every ablated model, by name: its module is imported only by an engine that wants it.

    May be called again: it then says the same.
    """
    from vllm import ModelRegistry

    for architecture in ARCHITECTURES:
        ModelRegistry.register_model(architecture, f"workloads.ablation_models:{architecture}")


def metadata_folder(caches: Path) -> Path:
    """A folder below `caches` from which Python finds the entry point once it is on the path.

    Processes may ask for it at once: each file appears whole.
    """
    folder = caches.absolute() / "engine-plugin"
    information = folder / "mpscape_engine_plugin-1.dist-info"
    information.mkdir(parents=True, exist_ok=True)
    for name, text in _METADATA.items():
        file = information / name
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            write_whole(file, text)
    return folder
