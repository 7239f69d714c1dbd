"""The first pass over a model: how each matrix's error falls with its rank, and what that error costs the loss."""

from __future__ import annotations

from collections.abc import Iterator

from safetensors.torch import load_file
from torch import Tensor

from eckart.allocate import AnySlot
from eckart.allocate.slots import Rank
from eckart.model.gradients import GradientWatch
from eckart.model.run import Run, columns_file, observed, observed_name
from eckart.model.targets import Target
from eckart.model.tensorfile import write_all
from eckart.model.workers import side_by_side
from eckart.stats import Moments, Need


def original(index: int) -> str:
    """The work file of the original model's hidden states before block ``index`` (after the last one: the number of blocks)."""
    return f"original-{index:04d}.bin"


def embed_original(run: Run) -> None:
    """Write what the first block is given."""

    def make() -> tuple[object, list[str]]:
        run.walking().embed(run.file(original(0)))
        return None, [original(0)]

    if run.journal.is_done("embed"):
        run.walking().prepare()
    run.journal.once("embed", make)


def survey(run: Run) -> tuple[dict[str, AnySlot], float]:
    """Slots with expected losses for every target, and the original model's loss on the calibration windows.

    The loss that an error E of one map is expected to add, in nats per token, is ``mean ||d||^2 / (2 m) * mean ||E x||^2``: d is
    the gradient of the summed loss, with labels drawn from the model, at the map's m outputs, so that ``mean d d^T``
    is their Fisher matrix, here taken as a multiple of the identity. A metric of another kind is brought to the same scale
    by the energy of the inputs.
    """
    scales = measure_curves(run)
    loss, gradients = backward(run)
    slots: dict[str, AnySlot] = {}
    for block in [*range(run.blocks), None]:
        curves = load_file(run.file(_curves(block))) if run.in_block(block) else {}
        for target in run.in_block(block):
            outputs = target.shape[1] if target.looked_up and not target.twins else target.shape[0]
            weight = 0.5 * gradients[target.name] / outputs * scales[target.name]
            slots[target.name] = target.slot(run.matrices.approx, weight * curves[target.name])
    return slots, loss


def _curves(block: int | None) -> str:
    return f"curves-{'outside' if block is None else format(block, '04d')}.safetensors"


def _measure(run: Run, block: int | None, moments: dict[str, Moments]) -> dict[str, float]:
    """Write the curves of a block's targets; mean ``||x||^2`` over ``||R||_F^2`` for each."""
    curves: dict[str, Tensor] = {}
    scales: dict[str, float] = {}
    metrics = run.metrics(run.in_block(block), moments)
    targets = run.in_block(block)

    def curve(target: Target) -> Tensor:
        return run.matrices.approx.curve(run.weight(target), metrics[target.name]).cpu()

    for target, measured in zip(targets, side_by_side(curve, targets), strict=True):
        metric = metrics[target.name]
        curves[target.name] = measured
        seen = moments.get(observed_name(target))
        # One entry of a looked-up embedding's one-hot input is 1; a map that is never called costs nothing.
        energy = (1.0 if target.looked_up else 0.0) if seen is None else seen.energy / run.walking().windows.numel()
        width = target.shape[0] if seen is None and target.looked_up else target.shape[1]
        scales[target.name] = energy / metric.size(width)
    write_all(run.file(_curves(block)), curves)
    return scales


def measure_curves(run: Run) -> dict[str, float]:
    """Take every block's statistics on the original model; write the curves, give mean ``||x||^2`` over ``||R||_F^2``."""
    _undo_dropped(run)
    embed_original(run)
    walk, journal = run.walking(), run.journal
    scales: dict[str, float] = {}
    for block in range(run.blocks):

        def make(block: int = block) -> tuple[object, list[str]]:
            names = observed(run.in_block(block))
            source, out = run.file(original(block)), run.file(original(block + 1))
            moments = walk.run_block(block, source, out, observe=names, gram=run.wants_gram)
            return _measure(run, block, moments), [original(block + 1), _curves(block)]

        scales |= _table(journal.once(f"survey/forward-{block}", make))
        run.progress("measure", block + 1, run.blocks, run.skeleton.blocks[block])
    if run.in_block(None):

        def outside() -> tuple[object, list[str]]:
            names = observed(run.in_block(None))
            _, moments = walk.tail(run.file(original(run.blocks)), observe=names, gram=run.wants_gram)
            return _measure(run, None, moments), [_curves(None)]

        scales |= _table(journal.once("survey/outside", outside))
    return scales


