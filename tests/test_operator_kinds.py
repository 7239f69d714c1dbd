"""What is particular to each kind of operator: worked examples, and NumPy and SciPy as oracles of the dense matrix."""

from dataclasses import make_dataclass
from functools import reduce
from itertools import product

import numpy as np
import pytest
import scipy.linalg
import torch
from market import float64, gaussian
from operators import codes, cube, sparse, train
from torch import Tensor

from eckart.operator import (
    BlockDiagonal,
    Codes,
    Dense,
    Diagonal,
    Kronecker,
    Operator,
    Product,
    Shuffle,
    Sparse,
    Sum,
    TensorTrain,
    Transposed,
    monarch,
)
from eckart.operator.fields import Role, roles

EPS = 2.0**-52


# ---- diagonals, blocks, shuffles --------------------------------------------------------------------------------------


def test_diagonals_and_blocks_are_those_of_numpy_and_scipy() -> None:
    values, blocks = gaussian(5, 1)[:, 0], cube(3, 2, 4)
    assert np.array_equal(Diagonal(values).dense().numpy(), np.diag(values.numpy()))
    assert np.array_equal(BlockDiagonal(blocks).dense().numpy(), scipy.linalg.block_diag(*blocks.numpy()))


@pytest.mark.parametrize(("rows", "columns"), [(2, 3), (3, 2), (4, 4), (1, 5), (5, 1)])
def test_a_shuffle_transposes_a_grid(rows: int, columns: int) -> None:
    grid = np.arange(rows * columns).reshape(rows, columns)
    op = Shuffle(rows, columns)
    assert (op @ torch.from_numpy(grid.flatten())).tolist() == grid.T.flatten().tolist()
    assert torch.equal(op.T.dense() @ op.dense(), torch.eye(rows * columns))
    assert torch.equal(op @ (op.T @ gaussian(rows * columns, 2)), gaussian(rows * columns, 2))


def test_a_shuffle_of_two_by_three_by_hand() -> None:
    ones = {(0, 0), (1, 3), (2, 1), (3, 4), (4, 2), (5, 5)}
    assert {tuple(at) for at in Shuffle(2, 3).dense().nonzero().tolist()} == ones


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_what_stores_nothing_is_dense_in_the_dtype_of_the_others(dtype: torch.dtype) -> None:
    shuffle, other = Shuffle(2, 3), Dense(gaussian(6, 6).to(dtype))
    bare = Product((shuffle, shuffle.T))
    for op in (Sum((shuffle, other)), Sum((other, bare)), Product((other, shuffle)), Kronecker(bare, other)):
        assert op.dense().dtype == dtype
    assert bare.dense().dtype == torch.get_default_dtype()
    meta = Dense(torch.empty(6, 6, device="meta"))
    assert Product((meta, shuffle)).dense().device.type == Sum((shuffle, meta)).dense().device.type == "meta"


def test_what_stores_something_keeps_its_own_dtype() -> None:
    """The last bit of a float64 term is not lost to a float32 one before it."""
    narrow, wide = Dense(torch.zeros(1, 1)), Dense(torch.tensor([[1 + EPS]], dtype=torch.float64))
    for op in (Sum((narrow, wide)), Sum((wide, narrow))):
        assert float(op.dense()) == 1 + EPS
    assert float(Kronecker(Dense(torch.ones(1, 1)), wide).dense()) == 1 + EPS


# ---- Kronecker products -----------------------------------------------------------------------------------------------


def test_a_kronecker_product_by_hand() -> None:
    op = Kronecker(Dense(torch.tensor([[1.0, 2.0], [3.0, 4.0]])), Dense(torch.tensor([[0.0, 5.0], [6.0, 7.0]])))
    assert op.dense().tolist() == [[0, 5, 0, 10], [6, 7, 12, 14], [0, 15, 0, 20], [18, 21, 24, 28]]
    assert (op @ torch.tensor([1.0, -1.0, 0.0, 2.0])).tolist() == [15.0, 27.0, 25.0, 53.0]


