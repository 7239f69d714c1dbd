"""A model without its weights: the stock modules on the meta device, filled block by block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import logging as hf_logging

from eckart.errors import EckartError, first_line
from eckart.model.checkpoint import Checkpoint


class Skeleton:
    """The model of a checkpoint with every parameter on the meta device.

    ``blocks`` names the repeated blocks in order; ``places`` maps each tensor on disk to the parameter that it becomes, or to
    ``None`` where transformers converts it on loading (stacked experts, fused maps): the one place where names on
    disk and in modules meet.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device | None = None) -> None:
        self.checkpoint = checkpoint
        self.device = device or torch.device("cpu")
        self.model: Any = _empty_model(checkpoint)
        self._rules = get_model_conversion_mapping(self.model)
        self.places, self._converted = self._find_places()
        self.blocks = block_names(self.model)
        self._within = {n: self._find_block(place or self._converted[n]) for n, place in self.places.items()}
        self._known = self.model.state_dict().keys()

    def _find_places(self) -> tuple[dict[str, str | None], dict[str, str]]:
        renamings = [rule for rule in self._rules if isinstance(rule, WeightRenaming)]
        converters = [rule for rule in self._rules if isinstance(rule, WeightConverter)]
        state = self.model.state_dict()
        places: dict[str, str | None] = {}
        converted: dict[str, str] = {}
        for name in self.checkpoint.tensors:
            prefix = self.model.base_model_prefix
            place, converter = rename_source_key(name, renamings, converters, prefix, state)
            if place not in state and name in state:
                place, converter = name, None
            places[name] = place if converter is None else None
            if converter is not None:
                converted[name] = place
        return places, converted

    @property
    def ties(self) -> dict[str, str]:
        """Tied parameters: the copy's name to that of the one it follows."""
        return dict(getattr(self.model, "all_tied_weights_keys", None) or {})

    def check_weights(self) -> None:
        """Refuse stored weights that the config does not describe.

        Raises ``EckartError`` for a weight that is missing (transformers would draw it at random), of another shape, or
        tied by the config but stored twice with different numbers (transformers would load such a pair untied).
        """
        config = self.checkpoint.folder / "config.json"
        disk = {place: name for name, place in self.places.items() if place is not None}
        there = {*disk, *self._converted.values()}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            if name not in there and self.ties.get(name) not in there:
                raise EckartError(
                    f"{self.checkpoint.folder} holds no tensor for {name}, which the architecture in {config} has: "
                    "fetch the model again, or restore its config"
                )
            if name in disk and self.checkpoint.tensors[disk[name]][1].shape != tuple(parameter.shape):
                shape = self.checkpoint.tensors[disk[name]][1].shape
                raise EckartError(
                    f"{self.checkpoint.folder}: {disk[name]} has the shape {list(shape)}, but {config} asks for "
                    f"{list(parameter.shape)}: restore the one that was changed"
                )
        for copy, source in self.ties.items():
            stored = [self.checkpoint.read(disk[place]) for place in (copy, source) if place in disk]
            if len(stored) == 2 and not torch.equal(*stored):
                raise EckartError(
                    f"{config} ties {copy} to {source}, but both are stored and differ: "
                    "set tie_word_embeddings to false there"
                )

    @property
    def stored(self) -> frozenset[str]:
        """Names on disk of the tensors that the model's parameters are made of."""
        disk = {place: name for name, place in self.places.items() if place is not None}
        return frozenset([disk[p] for p, _ in self.model.named_parameters() if p in disk] + [*self._converted])

    def block_of(self, name: str) -> int | None:
        """The index of the block that a tensor on disk belongs to, ``None`` outside of all."""
        return self._within[name]

    def _find_block(self, name: str) -> int | None:
        for index, block in enumerate(self.blocks):
            if name.startswith(f"{block}."):
                return index
        return None

    def names_in(self, block: int | None) -> list[str]:
        """Names on disk of the tensors of this block; ``None`` asks for those outside of all blocks.

        Tensors that the architecture does not have (old checkpoints carry some) belong nowhere.
        """
        return [
            n
            for n, index in self._within.items()
            if index == block and (self.places[n] or self._converted[n]) in self._known
        ]

    @contextmanager
    def filled(self, block: int | None, instead: Mapping[str, Tensor] | None = None) -> Iterator[nn.Module]:
        """The block (``None``: everything outside the blocks) with its weights in float32, for the time of the context.

        ``instead`` replaces tensors by their name on disk, for instance with an approximation multiplied out.
        """
        names = self.names_in(block)
        changed = instead or {}
        loaded = {name: changed[name] if name in changed else self.checkpoint.read(name) for name in names}
        config = LoadStateDictConfig(
            device_map={"": str(self.device)}, dtype=torch.float32, weight_mapping=list(self._rules), hf_quantizer=None
        )
        with without_bars():
            info, _ = convert_and_load_state_dict_in_model(self.model, loaded, config, None)
        del loaded
        if info.mismatched_keys or info.conversion_errors:
            wrong = sorted(info.mismatched_keys) or sorted(info.conversion_errors)
            raise EckartError(f"{self.checkpoint.folder}: {wrong[0]} does not fit the architecture in config.json")
        if block is None:
            self.model.tie_weights()
        module = self.model if block is None else self.model.get_submodule(self.blocks[block])
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        try:
            yield module
        finally:
            _empty(self.model, {self.places[name] or self._converted[name] for name in names})
            if block is None:
                self.model.tie_weights()


