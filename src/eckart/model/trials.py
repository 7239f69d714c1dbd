"""The loss of a network with blocks or units taken out, measured on the calibration windows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from eckart.allocate.slots import Rank
from eckart.bonds import BondGraph, narrow, put_back
from eckart.model.certificate import Removal
from eckart.model.narrowing import observed_maps, projections_of
from eckart.model.passing import pass_through
from eckart.model.run import Run
from eckart.model.sites import Site
from eckart.model.survey import embed_original, original
from eckart.model.tensorfile import write_all
from eckart.stats import Moments

SUMS = ("total", "magnitude", "square", "gram")


def loss_without(run: Run, gone: frozenset[int]) -> float:
    """The loss without these blocks, the others as they are; a piece of the journal for every such set."""
    embed_original(run)
    left = [block for block in range(run.blocks) if block not in gone]
    told = ",".join(map(str, sorted(gone))) or "none"

    def make() -> tuple[object, list[str]]:
        found = _walked(run, left, original(0), lambda block: {})
        run.progress(f"without {len(gone)} blocks", max(gone, default=run.blocks - 1) + 1, run.blocks, f"blocks {told}")
        return found, []

    loss = run.journal.once(f"try/without {told}", make)
    assert isinstance(loss, float)
    return loss


def _walked(run: Run, blocks: Iterable[int], source: str, instead: Callable[[int], Mapping[str, Tensor]]) -> float:
    """The loss that hidden states in the work file ``source`` lead to when they go through ``blocks``."""
    names = ("try-0.bin", "try-1.bin")
    for turn, block in enumerate(blocks):
        there = names[turn % 2]
        run.walking().run_block(block, run.file(source), run.file(there), instead=instead(block))
        source = there
    loss, _ = run.walking().tail(run.file(source))
    for name in names:
        run.file(name).unlink(missing_ok=True)
    return loss


class SiteTrials:
    """Tries narrower sites of a network without the blocks ``dropped``, and takes those that it is told to.

    What would cross a site is chosen by the statistics of the original model, whose second moments are kept in work files, and with
    them the hidden states before every block of what was taken so far: a trial runs from its block on. Every loss and everything that
    is taken is a piece of the journal. ``start`` is the loss before anything was narrowed, ``removals`` tells what was; progress is told
    by bytes, of which ``to_go`` are to go.
    """

    def __init__(self, run: Run, graph: BondGraph, sites: list[Site], dropped: frozenset[int], to_go: int) -> None:
        self._run, self._graph, self._to_go = run, graph, to_go
        self._sites = {site.name: site for site in sites}
        self._left = [block for block in range(run.blocks) if block not in dropped]
        self._ranks: dict[str, Rank] = dict.fromkeys(self._sites)
        self._weights: dict[int, str] = {}  # the work file of a block's weights, where something was taken
        self._states = {block: original(0) for block in self._left[:1]}  # that of the hidden states before a block
        self.removals: list[Removal] = []
        self.start = loss_without(run, dropped)
        self._seen = self._measured()
        self._advance(self._left[0])

    def loss(self, name: str, rank: int) -> float:
        """The loss with ``rank`` units at this site, at the others what was taken."""
        run, block = self._run, self._block(name)
        path = self._left[self._left.index(block) :]

        def instead(at: int) -> Mapping[str, Tensor]:
            return self._narrower(block, {**self._ranks, name: rank}) if at == block else self._taken(at)

        step = f"try/{len(self.removals)}/{name}/{rank}"
        loss = run.journal.once(step, lambda: (_walked(run, path, self._states[block], instead), []))
        assert isinstance(loss, float)
        return loss

    def take(self, name: str, rank: int, loss: float) -> None:
        """Leave so many units at this site from now on."""
        run, block = self._run, self._block(name)
        self._ranks[name] = rank
        self.removals.append(Removal(name, rank, loss))
        file, before = f"taken-{len(self.removals):04d}.safetensors", self._weights.get(block)

        def make() -> tuple[object, list[str]]:
            write_all(run.file(file), self._narrower(block, self._ranks))
            return None, [file]

        run.journal.once(f"take/{len(self.removals)}", make)
        self._weights[block] = file
        if before is not None:
            run.journal.drop(before)
        self._advance(block)
        gone = sum(
            site.unit_bytes * (site.units - (self._ranks[key] or site.units)) for key, site in self._sites.items()
        )
        run.progress("narrow by loss", min(gone, self._to_go), self._to_go, f"{name} at {rank}")

    def close(self) -> None:
        """Drop the work files."""
        for name in [*self._weights.values(), *self._states.values(), *map(_seen, self._seen)]:
            if name != original(0):
                self._run.journal.drop(name)

    def _block(self, name: str) -> int:
        block = self._sites[name].block
        assert block is not None
        return block

    def _in_block(self, block: int) -> list[Site]:
        return [site for site in self._sites.values() if site.block == block]

    def _taken(self, block: int) -> Mapping[str, Tensor]:
        return load_file(self._run.file(self._weights[block])) if block in self._weights else {}

    def _narrower(self, block: int, ranks: Mapping[str, Rank]) -> dict[str, Tensor]:
        """A block's weights at these ranks, in the shapes that they had."""
        moments = _read(self._run.file(_seen(block)), self._seen[block]) if block in self._seen else {}
        tensors, _, projections = projections_of(self._run, self._graph, self._in_block(block), ranks, moments)
        found = put_back(self._graph, projections, narrow(self._graph, projections, tensors), tensors)
        return {name: tensor.contiguous() for name, tensor in found.items()}

    def _advance(self, first: int) -> None:
        """Take the hidden states before a block on through all that follow."""
        run, turn = self._run, len(self.removals)
        path = self._left[self._left.index(first) :]
        for block, after in pairwise(path):
            there, before = f"state-{turn:04d}-{after:04d}.bin", self._states.get(after)

            def make(block: int = block, there: str = there) -> tuple[object, list[str]]:
                source = run.file(self._states[block])
                run.walking().run_block(block, source, run.file(there), instead=self._taken(block))
                return None, [there]

            run.journal.once(f"state/{turn}/{after}", make)
            self._states[after] = there
            if before is not None:
                run.journal.drop(before)

    def _measured(self) -> dict[int, object]:
        """What the sites' choices need of the original model, in work files; for each block what its file holds."""
        run = self._run
        if not any(site.choice.needs for site in self._sites.values()):
            return {}
        found: dict[int, object] = {}

        def measure(block: int, source: Path, there: Path) -> None:
            def make() -> tuple[object, list[str]]:
                names = observed_maps(run, self._graph, self._in_block(block))
                moments = run.walking().run_block(block, source, there, observe=list(names.values()), gram=True)
                value = _write(run.file(_seen(block)), {name: moments[module] for name, module in names.items()})
                return value, [_seen(block), there.name]

            found[block] = run.journal.once(f"seen/{block}", make)

        run.journal.drop(
            pass_through(run, range(run.blocks), lambda block: f"seen-{block:04d}.bin", measure, "measure")
        )
        return found


def _seen(block: int) -> str:
    return f"seen-{block:04d}.safetensors"


def _write(path: Path, moments: Mapping[str, Moments]) -> dict[str, object]:
    """Store moments, those that several maps share once; which map has which, and how many inputs were seen."""
    own = list({id(entry): entry for entry in moments.values()}.values())
    place = {id(entry): at for at, entry in enumerate(own)}
    write_all(path, {f"{at}.{name}": getattr(entry, name) for at, entry in enumerate(own) for name in SUMS})
    return {"maps": {name: place[id(entry)] for name, entry in moments.items()}, "counts": [m.count for m in own]}


def _read(path: Path, told: object) -> dict[str, Moments]:
    """What ``_write`` stored."""
    assert isinstance(told, dict)
    table = load_file(path)
    own = [
        Moments(count=count, **{name: table[f"{at}.{name}"] for name in SUMS})
        for at, count in enumerate(told["counts"])
    ]
    return {name: own[at] for name, at in told["maps"].items()}
