"""Training data: one record a line, prompts with completions, texts, or texts with labels."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eckart.errors import EckartError
from eckart.model.files import check_regular, shown

MASKED = -100  # the label of a token that counts nothing
PAIR, TEXT, LABELLED = ("prompt", "completion"), ("text",), ("text", "label")


@dataclass(frozen=True)
class Example:
    """Token ids and what is to be said of them: a label for each token, or one for the whole text."""

    ids: tuple[int, ...]
    labels: tuple[int, ...] | int

    @property
    def table(self) -> dict[str, Any]:
        """As a collator takes it."""
        labels = self.labels if isinstance(self.labels, int) else list(self.labels)
        return {"input_ids": list(self.ids), "labels": labels}


def read_records(path: Path, *, labelled: bool, labels: int | None = None) -> list[Mapping[str, Any]]:
    """The records of a JSON Lines file, whose labels are among so many; of any other file the whole text as one.

    Raises ``EckartError`` naming the line for what is no JSON table with the expected fields, and where there is none.
    """
    if path.suffix not in (".jsonl", ".json"):
        if labelled:
            raise EckartError(
                f"{path} has no labels: give a file .jsonl with a record a line, {_wanted(labelled=True)}"
            )
        return [{"text": _read(path)}]
    found = []
    for number, record in _records(path, labelled=labelled):
        if labels is not None and not 0 <= record["label"] < labels:
            raise EckartError(
                f"{path}, line {number}: label is {shown(record['label'])}, and --labels {labels} leaves 0 to {labels - 1}: "
                "number labels from 0, or ask for more"
            )
        found.append(record)
    if not found:
        raise EckartError(f"{path} is empty: a record a line is wanted, {_wanted(labelled=labelled)}")
    return found


def _read(path: Path) -> str:
    if path.is_dir():
        raise EckartError(f"{path} is a directory: name the file of records or text in it")
    try:
        check_regular(path)
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        told = getattr(error, "strerror", None) or "it is not UTF-8"
        raise EckartError(f"{path} cannot be read: {told}") from error
    if not text.strip():
        raise EckartError(f"{path} is empty: give a text, or a record a line")
    return text


def _wanted(*, labelled: bool) -> str:
    return '{"text": ..., "label": ...}' if labelled else '{"prompt": ..., "completion": ...} or {"text": ...}'


def _records(path: Path, *, labelled: bool) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(_read(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise EckartError(f"{path}, line {number}: {shown(line)} is no JSON") from error
        kinds = (LABELLED,) if labelled else (PAIR, TEXT)
        kind = next((kind for kind in kinds if isinstance(record, Mapping) and set(kind) <= set(record)), None)
        if kind is None:
            there = ", ".join(record) if isinstance(record, Mapping) else shown(line)
            raise EckartError(f"{path}, line {number} has {there}: a record is {_wanted(labelled=labelled)}")
        for name in kind:
            if not isinstance(record[name], int if name == "label" else str) or isinstance(record[name], bool):
                sort = "a whole number" if name == "label" else "a text"
                raise EckartError(f"{path}, line {number}: {name} is {shown(record[name])}; give {sort}")
        yield number, record


def examples_of(records: Sequence[Mapping[str, Any]], tokenizer: Any, length: int) -> list[Example]:
    """Records as token ids, of at most ``length``: prompts count nothing, a long text is cut into windows, labelled ones are cut off.

    A completion ends with the end token, where there is one. Raises ``EckartError`` where nothing is left to learn from.
    """
    found: list[Example] = []
    for record in records:
        if "label" in record:
            ids = tokenizer(record["text"], truncation=True, max_length=length)["input_ids"]
            found.append(Example(tuple(ids), record["label"]))
        elif "prompt" in record:
            asked = tokenizer(record["prompt"])["input_ids"]
            ending = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
            said = [*tokenizer(record["completion"], add_special_tokens=False)["input_ids"], *ending]
            ids, labels = [*asked, *said][:length], [*([MASKED] * len(asked)), *said][:length]
            if any(label != MASKED for label in labels[1:]):
                found.append(Example(tuple(ids), tuple(labels)))
        else:
            ids = tokenizer(record["text"])["input_ids"]
            windows = [ids[i : i + length] for i in range(0, len(ids), length)]
            found += [Example(tuple(window), tuple(window)) for window in windows if len(window) > 1]
    if not found:
        raise EckartError(f"no record leaves anything to learn within {length} tokens: allow more with --length")
    return found


def share(batch: Mapping[str, Tensor], index: int, count: int) -> dict[str, Tensor]:
    """The examples of a batch that are those of one of several processes; where there are none, one that counts nothing.

    >>> whole = {"input_ids": torch.tensor([[5], [6], [7]]), "labels": torch.tensor([0, 1, 2])}
    >>> [share(whole, index, 2)["labels"].tolist() for index in (0, 1)], share(whole, 3, 4)["labels"].tolist()
    ([[0, 2], [1]], [-100])
    """
    if index < len(batch["labels"]):
        return {name: rows[index::count] for name, rows in batch.items()}
    return {name: torch.full_like(rows[:1], MASKED) if name == "labels" else rows[:1] for name, rows in batch.items()}


def collate(examples: Sequence[Mapping[str, Any]], padding: int) -> dict[str, Tensor]:
    """A batch, padded on the right; padded tokens are hidden and count nothing.

    >>> batch = collate([Example((5, 6), (5, 6)).table, Example((7,), (7,)).table], 0)
    >>> batch["input_ids"].tolist(), batch["attention_mask"].tolist(), batch["labels"].tolist()
    ([[5, 6], [7, 0]], [[1, 1], [1, 0]], [[5, 6], [7, -100]])
    """
    most = max(len(example["input_ids"]) for example in examples)

    def padded(values: Sequence[int], filler: int) -> list[int]:
        return [*values, *([filler] * (most - len(values)))]

    ids = [padded(example["input_ids"], padding) for example in examples]
    mask = [padded([1] * len(example["input_ids"]), 0) for example in examples]
    labels = [
        example["labels"] if isinstance(example["labels"], int) else padded(example["labels"], MASKED)
        for example in examples
    ]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask), "labels": torch.tensor(labels)}
