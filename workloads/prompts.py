"""Prompts of exact length, made before a window: unique random token ids, so that no prefix cache can help."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

# Ids below this are control tokens in some vocabularies (padding, end of text); none of them is wanted in a prompt.
FIRST_ORDINARY_ID = 256


def random_prompts(count: int, prompt_tokens: int, vocabulary: int, seed: int) -> list[list[int]]:
    """`count` prompts of `prompt_tokens` ids each, drawn uniformly from [256, vocabulary)."""
    generator = np.random.default_rng(seed)
    ids: list[list[int]] = generator.integers(
        FIRST_ORDINARY_ID, vocabulary, size=(count, prompt_tokens), dtype=np.int64
    ).tolist()
    return ids


class PromptPool:
    """Prompts made beforehand, handed out once each; what is asked beyond them is made on the spot and counted.

    `late` says how many were: work inside the window that the measurement should have done before it.
    """

    def __init__(self, count: int, prompt_tokens: int, vocabulary: int, seed: int) -> None:
        self.late = 0
        self._ready = iter(random_prompts(count, prompt_tokens, vocabulary, seed))
        self._more = self._made_late(prompt_tokens, vocabulary, seed)

    def next(self) -> list[int]:
        """A prompt that was not handed out before."""
        for prompt in self._ready:
            return prompt
        self.late += 1
        return next(self._more)

    @staticmethod
    def _made_late(prompt_tokens: int, vocabulary: int, seed: int) -> Iterator[list[int]]:
        for batch in itertools.count(1):
            yield random_prompts(1, prompt_tokens, vocabulary, seed + batch)[0]
