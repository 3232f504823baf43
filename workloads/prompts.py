"""Prompts of exact length, made before a window: unique and random, so that no prefix cache can help.

Token ids, text, or with an image.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from workloads.images import IMAGE_PX, image_tokens
from workloads.local_tokenizer import texts

# Ids below this are control tokens in some vocabularies (padding, end of text); none of them is wanted in a prompt.
FIRST_ORDINARY_ID = 256


@dataclass(frozen=True, slots=True)
class ImagePrompt:
    """ids: with the mark for the image where it goes; pixels: uint8, shape (IMAGE_PX, IMAGE_PX, 3)."""

    ids: list[int]
    pixels: np.ndarray[Any, np.dtype[np.uint8]]


Prompt = list[int] | str | ImagePrompt


def random_prompts(count: int, prompt_tokens: int, vocabulary: int, seed: int) -> list[list[int]]:
    """`count` prompts of `prompt_tokens` ids each, drawn uniformly from [256, vocabulary)."""
    generator = np.random.default_rng(seed)
    ids: list[list[int]] = generator.integers(
        FIRST_ORDINARY_ID, vocabulary, size=(count, prompt_tokens), dtype=np.int64
    ).tolist()
    return ids


def image_prompts(count: int, prompt_tokens: int, config: Mapping[str, Any], seed: int) -> Iterator[ImagePrompt]:
    """`count` prompts of one image and random ids, `prompt_tokens` in all; ids beforehand, pixels one by one.

    config: of a model that takes images. All images of a pool are one of random pixels with another corner, so that
    none is like another and none is kept in memory. Raises ValueError where the image alone is longer.
    """
    left = prompt_tokens - image_tokens(config)
    if left < 0:
        raise ValueError(f"an image alone takes {image_tokens(config)} tokens, a prompt has {prompt_tokens}")
    mark = int(config["boi_token_index"])  # ordinary ids are below it
    ids = random_prompts(count, left, mark, seed)
    generator = np.random.default_rng([seed, 1])
    noise = generator.integers(0, 256, size=(IMAGE_PX, IMAGE_PX, 3), dtype=np.uint8)
    corners = generator.integers(0, 256, size=(count, 8, 8, 3), dtype=np.uint8)

    def made() -> Iterator[ImagePrompt]:
        for own, corner in zip(ids, corners, strict=True):
            pixels = noise.copy()
            pixels[:8, :8] = corner
            yield ImagePrompt([mark, *own], pixels)

    return made()


class PromptPool:
    """Prompts made beforehand, handed out once each; what is asked beyond them is made on the spot and counted.

    `late` says how many were: work inside the window that the measurement should have done before it.
    """

    def __init__(
        self,
        count: int,
        prompt_tokens: int,
        vocabulary: int,
        seed: int,
        tokenizer: Path | None = None,
        images: Mapping[str, Any] | None = None,
    ) -> None:
        """tokenizer: the folder of one of `local_tokenizer`, for prompts as text; images: the config of a model that
        takes them, for prompts with one; neither: token ids."""
        self.late = 0
        make: Callable[..., Iterable[Prompt]] = partial(random_prompts, vocabulary=vocabulary)
        if tokenizer is not None:
            make = partial(texts, tokenizer)
        if images is not None:
            make = partial(image_prompts, config=images)
        self._ready = iter(make(count=count, prompt_tokens=prompt_tokens, seed=seed))
        more = (make(count=1, prompt_tokens=prompt_tokens, seed=seed + batch) for batch in itertools.count(1))
        self._more = itertools.chain.from_iterable(more)

    def next(self) -> Prompt:
        """A prompt that was not handed out before."""
        for prompt in self._ready:
            return prompt
        self.late += 1
        return next(self._more)
