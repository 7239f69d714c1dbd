"""Registration with transformers: after ``import eckart``, ``from_pretrained`` loads compressed checkpoints.

``config.json`` of a compressed checkpoint holds, under ``quantization_config``, what loading needs and no more::

    {"quant_method": "eckart", "format": 1,
     "modules": {"model.layers.0.mlp.up_proj": {"operator": "factors", "shapes": {"left": [864, 90], "right": [90, 320]}}}}

An operator with settings or children is given by its record instead of a name, and ``dtypes`` names those of integer tensors::

    {"operator": {"kind": "codes", "settings": {"bits": 3, "columns": 320, "group": 32}},
     "shapes": {"scale": [864, 10], "zero": [864, 10], "codes": [864, 120]}, "dtypes": {"codes": "U8"}}

``links`` beside the modules names the maps at which a stream whose directions change goes from one to the next (``model/linked.py``).

A tensor that is another module's as well is stored there alone, and the entry says under which name::

    {"operator": {"kind": "stacked", "settings": {"blocks": 2}}, "shapes": {"blocks_0": [64, 320], "blocks_1": [256, 320]},
     "shared": {"blocks_0": "model.layers.0.self_attn.q_proj.blocks_2"}}

Modules are replaced on the meta device before any weight is read; a dense weight is never built.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from eckart.errors import EckartError
from eckart.model.entries import read_entry
from eckart.model.linear import OperatorEmbedding, OperatorLinear, stored_name
from eckart.model.linked import put_link

METHOD = "eckart"
FORMAT = 1


@register_quantization_config(METHOD)
class OperatorCheckpoint(QuantizationConfigMixin):
    """The ``quantization_config`` of a compressed checkpoint: which modules hold which operator in which shapes, and which have links."""

    def __init__(
        self,
        modules: Mapping[str, Mapping[str, Any]] | None = None,
        format: int = FORMAT,
        links: Mapping[str, object] | None = None,
        **_: Any,
    ) -> None:
        if format != FORMAT:
            raise EckartError(
                f"this checkpoint has format {format}, this version of eckart reads {FORMAT}: update eckart"
            )
        self.quant_method = METHOD
        self.format = format
        self.modules = {name: dict(entry) for name, entry in (modules or {}).items()}
        self.links = dict(links or {})

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        table = {"quant_method": METHOD, "format": self.format, "modules": self.modules}
        return table | ({"links": self.links} if self.links else {})


@register_quantizer(METHOD)
class OperatorQuantizer(HfQuantizer):
    """Puts operator modules where the config says."""

    quantization_config: OperatorCheckpoint
    requires_calibration = True  # a stock model can't be compressed on the fly while it loads

    def _process_model_before_weight_loading(self, model: nn.Module, **_: Any) -> nn.Module:
        for name, entry in self.quantization_config.modules.items():
            put_operator(model, name, entry)
        retie(model, self.quantization_config.modules)
        for name, link in self.quantization_config.links.items():
            put_link(model, name, link)
        return model

    def _process_model_after_weight_loading(self, model: nn.Module, **_: Any) -> nn.Module:
        share_buffers(model, self.quantization_config.modules)
        return model

    def is_serializable(self) -> bool:
        """Saving writes the operators back as they are."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Gradients reach the factors."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Trainers may train the factors themselves, without an adapter."""
        return True

    @property
    def is_compileable(self) -> bool:
        """Nothing in the way of ``torch.compile``."""
        return True


def put_operator(model: nn.Module, name: str, entry: object) -> None:
    """Replace the linear map or embedding called ``name`` by a module that holds the operator of this entry."""
    try:
        old = model.get_submodule(name)
    except AttributeError as error:
        raise EckartError(f"config.json names the module {name}, which {type(model).__name__} does not have") from error
    try:
        read = read_entry(entry)
    except ValueError as error:
        raise EckartError(f"config.json gives {name} {error}") from error
    parent, _, leaf = name.rpartition(".")
    dtype = next(old.parameters()).dtype
    record, shapes, dtypes = read.record, read.shapes, read.dtypes
    if isinstance(old, nn.Embedding):
        entries, width = old.num_embeddings, old.embedding_dim
    elif isinstance(old, nn.Linear | Conv1D):
        width, entries = features(old)
    else:
        raise EckartError(f"config.json gives {name} an operator, but a {type(old).__name__} is no linear map")
    if read.resized:  # its neighbours agree with it on another width
        entries, width = read.shape
    if read.shape != (entries, width):
        rows, columns = read.shape
        raise EckartError(
            f"config.json gives {name} an operator of {rows} x {columns}, where {entries} x {width} belong"
        )
    new: nn.Module
    with torch.device("meta"):
        if isinstance(old, nn.Embedding):
            new = OperatorEmbedding(
                record, entries, width, shapes, padding_idx=old.padding_idx, dtype=dtype, dtypes=dtypes
            )
        else:
            new = OperatorLinear(record, width, entries, shapes, bias=old.bias is not None, dtype=dtype, dtypes=dtypes)
    new.train(old.training)
    setattr(model.get_submodule(parent), leaf, new)


def features(module: nn.Module) -> tuple[int, int]:
    """Width of the inputs and of the outputs of a linear map; GPT-2's Conv1D stores its weight transposed."""
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.weight.shape[1]
    assert isinstance(module, nn.Linear)
    return module.in_features, module.out_features


