"""The ids of a smaller vocabulary and those of the original that they stand for: ``vocabulary.json``."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eckart.errors import EckartError
from eckart.model.files import MOST_VALUES, read_json, shown

NAME = "vocabulary.json"
TOKENIZER = "tokenizer"  # the folder of the original's tokenizer: beside the weights its ids would be taken for theirs
IGNORED = -100  # the label that torch's losses leave out: no id


@dataclass(frozen=True)
class Vocabulary:
    """Which ids of an original of ``size`` ids a smaller model has: its id i is ``kept[i]`` there.

    ``tokenizer`` is the original's where it is at hand; it knows what ids are called and which of them stands for unknown ones.

    >>> words = Vocabulary(6, (0, 2, 5))
    >>> words.shrink(torch.tensor([[5, 0], [2, 2]])).tolist(), words.restore(torch.tensor([2, 0, 1])).tolist()
    ([[2, 0], [1, 1]], [5, 0, 2])
    >>> words.shrink(torch.tensor([0, 3]))
    Traceback (most recent call last):
    eckart.errors.EckartError: the id 3 is not among the 3 of 6 that are left: make the smaller model anew from a text that has it

    Raises ``ValueError`` where ``kept`` is empty, does not rise, or holds anything but ids below ``size``.
    """

    size: int
    kept: tuple[int, ...]
    tokenizer: Any = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.kept, self.kept[1:], strict=False))
        if not (self.kept and rising and self.kept[0] >= 0 and self.kept[-1] < self.size):
            raise ValueError(f"ids that are kept must rise and lie from 0 to below {self.size}")

    @cached_property
    def old(self) -> Tensor:
        """The original's ids (k,), int64."""
        return torch.tensor(self.kept, dtype=torch.int64)

    @cached_property
    def new(self) -> Tensor:
        """For each of the original's ids the smaller model's (size,), int64; -1 where it has none."""
        return torch.full((self.size,), -1, dtype=torch.int64).scatter_(0, self.old, torch.arange(len(self.kept)))

    @property
    def unknown(self) -> int | None:
        """The smaller model's id for unknown tokens, where there is one."""
        found = getattr(self.tokenizer, "unk_token_id", None)
        return int(self.new[found]) if found is not None and found in self.kept else None

    def shrink(self, ids: Tensor, *, unknown: bool = False) -> Tensor:
        """The smaller model's ids for the original's, of the same shape, int64; -100, which losses ignore, stays.

        With ``unknown`` an id that the smaller model does not have becomes that of unknown tokens. Raises ``EckartError`` naming such an id
        otherwise, where no id stands for unknown tokens, and for what is no id of the original.
        """
        old = self._checked(ids, self.size, "the original")
        new = torch.where(old == IGNORED, IGNORED, self.new.to(ids.device)[old.clamp(min=0)])
        gone = new == -1
        if not bool(gone.any()):
            return new
        if unknown and self.unknown is not None:
            return torch.where(gone, self.unknown, new)
        first = int(old[gone][0])
        way_out = (
            "and no id stands for unknown tokens" if unknown else "make the smaller model anew from a text that has it"
        )
        raise EckartError(
            f"the id {first}{self._called(first)} is not among the {len(self.kept)} of {self.size} that are left: {way_out}"
        )

    def restore(self, ids: Tensor) -> Tensor:
        """The original's ids for the smaller model's, of the same shape, int64; -100 stays.

        Raises ``EckartError`` for what is no id of the smaller model.
        """
        new = self._checked(ids, len(self.kept), "the smaller model")
        return torch.where(new == IGNORED, IGNORED, self.old.to(ids.device)[new.clamp(min=0)])

    def _checked(self, ids: Tensor, size: int, whose: str) -> Tensor:
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise EckartError(f"token ids are whole numbers, and these are {ids.dtype}")
        wide = ids.to(torch.int64)
        wrong = (wide != IGNORED) & ((wide < 0) | (wide >= size))
        if bool(wrong.any()):
            raise EckartError(f"{int(wide[wrong][0])} is no id of {whose}, which has those from 0 to {size - 1}")
        return wide

    def _called(self, token: int) -> str:
        if self.tokenizer is None or token >= len(self.tokenizer):
            return ""
        return f" ({self.tokenizer.convert_ids_to_tokens(token)!r})"


def read_words(folder: Path) -> Vocabulary | None:
    """The vocabulary of a model directory whose own is a smaller one, without the tokenizer; ``None`` where it tells of none.

    Raises ``EckartError`` if that is damaged, or the model has another number of ids.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    table = read_json(path)
    size, kept = table.get("size"), table.get("kept")
    try:
        if type(size) is not int or not isinstance(kept, list) or not all(type(token) is int for token in kept):
            raise ValueError("it holds no size, or no list of the ids that are kept")
        if size > MOST_VALUES:  # a table of that length is made of it
            raise ValueError(f"no vocabulary has {shown(size)} ids")
        found = Vocabulary(size, tuple(kept))
    except ValueError as error:
        raise EckartError(f"{path} is damaged or was edited: {str(error)[:200]}") from error
    rows = read_json(folder / "config.json").get("vocab_size")
    if rows != len(kept):
        raise EckartError(
            f"{path} tells of {len(kept)} ids, but the vocabulary in {folder / 'config.json'} has {rows}: they belong to different models"
        )
    return found


def to_json(found: Vocabulary) -> dict[str, object]:
    """What ``vocabulary.json`` holds.

    >>> to_json(Vocabulary(6, (0, 2, 5)))
    {'size': 6, 'kept': [0, 2, 5]}
    """
    return {"size": found.size, "kept": list(found.kept)}
