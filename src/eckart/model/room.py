"""How much room the files of a run take beside its result."""

from __future__ import annotations

from eckart.model.noise import DRAWS
from eckart.model.run import Run
from eckart.stats import Need


def scratch_bytes(run: Run) -> int:
    """The largest room that the files of hidden states and gradients take at any one time."""
    if run.walk is None:
        return 0
    size, needs = run.walk.activation_bytes, run.recipe.needs
    if needs & {Need.SENSITIVITY, Need.GRADIENTS}:
        return (run.blocks + 3) * size  # before every block, after the last, and two gradients
    passed = run.blocks > 1 and (run.sequential or Need.INFLUENCE in needs)
    kept = (3 if passed else 2) * size  # the first input stays while states are passed on
    if Need.FORWARD_SENSITIVITY not in needs:
        return kept
    # The first input, that of a block, and what moved matrices make of the windows: twice each, before a block and after it.
    windows = len(run.walk.windows)
    return max(kept, min(run.blocks, 2) * size + 4 * size // windows * min(DRAWS, windows))
