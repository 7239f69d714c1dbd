"""What is of low rank by how it is composed, decomposed by its factors: figures worked by hand."""

import math

import numpy as np
import pytest
import torch
from market import float64, gaussian, generator, lapack_values, orthonormal

from eckart.linalg.factored import FactoredTruncation, low_rank_form
from eckart.metric import Metric
from eckart.operator import Dense, Factors, Product, Sum

EPS = 2.0**-52


def worked() -> Factors:
    """diag(12, 5, 0) in three rows and five columns."""
    left = torch.tensor([[3.0, 0.0], [0.0, 5.0], [0.0, 0.0]], dtype=torch.float64)
    right = torch.tensor([[4.0, 0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    return Factors(left, right)


def test_the_decomposition_and_what_rounding_may_have_done_to_it() -> None:
    """That of the core of two rows, and sixteen roundings of all rows and columns, relative to the norms of both factors."""
    (svd, plain) = FactoredTruncation(worked(), Metric.plain()).optimum
    assert svd is plain
    assert svd.s.tolist() == pytest.approx([12.0, 5.0], rel=1e-14)
    assert svd.u.tolist() == [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
    assert svd.slack_sq == 0.0
    core, whole = 16 * EPS * 2 * 13.0, 16 * EPS * 8 * math.sqrt(34.0) * math.sqrt(17.0)
    assert svd.slack == pytest.approx(core + whole, rel=1e-12, abs=0.0)


def test_in_a_metric_there_is_a_decomposition_of_each() -> None:
    metric = Metric("scale", torch.tensor([1.0, 4.0, 1.0, 1.0, 1.0]))
    own, plain = FactoredTruncation(worked(), metric).optimum
    assert own.s.tolist() == pytest.approx([20.0, 12.0], rel=1e-14)
    assert own.u.tolist() == [[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]]
    assert plain.s.tolist() == pytest.approx([12.0, 5.0], rel=1e-14)
    assert FactoredTruncation(worked(), metric).tails(1, generator()).tolist() == pytest.approx([544.0, 144.0, 0.0])


@pytest.mark.parametrize("weight", [1.0, 4.0])
def test_bounds_worked_by_hand(weight: float) -> None:
    """12 and 5 times its weight, of which the larger one is kept: every norm is told, and off by no more than it says."""
    weights = torch.tensor([1.0, weight, 1.0, 1.0, 1.0], dtype=torch.float64)
    metric = Metric.plain() if weight == 1.0 else Metric("scale", weights)
    fit = FactoredTruncation(worked(), metric).fit(1, dtype=torch.float64, rng=generator())
    assert fit.how == "exact, by the factors: their rank is 2"
    left = 5.0 if weight == 1.0 else 12.0  # what is left in the plain norm
    plain, spectral = fit.bounds[-2:]
    for bound, scale, least in ((plain, 13.0, 5.0), (spectral, 12.0, 5.0)):
        assert bound.lower == pytest.approx(least, rel=1e-12)
        assert bound.lower is not None
        assert bound.lower < least  # by what rounding may have done
        assert bound.achieved == pytest.approx(left, rel=1e-14)
        # The difference is a product of three columns in 3 rows and 5 columns: of these factors, and of the ones found.
        found = math.hypot(math.sqrt(34.0), math.sqrt(left if weight == 1.0 else 20.0))
        assert 0 < bound.upper - bound.achieved <= 16 * EPS * (8 + 3) * 4 * found**2
        assert bound.scale == pytest.approx(scale, rel=1e-14)
        assert bound.delta is None
    assert [b.norm for b in fit.bounds] == (["scale"] if weight != 1.0 else []) + ["frobenius", "spectral"]
    if weight != 1.0:
        own = fit.bounds[0]
        assert own.scale == pytest.approx(math.sqrt(544.0), rel=1e-14)
        assert own.achieved == pytest.approx(12.0, rel=1e-14)
        assert own.lower == pytest.approx(12.0, rel=1e-12)


def test_what_is_said_for_rounding_is_that_of_the_difference() -> None:
    """Factors of norm 5 each whose difference from those found is nothing: sixteen roundings of six columns and rows."""
    op = Factors(torch.tensor([[5.0], [0.0], [0.0]]).double(), torch.tensor([[5.0, 0.0, 0.0]]).double())
    plain, spectral = FactoredTruncation(op, Metric.plain()).fit(1, dtype=torch.float64, rng=generator()).bounds
    whole = 16 * EPS * 6 * math.hypot(5.0, 5.0) * math.hypot(5.0, 5.0)
    assert plain.achieved <= 1e-13
    assert plain.upper - plain.achieved == pytest.approx(whole, rel=1e-3, abs=0.0)
    assert spectral.upper - spectral.achieved == pytest.approx(whole, rel=1e-3, abs=0.0)
    assert plain.lower == spectral.lower == 0.0


@pytest.mark.parametrize("rank", [1, 2, 3, 6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_error_of_what_is_stored_is_that_of_lapack(rank: int, dtype: torch.dtype) -> None:
    op = Factors(orthonormal(30, 4, 1) * torch.tensor([8.0, 4.0, 2.0, 1.0]).double(), orthonormal(20, 4, 2).T)
    weights = torch.logspace(0, -1, 20, dtype=torch.float64)
    fit = FactoredTruncation(op, Metric("scale", weights)).fit(rank, dtype=dtype, rng=generator())
    assert isinstance(fit.op, Factors)
    assert fit.op.left.dtype == fit.op.right.dtype == dtype
    rest = float64(op.dense()) - float64(fit.op.left) @ float64(fit.op.right)
    own, plain, spectral = fit.bounds
    assert own.achieved == pytest.approx(float(np.linalg.norm(rest * float64(weights))), rel=1e-6, abs=1e-12)
    assert plain.achieved == pytest.approx(float(np.linalg.norm(rest)), rel=1e-6, abs=1e-12)
    assert spectral.achieved == pytest.approx(lapack_values(rest)[0], rel=1e-6, abs=1e-12)
    values = [8.0, 4.0, 2.0, 1.0, 0.0, 0.0, 0.0]
    assert plain.lower == pytest.approx(math.sqrt(sum(v**2 for v in values[rank:])), rel=1e-9, abs=1e-12)
    assert spectral.lower == pytest.approx(values[rank], rel=1e-9, abs=1e-12)
    assert (plain.scale, spectral.scale) == pytest.approx((math.sqrt(85.0), 8.0), rel=1e-12)


def test_a_product_is_as_narrow_as_its_narrowest_factor() -> None:
    a, b, c = gaussian(9, 7, 1), gaussian(6, 8, 2), gaussian(8, 5, 3)
    wide, narrow = Factors(gaussian(7, 4, 4), gaussian(4, 6, 5)), Factors(gaussian(8, 2, 6), gaussian(2, 8, 7))
    op = Product((Dense(a), wide, Dense(b), narrow, Dense(c)))
    found = low_rank_form(op)
    assert found is not None
    assert found.rank == 2
    expected = float64(a) @ float64(wide.dense()) @ float64(b) @ float64(narrow.dense()) @ float64(c)
    assert float64(found.dense()) == pytest.approx(expected, rel=1e-10, abs=1e-9)
    assert found.left.dtype == found.right.dtype == torch.float64


def test_a_sum_is_as_wide_as_all_its_terms() -> None:
    one, two = Factors(gaussian(9, 2, 1), gaussian(2, 7, 2)), Factors(gaussian(9, 3, 3), gaussian(3, 7, 4))
    found = low_rank_form(Sum((one, two)))
    assert found is not None
    assert found.rank == 5
    assert float64(found.dense()) == pytest.approx(float64(one.dense() + two.dense()), rel=1e-12, abs=1e-12)
    assert low_rank_form(Sum((one, Dense(gaussian(9, 7))))) is None
    assert low_rank_form(Product((Dense(gaussian(9, 7)), Dense(gaussian(7, 3))))) is None


def test_a_rank_that_the_matrix_does_not_have_is_refused() -> None:
    prepared = FactoredTruncation(worked(), Metric.plain())
    for rank in (0, 4):
        with pytest.raises(ValueError, match=rf"rank {rank} of a 3 x 5 matrix: give one from 1 to 3"):
            prepared.fit(rank, dtype=torch.float64, rng=generator())
    names = [b.norm for b in prepared.fit(3, dtype=torch.float64, rng=generator(), spectral=False).bounds]
    assert names == ["frobenius"]
    weighed = FactoredTruncation(worked(), Metric("scale", torch.ones(5)))
    names = [b.norm for b in weighed.fit(3, dtype=torch.float64, rng=generator(), spectral=False).bounds]
    assert names == ["scale", "frobenius"]
