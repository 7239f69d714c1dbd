"""Looking at an adapter: the spectra of its updates, and what they do to the singular vectors of the weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eckart.errors import EckartError
from eckart.linalg import svd
from eckart.measure import Spectrum, spectrum
from eckart.model.progress import Progress, quiet
from eckart.model.surgery.adapter import Adapter, Layer
from eckart.model.surgery.base import Base
from eckart.model.workers import side_by_side

LEADING = 10  # singular vectors of the changed weight that are looked at
THRESHOLD = 0.5  # of the largest cosine, below which one of them is called an intruder


@dataclass(frozen=True)
class Beside:
    """An update beside the weight that it is added to.

    ``ratio`` is the norm of the update over that of the weight; ``cosines`` (k,) are, for the leading left singular vectors of the
    sum, the largest cosine with any left singular vector of the weight.
    """

    ratio: float
    cosines: tuple[float, ...]
    threshold: float

    @property
    def intruders(self) -> int:
        """How many of the leading vectors are like none of the weight's."""
        return sum(cosine < self.threshold for cosine in self.cosines)


@dataclass(frozen=True)
class LayerRow:
    """What one layer of an adapter adds: its stored rank and scale, and the singular values of its update, scale included."""

    name: str
    kind: str
    scale: float
    rank: int
    has_lengths: bool
    spectrum: Spectrum
    beside: Beside | None = None

    @property
    def kept(self) -> dict[int, float]:
        """The share of the squared norm that ranks 1, 2, 4, ... and the stored one keep; empty for a zero update.

        >>> from eckart.operator import Factors
        >>> update = Factors(torch.eye(4)[:, :2] * torch.tensor([2.0, 1.0]), torch.eye(4)[:2])
        >>> LayerRow("q", "linear", 1.0, 2, False, spectrum(update)).kept
        {1: 0.8, 2: 1.0}
        """
        squares = self.spectrum.values[: self.rank].square()
        total = float(squares.sum())
        if total == 0:
            return {}
        ranks = [2**i for i in range(self.rank.bit_length()) if 2**i < self.rank]
        return {rank: round(float(squares[:rank].sum()) / total, 12) for rank in (*ranks, self.rank)}

    def to_json(self) -> dict[str, object]:
        """The row as a table."""
        found: dict[str, object] = {
            "name": self.name,
            "kind": self.kind,
            "shape": list(self.spectrum.shape),
            "rank": self.rank,
            "scale": self.scale,
            "dora": self.has_lengths,
            "singular_values": self.spectrum.values[: self.rank].tolist(),
            "kept": {str(rank): share for rank, share in self.kept.items()},
            "spectrum": self.spectrum.to_json(),
        }
        if self.beside is not None:
            found |= {
                "ratio": self.beside.ratio,
                "cosines": list(self.beside.cosines),
                "threshold": self.beside.threshold,
                "intruders": self.beside.intruders,
            }
        return found


def look(
    adapter: Adapter,
    base: Base | None = None,
    *,
    leading: int = LEADING,
    threshold: float = THRESHOLD,
    progress: Progress = quiet,
) -> tuple[LayerRow, ...]:
    """A row for each layer, by its factors alone; with ``base`` also what the update does to each weight, in float64.

    Raises ``EckartError`` where the adapter is for another model, or ``leading`` or ``threshold`` are no such numbers.
    """
    if leading < 1:
        raise EckartError(f"--leading is {leading}: give at least 1")
    if not 0 < threshold <= 1:
        raise EckartError(f"--threshold is {threshold:g}: give a cosine above 0 and up to 1")
    weights = {} if base is None else {name: base.weight_of(name, layer) for name, layer in adapter.layers.items()}

    def row(name: str) -> LayerRow:
        layer = adapter.layers[name]
        beside = None
        if base is not None:
            beside = _beside(base.matrix(weights[name]), layer, leading, threshold)
        kind = type(layer.kind).__name__.lower()
        return LayerRow(name, kind, layer.scale, layer.rank, layer.lengths is not None, spectrum(layer.update), beside)

    rows: list[LayerRow] = []
    for made in side_by_side(row, list(adapter.layers)):
        rows.append(made)
        progress("inspect", len(rows), len(adapter.layers), made.name)
    return tuple(rows)


def intruding(weight: Tensor, changed: Tensor, leading: int = LEADING) -> Tensor:
    """For the ``leading`` left singular vectors of ``changed`` the largest ``|cos|`` with any left singular vector of ``weight``.

    Shuttleworth, Andreas, Torralba and Sharma, *LoRA vs full fine-tuning: an illusion of equivalence* (2024, arXiv:2410.21228),
    algorithm 1: where that is below a threshold, the vector is an intruder dimension. Both are (m, n), all in float64.

    >>> w = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.5]))
    >>> flat = torch.full((4, 4), 0.25)
    >>> intruding(w, w + 40 * flat, 1).round(decimals=2).tolist()
    [0.52]
    """
    before, after = svd(weight).u, svd(changed).u[:, :leading]
    return (before.T @ after).abs().amax(0).clamp(max=1.0)


def _beside(weight: Tensor, layer: Layer, leading: int, threshold: float) -> Beside:
    changed = layer.changed(weight)
    size = float(torch.linalg.vector_norm(weight))
    ratio = float(torch.linalg.vector_norm(changed - weight)) / size if size else float("inf")
    return Beside(ratio, tuple(intruding(weight, changed, leading).tolist()), threshold)
