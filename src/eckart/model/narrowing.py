"""Fewer directions on bonds, block by block: statistics, what is kept, and the narrower weights as they will be stored."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from eckart.allocate.slots import Rank
from eckart.bonds import BondGraph, Projection, narrow, places
from eckart.bonds.crossing import Crossing
from eckart.bonds.groups import crossing_of_groups, without_groups
from eckart.bonds.seen import crossing_of
from eckart.bound import Bound
from eckart.kernels.symmetric import psd_root
from eckart.model.certificate import BondRecord
from eckart.model.entries import entry_of, read_entry
from eckart.model.linear import stored_name
from eckart.model.passing import last_loss, pass_through
from eckart.model.run import Run
from eckart.model.sites import GROUPS, Site
from eckart.model.survey import embed_original, original
from eckart.model.tensorfile import write_all
from eckart.operator import Dense, Operator, RowSparse, Transposed, rebuild
from eckart.stats import Moments

EPS = torch.finfo(torch.float64).eps


@dataclass
class Narrowed:
    """What became of a model: for each tensor on disk that changed the work file, and for the names of what takes its place those there.

    ``resized`` are bonds whose width differs from block to block, so that no stock config tells of them. ``links`` has for the maps at the
    end of a stretch of the stream what the config says of the way to the next one.
    """

    records: list[BondRecord] = field(default_factory=list)
    modules: dict[str, object] = field(default_factory=dict)
    replaced: dict[str, tuple[str, dict[str, str]]] = field(default_factory=dict)
    resized: frozenset[str] = frozenset()
    losses: dict[str, float] = field(default_factory=dict)
    links: dict[str, object] = field(default_factory=dict)

    def add(self, value: object, file: str) -> None:
        """Take in what a finished piece recorded."""
        assert isinstance(value, dict)
        self.records += [BondRecord.from_json(entry) for entry in value["bonds"]]
        self.modules |= value["modules"]
        self.replaced |= {name: (file, {key: key for key in keys}) for name, keys in value["tensors"].items()}


def narrowed_file(block: int | None) -> str:
    """The work file of a block's narrower weights."""
    return f"narrowed-{'outside' if block is None else format(block, '04d')}.safetensors"


def fit_sites(
    run: Run, graph: BondGraph, sites: list[Site], ranks: Mapping[str, Rank], dropped: frozenset[int]
) -> Narrowed:
    """Decide what crosses every site, each block on the statistics that the recipe asks for, and measure the loss of the outcome."""
    found = Narrowed()
    by_block = {block: [site for site in sites if site.block == block] for block in range(run.blocks)}
    resized = _resized_kinds(sites, ranks)
    found.resized = frozenset(bond.name for site in sites if site.kind in resized for bond in site.bonds)
    if run.walk is None:
        for block in range(run.blocks):
            value = run.journal.once(
                f"narrow/{block}",
                lambda block=block: _fit(run, graph, by_block[block], ranks, {}, resized),  # type: ignore[misc]
            )
            found.add(value, narrowed_file(block))
        return found
    embed_original(run)
    walk, journal = run.walking(), run.journal

    def fit(block: int, source: Path, there: Path) -> None:
        def make() -> tuple[object, list[str]]:
            names = observed_maps(run, graph, by_block[block])
            out = None if run.sequential else there
            moments = walk.run_block(block, source, out, observe=list(names.values()), gram=True)
            seen = {name: moments[module] for name, module in names.items()}
            value, files = _fit(run, graph, by_block[block], ranks, seen, resized)
            return value, files if run.sequential else [*files, there.name]

        found.add(journal.once(f"narrow/{block}", make), narrowed_file(block))
        if run.sequential:
            journal.once(f"advance/{block}", _narrower(run, graph, found, block, source, there))

    left = [block for block in range(run.blocks) if block not in dropped]
    last = pass_through(run, left if run.sequential else range(run.blocks), original, fit, "narrow")
    loss = last_loss(run, "narrow/loss", last)
    if run.sequential:
        found.losses = {"narrowed": loss}
        return found

    def judge(block: int, source: Path, there: Path) -> None:
        journal.once(f"judge/{block}", _narrower(run, graph, found, block, source, there))

    last = pass_through(run, left, lambda block: f"judged-{block:04d}.bin", judge, "loss")
    found.losses = {"original": loss, "narrowed": last_loss(run, "judge/loss", last)}
    return found


def _narrower(
    run: Run, graph: BondGraph, found: Narrowed, block: int, source: Path, there: Path
) -> Callable[[], tuple[object, list[str]]]:
    """The piece that takes hidden states through a block with its narrower weights, in stock shapes."""

    def make() -> tuple[object, list[str]]:
        run.walking().run_block(block, source, there, instead=padded(run, graph, found, block))
        return None, [there.name]

    return make


