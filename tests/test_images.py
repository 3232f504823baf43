"""Prompts with an image, and what a model needs from disk to take one."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

from orchestrator.errors import ModelError, SpecError
from orchestrator.expand import expand
from orchestrator.gpus import KINDS
from orchestrator.plan import plan
from orchestrator.spec import parse_spec
from orchestrator.trial import Workload
from workloads.catalogue import load_model
from workloads.images import IMAGE_PX, image_folder, image_tokens, vision_bytes
from workloads.prompts import PromptPool, image_prompts

GEMMA = load_model("gemma-3-4b").config
SPEC = """
schema_version: 1
name: images
question: what do images cost
backend: vllm
gpu: H200
{weights}
arms: {{single: {{sharing: single}}}}
workload: {{kind: image, prompt_tokens: {prompt_tokens}, output_tokens: 8, concurrency: 4}}
sweep: {{grid: {{model: [{model}]}}}}
"""


def spec(model: str = "gemma-3-4b", prompt_tokens: int = 512, weights: str = "") -> str:
    return SPEC.format(model=model, prompt_tokens=prompt_tokens, weights=weights)


def test_a_prompt_has_one_mark_and_ordinary_ids_and_the_image_makes_up_the_rest() -> None:
    assert image_tokens(GEMMA) == 260
    for prompt in image_prompts(5, 300, GEMMA, seed=1):
        assert prompt.ids[0] == GEMMA["boi_token_index"] and len(prompt.ids) == 1 + 300 - 260
        assert all(256 <= each < GEMMA["boi_token_index"] for each in prompt.ids[1:])
        assert prompt.pixels.shape == (IMAGE_PX, IMAGE_PX, 3) and prompt.pixels.std() > 50


def test_no_image_comes_twice_and_a_seed_gives_the_same_ones() -> None:
    pool = PromptPool(4, 300, 1, 7, images=GEMMA)
    drawn = [pool.next() for _ in range(6)]  # two more than were made beforehand
    assert len({prompt.pixels.tobytes() for prompt in drawn}) == 6 and pool.late == 2  # type: ignore[union-attr]
    again = list(islice(image_prompts(4, 300, GEMMA, seed=7), 4))
    assert [prompt.pixels.tobytes() for prompt in again] == [prompt.pixels.tobytes() for prompt in drawn[:4]]  # type: ignore[union-attr]
    assert [prompt.ids for prompt in again] == [prompt.ids for prompt in drawn[:4]]  # type: ignore[union-attr]


def test_a_prompt_shorter_than_its_image_is_refused() -> None:
    with pytest.raises(ValueError, match="an image alone takes 260 tokens, a prompt has 259"):
        image_prompts(1, 259, GEMMA, seed=1)


def test_the_folder_names_the_marks_at_the_models_own_ids(tmp_path: Path) -> None:
    folder = image_folder(GEMMA, tmp_path / "images")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    named = {name: vocabulary[name] for name in ("<start_of_image>", "<end_of_image>", "<image_soft_token>")}
    assert list(named.values()) == [GEMMA[f"{name}_token_index"] for name in ("boi", "eoi", "image")]
    assert sorted(vocabulary.values()) == list(range(len(vocabulary))) and {"\n", "\n\n\n\n"} <= vocabulary.keys()
    assert {each["content"]: each["id"] for each in tokenizer["added_tokens"]}.items() >= named.items()
    assert json.loads((folder / "preprocessor_config.json").read_text())["size"] == {"height": 896, "width": 896}
    assert json.loads((folder / "config.json").read_text()) == GEMMA
    assert not list(folder.glob(".*"))


def test_only_a_model_with_a_vision_tower_takes_images() -> None:
    with pytest.raises(ModelError, match="needs a Gemma 3 with a vision tower"):
        image_tokens(load_model("gemma-3-1b").config)


def test_the_tower_is_in_the_plan_of_memory() -> None:
    weights, work = vision_bytes(GEMMA, step_tokens=8192)
    # SigLIP So400m has 0.41 billion parameters without its pooling head (X. Zhai et al., ICCV 2023), the projector few.
    assert weights / 2 == pytest.approx(0.415e9, rel=0.02)
    assert work == 2 * 32 * 4096 * (1152 + 4304) * 2
    blocks = {
        kind: plan(expand(parse_spec(spec().replace("image,", f"{kind},")), "vllm"), KINDS["H200"]).blocks[0]
        for kind in ("image", "mixed")
    }
    memory = {kind: block.memory["single"] for kind, block in blocks.items()}
    assert memory["image"].total - memory["mixed"].total == weights + work


def test_engines_that_take_images_boot_apart() -> None:
    both = spec().replace("sweep: {grid: {", "sweep: {grid: {kind: [mixed, image], ")
    made = plan(expand(parse_spec(both), "vllm"), KINDS["H200"])
    kinds = [{repeat.cell.workload.kind for repeat in block.repeats} for block in made.blocks]
    assert {tuple(sorted(each)) for each in kinds} == {("image",), ("mixed",)}


def test_its_steps_are_those_of_mixed() -> None:
    work = Workload("image", 512, 8)
    assert work.with_image and work.phase == "mixed" and not work.as_text


@pytest.mark.parametrize(
    ("text", "backend", "message"),
    [
        (spec("Qwen2.5-0.5B"), "vllm", "Qwen/Qwen2.5-0.5B: kind image needs a Gemma 3"),
        (spec(prompt_tokens=200), "vllm", "an image alone takes 260 tokens, prompt_tokens is 200"),
        (spec(weights="weights: checkpoint"), "vllm", "for dummy or random weights"),
        (spec(), "simulated", "kind image is not simulated"),
    ],
)
def test_what_cannot_be_is_said_before_anything_boots(text: str, backend: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        expand(parse_spec(text), backend)  # type: ignore[arg-type]
