"""The second pass: every target fitted at its rank, and the loss of what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from safetensors.torch import load_file
from torch import Generator, Tensor

from eckart.allocate.slots import Rank
from eckart.bound import Bound
from eckart.linalg import spectral_norm
from eckart.metric import Metric
from eckart.model.layout import factors_file
from eckart.model.run import Run, observed
from eckart.model.survey import embed_original, original
from eckart.model.targets import Target
from eckart.model.tensorfile import write_all
from eckart.model.workers import side_by_side
from eckart.operator import Operator, describe, in_dtype, rebuild
from eckart.stats import Moments

Ranks = Mapping[str, Rank]


@dataclass(frozen=True)
class Fitted:
    """All targets fitted at one choice of ranks: their bounds, and the loss on the calibration windows if it was measured."""

    label: str
    ranks: Ranks
    bounds: Mapping[str, tuple[Bound, ...]]
    loss: float | None


def fit_all(run: Run, candidates: Mapping[str, Ranks]) -> list[Fitted]:
    """Fit every candidate choice of ranks; their losses are measured only if there is more than one to choose from."""
    if run.walk is None:
        return [_fit_without_text(run, label, ranks) for label, ranks in candidates.items()]
    embed_original(run)
    if run.sequential:
        return [_fit_in_sequence(run, label, ranks, judge=len(candidates) > 1) for label, ranks in candidates.items()]
    bounds = _fit_on_original(run, candidates)
    losses = {
        label: _loss_of(run, label, ranks) if len(candidates) > 1 else None for label, ranks in candidates.items()
    }
    return [Fitted(label, ranks, bounds[label], losses[label]) for label, ranks in candidates.items()]


def _fit_block(
    run: Run, block: int | None, candidates: Mapping[str, Ranks], moments: dict[str, Moments]
) -> tuple[object, list[str]]:
    """Fit a block's targets for every candidate; writes their factors, gives their bounds as JSON."""
    targets = run.in_block(block)
    metrics = run.metrics(targets, moments)
    records: dict[str, dict[str, object]] = {label: {} for label in candidates}
    tensors: dict[str, dict[str, Tensor]] = {label: {} for label in candidates}
    spectral = not run.request.quick

    def fit(target: Target) -> dict[str, tuple[Operator | None, tuple[Bound, ...]]]:
        weight = run.weight(target)
        prepared = run.matrices.approx.prepare(weight, metrics[target.name])
        found: dict[str, tuple[Operator | None, tuple[Bound, ...]]] = {}
        for label, ranks in candidates.items():
            rank, rng = ranks[target.name], run.rng(f"{target.name}/norm")
            if rank is None:
                found[label] = None, exact_bounds(weight, rng, spectral=spectral)
            else:
                fitted = prepared.fit(rank, dtype=target.dtype, rng=rng, spectral=spectral)
                found[label] = fitted.op, fitted.bounds
        return found

    for target, found in zip(targets, side_by_side(fit, targets), strict=True):
        for label, (op, bounds) in found.items():
            records[label][target.name] = [bound.to_json() for bound in bounds]
            for name, tensor in op.tensors().items() if op else ():
                tensors[label][f"{target.name}:{name}"] = tensor.cpu()
        run.progress("fit", run.targets.index(target) + 1, len(run.targets), target.name)
    for label, table in tensors.items():
        write_all(run.file(factors_file(label, block)), table)
    return records, [factors_file(label, block) for label in candidates]


def exact_bounds(weight: Tensor, rng: Generator, *, spectral: bool) -> tuple[Bound, ...]:
    """The bounds of a matrix that is stored as it was."""
    scales = {"frobenius": Metric.plain().norm(weight)}
    if spectral:
        scales["spectral"] = spectral_norm(weight, rng).value
    return tuple(Bound(norm=name, lower=0.0, achieved=0.0, upper=0.0, scale=scale) for name, scale in scales.items())


def _bounds(value: object, label: str) -> dict[str, tuple[Bound, ...]]:
    assert isinstance(value, dict)
    return {name: tuple(Bound.from_json(entry) for entry in entries) for name, entries in value[label].items()}


def _fit_without_text(run: Run, label: str, ranks: Ranks) -> Fitted:
    bounds: dict[str, tuple[Bound, ...]] = {}
    for block in [*range(run.blocks), None]:
        if run.in_block(block):
            step = f"fit/{label}/{'outside' if block is None else block}"
            value = run.journal.once(step, lambda block=block: _fit_block(run, block, {label: ranks}, {}))  # type: ignore[misc]
            bounds |= _bounds(value, label)
    return Fitted(label, ranks, bounds, None)


