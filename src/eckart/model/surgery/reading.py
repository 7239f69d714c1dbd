"""Adapters read from the directories of PEFT, and from the state dicts that loralib leaves."""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from eckart.errors import EckartError, first_line
from eckart.model.files import check_regular, read_json, shown
from eckart.model.surgery.adapter import PREFIX, Adapter, Convolution, Embedding, Layer, Linear
from eckart.model.targets import natural
from eckart.model.tensorfile import TensorFile

WEIGHTS, PICKLED, CONFIG = "adapter_model.safetensors", "adapter_model.bin", "adapter_config.json"
SIDE = re.compile(r"(.+)\.lora_(embedding_)?([AB])(\.weight)?")
LENGTHS = re.compile(r"(.+)\.lora_magnitude_vector(\.weight)?")
# Entries of a config under which the factors alone do not say what the adapter does.
BEYOND = {
    "layer_replication": "it repeats layers of the model",
    "trainable_token_indices": "it trains single tokens",
    "target_parameters": "it adapts parameters that are no modules",
    "alora_invocation_tokens": "it acts from a certain token on",
    "ensure_weight_tying": "it ties its own tensors",
    "arrow_config": "it routes between adapters",
    "use_qalora": "it pools its inputs",
    "use_bdlora": "its factors are block diagonal",
}
# Starts that take something from the base's weights, so that the adapter alone is not for the base as it is stored.
TAKING = ("pissa", "olora", "corda", "loftq", "lora_ga")


def read(place: str | Path, *, alpha: float | None = None) -> Adapter:
    r"""The adapter in a directory that PEFT wrote, or in a file of loralib's ``lora_A`` and ``lora_B``.

    The scale is ``alpha / r``, with ``use_rslora`` ``alpha / sqrt(r)``; ``rank_pattern`` and ``alpha_pattern`` hold for names that
    ``(.*\.)?(pattern)$`` fits, the first of several. A file of loralib says nothing of alpha, which has to be given; where a
    directory says it, ``alpha`` must be left out.

    Raises ``EckartError`` for what is no adapter of plain factors, for shapes or ranks that do not go together, and for NaN or infinity.
    """
    path = home(place)
    if path.is_dir():
        if alpha is not None:
            raise EckartError(f"{path / CONFIG} says what alpha is: leave --alpha out")
        return _directory(path)
    if not path.exists():
        raise EckartError(f"{path} does not exist: name a PEFT directory with {CONFIG}, or a file of loralib")
    return _loralib(path, alpha)


def home(place: str | Path) -> Path:
    """The directory of an adapter, also where its file of tensors is named, or the file that stands alone."""
    path = Path(place)
    return path.parent if path.name in (WEIGHTS, PICKLED) and (path.parent / CONFIG).is_file() else path


def _directory(folder: Path) -> Adapter:
    if not (folder / CONFIG).is_file():
        raise EckartError(
            f"{folder / CONFIG} is missing: {folder} is no adapter directory of PEFT; name one, or a file of loralib"
        )
    config = read_json(folder / CONFIG)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise EckartError(
            f"{folder / CONFIG} has the peft_type {shown(kind)}: only LORA is a pair of factors; merge this adapter by PEFT"
        )
    for key, meaning in BEYOND.items():
        if config.get(key):
            raise EckartError(
                f"{folder / CONFIG} sets {key} ({meaning}), which is not supported: merge this adapter by PEFT"
            )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(TAKING):
        raise EckartError(
            f"{folder / CONFIG} says init_lora_weights = {shown(start)}: the adapter is for a base from which something was taken; "
            "save it by PEFT with path_initial_model_for_weight_conversion, which makes a plain LoRA of it"
        )
    found = next((folder / name for name in (WEIGHTS, PICKLED) if (folder / name).is_file()), None)
    if found is None:
        raise EckartError(f"{folder / WEIGHTS} is missing: fetch the adapter again")
    tensors = {name.removeprefix(PREFIX): t for name, t in _tensors(found).items()}
    sides, lengths, others = _sorted(found, tensors)
    ranks = {name: _rank(folder, config, name) for name in sides}
    layers = {}
    for name, pair in sides.items():
        layer = _layer(found, name, pair, lengths.pop(name, None), _scale(folder, config, name, ranks[name]))
        if layer.rank != ranks[name]:
            raise EckartError(
                f"{folder / CONFIG} says that {name} has rank {ranks[name]}, but its tensors have rank {layer.rank}: restore the config"
            )
        layers[name] = layer
    if lengths:
        raise EckartError(
            f"{found}: {next(iter(lengths))} has a magnitude vector and no factors: fetch the adapter again"
        )
    return Adapter(layers, others, config)


def _loralib(path: Path, alpha: float | None) -> Adapter:
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in _tensors(path).items()}
    sides, lengths, others = _sorted(path, tensors)
    if alpha is None:
        raise EckartError(f"{path} does not say what alpha is, by which its updates are scaled: give --alpha, e.g. 16")
    if not math.isfinite(alpha):
        raise EckartError(f"--alpha is {alpha}: give a number such as 16")
    layers = {}
    for name, pair in sides.items():
        layer = _layer(path, name, pair, lengths.get(name), 1.0)
        layers[name] = Layer(layer.left, layer.right, alpha / layer.rank, layer.kind, layer.lengths)
    whole = sorted({name.rpartition(".")[0] for name in others})
    return Adapter(layers, others, {"modules_to_save": whole} if whole else {})


