"""The fast Walsh-Hadamard transform, orthonormal, of every length that is a power of two times one of Paley's orders."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from eckart.kernels.paley import LARGEST, has_order, paley

# Dense factors of at most 32: products with them are faster than butterflies, which only pass through memory.
RADIX_BITS = 5
PANEL = 1 << 18  # entries at once, which stay in the cache between the factors


def supported(n: int) -> bool:
    """Whether there is a transform of this length: 2^k q, with q = 1 or an order of ``paley``.

    >>> supported(4096), supported(14336), supported(10)
    (True, True, False)
    """
    return _factors(n) is not None


def nearest_supported(n: int) -> tuple[int, int]:
    """The largest supported length that is at most n, and the smallest that is at least n; n is positive.

    >>> nearest_supported(92), nearest_supported(96)
    ((88, 96), (96, 96))
    """
    below = next(size for size in range(n, 0, -1) if supported(size))
    above = next(size for size in range(n, 2 * n) if supported(size))
    return below, above


def hadamard(n: int) -> Tensor:
    """The matrix H (n, n) of entries 1 and -1, int8, with ``H @ H.T == n I``: ``S x P``, Sylvester's of 2^k and Paley's of q.

    For powers of two it is Sylvester's alone, symmetric and in natural order; else it is in general not symmetric.

    Raises ``ValueError`` for a length that is not supported.

    >>> hadamard(4).tolist()
    [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
    """
    power, order = _supported_factors(n)
    return torch.kron(_sylvester(power), _paley(order))


def hadamard_transform(x: Tensor, *, transpose: bool = False) -> Tensor:
    """``y = H x / sqrt(n)`` along the last axis of ``x`` (…, n); with ``transpose`` the inverse, ``H^T x / sqrt(n)``.

    An orthogonal map: lengths and inner products stay. It costs ``n (q + 32 log2(n / q) / 5)`` multiplications at most for a
    vector, by products with q x q and up to 32 x 32 factors, a panel of vectors at a time. float64 is transformed in float64,
    every other floating dtype in float32 and then rounded to its own.

    Raises ``ValueError`` for a length that is not supported, naming the nearest that are, for integers, for NaN and infinity.

    >>> hadamard_transform(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist()
    [5.0, -1.0, -2.0, 0.0]
    """
    if x.ndim == 0 or not x.dtype.is_floating_point:
        raise ValueError(f"a transform is of real floating vectors, not of shape {tuple(x.shape)} and {x.dtype}")
    n = x.shape[-1]
    power, order = _supported_factors(n)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    odd = _paley(order).to(x.device, dtype)
    odd = odd if transpose else odd.T
    bits = power.bit_length() - 1
    levels = -(-bits // RADIX_BITS)
    # Evenly, so that no factor is larger than it must be.
    radices = [1 << (bits * (i + 1) // levels - bits * i // levels) for i in range(levels)]
    factors = [_sylvester(radix).to(x.device, dtype) for radix in radices]
    # In the factor that comes first, so that no partial sum is larger than the result may be.
    if order != 1 or not factors:
        odd = odd * (1 / math.sqrt(n))
    else:
        factors[0] = factors[0] * (1 / math.sqrt(n))
    rows = x.reshape(-1, n)
    done = [_transformed(panel.to(dtype), odd, factors).to(x.dtype) for panel in rows.split(max(1, PANEL // n))]
    return torch.cat(done).reshape(x.shape)


@dataclass(frozen=True, eq=False)
class RandomHadamard:
    """The orthogonal map ``x -> H D x / sqrt(n)`` of the last axis, D the diagonal matrix of ``signs`` (n,), each 1 or -1.

    It spreads every vector evenly over all coordinates with high probability (Ailon and Chazelle 2006).

    >>> turn = RandomHadamard.draw(12, Generator().manual_seed(0))
    >>> x = torch.arange(12.0)
    >>> torch.allclose(turn.inverse(turn(x)), x, atol=1e-5)
    True
    """

    signs: Tensor

    @classmethod
    def draw(cls, n: int, rng: Generator) -> RandomHadamard:
        """With independent signs from ``rng``. Raises ``ValueError`` for a length that is not supported."""
        _supported_factors(n)
        return cls(1 - 2 * torch.randint(0, 2, (n,), generator=rng, device=rng.device, dtype=torch.int8))

    def __call__(self, x: Tensor) -> Tensor:
        """``H D x / sqrt(n)``; dtypes and errors as in ``hadamard_transform``."""
        return hadamard_transform(self._signed(x))

    def inverse(self, y: Tensor) -> Tensor:
        """``D H^T y / sqrt(n)``, the x that the map takes to ``y`` (…, n)."""
        return self._signed(hadamard_transform(self._fitting(y), transpose=True))

    def _signed(self, x: Tensor) -> Tensor:
        return self._fitting(x) * self.signs.to(x.device, x.dtype)

    def _fitting(self, x: Tensor) -> Tensor:
        if x.ndim == 0 or x.shape[-1] != len(self.signs):
            raise ValueError(f"vectors of length {len(self.signs)} are wanted, not a tensor of shape {tuple(x.shape)}")
        return x


def _transformed(x: Tensor, odd: Tensor, factors: list[Tensor]) -> Tensor:
    """Rows (k, n) of one panel."""
    rows, n = x.shape
    width = len(odd)
    y = x.reshape(-1, width) @ odd if width > 1 or not factors else x
    for factor in factors:
        radix = len(factor)
        # Where the axis is the last one, one large product is faster than a batch of products with single columns.
        y = y.reshape(-1, radix) @ factor if width == 1 else torch.matmul(factor, y.reshape(-1, radix, width))
        width *= radix
    y = y.reshape(rows, n)
    # Every entry of a result is made of all entries of its vector, so one of each row is enough to look at.
    if not bool(torch.isfinite(y[:, 0]).all()) and not bool(torch.isfinite(x).all()):
        raise ValueError(f"the vectors of length {n} hold NaN or infinity")
    return y


def _factors(n: int) -> tuple[int, int] | None:
    """(2^k, q) with ``n == 2^k q``, q as small as possible; ``None`` where there are none.

    >>> _factors(64), _factors(14336), _factors(11008), _factors(12 * 12 * 3)
    ((64, 1), (512, 28), (32, 344), (4, 108))
    """
    if n < 1:
        return None
    odd = n // (n & -n)
    orders = (odd << k for k in range((n // odd).bit_length()))
    return next(((n // order, order) for order in orders if order == 1 or has_order(order)), None)


def _supported_factors(n: int) -> tuple[int, int]:
    if n < 1:
        raise ValueError(f"there is no Hadamard transform of length {n}: give a positive length")
    found = _factors(n)
    if found is None:
        below, above = nearest_supported(n)
        raise ValueError(
            f"there is no Hadamard transform of length {n} here, only of powers of two times 1 or an order of Paley's up to "
            f"{LARGEST}: the nearest lengths are {below} and {above}"
        )
    return found


def _sylvester(n: int) -> Tensor:
    """Sylvester's matrix of a power of two, int8: entry (i, j) is -1 to the number of bits that i and j have in common."""
    h = torch.ones(1, 1, dtype=torch.int8)
    while len(h) < n:
        h = torch.kron(torch.tensor([[1, 1], [1, -1]], dtype=torch.int8), h)
    return h


def _paley(order: int) -> Tensor:
    return paley(order) if order != 1 else torch.ones(1, 1, dtype=torch.int8)