@contextmanager
def without_bars() -> Iterator[None]:
    """Switch off the loading bars of transformers for a while: a run reports its progress itself."""
    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()


def _empty_model(checkpoint: Checkpoint) -> Any:
    from accelerate import init_empty_weights

    if "auto_map" in checkpoint.config:
        raise EckartError(
            f"{checkpoint.folder / 'config.json'} asks for code from the checkpoint (auto_map), which is not run: "
            "use an architecture that transformers itself has"
        )
    try:
        config = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False)
        with init_empty_weights(include_buffers=False), _EmptyMatricesOnMeta():
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.eval()
        model.tie_weights()
    except Exception as error:  # whatever a wrong number in a config leads to, inside of any architecture's code
        raise EckartError(
            f"{checkpoint.folder / 'config.json'} is no architecture that AutoModelForCausalLM can build: {first_line(error)}"
        ) from error
    return model


class _EmptyMatricesOnMeta(TorchFunctionMode):
    """Makes matrices that are asked for without content on the meta device to begin with.

    ``init_empty_weights`` moves them there when they are registered. Until then each would take its place in the process's
    heap, and the holes that they leave add up to the size of the model in address space that limits count.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.empty and not (kwargs or {}).get("device"):
            made = func(*args, **(kwargs or {}) | {"device": "meta"})
            if made.ndim >= 2:
                return made
        return func(*args, **kwargs or {})


def block_names(model: Any) -> list[str]:
    """The list of equal blocks that the model runs one after another: the longest one, the outermost of equals."""
    best: tuple[int, str] = (0, "")
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) > best[0] and len({type(m) for m in module}) == 1:
            inside = best[1] and name.startswith(f"{best[1]}.")
            codes = (t for t in module.buffers() if not t.is_floating_point())  # which packed weights are held as
            if not inside and any(t.ndim >= 2 for t in (*module.parameters(), *codes)):
                best = (len(module), name)
    return [f"{best[1]}.{index}" for index in range(best[0])]


def _empty(model: nn.Module, names: Iterable[str]) -> None:
    """Put parameters and loaded buffers back on the meta device."""
    for name in names:
        owner_name, _, leaf = name.rpartition(".")
        owner = model.get_submodule(owner_name)
        for table in (owner._parameters, owner._buffers):
            value = table.get(leaf)
            if value is not None:
                empty = torch.empty_like(value, device="meta")
                table[leaf] = nn.Parameter(empty, requires_grad=False) if isinstance(value, nn.Parameter) else empty  # type: ignore[assignment]
