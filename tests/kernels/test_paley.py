"""Paley's matrices by the words of his theorem, and the fields they come from."""

import itertools
from importlib import import_module

import numpy as np
import pytest
import torch

from eckart.kernels.paley import has_order, paley

PALEY = import_module("eckart.kernels.paley")


def primes(limit: int) -> list[int]:
    return [p for p in range(2, limit) if all(p % d for d in range(2, p))]


def test_rows_of_every_matrix_are_orthogonal_in_integers() -> None:
    for n in range(161):
        if has_order(n):
            h = paley(n)
            assert h.dtype == torch.int8
            assert bool((h.abs() == 1).all()), n
            assert torch.equal(h.long() @ h.T.long(), n * torch.eye(n, dtype=torch.int64)), n


@pytest.mark.parametrize("q", [3, 7, 11, 5, 13, 29, 9, 25, 49, 27, 125, 343])
def test_squares_of_a_field_make_a_character(q: int) -> None:
    """Half of the elements that are not zero are squares, and -1 is one of them just where q leaves 1 modulo 4."""
    p, degree = PALEY._prime_power(q)
    chi = PALEY._character(p, degree)
    assert int(chi[0]) == 0
    assert int((chi == 1).sum()) == int((chi == -1).sum()) == (q - 1) // 2
    if degree == 1:
        assert [int(c) for c in chi] == [0] + [1 if pow(a, (p - 1) // 2, p) == 1 else -1 for a in range(1, p)]
    jacobsthal = PALEY._jacobsthal(p, degree).to(torch.int64)
    assert torch.equal(jacobsthal.T, jacobsthal if q % 4 == 1 else -jacobsthal)
    # Q Q^T = q I - J, Paley's lemma.
    assert torch.equal(jacobsthal @ jacobsthal.T, q * torch.eye(q, dtype=torch.int64) - 1)


def test_orders_that_there_are_not() -> None:
    assert [n for n in range(-4, 4) if has_order(n)] == []
    with pytest.raises(ValueError, match="no matrix of order 92"):
        paley(92)
    assert has_order(2028)
    assert not has_order(2052)  # 2 (1025 + 1): the field would do, the factor would be too large
    assert not has_order(1252)  # 2 (5^4 + 1), a field of a degree for which no polynomial is looked for
    assert not has_order(4 * PALEY.LARGEST)
    with pytest.raises(ValueError, match="no matrix of order 2064"):
        paley(2064)  # 2063 is prime


def test_a_matrix_of_the_first_construction_by_hand() -> None:
    """In the field of three elements 1 is a square and 2 is none: Q = chi(a - b) has chi(0 - 1) = chi(2) = -1 beside its diagonal."""
    assert paley(4).tolist() == [[1, 1, 1, 1], [-1, 1, -1, 1], [-1, 1, 1, -1], [-1, -1, 1, 1]]


@pytest.mark.parametrize("q", [17, 25, 37])
def test_where_only_the_second_construction_is_there_its_blocks_are_those_of_its_formula(q: int) -> None:
    p, degree = PALEY._prime_power(q)
    c = np.ones((q + 1, q + 1), dtype=np.int64)
    c[0, 0], c[1:, 1:] = 0, PALEY._jacobsthal(p, degree).numpy()
    expected = np.kron(c, [[1, 1], [1, -1]]) + np.kron(np.eye(q + 1, dtype=np.int64), [[1, -1], [-1, -1]])
    assert paley(2 * q + 2).tolist() == expected.tolist()


@pytest.mark.parametrize("p", [3, 5, 7, 11])
@pytest.mark.parametrize("degree", [2, 3])
def test_the_first_irreducible_polynomial_is_that_which_no_product_gives(p: int, degree: int) -> None:
    """Those of degree 2 and 3 that are reducible have a linear factor: all products with one, without the square where of degree 3."""
    rest = [np.array([1, *more]) for more in itertools.product(range(p), repeat=degree - 1)]
    products = {tuple(np.polymul([1, -root], other) % p) for root in range(p) for other in rest}
    free = [
        (c0, c1)
        for c1, c0 in itertools.product(range(p), range(1, p))
        if (1, *[0] * (degree - 2), -c1 % p, -c0 % p) not in products
    ]
    assert PALEY._irreducible(p, degree) == free[0]


def test_orders_of_both_constructions_up_to_the_largest() -> None:
    """By the theorem's words, on both sides of the largest that is allowed; squares and cubes of primes below 130 are enough."""
    fields = [p**k for p in primes(130) if p > 2 for k in (1, 2, 3)] + primes(2100)[31:]
    expected = {q + 1 for q in fields if q % 4 == 3} | {2 * (q + 1) for q in fields if q % 4 == 1}
    assert [n for n in range(1900, 2100) if has_order(n)] == sorted(n for n in expected if 1900 <= n <= 2048)


@pytest.mark.parametrize(("p", "degree"), [(3, 2), (7, 2), (3, 3), (5, 3)])
def test_squares_are_those_of_polynomials_divided_with_a_rest(p: int, degree: int) -> None:
    """Elements are numbered by their coefficients, the constant one first; division is NumPy's, by a polynomial with leading 1."""
    c0, c1 = PALEY._irreducible(p, degree)
    modulus = [1, *[0] * (degree - 2), -c1, -c0]
    squares = set()
    for digits in itertools.product(range(p), repeat=degree):
        rest = np.polydiv(np.polymul(digits, digits), modulus)[1]
        squares.add(int(np.polyval(np.round(rest).astype(int) % p, p)))
    chi = PALEY._character(p, degree).tolist()
    assert chi == [0 if a == 0 else 1 if a in squares else -1 for a in range(p**degree)]
