"""Compression of what crosses bonds, from start to end: sites, budget, what is kept, and the checkpoint that comes out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from eckart.allocate import GreedyByLoss
from eckart.allocate.slots import BudgetError, Rank, total_cost
from eckart.bonds import BondGraph
from eckart.bonds.depth import Blocks
from eckart.errors import EckartError
from eckart.model.approximation import Approximated, approximate
from eckart.model.certificate import Removal
from eckart.model.compression import Compress, Narrow
from eckart.model.entries import entry_of
from eckart.model.expected import site_losses
from eckart.model.graph import graph_of
from eckart.model.influence import block_influence
from eckart.model.layout import Piece, factors_file, names_held
from eckart.model.narrowing import Narrowed, fit_sites, module_of
from eckart.model.output import Outcome, with_modules
from eckart.model.restock import Names, config_of, pieces_of
from eckart.model.run import Run
from eckart.model.sites import Site, find_sites, fixed, other_places
from eckart.model.stream import narrow_stream
from eckart.model.targets import Untouched
from eckart.model.trials import SiteTrials, loss_without
from eckart.model.turning import narrow_at_norms
from eckart.model.vocabulary import with_fewer_words
from eckart.stats import Need


def narrowed(run: Run, recipe: Narrow) -> Outcome:
    """The narrower model: its tensors, config and records.

    Raises ``EckartError`` for an architecture, a bond or a budget with which it can't be done.
    """
    if recipe.vocabulary is not None:
        return with_fewer_words(run, recipe.vocabulary)
    if run.request.keep is None:
        raise EckartError("a recipe of bonds takes a share: give --keep instead of --bytes")
    if run.request.only or run.request.exclude:
        raise EckartError("--only and --exclude name matrices, and this recipe narrows bonds: leave them out")
    graph = graph_of(run.checkpoint, untied=recipe.stream is not None)
    influence = block_influence(run) if Need.INFLUENCE in recipe.needs else [0.0] * run.blocks
    left_out, removals = _dropped(run, recipe, Blocks(influence, lambda gone: loss_without(run, gone)))
    dropped = frozenset(left_out)
    sites = find_sites(run.checkpoint, graph, recipe, dropped)
    for site in fixed(sites):
        run.untouched.append(Untouched(site.name, (site.bonds[0].size,), str(site.bonds[0].symmetry)))
        sites.remove(site)
    ranks, gap = _ranks(run, graph, recipe, sites, influence, dropped, removals)
    run.check_tokens(_fitted(sites, ranks))
    stream = next((site for site in sites if site.block is None), None)
    if stream is None:
        found = fit_sites(run, graph, sites, ranks, dropped)
    else:
        narrow = narrow_at_norms if stream.links else narrow_stream
        found = narrow(run, graph, stream, ranks[stream.name])
    rest = _approximated_beside(run, recipe.maps, sites, found, dropped) if recipe.maps is not None else None
    changed = {module_of(run, tensor) for tensor in found.replaced if tensor in run.checkpoint.tensors}
    run.untouched[:] = [entry for entry in run.untouched if entry.name not in changed]
    names = Names((graph.blocks, run.skeleton.blocks), dropped)
    modules = {names.of(name): entry for name, entry in found.modules.items()}
    pieces = pieces_of(run, graph, found, dropped)
    return Outcome(
        pieces=pieces,
        config=with_modules(config_of(run, graph, sites, ranks, found, dropped), modules, found.links),
        matrices=() if rest is None else rest.matrices,
        bonds=tuple(found.records),
        dropped=tuple(run.skeleton.blocks[block] for block in sorted(dropped)),
        removals=tuple(removals),
        target_bytes=(sum(target.bytes for target in run.targets), _stored_bytes(run, found, dropped, pieces)),
        losses=found.losses if rest is None else {**rest.losses, **found.losses},
        kept=type(recipe.allocate).__name__.lower(),
        gap=gap if rest is None else rest.gap,
    )


def _approximated_beside(
    run: Run, recipe: Compress, sites: list[Site], found: Narrowed, dropped: frozenset[int]
) -> Approximated | None:
    """The maps that meet none of the narrowed bonds, as a recipe of matrices stores them; they go where the narrower weights are."""
    met = frozenset[str]().union(*(site.maps for site in sites))
    targets = [t for t in run.targets if t.block not in dropped and t.disk not in met]
    if not targets:
        return None
    made = approximate(
        replace(run, recipe=recipe, targets=targets, request=replace(run.request, keep=_share(run, dropped)))
    )
    for target in targets:
        form = made.forms.get(target.name)
        if form is not None:
            found.modules[target.name] = entry_of(form)
            found.replaced[target.disk] = factors_file(made.label, target.block), names_held(target, form)
    return made


def _share(run: Run, dropped: frozenset[int]) -> float:
    """The share that is kept of what blocks that are left hold."""
    assert run.request.keep is not None
    total = sum(target.bytes for target in run.targets)
    here = sum(target.bytes for target in run.targets if target.block not in dropped)
    return min(1.0, run.request.keep * total / here)


def _dropped(run: Run, recipe: Narrow, blocks: Blocks) -> tuple[list[int], list[Removal]]:
    """The blocks that are left out: as few as bring the share of the recipe; and where losses decided, those."""
    if recipe.depth is None or run.request.keep is None:
        return [], []
    total = sum(target.bytes for target in run.targets)
    goal = (1 - run.request.keep) * total * recipe.share
    for count in range(run.blocks):
        chosen = recipe.depth.dropped(count, blocks)
        gone = sum(target.bytes for target in run.targets if target.block in chosen)
        # With bonds to narrow as well these take what is too much for whole blocks, or what may not go, else blocks take all.
        if recipe.inside and (gone + _block_bytes(run) > goal or len(chosen) < count):
            break
        if not recipe.inside and gone >= goal - 0.5:
            break
        if len(chosen) < count:
            raise EckartError(
                f"--keep is {run.request.keep:g}, but of {run.blocks} blocks only {len(chosen)} may go by this recipe: give more, or take "
                "one that tolerates more"
            )
    else:
        raise EckartError(
            f"--keep is {run.request.keep:g}: not even one of {run.blocks} blocks would be left; give more"
        )
    if Need.LOSS not in recipe.depth.needs:
        return chosen, []
    steps = [frozenset(chosen[: at + 1]) for at in range(len(chosen))]
    names = [run.skeleton.blocks[block] for block in chosen]
    return chosen, [Removal(name, 0, blocks.loss(step)) for name, step in zip(names, steps, strict=True)]


def _block_bytes(run: Run) -> float:
    return max(sum(target.bytes for target in run.targets if target.block == block) for block in range(run.blocks))


def _ranks(
    run: Run,
    graph: BondGraph,
    recipe: Narrow,
    sites: list[Site],
    influence: list[float],
    dropped: frozenset[int],
    removals: list[Removal],
) -> tuple[Mapping[str, Rank], float | None]:
    """How many units every site keeps, within the budget, and the gap of that; what losses decided is added to ``removals``."""
    assert run.request.keep is not None
    losses = site_losses(run, graph, sites) if Need.SENSITIVITY in recipe.allocate.needs else {}
    slots = {
        site.name: site.slot(losses.get(site.name), None if site.block is None else influence[site.block])
        for site in sites
    }
    total = sum(target.bytes for target in run.targets)
    here = sum(target.bytes for target in run.targets if target.block not in dropped)
    own = sum(site.dense_bytes for site in sites)
    # Maps beside the bonds pay their own share where the recipe approximates them; else they stay, and the bonds pay for all.
    fixed = here - own if recipe.maps is None else math.ceil(_share(run, dropped) * (here - own))
    budget = math.floor(run.request.keep * total) - fixed
    if budget >= own:  # slots count the places of what is left, which are not stored where everything is
        return dict.fromkeys(slots), None
    places = other_places(run.checkpoint, sites)
    fixed, budget = fixed + places, budget - places
    try:
        if not isinstance(recipe.allocate, GreedyByLoss):
            chosen = recipe.allocate(slots, budget)
            return chosen.ranks, chosen.gap
        trials = SiteTrials(run, graph, sites, dropped, total_cost(slots, dict.fromkeys(slots)) - budget)
        ranks = recipe.allocate.search(slots, budget, trials.start, trials).ranks
        trials.close()
        removals += trials.removals
        return ranks, None
    except BudgetError as error:
        share = math.ceil(1e4 * (fixed + error.smallest) / total) / 1e4
        raise EckartError(
            f"--keep is {run.request.keep:g}, but with as little as this recipe can leave on its bonds {share:.4f} of the bytes remain: "
            "give at least that, or take a recipe that narrows more"
        ) from error


def _fitted(sites: list[Site], ranks: Mapping[str, Rank]) -> dict[str, int]:
    """How many tokens it takes to fit what is left of each bond; a stream of one set of directions is seen at every norm."""
    return {
        site.name: math.ceil(rank * site.width / (1 if site.links else max(1, len(site.bonds[0].norms))))
        for site in sites
        if site.choice.fitted and (rank := ranks[site.name]) is not None
    }


def _stored_bytes(run: Run, found: Narrowed, dropped: frozenset[int], pieces: Mapping[str, list[Piece]]) -> int:
    """The bytes of the linear maps inside of blocks, as they are stored now."""
    made: dict[tuple[str, str], int] = {
        piece.made: piece.spec.nbytes for table in pieces.values() for piece in table if piece.made is not None
    }
    after = 0
    for target in run.targets:
        if target.block in dropped:
            continue
        if target.disk in found.replaced:
            file, keys = found.replaced[target.disk]
            after += sum(made[file, key] for key in keys.values())
        else:
            after += target.bytes
    return after