def spectra(run: Run) -> Iterator[tuple[Target, Tensor]]:
    """How the squared error of every target falls with its rank, in the recipe's metric."""
    if run.walk is not None:
        measure_curves(run)
    for block in [*range(run.blocks), None]:
        if run.in_block(block):
            if run.walk is None:
                run.journal.once(f"spectra/{block}", lambda block=block: (_measure(run, block, {}), [_curves(block)]))  # type: ignore[misc]
            curves = load_file(run.file(_curves(block)))
            yield from ((target, curves[target.name]) for target in run.in_block(block))


def _undo_dropped(run: Run) -> None:
    """Begin the forward pass anew where its next input is gone: a run without curves came further and dropped it."""
    steps = [f"survey/forward-{block}" for block in range(run.blocks)]
    missing = next((block for block, step in enumerate(steps) if not run.journal.is_done(step)), None)
    if missing is not None and not run.file(original(missing)).exists():
        for step in ["embed", *steps]:
            run.journal.undo(step)


def measure_columns(run: Run) -> None:
    """Write, for every matrix, how the loss answers to each column of it, as ``Run.metrics`` reads it.

    A forward pass that keeps the states before all blocks, and the backward pass, before any metric is known.
    """
    embed_original(run)
    for block in range(run.blocks):

        def make(block: int = block) -> tuple[object, list[str]]:
            run.walking().run_block(block, run.file(original(block)), run.file(original(block + 1)))
            return None, [original(block + 1)]

        run.journal.once(f"columns/forward-{block}", make)
        run.progress("forward", block + 1, run.blocks, run.skeleton.blocks[block])
    backward(run)


def backward(run: Run) -> tuple[float, dict[str, float]]:
    """The loss, and by name for every target the mean squared gradient at its outputs; writes those of columns where they are needed."""
    walk, journal, last = run.walking(), run.journal, run.blocks
    columns = Need.GRADIENTS in run.recipe.needs

    def noted(watch: GradientWatch, block: int | None) -> tuple[object, list[str]]:
        below = [_gradient(last if block is None else block)]
        if not columns:
            return watch.squares, below
        write_all(run.file(columns_file(block)), {name: found.cpu() for name, found in watch.columns.items()})
        return watch.squares, [*below, columns_file(block)]

    loss = journal.once("survey/loss", lambda: (walk.tail(run.file(original(last)))[0], []))
    assert isinstance(loss, float)

    def start() -> tuple[object, list[str]]:
        heads = observed(run.in_block(None))
        here, there = run.file(original(last)), run.file(_gradient(last))
        return noted(walk.loss_gradient(here, there, run.rng("labels"), heads, columns=columns), None)

    sums = _table(journal.once("survey/gradient", start))
    for block in reversed(range(run.blocks)):

        def make(block: int = block) -> tuple[object, list[str]]:
            above, below = run.file(_gradient(block + 1)), run.file(_gradient(block))
            names = observed(run.in_block(block))
            here = run.file(original(block))
            return noted(walk.back_block(block, here, above, below, names, columns=columns), block)

        sums |= _table(journal.once(f"survey/backward-{block}", make))
        journal.drop(_gradient(block + 1))
        run.progress("sensitivity", last - block, last, run.skeleton.blocks[block])

    def at_input() -> tuple[object, list[str]]:
        return walk.mean_square(run.file(_gradient(0))), []

    bottom = journal.once("survey/input-gradient", at_input)
    journal.drop(_gradient(0))
    assert isinstance(bottom, float)
    tokens = walk.windows.numel()
    return loss, {t.name: _mean_square_gradient(t, sums, tokens, bottom) for t in run.targets}


def _mean_square_gradient(target: Target, sums: dict[str, float], tokens: int, bottom: float) -> float:
    name = observed_name(target)
    return sums[name] / tokens if name in sums else bottom  # what an embedding gives is the first block's input


def _gradient(index: int) -> str:
    return f"gradient-{index:04d}.bin"


def _table(value: object) -> dict[str, float]:
    assert isinstance(value, dict)
    return value


def predicted_error(run: Run, target: Target, rank: Rank) -> float:
    """The relative error that a rank will give, in the recipe's metric; ``measure_curves`` comes before."""
    if rank is None:
        return 0.0
    if run.walk is None:
        weight, metric = run.weight(target), run.metrics([target], {})[target.name]
        scale = metric.norm(weight)
        error = (
            run.matrices.approx.prepare(weight, metric).error(rank, run.rng(f"{target.name}/norm")) if scale else 0.0
        )
        return error / scale if scale else 0.0
    curve = load_file(run.file(_curves(target.block)))[target.name]
    return float((curve[rank] / curve[0]).sqrt()) if curve[0] > 0 else 0.0
