"""Where a network may be made narrower: the bonds of a model that a recipe names, and what their units weigh."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from eckart.allocate import BondSlot, ListedSlot
from eckart.allocate.slots import AnySlot
from eckart.bonds import BondGraph, Fixed, Pairs
from eckart.bonds.choosing import Choice, Chosen, EachNorm
from eckart.bonds.crossing import Crossing
from eckart.bonds.graph import Bond, End
from eckart.bonds.heads import Head, heads_of
from eckart.bonds.stages import stages
from eckart.errors import EckartError
from eckart.model.checkpoint import Checkpoint
from eckart.model.compression import Narrow
from eckart.operator.sparse import index_dtype

STREAM = "residual"
GROUPS = "groups"


@dataclass(frozen=True)
class Site:
    """Bonds of one kind in one block (all its heads, or its hidden units), which are narrowed alike; or the stream.

    ``units`` is how many each of the bonds has, ``width`` the directions of one, and ``unit_bytes`` what one of each bond weighs in the
    weights of all maps that meet there, ``dense_bytes`` what all weigh now. ``stock`` says whether a configuration can tell of the
    narrower bond. ``links`` of a stream are the changes of directions on its way, which take ``link_bytes`` a number; ``heads``
    are the groups that stay or go whole.
    """

    name: str
    kind: str
    block: int | None
    bonds: tuple[Bond, ...]
    units: int
    width: int
    unit_bytes: int
    dense_bytes: int
    choice: Choice
    stock: bool
    links: int = 0
    link_bytes: int = 0
    heads: tuple[Head, ...] = ()

    def slot(self, losses: Tensor | None = None, importance: float | None = None) -> AnySlot:
        """How an allocator sees it."""
        if self.links:
            # A link from k directions to k, out of n, has k rows and as many columns as directions that may differ.
            counts = range(1, self.units)
            per_link = self.links * self.link_bytes
            sizes = [count * (self.unit_bytes + per_link * min(count, self.units - count)) for count in counts]
            return ListedSlot(dense_bytes=self.dense_bytes, listed=tuple(sizes), losses=losses, importance=importance)
        return BondSlot(
            size=self.units, unit_bytes=self.unit_bytes, losses=losses, block=self.block, importance=importance
        )

    def prepare(self, name: str, crossing: Crossing) -> Chosen:
        """What the choice makes of the bond ``name``, or of all heads together; raises ``EckartError`` where it takes none of this kind."""
        try:
            return self.choice.prepare(crossing)
        except ValueError as error:
            raise EckartError(f"the bond {name} cannot be narrowed so: {error}") from error

    @property
    def maps(self) -> frozenset[str]:
        """The tensors that change."""
        return frozenset(end.tensor for bond in self.bonds for end in bond.ends)


def find_sites(checkpoint: Checkpoint, graph: BondGraph, recipe: Narrow, dropped: frozenset[int]) -> list[Site]:
    """The sites that a recipe narrows, in the order of the model; those whose bonds have no symmetry are left as they are.

    Raises ``EckartError`` for an architecture that is not declared, and for one that has no such bond or none that may be narrowed.
    """
    if not graph.blocks:
        raise EckartError(
            f"{checkpoint.folder}: the architecture {graph.architecture} is not declared, so its bonds are not known; recipes of matrices, "
            "such as svd-llm, need none"
        )
    found = list(_sites(checkpoint, graph, recipe, dropped))
    left = fixed(found)
    if left and len(left) == len(found):
        bond = left[0].bonds[0]
        raise EckartError(
            f"{checkpoint.folder}: {bond.name} ({bond.symmetry}) cannot be narrowed, nor can the others of its kind"
        )
    return found


def fixed(sites: list[Site]) -> list[Site]:
    """Those whose bonds have no symmetry: their entries mean something to what is between the maps."""
    return [site for site in sites if isinstance(site.bonds[0].symmetry, Fixed)]


def _sites(checkpoint: Checkpoint, graph: BondGraph, recipe: Narrow, dropped: frozenset[int]) -> Iterator[Site]:
    if recipe.stream is not None:
        bond = graph.bond(STREAM)
        if not bond.norms or STREAM not in graph.sizes:
            raise EckartError(
                f"{checkpoint.folder}: no stock config of {graph.architecture} tells of a narrower stream; its symmetry is {bond.symmetry}"
            )
        if isinstance(recipe.stream, EachNorm):
            writers = [stage.writer for stage in stages(graph, STREAM) if stage.writer is not None]
            _, spec = checkpoint.tensors[graph.maps[writers[0]].weight]
            site = replace(
                _site(checkpoint, graph, STREAM, STREAM, None, (bond,), recipe.stream.choice),
                links=len(writers),
                link_bytes=spec.dtype.itemsize,
            )
            if site.links * site.link_bytes * site.units >= site.unit_bytes:
                raise EckartError(
                    f"{checkpoint.folder}: links between its norms would take as many bytes as channels of the stream save: "
                    "take one set of directions (slicegpt)"
                )
            yield site
        else:
            yield _site(checkpoint, graph, STREAM, STREAM, None, (bond,), recipe.stream)
    for block, name in enumerate(graph.blocks):
        if block in dropped:
            continue
        for kind, choice in recipe.inside.items():
            if kind == GROUPS:
                yield _groups(checkpoint, graph, block, choice)
                continue
            bonds = tuple(
                bond
                for key, bond in graph.bonds.items()
                if key == f"{name}.{kind}" or _is_group(key, f"{name}.{kind}.")
            )
            if not bonds:
                raise EckartError(f"{checkpoint.folder}: {graph.architecture} has no {kind} in {name}")
            yield _site(checkpoint, graph, f"{name}.{kind}", kind, block, bonds, choice)


def _groups(checkpoint: Checkpoint, graph: BondGraph, block: int, choice: Choice) -> Site:
    """All groups of heads of a block, each of which is a unit."""
    if GROUPS not in graph.sizes:
        raise EckartError(f"{checkpoint.folder}: no stock config of {graph.architecture} tells of fewer heads")
    heads = tuple(head for head in heads_of(graph) if head.block == block)
    name = graph.blocks[block]
    bonds = tuple(graph.bonds[f"{name}.{kind}.{g}"] for kind in ("values", "keys") for g in range(len(heads)))
    unit = sum(_end_bytes(checkpoint, end) * end.size for end in heads[0].weights)
    return Site(
        name=f"{name}.{GROUPS}",
        kind=GROUPS,
        block=block,
        bonds=bonds,
        units=len(heads),
        width=sum(end.size for end in heads[0].values if end.reads),
        unit_bytes=unit,
        dense_bytes=unit * len(heads),
        choice=choice,
        stock=True,
        heads=heads,
    )


def _end_bytes(checkpoint: Checkpoint, end: End) -> int:
    """What one entry of an axis weighs."""
    _, spec = checkpoint.tensors[end.tensor]
    return spec.nbytes // spec.shape[end.axis]


def other_places(checkpoint: Checkpoint, sites: Iterable[Site]) -> int:
    """Bytes of the places of entries that no site narrows, on axes of which some are.

    Beside narrower values these are the places of queries and keys in one tensor with them.
    """
    narrowed: dict[tuple[str, int], int] = {}
    for site in sites:
        for bond in () if site.stock else site.bonds:
            for end in bond.ends:
                narrowed[end.tensor, end.axis] = narrowed.get((end.tensor, end.axis), 0) + end.size
    found = 0
    for (tensor, axis), count in narrowed.items():
        _, spec = checkpoint.tensors[tensor]
        if len(spec.shape) == 2:
            found += (spec.shape[axis] - count) * index_dtype(spec.shape[axis] - 1).itemsize
    return found


def _is_group(key: str, prefix: str) -> bool:
    return key.startswith(prefix) and key.removeprefix(prefix).isdecimal()


def _site(
    checkpoint: Checkpoint,
    graph: BondGraph,
    name: str,
    kind: str,
    block: int | None,
    bonds: tuple[Bond, ...],
    choice: Choice,
) -> Site:
    width = 2 if isinstance(bonds[0].symmetry, Pairs) else 1
    stock = kind in graph.sizes
    return Site(
        name=name,
        kind=kind,
        block=block,
        bonds=bonds,
        units=bonds[0].size // width,
        width=width,
        unit_bytes=width * sum(_entry_bytes(checkpoint, graph, bond, stock=stock) for bond in bonds),
        dense_bytes=bonds[0].size * sum(_entry_bytes(checkpoint, graph, bond, stock=True) for bond in bonds),
        choice=choice,
        stock=stock,
    )


def _entry_bytes(checkpoint: Checkpoint, graph: BondGraph, bond: Bond, *, stock: bool) -> int:
    """What one direction of a bond weighs in the maps inside of blocks, with its place where that must be stored."""
    weights: Mapping[str, object] = {
        entry.weight: entry
        for name, entry in graph.maps.items()
        if name.startswith(tuple(f"{b}." for b in graph.blocks))
    }
    found = 0
    for end in bond.ends:
        if end.tensor in weights:
            _, spec = checkpoint.tensors[end.tensor]
            length = spec.shape[end.axis]
            found += spec.nbytes // length + (0 if stock else index_dtype(length - 1).itemsize)
    return found
