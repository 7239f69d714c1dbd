"""How the singular values of a start are shared between its factors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

from eckart.adapters.checked import check_number
from eckart.adapters.seed import LEFT, MIDDLE, RIGHT, Seed


class Split(Protocol):
    """Hands on what lies in the middle; ``gives`` says of which parts a seed consists afterwards."""

    @property
    def keeps(self) -> bool:
        """Whether the product of the parts stays what it was."""

    def gives(self, parts: frozenset[str]) -> frozenset[str]:
        """The parts that are there afterwards; ``ValueError`` where those before do not do."""

    def __call__(self, seed: Seed, shape: tuple[int, int]) -> Seed:
        """The seed, split, for a matrix of this shape."""


@dataclass(frozen=True)
class Apart:
    """Everything stays where it is.

    >>> Apart().gives(frozenset({"left", "right"})) == {"left", "right"}
    True
    """

    keeps: ClassVar[bool] = True

    def gives(self, parts: frozenset[str]) -> frozenset[str]:
        """The same parts."""
        return parts

    def __call__(self, seed: Seed, shape: tuple[int, int]) -> Seed:
        """The same seed."""
        return seed


@dataclass(frozen=True)
class Even:
    """The root of each value to either side.

    >>> import torch
    >>> one = torch.ones(1, 1)
    >>> split = Even()(Seed(left=one, middle=torch.tensor([4.0]), right=one), (1, 1))
    >>> split.left.tolist(), split.right.tolist(), split.middle
    ([[2.0]], [[2.0]], None)
    """

    keeps: ClassVar[bool] = True

    def gives(self, parts: frozenset[str]) -> frozenset[str]:
        """Both sides."""
        _want(parts, LEFT, MIDDLE, RIGHT)
        return parts - {MIDDLE}

    def __call__(self, seed: Seed, shape: tuple[int, int]) -> Seed:
        """The seed with its values in both factors."""
        assert seed.left is not None
        assert seed.middle is not None
        assert seed.right is not None
        root = seed.middle.sqrt()
        return replace(seed, left=seed.left * root, middle=None, right=root[:, None] * seed.right)


@dataclass(frozen=True)
class ToTheRight:
    """All of each value to the right, so that the columns of the left keep their length.

    >>> import torch
    >>> one = torch.ones(1, 1)
    >>> ToTheRight()(Seed(left=one, middle=torch.tensor([4.0]), right=one), (1, 1)).right.tolist()
    [[4.0]]
    """

    keeps: ClassVar[bool] = True

    def gives(self, parts: frozenset[str]) -> frozenset[str]:
        """Both sides."""
        _want(parts, LEFT, MIDDLE, RIGHT)
        return parts - {MIDDLE}

    def __call__(self, seed: Seed, shape: tuple[int, int]) -> Seed:
        """The seed with its values in the right factor."""
        assert seed.middle is not None
        assert seed.right is not None
        return replace(seed, middle=None, right=seed.middle[:, None] * seed.right)


@dataclass(frozen=True)
class Levelled:
    """The values are left out; vectors of both sides have the length ``m^(1/4) / sqrt(gamma)``, m being the number of outputs.

    >>> import torch
    >>> one = torch.ones(1, 1)
    >>> Levelled(gamma=4.0)(Seed(left=one, middle=torch.tensor([9.0]), right=one), (16, 1)).left.tolist()
    [[1.0]]

    Raises ``ValueError`` unless gamma is above 0.
    """

    gamma: float = 16.0
    keeps: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_number("gamma", self.gamma, above=0)

    def gives(self, parts: frozenset[str]) -> frozenset[str]:
        """Both sides."""
        _want(parts, LEFT, MIDDLE, RIGHT)
        return parts - {MIDDLE}

    def __call__(self, seed: Seed, shape: tuple[int, int]) -> Seed:
        """The seed with factors of one length."""
        assert seed.left is not None
        assert seed.right is not None
        length = shape[0] ** 0.25 / self.gamma**0.5
        return replace(seed, left=length * seed.left, middle=None, right=length * seed.right)


@dataclass(frozen=True)
class OneSided:
    """The right side alone: the left one begins at zero.

    >>> OneSided().gives(frozenset({"left", "middle", "right"})) == {"right"}
    True
    """

    keeps: ClassVar[bool] = False

    def gives(self, parts: frozenset[str]) -> frozenset[str]:
        """The right side."""
        _want(parts, RIGHT)
        return frozenset({RIGHT})

    def __call__(self, seed: Seed, shape: tuple[int, int]) -> Seed:
        """The seed without its left."""
        return Seed(right=seed.right)


@dataclass(frozen=True)
class Outer:
    """Both sides, and nothing between them: what lies there begins at zero.

    >>> Outer().gives(frozenset({"left", "middle", "right"})) == {"left", "right"}
    True
    """

    keeps: ClassVar[bool] = False

    def gives(self, parts: frozenset[str]) -> frozenset[str]:
        """Both sides."""
        _want(parts, LEFT, RIGHT)
        return frozenset({LEFT, RIGHT})

    def __call__(self, seed: Seed, shape: tuple[int, int]) -> Seed:
        """The seed without its middle."""
        return Seed(left=seed.left, right=seed.right)


def _want(parts: frozenset[str], *names: str) -> None:
    missing = [name for name in names if name not in parts]
    if missing:
        raise ValueError(f"there is no {missing[0]} to split: take another source, or Apart")
