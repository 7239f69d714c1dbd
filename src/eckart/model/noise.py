"""How the loss answers to noise on the matrices of a model, by forward passes alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor

from eckart.model.passing import pass_through
from eckart.model.run import Run
from eckart.model.skeleton import Skeleton
from eckart.model.survey import embed_original
from eckart.model.targets import Target
from eckart.model.walk import Walk, batches, nll

EPSILON = 1e-3  # how far a matrix is moved, in standard deviations of the noise
DRAWS = 16  # windows that are run, each with noise of its own


class Pairs(Walk):
    """A walk over windows that come twice: in the first half one matrix is moved one way, in the second half the other way.

    Windows are run one at a time, as each has noise of its own.
    """

    def __init__(self, skeleton: Skeleton, windows: Tensor) -> None:
        super().__init__(skeleton, windows.repeat(2, 1))
        self.draws = len(windows)

    def _batches(self, tokens: int = 1) -> Iterator[slice]:
        count, length = self.windows.shape
        return batches(count, length, 1)

    def part(self, target: Target, source: Path, out: Path, rng: Generator) -> None:
        """Take windows through the target's block with ``W + e Z`` and with ``W - e Z``, Z of normal numbers, drawn for each window.

        ``source`` may hold more windows, of which the first are taken.
        """
        assert target.block is not None
        hidden = np.memmap(source, dtype=np.float32, mode="r", shape=(self.draws, self.windows.shape[1], self.width))
        there = self._create(out)
        place = self.skeleton.places[target.disk]
        assert place is not None
        with self.skeleton.filled(target.block) as module, torch.no_grad():
            weight = self.skeleton.model.get_parameter(place)
            middle = weight.detach().clone()
            for window in range(self.draws):
                x = torch.from_numpy(np.array(hidden[window : window + 1]))
                noise = torch.randn(middle.shape, generator=rng).to(middle.device)
                for half, step in enumerate((EPSILON, -EPSILON)):
                    torch.add(middle, noise, alpha=step, out=weight.data)
                    there[half * self.draws + window] = self._call(module, target.block, x)[0].cpu().numpy()
        self._finish(there, out)

    def slopes(self, source: Path) -> Tensor:
        """``|l(W + e Z) - l(W - e Z)| / 2 e`` (draws,) in float64, l being a window's mean loss, from the states after the last block."""
        hidden, losses = self._open(source), []
        with self.skeleton.filled(None), torch.no_grad():
            for batch in self._batches():
                logits = self._logits(batch, torch.from_numpy(np.array(hidden[batch])))
                self._check_finite(logits, "the head")
                losses.append(float(nll(logits, self.windows[batch].to(logits.device))))
        found = torch.tensor(losses, dtype=torch.float64) / (self.windows.shape[1] - 1)
        return (found[: self.draws] - found[self.draws :]).abs() / (2 * EPSILON)


def block_slopes(run: Run) -> list[float]:
    """How the loss answers to each block: the sum over its matrices of the mean ``|l(W + e Z) - l(W - e Z)| / 2 e`` over windows.

    For a window and small e a slope is ``|<Z, dl/dW>|``, whose mean over draws is ``sqrt(2 / pi) ||dl/dW||_F``. Every matrix takes
    two walks through the blocks from its own on.
    """
    embed_original(run)
    pairs = Pairs(run.skeleton, run.walking().windows[:DRAWS])
    found = [0.0] * run.blocks
    inside = [target for target in run.targets if target.block is not None]

    def each(block: int, source: Path, there: Path) -> None:
        for target in run.in_block(block):

            def make(target: Target = target) -> tuple[object, list[str]]:
                return _slope(run, pairs, target, source), []

            slope = run.journal.once(f"noise/{target.name}", make)
            assert isinstance(slope, float)
            found[block] += slope
            run.progress("noise", inside.index(target) + 1, len(inside), target.name)

        def advance() -> tuple[object, list[str]]:
            run.walking().run_block(block, source, there)
            return None, [there.name]

        run.journal.once(f"noise/forward-{block}", advance)

    run.journal.drop(pass_through(run, range(run.blocks), lambda block: f"quiet-{block:04d}.bin", each, "forward"))
    return found


def _slope(run: Run, pairs: Pairs, target: Target, source: Path) -> float:
    """The mean slope of one matrix, from the states before its block."""
    assert target.block is not None
    pairs.prepare()
    here, there = run.file("noise-here.bin"), run.file("noise-there.bin")
    pairs.part(target, source, here, run.rng(f"{target.name}/noise"))
    for block in range(target.block + 1, run.blocks):
        pairs.run_block(block, here, there)
        here, there = there, here
    slopes = pairs.slopes(here)
    for path in (here, there):
        path.unlink(missing_ok=True)
    return float(slopes.mean())
