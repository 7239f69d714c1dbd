"""Texts as windows of token ids."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from eckart.errors import EckartError, first_line
from eckart.model.checkpoint import resolve
from eckart.model.files import check_regular, read_json
from eckart.model.words import NAME as WORDS
from eckart.model.words import TOKENIZER, Vocabulary, read_words

LONGEST_WINDOW = 2048


def read_text(path: Path) -> str:
    """A UTF-8 text file; raises ``EckartError`` if it is missing, empty or something else."""
    try:
        check_regular(path)
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise EckartError(f"{path} is not UTF-8 text: convert it first") from error
    except OSError as error:
        raise EckartError(f"{path} cannot be read: {error.strerror or error}") from error
    if not text.strip():
        raise EckartError(f"{path} holds no text: give one with at least a few thousand words")
    return text


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model directory; raises ``EckartError`` if there is none.

    Beside a smaller vocabulary it is the original's, and gives the original's ids.
    """
    from transformers import AutoTokenizer

    if (folder / WORDS).is_file():
        folder = folder / TOKENIZER
    if not any(
        (folder / name).exists()
        for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
    ):
        raise EckartError(
            f"{folder} holds no tokenizer: copy tokenizer.json and tokenizer_config.json of the model there"
        )
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # a damaged file leads to any error, from Rust and Python code of many hands
        raise EckartError(f"the tokenizer in {folder} cannot be loaded: {first_line(error)}") from error


def encode(tokenizer: Any, text: str) -> Tensor:
    """The ids of the whole text as one stream, with the special tokens that the tokenizer itself puts there."""
    return torch.tensor(tokenizer(text, verbose=False)["input_ids"], dtype=torch.int64)


def ids_for(folder: Path, text: str) -> Tensor:
    """The ids of a text for a model directory, by its own tokenizer, in those of a smaller vocabulary where it has one.

    Raises ``EckartError`` if the directory holds no tokenizer, one that gives ids beyond the model's vocabulary, or a smaller vocabulary
    that lacks a token of the text.
    """
    tokenizer, words = load_tokenizer(folder), read_words(folder)
    ids = encode(tokenizer, text)
    if words is not None:
        return replace(words, tokenizer=tokenizer).shrink(ids)
    size = _from_config(folder, "vocab_size")
    if size is not None and len(ids) and int(ids.max()) >= size:
        raise EckartError(
            f"the tokenizer in {folder} belongs to another model: it gives the id {int(ids.max())}, "
            f"but config.json has a vocabulary of {size}"
        )
    return ids


def vocabulary(folder: str | Path) -> Vocabulary:
    """Which of the original's token ids a model with a smaller vocabulary has, with ``shrink`` and ``restore`` between the two.

    ``folder`` is a directory or a hub id. The tokenizer in its folder ``tokenizer`` gives the original's ids::

        words = eckart.vocabulary("small")
        ids = words.shrink(tokenizer(text, return_tensors="pt").input_ids)
        text = tokenizer.decode(words.restore(model.generate(ids))[0])

    Raises ``EckartError`` for a model without ``vocabulary.json``, and for a damaged one.
    """
    folder = resolve(folder)
    found = read_words(folder)
    if found is None:
        raise EckartError(f"{folder} holds no {WORDS}: its vocabulary is no smaller one, or the file was left behind")
    return replace(found, tokenizer=load_tokenizer(folder)) if (folder / TOKENIZER).is_dir() else found


def context_length(folder: Path) -> int:
    """The context that the model's config allows, ``LONGEST_WINDOW`` where it says nothing."""
    return _from_config(folder, "max_position_embeddings", "n_positions", "n_ctx") or LONGEST_WINDOW


def _from_config(folder: Path, *keys: str) -> int | None:
    """The first of these entries that a model's config has, on top or in its ``text_config``."""
    config = read_json(folder / "config.json")
    inner = config.get("text_config")
    for table in (config, inner if isinstance(inner, dict) else {}):
        for key in keys:
            value = table.get(key)
            if isinstance(value, int) and value > 0:
                return value
    return None


def window_length(folder: Path, wanted: int | None) -> int:
    """The window asked for, by default the smaller of the model's context and ``LONGEST_WINDOW``."""
    context = context_length(folder)
    if wanted is None:
        return min(context, LONGEST_WINDOW)
    if not 2 <= wanted <= context:
        raise EckartError(f"--window is {wanted}: this model takes windows from 2 to {context} tokens")
    return wanted


def draw_windows(ids: Tensor, length: int, tokens: int, rng: Generator) -> Tensor:
    """Windows (k, length) of about ``tokens`` tokens in all, drawn without overlap from a stream of ids.

    Every window begins at a multiple of ``length``; all are taken, in order, if the stream is no longer than asked for.

    >>> draw_windows(torch.arange(10), 3, 6, Generator().manual_seed(0)).shape
    torch.Size([2, 3])

    Raises ``EckartError`` if the text is shorter than one window.
    """
    if len(ids) < length:
        raise EckartError(
            f"the calibration text has {len(ids)} tokens, fewer than one window of {length}: give a longer text or a smaller --window"
        )
    whole = ids[: len(ids) // length * length].reshape(-1, length)
    wanted = max(1, tokens // length)
    if wanted >= len(whole):
        return whole
    picked = torch.randperm(len(whole), generator=rng)[:wanted].sort().values
    return whole[picked]
