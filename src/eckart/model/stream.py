"""A narrower residual stream: one rotation onto its principal directions, and everything that meets there in that basis."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from safetensors.torch import load_file
from torch import Tensor

from eckart.allocate.slots import Rank
from eckart.bonds import BondGraph, Projection, fold_norm, narrow
from eckart.bonds.crossing import Crossing
from eckart.bound import Bound
from eckart.model.certificate import BondRecord
from eckart.model.narrowing import Narrowed, module_of, narrowed_file
from eckart.model.run import Run
from eckart.model.sites import Site
from eckart.model.survey import embed_original, original
from eckart.model.tensorfile import write_all

FILE = "stream.safetensors"


def narrow_stream(run: Run, graph: BondGraph, site: Site, rank: Rank) -> Narrowed:
    """Project the stream, and with it all that writes and reads it, block by block; a head that is tied to the embedding is untied.

    Norms hand their scales on to the maps behind them first: between these and the stream they only normalise, which no rotation notices.
    """
    found = Narrowed()
    if rank is None:
        return found
    (bond,) = site.bonds
    moment = _moment(run, graph, bond.norms, found) if site.choice.needs else None
    crossing = Crossing((), torch.eye(bond.size, dtype=torch.float64), moment)

    def decide() -> tuple[object, list[str]]:
        projection = site.prepare(bond.name, crossing).projection(rank).filled(rank)
        write_all(run.file(FILE), {"down": projection.down.contiguous(), "up": projection.up.contiguous()})
        kept = None if projection.kept is None else tuple(projection.kept.tolist())
        bound = None if moment is None else left_out_bound(crossing, projection)
        return BondRecord(bond.name, bond.size, rank, kept, bound).to_json(), [FILE]

    record = run.journal.once("stream/decide", decide)
    assert isinstance(record, dict)
    found.records.append(BondRecord.from_json(record))
    stored = load_file(run.file(FILE))
    projection = Projection(stored["down"], stored["up"])
    for block in [*range(run.blocks), None]:

        def make(block: int | None = block) -> tuple[object, list[str]]:
            table = in_basis(run, graph, block, {bond.name: projection})
            write_all(run.file(narrowed_file(block)), table)
            names = {name: [name] for name in table}
            return {"bonds": [], "modules": {}, "tensors": names}, [narrowed_file(block)]

        found.add(run.journal.once(f"stream/narrow/{block}", make), narrowed_file(block))
        run.progress("narrow", run.blocks + 1 if block is None else block + 1, run.blocks + 1, "stream")
    return found


def _moment(run: Run, graph: BondGraph, norms: tuple[str, ...], found: Narrowed) -> Tensor:
    """``mean x x^T`` over what all norms are given, float64."""
    walk, journal = run.walking(), run.journal
    embed_original(run)
    names = {norm: module_of(run, graph.norms[norm].weight) for norm in norms}
    size = graph.norms[norms[0]].size
    for block in range(run.blocks):
        inside = [m for norm, m in names.items() if run.skeleton.block_of(graph.norms[norm].weight) == block]
        before, after = _summed(block), _summed(block + 1)

        def make(
            block: int = block, inside: list[str] = inside, before: str = before, after: str = after
        ) -> tuple[object, list[str]]:
            seen = walk.run_block(
                block, run.file(original(block)), run.file(original(block + 1)), observe=inside, gram=True
            )
            total = load_file(run.file(before))["gram"] if block else torch.zeros(size, size, dtype=torch.float64)
            for module in inside:
                gram = seen[module].gram
                assert gram is not None
                total += gram
            write_all(run.file(after), {"gram": total})
            return None, [after, original(block + 1)]

        journal.once(f"stream/moment/{block}", make)
        journal.drop(original(block))
        if block:
            journal.drop(before)
        run.progress("measure", block + 1, run.blocks, run.skeleton.blocks[block])

    def finish() -> tuple[object, list[str]]:
        outside = [m for norm, m in names.items() if run.skeleton.block_of(graph.norms[norm].weight) is None]
        loss, seen = walk.tail(run.file(original(run.blocks)), observe=outside, gram=True)
        total = load_file(run.file(_summed(run.blocks)))["gram"]
        for module in outside:
            gram = seen[module].gram
            assert gram is not None
            total += gram
        write_all(run.file("moment.safetensors"), {"mean": total / (len(norms) * walk.windows.numel())})
        return loss, ["moment.safetensors"]

    loss = journal.once("stream/moment", finish)
    assert isinstance(loss, float)
    found.losses = {"original": loss}
    return load_file(run.file("moment.safetensors"))["mean"]


def _summed(block: int) -> str:
    return f"moment-{block:04d}.safetensors"


def left_out_bound(crossing: Crossing, projection: Projection) -> Bound:
    """The root mean square of what the projection leaves out of the stream, against the least that so many directions can."""
    error = (crossing.wide - projection.up @ projection.down) @ crossing.root
    achieved = float(torch.linalg.vector_norm(error))
    values = torch.linalg.svdvals(crossing.root)
    scale = math.sqrt(crossing.output)
    slack = 16 * crossing.size * torch.finfo(torch.float64).eps * scale
    lower = float(torch.linalg.vector_norm(values[projection.rank :]))
    return Bound(
        norm="read",
        lower=max(0.0, min(lower - slack, achieved)),
        achieved=achieved,
        upper=achieved + slack,
        scale=scale,
    )


def in_basis(run: Run, graph: BondGraph, block: int | None, projections: Mapping[str, Projection]) -> dict[str, Tensor]:
    """The weights of a block with its norms folded, and what meets in the stream projected: one bond, or one for each of its stretches."""
    stored = {name: run.checkpoint.read_finite(name) for name in run.skeleton.names_in(block)}
    tensors = dict(stored)
    for copy, source in run.skeleton.ties.items():  # the head, where it was only a name for the embedding
        if source in stored and copy not in stored:
            tensors[copy] = stored[source]
    wide = {name: tensor.to(torch.float64) for name, tensor in tensors.items()}
    part = graph.within(wide)
    here = {name: projection for name, projection in projections.items() if name in part.bonds}
    norms = [norm for name in here for norm in part.bond(name).norms]
    for norm in norms:
        wide |= fold_norm(part, norm, wide)
    wide |= narrow(part, here, wide)
    met = {end.tensor for name in here for end in part.bond(name).ends} | {part.norms[norm].weight for norm in norms}
    return {name: wide[name].to(tensors[name].dtype) for name in tensors if name in met}
