"""Every mask of a pattern, by trying all of them: what the best mask and the best matrix of a pattern are compared with."""

from collections.abc import Iterator, Mapping
from itertools import combinations, product
from types import MappingProxyType

import numpy as np

from eckart.linalg.patterns import OfGroup, Pattern, PerMatrix, PerRow, Tiles

PATTERNS: Mapping[str, Pattern] = MappingProxyType(
    {
        "matrix": PerMatrix(),
        "row": PerRow(),
        "2": OfGroup(2),
        "3": OfGroup(3),
        "4": OfGroup(),
        "tiles": Tiles(2, 2),
        "tall": Tiles(3, 1),
    }
)


def parts(pattern: Pattern, m: int, n: int, size: int) -> list[tuple[list[list[int]], int]]:
    """The sets of places, row by row, that a pattern chooses from independently, and how many it takes of each.

    What stays or goes together is one element of a set.
    """
    places = np.arange(m * n).reshape(m, n)
    if isinstance(pattern, PerMatrix):
        return [(_single(places), m * size)]
    if isinstance(pattern, PerRow):
        return [(_single(row), size) for row in places]
    if isinstance(pattern, Tiles):
        found = []
        count = n // pattern.columns
        for top in range(0, m, pattern.rows):
            band = places[top : top + pattern.rows]
            edges = range(0, count * pattern.columns, pattern.columns)
            found.append(([band[:, at : at + pattern.columns].ravel().tolist() for at in edges], min(size, count)))
            rest = _single(band[:, count * pattern.columns :])
            found.append((rest, len(rest)))
        return found
    assert isinstance(pattern, OfGroup)
    groups = [_single(row[start : start + pattern.group]) for row in places for start in range(0, n, pattern.group)]
    return [(group, min(size, len(group))) for group in groups]


def _single(places: np.ndarray) -> list[list[int]]:
    return [[int(place)] for place in places.ravel()]


def count_of(pattern: Pattern, m: int, n: int, size: int) -> int:
    """How many entries a mask of this pattern and size keeps."""
    return sum(len(groups[0]) * count for groups, count in parts(pattern, m, n, size) if groups)


def every_mask(pattern: Pattern, m: int, n: int, size: int) -> Iterator[np.ndarray]:
    """All boolean masks (m, n) of this pattern and size."""
    for chosen in product(*(combinations(groups, count) for groups, count in parts(pattern, m, n, size))):
        mask = np.zeros(m * n, dtype=bool)
        mask[[place for some in chosen for group in some for place in group]] = True
        yield mask.reshape(m, n)


def left_out(scores: np.ndarray, pattern: Pattern, size: int) -> float:
    """The least sum of scores that a mask of this pattern and size leaves out, by sorting each part."""
    flat = scores.ravel()
    found = 0.0
    for groups, count in parts(pattern, *scores.shape, size):
        sums = np.sort([flat[group].sum() for group in groups])
        found += float(sums[: len(groups) - count].sum())
    return found