def _resized_kinds(sites: list[Site], ranks: Mapping[str, Rank]) -> frozenset[str]:
    """The kinds whose widths differ between blocks, so that no stock configuration tells of them."""
    widths: dict[str, set[int]] = {}
    for site in sites:
        rank = ranks[site.name]
        widths.setdefault(site.kind, set()).add(site.units if rank is None else rank)
    return frozenset(kind for kind, some in widths.items() if len(some) > 1)


def observed_maps(run: Run, graph: BondGraph, sites: list[Site]) -> dict[str, str]:
    """The maps whose inputs a block's sites need, each with its module."""
    return maps_at(run, graph, [site for site in sites if site.choice.needs])


def maps_at(run: Run, graph: BondGraph, sites: list[Site]) -> dict[str, str]:
    """The maps that meet at some sites, each with its module."""
    tensors = {tensor for site in sites for tensor in site.maps}
    return {name: module_of(run, entry.weight) for name, entry in graph.maps.items() if entry.weight in tensors}


def module_of(run: Run, tensor: str) -> str:
    """The module that a tensor on disk belongs to."""
    return (run.skeleton.places[tensor] or tensor).rpartition(".")[0]


def projections_of(
    run: Run, graph: BondGraph, sites: list[Site], ranks: Mapping[str, Rank], moments: Mapping[str, Moments]
) -> tuple[dict[str, Tensor], dict[str, Crossing], dict[str, Projection]]:
    """The weights that meet at the sites of one block, and for each bond that is narrowed what is known of it and what crosses it."""
    tensors = {name: run.checkpoint.read_finite(name) for site in sites for name in sorted(site.maps)}
    projections: dict[str, Projection] = {}
    crossings: dict[str, Crossing] = {}
    for site in sites:
        rank = ranks[site.name]
        for bond in site.bonds if rank is not None and site.kind != GROUPS else ():
            assert rank is not None
            crossings[bond.name] = crossing_of(graph, bond, tensors, moments if site.choice.needs else {})
            projections[bond.name] = site.prepare(bond.name, crossings[bond.name]).projection(rank)
    return tensors, crossings, projections


def _fit(
    run: Run,
    graph: BondGraph,
    sites: list[Site],
    ranks: Mapping[str, Rank],
    moments: Mapping[str, Moments],
    resized: frozenset[str],
) -> tuple[object, list[str]]:
    """What crosses the sites of one block; writes its narrower weights."""
    tensors, crossings, projections = projections_of(run, graph, sites, ranks, moments)
    changed = narrow(graph, projections, tensors)
    records = [
        BondRecord(
            name=name,
            size=projection.size,
            rank=projection.rank,
            kept=None if projection.kept is None else tuple(projection.kept.tolist()),
            bound=_bound(graph, name, projections, crossings[name], changed),
        )
        for name, projection in projections.items()
    ]
    whole = [site for site in sites if site.kind == GROUPS and ranks[site.name] is not None]
    for site in whole:
        record, fewer = _without_heads(graph, site, ranks[site.name] or 0, tensors, moments)
        records.append(record)
        changed |= fewer
    scattered = {name: p for name, p in projections.items() if not _site_of(sites, name).stock}
    other = {
        end.tensor for name in projections if _site_of(sites, name).kind in resized for end in graph.bond(name).ends
    }
    other |= {tensor for site in whole if GROUPS in resized for tensor in site.maps}
    table: dict[str, Tensor] = {}
    modules: dict[str, object] = {}
    names: dict[str, list[str]] = {}
    for name, tensor in changed.items():
        axis = next((e.axis for bond in scattered for e in graph.bond(bond).ends if e.tensor == name), None)
        length = tensors[name].shape[axis] if axis is not None else 0
        operator: Operator | None = None
        if axis is not None:
            index = places(graph, scattered, name, axis, length)
            rows = tensor.movedim(axis, 0).contiguous()
            if tensor.ndim == 1:
                tensor = tensor.new_zeros(length).index_copy(0, index, rows)
            else:
                put = RowSparse.of(rows, index, length)
                operator = put if axis == _outputs(graph, name) else Transposed(put)
        elif name in other and tensor.ndim == 2:
            operator = Dense(tensor.T.contiguous() if _outputs(graph, name) else tensor)
        if operator is None:
            table[name], names[name] = tensor, [name]
            continue
        module, stored = module_of(run, name), operator.tensors()
        modules[module] = entry_of(operator) | ({} if axis is not None else {"resized": True})
        own = {f"{module}.{stored_name(side, tuple(stored))}": t for side, t in stored.items()}
        table |= {key: t.contiguous() for key, t in own.items()}
        names[name] = list(own)
    block = sites[0].block if sites else None
    if sites:
        write_all(run.file(narrowed_file(block)), table)
    value = {"bonds": [record.to_json() for record in records], "modules": modules, "tensors": names}
    return value, [narrowed_file(block)] if sites else []


