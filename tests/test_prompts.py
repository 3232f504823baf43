"""Prompts: exact lengths, inside the vocabulary, never twice, and counted when they are made too late."""

from __future__ import annotations

import pytest

from workloads.prompts import FIRST_ORDINARY_ID, PromptPool, random_prompts

VOCABULARY = 1024


@pytest.mark.parametrize("prompt_tokens", [1, 17, 4096])
def test_prompts_have_the_length_asked_and_ordinary_ids(prompt_tokens: int) -> None:
    prompts = random_prompts(5, prompt_tokens, VOCABULARY, seed=3)
    assert [len(prompt) for prompt in prompts] == [prompt_tokens] * 5
    ids = {token for prompt in prompts for token in prompt}
    assert min(ids) >= FIRST_ORDINARY_ID and max(ids) < VOCABULARY
    assert all(type(token) is int for token in ids)  # numpy's integers would not survive an engine's serialisation


def test_every_ordinary_id_is_drawn() -> None:
    ids = {token for prompt in random_prompts(50, 1000, VOCABULARY, seed=0) for token in prompt}
    assert ids == set(range(FIRST_ORDINARY_ID, VOCABULARY))


def test_a_seed_fixes_the_prompts() -> None:
    assert random_prompts(4, 32, VOCABULARY, 7) == random_prompts(4, 32, VOCABULARY, 7)
    assert random_prompts(4, 32, VOCABULARY, 7) != random_prompts(4, 32, VOCABULARY, 8)


def test_no_prompt_is_handed_out_twice_and_late_ones_are_counted() -> None:
    pool = PromptPool(100, 16, VOCABULARY, seed=11)
    early = [tuple(pool.next()) for _ in range(100)]
    assert pool.late == 0
    late = [tuple(pool.next()) for _ in range(40)]
    assert pool.late == 40
    assert len(set(early + late)) == 140
    assert {len(prompt) for prompt in late} == {16}


def test_prompts_share_no_prefix_of_a_cache_block() -> None:
    """vLLM caches whole blocks of 16 tokens: no two prompts may begin with the same one."""
    prompts = random_prompts(2000, 16, VOCABULARY, seed=5)
    assert len({tuple(prompt) for prompt in prompts}) == 2000
