"""Ways to the leading singular vectors: chosen by shape, rank and accuracy, or by hand."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Generator, Tensor

from eckart.kernels.krylov import block_krylov
from eckart.kernels.randomized import (
    InMemory,
    Products,
    Subspace,
    leading_subspace,
    ritz_subspace,
    subspace_iteration,
)
from eckart.kernels.single import single_precision_subspace
from eckart.kernels.svd import LAPACK_SIDE
from eckart.metric import Metric

LARGEST_SHARE = 3  # above a third of the smaller side an exact decomposition is as fast
LARGEST_SHARE_IN_FULL = (
    6  # and in a full metric above a sixth: there are float64 products with all columns in both ways
)


class Route(Protocol):
    """How a matrix is decomposed."""

    @property
    def lapack_side(self) -> int:
        """The smaller side up to which an exact decomposition is LAPACK's; above, it is that of a float64 Gram matrix."""

    def exact(self, shape: tuple[int, int], rank: int, metric: Metric, accuracy: float) -> str | None:
        """Why an exact decomposition is taken; ``None`` where ``leading`` is to be asked."""

    def leading(
        self, a: Products, rank: int, *, energy: float, accuracy: float, rng: Generator
    ) -> tuple[Subspace | None, str]:
        """The leading left singular subspace, and how it was found; ``None`` and why, where only an exact way leads there."""


def _exact_name(shape: tuple[int, int], lapack_side: int) -> str:
    return "LAPACK" if min(shape) <= lapack_side else "a float64 Gram matrix"


@dataclass(frozen=True)
class Automatic:
    """LAPACK for small matrices; subspace iteration where that is faster; else a Gram matrix in float64.

    Smaller sides up to ``small`` are never iterated on: above 256 that is faster for low ranks already, but up to 1024 an exact
    decomposition is cheap enough where bounds that are near and certain are wanted. With ``single``, plain matrices in float32 and
    narrower are decomposed with eigenvectors in float32 above that, where a certificate shows that they are good enough.
    """

    small: int = LAPACK_SIDE
    single: bool = False

    @property
    def lapack_side(self) -> int:
        """What LAPACK is faster for."""
        return LAPACK_SIDE

    def exact(self, shape: tuple[int, int], rank: int, metric: Metric, accuracy: float) -> str | None:
        """By size, accuracy and rank, in this order."""
        side, full = min(shape), not metric.is_diagonal
        by_outputs = metric.moment is not None and shape[0] <= shape[1]
        how = "exact, by LAPACK" if side <= self.lapack_side and not by_outputs else "exact, by a float64 Gram matrix"
        how += f" in the {metric.name} metric" if full else ""
        if side <= min(self.small, self.lapack_side):
            return f"{how}: the smaller side is {side}"
        if accuracy == 0:
            return f"{how}: no error above the smallest possible is allowed"
        if (LARGEST_SHARE_IN_FULL if full else LARGEST_SHARE) * rank > side:
            if self.single and metric.is_plain and side > self.lapack_side:
                return None
            return f"{how}: rank {rank} is more than a {'sixth' if full else 'third'} of {side}"
        return None

    def leading(
        self, a: Products, rank: int, *, energy: float, accuracy: float, rng: Generator
    ) -> tuple[Subspace | None, str]:
        """Steps until the error is within the accuracy; for a large rank all directions at once."""
        by = _exact_name(a.shape, self.lapack_side)
        if LARGEST_SHARE * rank > min(a.shape) and self.single:
            if not isinstance(a, InMemory) or a.wide:
                return None, f"exact, by {by}: rank {rank} is more than a third of {min(a.shape)}"
            found = single_precision_subspace(a.matrix, rank, accuracy=accuracy, energy=energy)
            if found is None:
                return None, f"exact, by {by}: float32 does not tell what rank {rank} leaves"
            how = "a float64 Gram matrix, its eigenvectors in float32"
            return found, f"{how}: at most {100 * (found.excess or 0.0):.2g} % above the optimum"
        found = leading_subspace(a, rank, accuracy=accuracy, rng=rng, energy=energy)
        if found is None:
            return None, f"exact, by {by}: subspace iteration did not get there"
        assert found.excess is not None
        return found, f"{found.steps} steps of subspace iteration, {100 * found.excess:.2g} % above the optimum"


