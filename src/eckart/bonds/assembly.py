"""Putting a bond graph together from maps and norms, one after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from eckart.bonds.graph import Bond, BondGraph, End, Map, Norm
from eckart.bonds.symmetry import Diagonal, Fixed, Invertible, Orthogonal, Pairs, Permutation, Symmetry
from eckart.errors import EckartError

if TYPE_CHECKING:
    from eckart.bonds.declaration import Declaration, Entry

STREAM = "residual"
# Spaces of the whole model; all others belong to a block.
SHARED = (STREAM, "vocabulary", "positions", "segments", "classes", "pooled", "transformed")
NAMED = {
    "vocabulary": "tokens go by their numbers",
    "positions": "positions go by their numbers",
    "segments": "segments go by their numbers",
    "classes": "classes go by their numbers",
}
HOMOGENEOUS = ("relu",)


class Assembly:
    """What is known so far of a model's bonds."""

    def __init__(
        self,
        declaration: Declaration,
        config: Mapping[str, Any],
        shapes: Mapping[str, tuple[int, ...]],
        blocks: tuple[str, ...],
    ) -> None:
        self.declaration, self.config, self.shapes, self.blocks = declaration, config, shapes, blocks
        self.heads = self._number(declaration.heads)
        self.groups = self._number(declaration.groups, self.heads)
        if self.heads % self.groups:
            raise EckartError(
                f"{self.heads} heads do not share {self.groups} groups of keys evenly: restore the config"
            )
        self.head: dict[str, int] = {}  # the size of a head, by block
        self.maps: dict[str, Map] = {}
        self.norms: dict[str, tuple[Norm, Entry]] = {}
        self.ties: dict[str, str] = {}
        self.ends: dict[str, list[End]] = {}
        self.fixed: dict[
            str, str
        ] = {}  # why a bond has no symmetry, or a group of bonds by what their names begin with
        self.gated: set[str] = set()
        self.linear: dict[str, list[End]] = {}  # the branch of a gated MLP that has no nonlinearity
        self.sizes: dict[str, tuple[int, str]] = {}
        self._later: list[tuple[Map, Entry]] = []

    def tie(self, name: str, other: str) -> None:
        """Note that a map has another one's weight."""
        self.ties[name] = other

    def add_map(self, entry: Map, declared: Entry) -> None:
        """A linear map or an embedding; its place is found when the sizes of heads are known."""
        self.maps[entry.name] = entry
        self._later.append((entry, declared))
        if declared.reads == "values":
            if entry.shape[1] % self.heads:
                raise EckartError(
                    f"{entry.weight} reads {entry.shape[1]} values, which {self.heads} heads do not share evenly"
                )
            self.head[self._block(entry.name)] = entry.shape[1] // self.heads

    def add_tensor(self, tensor: str, axis: int, space: str) -> None:
        """A tensor that is no map: one of its axes writes."""
        shape = self.shapes[tensor]
        if axis >= len(shape):
            raise EckartError(f"{tensor} has the shape {list(shape)}, and no axis {axis} that could write {space}")
        self._take(space, space, End(tensor, axis, 0, shape[axis], reads=False))

    def add_norm(self, name: str, weight: str, bias: str | None, declared: Entry) -> None:
        """A norm; who reads through it is known in the end."""
        size = self.shapes[weight][0]
        norm = Norm(name, weight, bias, size, self.declaration.centres, self.declaration.stored_less, ())
        self.norms[name] = (norm, declared)

    def graph(self) -> BondGraph:
        """The whole."""
        for entry, declared in self._later:
            for end, space, bond in self._outputs(entry, declared):
                self._take(space, bond, end)
            for end, space, bond in self._inputs(entry, declared):
                self._take(space, bond, end)
        norms, channels = self._finished_norms()
        bonds = {}
        for name, ends in self.ends.items():
            symmetry, through = self._symmetry(name)
            bonds[name] = Bond(name, ends[0].size, symmetry, tuple(ends), through)
            if name in self.gated:
                reason = "it meets the gate unit by unit"
                readers = [end for end in ends if end.reads]
                linear = f"{name}.linear"
                bonds[linear] = Bond(linear, ends[0].size, Diagonal(reason), (*self.linear[name], *readers))
        return BondGraph(self.declaration.name, bonds | channels, self.maps, norms, self.blocks, self.ties)

    # ---- where the axes of a map belong -----------------------------------------------------------------------------

    def _outputs(self, entry: Map, declared: Entry) -> Iterator[tuple[End, str, str]]:
        block, tensors = self._block(entry.name), [(entry.weight, entry.outputs)]
        tensors += [(entry.bias, 0)] if entry.bias else []
        for space, index, start, stop in self._parts(entry, declared, block):
            bond = self._bond(space, block, index)
            if space == "gate":
                self.gated.add(bond)
            for tensor, axis in tensors:
                end = End(tensor, axis, start, stop, reads=space == "queries")
                yield end, space, bond
                if space == "hidden":
                    self.linear.setdefault(bond, []).append(end)

    def _inputs(self, entry: Map, declared: Entry) -> Iterator[tuple[End, str, str]]:
        block, axis, space = self._block(entry.name), 1 - entry.outputs, str(declared.reads)
        if space != "values":
            yield End(entry.weight, axis, 0, entry.shape[1], reads=True), space, self._bond(space, block, 0)
            return
        size = self.head[block]
        for index in range(self.heads):
            end = End(entry.weight, axis, index * size, (index + 1) * size, reads=True)
            yield end, space, self._bond(space, block, self._group(index))

    def _parts(self, entry: Map, declared: Entry, block: str) -> Iterator[tuple[str, int, int, int]]:
        """The spaces that a map's outputs write: space, group, and from where to where."""
        counts = {"queries": self.heads, "keys": self.groups, "values": self.groups}
        if not set(declared.writes) & counts.keys():
            yield declared.writes[0], 0, 0, entry.shape[0]
            return
        size = self.head[block]
        expected = size * sum(counts[space] for space in declared.writes)
        if entry.shape[0] != expected:
            what = " and ".join(f"{counts[space]} {space}" for space in declared.writes)
            raise EckartError(
                f"{entry.weight} has {entry.shape[0]} outputs, but {what} of size {size} are {expected}: restore the config"
            )
        start = 0
        if declared.by_heads:
            for index in range(self.heads):
                for space in declared.writes:
                    yield space, index, start, start + size
                    start += size
            return
        for space in declared.writes:
            for index in range(counts[space]):
                yield space, self._group(index) if space == "queries" else index, start, start + size
                start += size

    def _take(self, space: str, bond: str, end: End) -> None:
        size, first = self.sizes.setdefault(bond, (end.size, end.tensor))
        if size != end.size:
            raise EckartError(f"{first} and {end.tensor} meet in {space}, but have {size} and {end.size} entries there")
        self.ends.setdefault(bond, []).append(end)

    # ---- what may be changed ----------------------------------------------------------------------------------------

    def _finished_norms(self) -> tuple[dict[str, Norm], dict[str, Bond]]:
        """The norms with who reads through them, and for each the bond between it and these."""
        norms, channels = {}, {}
        for name, (norm, declared) in self.norms.items():
            readers = [m for m in self.maps.values() if m.after == name]
            norms[name] = Norm(**{**vars(norm), "readers": tuple(m.name for m in readers)})
            block, measured = self._block(name), str(declared.norm)
            own = [End(norm.weight, 0, 0, norm.size, reads=False, less=norm.less)]
            own += [End(norm.bias, 0, 0, norm.size, reads=False)] if norm.bias else []
            if measured in ("queries", "keys"):
                self.fixed[f"{block}.keys."] = f"{name} normalises {measured}"
            elif measured != STREAM or declared.replaces:
                self.fixed[self._bond(measured, block, 0)] = f"{name} normalises it"
            if declared.writes:
                self.fixed[declared.writes[0]] = f"{name} writes it channel by channel"
            if measured == STREAM and not declared.replaces and norm.bias:
                self.ends[STREAM].append(own[1])
            if readers:
                ends = [*own, *(End(m.weight, 1 - m.outputs, 0, m.shape[1], reads=True) for m in readers)]
                bond = f"{name}.channels"
                channels[bond] = Bond(bond, norm.size, Diagonal(f"{name} works channel by channel"), tuple(ends))
        return norms, channels

    def _symmetry(self, bond: str) -> tuple[Symmetry, tuple[str, ...]]:
        """That of a bond, and the norms that must be folded for it."""
        space = bond if bond in SHARED else bond.removeprefix(f"{self._block(bond)}.").split(".")[0]
        reason = next(
            (why for name, why in self.fixed.items() if bond == name or (name[-1] == "." and bond.startswith(name))),
            None,
        )
        reason = reason or NAMED.get(space)
        if reason is not None:
            return Fixed(reason), ()
        if space == STREAM:
            branches = tuple(name for name, (_, declared) in self.norms.items() if declared.norm == STREAM)
            return Orthogonal(mean=self.declaration.centres), branches
        if space == "values":
            return Invertible(), ()
        if space == "keys":
            head = self.head[self._block(bond)]
            rotary = self._rotary(head)
            return (Pairs(rotary, head - rotary) if rotary else Invertible()), ()
        key = self.declaration.activation
        homogeneous = bond not in self.gated and key is not None and self.config.get(key) in HOMOGENEOUS
        return Permutation(positive=space == "hidden" and homogeneous), ()

    def _rotary(self, head: int) -> int:
        if not self.declaration.rotary:
            return 0
        table = self.config.get("rope_parameters") or {}
        turned = int(head * float(table.get("partial_rotary_factor", 1.0)))
        return turned + turned % 2  # a frequency for each two entries, and for one that is left over

    def _bond(self, space: str, block: str, index: int) -> str:
        if space in SHARED:
            return space
        space = {"queries": "keys", "gate": "hidden"}.get(space, space)
        return f"{block}.{space}" + (f".{index}" if space in ("keys", "values") else "")

    def _block(self, name: str) -> str:
        return next((block for block in self.blocks if name.startswith(f"{block}.")), "")

    def _group(self, head: int) -> int:
        return head // (self.heads // self.groups)

    def _number(self, key: str | None, default: int = 0) -> int:
        value = self.config.get(key, default) if key else default
        value = default if value is None else value
        if not isinstance(value, int) or value < 1:
            raise EckartError(f"the config says that {key} is {value}: a number of heads is wanted")
        return value