def _fit_on_original(run: Run, candidates: Mapping[str, Ranks]) -> dict[str, dict[str, tuple[Bound, ...]]]:
    """Fit all candidates at once, each block on the original model's activations."""
    walk, journal = run.walking(), run.journal
    surveyed = journal.is_done("survey/input-gradient")
    bounds: dict[str, dict[str, tuple[Bound, ...]]] = {label: {} for label in candidates}
    for block in range(run.blocks):

        def make(block: int = block) -> tuple[object, list[str]]:
            out = None if surveyed else run.file(original(block + 1))
            names = observed(run.in_block(block))
            moments = walk.run_block(block, run.file(original(block)), out, observe=names, gram=run.wants_gram)
            value, files = _fit_block(run, block, candidates, moments)
            return value, files if surveyed else [*files, original(block + 1)]

        value = journal.once(f"fit/original-{block}", make)
        if block > 0 or len(candidates) == 1:  # the first block's input serves every candidate's own walk
            journal.drop(original(block))
        for label in candidates:
            bounds[label] |= _bounds(value, label)
    if run.in_block(None):

        def outside() -> tuple[object, list[str]]:
            names = observed(run.in_block(None))
            _, moments = walk.tail(run.file(original(run.blocks)), observe=names, gram=run.wants_gram)
            return _fit_block(run, None, candidates, moments)

        value = journal.once("fit/original-outside", outside)
        for label in candidates:
            bounds[label] |= _bounds(value, label)
    journal.drop(original(run.blocks))
    return bounds


def products(run: Run, label: str, ranks: Ranks, block: int | None) -> dict[str, Tensor]:
    """The approximated weights of a block, multiplied out in float32 and oriented as on disk."""
    path = run.file(factors_file(label, block))
    if not run.in_block(block):
        return {}
    tensors = load_file(path)
    found: dict[str, Tensor] = {}
    for target in run.in_block(block):
        form = target.form(run.matrices.approx, ranks[target.name])
        if form is not None:
            op = rebuild(describe(form), {side: tensors[f"{target.name}:{side}"] for side in form.tensors()})
            found[target.disk] = target.stored(in_dtype(op, torch.float32).dense())
    return found


def _own(label: str, index: int) -> str:
    return f"{label}-{index:04d}.bin"


def _start(run: Run, label: str, ranks: Ranks) -> str:
    """The work file that the first block is given under a choice of ranks: its own only where an embedding changed."""
    changed = any(t.looked_up and ranks[t.name] is not None for t in run.in_block(None))
    if not changed:
        return original(0)

    def make() -> tuple[object, list[str]]:
        run.walking().embed(run.file(_own(label, 0)), instead=products(run, label, ranks, None))
        return None, [_own(label, 0)]

    run.journal.once(f"judge/{label}/embed", make)
    return _own(label, 0)


def _loss_of(run: Run, label: str, ranks: Ranks) -> float:
    """The loss of the fitted model, walked block by block."""
    walk, journal = run.walking(), run.journal
    source = _start(run, label, ranks)
    for block in range(run.blocks):

        def make(block: int = block, source: str = source) -> tuple[object, list[str]]:
            instead = products(run, label, ranks, block)
            walk.run_block(block, run.file(source), run.file(_own(label, block + 1)), instead=instead)
            return None, [_own(label, block + 1)]

        journal.once(f"judge/{label}/{block}", make)
        if source != original(0):
            journal.drop(source)
        source = _own(label, block + 1)
        run.progress(f"loss with {label} ranks", block + 1, run.blocks, run.skeleton.blocks[block])
    loss = journal.once(
        f"judge/{label}/loss",
        lambda: (walk.tail(run.file(source), instead=products(run, label, ranks, None))[0], []),
    )
    journal.drop(source)
    assert isinstance(loss, float)
    return loss


def _fit_in_sequence(run: Run, label: str, ranks: Ranks, *, judge: bool) -> Fitted:
    """Fit one candidate, each block on what the compressed blocks before it give."""
    walk, journal = run.walking(), run.journal
    bounds: dict[str, tuple[Bound, ...]] = {}
    source = original(0)
    for block in range(run.blocks):

        def make(block: int = block, source: str = source) -> tuple[object, list[str]]:
            names = observed(run.in_block(block))
            moments = walk.run_block(block, run.file(source), None, observe=names, gram=run.wants_gram)
            return _fit_block(run, block, {label: ranks}, moments)

        def advance(block: int = block, source: str = source) -> tuple[object, list[str]]:
            instead = products(run, label, ranks, block)
            walk.run_block(block, run.file(source), run.file(_own(label, block + 1)), instead=instead)
            return None, [_own(label, block + 1)]

        bounds |= _bounds(journal.once(f"fit/{label}/{block}", make), label)
        journal.once(f"advance/{label}/{block}", advance)
        if source != original(0):
            journal.drop(source)
        source = _own(label, block + 1)

    def outside() -> tuple[object, list[str]]:
        _, moments = walk.tail(run.file(source), observe=observed(run.in_block(None)), gram=run.wants_gram)
        return _fit_block(run, None, {label: ranks}, moments)

    if run.in_block(None):
        bounds |= _bounds(journal.once(f"fit/{label}/outside", outside), label)
    loss: object = None
    if judge:
        loss = journal.once(
            f"judge/{label}/loss",
            lambda: (walk.tail(run.file(source), instead=products(run, label, ranks, None))[0], []),
        )
    journal.drop(source)
    return Fitted(label, ranks, bounds, loss if isinstance(loss, float) else None)
