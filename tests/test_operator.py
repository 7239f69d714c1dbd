import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from market import float64, gaussian
from operators import HYBRIDS, MAKERS, OPERATORS, Largest, Maker, blocks, codes, dense, diagonal, factors, sparse, train
from safetensors.torch import load_file, save_file
from torch import Tensor

from eckart.operator import (
    KINDS,
    PLAIN,
    Dense,
    Factors,
    Kronecker,
    Operator,
    Product,
    Shuffle,
    Sum,
    describe,
    kind_of,
    monarch,
    nbytes,
    rebuild,
)

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def test_every_kind_is_in_this_table() -> None:
    assert set(MAKERS) == set(KINDS)
    for kind, makers in MAKERS.items():
        assert {kind_of(make(torch.float32)) for make in makers} == {kind}


@pytest.fixture(params=OPERATORS)
def make(request: pytest.FixtureRequest) -> Maker:
    return OPERATORS[request.param]


@pytest.fixture
def op(make: Maker) -> Operator:
    return make(torch.float64)


def in_float64(op: Operator) -> Operator:
    """The same stored numbers, so that what this does differs from what ``op`` does by rounding alone."""
    return rebuild(describe(op), {k: v.double() if v.is_floating_point() else v for k, v in op.tensors().items()})


def rounding(op: Operator, x: Tensor) -> np.ndarray:
    """How far ``op @ x`` may be off: every step rounds a sum whose terms are at most those of the absolute values."""
    absolute = {k: t.abs() if t.is_floating_point() else t for k, t in in_float64(op).tensors().items()}
    for name in absolute:
        if name.endswith("zero"):
            absolute[name].neg_()  # the code and what is taken off it, added up
    terms = float64(rebuild(describe(op), absolute).dense()) @ np.abs(float64(x))
    return (op.shape[1] + 2 * len(absolute) + 4) * torch.finfo(x.dtype).eps * terms


# ---- laws -------------------------------------------------------------------------------------------------------------


def operands(n: int, dtype: torch.dtype) -> Iterator[Tensor]:
    """Many columns, one, none, a vector, and views that do not lie in memory as they are read."""
    x = gaussian(n, 7, 3).to(dtype)
    yield from (x, x[:, :1], x[:, :0], x[:, 0].contiguous(), x[:, ::3], x[:, 2], x.T.contiguous().T)


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_are_those_of_the_dense_matrix(make: Maker, dtype: torch.dtype) -> None:
    op = make(dtype)
    m, n = op.shape
    matrix = float64(in_float64(op).dense())
    assert op.dense().shape == (m, n)
    for x in operands(n, dtype):
        found = op @ x
        assert found.dtype == dtype
        assert found.shape == (m, *x.shape[1:])
        assert bool((np.abs(float64(found) - matrix @ float64(x)) <= rounding(op, x)).all())


def test_the_transpose_is_stored_in_the_same_place(op: Operator) -> None:
    m, n = op.shape
    assert op.T.shape == (n, m)
    assert kind_of(op.T) in (kind_of(op), "transposed") or kind_of(op) == "transposed"
    assert float64(op.T.dense()) == pytest.approx(float64(op.dense()).T, rel=1e-13, abs=1e-13)
    assert torch.equal(op.T.T.dense(), op.dense())
    assert kind_of(op.T.T) == kind_of(op)
    storage = {t.untyped_storage().data_ptr() for t in op.tensors().values()}
    assert {t.untyped_storage().data_ptr() for t in op.T.tensors().values()} == storage
    assert nbytes(op.T) == nbytes(op)


def test_operator_and_transpose_are_adjoint(op: Operator) -> None:
    m, n = op.shape
    for x, y in [(gaussian(n, 3, 1), gaussian(m, 4, 2)), (gaussian(n, 1, 3)[:, 0], gaussian(m, 1, 4)[:, 0])]:
        off = (op @ x).mT @ y - x.mT @ (op.T @ y) if x.ndim == 2 else (op @ x) @ y - x @ (op.T @ y)
        slack = np.abs(float64(y)).T @ rounding(op, x) * (m + n)
        assert bool((slack >= np.abs(float64(off)).T).all())


