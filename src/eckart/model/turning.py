"""A stream that is narrower at every norm in directions of its own, and the links that take it from those of one to those of the next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from eckart.allocate.slots import Rank
from eckart.bonds import BondGraph, Projection
from eckart.bonds.crossing import Crossing
from eckart.bonds.stages import Stage, linked, staged, stages
from eckart.model.certificate import BondRecord
from eckart.model.linked import without
from eckart.model.narrowing import Narrowed, module_of, narrowed_file
from eckart.model.passing import pass_through
from eckart.model.run import Run
from eckart.model.sites import Site
from eckart.model.stream import in_basis, left_out_bound
from eckart.model.survey import embed_original
from eckart.model.tensorfile import write_all
from eckart.stats import Moments


def narrow_at_norms(run: Run, graph: BondGraph, site: Site, rank: Rank) -> Narrowed:
    """Decide at every norm which directions of the stream go on, and store all maps in those that they meet.

    Where the recipe takes the compressed model's statistics, every norm sees a stream that lost directions at all norms before it.
    """
    found = Narrowed()
    if rank is None:
        return found
    chain = stages(graph, site.bonds[0].name)
    embed_original(run)

    def fit(block: int, source: Path, there: Path) -> None:
        def make() -> tuple[object, list[str]]:
            own = [index for index, stage in enumerate(chain) if stage.block == block]
            done: list[int] = []
            records = []
            for index in own:
                with without(run.skeleton.model, _cuts(run, graph, chain, done)):
                    norm = _module(run, graph, chain[index])
                    seen = run.walking().run_block(block, source, None, observe=[norm], gram=True)
                records.append(_decide(run, site, chain, index, rank, seen[norm]))
                done.append(index)
            with without(run.skeleton.model, _cuts(run, graph, chain, done)):
                run.walking().run_block(block, source, there)
            return records, [there.name, *map(_file, own)]

        _take(found, run.journal.once(f"turn/{block}", make))

    last = pass_through(run, range(run.blocks), lambda block: f"turned-{block:04d}.bin", fit, "narrow")

    def finish() -> tuple[object, list[str]]:
        at, walk, source = len(chain) - 1, run.walking(), run.file(last)
        norm = _module(run, graph, chain[at])
        loss, seen = walk.tail(source, observe=[norm], gram=True)
        record = _decide(run, site, chain, at, rank, seen[norm])
        with without(run.skeleton.model, _cuts(run, graph, chain, [at])):
            loss = walk.tail(source)[0] if run.sequential else loss
        return [record, loss], [_file(at)]

    value = run.journal.once("turn/last", finish)
    run.journal.drop(last)
    assert isinstance(value, list)
    *records, loss = value
    _take(found, records)
    found.losses = {"narrowed" if run.sequential else "original": loss}
    _store(run, graph, site, chain, found)
    return found


def _take(found: Narrowed, records: object) -> None:
    assert isinstance(records, list)
    found.records += [BondRecord.from_json(record) for record in records]


def _file(index: int) -> str:
    """The work file of a stretch: its directions, and the link that leads to it."""
    return f"stage-{index:04d}.safetensors"


def _projection(run: Run, index: int) -> Projection:
    stored = load_file(run.file(_file(index)))
    return Projection(stored["down"], stored["up"])


def _module(run: Run, graph: BondGraph, stage: Stage) -> str:
    return module_of(run, graph.norms[stage.norm].weight)


def _writer(run: Run, graph: BondGraph, stage: Stage) -> str | None:
    return None if stage.writer is None else module_of(run, graph.maps[stage.writer].weight)


def _cuts(
    run: Run, graph: BondGraph, chain: Sequence[Stage], done: Sequence[int]
) -> list[tuple[str, str | None, Tensor]]:
    """What stretches that are decided leave out, where the statistics are to be those of the narrower model."""
    cuts = []
    for index in done if run.sequential else ():
        up = _projection(run, index).up
        rest = torch.linalg.qr(up, mode="complete").Q[:, up.shape[1] :].float().to(run.skeleton.device)
        cuts.append((_module(run, graph, chain[index]), _writer(run, graph, chain[index]), rest))
    return cuts


def _decide(run: Run, site: Site, chain: Sequence[Stage], index: int, rank: int, seen: Moments) -> dict[str, object]:
    """Choose the directions of one stretch, write them with the link from the one before, and say what they leave out."""
    bond = chain[index].bond
    assert seen.gram is not None
    moment = (seen.gram / max(1, seen.count)).cpu()
    crossing = Crossing((), torch.eye(bond.size, dtype=torch.float64), moment)
    projection = site.prepare(bond.name, crossing).projection(rank).filled(rank)
    kept = None if projection.kept is None else tuple(projection.kept.tolist())
    bound = left_out_bound(crossing, projection)
    stored: dict[str, Tensor] = {}
    if index:
        projection, stored["link"] = linked(_projection(run, index - 1), projection)
    stored |= {"down": projection.down, "up": projection.up}
    write_all(run.file(_file(index)), {name: tensor.contiguous() for name, tensor in stored.items()})
    return BondRecord(bond.name, bond.size, rank, kept, bound).to_json()


def _store(run: Run, graph: BondGraph, site: Site, chain: Sequence[Stage], found: Narrowed) -> None:
    """Write the narrower weights block by block, a link beside each map that ends a stretch."""
    cut = staged(graph, site.bonds[0].name, chain)
    projections = {stage.bond.name: _projection(run, index) for index, stage in enumerate(chain)}
    noting = {graph.norms[stage.norm].weight for stage in chain[:-1]}
    writers = {stage.writer: index + 1 for index, stage in enumerate(chain) if stage.writer is not None}
    for block in [*range(run.blocks), None]:

        def make(block: int | None = block) -> tuple[object, list[str]]:
            table = in_basis(run, cut, block, projections)
            names = {name: [name] for name in table}
            for name in noting & set(table):
                table[name] = table[name][:1]
            for writer, index in writers.items():
                weight = graph.maps[writer].weight
                if weight in names:
                    link = load_file(run.file(_file(index)))["link"]
                    table[f"{writer}.link"] = link.to(table[weight].dtype)
                    names[weight].append(f"{writer}.link")
            write_all(run.file(narrowed_file(block)), {name: tensor.contiguous() for name, tensor in table.items()})
            return {"bonds": [], "modules": {}, "tensors": names}, [narrowed_file(block)]

        found.add(run.journal.once(f"turn/narrow/{block}", make), narrowed_file(block))
        run.progress("store", run.blocks + 1 if block is None else block + 1, run.blocks + 1, "stream")
    for index, stage in enumerate(chain[:-1]):
        shape = list(load_file(run.file(_file(index + 1)))["link"].shape)
        found.links[str(_writer(run, graph, stage))] = {"norm": _module(run, graph, stage), "shape": shape}
