"""What a subspace iteration still misses: estimates from what its steps have shown.

The factors by which estimates are multiplied were found over thirteen spectra (powers of the index, exponentials, a step, linear
and spiked ones), four ranks and ten starts: where they decide, no estimate was too low by more.
``tests/kernels/test_convergence.py`` looks again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# What a basis misses is 1.2 to 1.9 times what its own images show, but for the first one; the next misses no more than that.
SEEN = 2.0
# What the next basis will miss: after the first product up to 11 times as much, later up to 2.1 times. Hope decides only
# when to look, so what is usual will do: 2 and 1.3 times.
HOPED_AT_FIRST, HOPED = 3.0, 1.4
# What a basis misses by how much it gained: up to 1.7 times after the first product and 1.05 times later. Where few directions
# are taken along, chance has more to say: with twelve it was up to 2.3 and 1.6 times.
GAINED_AT_FIRST, GAINED, CHANCE = 1.75, 1.1, 80.0
# Directions that have hardly a gap to what lies beside the basis are taken to gain in a thousand steps.
SLOWEST = 1e-3


@dataclass(frozen=True)
class Outlook:
    """The energy that a basis misses, and that the next one will; both estimated, and mostly too low."""

    now: float
    then: float

    @classmethod
    def of(cls, energies: Tensor, beside: Tensor) -> Outlook:
        """``energies`` (k,) are all Ritz values of ``A A^T`` in a basis, ``beside`` (rank,) squared parts of images beside it.

        A direction of energy e whose image under ``A A^T`` has the squared part ``beside`` outside of the basis, where energies
        are about the last one l at most, gains by the larger eigenvalue of ``[[e, c], [c, l]]`` over e, c^2 being
        that part. One step multiplies what it misses by ``(l / e)^2``.

        >>> Outlook.of(torch.tensor([2.0, 1.0]), torch.tensor([0.75]))
        Outlook(now=0.5, then=0.125)
        """
        half = (energies[: len(beside)] - energies[-1]) / 2
        gain = (half.square() + beside).sqrt() - half
        return cls(float(gain.sum()), float((gain * contractions(energies, len(beside))).sum()))

    def hoped(self, step: int) -> float:
        """What the next basis may miss, if things go as they usually do, after ``step`` products with ``A A^T``."""
        return min(SEEN * self.now, (HOPED_AT_FIRST if step == 0 else HOPED) * self.then)

    def missed(self, gains: Tensor, energies: Tensor, step: int) -> float:
        """At most what the next basis does miss, judged by what its leading directions gained: ``gains`` (rank,).

        Had every direction missed g before and f g now, its gain would be (1 - f) g; and if the outlook was wrong about the gain,
        it was as wrong about what is left.

        >>> outlook = Outlook(now=0.5, then=0.125)
        >>> energies = torch.cat([torch.tensor([2.0]), torch.ones(1000)])
        >>> round(outlook.missed(torch.tensor([0.375]), energies, step=2) / GAINED, 3)
        0.125
        """
        gains = gains.clamp(min=0)
        factors = contractions(energies, len(gains))
        left = float((gains * factors / (1 - factors).clamp(min=SLOWEST)).sum())
        expected = self.now - self.then
        kept = self.then * float(gains.sum()) / expected if expected > 0 else 0.0
        further = max(1, len(energies) - len(gains))
        caution = (GAINED_AT_FIRST if step <= 1 else GAINED) + CHANCE / further**2
        return min(SEEN * self.now, caution * max(left, kept))


def contractions(energies: Tensor, rank: int) -> Tensor:
    """By how much a step makes smaller what each of the leading ``rank`` directions misses: ``(e_k / e_i)^2``."""
    wanted = energies[:rank]
    return torch.where(wanted > 0, energies[-1] / wanted, torch.ones_like(wanted)).square()
