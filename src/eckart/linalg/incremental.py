"""Directions of a matrix whose rows arrive bit by bit and are not kept."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from eckart.bound import Bound
from eckart.kernels.svd import EPS, SAFETY, fix_signs
from eckart.metric import Metric


@dataclass(frozen=True)
class Directions:
    """The leading right singular directions ``v`` (n, r) of a matrix, its singular values ``s`` along them, and how good they are.

    ``bound`` is that of ``||W - W v v^T||_F``.
    """

    v: Tensor
    s: Tensor
    bound: Bound


@dataclass(frozen=True)
class RowStream:
    """The leading directions of all rows seen so far, in memory for ``keep`` of them: merge and truncate.

    A value: ``add`` gives the next one. Of the rows W seen, ``rows`` (k, n) holds ``diag(s) V^T``. Each truncation drops a positive
    semidefinite part of ``W^T W``, of trace ``lost`` and of norm at most ``dropped`` over all of them together. So with A the Gram
    matrix of ``rows``, ``A <= W^T W <= A + D`` for a D of that trace and norm: the sum of the r largest eigenvalues of ``W^T W`` is
    that of A, and at most ``min(lost, r dropped)`` more. Both bounds follow, and they are certain.

    Brand 2006 and Ross, Lim, Lin and Yang 2008, without a mean; the bounds are those of frequent directions (Ghashami,
    Liberty, Phillips and Woodruff 2016) without the shrinking.

    >>> stream = RowStream.start(3, keep=2)
    >>> for row in torch.diag(torch.tensor([3.0, 2.0, 1.0])):
    ...     stream = stream.add(row[None])
    >>> found = stream.directions(1)
    >>> found.s.tolist(), [round(x, 4) for x in (found.bound.lower, found.bound.achieved, found.bound.upper)]
    ([3.0], [2.0, 2.2361, 2.2361])
    """

    rows: Tensor  # (k, n) float64, orthogonal, longest first
    keep: int
    energy: float  # of all rows seen
    lost: float
    dropped: float
    seen: int

    @classmethod
    def start(cls, width: int, *, keep: int, device: torch.device | None = None) -> RowStream:
        """Nothing seen yet, for rows of ``width`` entries. Raises ``ValueError`` for a ``keep`` below 1."""
        if keep < 1:
            raise ValueError(f"at least one direction must be kept, not {keep}")
        return cls(torch.zeros(0, width, dtype=torch.float64, device=device), keep, 0.0, 0.0, 0.0, 0)

    def add(self, batch: Tensor) -> RowStream:
        """With the rows of ``batch`` (…, n) as well. Raises ``ValueError`` for another width, NaN or infinity."""
        width = self.rows.shape[1]
        if batch.ndim < 1 or batch.shape[-1] != width:
            raise ValueError(f"rows of {width} entries are expected, not a tensor of shape {tuple(batch.shape)}")
        batch = batch.reshape(-1, width).to(torch.float64)
        energy = float(batch.square().sum())
        if not math.isfinite(energy):
            raise ValueError(f"the batch of {len(batch)} rows holds NaN or infinity")
        return self._merged(batch, energy, len(batch), 0.0, 0.0)

    def __add__(self, other: RowStream) -> RowStream:
        """Both streams together, as if one had seen all."""
        if other.rows.shape[1] != self.rows.shape[1]:
            raise ValueError(f"streams of rows of {self.rows.shape[1]} and {other.rows.shape[1]} entries do not merge")
        return self._merged(other.rows, other.energy, other.seen, other.lost, other.dropped)

    def directions(self, rank: int) -> Directions:
        """The ``rank`` leading ones. Raises ``ValueError`` above what is kept or has been seen."""
        if not 1 <= rank <= len(self.rows):
            raise ValueError(f"rank {rank}: {len(self.rows)} directions are known, of {self.keep} that would be kept")
        s = torch.linalg.vector_norm(self.rows, dim=1)
        v = fix_signs((self.rows[:rank] / torch.where(s > 0, s, torch.ones_like(s))[:rank, None]).T)
        grain = SAFETY * EPS * max(self.rows.shape[1], self.seen) * self.energy
        captured = float(s[:rank].square().sum())
        left = max(self.energy - captured, 0.0)  # certain: A is at most W^T W
        more = min(self.lost, rank * self.dropped)
        lower = math.sqrt(max(left - more - grain, float(s[rank:].square().sum()) - grain, 0.0))
        upper = math.sqrt(left + grain)
        bound = Bound(
            norm="frobenius",
            lower=lower,
            achieved=max(lower, math.sqrt(left)),
            upper=upper,
            scale=math.sqrt(self.energy),
        )
        return Directions(v, s[:rank], bound)

    def metric(self, name: str) -> Metric:
        """The metric of the rows as they are kept, ``||E R||_F`` with R = ``rows.T / sqrt(seen)`` (n, keep): for widths
        whose Gram matrix does not fit.

        In that of all rows seen an error counts at least as much, and its square at most ``dropped / seen * ||E||_F^2`` more.

        >>> stream = RowStream.start(3, keep=2).add(torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 4.0]]))
        >>> stream.metric("inputs").norm(torch.tensor([[3.0, 7.0, 0.0]]))  # 3 * 2 / sqrt(2)
        4.242640...

        Raises ``ValueError`` before any row was seen.
        """
        if not self.seen:
            raise ValueError(f"no row was seen yet, so the {name} metric would count nothing")
        return Metric(name, (self.rows / math.sqrt(self.seen)).T.contiguous())

    def _merged(self, rows: Tensor, energy: float, seen: int, lost: float, dropped: float) -> RowStream:
        together = torch.cat([self.rows, rows])
        _, s, vh = torch.linalg.svd(together, full_matrices=False)
        found = s[:, None] * vh
        beyond = s[self.keep :].square()
        return RowStream(
            rows=found[: self.keep],
            keep=self.keep,
            energy=self.energy + energy,
            lost=self.lost + lost + float(beyond.sum()),
            dropped=self.dropped + dropped + (float(beyond[0]) if len(beyond) else 0.0),
            seen=self.seen + seen,
        )
