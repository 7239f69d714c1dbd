"""Which entries of a matrix are kept: patterns of zeros, and the best mask of each by scores of the entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Pattern(Protocol):
    """A family of masks of a matrix (m, n): for each size, from 1 on, how many entries stay and where they may lie."""

    def sizes(self, columns: int) -> int:
        """How many sizes there are; the largest keeps everything."""

    def kept(self, rows: int, columns: int, size: int) -> int:
        """How many entries a mask of this size keeps."""

    def mask(self, scores: Tensor, size: int, start: int = 0, columns: int | None = None) -> Tensor:
        """The mask of the highest sum of ``scores`` (m, k), none below 0, boolean; of ties the entries that come first.

        ``scores`` may be those of the columns ``start`` to ``start + k`` alone of a matrix that has ``columns``: masks of all such
        parts together keep as many entries as one of the whole.
        """

    def chosen_at_once(self, block: int) -> int:
        """How many columns of a ``block`` must be chosen together at least: where groups lie side by side, one group; else the block."""

    def tails(self, scores: Tensor) -> Tensor:
        """The sum of the scores that the mask of each size, from 0 on, leaves out (sizes + 1,), float64."""


@dataclass(frozen=True)
class PerMatrix:
    """Any entries; size k keeps k for each row on average.

    >>> scores = torch.tensor([[5.0, 4.0, 3.0], [2.0, 1.0, 0.0]])
    >>> PerMatrix().mask(scores, 1).int().tolist(), PerMatrix().tails(scores).tolist()
    ([[1, 1, 0], [0, 0, 0]], [15.0, 6.0, 1.0, 0.0])
    """

    def sizes(self, columns: int) -> int:
        """One for each column."""
        return columns

    def kept(self, rows: int, columns: int, size: int) -> int:
        """``rows * size``."""
        return rows * size

    def mask(self, scores: Tensor, size: int, start: int = 0, columns: int | None = None) -> Tensor:
        """The entries of the highest scores, wherever they are."""
        count = len(scores) * _share(size, start, scores.shape[1], columns)
        return _largest(scores.reshape(1, -1), count).reshape(scores.shape)

    def chosen_at_once(self, block: int) -> int:
        """The block."""
        return block

    def tails(self, scores: Tensor) -> Tensor:
        """By sorting all entries."""
        return _tails(scores.reshape(1, -1))[:: len(scores)]


@dataclass(frozen=True)
class PerRow:
    """The same number of entries in every row; size k keeps k.

    >>> PerRow().mask(torch.tensor([[5.0, 4.0, 3.0], [1.0, 2.0, 2.0]]), 1).int().tolist()
    [[1, 0, 0], [0, 1, 0]]
    """

    def sizes(self, columns: int) -> int:
        """One for each column."""
        return columns

    def kept(self, rows: int, columns: int, size: int) -> int:
        """``rows * size``."""
        return rows * size

    def mask(self, scores: Tensor, size: int, start: int = 0, columns: int | None = None) -> Tensor:
        """The entries of the highest scores in each row."""
        return _largest(scores, _share(size, start, scores.shape[1], columns))

    def chosen_at_once(self, block: int) -> int:
        """The block."""
        return block

    def tails(self, scores: Tensor) -> Tensor:
        """By sorting every row."""
        return _tails(scores)


@dataclass(frozen=True)
class OfGroup:
    """k of every ``group`` entries that stand side by side in a row (2 of 4 is what graphics processors multiply fast); size k keeps k.

    A last group of a row that is shorter keeps k as well, or all of it.

    >>> OfGroup(4).mask(torch.tensor([[5.0, 4.0, 3.0, 6.0, 1.0]]), 2).int().tolist()
    [[1, 0, 0, 1, 1]]

    Raises ``ValueError`` for a group below 2.
    """

    group: int = 4

    def __post_init__(self) -> None:
        if self.group < 2:
            raise ValueError(f"group {self.group} must be at least 2")

    def sizes(self, columns: int) -> int:
        """One for each entry of a group; fewer where a row is no longer than that."""
        return min(self.group, columns)

    def kept(self, rows: int, columns: int, size: int) -> int:
        """In whole groups ``size`` each, in what is left over at most so many."""
        return rows * (columns // self.group * size + min(size, columns % self.group))

    def mask(self, scores: Tensor, size: int, start: int = 0, columns: int | None = None) -> Tensor:
        """The entries of the highest scores in each group; ``ValueError`` for a part that begins inside of a group."""
        if start % self.group:
            raise ValueError(f"column {start} is not the first of a group of {self.group}")
        grouped = self._grouped(scores, -1.0)
        return _largest(grouped, size).reshape(len(scores), -1)[:, : scores.shape[1]]

    def chosen_at_once(self, block: int) -> int:
        """A group."""
        return self.group

    def tails(self, scores: Tensor) -> Tensor:
        """By sorting every group."""
        return _tails(self._grouped(scores, 0.0))[: self.sizes(scores.shape[1]) + 1]

    def _grouped(self, scores: Tensor, filling: float) -> Tensor:
        """A row for each group, the shorter ones filled up."""
        return F.pad(scores, (0, -scores.shape[1] % self.group), value=filling).reshape(-1, self.group)


@dataclass(frozen=True)
class Tiles:
    """Whole tiles of ``rows`` x ``columns`` entries: size k keeps k in every band of ``rows`` rows.

    The columns behind the last whole tile stay; a last band may have fewer rows.

    >>> Tiles(rows=2, columns=2).mask(torch.tensor([[5.0, 0.0, 3.0, 3.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]]), 1).int().tolist()
    [[0, 0, 1, 1, 1], [0, 0, 1, 1, 1]]

    Raises ``ValueError`` for sides below 1.
    """

    rows: int = 16
    columns: int = 16

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1:
            raise ValueError(f"tiles of {self.rows} x {self.columns} must have sides of at least 1")

    def sizes(self, columns: int) -> int:
        """One for each tile of a band; one alone where not even one fits."""
        return max(1, columns // self.columns)

    def kept(self, rows: int, columns: int, size: int) -> int:
        """``size`` tiles in every band, and what stands behind them."""
        return rows * (min(size, columns // self.columns) * self.columns + columns % self.columns)

    def mask(self, scores: Tensor, size: int, start: int = 0, columns: int | None = None) -> Tensor:
        """The tiles of the highest sums in each band; ``ValueError`` for a part that begins inside of a tile."""
        if start % self.columns:
            raise ValueError(f"column {start} is not the first of a tile of {self.columns}")
        sums, whole = self._sums(scores), scores.shape[1] if columns is None else columns
        count = _share(size, start // self.columns, sums.shape[1], whole // self.columns)
        found = _largest(sums, count).repeat_interleave(self.rows, 0).repeat_interleave(self.columns, 1)
        return F.pad(found[: len(scores)], (0, scores.shape[1] - found.shape[1]), value=True)

    def chosen_at_once(self, block: int) -> int:
        """The block, which must be one of whole tiles; else a tile."""
        return block if block % self.columns == 0 else self.columns

    def tails(self, scores: Tensor) -> Tensor:
        """By sorting the tiles of every band; without any tile what stands behind them is left out as well."""
        found = _tails(self._sums(scores))
        found = found if len(found) > 1 else found.new_zeros(2)
        found[0] = scores.sum(dtype=torch.float64)
        return found

    def _sums(self, scores: Tensor) -> Tensor:
        """The sum of each whole tile, a row for each band."""
        count = scores.shape[1] // self.columns
        filled = F.pad(scores[:, : count * self.columns], (0, 0, 0, -len(scores) % self.rows))
        return filled.reshape(len(filled) // self.rows, self.rows, count, self.columns).to(torch.float64).sum((1, 3))


def _share(size: int, start: int, width: int, columns: int | None) -> int:
    """What a part of a row keeps of ``size``: parts one after another add up to it."""
    whole = width if columns is None else columns
    return size * (start + width) // whole - size * start // whole if whole else 0


def _largest(scores: Tensor, count: int) -> Tensor:
    """The ``count`` highest of each row; of ties the first ones."""
    if count >= scores.shape[1]:
        return torch.ones_like(scores, dtype=torch.bool)
    if count <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    least = scores.kthvalue(scores.shape[1] - count + 1, dim=1, keepdim=True).values
    above, equal = scores > least, scores == least
    wanted = count - above.sum(1, keepdim=True)
    return above | (equal & (equal.cumsum(1) <= wanted))


def _tails(scores: Tensor) -> Tensor:
    """What the k highest of each row leave out, added up over rows, for k = 0, 1, …."""
    ordered = scores.to(torch.float64).sort(dim=1).values.sum(0)  # the sum of the lowest of all rows first
    return F.pad(ordered.cumsum(0), (1, 0)).flip(0)