@pytest.mark.parametrize(
    "shapes", [((2, 3), (4, 5)), ((4, 5), (2, 3)), ((1, 6), (3, 1)), ((3, 1), (1, 6)), ((1, 1), (2, 2))]
)
def test_kronecker_products_are_those_of_numpy(shapes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    a, b = gaussian(*shapes[0], 1), gaussian(*shapes[1], 2)
    op, expected = Kronecker(Dense(a), Dense(b)), np.kron(a.numpy(), b.numpy())
    assert np.array_equal(op.dense().numpy(), expected)
    x = gaussian(expected.shape[1], 3)
    assert float64(op @ x) == pytest.approx(expected @ x.numpy(), abs=1e-13)


def test_of_two_orders_that_with_the_smaller_grid_is_taken() -> None:
    """Told by which child sees how many columns."""

    class Watched(Dense):
        seen: tuple[int, ...] = ()

        def __matmul__(self, x: Tensor) -> Tensor:
            object.__setattr__(self, "seen", tuple(x.shape))
            return super().__matmul__(x)

    for (m, n), (p, q) in [((2, 5), (3, 4)), ((5, 2), (3, 4)), ((2, 5), (4, 3)), ((5, 2), (4, 3)), ((2, 3), (2, 3))]:
        a, b = Watched(gaussian(m, n)), Watched(gaussian(p, q))
        Kronecker(a, b) @ gaussian(n * q, 1)
        b_first = {a.seen: True, b.seen: False}
        assert (a.seen, b.seen) == (((n, p), (q, n)) if n * p <= m * q else ((n, q), (q, m))), b_first


# ---- Monarch ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("q", "s", "k", "p"), [(3, 2, 4, 5), (2, 2, 2, 2), (1, 3, 2, 1), (4, 1, 1, 3)])
def test_entries_of_a_monarch_matrix(q: int, s: int, k: int, p: int) -> None:
    left, right = cube(q, s, k), cube(k, q, p, seed=1)
    found = monarch(left, right).dense()
    assert found.shape == (s * q, k * p)
    for a, b, c, d in product(range(s), range(q), range(k), range(p)):
        assert float(found[a * q + b, c * p + d]) == pytest.approx(float(left[b, a, c] * right[c, b, d]), rel=4 * EPS)


def test_a_square_monarch_matrix_by_its_permutation_matrices() -> None:
    """P L P' R, with P written down as a permutation of the identity."""
    b = 3
    left, right = cube(b, b, b), cube(b, b, b, seed=1)
    permutation = np.eye(b * b)[np.arange(b * b).reshape(b, b).T.flatten()]
    expected = (
        permutation @ scipy.linalg.block_diag(*left.numpy()) @ permutation.T @ scipy.linalg.block_diag(*right.numpy())
    )
    assert float64(monarch(left, right).dense()) == pytest.approx(expected, abs=1e-13)


def test_the_fourier_matrix_of_four_is_monarch_up_to_the_order_of_its_inputs() -> None:
    """One step of Cooley and Tukey, in its real and its imaginary part taken together as a matrix over the reals."""
    w = np.exp(-2j * np.pi / 4)
    # F[2 a + b, j] with inputs sorted even, odd: j = c + 2 d is column c p + d; factors are w^(b c) w^(2 a c) and w^(2 b d).
    left = np.array([[[w ** (c * (2 * a + b)) for c in range(2)] for a in range(2)] for b in range(2)])
    right = np.array([[[w ** (2 * b * d) for d in range(2)] for b in range(2)] for _ in range(2)])
    fourier = np.fft.fft(np.eye(4))[:, [0, 2, 1, 3]]
    parts = {}
    for i, j in product(range(2), range(2)):
        one, other = ((torch.from_numpy(m.real.copy()), torch.from_numpy(m.imag.copy())) for m in (left, right))
        parts[i, j] = monarch(one[i], other[j]).dense().numpy()
    assert parts[0, 0] - parts[1, 1] + 1j * (parts[0, 1] + parts[1, 0]) == pytest.approx(fourier, abs=1e-15)


def test_blocks_that_make_no_monarch_matrix_are_refused() -> None:
    for left, right in [((3, 2, 4), (3, 3, 2)), ((3, 2, 4), (4, 2, 2)), ((3, 2), (4, 3, 2)), ((3, 2, 4), (4, 3))]:
        with pytest.raises(ValueError, match=r"left blocks \(q, s, k\) and right blocks \(k, q, p\), not \(3, 2"):
            monarch(torch.zeros(left), torch.zeros(right))


# ---- tensor trains ----------------------------------------------------------------------------------------------------


def digits(number: int, sizes: list[int]) -> list[int]:
    return [int(d) for d in np.unravel_index(number, sizes)]


@pytest.mark.parametrize(
    ("rows", "columns", "rank"),
    [((2, 3), (3, 2), 2), ((2, 1, 3), (1, 4, 2), 3), ((3,), (4,), 1), ((2, 2, 2, 2), (2,) * 4, 2)],
)
def test_entries_of_a_train_are_products_of_matrices(
    rows: tuple[int, ...], columns: tuple[int, ...], rank: int
) -> None:
    op = train(rows, columns, rank, torch.float64)
    found = op.dense()
    for i, j in product(range(op.shape[0]), range(op.shape[1])):
        picked = zip(op.cores, digits(i, list(rows)), digits(j, list(columns)), strict=True)
        entry = reduce(np.matmul, [core[:, a, b, :].numpy() for core, a, b in picked])
        assert float(found[i, j]) == pytest.approx(entry.item(), abs=1e-13)


def test_a_train_by_hand() -> None:
    """[[1, 2], [3, 4]] tensor e plus e tensor [[1, 2], [3, 4]], e the identity: two terms, rank two."""
    a, e = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.eye(2)
    first = torch.stack([a, e], -1)[None]  # (1, 2, 2, 2)
    last = torch.stack([e, a])[..., None]  # (2, 2, 2, 1)
    op = TensorTrain((first, last))
    assert op.ranks == (2,)
    assert op.dense().tolist() == [[2, 2, 2, 0], [3, 5, 0, 2], [3, 0, 5, 2], [0, 3, 3, 8]]
    assert (op @ torch.tensor([1.0, 0.0, 0.0, -1.0])).tolist() == [2.0, 1.0, 1.0, -8.0]
    assert (op.T @ torch.tensor([1.0, 0.0, 0.0, -1.0])).tolist() == [2.0, -1.0, -1.0, -8.0]


def test_a_train_of_rank_one_is_a_kronecker_product() -> None:
    factors = [gaussian(2, 3, 1), gaussian(3, 1, 2), gaussian(2, 2, 3)]
    op = TensorTrain(tuple(f[None, :, :, None] for f in factors))
    assert float64(op.dense()) == pytest.approx(reduce(np.kron, [f.numpy() for f in factors]), abs=1e-14)


def test_the_transpose_of_a_train_swaps_rows_and_columns_of_its_cores() -> None:
    op = train((2, 3), (4, 1), 2, torch.float64)
    assert [tuple(core.shape) for core in op.T.cores] == [(1, 4, 2, 2), (2, 1, 3, 1)]
    assert op.ranks == op.T.ranks == (2,)
    assert train((4, 5, 6), (1, 1, 1), 3, torch.float64).ranks == (3, 3)


def test_cores_that_make_no_train_are_refused() -> None:
    wrong = [[], [(1, 2, 2)], [(2, 2, 2, 1)], [(1, 2, 2, 3)], [(1, 2, 2, 3), (2, 2, 2, 1)], [(1, 1, 1, 1), (1, 1, 1)]]
    for shapes in wrong:
        with pytest.raises(ValueError, match=r"cores are \(r, m, n, s\)"):
            TensorTrain(tuple(torch.zeros(shape) for shape in shapes))


# ---- for all ----------------------------------------------------------------------------------------------------------

EMPTY = {
    "diagonal": lambda: Diagonal(torch.zeros(0)),
    "no blocks": lambda: BlockDiagonal(torch.zeros(0, 2, 3)),
    "blocks without rows": lambda: BlockDiagonal(torch.zeros(2, 0, 3)),
    "blocks without columns": lambda: BlockDiagonal(torch.zeros(2, 3, 0)),
    "kronecker without rows": lambda: Kronecker(Dense(torch.zeros(0, 2)), Dense(torch.zeros(3, 2))),
    "kronecker without columns": lambda: Kronecker(Dense(torch.zeros(2, 3)), Dense(torch.zeros(3, 0))),
    "train without rows": lambda: TensorTrain((torch.zeros(1, 0, 2, 2), torch.zeros(2, 3, 2, 1))),
    "train without columns": lambda: TensorTrain((torch.zeros(1, 2, 2, 2), torch.zeros(2, 3, 0, 1))),
    "train of rank zero": lambda: TensorTrain((torch.zeros(1, 2, 2, 0), torch.zeros(0, 3, 2, 1))),
    "sparse without rows": lambda: Sparse.of(torch.zeros(0, 4), torch.zeros(0, 4, dtype=torch.bool)),
    "sparse without columns": lambda: Sparse.of(torch.zeros(4, 0), torch.zeros(4, 0, dtype=torch.bool)),
    "codes without rows": lambda: codes(0, 5, 3, 2, torch.float32),
    "codes without columns": lambda: codes(5, 0, 3, 2, torch.float32),
}


@pytest.mark.parametrize("name", EMPTY)
def test_a_matrix_without_rows_or_columns_has_products(name: str) -> None:
    """A sum without terms is zero."""
    made = EMPTY[name]()
    for op in (made, made.T):
        m, n = op.shape
        assert torch.equal(op.dense(), torch.zeros(m, n))
        assert torch.equal(op @ torch.ones(n, 2), torch.zeros(m, 2))
        assert torch.equal(op @ torch.ones(n), torch.zeros(m))


def test_one_number_that_is_none_stays_in_its_row() -> None:
    """NaN in a stored value reaches the rows that it belongs to and no others."""
    for op in (
        Diagonal(torch.tensor([1.0, torch.nan, 1.0])),
        Sparse.of(torch.tensor([[1.0, 0, 0], [torch.nan, 0, 0], [0, 1, 0]]), torch.eye(3).roll(-1, 1).bool() | True),
        Codes.of(
            torch.ones(3, 3).long(), torch.tensor([[1.0], [torch.nan], [1.0]]), torch.zeros(3, 1), bits=2, group=3
        ),
    ):
        assert (op @ torch.ones(3)).isnan().tolist() == [False, True, False]


def test_only_what_has_a_product_of_its_own_is_transposed_by_it() -> None:
    assert Transposed(sparse(3, 4, 0.5, torch.float32)).shape == (4, 3)
    with pytest.raises(ValueError, match="a Dense has no transpose_matmul: its transpose is its own T"):
        Transposed(Dense(torch.eye(2)))  # type: ignore[arg-type]


def test_a_class_with_a_field_that_no_file_holds_is_refused_by_name() -> None:
    whole = make_dataclass("Whole", [("matrix", Tensor), ("parts", tuple[Operator, ...]), ("count", int)])
    assert roles(whole) == {"matrix": Role.TENSOR, "parts": Role.OPERATORS, "count": int}
    odd = make_dataclass("Odd", [("matrix", Tensor), ("places", list[int])])
    with pytest.raises(TypeError, match=r"Odd\.places is a list\[int\], which no file of operators can hold"):
        roles(odd)
