"""Heads that take the weights of others, from start to end: what is alike, how many share, and the checkpoint that comes out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from eckart.bonds.heads import Head, Match, by_likeness, heads_of, roots
from eckart.bound import Bound
from eckart.errors import EckartError
from eckart.model.certificate import HeadRecord, MatrixRecord
from eckart.model.compression import Share
from eckart.model.graph import graph_of
from eckart.model.narrowing import Narrowed
from eckart.model.output import Outcome, with_modules
from eckart.model.restock import pieces_of
from eckart.model.run import Run
from eckart.model.stacking import Stacks, store


def shared(run: Run, recipe: Share) -> Outcome:
    """The model whose heads share their weights: its tensors, config and records.

    Raises ``EckartError`` for an architecture or a budget with which it can't be done.
    """
    if run.request.keep is None:
        raise EckartError("a recipe that shares heads takes a share: give --keep instead of --bytes")
    if run.request.only or run.request.exclude:
        raise EckartError("--only and --exclude name matrices, and this recipe shares heads: leave them out")
    graph = graph_of(run.checkpoint)
    if not graph.blocks:
        raise EckartError(
            f"{run.checkpoint.folder}: the architecture {graph.architecture} is not declared, so its heads are not known; recipes of "
            "matrices, such as svd-llm, need none"
        )
    heads = heads_of(graph)
    _check_maps(run, heads)
    matches = _matches(run, recipe, heads)
    chosen, saved = _within_budget(run, heads, matches)
    stacks = Stacks.of(run, graph, heads, roots(matches, chosen))
    found, matrices = _stored(run, stacks)
    total = sum(target.bytes for target in run.targets)
    return Outcome(
        pieces=pieces_of(run, graph, found, frozenset()),
        config=with_modules(run.checkpoint.config, found.modules),
        matrices=tuple(matrices),
        bonds=(),
        heads=tuple(_record(heads, index, matches[index], root) for index, root in stacks.roots.items()),
        dropped=(),
        target_bytes=(total, total - saved),
        losses={},
        kept="shared",
        gap=None,
    )


def _record(heads: Sequence[Head], index: int, match: Match, root: int) -> HeadRecord:
    return HeadRecord(heads[index].name, heads[match.head].name, heads[root].name, match.likeness)


def _check_maps(run: Run, heads: Sequence[Head]) -> None:
    """Refuse weights that a module cannot hold in parts."""
    targets = {target.disk for target in run.targets}
    for head in heads:
        for end in head.weights:
            if end.tensor not in targets:
                raise EckartError(
                    f"{run.checkpoint.folder}: {end.tensor} is no plain linear map, so that {head.name} cannot be shared"
                )


def _matches(run: Run, recipe: Share, heads: Sequence[Head]) -> dict[int, Match]:
    """For every head the most similar one of an earlier block whose heads have the same sizes; of equals the earliest."""
    blocks = [[i for i, head in enumerate(heads) if head.block == block] for block in range(run.blocks)]
    found: dict[int, Match] = {}
    for block in range(1, run.blocks):

        def make(block: int = block) -> tuple[object, list[str]]:
            best: dict[int, Match] = {}
            ours = _compared(run, recipe, [heads[i] for i in blocks[block]])
            for earlier in range(block):
                if _form(run, heads, blocks[earlier]) == _form(run, heads, blocks[block]):
                    theirs = _compared(run, recipe, [heads[i] for i in blocks[earlier]])
                    for i, row in zip(blocks[block], recipe.heads.between(ours, theirs), strict=True):
                        match = Match(blocks[earlier][int(row.argmax())], float(row.max()))
                        if i not in best or match.likeness > best[i].likeness:
                            best[i] = match
            return [[i, match.head, match.likeness] for i, match in best.items()], []

        value = run.journal.once(f"alike/{block}", make)
        assert isinstance(value, list)
        found |= {i: Match(head, likeness) for i, head, likeness in value}
        run.progress("compare", block, run.blocks - 1, run.skeleton.blocks[block])
    return found


def _compared(run: Run, recipe: Share, heads: Sequence[Head]) -> Tensor:
    """What is looked at of each head as a row, in float64."""
    ends = [recipe.heads.compared(head) for head in heads]
    tensors = {name: run.checkpoint.read_finite(name) for name in sorted({end.tensor for some in ends for end in some})}
    rows = [
        [tensors[end.tensor].movedim(end.axis, 0)[end.start : end.stop].to(torch.float64).flatten() for end in some]
        for some in ends
    ]
    return torch.stack([torch.cat(row) for row in rows])


def _form(run: Run, heads: Sequence[Head], block: Sequence[int]) -> set[tuple[int, int, torch.dtype]]:
    """Sizes and dtypes of the parts of a block's heads: what can be one tensor with another's."""
    ends = [end for i in block for end in heads[i].weights]
    return {(end.axis, end.size, run.checkpoint.tensors[end.tensor][1].dtype) for end in ends}


def _within_budget(run: Run, heads: Sequence[Head], matches: Mapping[int, Match]) -> tuple[list[int], int]:
    """As few heads as bring the share, those most like their matches first, and the bytes that need not be stored for them."""
    assert run.request.keep is not None
    total = sum(target.bytes for target in run.targets)
    goal, chosen, saved = total - math.floor(run.request.keep * total), [], 0
    for index in by_likeness(matches):
        if saved >= goal:
            break
        chosen.append(index)
        for end in heads[index].weights:
            _, spec = run.checkpoint.tensors[end.tensor]
            saved += end.size * (spec.nbytes // spec.shape[end.axis])
    if saved < goal:
        share = math.ceil(1e4 * (total - saved) / total) / 1e4
        raise EckartError(
            f"--keep is {run.request.keep:g}, but where all heads share that may, those of all blocks but the first, {share:.4f} of the "
            "bytes remain: give at least that"
        )
    return chosen, saved


def _stored(run: Run, stacks: Stacks) -> tuple[Narrowed, list[MatrixRecord]]:
    """What takes the place of the weights and biases that change, and the records of the weights."""
    found, matrices = Narrowed(), []
    for block, name in enumerate(stacks.graph.blocks):
        file = f"shared-{block:04d}.safetensors"
        bounds = run.journal.once(f"share/{block}", lambda block=block, file=file: store(run, stacks, block, file))  # type: ignore[misc]
        assert isinstance(bounds, dict)
        for stack in stacks.in_block(block):
            found.modules[stack.target.name] = stacks.entry(stack)
            found.replaced[stack.target.disk] = file, {own: own for own in stacks.own(stack)}
            told = [Bound.from_json(bound) for bound in bounds[stack.target.disk]]
            matrices.append(stacks.record(stack, told))
        found.replaced |= {bias: (file, {bias: bias}) for bias in stacks.biases(block)}
        run.progress("share", block + 1, run.blocks, name)
    return found, matrices
