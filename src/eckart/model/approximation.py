"""Every matrix approximated by itself: ranks within the budget, fits, and the better choice of ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from eckart.allocate import Allocation, Allocator, AnySlot, Uniform, smallest, total_bytes
from eckart.allocate.slots import BudgetError, Rank
from eckart.errors import EckartError
from eckart.model import certificate
from eckart.model.certificate import MatrixRecord
from eckart.model.fitting import Fitted, fit_all
from eckart.model.graph import graph_of, kinds_of
from eckart.model.influence import block_influence
from eckart.model.layout import Forms, layout, modules_entry
from eckart.model.output import Outcome, with_modules
from eckart.model.run import Run
from eckart.model.survey import spectra, survey
from eckart.stats import Need

HEADER_ROUNDS = 6


def choose_ranks(run: Run) -> tuple[dict[str, Mapping[str, Rank]], float | None, dict[str, float]]:
    """The choices of ranks to fit, the preferred one first; the gap of the preferred one; losses known so far."""
    approx = run.matrices.approx
    slots = {target.name: target.slot(approx) for target in run.targets}
    if Need.SPECTRA in run.matrices.allocate.needs:
        slots = {target.name: target.slot(approx, curve) for target, curve in spectra(run)}
    if Need.INFLUENCE in run.matrices.allocate.needs:
        influence: dict[int | None, float] = dict(enumerate(block_influence(run)))
        slots = {name: replace(slot, importance=influence.get(slot.block)) for name, slot in slots.items()}
    if Need.KINDS in run.matrices.allocate.needs:
        kinds = kinds_of(graph_of(run.checkpoint))
        slots = {target.name: replace(slots[target.name], kind=kinds.get(target.disk)) for target in run.targets}
    if Need.SENSITIVITY not in run.matrices.allocate.needs:
        own = _within_budget(run, run.matrices.allocate, slots)
        return {type(run.matrices.allocate).__name__.lower(): own.ranks}, own.gap, {}
    priced, loss = survey(run)
    uniform = _within_budget(run, Uniform(), slots)
    allocated = _within_budget(run, run.matrices.allocate, priced)
    return {"allocated": allocated.ranks, "uniform": uniform.ranks}, allocated.gap, {"original": loss}


def _within_budget(run: Run, allocate: Allocator, slots: Mapping[str, AnySlot]) -> Allocation:
    """Allocate so that the bytes of the targets, or those of the files with their headers, stay within the request."""
    total = sum(slot.dense_bytes for slot in slots.values())
    if run.request.keep is not None:
        try:
            return allocate(slots, int(run.request.keep * total))
        except BudgetError as error:
            share = math.ceil(1e4 * error.smallest / total) / 1e4
            raise EckartError(
                f"--keep is {run.request.keep:g}, but with the ranks of this recipe {share:.4f} of the bytes remain: give at least that, "
                "or spread them otherwise (--ranks uniform)"
            ) from error
        except ValueError as error:
            raise EckartError(f"{error}: spread ranks otherwise (--ranks uniform)") from error
    assert run.request.size is not None
    # Headers depend on the ranks (a dense matrix has one entry, a factored one two), so budget and header are settled in turn.
    best = Allocation(smallest(slots))
    ranks = best.ranks
    for turn in range(HEADER_ROUNDS):
        header = run.output_bytes(ranks) - total_bytes(slots, ranks)
        try:
            allocation = allocate(slots, min(run.request.size - header, total))
        except BudgetError as error:
            if turn == 0:  # the smallest ranks of all fit, and this recipe leaves more as it is
                raise EckartError(
                    f"--bytes is {run.request.size}, but what this recipe leaves dense takes more: give more, or spread ranks otherwise "
                    "(--ranks uniform)"
                ) from error
            break
        fits = run.output_bytes(allocation.ranks) <= run.request.size
        if fits and total_bytes(slots, allocation.ranks) > total_bytes(slots, best.ranks):
            best = allocation
        if allocation.ranks == ranks:
            break
        ranks = allocation.ranks
    return best


def _better(fitted: list[Fitted]) -> Fitted:
    """The choice of the least measured loss; the first where nothing was measured."""
    return min(fitted, key=lambda fit: fit.loss if fit.loss is not None else 0.0)


@dataclass(frozen=True)
class Approximated:
    """All targets as they are stored: the choice of ranks ``label``, what each that does not stay dense holds, and their records."""

    label: str
    forms: Forms
    matrices: tuple[MatrixRecord, ...]
    losses: Mapping[str, float]
    gap: float | None


def approximate(run: Run) -> Approximated:
    """Every target fitted at its rank."""
    candidates, gap, losses = choose_ranks(run)
    run.check_ranks(candidates)
    fitted = fit_all(run, candidates)
    chosen = _better(fitted)
    losses |= {fit.label: fit.loss for fit in fitted if fit.loss is not None}
    forms = run.forms(chosen.ranks)
    matrices = tuple(
        certificate.record(t, forms.get(t.name), chosen.ranks[t.name], chosen.bounds[t.name]) for t in run.targets
    )
    return Approximated(chosen.label, forms, matrices, losses, gap)


def approximated(run: Run) -> Outcome:
    """The model with every target as it is stored."""
    made = approximate(run)
    return Outcome(
        pieces=layout(run.skeleton, run.targets, made.forms, made.label),
        config=with_modules(run.checkpoint.config, modules_entry(run.targets, made.forms)),
        matrices=made.matrices,
        bonds=(),
        dropped=(),
        target_bytes=(sum(t.bytes for t in run.targets), sum(matrix.bytes for matrix in made.matrices)),
        losses=made.losses,
        kept=made.label,
        gap=made.gap,
    )
