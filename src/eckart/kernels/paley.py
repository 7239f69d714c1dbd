"""Hadamard matrices of the orders that Paley's two constructions give, from the squares of a finite field."""

from __future__ import annotations

from math import isqrt

import torch
from torch import Tensor

LARGEST = 2048  # orders; beyond, a dense factor would be no part of a fast transform
DEGREE = 3  # up to here a polynomial without roots is irreducible


def has_order(order: int) -> bool:
    """Whether there is a matrix of this order (up to ``LARGEST``) by one of the constructions.

    >>> [n for n in range(60) if has_order(n)]
    [4, 8, 12, 20, 24, 28, 32, 36, 44, 48, 52]
    """
    return _field_of(order) is not None


def paley(order: int) -> Tensor:
    """A matrix H (order, order) of entries 1 and -1 in int8 with ``H @ H.T == order I`` (Paley 1933).

    With chi(x) = 1 for squares, -1 for other elements, and 0 for zero, of the field with q elements, and Q = chi(a - b):
    ``H = I + [[0, 1], [-1, Q]]`` of order q + 1 where q leaves 3 modulo 4, and ``C x [[1, 1], [1, -1]] + I x [[1, -1], [-1, -1]]`` with
    ``C = [[0, 1], [1, Q]]`` of order 2 (q + 1) where it leaves 1. q is a prime or its square or cube.

    Raises ``ValueError`` where neither construction gives this order.

    >>> h = paley(12).to(torch.int64)
    >>> torch.equal(h @ h.T, 12 * torch.eye(12, dtype=torch.int64))
    True
    """
    field = _field_of(order)
    if field is None:
        raise ValueError(f"Paley's constructions give no matrix of order {order}")
    p, degree = field
    q = p**degree
    c = torch.zeros(q + 1, q + 1, dtype=torch.int8)
    c[0, 1:], c[1:, 0], c[1:, 1:] = 1, -1 if q % 4 == 3 else 1, _jacobsthal(p, degree)
    unit = torch.eye(q + 1, dtype=torch.int8)
    if q % 4 == 3:
        return unit + c
    return torch.kron(c, torch.tensor([[1, 1], [1, -1]], dtype=torch.int8)) + torch.kron(
        unit, torch.tensor([[1, -1], [-1, -1]], dtype=torch.int8)
    )


def _field_of(order: int) -> tuple[int, int] | None:
    """Characteristic and degree of the field that gives a matrix of this order; the first construction if both do."""
    if not 4 <= order <= LARGEST or order % 4:
        return None
    first, second = order - 1, order // 2 - 1  # the former leaves 3 modulo 4
    found = _prime_power(first)
    return found if found or second % 4 != 1 else _prime_power(second)


def _prime_power(q: int) -> tuple[int, int] | None:
    """(p, k) with ``q == p ** k``, p prime and k at most ``DEGREE``, for an odd q above 1.

    >>> _prime_power(343), _prime_power(21), _prime_power(81)
    ((7, 3), None, None)
    """
    p = next((d for d in range(3, isqrt(q) + 1, 2) if q % d == 0), q)
    return next(((p, k) for k in range(1, DEGREE + 1) if p**k == q), None)


def _jacobsthal(p: int, degree: int) -> Tensor:
    """``chi(a - b)`` for all elements a, b of the field with p^degree elements, int8."""
    digits = _digits(p, degree)
    difference = sum((digits[:, None, i] - digits[None, :, i]) % p * p**i for i in range(degree))
    return _character(p, degree)[difference]


def _digits(p: int, degree: int) -> Tensor:
    """The coefficients (p^degree, degree) of every element as a polynomial; the element's number has them as digits."""
    numbers = torch.arange(p**degree)
    return torch.stack([numbers // p**i % p for i in range(degree)], dim=1)


def _character(p: int, degree: int) -> Tensor:
    """The character of every element, by squaring them all modulo an irreducible polynomial ``x^degree - c1 x - c0``."""
    digits = _digits(p, degree)
    square = torch.zeros(len(digits), 2 * degree - 1, dtype=torch.int64)
    for i in range(degree):
        square[:, i : i + degree] += digits[:, i : i + 1] * digits
    if degree > 1:
        c0, c1 = _irreducible(p, degree)
        for s in range(2 * degree - 2, degree - 1, -1):
            square[:, s - degree] += c0 * square[:, s]
            square[:, s - degree + 1] += c1 * square[:, s]
    numbers = sum(square[:, i] % p * p**i for i in range(degree))
    chi = torch.full((len(digits),), -1, dtype=torch.int8)
    chi[numbers] = 1
    chi[0] = 0
    return chi


def _irreducible(p: int, degree: int) -> tuple[int, int]:
    """The first (c0, c1) for which ``x^degree - c1 x - c0`` has no root modulo p, the degree being 2 or 3."""
    return next(
        (c0, c1) for c1 in range(p) for c0 in range(1, p) if all((x**degree - c1 * x - c0) % p for x in range(p))
    )