def _without_heads(
    graph: BondGraph, site: Site, rank: int, tensors: Mapping[str, Tensor], moments: Mapping[str, Moments]
) -> tuple[BondRecord, dict[str, Tensor]]:
    """A block's tensors with so many groups of heads, and what the map behind attention lost."""
    crossing = crossing_of_groups(graph, site.heads, tensors, moments if site.choice.needs else {})
    projection = site.prepare(site.name, crossing).projection(rank)
    assert projection.kept is not None
    changed = without_groups(graph, site.heads, projection, tensors)
    bound = None
    if crossing.moment is not None:
        (reader,) = {end.tensor for head in site.heads for end in head.values if end.reads}
        stored = changed[reader].T if _outputs(graph, reader) else changed[reader]
        bound = enclosed(crossing.wide - stored.to(torch.float64) @ projection.down, crossing, projection.rank)
    kept = tuple(projection.kept.tolist())
    return BondRecord(site.name, crossing.size, projection.rank, kept, bound), changed


def _site_of(sites: list[Site], bond: str) -> Site:
    return next(site for site in sites if any(own.name == bond for own in site.bonds))


def _outputs(graph: BondGraph, tensor: str) -> int:
    """The axis of a weight on which its outputs lie."""
    return next(entry.outputs for entry in graph.maps.values() if entry.weight == tensor)


def _bound(
    graph: BondGraph,
    name: str,
    projections: Mapping[str, Projection],
    crossing: Crossing,
    changed: Mapping[str, Tensor],
) -> Bound | None:
    """The root mean square error of what is read over the calibration inputs, and what no bond of this width can beat.

    What is read is what the readers as stored make of it; of keys it is what queries of the same inputs make of them.
    """
    if crossing.moment is None:
        return None
    bond, projection = graph.bond(name), projections[name]
    weights = {entry.weight: entry for entry in graph.maps.values()}
    if any(end.axis == weights[end.tensor].outputs for end in bond.readers if end.tensor in weights):
        return enclosed(crossing.wide - crossing.wide @ projection.up @ projection.down, crossing, projection.rank)
    readers = [
        _narrow_part(graph, projections, end.tensor, end.axis, name, end.start, changed[end.tensor])
        for end in bond.readers
        if end.tensor in weights
    ]
    error = crossing.wide - torch.cat([reader.T for reader in readers]).to(torch.float64) @ projection.down
    return enclosed(error, crossing, projection.rank)


def enclosed(error: Tensor, crossing: Crossing, rank: int) -> Bound:
    """The size of an error (m, k) of what is read, against the least that any ``rank`` directions leave, both in float64."""
    scale = math.sqrt(crossing.output)
    achieved = float(torch.linalg.vector_norm(error @ psd_root(crossing.seen)))
    slack = (
        16
        * EPS
        * max(error.shape)
        * float(torch.linalg.vector_norm(crossing.wide))
        * math.sqrt(float(crossing.seen.trace()))
    )
    values = torch.linalg.svdvals(crossing.wide @ crossing.root)
    tail = float(torch.linalg.vector_norm(values[rank:]))
    return Bound(
        norm="read", lower=max(0.0, min(tail - slack, achieved)), achieved=achieved, upper=achieved + slack, scale=scale
    )


def _narrow_part(
    graph: BondGraph,
    projections: Mapping[str, Projection],
    tensor: str,
    axis: int,
    name: str,
    start: int,
    changed: Tensor,
) -> Tensor:
    """The entries of a narrowed tensor that one end takes hold of, as rows."""
    before = sum(
        (projections[other].rank - projections[other].size)
        for other in projections
        for end in graph.bond(other).ends
        if (end.tensor, end.axis) == (tensor, axis) and end.start < start
    )
    begin = start + before
    return changed.movedim(axis, 0)[begin : begin + projections[name].rank]


def padded(run: Run, graph: BondGraph, found: Narrowed, block: int) -> dict[str, Tensor]:
    """A block's narrower weights with zeros where nothing is left, in the shapes and the orientation that the stock model has."""
    own = {name: entry for name, entry in found.replaced.items() if run.skeleton.block_of(name) == block}
    if not own:
        return {}
    stored = load_file(run.file(narrowed_file(block)))
    instead: dict[str, Tensor] = {}
    for name, (_, names) in own.items():
        _, spec = run.checkpoint.tensors[name]
        module = module_of(run, name)
        if module in found.modules and not name.endswith(".bias"):
            entry = read_entry(found.modules[module])
            op = rebuild(entry.record, {side: stored[key] for side, key in zip(entry.shapes, names, strict=True)})
            matrix = op.dense()
            tensor = matrix.T.contiguous() if _outputs(graph, name) else matrix
        else:
            tensor = stored[next(iter(names))]
        room = [(0, whole - now) for whole, now in zip(spec.shape, tensor.shape, strict=True)]
        instead[name] = F.pad(tensor, [side for pair in reversed(room) for side in pair])
    return instead
