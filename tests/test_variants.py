"""Models with half of each layer: their names, their arithmetic, and what a sweep makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.errors import ModelError, SpecError
from orchestrator.expand import expand
from orchestrator.gpus import KINDS
from orchestrator.plan import plan
from orchestrator.simulated.kernels import StepCosts
from orchestrator.spec import load_spec, parse_spec
from orchestrator.trial import Arm, Cell, Measurement, Repeat, Single, TimeSliced, Workload
from workloads.architecture import Architecture, Batch
from workloads.catalogue import CATALOGUE, canonical_name, config_folder, load_model
from workloads.variants import ARCHITECTURES, VARIANTS, ablated, split

FAMILIES = ("Qwen/Qwen2.5-3B", "meta-llama/Llama-3.2-3B")
MIXED = Batch(8, 8 * 500, ((300, 0), (100, 50)))
SWEEP = """
schema_version: 1
name: halves
question: Where does it come from?
gpu: H200
arms:
  single: {sharing: single}
  timesliced2: {sharing: timesliced, engines: 2}
workload: {prompt_tokens: 128, output_tokens: 16, concurrency: 8}
sweep:
  grid:
    model: MODELS
"""


def halves(name: str) -> tuple[Architecture, Architecture, Architecture]:
    return load_model(name), load_model(f"{name}:attention-only"), load_model(f"{name}:mlp-only")


def test_names() -> None:
    assert canonical_name("qwen2.5-3b:attention-only") == "Qwen/Qwen2.5-3B:attention-only"
    assert split(canonical_name("Llama-3.2-1B:mlp-only")) == ("meta-llama/Llama-3.2-1B", "mlp-only")
    assert split("Qwen/Qwen2.5-3B") == ("Qwen/Qwen2.5-3B", None)
    assert load_model("Qwen2.5-3B:mlp-only").name == "Qwen/Qwen2.5-3B:mlp-only"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Qwen2.5-3B:attn-only", r"Qwen2\.5-3B has no variant 'attn-only'; variants: attention-only, mlp-only"),
        ("Qwen2.5-3B:", "has no variant ''"),
        ("Qwen2.5-3B:mlp-only:mlp-only", "a variant has no variants"),
        ("Qwen3-4B:mlp-only", "no mlp-only variant of model type 'qwen3'; there is one of: qwen2, llama"),
        ("gemma-3-1b:attention-only", "of model type 'gemma3_text'"),
        ("Qwen2.5-2B:mlp-only", "no such model; nearest"),
    ],
)
def test_what_there_is_no_variant_of_is_refused(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(name)


@pytest.mark.parametrize("name", FAMILIES)
def test_parameters_by_hand(name: str) -> None:
    full, attention, mlp = halves(name)
    size, heads, kv, width = full.hidden_size, full.attention_heads, full.kv_heads, full.head_dim
    block = size * width * (2 * heads + 2 * kv) + (heads + 2 * kv) * width * full.qkv_bias
    assert full.parameters() - attention.parameters() == full.layers * 3 * size * full.intermediate_size
    assert full.parameters() - mlp.parameters() == full.layers * block
    shared = (2 * full.layers + 1) * size + full.vocabulary * size  # norms, and the embedding that is the LM head too
    assert attention.parameters() + mlp.parameters() - full.parameters() == shared
    assert attention.weight_bytes() == 2 * attention.parameters()


@pytest.mark.parametrize("name", FAMILIES)
def test_kv_is_that_of_the_full_model(name: str) -> None:
    assert len({model.kv_bytes_per_token() for model in halves(name)}) == 1


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("batch", [MIXED, Batch(0, 0, ((512, 0),)), Batch(16, 16 * 1024)])
def test_work_is_that_of_what_runs(name: str, batch: Batch) -> None:
    full, attention, mlp = ({work.layer_type: work for work in model.step_work(batch)} for model in halves(name))
    assert attention == {key: work for key, work in full.items() if key != "mlp"}
    assert mlp == {key: work for key, work in full.items() if key not in ("qkv", "attention", "attention_out")}


def test_simulated_steps_of_halves() -> None:
    """A cost comes out the same whether the rest of the step is known already or not; halves share that rest."""
    gpu = KINDS["H200"]
    for batch in (MIXED, Batch(16, 16 * 1024)):
        whole, attention, mlp = (StepCosts(model, gpu) for model in halves("Qwen2.5-3B"))
        costs = {model.architecture.variant: model.exact(batch) for model in (whole, attention, mlp)}
        assert all(model.exact(batch) == costs[model.architecture.variant] for model in (whole, attention, mlp))
        assert costs["mlp-only"].attention_launches == 0 < costs["attention-only"].attention_launches
        assert max(costs["mlp-only"].seconds, costs["attention-only"].seconds) < costs[None].seconds
        assert costs["mlp-only"].seconds + costs["attention-only"].seconds > costs[None].seconds


def test_an_engine_is_told_by_the_architecture_alone(tmp_path: Path) -> None:
    for name in FAMILIES:
        full = json.loads((config_folder(name, tmp_path) / "config.json").read_text())
        for variant in VARIANTS:
            folder = config_folder(f"{name}:{variant}", tmp_path)
            config = json.loads((folder / "config.json").read_text())
            assert ARCHITECTURES[config["architectures"][0]] == (full["model_type"], variant)
            assert {**config, "architectures": full["architectures"]} == full
            assert load_model(str(folder)).parameters() == load_model(f"{name}:{variant}").parameters()


def test_a_variant_of_a_local_model_leaves_its_folder_alone(tmp_path: Path) -> None:
    local = config_folder("Qwen2.5-0.5B", tmp_path / "models")
    before = (local / "config.json").read_bytes()
    folder = config_folder(f"{local}:mlp-only", tmp_path / "into")
    assert folder == tmp_path / "into" / "Qwen2.5-0.5B-mlp-only"
    assert load_model(str(folder)).variant == "mlp-only"
    assert (local / "config.json").read_bytes() == before


def test_an_architecture_of_another_family_is_refused() -> None:
    config = {**load_model("Llama-3.2-1B").config, "architectures": ["Qwen2MLPOnlyForCausalLM"]}
    with pytest.raises(ModelError, match="Qwen2MLPOnlyForCausalLM is of model type qwen2, not llama"):
        Architecture.from_config(config, "mixed-up")
    assert ablated(load_model("Llama-3.2-1B").config, "mlp-only", "x")["architectures"] == ["LlamaMLPOnlyForCausalLM"]


def test_a_variant_is_part_of_a_cell_and_of_nothing_else() -> None:
    """Its arms share blocks and are compared with each other; the full model's identities are what they were."""
    models = ["Qwen2.5-3B", "Qwen2.5-3B:attention-only", "Qwen2.5-3B:mlp-only"]
    repeats = expand(parse_spec(SWEEP.replace("MODELS", json.dumps(models))), "vllm")
    alone = expand(parse_spec(SWEEP.replace("MODELS", json.dumps(models[:1]))), "vllm")
    assert [r.repeat_id for r in alone] == [r.repeat_id for r in repeats if r.cell.model == "Qwen/Qwen2.5-3B"]
    assert len({repeat.repeat_id for repeat in repeats}) == len(repeats) == 9
    planned = plan(repeats, KINDS["H200"])
    assert {block.model for block in planned.blocks} == {f"Qwen/{model}" for model in models}
    full, attention, mlp = planned.blocks[:3]
    for half in (attention, mlp):
        assert half.sizing == full.sizing and half.arms == full.arms
        assert half.memory["single"].weights < full.memory["single"].weights
        assert half.memory["single"].kv == full.memory["single"].kv


