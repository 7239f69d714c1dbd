"""Matrices of a few bits per entry: worked examples, rounding, and what products keep in memory."""

from importlib import import_module
from itertools import product

import pytest
import torch
from market import float64, gaussian
from operators import codes, integers, levels
from torch import Tensor

from eckart.operator import Codes, Levels, Operator


@pytest.mark.parametrize(("bits", "n", "group"), [(3, 11, 4), (2, 8, 8), (4, 5, 1), (8, 7, 100), (3, 16, 8)])
def test_entries_of_codes(bits: int, n: int, group: int) -> None:
    m, groups = 4, -(-n // group)
    steps, scale, zero = integers(m, n, bits), gaussian(m, groups, 1), gaussian(m, groups, 2)
    found = Codes.of(steps, scale, zero, bits=bits, group=group).dense()
    for i, j in product(range(m), range(n)):
        g = j // group
        assert float(found[i, j]) == float(scale[i, g]) * (int(steps[i, j]) - float(zero[i, g]))


def test_codes_by_hand() -> None:
    """Three bits: 1, 7, 0 | 4, 2 in groups of three, packed into 15 bits: 010 100 000 111 001."""
    op = Codes(
        torch.tensor([[0.5, 2.0]]),
        torch.tensor([[1.0, 3.0]]),
        torch.tensor([[0b00_111_001, 0b0_010_100_0]]).byte(),
        3,
        5,
        3,
    )
    assert op.dense().tolist() == [[0.0, 3.0, -0.5, 2.0, -2.0]]
    assert (op @ torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0])).tolist() == [4.5]
    assert (op.T @ torch.tensor([2.0])).tolist() == [0.0, 6.0, -1.0, 4.0, -4.0]