def test_products_are_linear(op: Operator) -> None:
    n = op.shape[1]
    x, y = gaussian(n, 3, 1), gaussian(n, 3, 2)
    off = op @ (2 * x - 3 * y) - (2 * (op @ x) - 3 * (op @ y))
    assert bool((np.abs(float64(off)) <= 2 * rounding(op, 2 * x.abs() + 3 * y.abs())).all())
    assert float((op @ torch.zeros(n, dtype=torch.float64)).abs().sum()) == 0.0


def test_operands_of_other_sizes_are_refused(op: Operator) -> None:
    n = op.shape[1]
    sizes = {n + 1, 2 * n, 0, 1} - {n}
    for x in [*[gaussian(k, 2) for k in sizes], *[gaussian(k, 1)[:, 0] for k in sizes]]:
        with pytest.raises((ValueError, RuntimeError)):  # torch's own sentence for plain products
            op @ x


@pytest.mark.parametrize(
    "op",
    [
        diagonal(4, torch.float64),
        Kronecker(dense(2, 2, torch.float64), dense(2, 2, torch.float64)),
        blocks(2, 2, 2, torch.float64),
        Shuffle(2, 2),
        train((2, 2), (2, 2), 2, torch.float64),
        sparse(4, 4, 0.5, torch.float64),
        codes(4, 4, 3, 2, torch.float64),
        sparse(4, 4, 0.5, torch.float64).T,
        codes(4, 4, 3, 2, torch.float64).T,
    ],
    ids=kind_of,
)
def test_a_refused_operand_is_told_its_shape(op: Operator) -> None:
    for shape in [(1, 3), (1,), (5, 2), (2, 4, 3), ()]:
        with pytest.raises(ValueError, match=r"4 x 4 operator multiplies tensors \(4, k\) or \(4,\), not \("):
            op @ torch.ones(shape, dtype=torch.float64)


def test_gradients_are_those_of_the_dense_matrix(make: Maker) -> None:
    """For every floating tensor, and for the operand; the dense matrix is made by other code."""
    op = make(torch.float64)
    m, n = op.shape
    leaves = {k: v.clone().requires_grad_() if v.is_floating_point() else v for k, v in op.tensors().items()}
    floating = [t for t in leaves.values() if t.is_floating_point()]
    for k in (3, 1):
        x, weights = gaussian(n, k, 1).requires_grad_(), gaussian(m, k, 2)
        again = rebuild(describe(op), leaves)
        found = torch.autograd.grad((again @ x * weights).sum(), [x, *floating], retain_graph=True)
        wanted = torch.autograd.grad((again.dense().double() @ x * weights).sum(), [x, *floating])
        for one, other in zip(found, wanted, strict=True):
            assert float64(one) == pytest.approx(
                float64(other), rel=1e-12, abs=1e-12 * (1 + float(other.detach().norm()))
            )
        if floating and not all("values" in name and not t.numel() for name, t in leaves.items()):
            assert all(float(g.abs().sum()) > 0 for g in found[1:] if g.numel())


def test_operators_cannot_be_changed(op: Operator) -> None:
    for name in [*op.tensors(), "shape"]:
        with pytest.raises(AttributeError):
            setattr(op, name, torch.zeros(1))


# ---- in files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_file_and_a_record_are_all_there_is(make: Maker, dtype: torch.dtype, tmp_path: Path) -> None:
    op = make(dtype)
    save_file(
        {name: t.clone(memory_format=torch.contiguous_format) for name, t in op.tensors().items()}, tmp_path / "op"
    )
    tensors, record = load_file(tmp_path / "op"), json.loads(json.dumps(describe(op)))
    assert record == describe(op)
    again = rebuild(record, tensors)
    assert type(again) is type(op)
    assert again.shape == op.shape
    assert torch.equal(again.dense(), op.dense())
    assert describe(again) == describe(op)
    assert list(again.tensors()) == list(op.tensors())
    header = int.from_bytes((tmp_path / "op").read_bytes()[:8], "little")
    assert nbytes(op) == (tmp_path / "op").stat().st_size - 8 - header
    assert {t.dtype for t in op.tensors().values() if t.is_floating_point()} <= {dtype}


