"""Made-up words and texts of exact length; that a real tokenizer agrees is tested with the engine."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from workloads.local_tokenizer import made_up_words, texts
from workloads.prompts import PromptPool

COUNTS = (1, 1, 2, 1, 3, 5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the maker of a tokenizer leaves of its words: `w0` and so on, and how many tokens each is."""
    words = [f"w{index}" for index in range(len(COUNTS))]
    (tmp_path / "words.json").write_text(json.dumps([words, COUNTS]), encoding="utf-8")
    return tmp_path


def tokens_of(text: str) -> int:
    assert text.startswith(" ")  # a first word without its space would be split otherwise
    return sum(COUNTS[int(word[1:])] for word in text.split())


def test_words_are_different_and_a_shorter_list_begins_a_longer_one() -> None:
    words = made_up_words(25_000)
    assert len(set(words)) == 25_000 and words[:500] == made_up_words(500)
    assert all(word.isalpha() and word.islower() and word.isascii() for word in words)
    assert made_up_words(500, seed=1) != words[:500]


def test_frequent_words_are_short() -> None:
    words = made_up_words(10_000)
    assert sum(map(len, words[:1000])) < sum(map(len, words[-1000:])) / 2


@pytest.mark.parametrize("prompt_tokens", [1, 2, 7, 1000])
def test_texts_are_worth_exactly_what_was_asked(prompt_tokens: int, folder: Path) -> None:
    assert {tokens_of(text) for text in texts(folder, 50, prompt_tokens, seed=3)} == {prompt_tokens}


def test_words_come_by_zipf(folder: Path) -> None:
    """The first word of each text is not chosen to fill up: rank r comes as often as ln((r + 1) / r) / ln 7 says."""
    first = Counter(text.split()[0] for text in texts(folder, 4000, 40, seed=5))
    assert 0.33 < first["w0"] / 4000 < 0.38  # ln 2 / ln 7 = 0.356
    assert first["w0"] > first["w1"] > first["w5"] > 0


def test_a_seed_fixes_texts_and_another_changes_them(folder: Path) -> None:
    assert texts(folder, 3, 64, 1) == texts(folder, 3, 64, 1) != texts(folder, 3, 64, 2)


def test_without_a_word_of_one_token_nothing_can_be_filled_up(tmp_path: Path) -> None:
    (tmp_path / "words.json").write_text(json.dumps([["long"], [2]]), encoding="utf-8")
    with pytest.raises(ValueError, match="has no word of one token"):
        texts(tmp_path, 1, 3, 0)


def test_a_pool_hands_out_texts_where_a_tokenizer_is_given(folder: Path) -> None:
    pool = PromptPool(20, 64, 1024, seed=2, tokenizer=folder)
    prompts = [pool.next() for _ in range(25)]
    assert pool.late == 5
    assert len(set(map(str, prompts))) == 25
    assert {tokens_of(str(prompt)) for prompt in prompts} == {64}