@dataclass(frozen=True)
class _Exact:
    """An exact decomposition whatever the size."""

    name: ClassVar[str]

    def exact(self, shape: tuple[int, int], rank: int, metric: Metric, accuracy: float) -> str | None:
        """Always."""
        return f"exact, by {self.name}, as asked"

    def leading(
        self, a: Products, rank: int, *, energy: float, accuracy: float, rng: Generator
    ) -> tuple[Subspace | None, str]:
        """Never."""
        return None, f"exact, by {self.name}, as asked"


@dataclass(frozen=True)
class Lapack(_Exact):
    """LAPACK's divide and conquer on the tall orientation in float64, whatever the size: the most accurate and the slowest way."""

    name: ClassVar[str] = "LAPACK"

    @property
    def lapack_side(self) -> int:
        """Any."""
        return sys.maxsize


@dataclass(frozen=True)
class GramMatrix(_Exact):
    """Eigenvectors of the smaller Gram matrix in float64, whatever the size: values below 1e-8 of the largest are lost."""

    name: ClassVar[str] = "a float64 Gram matrix"

    @property
    def lapack_side(self) -> int:
        """None."""
        return 0


@dataclass(frozen=True)
class _Iterated:
    """An iteration whatever the size."""

    @property
    def lapack_side(self) -> int:
        """As ``Automatic``, for bounds."""
        return LAPACK_SIDE

    def exact(self, shape: tuple[int, int], rank: int, metric: Metric, accuracy: float) -> str | None:
        """Never."""
        return None


@dataclass(frozen=True)
class SubspaceIteration(_Iterated):
    """A fixed number of ``steps`` of subspace iteration with ``oversampling`` more directions than asked for, in float32.

    Halko, Martinsson and Tropp 2011, algorithm 4.4.
    """

    steps: int = 3
    oversampling: int = 8

    def leading(
        self, a: Products, rank: int, *, energy: float, accuracy: float, rng: Generator
    ) -> tuple[Subspace | None, str]:
        """The subspace after the steps, however good it is by then."""
        found = subspace_iteration(a, rank, steps=self.steps, oversampling=self.oversampling, rng=rng)
        return found, f"{self.steps} steps of subspace iteration, as asked"


@dataclass(frozen=True)
class BlockKrylov(_Iterated):
    """The subspace of all ``steps`` + 1 blocks of a block Krylov iteration (Musco and Musco 2015), in float32.

    More directions from the same products: better than subspace iteration on spectra that fall slowly, at the cost of
    orthogonalising ``steps`` times as many.
    """

    steps: int = 2
    oversampling: int = 8

    def leading(
        self, a: Products, rank: int, *, energy: float, accuracy: float, rng: Generator
    ) -> tuple[Subspace | None, str]:
        """The best directions within all blocks."""
        found = block_krylov(a, rank, steps=self.steps, oversampling=self.oversampling, rng=rng)
        return found, f"{self.steps} steps of block Krylov iteration, as asked"


@dataclass(frozen=True)
class Lanczos(_Iterated):
    """SciPy's Lanczos bidiagonalisation (PROPACK) to convergence in float64: an independent way, slow above small ranks.

    Where that does not come about, because values are too close for as many products as it makes or are the same, an exact way is
    taken. Raises ``ImportError`` with a sentence where SciPy is missing.
    """

    def leading(
        self, a: Products, rank: int, *, energy: float, accuracy: float, rng: Generator
    ) -> tuple[Subspace | None, str]:
        """Converged singular vectors; ``None`` where there are none."""
        try:
            import numpy as np
            from scipy.sparse.linalg import LinearOperator, svds
        except ImportError as error:
            raise ImportError("the route Lanczos needs SciPy: pip install scipy") from error

        def product(x: Any, of: Callable[..., Tensor]) -> Any:
            columns = torch.from_numpy(x.ravel())[:, None].to(a.device)
            return of(columns, narrow=False).cpu().numpy()

        linear = LinearOperator(
            a.shape,
            matvec=lambda x: product(x, a.times),
            rmatvec=lambda y: product(y, a.transposed_times),
            dtype=np.float64,
        )
        start = torch.randn(a.shape[0], generator=rng, dtype=torch.float64).numpy()
        try:
            parts = svds(linear, k=rank, solver="propack", v0=start)
        except np.linalg.LinAlgError:
            by = _exact_name(a.shape, self.lapack_side)
            return None, f"exact, by {by}: Lanczos bidiagonalisation did not converge"
        u, s, _ = (torch.from_numpy(part.copy()) for part in parts)
        u = u[:, s.argsort(descending=True)].to(device=a.device, dtype=torch.float32)
        return ritz_subspace(a, u, rank, 0, None), "Lanczos bidiagonalisation by SciPy, as asked"
