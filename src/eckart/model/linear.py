"""The one module that holds an operator in place of a dense weight."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eckart.operator import Blueprint, Dense, Diagonal, Factors, Operator, Product, Record, Sum, describe
from eckart.operator.protocol import apply


def apply_to_rows(op: Operator, x: Tensor) -> Tensor:
    """``x @ op.T`` for inputs x (…, n), giving (…, m): a linear map as modules want it.

    >>> apply_to_rows(Factors(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0, 1.0]])), torch.tensor([[1.0, 1.0]])).tolist()
    [[4.0, 8.0]]
    """
    if isinstance(op, Factors):
        return F.linear(F.linear(x, op.right), op.left)
    if isinstance(op, Dense):
        return F.linear(x, op.matrix)
    if isinstance(op, Diagonal):
        return x * op.values
    if isinstance(op, Sum):
        return reduce(torch.add, (apply_to_rows(term, x) for term in op.terms))
    if isinstance(op, Product):
        return reduce(lambda y, factor: apply_to_rows(factor, y), reversed(op.factors), x)
    return apply(op, x.reshape(-1, x.shape[-1]).T).T.reshape(*x.shape[:-1], op.shape[0])


class _Holder(nn.Module):
    """Registers an operator's tensors: the first one as ``weight``, the others under their own names.

    Floating ones are parameters, the others buffers, which no gradient and no cast of a model touches. The stock name
    makes loading without this library fail on its shape instead of leaving random weights.
    """

    record: Record
    layout: tuple[str, ...]  # the operator's tensor names, the first stored as "weight"

    def _hold(
        self,
        record: Record,
        shapes: Mapping[str, tuple[int, ...]],
        dtype: torch.dtype | None,
        dtypes: Mapping[str, torch.dtype],
    ) -> None:
        self.record, self._blueprint = record, Blueprint.of(record)
        self._blueprint.check_names(shapes)
        self.layout = tuple(self._blueprint.names())
        for name in self.layout:
            tensor, stored = torch.empty(shapes[name], dtype=dtypes.get(name, dtype)), stored_name(name, self.layout)
            if tensor.is_floating_point():
                self.register_parameter(stored, nn.Parameter(tensor))
            else:
                self.register_buffer(stored, tensor)

    @property
    def operator(self) -> Operator:
        """The operator made of the current parameters."""
        return self._blueprint.build({name: getattr(self, stored_name(name, self.layout)) for name in self.layout})


def stored_name(name: str, layout: tuple[str, ...]) -> str:
    """What a module calls an operator's tensor: ``weight`` for the first of its layout."""
    return "weight" if name == layout[0] else name


class OperatorLinear(_Holder, nn.Linear):
    """``y = op x + bias`` for any operator, described by its record; a ``nn.Linear`` to whoever asks, so that PEFT adapts it.

    Its tensors have these ``shapes`` and the dtype ``dtype``, those named in ``dtypes`` another.

    It overrides ``forward`` and leaves ``nn.Linear.__init__`` out, which would allocate the dense weight.

    >>> layer = OperatorLinear({"kind": "factors"}, 4, 3, {"left": (3, 2), "right": (2, 4)}, bias=False)
    >>> [(name, tuple(p.shape)) for name, p in layer.named_parameters()]
    [('weight', (3, 2)), ('right', (2, 4))]
    """

    def __init__(
        self,
        record: Record,
        in_features: int,
        out_features: int,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        bias: bool,
        dtype: torch.dtype | None = None,
        dtypes: Mapping[str, torch.dtype] = MappingProxyType({}),
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = in_features, out_features
        self._hold(record, shapes, dtype, dtypes)
        self.register_parameter("bias", nn.Parameter(torch.empty(out_features, dtype=dtype)) if bias else None)

    @classmethod
    def of(cls, op: Operator, bias: Tensor | None = None) -> OperatorLinear:
        """The module that holds copies of the tensors of ``op`` (out, in); one that stands in two places becomes two.

        >>> import torch
        >>> from eckart.operator import Diagonal
        >>> layer = OperatorLinear.of(Diagonal(torch.tensor([2.0, 3.0])), bias=torch.tensor([0.0, 1.0]))
        >>> layer(torch.tensor([[1.0, 1.0]])).tolist()
        [[2.0, 4.0]]
        """
        tensors, (m, n) = op.tensors(), op.shape
        dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        with torch.device("meta"):
            module = cls(describe(op), n, m, shapes, bias=bias is not None, dtypes=dtypes)
        for name, tensor in tensors.items():
            copied = tensor.detach().clone(memory_format=torch.contiguous_format)
            held = nn.Parameter(copied) if tensor.is_floating_point() else copied
            setattr(module, stored_name(name, module.layout), held)
        if bias is not None:
            module.bias = nn.Parameter(bias.detach().clone())
        return module

    def forward(self, x: Tensor) -> Tensor:
        """The map applied to inputs (…, in), giving (…, out)."""
        y = apply_to_rows(self.operator, x)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """Sizes and kind, as printed by ``print(model)``."""
        return f"{self.in_features} -> {self.out_features}, {self.record['kind']}, bias={self.bias is not None}"


class OperatorEmbedding(_Holder, nn.Embedding):
    """Rows of ``op`` (entries, width) looked up by index, for factors: ``left[ids] @ right``; others are taken dense.

    >>> layer = OperatorEmbedding({"kind": "factors"}, 10, 4, {"left": (10, 2), "right": (2, 4)})
    >>> layer(torch.tensor([1, 2])).shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        record: Record,
        num_embeddings: int,
        embedding_dim: int,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        padding_idx: int | None = None,
        dtype: torch.dtype | None = None,
        dtypes: Mapping[str, torch.dtype] = MappingProxyType({}),
    ) -> None:
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim, self.padding_idx = num_embeddings, embedding_dim, padding_idx
        self.max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse = None, 2.0, False, False
        self._hold(record, shapes, dtype, dtypes)

    def forward(self, ids: Tensor) -> Tensor:
        """The rows of these indices, (…, width)."""
        op = self.operator
        if isinstance(op, Factors):
            return F.embedding(ids, op.left, self.padding_idx) @ op.right
        return F.embedding(ids, op.dense(), self.padding_idx)

    def extra_repr(self) -> str:
        """Sizes and kind, as printed by ``print(model)``."""
        return f"{self.num_embeddings}, {self.embedding_dim}, {self.record['kind']}"