@pytest.mark.parametrize(("bits", "n", "group"), [(3, 11, 4), (2, 8, 8), (4, 5, 1), (8, 7, 100), (1, 16, 8)])
def test_entries_of_levels(bits: int, n: int, group: int) -> None:
    m = 4
    steps, scale, known = integers(m, n, bits), gaussian(m, -(-n // group), 1), gaussian(2**bits, 1, 2)[:, 0]
    found = Levels.of(steps, scale, known, bits=bits, group=group).dense()
    for i, j in product(range(m), range(n)):
        assert float(found[i, j]) == float(scale[i, j // group]) * float(known[int(steps[i, j])])


def test_levels_by_hand() -> None:
    """Two bits: 3, 0, 2 | 1, 1 in groups of three, packed into ten bits: 01 01 10 00 11."""
    op = Levels(
        torch.tensor([[0.5, 2.0]]),
        torch.tensor([-1.0, 0.0, 3.0, 8.0]),
        torch.tensor([[0b01_10_00_11, 0b01]]).byte(),
        2,
        5,
        3,
    )
    assert op.dense().tolist() == [[4.0, -0.5, 1.5, 0.0, 0.0]]
    assert (op @ torch.tensor([1.0, 1.0, 2.0, 9.0, 9.0])).tolist() == [6.5]
    assert (op.T @ torch.tensor([2.0])).tolist() == [8.0, -1.0, 3.0, 0.0, 0.0]


def test_gradients_reach_scales_and_levels() -> None:
    """Of the sum of all entries: for a scale the sum of its group's levels, for a level that of the scales where it stands."""
    op = levels(3, 6, 2, 4, torch.float64)
    scale, known = op.scale.requires_grad_(), op.levels.requires_grad_()
    (op @ torch.ones(6, dtype=torch.float64)).sum().backward()
    steps, wide = integers(3, 6, 2), op.scale.detach().repeat_interleave(4, 1)[:, :6]
    entries = known.detach()[steps]
    assert scale.grad is not None
    assert known.grad is not None
    assert torch.allclose(scale.grad, torch.stack([entries[:, :4].sum(1), entries[:, 4:].sum(1)], 1))
    assert torch.allclose(known.grad, torch.stack([wide[steps == level].sum() for level in range(4)]))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"bits": 5}, "1, 2, 3, 4, 8 bits, and groups at least one column, not 5 bits"),
        ({"group": 0}, "in groups of 0"),
        ({"bits": 2}, r"levels \(4,\) and codes \(m, 3\), not \(6, 3\), \(8,\), \(6, 4\)"),
        ({"scale": torch.ones(5, 3)}, r"take scale \(m, 3\)"),
        ({"levels": torch.ones(8, 1)}, r"levels \(8,\)"),
        (
            {"levels": torch.ones(8).long()},
            "scales and levels floating, not torch.uint8, torch.float32 and torch.int64",
        ),
        ({"codes": torch.zeros(6, 4)}, "codes are uint8, scales and levels floating, not torch.float32"),
    ],
)
def test_settings_and_shapes_that_make_no_levels_are_refused(change: dict[str, object], sentence: str) -> None:
    right = {"scale": torch.ones(6, 3), "levels": torch.ones(8), "codes": torch.zeros(6, 4).byte()}
    settings = {"bits": 3, "columns": 10, "group": 4}
    assert Levels(**right, **settings).shape == (6, 10)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=sentence):
        Levels(**{**right, **settings, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_entries_in_narrow_dtypes_are_rounded_once(dtype: torch.dtype) -> None:
    op = codes(6, 9, 8, 4, dtype)
    wide = Codes(op.scale.double(), op.zero.double(), op.codes, op.bits, op.columns, op.group)
    ulp = (
        torch.finfo(dtype).eps * wide.dense().abs()
    )  # a rounding is half of this at most, float32 adds next to nothing
    assert bool(((op.dense().double() - wide.dense()).abs() <= 0.51 * ulp).all())


def test_integer_zeros_are_as_good_as_floating_ones() -> None:
    steps, scale, zero = integers(4, 6, 4), gaussian(4, 2).float(), integers(4, 2, 4, seed=3)
    one = Codes.of(steps, scale, zero.float(), bits=4, group=3)
    other = Codes.of(steps, scale, zero.to(torch.int8), bits=4, group=3)
    assert torch.equal(one.dense(), other.dense())
    assert torch.equal(one.T @ torch.ones(4), other.T @ torch.ones(4))


def test_panels_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    op, x, y = codes(23, 9, 3, 4, torch.float64), gaussian(9, 2), gaussian(23, 2)
    whole = op.dense()
    for panel in (1, 7, 22, 23, 24):
        monkeypatch.setattr(import_module("eckart.operator.codes"), "PANEL", panel)
        assert float64(op @ x) == pytest.approx(float64(whole @ x), abs=1e-12)
        assert float64(op.T @ y) == pytest.approx(float64(whole.T @ y), abs=1e-11)


@pytest.mark.parametrize("transposed", [False, True])
def test_for_the_gradient_no_panel_is_kept(transposed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept panels would be the dense matrix, the worst where only an adapter beside the codes is trained."""
    module = import_module("eckart.operator.codes")
    monkeypatch.setattr(module, "PANEL", 16)

    def kept() -> int:
        op: Operator = codes(256, 64, 3, 32, torch.float32)
        op = op.T if transposed else op
        x = torch.ones(op.shape[1], 1, requires_grad=True)
        there = {t.untyped_storage().data_ptr() for t in [x, *op.tensors().values()]}
        numbers = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal numbers
            numbers += 0 if tensor.untyped_storage().data_ptr() in there else tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            (op @ x).sum().backward()
        return numbers

    assert kept() == 0
    monkeypatch.setattr(module, "checkpoint", lambda function, *tensors, **_: function(*tensors))
    assert kept() >= 256 * 64


def test_sums_of_panels_are_not_rounded_to_the_narrow_dtype_in_between() -> None:
    """Of 4096 ones added up a panel of 512 at a time: bfloat16 would stay at 2048 only by luck of the panels."""
    op = Codes.of(
        torch.ones(5000, 1).long(), torch.ones(5000, 1).bfloat16(), torch.zeros(5000, 1).bfloat16(), bits=2, group=1
    )
    small = torch.full((5000,), 1 / 512, dtype=torch.bfloat16)
    small[0] = 256.0
    exact = 256 + 4999 / 512
    assert abs(float(op.T @ small) - exact) <= torch.finfo(torch.bfloat16).eps * exact


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"bits": 5}, "1, 2, 3, 4, 8 bits, and groups at least one column, not 5 bits"),
        ({"group": 0}, "in groups of 0"),
        ({"columns": -1}, "not 3 bits and -1 columns"),
        (
            {"columns": 11},
            r"11 columns of 3 bits in groups of 4 take scale \(m, 3\), zero \(m, 3\) and codes \(m, 5\), not",
        ),
        ({"columns": 8}, r"take scale \(m, 2\)"),
        ({"group": 5}, r"take scale \(m, 2\)"),
        ({"scale": torch.ones(1, 3)}, r"take scale \(m, 3\), .* not \(1, 3\), \(6, 3\), \(6, 4\)"),
        ({"zero": torch.ones(6, 1)}, r"take scale \(m, 3\)"),
        ({"zero": torch.ones(6)}, r"take scale \(m, 3\)"),
        ({"scale": torch.tensor(1.0)}, r"take scale \(m, 3\)"),
        ({"codes": torch.zeros(6, 4)}, "codes are uint8 and scales floating, not torch.float32 and torch.float32"),
        ({"scale": torch.ones(6, 3).long()}, "codes are uint8 and scales floating, not torch.uint8 and torch.int64"),
    ],
)
def test_settings_and_shapes_that_make_no_codes_are_refused(change: dict[str, object], sentence: str) -> None:
    right = {"scale": torch.ones(6, 3), "zero": torch.ones(6, 3), "codes": torch.zeros(6, 4).byte()}
    settings = {"bits": 3, "columns": 10, "group": 4}
    assert Codes(**right, **settings).shape == (6, 10)
    with pytest.raises(ValueError, match=sentence):
        Codes(**{**right, **settings, **change})
