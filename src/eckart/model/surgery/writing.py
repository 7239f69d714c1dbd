"""Adapters written as PEFT stores them, whole or not at all."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from eckart.errors import EckartError
from eckart.model.files import make_folder, write_json
from eckart.model.journal import JOURNAL
from eckart.model.output import check_free, move_into_place, work_folder
from eckart.model.surgery.adapter import PREFIX, Adapter
from eckart.model.surgery.reading import CONFIG, WEIGHTS, pattern_of
from eckart.model.tensorfile import TensorSpec, file_bytes, write_all

# What stands in a config where the adapter brings no entry of its own.
STOCK: Mapping[str, object] = {
    "peft_type": "LORA",
    "task_type": None,
    "base_model_name_or_path": None,
    "fan_in_fan_out": False,
    "lora_dropout": 0.0,
    "bias": "none",
    "inference_mode": True,
}
Value = TypeVar("Value", int, float)


def write(adapter: Adapter, out: str | Path, *, uniform: bool = False) -> Path:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` to a new folder, which stock PEFT loads.

    Modules whose rank or scale differs from the commonest one are named in ``rank_pattern`` and ``alpha_pattern``. With ``uniform`` every
    module has the same rank, filled up with zeros, and the scale inside of its left factor: some servers read no patterns.

    Raises ``EckartError`` where ``out`` is not free or can't be written; nothing is left there then.
    """
    with aside(Path(out)) as scratch:
        put_into(brought_to_one_rank(adapter) if uniform else adapter, scratch)
    return Path(out)


@contextmanager
def aside(out: Path) -> Iterator[Path]:
    """A folder that is moved to ``out`` at the end of the context, and thrown away where that is not reached.

    Raises ``EckartError`` where ``out`` is not free or can't be written.
    """
    check_free(out)
    scratch = work_folder(out)
    if (scratch / JOURNAL).exists():
        raise EckartError(f"{scratch} holds an unfinished run of another command: finish it, or choose another output")
    try:
        yield scratch
        move_into_place(scratch, out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def put_into(adapter: Adapter, folder: Path) -> None:
    """As ``write`` to a folder that is not yet where it belongs; whatever is there is replaced."""
    if folder.exists():
        shutil.rmtree(folder)
    make_folder(folder)
    write_all(folder / WEIGHTS, tensors_of(adapter))
    write_json(folder / CONFIG, config_of(adapter))


def brought_to_one_rank(adapter: Adapter) -> Adapter:
    """The same adapter with the largest rank everywhere and every scale 1, so that one rank and one alpha serve all."""
    most = max(adapter.ranks.values())
    layers = {name: layer.scaled(1.0).padded(most) for name, layer in adapter.layers.items()}
    return Adapter(layers, adapter.others, adapter.config)


def tensors_of(adapter: Adapter) -> dict[str, Tensor]:
    """The tensors of the file by name."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(_named(adapter).items())}


def _named(adapter: Adapter) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, layer in adapter.layers.items():
        place = f"{PREFIX}{name}"
        found |= zip(layer.kind.names(place), layer.kind.stored(layer.left, layer.right), strict=True)
        if layer.lengths is not None:
            found[f"{place}.lora_magnitude_vector"] = layer.lengths
    return found | {f"{PREFIX}{name}": tensor for name, tensor in adapter.others.items()}


def size_of(adapter: Adapter) -> int:
    """The bytes of the file of tensors."""
    return file_bytes([TensorSpec(name, t.dtype, tuple(t.shape)) for name, t in _named(adapter).items()], {})


def config_of(adapter: Adapter) -> dict[str, object]:
    """The config: what the adapter brought, and its ranks, scales and modules as they are now.

    >>> import torch
    >>> from eckart.model.surgery.adapter import Layer
    >>> small, large = (Layer(torch.ones(3, r), torch.ones(r, 3), scale=2.0) for r in (1, 2))
    >>> config = config_of(Adapter({"a.q": small, "b.q": small, "c.q": large}))
    >>> config["r"], config["lora_alpha"], config["rank_pattern"], config["alpha_pattern"]
    (1, 2.0, {'c.q': 2}, {'c.q': 4.0})
    """
    layers = adapter.layers
    rank = Counter(adapter.ranks.values()).most_common(1)[0][0]
    alphas = {name: layer.scale * layer.rank for name, layer in layers.items()}
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    own = {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": _patterns(adapter.ranks, rank),
        "alpha_pattern": _patterns(alphas, alpha),
        "target_modules": list(layers),
        "use_dora": any(layer.lengths is not None for layer in layers.values()),
        "init_lora_weights": True,
    }
    # The patterns' alphas are for scales of alpha / r, and every module is named: what chose among them before is no more.
    gone = {
        "use_rslora",
        "layers_to_transform",
        "layers_pattern",
        "exclude_modules",
        "eva_config",
        "corda_config",
        "loftq_config",
    }
    return {**STOCK, **{key: value for key, value in adapter.config.items() if key not in gone}, **own}


def _patterns(values: Mapping[str, Value], default: Value) -> dict[str, Value]:
    """The values that differ from the default, by patterns that fit each its module alone.

    A name also fits modules that end in it; where there are such, it is tied to the beginning, which PEFT's matching allows.
    """
    differing = {name: value for name, value in values.items() if value != default}
    found: dict[str, Value] = {}
    for name, value in differing.items():
        alone = not any(pattern_of({name: value}, other) for other in values if other != name)
        found[name if alone else f"^{name}"] = value
    return found
