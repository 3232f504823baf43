"""A tokenizer made here: byte-level BPE of any size, trained on made-up words, for prompts as text without a download.

    folder = tokenizer_folder(caches, vocabulary=151_643)       # Qwen 2's size; made once, then found again
    pool = texts(folder, count, prompt_tokens, seed)            # each of exactly that many tokens

What it costs to tokenize depends on the algorithm, the size of the vocabulary and the words, not on what they mean. The
algorithm is that of Qwen 2 and Llama 3 (byte-level BPE of the `tokenizers` library), its pre-tokenizer GPT-2's, which
splits words much as theirs do. Words are syllables put together at random, with Zipf's frequencies, so that common ones
are a token and rare ones several.
"""

from __future__ import annotations

import fcntl
import itertools
import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from workloads.whole_file import write_whole

# Bump when a tokenizer of the same size would come out otherwise.
VERSION = 1
CLUSTERS = ("bl", "ch", "cl", "cr", "dr", "fl", "gr", "pl", "pr", "sh", "st", "str", "th", "tr")
ONSETS = ("", *"bcdfghjklmnprstvwz", *CLUSTERS)
NUCLEI = ("a", "e", "i", "o", "u", "ai", "ea", "ee", "ie", "oo", "ou", "y")
CODAS = ("", "", "", *"bdgklmnprst", "ck", "ct", "ng", "nt", "rd", "st")
SYLLABLES = (1, 1, 2, 2, 2, 3, 3)
# Twice as many words as tokens: the rarer half is spelled in pieces, as in real text.
WORDS_A_TOKEN = 2
END_OF_TEXT = "<|endoftext|>"
# Words are drawn so many at a time: a shorter list is the beginning of a longer one.
BATCH = 10_000


def made_up_words(count: int, seed: int = 0) -> list[str]:
    """`count` different pronounceable words, always the same ones for one seed; frequent ones are short, as in life."""
    generator = np.random.default_rng(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        sizes = generator.choice(SYLLABLES, size=BATCH)
        drawn = generator.integers(0, (len(ONSETS), len(NUCLEI), len(CODAS)), size=(int(sizes.sum()), 3))
        syllables = [ONSETS[onset] + NUCLEI[nucleus] + CODAS[coda] for onset, nucleus, coda in drawn.tolist()]
        ends = np.cumsum(sizes).tolist()
        words = ("".join(syllables[begin:end]) for begin, end in itertools.pairwise([0, *ends]))
        found |= dict.fromkeys(sorted(words, key=len))
    return list(itertools.islice(found, count))


def tokenizer_folder(caches: Path, vocabulary: int) -> Path:
    """A folder that vLLM takes as `tokenizer`, below `caches`; made if it is not there, by one process at a time.

    vocabulary: tokens that it has, at most (made-up text may not be worth as many).
    """
    folder = caches.absolute() / "tokenizers" / f"bpe-{vocabulary}-v{VERSION}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "tokenizer_config.json").is_file():
            _make(folder, vocabulary)
    return folder


def _make(folder: Path, vocabulary: int) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[END_OF_TEXT],
        show_progress=False,
    )
    words = made_up_words(WORDS_A_TOKEN * vocabulary)
    tokenizer.train_from_iterator(_corpus(words), trainer)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_OF_TEXT, "model_max_length": 2**20}
    encoded = tokenizer.encode_batch([f" {word}" for word in words])
    files = {
        "words.json": json.dumps([words, [len(each.ids) for each in encoded]]),
        "tokenizer.json": tokenizer.to_str(),
        "tokenizer_config.json": json.dumps(config),  # last: where it lies, all is whole
    }
    for name, text in files.items():
        write_whole(folder / name, text)


def _corpus(words: Sequence[str]) -> Iterator[str]:
    """Every word with a space before it, as often as Zipf's law has it (rank r about 1/r as often as the first)."""
    for rank, word in enumerate(words, 1):
        yield f" {word}" * max(1, min(200, len(words) // (20 * rank)))


def texts(folder: Path, count: int, prompt_tokens: int, seed: int) -> list[str]:
    """`count` texts that the tokenizer in `folder` splits into exactly `prompt_tokens` tokens each, all different.

    Words are drawn by Zipf's law and split off at spaces before anything else, so their tokens add up. Raises
    ValueError where no word is a single token, to fill up with.
    """
    words, tokens = _words(folder)
    ones = np.flatnonzero(tokens == 1)
    if not len(ones):
        raise ValueError(f"the tokenizer in {folder} has no word of one token")
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        # Ranks whose logarithm is uniform: rank r comes as often as ln((r + 1) / r), about 1/r.
        drawn = ((len(words) + 1) ** generator.random(prompt_tokens)).astype(np.int64) - 1
        kept = int(np.searchsorted(np.cumsum(tokens[drawn]), prompt_tokens, side="right"))
        left = prompt_tokens - int(tokens[drawn[:kept]].sum())
        filling = generator.choice(ones, size=left)
        made.append("".join(" " + words[index] for index in (*drawn[:kept].tolist(), *filling.tolist())))
    return made


@lru_cache(maxsize=2)
def _words(folder: Path) -> tuple[list[str], Any]:
    """The words that the tokenizer was trained on, frequent ones first, and how many tokens each is after a space."""
    words, tokens = json.loads((folder / "words.json").read_text(encoding="utf-8"))
    return words, np.array(tokens, dtype=np.int64)