def test_missing_and_surplus_tensors_are_named(op: Operator) -> None:
    record, tensors = describe(op), dict(op.tensors())
    for name in tensors:
        with pytest.raises(ValueError, match=rf"has a tensor '{name}', which is not there"):
            rebuild(record, {k: v for k, v in tensors.items() if k != name})
    with pytest.raises(ValueError, match=r"has no tensor 'zzz', which is there"):
        rebuild(record, {**tensors, "zzz": torch.zeros(1)})


def test_tensors_with_another_number_of_dimensions_are_refused(op: Operator) -> None:
    record, tensors = describe(op), dict(op.tensors())
    for name, tensor in tensors.items():
        for other in (tensor[None], tensor.flatten()[:0].reshape(0, 1, 1, 1, 1), torch.tensor(1.0)):
            with pytest.raises(ValueError, match=r"not|differ|rows") as caught:
                rebuild(record, {**tensors, name: other.to(tensor.dtype)})
            first = str(caught.value)
            assert "\n" not in first
            if "_" in name and record["kind"] not in ("tensor_train", "stacked", "kronecker", "transposed"):
                assert first.startswith("in the tensors ")


def test_the_plain_kinds_are_made_of_their_tensors_alone() -> None:
    assert {"dense", "factors", "diagonal", "block_diagonal"} == PLAIN
    for kind in PLAIN:
        op = MAKERS[kind][0](torch.float64)
        assert torch.equal(KINDS[kind](**op.tensors()).dense(), op.dense())
        assert describe(op) == {"kind": kind}


