"""How what stays of a weight is stored under an adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch
from torch import Generator, Tensor

from eckart.adapters.seed import Params
from eckart.approx import Approximator
from eckart.metric import Metric
from eckart.operator import Operator, in_dtype


@dataclass(frozen=True)
class Started:
    """An adapter of one map as training begins: its tensors, the update that they make, and what is taken from the weight for it."""

    params: Params
    update: Operator
    taken: Operator | None


@dataclass(frozen=True)
class Settled:
    """A start and the base under it; ``None`` where that is the weight less what was taken, stored as it was.

    ``errors`` are ``||W - (base + update)||_F / ||W||_F`` after each sweep.
    """

    start: Started
    base: Operator | None = None
    errors: tuple[float, ...] = ()


Begin = Callable[[Tensor], Started]


class Stored(Protocol):
    """What becomes of the weight less what was taken from it."""

    @property
    def keeps_the_weight(self) -> bool:
        """Whether base and what was taken are the weight together."""

    def __call__(self, weight: Tensor, begin: Begin) -> Settled:
        """A start of ``weight`` (m, n) and the base under it; ``begin`` makes a start of any matrix of this shape."""


@dataclass(frozen=True)
class AsItIs:
    """As the weight is stored."""

    @property
    def keeps_the_weight(self) -> bool:
        """It does."""
        return True

    def __call__(self, weight: Tensor, begin: Begin) -> Settled:
        """The start of the weight."""
        return Settled(begin(weight))


@dataclass(frozen=True)
class _Rounding:
    """What alternates between rounding ``to`` something and starting, in so many ``sweeps``, of which the ``best`` is kept or the last."""

    to: Approximator
    sweeps: int = 1
    best: bool = True

    def __post_init__(self) -> None:
        if self.sweeps < 1:
            raise ValueError(f"{self.sweeps} sweeps of rounding and starting: take at least 1")

    @property
    def keeps_the_weight(self) -> bool:
        """Rounding does not."""
        return False


@dataclass(frozen=True)
class Rounded(_Rounding):
    """Rounded by ``to`` after a start X is taken: ``Q(W - X)``.

    In each further one of ``sweeps`` the start is made of ``W - base`` in place of W. Where a projection rounds, alternating between two
    does not make the error fall in every sweep: with ``best`` the sweep with the least error is kept, else the last one.

    >>> from eckart.approx import RoundToNearest
    >>> from eckart.operator import Dense
    >>> def begin(matrix: Tensor) -> Started:
    ...     largest = torch.where(matrix == matrix.max(), matrix, 0.0)
    ...     return Started({}, Dense(largest), Dense(largest))
    >>> w = torch.tensor([[9.0, 1.0, 0.4, 0.0]])
    >>> settled = Rounded(RoundToNearest(bits=1))(w, begin)
    >>> settled.start.update.dense().tolist(), settled.base.dense().tolist()
    ([[9.0, 0.0, 0.0, 0.0]], [[0.0, 1.0, 0.0, 0.0]])

    Raises ``ValueError`` where there is no sweep.
    """

    def __call__(self, weight: Tensor, begin: Begin) -> Settled:
        """The start, and the rounded rest."""

        def tries() -> Iterator[tuple[Started, Operator]]:
            rest = weight
            while True:
                start = begin(rest)
                base = _rounded(self.to, _less(weight, start.taken), weight.dtype)
                yield start, base
                rest = _less(weight, base)

        return _settled(weight, tries(), self.sweeps, best=self.best)


@dataclass(frozen=True)
class RoundedFirst(_Rounding):
    """Rounded by ``to`` before a start is made of what that leaves out: the base is ``Q(W)``, the start one of ``W - base``.

    In each further one of ``sweeps`` the base is ``Q(W - X)`` with the start X of the sweep before. With ``best`` the sweep with the least
    error is kept, else the last one.

    >>> from eckart.approx import RoundToNearest
    >>> from eckart.operator import Dense
    >>> w = torch.tensor([[9.0, 1.0, 0.5, 0.0]])
    >>> settled = RoundedFirst(RoundToNearest(bits=1))(w, lambda matrix: Started({}, Dense(matrix), Dense(matrix)))
    >>> settled.base.dense().tolist(), settled.start.update.dense().tolist()
    ([[9.0, 0.0, 0.0, 0.0]], [[0.0, 1.0, 0.5, 0.0]])

    Raises ``ValueError`` where there is no sweep.
    """

    sweeps: int = 5

    def __call__(self, weight: Tensor, begin: Begin) -> Settled:
        """The rounded weight, and the start of what it leaves out."""

        def tries() -> Iterator[tuple[Started, Operator]]:
            rest = weight
            while True:
                base = _rounded(self.to, rest, weight.dtype)
                start = begin(_less(weight, base))
                yield start, base
                rest = _less(weight, start.taken)

        return _settled(weight, tries(), self.sweeps, best=self.best)


def _rounded(to: Approximator, matrix: Tensor, dtype: torch.dtype) -> Operator:
    return to.prepare(matrix, Metric.plain()).fit(1, dtype=dtype, rng=Generator(), spectral=False).op


def _less(weight: Tensor, op: Operator | None) -> Tensor:
    """``weight - op``, in at least float32."""
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    return wide if op is None else wide - in_dtype(op, wide.dtype).dense()


def _settled(weight: Tensor, tries: Iterator[tuple[Started, Operator]], sweeps: int, *, best: bool) -> Settled:
    """The best of so many sweeps, the first of equals, or the last one."""
    made = [(_error(weight, start, base), start, base) for start, base in islice(tries, sweeps)]
    errors = tuple(error for error, _, _ in made)
    _, start, base = made[errors.index(min(errors))] if best else made[-1]
    return Settled(start, base, errors)


def _error(weight: Tensor, start: Started, base: Operator) -> float:
    wide = weight.to(torch.float64)
    size = torch.linalg.vector_norm(wide)
    both = in_dtype(base, torch.float64).dense() + in_dtype(start.update, torch.float64).dense()
    return float(torch.linalg.vector_norm(wide - both) / torch.where(size > 0, size, torch.ones_like(size)))
