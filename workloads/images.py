"""What a Gemma 3 needs to take images in its prompts: files from its config alone, tokens and memory.

    folder = image_folder(config, into)     # config.json, tokenizer and image processor, no download

An image costs the host what any image of its size does: the processor resizes it to what the vision tower takes and
normalises it, in the frontend's process. What it shows costs nothing. The vision tower then makes a fixed number of
tokens of it, which stand in the prompt between two marks, with two newlines on either side
(transformers' Gemma3Processor).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.errors import ModelError
from workloads.whole_file import write_whole

# Bump when the files of the same config would come out otherwise.
VERSION = 1
# Height and width of an image as a client sends it; the vision tower of Gemma 3 takes 896 by 896.
IMAGE_PX = 1024
# Of an image in the prompt beside the tower's tokens: a pair of newlines, a mark, a mark, a pair of newlines.
MARKS = 4
NEWLINES = ("\n", "\n\n", "\n\n\n", "\n\n\n\n")
SPECIAL = ("<pad>", "<eos>", "<bos>")
# As the processor asks for them, and as Gemma names them.
IMAGE_MARKS = {
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "image_token": "<image_soft_token>",
}
# SigLIP's, which Gemma 3's processor is published with.
MEAN_AND_STD = 0.5


def takes_images(config: Mapping[str, Any]) -> bool:
    return config.get("model_type") == "gemma3" and isinstance(config.get("vision_config"), Mapping)


def image_tokens(config: Mapping[str, Any]) -> int:
    """What one image is worth in a prompt. Raises ModelError for a model that takes none."""
    if not takes_images(config):
        raise ModelError("kind image needs a Gemma 3 with a vision tower, such as gemma-3-4b")
    return int(config["mm_tokens_per_image"]) + MARKS


def vision_bytes(config: Mapping[str, Any], step_tokens: int, width: int = 2) -> tuple[int, int]:
    """Bytes of the vision tower's weights, and of its work on as many images as one step takes.

    A SigLIP tower: patches and positions, then layers of four square products and two of the MLP, and the projector.
    Work is the MLP's activation, in and out, of all patches at once.
    """
    vision = config["vision_config"]
    hidden, inner = int(vision["hidden_size"]), int(vision["intermediate_size"])
    patch, patches = int(vision["patch_size"]), (int(vision["image_size"]) // int(vision["patch_size"])) ** 2
    text = int(config["text_config"]["hidden_size"])
    layer = 4 * hidden * (hidden + 1) + 2 * hidden * inner + hidden + inner + 4 * hidden
    weights = 3 * patch**2 * hidden + patches * hidden + int(vision["num_hidden_layers"]) * layer + hidden * text
    images = max(1, step_tokens // int(config["mm_tokens_per_image"]))
    return weights * width, 2 * images * patches * (hidden + inner) * width


def image_folder(config: Mapping[str, Any], into: Path) -> Path:
    """A folder in `into`, with all that an engine with dummy weights boots from; made if it is not there, as several
    processes may at once."""
    image_tokens(config)
    folder = into / f"images-v{VERSION}"
    if (folder / "config.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "tokenizer.json": _tokenizer(config),
        "tokenizer_config.json": json.dumps(_tokenizer_config()),
        "preprocessor_config.json": json.dumps(_preprocessor(config)),
        "processor_config.json": json.dumps(
            {"processor_class": "Gemma3Processor", "image_seq_length": config["mm_tokens_per_image"]}
        ),
        "config.json": json.dumps(config, indent=2),  # last: where it lies, all is whole
    }
    for name, text in files.items():
        write_whole(folder / name, text)
    return folder


def _names(config: Mapping[str, Any]) -> dict[int, str]:
    keys = ("boi_token_index", "eoi_token_index", "image_token_index")
    return dict(zip((int(config[key]) for key in keys), IMAGE_MARKS.values(), strict=True))


def _tokenizer(config: Mapping[str, Any]) -> str:
    """As JSON of the `tokenizers` library: the marks at their ids, characters, newlines in runs as Gemma has them, and
    names that stand for nothing. Prompts come as ids: what is ever tokenised is the image's place."""
    names = _names(config)
    characters = iter([*SPECIAL, *NEWLINES, *map(chr, range(32, 127))])
    size = max(int(config["text_config"].get("vocab_size", 0)), max(names) + 1)
    named = (names.get(index) or next(characters, f"<unused{index}>") for index in range(size))
    vocabulary = {name: index for index, name in enumerate(named)}
    merges = [["\n", "\n"], ["\n\n", "\n"], ["\n\n", "\n\n"]]
    marked: list[dict[str, Any]] = [{"id": vocabulary[name], "content": name} for name in (*SPECIAL, *names.values())]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return json.dumps(
        {
            "version": "1.0",
            "added_tokens": [each | flags for each in sorted(marked, key=lambda each: each["id"])],
            "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
        }
    )


def _tokenizer_config() -> dict[str, Any]:
    pad, eos, bos = SPECIAL
    special = {"pad_token": pad, "eos_token": eos, "bos_token": bos}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": "Gemma3Processor",
        "extra_special_tokens": IMAGE_MARKS,
        "model_max_length": 2**20,
        **IMAGE_MARKS,
        **special,
    }


def _preprocessor(config: Mapping[str, Any]) -> dict[str, Any]:
    side = config["vision_config"]["image_size"]
    return {
        "image_processor_type": "Gemma3ImageProcessor",
        "processor_class": "Gemma3Processor",
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [MEAN_AND_STD] * 3,
        "image_std": [MEAN_AND_STD] * 3,
        "image_seq_length": config["mm_tokens_per_image"],
    }
