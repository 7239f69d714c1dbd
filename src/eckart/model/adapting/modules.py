"""Modules that stand in the place of adapted ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from eckart.adapters.forms import Directed, Form, Gated, applied, scaled
from eckart.adapters.roles import Role
from eckart.errors import EckartError
from eckart.kernels.panels import PANEL
from eckart.model.adapting.processes import together
from eckart.model.linear import OperatorEmbedding, OperatorLinear, apply_to_rows
from eckart.operator import Blueprint, Dense, Factors, Operator, Sum, describe
from eckart.operator.panels import rows

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# An OperatorLinear is a Linear, an OperatorEmbedding an Embedding.
ADAPTABLE = (nn.Linear, Conv1D, nn.Embedding, *CONVOLUTIONS)
PLAIN = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # dtypes of weights that are what they say
PACKED = "qweight"  # what modules call their weight that hold it packed and are no Linear


class Adapted(nn.Module):
    """A frozen module and the tensors of its adapter: those that train are parameters, the others buffers.

    ``taken`` is what the weight of ``base`` lacks of what it was.
    """

    def __init__(
        self,
        base: Any,
        form: Form,
        params: Mapping[str, Tensor],
        roles: Mapping[str, Role],
        scale: float,
        *,
        taken: Operator | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.base, self.form, self.scale, self.roles = base, form, scale, dict(roles)
        self.dropout = nn.Dropout(dropout)
        self.felt: Tensor | None = None  # the gradient of the whole update (m, n), added up while somebody asks for it
        self.untouched = False  # whether the module does for now what it did before it was adapted
        # In the order of the roles, wherever the tensors come from: gradients are clipped by a norm that is added up in this one.
        for name, role in roles.items():
            if role.trains:
                self.register_parameter(name, nn.Parameter(params[name]))
            else:
                self.register_buffer(name, params[name])
        self._taken = None if taken is None else Blueprint.of(describe(taken))
        for name, tensor in ({} if taken is None else taken.tensors()).items():
            self.register_buffer(f"taken_{name}", _apart(tensor.detach(), params.values()))

    @property
    def params(self) -> dict[str, Tensor]:
        """The tensors of the adapter by name."""
        return {name: getattr(self, name) for name in self.roles}

    @property
    def update(self) -> Operator:
        """What is added to the weight of the base, the scale included."""
        return scaled(self.form.update(self.params), self.scale)

    def feel(self, gradient: Tensor) -> None:
        """Add a part of the gradient of the whole update to what has been felt."""
        if self.felt is not None:
            self.felt += gradient.detach()

    @property
    def taken(self) -> Operator | None:
        """What the base lacks of the weight that it was."""
        if self._taken is None:
            return None
        return self._taken.build({name: getattr(self, f"taken_{name}") for name in self._taken.names()})

    def merged(self) -> Tensor:
        """The weight (outputs, inputs) of base and adapter together, in float64; a convolution's flattened behind its outputs.

        Raises ``EckartError`` where what the adapter does depends on the token.
        """
        check_is_matrix(self.form, self.params)
        with torch.no_grad():
            params = {name: t.double() if t.is_floating_point() else t for name, t in self.params.items()}
            return applied(self.form, Dense(matrix_of(self.base).double()), params, self.scale).dense()


def check_is_matrix(form: Form, params: Mapping[str, Tensor]) -> None:
    """Raise ``NoLoraError`` where the update is no matrix, since which of its directions act depends on the token."""
    if isinstance(form, Gated) and not form.gate.is_open(form.update(params).rank):
        raise NoLoraError(
            "which directions of the adapter act depends on the token: no weight and no LoRA does the same"
        )


class NoLoraError(EckartError):
    """An adapter does what no LoRA of the rank that is allowed does."""


class AdaptedLinear(Adapted):
    """``y = base(x) + scale update x`` for a linear map of any kind.

    The update is computed in the dtype of its tensors and added in that of the base. ``dropout`` acts on the inputs of the update.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The map applied to inputs (…, in), giving (…, out)."""
        if self.untouched:
            y = self.base(x)
            return y if self.taken is None else y + apply_to_rows(self.taken, x.to(torch.float32)).to(y.dtype)
        inputs = x.to(next(iter(self.params.values())).dtype)
        if isinstance(self.form, Directed):
            base = operator_of(self.base)
            op = self.form.directed(Sum((base, self.update)), self.params)
            y = apply_to_rows(op, x.to(inputs.dtype)).to(x.dtype)
            bias = self.base.bias
            return y if bias is None else y + bias
        y = self.base(x)
        if isinstance(self.form, Gated):
            update, weights = self.form.outputs(self.params, inputs, self.dropout(inputs))
            if self.training:
                with torch.no_grad():
                    often = together().total(weights.flatten(0, -2).sum(0, keepdim=True))
                    for name, tensor in self.form.gate.moved(self.params, often).items():
                        getattr(self, name).copy_(tensor)
            return y + (self.scale * update).to(y.dtype)
        dropped = self.dropout(inputs)
        y = y + apply_to_rows(self.update, dropped).to(y.dtype)
        if self.felt is not None and y.requires_grad:
            rows = dropped.detach().flatten(0, -2)
            y.register_hook(lambda gradient: self.feel(gradient.flatten(0, -2).to(rows.dtype).T @ rows))
        return y


class AdaptedConvolution(Adapted):
    """A convolution whose weight, flattened behind its output channels, is a matrix with an adapter."""

    def forward(self, x: Tensor) -> Tensor:
        """The convolution with the weight of base and adapter together."""
        base = Dense(matrix_of(self.base))
        whole: Operator
        if self.untouched:
            whole = base if self.taken is None else Sum((base, self.taken))
        else:
            whole = applied(self.form, base, self.params, self.scale)
        dense = whole.dense()
        if self.felt is not None and dense.requires_grad:
            dense.register_hook(self.feel)
        weight = dense.reshape(self.base.weight.shape)
        return self.base._conv_forward(x, weight.to(x.dtype), self.base.bias)


class AdaptedEmbedding(Adapted):
    """``base(ids)`` and the rows of ``scale update`` of these ids, the table being a matrix (entries, width) with an adapter.

    What the base multiplies its rows with (Gemma's ``embed_scale``) multiplies those as well. Nothing drops out.
    """

    def forward(self, ids: Tensor) -> Tensor:
        """The rows of ids (…), (…, width)."""
        y: Tensor = self.base(ids)
        added = self.taken if self.untouched else self.update
        if added is None:
            return y
        rows = rows_of(added, ids, self.base.padding_idx)
        return y + (rows * getattr(self.base, "embed_scale", 1.0)).to(y.dtype)


def rows_of(op: Operator, ids: Tensor, padding: int | None = None) -> Tensor:
    """Rows (…, n) of an operator (m, n) by their indices (…); no gradient goes to the row ``padding``."""
    if isinstance(op, Factors):
        return F.embedding(ids, op.left, padding) @ op.right
    return F.embedding(ids, op.dense(), padding)


def kind_for(module: nn.Module) -> type[AdaptedLinear | AdaptedConvolution | AdaptedEmbedding]:
    """What stands in the place of a module of this kind."""
    if isinstance(module, nn.Embedding):
        return AdaptedEmbedding
    return AdaptedConvolution if isinstance(module, CONVOLUTIONS) else AdaptedLinear


def check_takes(module: nn.Module, form: Form) -> None:
    """Raise ``ValueError`` for a form that an embedding has no place for."""
    if isinstance(module, nn.Embedding) and isinstance(form, Directed | Gated):
        told = (
            "lengths, which rows of an embedding have for tokens"
            if isinstance(form, Directed)
            else "inputs, of which there are none"
        )
        raise ValueError(
            f"it is an embedding, and {type(form).__name__} goes by {told}: leave it out with exclude, or take lora"
        )


def operator_of(module: Any) -> Operator:
    """The map of a module (outputs, inputs) as an operator."""
    return module.operator if isinstance(module, OperatorLinear) else Dense(matrix_of(module))


def matrix_of(module: Any) -> Tensor:
    """The weight of a module as a matrix (outputs, inputs), of an embedding (entries, width), sharing storage where it is dense.

    Raises ``EckartError`` where another library has packed it.
    """
    if isinstance(module, OperatorLinear | OperatorEmbedding):
        return module.operator.dense()
    packed = why_packed(module)
    if packed is not None:
        raise EckartError(packed)
    return turned(module, module.weight)


def _apart(tensor: Tensor, others: Iterable[Tensor]) -> Tensor:
    """The tensor, or a copy where it has memory in common with others, which change, or is a part of something larger."""
    memory = tensor.untyped_storage()
    shared = any(memory.data_ptr() == other.untyped_storage().data_ptr() for other in others)
    return tensor.clone() if shared or memory.nbytes() > tensor.nbytes else tensor


def is_adaptable(module: Any) -> bool:
    """Whether a module is a linear map or a convolution; one that another library has packed counts where it says its sizes."""
    return isinstance(module, ADAPTABLE) or (
        isinstance(getattr(module, PACKED, None), Tensor)
        and isinstance(getattr(module, "in_features", None), int)
        and isinstance(getattr(module, "out_features", None), int)
    )


def shape_of(module: Any) -> tuple[int, int]:
    """Outputs and inputs of a module, whatever its weight is stored as; those of a convolution are behind its outputs.

    Of an embedding entries and width.
    """
    if isinstance(module, nn.Embedding):
        return module.num_embeddings, module.embedding_dim
    if isinstance(module, CONVOLUTIONS):
        return len(module.weight), module.weight[0].numel()
    if isinstance(module, Conv1D):
        n, m = module.weight.shape
        return m, n
    return module.out_features, module.in_features


def why_packed(module: Any) -> str | None:
    """Why the weight of a module can't be read as a matrix, ``None`` where it can: it is a code of some other library's."""
    weight = getattr(module, "weight", None)
    if isinstance(module, (OperatorLinear, OperatorEmbedding, *CONVOLUTIONS)):
        return None
    if isinstance(weight, Tensor) and weight.dtype in PLAIN and type(weight.data) is Tensor:
        return None
    held = weight if isinstance(weight, Tensor) else getattr(module, PACKED)
    return (
        f"its weight is packed, as {type(held.data).__name__} of {held.dtype} and shape {tuple(held.shape)}: load the model in "
        "float32 or bfloat16, or take a recipe that begins at random, such as lora, and leave its result unmerged"
    )


def device_of(module: Any) -> torch.device:
    """Where a module lies."""
    return next((tensor.device for tensor in [*module.parameters(), *module.buffers()]), torch.device("cpu"))


def turned(module: nn.Module, weight: Tensor) -> Tensor:
    """A weight, or its gradient, of a module as a matrix (outputs, inputs)."""
    return weight.T if isinstance(module, Conv1D) else weight.flatten(1)


def put_matrix(module: Any, matrix: Tensor) -> None:
    """Write a matrix (outputs, inputs) into the weight of a module, rounded to the weight's dtype."""
    with torch.no_grad():
        module.weight.copy_((matrix.T if isinstance(module, Conv1D) else matrix).reshape(module.weight.shape))


def add_to_weight(module: Any, op: Operator, times: float) -> None:
    """Add ``times`` an operator (outputs, inputs) to the weight of a module: a few rows at a time in float32, rounded to its dtype."""
    weight = module.weight.detach()
    weight = weight.T if isinstance(module, Conv1D) else weight
    for start in range(0, len(weight), PANEL):
        part = weight[start : start + PANEL]
        added = rows(op, start, start + len(part)).to(torch.float32)
        part.copy_(part.flatten(1).to(torch.float32).add(added, alpha=times).reshape(part.shape))


def without_operator(module: Any) -> Any:
    """The module, or where it holds an operator a linear map of the same shape, bias and dtype, whose weight is to be written."""
    if not isinstance(module, OperatorLinear):
        return module
    like = next(tensor for tensor in module.operator.tensors().values() if tensor.is_floating_point())
    with torch.device("meta"):
        plain = nn.Linear(module.in_features, module.out_features, bias=False, dtype=like.dtype)
    plain.to_empty(device=like.device)
    plain.bias = module.bias
    return plain.requires_grad_(False).train(module.training)
