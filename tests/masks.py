"""Every mask of a pattern, by trying all of them: what the best mask and the best matrix of a pattern are compared with."""

from collections.abc import Iterator, Mapping
from itertools import combinations, product
from types import MappingProxyType

import numpy as np

from eckart.linalg.patterns import OfGroup, Pattern, PerMatrix, PerRow

PATTERNS: Mapping[str, Pattern] = MappingProxyType(
    {"matrix": PerMatrix(), "row": PerRow(), "2": OfGroup(2), "3": OfGroup(3), "4": OfGroup()}
)


def parts(pattern: Pattern, m: int, n: int, size: int) -> list[tuple[list[int], int]]:
    """The sets of places, row by row, that a pattern chooses from independently, and how many it takes of each."""
    places = np.arange(m * n).reshape(m, n)
    if isinstance(pattern, PerMatrix):
        return [(places.ravel().tolist(), m * size)]
    if isinstance(pattern, PerRow):
        return [(row.tolist(), size) for row in places]
    assert isinstance(pattern, OfGroup)
    groups = [row[start : start + pattern.group].tolist() for row in places for start in range(0, n, pattern.group)]
    return [(group, min(size, len(group))) for group in groups]


def every_mask(pattern: Pattern, m: int, n: int, size: int) -> Iterator[np.ndarray]:
    """All boolean masks (m, n) of this pattern and size."""
    for chosen in product(*(combinations(places, count) for places, count in parts(pattern, m, n, size))):
        mask = np.zeros(m * n, dtype=bool)
        mask[[place for some in chosen for place in some]] = True
        yield mask.reshape(m, n)


def left_out(scores: np.ndarray, pattern: Pattern, size: int) -> float:
    """The least sum of scores that a mask of this pattern and size leaves out, by sorting each part."""
    flat = scores.ravel()
    found = 0.0
    for places, count in parts(pattern, *scores.shape, size):
        found += float(np.sort(flat[places])[: len(places) - count].sum())
    return found
