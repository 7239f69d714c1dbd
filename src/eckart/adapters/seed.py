"""What a start is made from, and what it makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor

from eckart.adapters.draws import Draw
from eckart.stats import Moments

LEFT, MIDDLE, CORE, RIGHT, CORES, PLACES = "left", "middle", "core", "right", "cores", "places"
REST = "rest"  # components beyond those that are picked, behind them


@dataclass(frozen=True)
class Seed:
    """Where an adapter begins: ``left`` (m, r), ``middle`` (r,), ``core`` (r, r), ``right`` (r, n), or the ``cores`` of a tensor train,
    or the ``places`` (b, 2) of blocks.

    What is ``None`` the form fills in.
    """

    left: Tensor | None = None
    middle: Tensor | None = None
    core: Tensor | None = None
    right: Tensor | None = None
    cores: tuple[Tensor, ...] = ()
    places: Tensor | None = None


@dataclass(frozen=True)
class Pool:
    """Random matrices that all adapters of a model have in common: each is drawn once, in the ``largest`` shape, and cut from there.

    >>> from eckart.adapters.draws import Gaussian
    >>> pool = Pool((4, 3), torch.Generator().manual_seed(0))
    >>> big, small = (pool.cut("left", Gaussian(), (rows, 2), (4, 2)) for rows in (4, 3))
    >>> torch.equal(big[:3], small), big.data_ptr() == small.data_ptr()
    (True, True)
    """

    largest: tuple[int, int]  # outputs and inputs
    rng: Generator
    drawn: dict[str, Tensor] = field(default_factory=dict)

    def cut(self, name: str, draw: Draw, shape: tuple[int, int], largest: tuple[int, int]) -> Tensor:
        """The leading part of this shape of the matrix of this name."""
        if name not in self.drawn:
            self.drawn[name] = draw(largest, self.rng).to(torch.float32)
        return self.drawn[name][: shape[0], : shape[1]]


_OF: Any = Tensor
KNOWN = (_OF.__len__, _OF.shape.__get__, _OF.device.__get__, _OF.ndim.__get__)  # of a matrix that can't be read


class Unread(Tensor):
    """A matrix of which nothing is known but its shape and where it lies: whoever asks for more is told why not, by a ``ValueError``.

    >>> matrix = Unread.of((4, 3), torch.device("cpu"), "it is packed")
    >>> tuple(matrix.shape)
    (4, 3)
    """

    why: str

    @classmethod
    def of(cls, shape: tuple[int, int], device: torch.device, why: str) -> Unread:
        """One of this shape."""
        made = torch.empty((), device=device).expand(shape).as_subclass(cls)
        made.why = why
        return made

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """What is known; ``ValueError`` for everything else."""
        if func not in KNOWN:
            told = (one.why for one in [*args, *(kwargs or {}).values()] if isinstance(one, Unread))
            raise ValueError(next(told, "of a weight that is packed nothing is known but its shape"))
        return super().__torch_function__(func, types, args, kwargs)


@dataclass(frozen=True)
class Seen:
    """What is known of a linear map before it is adapted: its ``weight`` (m, n), and what the start asked for."""

    weight: Tensor
    moments: Moments | None = None  # of its inputs
    gradient: Tensor | None = None  # (m, n), the mean over samples
    pool: Pool | None = None
    sizes: tuple[int, ...] = ()  # of the weight of a convolution, before it was flattened behind its outputs
    worked_out: dict[str, Any] = field(
        default_factory=dict
    )  # of the moments, in common with all maps of the same inputs

    @property
    def natural(self) -> Tensor:
        """The weight with all its modes."""
        return self.weight.reshape(self.sizes) if self.sizes else self.weight

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        m, n = self.weight.shape
        return m, n


Params = Mapping[str, Tensor]
