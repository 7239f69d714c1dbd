"""Compression of what crosses bonds, from start to end: sites, budget, what is kept, and the checkpoint that comes out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from eckart.allocate.slots import BudgetError, Rank
from eckart.errors import EckartError
from eckart.model.approximation import Approximated, approximate
from eckart.model.compression import Compress, Narrow
from eckart.model.entries import entry_of
from eckart.model.graph import graph_of
from eckart.model.influence import block_influence
from eckart.model.layout import Piece, factors_file, names_held
from eckart.model.narrowing import Narrowed, fit_sites, module_of
from eckart.model.output import Outcome, with_modules
from eckart.model.restock import Names, config_of, pieces_of
from eckart.model.run import Run
from eckart.model.sites import Site, find_sites, fixed
from eckart.model.stream import narrow_stream
from eckart.model.targets import Untouched
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
    dropped = _dropped(run, recipe, influence)
    sites = find_sites(run.checkpoint, graph, recipe, dropped)
    for site in fixed(sites):
        run.untouched.append(Untouched(site.name, (site.bonds[0].size,), str(site.bonds[0].symmetry)))
        sites.remove(site)
    ranks = _ranks(run, recipe, sites, influence, dropped)
    _check_tokens(run, sites, ranks)
    stream = next((site for site in sites if site.block is None), None)
    found = (
        narrow_stream(run, graph, stream, ranks[stream.name])
        if stream
        else fit_sites(run, graph, sites, ranks, dropped)
    )
    rest = _approximated_beside(run, recipe.maps, sites, found, dropped) if recipe.maps is not None else None
    changed = {module_of(run, tensor) for tensor in found.replaced if tensor in run.checkpoint.tensors}
    run.untouched[:] = [entry for entry in run.untouched if entry.name not in changed]
    names = Names((graph.blocks, run.skeleton.blocks), dropped)
    modules = {names.of(name): entry for name, entry in found.modules.items()}
    pieces = pieces_of(run, graph, found, dropped)
    return Outcome(
        pieces=pieces,
        config=with_modules(config_of(run, graph, sites, ranks, found, dropped), modules),
        matrices=() if rest is None else rest.matrices,
        bonds=tuple(found.records),
        dropped=tuple(run.skeleton.blocks[block] for block in sorted(dropped)),
        target_bytes=(sum(target.bytes for target in run.targets), _stored_bytes(run, found, dropped, pieces)),
        losses=found.losses if rest is None else {**rest.losses, **found.losses},
        kept=type(recipe.allocate).__name__.lower(),
        gap=None if rest is None else rest.gap,
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


def _dropped(run: Run, recipe: Narrow, influence: list[float]) -> frozenset[int]:
    """The blocks that are left out: as few as bring the share of the recipe."""
    if recipe.depth is None or run.request.keep is None:
        return frozenset()
    total = sum(target.bytes for target in run.targets)
    goal, gone, count = (1 - run.request.keep) * total * recipe.share, 0.0, 0
    for count in range(run.blocks):
        chosen = frozenset(recipe.depth.dropped(count, influence))
        gone = sum(target.bytes for target in run.targets if target.block in chosen)
        # With bonds to narrow as well these take what is too much for whole blocks, else blocks take all.
        enough = gone >= goal - 0.5 if not recipe.inside else gone + _block_bytes(run) > goal
        if enough:
            return chosen
    raise EckartError(f"--keep is {run.request.keep:g}: not even one of {run.blocks} blocks would be left; give more")


def _block_bytes(run: Run) -> float:
    return max(sum(target.bytes for target in run.targets if target.block == block) for block in range(run.blocks))


def _ranks(
    run: Run, recipe: Narrow, sites: list[Site], influence: list[float], dropped: frozenset[int]
) -> Mapping[str, Rank]:
    """How many units every site keeps, within the budget."""
    assert run.request.keep is not None
    slots = {site.name: site.slot(importance=None if site.block is None else influence[site.block]) for site in sites}
    total = sum(target.bytes for target in run.targets)
    here = sum(target.bytes for target in run.targets if target.block not in dropped)
    own = sum(site.dense_bytes for site in sites)
    # Maps beside the bonds pay their own share where the recipe approximates them; else they stay, and the bonds pay for all.
    fixed = here - own if recipe.maps is None else math.ceil(_share(run, dropped) * (here - own))
    budget = math.floor(run.request.keep * total) - fixed
    if budget >= own:  # slots count the places of what is left, which are not stored where everything is
        return dict.fromkeys(slots)
    try:
        return recipe.allocate(slots, budget).ranks
    except BudgetError as error:
        share = math.ceil(1e4 * (fixed + error.smallest) / total) / 1e4
        raise EckartError(
            f"--keep is {run.request.keep:g}, but with as little as this recipe can leave on its bonds {share:.4f} of the bytes remain: "
            "give at least that, or take a recipe that narrows more"
        ) from error


def _check_tokens(run: Run, sites: list[Site], ranks: Mapping[str, Rank]) -> None:
    """Refuse to fit more directions than vectors are seen, a stream being seen at every norm: the others would be left to chance."""
    if run.walk is None:
        return
    fitted = {
        site.name: math.ceil(rank * site.width / max(1, len(site.bonds[0].norms)))
        for site in sites
        if site.choice.fitted and (rank := ranks[site.name]) is not None
    }
    name, least = max(fitted.items(), key=lambda entry: entry[1], default=("", 0))
    tokens, window = run.walk.windows.numel(), run.walk.windows.shape[1]
    if tokens < least:
        raise EckartError(
            f"what is left of {name} is fitted to the calibration text, and its {tokens} tokens are too few for that: take at least "
            f"{math.ceil(least / window) * window} (--tokens; a longer text with --calibration), or give another --keep"
        )


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
