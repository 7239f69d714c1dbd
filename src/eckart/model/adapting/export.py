"""Adapters as PEFT stores them: a plain LoRA that fits the model as it was before anything was taken from it."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from eckart.adapters.forms import Directed, Pair, scaled
from eckart.adapters.forms.directed import LENGTHS
from eckart.bound import Bound
from eckart.errors import EckartError
from eckart.linalg import truncated_svd
from eckart.linalg.certified import PLAIN
from eckart.linalg.factored import FactoredTruncation, low_rank_form
from eckart.model.adapting.modules import CONVOLUTIONS, Adapted
from eckart.model.adapting.wrap import Wrapped
from eckart.model.files import make_folder, write_json
from eckart.model.output import check_free, move_into_place, work_folder
from eckart.model.tensorfile import write_all
from eckart.operator import Factors, Operator, Sum

NOTHING = 1e-10  # of the size of factors in float64: what rounding alone may have made
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


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


@dataclass(frozen=True)
class _Entry:
    """A module's adapter in PEFT's terms: ``scale B A``."""

    left: Tensor
    right: Tensor
    scale: float
    bound: Bound | None = None
    lengths: Tensor | None = None

    @property
    def rank(self) -> int:
        return self.left.shape[1]


def export(wrapped: Wrapped, out: str | Path, *, rank: int | None = None, uniform: bool = False) -> Exported:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` to a new folder; PEFT loads them onto the untouched model.

    What was taken from a weight is put back by further columns and rows: ``[B, -B_0] [A; A_0]``, of twice the rank, and exact. Where the
    change is of no low rank, the best approximation of rank ``rank`` is written, and its bound told. With ``uniform`` every
    module has the same rank, filled up with zeros.

    Raises ``EckartError`` where ``out`` is not free, and where a rank is needed and none is given.
    """
    out = Path(out)
    check_free(out)
    scratch = work_folder(out)
    try:
        found = written(wrapped, scratch, rank=rank, uniform=uniform)
        move_into_place(scratch, out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return replace(found, folder=out)


def written(wrapped: Wrapped, folder: Path, *, rank: int | None = None, uniform: bool = False) -> Exported:
    """As ``export`` to a folder that is not yet where it belongs; whatever is there is replaced."""
    entries = {name: _entry(name, adapter, rank) for name, adapter in wrapped.adapters.items()}
    if uniform:
        most = max(entry.rank for entry in entries.values())
        entries = {name: _filled(entry, most) for name, entry in entries.items()}
    if folder.exists():
        shutil.rmtree(folder)
    make_folder(folder)
    write_all(folder / WEIGHTS, _tensors(wrapped, entries))
    write_json(folder / CONFIG, _config(wrapped, entries))
    bounds = {name: entry.bound for name, entry in entries.items() if entry.bound is not None}
    return Exported(folder, {name: entry.rank for name, entry in entries.items()}, bounds)


def difference(adapter: Adapted) -> Operator:
    """What an adapter adds to the weight that its base was, over the scale."""
    update = adapter.form.update({name: tensor.detach() for name, tensor in adapter.params.items()})
    return update if adapter.taken is None else Sum((update, scaled(adapter.taken, -1 / adapter.scale)))


def _entry(name: str, adapter: Adapted, rank: int | None) -> _Entry:
    adapter.check_is_matrix()
    whole = difference(adapter)
    if isinstance(adapter.form, Directed):
        if not isinstance(adapter.form.of, Pair) or adapter.taken is not None:
            raise EckartError(
                f"{name}: rows of trained lengths are a LoRA only around a pair of factors: merge the adapter"
            )
        return _Entry(*_both(whole), adapter.scale, lengths=adapter.params[LENGTHS].detach())
    if isinstance(whole, Factors):
        # Directions that a schedule has set to zero are not stored, unless there are no others.
        there = (whole.left.abs().amax(0) > 0) & (whole.right.abs().amax(1) > 0)
        there |= not bool(there.any())
        return _Entry(whole.left[:, there], whole.right[there], adapter.scale)
    found = low_rank_form(whole)
    if found is not None:
        left, right = _both(_least(found))
        return _Entry(left.float(), right.float(), adapter.scale)
    if rank is None:
        raise EckartError(f"{name}: the change of its weight is of no low rank; say to which one it shall be brought")
    fit = truncated_svd(whole, min(rank, *whole.shape), accuracy=0.0, dtype=torch.float32)
    return _Entry(*_both(fit.op), adapter.scale, fit.bounds[0])


def _least(product: Factors) -> Factors:
    """The same matrix by as few columns and rows as it takes: sides that did not train stand there twice."""
    values = FactoredTruncation(product, PLAIN).optimum[0].s
    size = float(torch.linalg.vector_norm(product.left) * torch.linalg.vector_norm(product.right))
    rank = max(1, int((values > NOTHING * size).sum()))
    if rank == product.rank:
        return product
    least = truncated_svd(product, rank, accuracy=0.0, dtype=torch.float64).op
    assert isinstance(least, Factors)
    return least


def _both(op: Operator) -> tuple[Tensor, Tensor]:
    assert isinstance(op, Factors)
    return op.left, op.right


def _filled(entry: _Entry, rank: int) -> _Entry:
    """With zeros up to a rank; the scale goes into the left factor, so that one alpha serves all."""
    more = rank - entry.rank
    left = torch.nn.functional.pad(entry.scale * entry.left, (0, more))
    right = torch.nn.functional.pad(entry.right, (0, 0, 0, more))
    return _Entry(left, right, 1.0, entry.bound, entry.lengths)


def _tensors(wrapped: Wrapped, entries: Mapping[str, _Entry]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, entry in entries.items():
        base, place = wrapped.adapters[name].base, f"base_model.model.{name}"
        left, right = entry.left, entry.right
        if isinstance(base, CONVOLUTIONS):
            right = right.reshape(entry.rank, *base.weight.shape[1:])
            left = left.reshape(*left.shape, *(1 for _ in base.kernel_size))
        found[f"{place}.lora_A.weight"], found[f"{place}.lora_B.weight"] = right.contiguous(), left.contiguous()
        if entry.lengths is not None:
            found[f"{place}.lora_magnitude_vector"] = entry.lengths
    for name in wrapped.whole:
        tensors = wrapped.model.get_submodule(name).state_dict()
        found |= {f"base_model.model.{name}.{key}": tensor for key, tensor in tensors.items()}
    return {name: tensor.detach().cpu() for name, tensor in sorted(found.items())}


def _config(wrapped: Wrapped, entries: Mapping[str, _Entry]) -> dict[str, object]:
    rank = Counter(entry.rank for entry in entries.values()).most_common(1)[0][0]
    alphas = {name: entry.scale * entry.rank for name, entry in entries.items()}
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": getattr(wrapped.model, "name_or_path", "") or None,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: entry.rank for name, entry in entries.items() if entry.rank != rank},
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
        "target_modules": list(entries),
        "fan_in_fan_out": any(isinstance(adapter.base, Conv1D) for adapter in wrapped.adapters.values()),
        "use_dora": any(entry.lengths is not None for entry in entries.values()),
        "lora_dropout": 0.0,
        "bias": "none",
        "modules_to_save": list(wrapped.whole) or None,
        "inference_mode": True,
        "init_lora_weights": True,
    }
