"""Models by name: the published configs that ship with this package, local folders, and the Hugging Face cache.

A catalogue model needs no network and no weights: its config is all that the arithmetic and an engine with dummy
weights need. The configs and their sources are in `configs/`. Behind a name, `:attention-only` or `:mlp-only` asks for
half of each layer (`variants`).

    >>> canonical_name("qwen2.5-0.5b")
    'Qwen/Qwen2.5-0.5B'
    >>> canonical_name("qwen2.5-0.5b:mlp-only")
    'Qwen/Qwen2.5-0.5B:mlp-only'
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.errors import ModelError
from workloads.architecture import Architecture
from workloads.config import text_config
from workloads.variants import VARIANTS, ablated, split
from workloads.whole_file import write_whole

CATALOGUE: tuple[str, ...] = (
    "Qwen/Qwen2.5-0.5B",
    "Qwen/Qwen2.5-1.5B",
    "Qwen/Qwen2.5-3B",
    "Qwen/Qwen2.5-7B",
    "Qwen/Qwen2.5-14B",
    "Qwen/Qwen3-0.6B",
    "Qwen/Qwen3-1.7B",
    "Qwen/Qwen3-4B",
    "Qwen/Qwen3-8B",
    "meta-llama/Llama-3.2-1B",
    "meta-llama/Llama-3.2-3B",
    "meta-llama/Llama-3.1-8B",
    "google/gemma-3-1b-pt",
    "google/gemma-3-4b-pt",
)

_CONFIGS = Path(__file__).parent / "configs"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def _aliases() -> dict[str, str]:
    """Every accepted spelling in lower case: with and without the organisation, Gemma's also without `-pt`."""
    aliases = {}
    for name in CATALOGUE:
        full = name.lower()
        for spelling in (full, full.removesuffix("-pt")):
            aliases[spelling] = aliases[spelling.split("/")[1]] = name
    return aliases


_ALIASES = _aliases()


def canonical_name(name: str) -> str:
    """The one name of a model: the catalogue's, the absolute path of a local folder, or the hub id as given.

    That of a variant is the full model's, a colon and the variant. Raises ModelError where the name is none of these.
    """
    full, variant = split(name)
    if variant is not None:
        if split(full)[1] is not None:
            raise ModelError(f"{name}: a variant has no variants")
        return f"{canonical_name(full)}:{variant}"
    if name.lower() in _ALIASES:
        return _ALIASES[name.lower()]
    path = Path(name).expanduser()
    if path.exists():
        return str(_config_file(path).parent if path.is_dir() or path.name == "config.json" else path.resolve())
    if _HUB_ID.fullmatch(name):
        return name
    raise _unknown(name, "no such model")


def load_model(name: str) -> Architecture:
    """The architecture of a catalogue model, of a local folder with config.json, or of a hub id in the local cache.

    A hub id that is not cached is downloaded (config.json alone) if huggingface_hub is installed and not offline.
    Raises ModelError for an unknown name, an unreadable config, or a model that the arithmetic does not cover.
    """
    canonical = canonical_name(name)
    full, variant = split(canonical)
    file = _find_config(full)
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{canonical}: {file} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{canonical}: {file} is not a JSON object")
    return Architecture.from_config(ablated(config, variant, canonical) if variant else config, canonical)


def config_folder(name: str, into: Path) -> Path:
    """A folder whose config.json an engine can boot from with dummy weights and no network.

    A local folder is returned as it is. Anything else is written to `into`/<model>/config.json: a variant with its own
    architecture; of a multimodal model only the decoder, as the rest would need an image processor and never be used.
    """
    canonical = canonical_name(name)
    if Path(canonical).is_dir():
        return Path(canonical)
    architecture = load_model(canonical)
    full, variant = split(canonical)
    folder = into / (Path(full).name.removesuffix(".json") + (f"-{variant}" if variant else ""))
    folder.mkdir(parents=True, exist_ok=True)
    # Several engines may be given the same folder while another one writes it: none may see half a file.
    write_whole(folder / "config.json", json.dumps(_engine_config(architecture), indent=2) + "\n")
    return folder


def _engine_config(architecture: Architecture) -> Mapping[str, Any]:
    config = architecture.config
    if config["model_type"] != "gemma3":
        return config
    text = text_config(config, architecture.name)
    return {"architectures": ["Gemma3ForCausalLM"], "torch_dtype": config["torch_dtype"], **text}


def _find_config(canonical: str) -> Path:
    if canonical in CATALOGUE:
        return _CONFIGS / f"{canonical.split('/')[1]}.json"
    if Path(canonical).is_absolute():
        return _config_file(Path(canonical))
    cached = _cached_config(canonical)
    return _download_config(canonical) if cached is None else cached


def _config_file(path: Path) -> Path:
    file = path.resolve() / "config.json" if path.is_dir() else path.resolve()
    if not file.is_file():
        raise ModelError(f"{path}: the folder has no config.json")
    return file


def _cached_config(hub_id: str) -> Path | None:
    """The config of the snapshot that `main` points to, else of the newest one."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    model = Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / f"models--{hub_id.replace('/', '--')}"
    files = sorted(model.glob("snapshots/*/config.json"), key=lambda file: file.stat().st_mtime)
    main = model / "refs" / "main"
    if main.is_file():
        revision = main.read_text(encoding="utf-8").strip()
        files = [file for file in files if file.parent.name == revision] or files
    return files[-1] if files else None


def _download_config(hub_id: str) -> Path:
    if any(
        os.environ.get(key, "").lower() in ("1", "true", "yes", "on")
        for key in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    ):
        raise _unknown(hub_id, "not in the local Hugging Face cache, and HF_HUB_OFFLINE is set")
    if importlib.util.find_spec("huggingface_hub") is None:
        raise _unknown(hub_id, "not in the local Hugging Face cache, and huggingface_hub is not installed")
    hub = importlib.import_module("huggingface_hub")
    try:
        return Path(hub.hf_hub_download(hub_id, "config.json"))
    except (OSError, ValueError) as error:
        raise _unknown(hub_id, f"its config.json cannot be downloaded ({error})") from error


def _unknown(name: str, why: str) -> ModelError:
    full, colon, after = name.rpartition(":")
    if colon and full.lower() in _ALIASES:
        return ModelError(f"{name}: {full} has no variant {after!r}; variants: {', '.join(VARIANTS)}")
    near = [_ALIASES[alias] for alias in difflib.get_close_matches(name.lower(), _ALIASES, n=3, cutoff=0.5)]
    nearest = f"nearest in the catalogue: {', '.join(dict.fromkeys(near))}; " if near else ""
    return ModelError(
        f"{name}: {why}; {nearest}accepted: a catalogue name ({', '.join(CATALOGUE)}), the path of a folder with "
        f"config.json, or a hub id org/name, each with or without one of: {', '.join(f':{v}' for v in VARIANTS)}"
    )
