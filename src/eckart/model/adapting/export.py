"""Adapters as PEFT stores them: a plain LoRA that fits the model as it was before anything was taken from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from eckart.adapters.forms import Directed, Pair, scaled
from eckart.adapters.forms.directed import LENGTHS
from eckart.bound import Bound
from eckart.linalg import truncated_svd
from eckart.linalg.certified import PLAIN
from eckart.linalg.factored import FactoredTruncation, low_rank_form
from eckart.model.adapting.modules import Adapted, NoLoraError, check_is_matrix
from eckart.model.adapting.rounded import BASE, write_base
from eckart.model.adapting.wrapped import Wrapped
from eckart.model.linear import OperatorLinear
from eckart.model.surgery.adapter import Adapter, Embedding, Layer, kind_of
from eckart.model.surgery.writing import aside, brought_to_one_rank, put_into
from eckart.operator import Factors, Operator, Sum

NOTHING = 1e-10  # of the size of factors in float64: what rounding alone may have made


@dataclass(frozen=True)
class Exported:
    """What was written: ranks by module, and what a truncation left out where the change of a weight is of a higher rank."""

    folder: Path
    ranks: Mapping[str, int]
    bounds: Mapping[str, Bound]  # of modules that were truncated

    @property
    def is_exact(self) -> bool:
        """Whether the result is the adapter itself, up to the rounding of its factors."""
        return not self.bounds


def export(wrapped: Wrapped, out: str | Path, *, rank: int | None = None, uniform: bool = False) -> Exported:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` to a new folder; PEFT loads them onto the untouched model.

    Where weights were rounded for the adapter it fits the rounded model and no other: that one is written to ``out/base``, as a compressed
    checkpoint.

    What was taken from a weight is put back by further columns and rows: ``[B, -B_0] [A; A_0]``, of twice the rank, and exact. Where the
    change is of no low rank, the best approximation of rank ``rank`` is written, and its bound told. With ``uniform`` every
    module has the same rank, filled up with zeros.

    Raises ``EckartError`` where ``out`` is not free, and ``NoLoraError`` where no LoRA does the same, or none without a ``rank``.
    """
    with aside(Path(out)) as scratch:
        found = written(wrapped, scratch, out=Path(out), rank=rank, uniform=uniform)
    return replace(found, folder=Path(out))


def written(
    wrapped: Wrapped,
    folder: Path,
    *,
    out: Path,
    rank: int | None = None,
    uniform: bool = False,
    dtype: torch.dtype | None = None,
) -> Exported:
    """As ``export`` to a folder that will be moved to ``out``; whatever is there is replaced.

    Numbers of a rounded model that were not rounded are written in this ``dtype``, or in the one that they have.
    """
    made, found = _made(wrapped, folder, rank, uniform=uniform)
    if wrapped.rounded:
        made = replace(made, config={**made.config, "base_model_name_or_path": str(out / BASE)})
    put_into(made, folder)
    if wrapped.rounded:
        write_base(wrapped, folder / BASE, dtype=dtype)
    return found


def _made(wrapped: Wrapped, folder: Path, rank: int | None, *, uniform: bool) -> tuple[Adapter, Exported]:
    """The adapter in PEFT's terms, and what is to be told of it once it lies in a folder."""
    fitted = {name: _fitted(name, adapter, rank) for name, adapter in wrapped.adapters.items()}
    layers = {name: layer for name, (layer, _) in fitted.items()}
    whole = {
        f"{name}.{key}": tensor
        for name in wrapped.whole
        for key, tensor in wrapped.model.get_submodule(name).state_dict().items()
    }
    config = {
        "base_model_name_or_path": getattr(wrapped.model, "name_or_path", "") or None,
        "fan_in_fan_out": any(isinstance(adapter.base, Conv1D) for adapter in wrapped.adapters.values()),
        "modules_to_save": list(wrapped.whole) or None,
    }
    made = Adapter(layers, whole, config)
    made = brought_to_one_rank(made) if uniform else made
    bounds = {name: bound for name, (_, bound) in fitted.items() if bound is not None}
    return made, Exported(folder, made.ranks, bounds)


def difference(adapter: Adapted) -> Operator:
    """What an adapter adds to the weight that its base was, over the scale."""
    update = adapter.form.update({name: tensor.detach() for name, tensor in adapter.params.items()})
    return update if adapter.taken is None else Sum((update, scaled(adapter.taken, -1 / adapter.scale)))


def _fitted(name: str, adapter: Adapted, rank: int | None) -> tuple[Layer, Bound | None]:
    """A module's adapter in PEFT's terms, and the bound of what it leaves out where it is a truncation."""
    check_is_matrix(adapter.form, adapter.params)
    whole = difference(adapter)
    if isinstance(adapter.form, Directed):
        if not isinstance(adapter.form.of, Pair) or adapter.taken is not None:
            raise NoLoraError(
                f"{name}: rows of trained lengths are a LoRA only around a pair of factors: merge the adapter"
            )
        if isinstance(adapter.base, OperatorLinear):
            raise NoLoraError(
                f"{name}: PEFT can't measure the rows of a weight that is stored as an operator: merge the adapter, or leave lengths out"
            )
        return _layer(adapter, *_both(whole), adapter.params[LENGTHS].detach()), None
    if isinstance(whole, Factors):
        # Directions that a schedule has set to zero are not stored, unless there are no others.
        there = (whole.left.abs().amax(0) > 0) & (whole.right.abs().amax(1) > 0)
        there |= not bool(there.any())
        return _layer(adapter, whole.left[:, there], whole.right[there]), None
    found = low_rank_form(whole)
    if found is not None:
        left, right = _both(_least(found))
        return _layer(adapter, left.float(), right.float()), None
    if rank is None:
        raise NoLoraError(f"{name}: the change of its weight is of no low rank; say to which one it shall be brought")
    fit = truncated_svd(whole, min(rank, *whole.shape), accuracy=0.0, dtype=torch.float32)
    return _layer(adapter, *_both(fit.op)), fit.bounds[0]


def _layer(adapter: Adapted, left: Tensor, right: Tensor, lengths: Tensor | None = None) -> Layer:
    """Factors as PEFT has them: those of an embedding are of the map (width, entries)."""
    kind = kind_of(adapter.base)
    if isinstance(kind, Embedding):
        return Layer(right.T, left.T, adapter.scale, kind, lengths)
    return Layer(left, right, adapter.scale, kind, lengths)


def _least(product: Factors) -> Factors:
    """The same matrix by as few columns and rows as it takes, and no larger ones.

    Sides that did not train stand there twice; of large parts that nearly cancel, as what was taken and what took its place do, factors of
    the difference itself round to far less in float32.
    """
    found = FactoredTruncation(product, PLAIN)
    size = float(torch.linalg.vector_norm(product.left) * torch.linalg.vector_norm(product.right))
    rank = max(1, int((found.optimum[0].s > NOTHING * size).sum()))
    least = found.fit(rank, dtype=torch.float64, rng=torch.Generator(), spectral=False).op
    assert isinstance(least, Factors)
    return least


def _both(op: Operator) -> tuple[Tensor, Tensor]:
    assert isinstance(op, Factors)
    return op.left, op.right