def test_a_record_by_hand() -> None:
    op = Sum((codes(4, 6, 3, 4, torch.float32), Product((factors(4, 6, torch.float32), Shuffle(2, 3)))))
    assert describe(op) == {
        "kind": "sum",
        "children": {
            "terms": [
                {"kind": "codes", "settings": {"bits": 3, "columns": 6, "group": 4}},
                {
                    "kind": "product",
                    "children": {
                        "factors": [{"kind": "factors"}, {"kind": "shuffle", "settings": {"rows": 2, "columns": 3}}]
                    },
                },
            ]
        },
    }
    assert {name: tuple(t.shape) for name, t in op.tensors().items()} == {
        "0_scale": (4, 2),
        "0_zero": (4, 2),
        "0_codes": (4, 3),
        "1_0_left": (4, 2),
        "1_0_right": (2, 6),
    }
    assert nbytes(op) == 4 * (8 + 8) + 12 + 4 * (8 + 12)
    assert list(train((2, 2), (2, 2), 1, torch.float32).tensors()) == ["cores_0", "cores_1"]
    assert list(sparse(2, 2, 0.5, torch.float32).T.tensors()) == ["of_values", "of_columns", "of_offsets"]


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ({"kind": "codes"}, r"settings of a codes operator are bits \(int\), columns \(int\), group \(int\)"),
        ({"kind": "dens"}, r"the operator 'dens' is not known; known are dense, factors"),
        ({"kind": ["dense"]}, r"the operator \['dense'\] is not known"),
        ({}, r"a table of its kind"),
        ([], r"a table of its kind"),
        ("dense", r"a table of its kind"),
        ({"kind": "dense", "shape": [1, 2]}, r"a table of its kind"),
        ({"kind": "dense", "settings": {"rank": 2}}, r"settings of a dense operator are none"),
        ({"kind": "dense", "settings": []}, r"settings of a dense operator are none"),
        ({"kind": "dense", "children": {"terms": []}}, r"children of a dense operator are none"),
        ({"kind": "shuffle", "settings": {"rows": 2, "columns": True}}, r"settings of a shuffle operator are rows \(int\)"),
        ({"kind": "shuffle", "settings": {"rows": 2, "columns": 3.0}}, r"settings of a shuffle operator"),
        ({"kind": "shuffle", "settings": {"rows": 2}}, r"settings of a shuffle operator"),
        ({"kind": "tensor_train", "settings": {"cores": "2"}}, r"settings of a tensor_train operator are cores \(int\)"),
        ({"kind": "tensor_train", "settings": {"cores": 10**15}}, r"'cores_0', which is not there"),
        ({"kind": "tensor_train", "settings": {"cores": -1}}, r"not none"),
        ({"kind": "sum"}, r"children of a sum operator are terms"),
        ({"kind": "sum", "children": []}, r"children of a sum operator are terms"),
        ({"kind": "sum", "children": {"terms": {"kind": "dense"}}}, r"children of a sum operator are terms"),
        ({"kind": "sum", "children": {"terms": [{"kind": "x"}]}}, r"the operator 'x' is not known"),
        ({"kind": "sum", "children": {"terms": []}}, r"one shape, not none"),
        ({"kind": "kronecker", "children": {"a": [{"kind": "dense"}], "b": []}}, r"children of a kronecker .* a, b"),
        ({"kind": "kronecker", "children": {"a": [{"kind": "dense"}]}}, r"children of a kronecker operator are a, b"),
        (
            {"kind": "transposed", "children": {"of": [{"kind": "shuffle", "settings": {"rows": 1, "columns": 2}}]}},
            r"a Shuffle has no transpose_matmul",
        ),
        ({"kind": "shuffle", "settings": {"rows": 0, "columns": 2}}, r"at least one row and column, not 0 x 2"),
    ],
)  # fmt: skip
def test_records_that_nobody_wrote_are_refused(record: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        rebuild(record, {})


def test_the_place_of_tensors_that_do_not_fit_is_told() -> None:
    op = Sum((dense(4, 6, torch.float32), Product((dense(4, 5, torch.float32), factors(5, 6, torch.float32)))))
    tensors = dict(op.tensors())
    with pytest.raises(ValueError, match=r"^in the tensors 1_1_…: factors are .*, not \(5, 2\) and \(3, 6\)$"):
        rebuild(describe(op), {**tensors, "1_1_right": torch.zeros(3, 6)})
    with pytest.raises(ValueError, match=r"^in the tensors 1_…: columns of each factor .*: 4 x 5, 7 x 6$"):
        rebuild(describe(op), {**tensors, "1_1_left": torch.zeros(7, 2)})
    with pytest.raises(ValueError, match=r"^the terms of a sum have one shape, not 3 x 6, 4 x 6$"):
        rebuild(describe(op), {**tensors, "0_matrix": torch.zeros(3, 6)})


def test_an_operator_of_no_kind_is_not_written() -> None:
    class Stranger(Dense):
        pass

    for op in (Stranger(torch.eye(2)), Sum((Stranger(torch.eye(2)),))):
        with pytest.raises(ValueError, match="a Stranger is of no kind"):
            describe(op)


def test_bytes_of_known_sizes() -> None:
    assert nbytes(Dense(torch.zeros(3, 5, dtype=torch.bfloat16))) == 30
    assert nbytes(Factors(torch.zeros(3, 2), torch.zeros(2, 5))) == 64
    mixed = Factors(torch.zeros(3, 2, dtype=torch.float64), torch.zeros(2, 5, dtype=torch.float16))
    assert nbytes(mixed) == 48 + 20
    assert nbytes(codes(7, 13, 3, 5, torch.float16)) == 7 * 5 + 2 * 7 * 3 * 2  # 39 bits are 5 bytes; 3 groups
    assert nbytes(sparse(5, 7, 1.0, torch.float32)) == 35 * (4 + 2) + 6 * 2
    assert nbytes(Shuffle(10, 10)) == 0


# ---- nothing is formed ------------------------------------------------------------------------------------------------


SIDE = 4096
LARGE: dict[str, tuple[Maker, int]] = {
    # For each how many numbers a product with three columns may hold at once: those of x and of the result a few times.
    "kronecker": (lambda d: Kronecker(dense(64, 64, d), dense(64, 64, d)), 3 * SIDE),
    "lopsided kronecker": (lambda d: Kronecker(dense(4096, 1, d), dense(1, 4096, d)), 3 * SIDE),
    "lopsided the other way": (lambda d: Kronecker(dense(1, 4096, d), dense(4096, 1, d)), 3 * SIDE),
    "train": (lambda d: train((16, 16, 16), (16, 16, 16), 4, d), 4 * 3 * SIDE),
    "diagonal": (lambda d: diagonal(SIDE, d), 3 * SIDE),
    "blocks": (lambda d: blocks(64, 64, 64, d), 64 * 64 * 64),
    "shuffle": (lambda d: Shuffle(64, 64), 3 * SIDE),
    "monarch": (lambda d: monarch(torch.ones(64, 64, 64, dtype=d), torch.ones(64, 64, 64, dtype=d)), 64**3),
    "codes": (lambda d: codes(SIDE, SIDE, 3, 128, d), 512 * SIDE),
    "sparse": (lambda d: sparse(SIDE, SIDE, 0.001, d), 18_000),
    "hybrid": (
        lambda d: Sum(
            (factors(SIDE, SIDE, d), Product((Shuffle(64, 64), Kronecker(dense(64, 64, d), sparse(64, 64, 0.1, d)))))
        ),
        3 * SIDE,
    ),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_product_never_forms_the_matrix(name: str) -> None:
    make, most = LARGE[name]
    op = make(torch.float32)
    assert op.shape == (SIDE, SIDE)
    for one in (op, op.T):
        with Largest(op) as largest:
            one @ torch.ones(SIDE, 3)
        assert SIDE <= largest.numbers <= most


def test_a_group_wider_than_the_matrix_costs_nothing() -> None:
    """A setting comes from a file: it may name any number of columns."""
    op = codes(5, 4, 3, 10**6, torch.float32)
    with Largest(op) as largest:
        op @ torch.ones(4)
    assert largest.numbers <= 5 * 8


def test_the_measure_of_the_largest_tensor_sees_a_formed_matrix() -> None:
    op = Kronecker(dense(64, 64, torch.float32), dense(64, 64, torch.float32))
    with Largest(op) as largest:
        op.dense() @ torch.ones(SIDE, 3)
    assert largest.numbers == SIDE**2


def test_a_product_with_factors_never_forms_the_matrix() -> None:
    """A hundred thousand rows and columns: 80 GB as a dense matrix."""
    side = 100_000
    op = Factors(torch.ones(side, 1, dtype=torch.float64), torch.ones(1, side, dtype=torch.float64))
    assert float((op @ torch.ones(side, dtype=torch.float64))[-1]) == side
    assert float((op.T @ torch.ones(side, 1, dtype=torch.float64))[0, 0]) == side


# ---- factors ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 8), st.integers(0, 10**6))
def test_factors_multiply_from_the_right(m: int, r: int, n: int, seed: int) -> None:
    left, right = gaussian(m, r, seed), gaussian(r, n, seed + 1)
    op = Factors(left, right)
    assert op.rank == r == op.T.rank
    expected: Tensor = left @ right
    assert float((op.dense() - expected).abs().max()) <= 1e-12
    assert torch.linalg.matrix_rank(op.dense()) <= r


def test_shapes_that_make_no_matrix_are_refused() -> None:
    for left, right in [((3, 2), (3, 4)), ((3,), (3, 4)), ((3, 2), (2, 4, 1)), ((3, 2), (2,))]:
        with pytest.raises(ValueError, match=r"factors are left \(m, r\) and right \(r, n\), not"):
            Factors(torch.zeros(left), torch.zeros(right))
    for shape in [(3,), (1, 3, 4), ()]:
        with pytest.raises(ValueError, match=r"shape \(m, n\), not"):
            Dense(torch.zeros(shape))


def test_the_hybrids_are_no_single_kind() -> None:
    """Each of them has an operator inside an operator, or it would test nothing that its kind does not."""
    for make in HYBRIDS.values():
        assert "children" in describe(make(torch.float32))
