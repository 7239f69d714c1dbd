"""From narrower weights to a checkpoint: what tensors are called, what the config says, and in which files they lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eckart.allocate.slots import Rank
from eckart.bonds import BondGraph
from eckart.errors import EckartError
from eckart.model.layout import Piece
from eckart.model.narrowing import Narrowed
from eckart.model.run import Run
from eckart.model.sites import GROUPS, STREAM, Site
from eckart.model.tensorfile import TensorFile, TensorSpec

PER_BLOCK = ("layer_types",)  # entries of a config that list something for every block


class Names:
    """What tensors and modules are called when some blocks are left out and the others close up.

    >>> names = Names([["h.0", "h.1", "h.2"]], frozenset({1}))
    >>> names.of("h.2.mlp.weight"), names.of("wte.weight")
    ('h.1.mlp.weight', 'wte.weight')
    """

    def __init__(self, blocks: Sequence[Sequence[str]], dropped: frozenset[int]) -> None:
        self._new: dict[str, str] = {}
        for spelling in blocks:
            kept = [name for index, name in enumerate(spelling) if index not in dropped]
            self._new |= dict(zip(kept, spelling, strict=False))

    def of(self, name: str) -> str:
        """The new name."""
        block = next((block for block in self._new if name.startswith(f"{block}.")), None)
        return name if block is None else self._new[block] + name.removeprefix(block)


def pieces_of(run: Run, graph: BondGraph, found: Narrowed, dropped: frozenset[int]) -> dict[str, list[Piece]]:
    """For each weight file of the source what the result's file of the same name holds."""
    names = Names((graph.blocks, run.skeleton.blocks), dropped)
    opened: dict[str, TensorFile] = {}

    def made(source: str) -> list[Piece]:
        file, keys = found.replaced[source]
        specs = opened.setdefault(file, TensorFile(run.file(file))).specs
        return [
            Piece(TensorSpec(names.of(name), specs[key].dtype, specs[key].shape), made=(file, key))
            for name, key in keys.items()
        ]

    untied = {source: copy for copy, source in run.skeleton.ties.items() if copy in found.replaced}
    pieces: dict[str, list[Piece]] = {}
    for file in run.checkpoint.files:
        table = pieces.setdefault(file, [])
        for spec in run.checkpoint.specs(file):
            if run.skeleton.block_of(spec.name) in dropped:
                continue
            if spec.name in found.replaced:
                table += made(spec.name)
                copy = untied.get(spec.name)
                if copy is not None and copy not in run.checkpoint.tensors:
                    table += made(copy)
            else:
                table.append(Piece(TensorSpec(names.of(spec.name), spec.dtype, spec.shape), source=spec.name))
    return {file: table for file, table in pieces.items() if table}


def config_of(
    run: Run,
    graph: BondGraph,
    sites: Sequence[Site],
    ranks: Mapping[str, Rank],
    found: Narrowed,
    dropped: frozenset[int],
) -> dict[str, object]:
    """The config of the narrower model.

    Raises ``EckartError`` where blocks are left out of an architecture whose config is not declared to say so.
    """
    config = dict(run.checkpoint.config)
    if dropped:
        if "blocks" not in graph.sizes:
            raise EckartError(f"how a config of {graph.architecture} counts its blocks is not declared")
        config[graph.sizes["blocks"]] = run.blocks - len(dropped)
        for key in PER_BLOCK:
            listed = config.get(key)
            if isinstance(listed, list) and len(listed) == run.blocks:
                config[key] = [entry for index, entry in enumerate(listed) if index not in dropped]
    for site in sites:
        rank = ranks[site.name]
        if rank is None or not site.stock or any(bond.name in found.resized for bond in site.bonds):
            continue
        config[graph.sizes[site.kind]] = rank
        model = run.skeleton.model.config
        if site.kind == GROUPS:
            config[graph.sizes["head"]] = sum(end.size for end in site.heads[0].values if not end.reads)
            config[graph.sizes["heads"]] = model.num_attention_heads // site.units * rank
        if site.kind == STREAM:
            config[graph.sizes["head"]] = (
                getattr(model, graph.sizes["head"], None) or model.hidden_size // model.num_attention_heads
            )
            config[graph.sizes["eps"]] = getattr(model, graph.sizes["eps"]) * site.units / rank
            config["tie_word_embeddings"] = False
    return config
