"""One operator of every kind and shape, and hybrids nobody would ship: what every operator must do is tested on all."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from market import gaussian, generator
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from eckart.operator import (
    BlockDiagonal,
    Codes,
    Dense,
    Diagonal,
    Factors,
    Kronecker,
    Levels,
    Masked,
    Operator,
    Product,
    RowSparse,
    Shuffle,
    Sparse,
    Stacked,
    Sum,
    TensorTrain,
    Transposed,
    monarch,
)

Maker = Callable[[torch.dtype], Operator]


def cube(*shape: int, seed: int = 0) -> Tensor:
    """Independent normal entries of any number of dimensions, float64."""
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def integers(m: int, n: int, bits: int, seed: int = 0) -> Tensor:
    """Codes (m, n) of so many bits, with both ends among them where there is room."""
    codes = torch.randint(0, 2**bits, (m, n), generator=generator(seed))
    if codes.numel() > 1:
        codes.view(-1)[0], codes.view(-1)[-1] = 2**bits - 1, 0
    return codes


def codes(m: int, n: int, bits: int, group: int, dtype: torch.dtype) -> Codes:
    groups = -(-n // group)
    scale, zero = gaussian(m, groups, 1).to(dtype), gaussian(m, groups, 2).add(2**bits / 2).to(dtype)
    return Codes.of(integers(m, n, bits), scale, zero, bits=bits, group=group)


def levels(m: int, n: int, bits: int, group: int, dtype: torch.dtype) -> Levels:
    scale, found = gaussian(m, -(-n // group), 1).to(dtype), gaussian(2**bits, 1, 2)[:, 0].to(dtype)
    return Levels.of(integers(m, n, bits), scale, found, bits=bits, group=group)


def sparse(m: int, n: int, share: float, dtype: torch.dtype) -> Sparse:
    return Sparse.of(gaussian(m, n, 3).to(dtype), torch.rand(m, n, generator=generator(4)) < share)


def wide_indices(dtype: torch.dtype) -> Sparse:
    """Indices of two dtypes, columns out of order and one place named twice."""
    columns = torch.tensor([4, 0, 2, 2], dtype=torch.int32)
    return Sparse(torch.arange(1, 5).to(dtype), columns, torch.tensor([0, 0, 2, 4, 4]), 5)


def train(rows: tuple[int, ...], columns: tuple[int, ...], rank: int, dtype: torch.dtype) -> TensorTrain:
    ranks = (1, *[rank] * (len(rows) - 1), 1)
    sizes = zip(ranks, rows, columns, ranks[1:], strict=False)
    return TensorTrain(tuple(cube(*size, seed=i).to(dtype) for i, size in enumerate(sizes)))


def dense(m: int, n: int, dtype: torch.dtype) -> Dense:
    return Dense(gaussian(m, n).to(dtype))


def factors(m: int, n: int, dtype: torch.dtype) -> Factors:
    return Factors(gaussian(m, 2, 1).to(dtype), gaussian(2, n, 2).to(dtype))


def diagonal(n: int, dtype: torch.dtype) -> Diagonal:
    return Diagonal(gaussian(n, 1, 5)[:, 0].to(dtype))


def blocks(k: int, p: int, q: int, dtype: torch.dtype) -> BlockDiagonal:
    return BlockDiagonal(cube(k, p, q).to(dtype))


def stacked(heights: tuple[int, ...], width: int, dtype: torch.dtype) -> Stacked:
    return Stacked(tuple(gaussian(height, width, i).to(dtype) for i, height in enumerate(heights)))


SHAPES = [(5, 3), (3, 5), (4, 4), (1, 6), (6, 1)]

# A new kind joins by a line here.
MAKERS: Mapping[str, tuple[Maker, ...]] = {
    "dense": tuple(partial(dense, m, n) for m, n in SHAPES),
    "factors": tuple(partial(factors, m, n) for m, n in SHAPES),
    "diagonal": (partial(diagonal, 4), partial(diagonal, 1)),
    "kronecker": (
        lambda d: Kronecker(dense(2, 3, d), dense(4, 2, d)),  # the right factor first
        lambda d: Kronecker(dense(3, 2, d), dense(2, 4, d)),  # the left one
        lambda d: Kronecker(dense(1, 5, d), dense(3, 1, d)),
        lambda d: Kronecker(dense(5, 1, d), dense(1, 1, d)),
    ),
    "block_diagonal": tuple(partial(blocks, k, p, q) for k, p, q in [(3, 2, 4), (1, 3, 2), (4, 1, 1), (2, 3, 1)]),
    "shuffle": (lambda d: Shuffle(2, 3), lambda d: Shuffle(4, 1), lambda d: Shuffle(3, 3), lambda d: Shuffle(1, 1)),
    "tensor_train": (
        partial(train, (2, 3, 2), (3, 1, 2), 3),
        partial(train, (2, 2), (1, 3), 2),
        partial(train, (4,), (3,), 1),
        partial(train, (1, 1), (5, 2), 4),
    ),
    "sparse": (partial(sparse, 5, 7, 0.4), partial(sparse, 7, 4, 1.0), partial(sparse, 3, 3, 0.0), wide_indices),
    "row_sparse": (
        lambda d: RowSparse.of(gaussian(3, 4).to(d), torch.tensor([3, 0, 2]), 5),
        lambda d: RowSparse.of(gaussian(2, 5).to(d), torch.tensor([1, 0]), 2),
        lambda d: RowSparse.of(gaussian(0, 3).to(d), torch.arange(0), 4),
    ),
    "codes": (
        partial(codes, 5, 7, 3, 3),
        partial(codes, 4, 9, 2, 9),
        partial(codes, 6, 5, 4, 2),
        partial(codes, 3, 6, 8, 4),
        partial(codes, 2, 1, 3, 8),
    ),
    "levels": (
        partial(levels, 5, 7, 3, 3),
        partial(levels, 4, 9, 2, 9),
        partial(levels, 6, 5, 4, 2),
        partial(levels, 3, 6, 8, 4),
        partial(levels, 2, 1, 1, 8),
    ),
    "masked": (
        lambda d: Masked.of(gaussian(5, 11).to(d), gaussian(5, 11, seed=1) > 0.3),
        lambda d: Masked.of(gaussian(3, 8).to(d), gaussian(3, 8, seed=2) > -9),
        lambda d: Masked.of(gaussian(2, 3).to(d), gaussian(2, 3, seed=2) > 9),
    ),
    "stacked": (
        partial(stacked, (2, 3, 1), 4),
        partial(stacked, (1, 1), 3),
        partial(stacked, (5,), 2),
        partial(stacked, (0, 2), 1),
    ),
    "sum": (lambda d: Sum((factors(5, 7, d), sparse(5, 7, 0.3, d), codes(5, 7, 3, 3, d))),),
    "product": (lambda d: Product((dense(4, 3, d), diagonal(3, d), factors(3, 6, d))),),
    "transposed": (
        lambda d: Transposed(sparse(5, 7, 0.4, d)),
        lambda d: Transposed(codes(5, 7, 3, 3, d)),
        lambda d: Transposed(levels(5, 7, 4, 3, d)),
    ),
}

HYBRIDS: Mapping[str, Maker] = {
    "transposed kronecker of codes and sparse": lambda d: Kronecker(codes(3, 5, 3, 2, d), sparse(4, 2, 0.5, d)).T,
    "product of kronecker and sparse": lambda d: Product(
        (Kronecker(dense(2, 2, d), dense(2, 3, d)), sparse(6, 5, 0.5, d))
    ),
    "monarch": lambda d: monarch(cube(3, 2, 4).to(d), cube(4, 3, 2, seed=1).to(d)),
    "monarch the other way": lambda d: monarch(cube(3, 2, 4).to(d), cube(4, 3, 2, seed=1).to(d)).T,
    "kronecker of a shuffle and a train": lambda d: Kronecker(Shuffle(2, 2), train((2, 1), (1, 3), 2, d)),
    "sum of a shuffle and a diagonal": lambda d: Sum((Shuffle(2, 3), diagonal(6, d))),
    "some columns": lambda d: RowSparse.of(gaussian(2, 4).to(d), torch.tensor([4, 1]), 6).T,
    "rows of some columns": lambda d: Product(
        (
            RowSparse.of(gaussian(3, 2).to(d), torch.tensor([0, 4, 3]), 5),
            RowSparse.of(gaussian(2, 2).to(d), torch.tensor([2, 1]), 3).T,
        )
    ),
    "blocks of columns": lambda d: stacked((2, 3), 4, d).T,
    "nothing but shuffles": lambda d: Product((Shuffle(2, 6), Shuffle(3, 4), Kronecker(Shuffle(2, 2), Shuffle(1, 3)))),
    "sum of transposed codes and a kronecker of sums": lambda d: Sum(
        (
            codes(6, 4, 2, 3, d).T,
            Kronecker(Sum((dense(2, 3, d), sparse(2, 3, 0.5, d))), Product((Shuffle(1, 2), dense(2, 2, d)))),
        )
    ),
    "eleven factors and more": lambda d: Product(
        (*[Shuffle(2, 2), diagonal(4, d)] * 5, dense(4, 3, d), dense(3, 2, d))
    ),
    "one term": lambda d: Sum((Product((codes(3, 4, 8, 4, d),)),)),
}

# Every one of them by a name, in a fixed order.
OPERATORS: Mapping[str, Maker] = {
    **{f"{kind} {i}": maker for kind, makers in MAKERS.items() for i, maker in enumerate(makers)},
    **HYBRIDS,
}


class Largest(TorchDispatchMode):
    """Remembers how many numbers the largest tensor had that was made inside; views of what an operator stores are not."""

    def __init__(self, op: Operator) -> None:
        super().__init__()
        self.numbers = 0
        self.stored = {t.untyped_storage().data_ptr() for t in op.tensors().values()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, Tensor) and one.untyped_storage().data_ptr() not in self.stored:
                self.numbers = max(self.numbers, one.untyped_storage().nbytes() // one.element_size())
        return made
