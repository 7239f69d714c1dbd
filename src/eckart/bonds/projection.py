"""Fewer directions on a bond: what writes it writes less, and what reads it makes do with that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from eckart.bonds.gauge import Tensors, check_folded
from eckart.bonds.graph import Bond, BondGraph, End
from eckart.bonds.symmetry import TOLERANCE, Invertible, Orthogonal, Pairs, Permutation
from eckart.errors import EckartError


@dataclass(frozen=True)
class Projection:
    """What goes over a bond of k directions through k' of them: x becomes ``up @ down @ x``.

    >>> some = Projection.selection(4, torch.tensor([3, 1]))
    >>> (some.up @ some.down).diagonal().tolist()
    [0.0, 1.0, 0.0, 1.0]

    Raises ``ValueError`` where the shapes do not fit each other.
    """

    down: Tensor  # (k', k)
    up: Tensor  # (k, k')
    kept: Tensor | None = None  # (k',), where ``down`` picks entries

    def __post_init__(self) -> None:
        if self.down.ndim != 2 or self.down.shape[::-1] != self.up.shape or len(self.down) > self.down.shape[1]:
            raise ValueError(
                f"down to {tuple(self.down.shape)} and up from {tuple(self.up.shape)} do not fit each other"
            )

    @property
    def size(self) -> int:
        """How many directions there were."""
        return self.down.shape[1]

    @property
    def rank(self) -> int:
        """How many are left."""
        return len(self.down)

    @classmethod
    def selection(cls, size: int, kept: Tensor) -> Projection:
        """The entries ``kept`` as they are, zero for the others. Raises ``ValueError`` for an entry that is not there, or twice."""
        if kept.ndim != 1 or len(kept.unique()) != len(kept) or not bool(((kept >= 0) & (kept < size)).all()):
            raise ValueError(f"entries to keep are different ones from 0 to {size - 1}")
        down = torch.eye(size, dtype=torch.float64)[kept]
        return cls(down, down.T, kept)

    @classmethod
    def refitted(cls, moment: Tensor, kept: Tensor) -> Projection:
        """The entries ``kept``, and for the others what is nearest by these: the least of ``E ||x - up x_S||^2`` for x of a second moment.

        ``up = C[:, S] C[S, S]^+``, Nyström's form; nothing is added to a moment of lower rank. Whatever map reads x, its mean squared
        error is the least as well.

        >>> moment = torch.tensor([[1.0, 2.0], [2.0, 4.0]])  # x_1 = 2 x_0
        >>> Projection.refitted(moment, torch.tensor([0])).up.flatten().tolist()
        [1.0, 2.0]
        """
        plain, wide = cls.selection(len(moment), kept), moment.to(torch.float64)
        core = wide[kept][:, kept]
        # Units of one size, so that what is weak is not taken for rounding of what is strong.
        lengths = core.diagonal().sqrt()
        lengths = torch.where(lengths > 0, lengths, torch.ones_like(lengths))
        unit = core / lengths / lengths[:, None]
        inverse = torch.linalg.pinv(unit, rtol=len(kept) * torch.finfo(torch.float64).eps, hermitian=True)
        return cls(plain.down, (wide[:, kept] / lengths) @ inverse / lengths, kept)

    @classmethod
    def onto(cls, basis: Tensor) -> Projection:
        """The orthogonal projection onto the span of orthonormal columns ``basis`` (k, k')."""
        return cls(basis.T, basis)

    def filled(self, rank: int) -> Projection:
        """An orthogonal projection with further directions, at right angles to its own, where it has fewer than ``rank``.

        A stream is as wide everywhere, also where what was seen of it needs fewer directions.

        >>> Projection.onto(torch.tensor([[1.0], [0.0]], dtype=torch.float64)).filled(2).rank
        2
        """
        if self.rank >= rank:
            return self
        further = torch.linalg.qr(self.up, mode="complete").Q[:, self.rank : rank]
        return Projection.onto(torch.cat([self.up, further], 1))


def narrow(graph: BondGraph, projections: Mapping[str, Projection], tensors: Tensors) -> dict[str, Tensor]:
    """The tensors of a network whose bonds go through fewer directions: ``W -> down W`` of what writes, ``W -> W up`` of what reads.

    Several bonds that share an axis (the heads of a block) are narrowed together; what is left of it moves together. Results have
    the dtype of the tensors. A stream of d channels that root-mean-square norms read is projected orthogonally: they measure its d'
    channels as before with a scale of ``sqrt(d / d')``, which they get here, and with ``narrowed_eps``, which the config must say.

    Of keys under rotary positions whole pairs may be left out; what is left keeps its frequencies, which no stock configuration says: such
    maps are to be put back in their places (``places``).

    Raises ``EckartError`` for a bond that there is not, that is of another size, or where such a projection would not go past what
    works there: bonds between linear maps take any, those behind a nonlinearity selections, a stream orthogonal ones once its
    norms are folded.
    """
    pieces: dict[tuple[str, int], dict[int, tuple[End, Projection]]] = {}
    changed: dict[str, Tensor] = {}
    for name, projection in projections.items():
        bond = graph.bond(name)
        _check(bond, projection)
        for norm in map(graph.norm, bond.norms):
            check_folded(norm, name, tensors)
            scale = (projection.size / projection.rank) ** 0.5
            changed[norm.weight] = tensors[norm.weight].new_full((projection.rank,), scale - norm.less)
        for end in bond.ends:
            pieces.setdefault((end.tensor, end.axis), {})[end.start] = (end, projection)
    for (tensor, axis), ends in pieces.items():
        changed[tensor] = _narrowed(changed.get(tensor, tensors[tensor]), axis, list(ends.values()))
    return changed


def places(graph: BondGraph, projections: Mapping[str, Projection], tensor: str, axis: int, length: int) -> Tensor:
    """Where the entries of a narrowed axis stand among those that it had: what was picked at its own place, other directions first in
    their part of the axis. With zeros everywhere else the tensor has its old shape and the network computes the same.

    >>> from eckart.bonds import Bond, End, Invertible
    >>> bond = Bond("values", 3, Invertible(), (End("v", 0, 2, 5, reads=False),))
    >>> graph = BondGraph("example", {"values": bond}, {}, {})
    >>> places(graph, {"values": Projection.selection(3, torch.tensor([0, 2]))}, "v", 0, 6).tolist()
    [0, 1, 2, 4, 5]
    """
    ends = [
        (end, projection)
        for name, projection in projections.items()
        for end in graph.bond(name).ends
        if (end.tensor, end.axis) == (tensor, axis)
    ]
    found, at = [], 0
    for end, projection in sorted(ends, key=lambda item: item[0].start):
        kept = torch.arange(projection.rank) if projection.kept is None else projection.kept
        found += [torch.arange(at, end.start), end.start + kept]
        at = end.stop
    return torch.cat([*found, torch.arange(at, length)])


def put_back(
    graph: BondGraph, projections: Mapping[str, Projection], changed: Tensors, tensors: Tensors
) -> dict[str, Tensor]:
    """What ``narrow`` made of ``tensors``, in their shapes: entries at the ``places`` where they stood, zeros where nothing is left.

    The network computes with it what the narrower one does, where no norm reads the bonds.

    >>> from eckart.bonds import Bond, End, Invertible
    >>> bond = Bond("values", 2, Invertible(), (End("v", 0, 0, 2, reads=False),))
    >>> graph, some = BondGraph("example", {"values": bond}, {}, {}), {"values": Projection.selection(2, torch.tensor([1]))}
    >>> stock = {"v": torch.tensor([3.0, 4.0])}
    >>> put_back(graph, some, narrow(graph, some, stock), stock)["v"].tolist()
    [0.0, 4.0]
    """
    axes = {(end.tensor, end.axis) for name in projections for end in graph.bond(name).ends}
    found = dict(changed)
    for tensor, axis in sorted(axes):
        length = tensors[tensor].shape[axis]
        part, index = found[tensor], places(graph, projections, tensor, axis, length)
        room = part.new_zeros([length if at == axis else size for at, size in enumerate(part.shape)])
        found[tensor] = room.index_copy(axis, index, part)
    return found


def narrowed_eps(eps: float, projection: Projection) -> float:
    """What a norm of the narrowed stream adds to the mean square, so that it divides as before: ``eps d / d'``.

    >>> narrowed_eps(1e-6, Projection.selection(4, torch.tensor([0])))
    4e-06
    """
    return eps * projection.size / projection.rank


def _narrowed(tensor: Tensor, axis: int, ends: list[tuple[End, Projection]]) -> Tensor:
    """A tensor with parts of an axis projected, the others as they are, in the same order."""
    wide, found, at = tensor.to(torch.float64).movedim(axis, 0), [], 0
    for end, projection in sorted(ends, key=lambda item: item[0].start):
        found += [wide[at : end.start], _crossed(wide[end.start : end.stop], end, projection)]
        at = end.stop
    return torch.cat([*found, wide[at:]]).movedim(0, axis).to(tensor.dtype).contiguous()


def _crossed(part: Tensor, end: End, projection: Projection) -> Tensor:
    """The entries of a tensor that an end takes hold of, on the narrow bond."""
    if projection.kept is not None and (not end.reads or torch.equal(projection.up, projection.down.T)):
        return part[projection.kept]
    matrix = projection.up.T if end.reads else projection.down
    return torch.tensordot(matrix.to(torch.float64), part, 1)


def _check(bond: Bond, projection: Projection) -> None:
    if projection.size != bond.size:
        raise EckartError(
            f"the bond {bond.name} has {bond.size} directions, and the projection is one of {projection.size}"
        )
    if isinstance(bond.symmetry, Invertible):
        return
    if isinstance(bond.symmetry, Orthogonal) and not bond.symmetry.mean:
        one = torch.eye(projection.rank, dtype=torch.float64)
        off = max(
            float((projection.down - projection.up.T).abs().max()),
            float((projection.down @ projection.up - one).abs().max()),
        )
        if off > TOLERANCE:
            raise EckartError(
                f"the bond {bond.name} is read through norms, which measure its length: project it orthogonally"
            )
        return
    if isinstance(bond.symmetry, Pairs):
        if not _keeps_pairs(bond.symmetry, projection):
            raise EckartError(
                f"the bond {bond.name} is turned by positions, pair by pair: select whole pairs, and do not refit them"
            )
        return
    if not isinstance(bond.symmetry, Permutation):
        raise EckartError(
            f"the bond {bond.name} is not narrowed by projections of what crosses it; its symmetry is {bond.symmetry}"
        )
    ones = projection.down == 1
    if not (bool((projection.down.abs().sum(1) == 1).all()) and bool((ones.sum(1) == 1).all())):
        raise EckartError(
            f"the bond {bond.name} lies behind a nonlinearity, which acts on each unit by itself: select units"
        )


def _keeps_pairs(symmetry: Pairs, projection: Projection) -> bool:
    """Whether rotary entries are kept as they are, both of a pair or none."""
    if projection.kept is None or not torch.equal(projection.up, projection.down.T):
        return False
    there = torch.zeros(projection.size, dtype=torch.bool)
    there[projection.kept] = True
    half = symmetry.rotary // 2
    return torch.equal(there[:half], there[half : 2 * half])