def retie(model: Any, modules: Mapping[str, Mapping[str, Any]]) -> None:
    """Extend the model's table of tied parameters to the further tensors of an operator that two modules share, and to single ones.

    transformers ties parameters alone. Buffers of the second module are neither loaded nor saved: ``share_buffers`` puts the first
    one's in their place.

    Raises ``EckartError`` where a module is to share a tensor that is not there, of another shape, or itself another's.
    """
    further: dict[str, str] = {}
    for owner, twin in shared(model, modules):
        parameters = dict(model.get_submodule(owner).named_parameters(recurse=False))
        for name in model.get_submodule(owner).layout[1:]:
            if name in parameters:
                further[f"{twin}.{name}"] = f"{owner}.{name}"
            else:
                model.get_submodule(twin).register_buffer(
                    name, model.get_submodule(twin).get_buffer(name), persistent=False
                )
    single, shapes = dict(_single(modules)), {name: held.shape for name, held in model.named_parameters()}
    for copy, source in single.items():
        if source in single or shapes.get(source) != shapes[copy]:
            raise EckartError(
                f"config.json says that {copy} is {source}, which is no tensor of that shape that the model stores"
            )
    if further or single:
        model.all_tied_weights_keys = dict(getattr(model, "all_tied_weights_keys", None) or {}) | further | single
        patterns = {_pattern(copy): _pattern(source) for copy, source in single.items()}
        model._tied_weights_keys = dict(model._tied_weights_keys or {}) | further | patterns  # what saving looks at
    if single:
        model._adjust_bias = adjust_bias


def share_buffers(model: Any, modules: Mapping[str, Mapping[str, Any]]) -> None:
    """Give modules that share an operator the same buffers, once they are loaded."""
    for owner, twin in shared(model, modules):
        for name, buffer in model.get_submodule(owner).named_buffers(recurse=False):
            setattr(model.get_submodule(twin), name, buffer)


def shared(model: Any, modules: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Pairs of modules of which the second one holds the operator of the first."""
    ties = dict(getattr(model, "all_tied_weights_keys", None) or {})
    pairs = dict.fromkeys((source.rpartition(".")[0], copy.rpartition(".")[0]) for copy, source in ties.items())
    return [(owner, twin) for owner, twin in pairs if owner in modules and twin in modules]


def _single(modules: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """The parameters that are other modules' as well, each with the one that is stored."""
    for name, entry in modules.items():
        read = read_entry(entry)
        for side, source in read.shared.items():
            yield f"{name}.{stored_name(side, tuple(read.shapes))}", source


def _pattern(parameter: str) -> str:
    """A parameter's name as transformers searches for it: as a pattern, which without an end would fit ``blocks_10`` for ``blocks_1``.

    Names of weights are left as they are: where there are no others they are taken for names.
    """
    return parameter if parameter.endswith(".weight") else f"{parameter}$"


def adjust_bias(module: nn.Module, source: Tensor) -> None:
    """What a model does where it ties: cut the module's bias to the rows of ``weight``, unless that is one block of rows among several."""
    from transformers import PreTrainedModel

    if not isinstance(module, OperatorLinear):
        PreTrainedModel._adjust_bias(None, module, source)  # it looks at nothing of the model
