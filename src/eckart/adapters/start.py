"""How an adapter begins: a source, what is picked of it, and how it is split."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Generator

from eckart.adapters.pick import Pick, Top
from eckart.adapters.seed import LEFT, REST, RIGHT, Seed, Seen
from eckart.adapters.sources import Source
from eckart.adapters.split import Apart, Split
from eckart.stats import Need


@dataclass(frozen=True)
class Start:
    """The parts that ``source`` makes, ``pick`` chooses and ``split`` shares out.

    >>> from eckart.adapters.sources import OfWeight
    >>> from eckart.adapters.split import Even
    >>> sorted(Start(OfWeight(), split=Even()).gives)
    ['left', 'right']

    Raises ``ValueError`` for a pick from what has no order, and for a split of what is not there.
    """

    source: Source
    pick: Pick = Top()
    split: Split = Apart()

    def __post_init__(self) -> None:
        if not self.source.ordered and self.pick != Top():
            raise ValueError(
                f"what {type(self.source).__name__} makes has no order to pick {type(self.pick).__name__} from: leave the pick out"
            )
        self.split.gives(self.source.gives)

    @property
    def needs(self) -> frozenset[Need]:
        """What the source needs."""
        return self.source.needs

    @property
    def approximates(self) -> bool:
        """Whether the product of the parts is meant to be an update."""
        return self.source.approximates and self.split.keeps

    @property
    def gives(self) -> frozenset[str]:
        """The parts that a form is given."""
        return self.split.gives(self.source.gives) | ({REST} if self.pick.rest else frozenset())

    def __call__(self, seen: Seen, rank: int, scale: float, rng: Generator) -> Seed:
        """The parts for one map, for an update with this factor in front; in float64.

        Raises ``ValueError`` where the map has not as many components as are picked.
        """
        seed = self.source(seen, self.pick, rank, rng)
        if self.source.approximates:
            seed = replace(
                seed,
                middle=None if seed.middle is None else seed.middle / scale,
                core=None if seed.core is None else seed.core / scale,
                cores=tuple(core / scale ** (1 / len(seed.cores)) for core in seed.cores),
                left=seed.left / scale if self.source.gives == {LEFT, RIGHT} and seed.left is not None else seed.left,
            )
        return self.split(seed, seen.shape)