def test_identities_of_the_record_stand() -> None:
    """An id that was made before there were variants."""
    cell = Cell("H200", "Qwen/Qwen2.5-1.5B", Workload("mixed", 128, 128), 256)
    arms = (Arm("single", Single()), Arm("timesliced2", TimeSliced(2)))
    repeat = Repeat("vllm", cell, arms, {"dtype": "bfloat16"}, Measurement(), 0, 0)
    assert repeat.repeat_id == "9c3dd69707d5e046"


def test_a_misspelt_variant_is_a_fault_of_the_file() -> None:
    with pytest.raises(SpecError, match=r"<spec>:12: sweep\.grid\.model\[0\]: .*has no variant 'mlponly'"):
        parse_spec(SWEEP.replace("MODELS", '["Qwen2.5-3B:mlponly"]'))
    with pytest.raises(SpecError, match=r"'Qwen/Qwen2\.5-3B:mlp-only' stands twice"):
        parse_spec(SWEEP.replace("MODELS", '["Qwen2.5-3B:mlp-only", "qwen2.5-3b:mlp-only"]'))


@pytest.mark.parametrize("kind", ["decode", "prefill"])
def test_the_ablation_sweeps_ask_the_same_of_full_model_and_halves(kind: str) -> None:
    spec = load_spec(Path(__file__).parent.parent / "sweeps" / f"ablation-{kind}.yaml")
    cells: dict[str, set[tuple[Workload, int]]] = {}
    for repeat in expand(spec, "vllm", "H200"):
        cells.setdefault(repeat.cell.model, set()).add((repeat.cell.workload, repeat.cell.concurrency))
    assert {split(model) for model in cells} == {
        (f"Qwen/Qwen2.5-{size}", variant) for size in ("0.5B", "1.5B", "3B") for variant in (None, *VARIANTS)
    }
    (asked,) = {frozenset(of_model) for of_model in cells.values()}
    assert {work.kind for work, _ in asked} == {kind}
    assert {work.prompt_tokens for work, _ in asked} == {128, 256, 512, 1024, 2048, 4096}
    assert [arm.sharing for arm in expand(spec, "vllm", "H200")[0].arms] == ["single", "timesliced", "mps"]


def test_variants_exist_of_every_family_in_the_catalogue_that_has_a_class() -> None:
    families = {model_type for model_type, _ in ARCHITECTURES.values()}
    for name in CATALOGUE:
        if load_model(name).model_type in families:
            assert [load_model(f"{name}:{variant}").variant for variant in VARIANTS] == list(VARIANTS)
