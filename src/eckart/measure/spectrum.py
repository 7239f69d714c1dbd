"""The singular values of a matrix, and the numbers by which papers sum them up."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from eckart.kernels.svd import EPS, SAFETY
from eckart.linalg import SVD, singular_values
from eckart.operator import Factors, Operator

ENERGIES = (0.9, 0.99, 0.999)  # the shares of the energy whose ranks a summary reports

SHORTEST_TAIL = 10  # a power law is not fitted to fewer values
TIED = 1e-9  # values closer than this, relatively, are one value that rounding has split
PANEL = 64  # starting points of a tail that are judged at once


@dataclass(frozen=True)
class Spectrum:
    """The min(m, n) singular values of a matrix of ``shape`` (m, n): float64, descending.

    ``floor`` bounds what rounding may have done to any one of them: a value at or below it may be a true zero, one above
    it can't be. 0 where the values are exact.

    >>> s = Spectrum((3, 4), torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64))
    >>> s.stable_rank, round(s.effective_rank, 3), s.condition, s.numerical_rank
    (1.3125, 2.6, 4.0, 3)
    >>> [s.rank_for(energy) for energy in (0.7, 0.9, 0.99)]
    [1, 2, 3]

    Raises ``ValueError`` if there are not min(m, n) values or they do not descend to 0 or above.
    """

    shape: tuple[int, int]
    values: Tensor  # (min(m, n),)
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.values.shape != (min(self.shape),) or self.values.dtype != torch.float64:
            raise ValueError(
                f"{min(self.shape)} values in float64 are wanted for the shape {self.shape}, "
                f"not {tuple(self.values.shape)} in {self.values.dtype}"
            )
        steps = torch.cat([self.values.diff(), -self.values[-1:]])
        if not bool(((steps <= 0) & self.values.isfinite()).all()):
            raise ValueError("the values are not finite, not descending or negative")

    @property
    def top(self) -> float:
        """The largest singular value, which is the spectral norm; 0 for an empty matrix."""
        return float(self.values[0]) if len(self.values) else 0.0

    @property
    def frobenius(self) -> float:
        """The root of the sum of the squared singular values, which is the Frobenius norm."""
        return self.top * math.sqrt(float(self._relative.square().sum()))

    @property
    def numerical_rank(self) -> int:
        """How many values rounding can't have made out of zeros: a lower bound on the rank.

        >>> spectrum(torch.ones(4, 6)).numerical_rank
        1
        """
        return int((self.values > self.floor).sum())

    @property
    def stable_rank(self) -> float:
        """``norm(A, "fro")**2 / norm(A, 2)**2``, between 1 and the rank; nan for a zero matrix.

        Rudelson and Vershynin, *Sampling from large matrices* (Journal of the ACM 54, 2007), there called numerical rank.
        For the covariance ``A.T @ A`` the same number, trace over norm, is often called its effective rank.

        >>> round(spectrum(torch.diag(torch.tensor([2.0, 1.0, 1.0]))).stable_rank, 9)
        1.5
        """
        return float(self._relative.square().sum()) if self.top else math.nan

    @property
    def effective_rank(self) -> float:
        """``exp(-sum(p * log(p)))`` with ``p = s / sum(s)``, between 1 and the rank; nan for a zero matrix.

        Roy and Vetterli, *The effective rank: a measure of effective dimensionality* (EUSIPCO 2007). Others give the name
        to the same with ``p = s**2 / sum(s**2)``, which is the exponential of the von Neumann entropy of ``A.T @ A`` and
        never larger; to the participation ratio ``sum(s**2)**2 / sum(s**4)``; and to the stable rank.

        >>> round(spectrum(torch.eye(5)).effective_rank, 9)
        5.0
        >>> round(spectrum(torch.diag(torch.tensor([3.0, 1.0]))).effective_rank, 6)
        1.754765
        """
        if not self.top:
            return math.nan
        shares = self._relative / self._relative.sum()
        return math.exp(float(torch.special.entr(shares).sum()))

    @property
    def condition(self) -> float:
        """The largest over the smallest of the min(m, n) values: the condition number in the spectral norm.

        inf where the matrix is singular or can't be told from a singular one: where the smallest value does not exceed
        ``floor``. Golub and Van Loan, *Matrix Computations* (4th edition, 2013), section 2.6.2.

        >>> round(spectrum(torch.diag(torch.tensor([8.0, 2.0]))).condition, 9), spectrum(torch.ones(2, 2)).condition
        (4.0, inf)
        """
        if not self.top or self.numerical_rank < len(self.values):
            return math.inf
        return self.top / float(self.values[-1])

    def rank_for(self, energy: float) -> int:
        """The smallest r with ``sum(s[:r]**2) >= energy * sum(s**2)``; 0 for a zero matrix.

        By the Eckart–Young theorem no matrix of lower rank comes within the relative Frobenius error
        ``sqrt(1 - energy)``. A shortfall that the rounding of the sums explains counts as none.

        >>> s = spectrum(torch.diag(torch.tensor([3.0, 2.0, 1.0])))  # squares 9, 4, 1 of 14
        >>> s.rank_for(0.6), s.rank_for(0.9), s.rank_for(0.95), s.rank_for(1.0)
        (1, 2, 3, 3)

        Raises ``ValueError`` unless ``0 < energy <= 1``.
        """
        if not 0 < energy <= 1:
            raise ValueError(f"the energy is a share above 0 and at most 1, not {energy:g}")
        if not self.top:
            return 0
        heads = self._relative.square().cumsum(0)
        short = energy - len(heads) * EPS
        return min(int((heads < short * heads[-1]).sum()) + 1, len(heads))

    @cached_property
    def tail(self) -> PowerTail | None:
        """The power law of ``power_tail`` in those eigenvalues of ``A.T @ A`` that rounding can't have made.

        They are taken over the largest one, so ``start`` is a share of it. ``None`` where there are fewer than ten, or
        all of them are equal.
        """
        eigenvalues = self._relative[: self.numerical_rank].square()
        return power_tail(eigenvalues[eigenvalues > 0])

    @property
    def tail_exponent(self) -> float:
        """``alpha`` of the fitted density ``p(x) ~ x**-alpha`` of the large eigenvalues of ``A.T @ A``; nan without a fit.

        The figure that heavy-tailed self-regularisation reads off a layer: Martin and Mahoney, *Implicit
        self-regularization in deep neural networks* (JMLR 22, 2021, arXiv:1810.01075). It does not change with the scale of
        the matrix. Singular values that fall like ``k**-b`` give about ``1 + 1 / (2 * b)``; ``power_tail`` says how it
        is fitted, ``tail`` how well the law holds, which the exponent alone does not tell.

        >>> decay = torch.arange(1, 513, dtype=torch.float64) ** -0.5
        >>> round(Spectrum((512, 512), decay).tail_exponent, 1)
        2.0
        >>> Spectrum((3, 3), torch.ones(3, dtype=torch.float64)).tail_exponent
        nan
        """
        return self.tail.exponent if self.tail else math.nan

    def to_json(self) -> dict[str, object]:
        """All figures without the values themselves; ``None`` for those that are infinite or undefined.

        >>> spectrum(torch.zeros(2, 3)).to_json()["stable_rank"] is None
        True
        """
        return {
            "norm": self.top,
            "frobenius": self.frobenius,
            "stable_rank": _finite(self.stable_rank),
            "effective_rank": _finite(self.effective_rank),
            "numerical_rank": self.numerical_rank,
            "rank_for": {str(energy): self.rank_for(energy) for energy in ENERGIES},
            "condition": _finite(self.condition),
            "tail": self.tail.to_json() if self.tail else None,
        }

    @property
    def _relative(self) -> Tensor:
        """The values over the largest one, so that squares neither overflow nor vanish."""
        return self.values / self.top if self.top else self.values


@dataclass(frozen=True, kw_only=True)
class PowerTail:
    """A power law ``p(x) = (exponent - 1) / start * (x / start)**-exponent`` for the ``count`` values from ``start`` on.

    ``distance`` is the Kolmogorov–Smirnov distance between the law and those values: around ``0.9 / sqrt(count)`` or
    less where they follow it, larger where they do not.
    """

    exponent: float
    start: float
    count: int
    distance: float

    def to_json(self) -> dict[str, object]:
        """The fit as a table."""
        return {"exponent": self.exponent, "start": self.start, "count": self.count, "distance": self.distance}


def power_tail(x: Tensor) -> PowerTail | None:
    """The power law that fits best to the upper tail of positive values ``x`` (n,), in any order.

    The continuous method of Clauset, Shalizi and Newman, *Power-law distributions in empirical data* (SIAM Review 51,
    2009, arXiv:0706.1062), sections 3.1 and 3.3:

    1. every distinct value with ten or more values from it on is a candidate for ``start``;
    2. the k values from ``start`` on have the maximum likelihood exponent ``1 + k / sum(log(x / start))``;
    3. their distance from that law is ``max(abs(F(x) - E(x)))`` with ``F(x) = 1 - (x / start)**(1 - exponent)`` and the
       empirical distribution function E, taken on both sides of its steps;
    4. the candidate of the least distance wins, the smallest of equals.

    Values within a relative 1e-9 of each other count as one value. No test of the law itself is made. ``None`` where no
    candidate is left: fewer than ten values, or all of them equal.

    >>> quantiles = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    >>> fit = power_tail(5 * (1 - quantiles) ** (-1 / 1.5))  # the density falls like x**-2.5 from 5 on
    >>> fit.count, round(fit.exponent, 1), round(fit.start, 1)
    (2000, 2.5, 5.0)
    >>> power_tail(torch.ones(50)) is None
    True

    Raises ``ValueError`` if a value is not positive and finite.
    """
    x = x.to(torch.float64).sort().values
    if not bool(((x > 0) & x.isfinite()).all()):
        raise ValueError("a power law has positive finite values only")
    logs = x.log()
    n = len(logs)
    counts = torch.arange(n, 0, -1, dtype=torch.float64, device=x.device)  # values from each one on
    excess = logs.flip(0).cumsum(0).flip(0) / counts - logs  # the mean of log(x / start): 1 / (exponent - 1)
    distinct = torch.cat([logs.new_full((1,), math.inf), logs.diff()]) > TIED
    starts = (distinct & (counts >= SHORTEST_TAIL) & (excess > TIED)).nonzero().flatten()
    if len(starts) == 0:
        return None
    distances = torch.cat([_distances(logs, excess, panel) for panel in starts.split(PANEL)])
    best = int((distances <= distances.min() + TIED).nonzero()[0])
    at = int(starts[best])
    return PowerTail(
        exponent=1 + 1 / float(excess[at]), start=float(x[at]), count=n - at, distance=float(distances[best])
    )


def _distances(logs: Tensor, excess: Tensor, starts: Tensor) -> Tensor:
    """The Kolmogorov–Smirnov distance of the law from each of ``starts`` (c,), ascending indices into ``logs`` (n,)."""
    first = int(starts[0])
    index = torch.arange(first, len(logs), device=logs.device)  # (t,) everything from the lowest start on
    chosen = starts[:, None]  # (c, 1)
    counts = (len(logs) - chosen).to(torch.float64)
    law = -torch.expm1((logs[chosen] - logs[first:]) / excess[chosen])  # (c, t)
    # E steps from j / k to (j + 1) / k at the j-th value: the farther side is half a step beyond the middle.
    middle = ((index - chosen).to(torch.float64) + 0.5) / counts
    off = (law - middle).abs_().masked_fill_(index < chosen, 0.0)
    return off.amax(1) + 0.5 / counts.flatten()


def spectrum(matrix: Tensor | Operator) -> Spectrum:
    """The spectrum of a matrix (m, n), or of an operator; float64 throughout.

    ``Factors`` are not multiplied out: ``left = Q1 @ R1`` and ``right.T = Q2 @ R2`` leave the singular values of the small
    ``R1 @ R2.T``, and zeros for the rest. Other operators are taken dense.

    >>> left, right = torch.tensor([[3.0], [4.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    >>> product = spectrum(Factors(left, right))
    >>> product.shape, [round(v, 9) for v in product.values.tolist()]
    ((2, 3), [5.0, 0.0])

    Raises ``ValueError`` if it is not a matrix or holds NaN or infinity.
    """
    if isinstance(matrix, Factors):
        return _product_spectrum(matrix)
    dense = matrix if isinstance(matrix, Tensor) else matrix.dense()
    found = singular_values(dense)
    m, n = dense.shape
    return Spectrum((m, n), found.s, _floor(found))


def _product_spectrum(op: Factors) -> Spectrum:
    left, right = op.left.to(torch.float64), op.right.to(torch.float64)
    found = singular_values(torch.linalg.qr(left, mode="r").R @ torch.linalg.qr(right.T, mode="r").R.T)
    missing = min(op.shape) - len(found.s)
    # Both decompositions and the product each err by a little of the factors' norms, which may exceed that of the product.
    norms = float(torch.linalg.vector_norm(left)) * float(torch.linalg.vector_norm(right))
    slack = SAFETY * EPS * max(op.shape) * norms
    return Spectrum(op.shape, F.pad(found.s, (0, missing)), slack + _floor(found))


def _floor(found: SVD) -> float:
    """The value up to which ``found.value_floor`` is 0."""
    return math.hypot(found.slack, math.sqrt(found.slack_sq))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
