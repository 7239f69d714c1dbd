"""How fast factored layers are beside dense ones, on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from eckart.errors import EckartError
from eckart.model.linear import OperatorLinear
from eckart.model.progress import Progress, quiet
from eckart.operator import Factors

SHARES = (0.25, 0.5, 0.75, 1.0, 1.25)  # of the rank at which both take as many operations
# Layers of a model do not meet their own weights in the cache: several copies take turns, of so many bytes together.
BEYOND_CACHE = 256 << 20
MOST_COPIES = 16


@dataclass(frozen=True)
class LayerSpeed:
    """Seconds that a dense layer (outputs, inputs) takes for a batch of rows, and its factored form at some ranks."""

    shape: tuple[int, int]
    batch: int
    dtype: torch.dtype
    dense: float
    factored: tuple[tuple[int, float], ...]  # rank, seconds

    @property
    def break_even(self) -> float | None:
        """The rank up to which factors are faster; ``None`` where they are not even at the lowest that was measured.

        Times between measured ranks are taken to lie on straight lines; a rank beyond the largest is not guessed.

        >>> speed = LayerSpeed((4, 4), 1, torch.float32, 3.0, ((1, 1.0), (2, 2.0), (3, 4.0)))
        >>> speed.break_even
        2.5
        """
        reached: float | None = None
        before: tuple[int, float] | None = None
        for rank, seconds in self.factored:
            if seconds > self.dense:
                if before is not None:
                    reached = before[0] + (rank - before[0]) * (self.dense - before[1]) / (seconds - before[1])
                return reached
            reached, before = float(rank), (rank, seconds)
        return reached

    def to_json(self) -> dict[str, object]:
        """As a table."""
        return {
            "shape": list(self.shape),
            "batch": self.batch,
            "dtype": str(self.dtype).removeprefix("torch."),
            "dense_seconds": self.dense,
            "factored_seconds": {str(rank): seconds for rank, seconds in self.factored},
            "break_even_rank": self.break_even,
            "break_even_rank_by_operations": even_rank(self.shape),
        }


def even_rank(shape: tuple[int, int]) -> int:
    """The rank at which factors take as many operations and bytes as the matrix.

    >>> even_rank((4096, 4096)), even_rank((4096, 11008))
    (2048, 2985)
    """
    m, n = shape
    return m * n // (m + n)


def layer_speeds(
    shapes: Sequence[tuple[int, int]],
    batches: Sequence[int] = (1, 16, 512),
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16),
    *,
    repeats: int = 7,
    progress: Progress = quiet,
) -> tuple[LayerSpeed, ...]:
    """Time dense and factored layers of these shapes (outputs, inputs) in turns: medians of ``repeats``, on torch's threads.

    Ranks are a quarter to five quarters of ``even_rank``. Raises ``EckartError`` for shapes, batches and repeats that are not above 0.
    """
    if repeats < 1 or any(size < 1 for shape in shapes for size in shape) or any(batch < 1 for batch in batches):
        raise EckartError("shapes, batches and repeats of a benchmark are numbers above 0")
    work = [(shape, batch, dtype) for shape in shapes for dtype in dtypes for batch in batches]
    found = []
    for shape, batch, dtype in work:
        found.append(_timed(shape, batch, dtype, repeats))
        progress("bench", len(found), len(work), f"{shape[0]}x{shape[1]}, {batch} rows, {dtype}")
    return tuple(found)


def _timed(shape: tuple[int, int], batch: int, dtype: torch.dtype, repeats: int) -> LayerSpeed:
    rng = Generator().manual_seed(0)
    (m, n), even = shape, even_rank(shape)
    ranks = sorted({max(1, min(round(share * even), m, n)) for share in SHARES})

    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=rng).to(dtype)

    def dense() -> nn.Module:
        layer = nn.Linear(n, m, bias=False, dtype=dtype, device="meta")
        layer.weight = nn.Parameter(random(m, n))
        return layer

    def factored(rank: int) -> nn.Module:
        return OperatorLinear.of(Factors(random(m, rank), random(rank, n)))

    x = random(batch, n)
    copies = max(1, min(MOST_COPIES, BEYOND_CACHE // (m * n * dtype.itemsize)))
    kinds: list[Callable[[], nn.Module]] = [dense, *(lambda rank=rank: factored(rank) for rank in ranks)]
    seconds = []
    for make in kinds:  # one kind after another, since all of them together would not fit in memory
        layers = [make() for _ in range(copies)]
        seconds.append(_median(layers, x, repeats))
    return LayerSpeed(shape, batch, dtype, seconds[0], tuple(zip(ranks, seconds[1:], strict=True)))


def _median(layers: Sequence[nn.Module], x: Tensor, repeats: int) -> float:
    """The median time of one layer, each of them run once to begin with."""
    times = []
    with torch.inference_mode():
        for layer in layers:
            layer(x)
        for _ in range(repeats):
            begun = time.perf_counter()
            for layer in layers:
                layer(x)
            times.append((time.perf_counter() - begun) / len(layers))
    return statistics.median(times)
