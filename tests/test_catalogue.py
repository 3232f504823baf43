"""Every catalogue model against its published parameter count, and every way to name a model."""

import json
import os
import sys
from pathlib import Path

import pytest

import workloads.catalogue
from orchestrator.errors import ModelError
from workloads.catalogue import CATALOGUE, canonical_name, config_folder, load_model

# As counted in the published safetensors files (of Gemma 3 4B, 4,300,079,472 in all, the text part).
PUBLISHED_PARAMETERS = {
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-14B": 14_770_033_664,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "google/gemma-3-1b-pt": 999_885_952,
    "google/gemma-3-4b-pt": 3_880_263_168,
}
HUB_CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 100,
    "max_position_embeddings": 512,
}


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for key in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    return tmp_path / "huggingface" / "hub"


def write_config(folder: Path, **changes: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**HUB_CONFIG, **changes}))
    return folder


def test_every_catalogue_model_has_a_published_count() -> None:
    assert set(PUBLISHED_PARAMETERS) == set(CATALOGUE)


def test_every_config_file_cites_its_model_card() -> None:
    folder = Path(workloads.catalogue.__file__).parent / "configs"
    rows = (folder / "README.md").read_text().splitlines()
    cited = {row for row in rows if row.startswith("| `")}
    assert cited == {f"| `{name.split('/')[1]}.json` | huggingface.co/{name} |" for name in CATALOGUE}
    assert {file.stem for file in folder.glob("*.json")} == {name.split("/")[1] for name in CATALOGUE}


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED_PARAMETERS.items())
def test_parameters_as_published(name: str, parameters: int) -> None:
    model = load_model(name)
    assert model.name == name
    assert model.parameters() == parameters


def test_gemma_3_slides_in_five_layers_of_six() -> None:
    one, four = load_model("google/gemma-3-1b-pt"), load_model("google/gemma-3-4b-pt")
    assert (one.sliding_window, one.full_attention_layers, one.layers) == (512, 4, 26)
    assert (four.sliding_window, four.full_attention_layers, four.layers) == (1024, 5, 34)
    assert four.qk_norm and not four.qkv_bias and four.head_dim == 256


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B"),
        ("qwen/QWEN3-4b", "Qwen/Qwen3-4B"),
        ("Llama-3.2-1B", "meta-llama/Llama-3.2-1B"),
        ("Gemma-3-4B", "google/gemma-3-4b-pt"),
        ("google/gemma-3-1b", "google/gemma-3-1b-pt"),
        ("org/other", "org/other"),
    ],
)
def test_aliases(alias: str, name: str) -> None:
    assert canonical_name(alias) == name


def test_a_local_folder_and_its_json_file_are_one_model(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "model")
    assert load_model(str(folder)) == load_model(str(folder / "config.json"))
    assert load_model(str(folder)).name == canonical_name(str(folder)) == str(folder)
    other = folder / "small.json"
    other.write_text(json.dumps({**HUB_CONFIG, "num_hidden_layers": 1}))
    assert load_model(str(other)).layers == 1


def test_a_hub_id_is_read_from_the_snapshot_that_main_points_to(empty_cache: Path) -> None:
    model = empty_cache / "models--org--small"
    write_config(model / "snapshots" / "aaa", num_hidden_layers=3)
    newest = write_config(model / "snapshots" / "bbb", num_hidden_layers=5)
    os.utime(newest / "config.json", (4e9, 4e9))
    assert load_model("org/small").layers == 5
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("aaa")
    assert load_model("org/small").layers == 3


def test_a_hub_id_is_downloaded_where_the_hub_client_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_config(tmp_path / "elsewhere", num_hidden_layers=7)
    (tmp_path / "huggingface_hub.py").write_text(
        "def hf_hub_download(repo, file):\n"
        "    if repo != 'org/small':\n"
        "        raise OSError(f'404 {repo}')\n"
        f"    return {str(folder)!r} + '/' + file\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "huggingface_hub", raising=False)
    assert load_model("org/small").layers == 7
    with pytest.raises(ModelError, match=r"cannot be downloaded \(404 org/none\)"):
        load_model("org/none")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
        load_model("org/small")
    monkeypatch.delitem(sys.modules, "huggingface_hub", raising=False)


@pytest.mark.parametrize(
    ("name", "nearest"), [("Qwen2.5-2B", "Qwen/Qwen2.5-"), ("lama-3.1-8B", "meta-llama/Llama-3.1-8B")]
)
def test_an_unknown_name_gets_the_nearest_ones(name: str, nearest: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(name)
    assert f"{name}: no such model; nearest in the catalogue: " in str(caught.value)
    assert nearest in str(caught.value).split(";")[1]
    assert "a folder with config.json, or a hub id" in str(caught.value)


def test_a_misspelt_hub_id_gets_the_nearest_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match=r"not in the local .*nearest in the catalogue: Qwen/Qwen3-8B"):
        load_model("Qwen/Qwen-3-8B")


def test_bad_local_configs_say_where(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"empty: the folder has no config\.json"):
        load_model(str(tmp_path / "empty"))
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(ModelError, match=r"broken\.json cannot be read as JSON"):
        load_model(str(broken))
    broken.write_text("[]")
    with pytest.raises(ModelError, match="is not a JSON object"):
        load_model(str(broken))


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_written_folder_is_the_same_model(name: str, tmp_path: Path) -> None:
    folder = config_folder(name, tmp_path)
    assert [file.name for file in folder.iterdir()] == ["config.json"]
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"][0].endswith("ForCausalLM") and config["torch_dtype"] == "bfloat16"
    assert load_model(str(folder)).parameters() == PUBLISHED_PARAMETERS[name]
    assert config_folder(name, tmp_path) == folder


def test_local_folders_are_used_as_they_are(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "model")
    assert config_folder(str(folder), tmp_path / "into") == folder
    small = folder / "small.json"
    small.write_text(json.dumps(HUB_CONFIG))
    assert config_folder(str(small), tmp_path / "into") == tmp_path / "into" / "small"
    assert load_model(str(tmp_path / "into" / "small")).layers == 2