def _tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, or of a pickled one that holds nothing else."""
    if path.suffix == ".safetensors":
        file = TensorFile(path)
        found: object = {name: file.read(name) for name in file.specs}
    else:
        try:
            check_regular(path)
            found = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
            raise EckartError(f"{path} is no file of tensors: {first_line(error)[:200]}; fetch it again") from error
    if not isinstance(found, dict) or not all(isinstance(n, str) and isinstance(t, Tensor) for n, t in found.items()):
        raise EckartError(f"{path} holds something else than tensors by name: give a state dict")
    for name, tensor in found.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            raise EckartError(f"{path}: tensor {name} holds NaN or infinity; no figure of it could be stated")
    return found


def _sorted(
    path: Path, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor], dict[str, Tensor]]:
    """The factors of each module, magnitude vectors, and the rest."""
    sides: dict[str, dict[str, Tensor]] = {}
    lengths: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if found := SIDE.fullmatch(name):
            sides.setdefault(found[1], {})[f"{found[2] or ''}{found[3]}"] = tensor
        elif found := LENGTHS.fullmatch(name):
            lengths[found[1]] = tensor
        elif ".lora_" in name or "trainable_tokens" in name:
            raise EckartError(f"{path}: tensor {name} is no factor of a plain LoRA: merge this adapter by PEFT")
        else:
            others[name] = tensor
    sides = dict(sorted(sides.items(), key=lambda item: natural(item[0])))
    if not sides:
        example = f"; its names look like {next(iter(tensors))}" if tensors else ""
        raise EckartError(f"{path} holds no lora_A and lora_B: it is no adapter{example}")
    return sides, lengths, others


def _layer(path: Path, name: str, pair: Mapping[str, Tensor], lengths: Tensor | None, scale: float) -> Layer:
    match pair:
        case {"A": right, "B": left, **rest} if not rest:
            embedded = False
        case {"embedding_A": right, "embedding_B": left, **rest} if not rest:
            embedded = True
        case _:
            raise EckartError(
                f"{path}: {name} has only one of its two factors ({', '.join(pair)}): fetch the adapter again"
            )
    kind: Linear = Embedding() if embedded else Linear()
    told = f"{list(right.shape)} and {list(left.shape)}"
    if not right.is_floating_point() or not left.is_floating_point():
        raise EckartError(
            f"{path}: the factors of {name} are {right.dtype} and {left.dtype}, no floating-point numbers"
        )
    if right.ndim > 2 and right.ndim == left.ndim and left.shape[2:].numel() == 1 and not embedded:
        kind = Convolution(tuple(right.shape[1:]))
        right, left = right.flatten(1), left.flatten(1)
    if right.ndim != 2 or left.ndim != 2 or left.shape[1] != right.shape[0] or min(*left.shape, *right.shape) == 0:
        raise EckartError(
            f"{path}: {name} has factors A and B of the shapes {told}, which are not (r, inputs) and (outputs, r): merge this adapter by "
            "the library that made it"
        )
    if lengths is not None and lengths.numel() != len(left):
        raise EckartError(
            f"{path}: {name} has {len(left)} outputs, but {lengths.numel()} magnitudes: fetch the adapter again"
        )
    return Layer(left, right, scale, kind, lengths)


# ---- ranks and scales -------------------------------------------------------------------------------------------------


def pattern_of(patterns: Mapping[str, object], name: str) -> str | None:
    """The first pattern that fits a module's name as PEFT matches them: as a whole, or behind a dot.

    >>> pattern_of({"q_proj": 4, "layers.0.q_proj": 8}, "model.layers.0.q_proj")
    'q_proj'
    >>> pattern_of({"^layers.0.q_proj": 8}, "decoder.layers.0.q_proj") is None
    True

    Raises ``re.error`` for a pattern that is no regular expression.
    """
    return next((p for p in patterns if re.match(rf"(.*\.)?({p})$", name)), None)


def _entry(folder: Path, config: Mapping[str, object], name: str, key: str, patterns: str) -> object:
    table = config.get(patterns) or {}
    if not isinstance(table, dict):
        raise EckartError(f"{folder / CONFIG}: {patterns} is no table of names to numbers: restore the config")
    try:
        found = pattern_of(table, name)
    except re.error as error:
        raise EckartError(
            f"{folder / CONFIG}: {patterns} holds a pattern that can't be read ({error}): restore the config"
        ) from error
    return config.get(key) if found is None else table[found]


def _rank(folder: Path, config: Mapping[str, object], name: str) -> int:
    rank = _entry(folder, config, name, "r", "rank_pattern")
    if type(rank) is not int or rank < 1:
        raise EckartError(
            f"{folder / CONFIG}: the rank of {name} is {shown(rank)}: it is to be a whole number from 1 on"
        )
    return rank


def _scale(folder: Path, config: Mapping[str, object], name: str, rank: int) -> float:
    alpha = _entry(folder, config, name, "lora_alpha", "alpha_pattern")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise EckartError(f"{folder / CONFIG}: lora_alpha of {name} is {shown(alpha)}: it is to be a number")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
