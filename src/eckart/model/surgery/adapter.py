"""An adapter as a value: for each module the two factors of what it adds to the weight, and what else comes along."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eckart.errors import EckartError
from eckart.model.adapting.modules import CONVOLUTIONS
from eckart.operator import Factors, in_dtype

PREFIX = "base_model.model."  # what PEFT puts before the names of modules


@dataclass(frozen=True)
class Linear:
    """A linear map: ``lora_A`` (r, in) and ``lora_B`` (out, r)."""

    def names(self, module: str) -> tuple[str, str]:
        """What the right and the left factor are called in a file."""
        return f"{module}.lora_A.weight", f"{module}.lora_B.weight"

    def stored(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Right and left factor in the shapes of the file."""
        return right, left


@dataclass(frozen=True)
class Embedding(Linear):
    """A table looked up by index, seen as the map (width, entries) of which it stores the transpose."""

    def names(self, module: str) -> tuple[str, str]:
        """As ``Linear.names``; PEFT writes no ``.weight`` here."""
        return f"{module}.lora_embedding_A", f"{module}.lora_embedding_B"


@dataclass(frozen=True)
class Convolution(Linear):
    """A convolution, a matrix behind its outputs: ``lora_A`` (r, *kernel) with ``kernel`` (in, kh, kw), ``lora_B`` (out, r, 1, 1)."""

    kernel: tuple[int, ...]

    def stored(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Right and left factor with the sizes of a kernel."""
        ones = (1,) * (len(self.kernel) - 1)
        return right.reshape(len(right), *self.kernel), left.reshape(*left.shape, *ones)


def kind_of(module: Any) -> Linear:
    """What sort of module a file of adapters tells it to be."""
    if isinstance(module, nn.Embedding):
        return Embedding()
    return Convolution(tuple(module.weight.shape[1:])) if isinstance(module, CONVOLUTIONS) else Linear()


class Changing(Protocol):
    """What makes another weight of that of one module."""

    @property
    def kind(self) -> Linear:
        """What sort of module it is."""

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""

    def changed(self, weight: Tensor) -> Tensor:
        """The weight (m, n) as it is with the adapter, in its dtype."""


@dataclass(frozen=True)
class Layer:
    """What an adapter adds to the weight of one module: ``scale left @ right``, a matrix (outputs, inputs).

    ``lengths`` are those that the rows of weight and update together are brought to (a magnitude vector of DoRA), in the shape
    in which they are stored; ``None`` for a plain LoRA.

    >>> layer = Layer(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0, 0.0]]), scale=2.0)
    >>> layer.rank, layer.shape, layer.update.dense().tolist()
    (1, (2, 2), [[6.0, 0.0], [12.0, 0.0]])
    >>> layer.padded(3).rank, torch.equal(layer.padded(3).update.dense(), layer.update.dense())
    (3, True)

    Raises ``ValueError`` unless left (m, r) and right (r, n) go together.
    """

    left: Tensor  # (m, r)
    right: Tensor  # (r, n)
    scale: float = 1.0
    kind: Linear = field(default_factory=Linear)
    lengths: Tensor | None = None

    def __post_init__(self) -> None:
        Factors(self.left, self.right)  # which checks that they go together

    @property
    def rank(self) -> int:
        """The inner dimension r."""
        return self.left.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The wider one of the factors' dtypes."""
        return torch.promote_types(self.left.dtype, self.right.dtype)

    @property
    def rank_bytes(self) -> int:
        """Bytes of one rank."""
        return len(self.left) * self.left.dtype.itemsize + self.right.shape[1] * self.right.dtype.itemsize

    @property
    def update(self) -> Factors:
        """What is added, the scale in the left factor, in float64."""
        wide = in_dtype(Factors(self.left, self.right), torch.float64)
        return Factors(self.scale * wide.left, wide.right)

    def changed(self, weight: Tensor) -> Tensor:
        """``W + s B A`` for a weight (m, n), in its dtype; with magnitudes c ``diag(c / |rows|) (W + s B A)``, DoRA's.

        >>> layer = Layer(torch.ones(2, 1), torch.tensor([[3.0, 0.0]]), lengths=torch.tensor([10.0, 5.0]))
        >>> layer.changed(torch.tensor([[0.0, 4.0], [0.0, 0.0]])).tolist()
        [[6.0, 8.0], [5.0, 0.0]]
        """
        left, right = self.left.to(weight.dtype), self.right.to(weight.dtype)
        changed = torch.addmm(weight, left, right, alpha=self.scale)
        if self.lengths is None:
            return changed
        lengths = self.lengths.to(weight.dtype).flatten()
        return changed * (lengths / torch.linalg.vector_norm(changed, dim=1))[:, None]

    def padded(self, rank: int) -> Layer:
        """With columns and rows of zeros up to a rank; the update stays as it is, bit by bit."""
        more = rank - self.rank
        return replace(self, left=F.pad(self.left, (0, more)), right=F.pad(self.right, (0, 0, 0, more)))

    def scaled(self, factor: float) -> Layer:
        """The layer with the whole scale, times ``factor``, inside of its left factor, which is float32 at least then."""
        if factor * self.scale == 1.0:
            return replace(self, scale=1.0)
        wide = torch.promote_types(self.left.dtype, torch.float32)
        return replace(self, left=(factor * self.scale) * self.left.to(wide), scale=1.0)


@dataclass(frozen=True)
class Adapter:
    """Layers by module, other tensors by their names in the model, and the entries of the config that are not about ranks.

    ``others`` are modules that trained whole and biases: they stand for the tensors of these names.
    """

    layers: Mapping[str, Layer]
    others: Mapping[str, Tensor] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)

    @property
    def ranks(self) -> dict[str, int]:
        """The rank of each module."""
        return {name: layer.rank for name, layer in self.layers.items()}

    @property
    def bytes(self) -> int:
        """Bytes of all factors."""
        return sum(layer.rank * layer.rank_bytes for layer in self.layers.values())

    def check_plain(self, what: str) -> None:
        """Raise ``EckartError`` if rows have lengths of their own (DoRA): no sum of factors says what such an adapter does."""
        for name, layer in self.layers.items():
            if layer.lengths is not None:
                raise EckartError(
                    f"{what}: {name} has a magnitude vector (DoRA), so that its change of the weight is of no low rank: merge the "
                    "adapter (eckart merge-adapter), and extract a plain one from base and result (eckart lora extract)"
                )


def nearest(name: str, names: Iterable[str]) -> str:
    """What a sentence says of a module that is not there: names that are like it.

    >>> nearest("layers.0.q_prj", ["layers.0.q_proj", "layers.0.mlp.up_proj"])
    'near are layers.0.q_proj'
    >>> nearest("h.0.c_attn", ["model.layers.0.q_proj"])
    'its names look like model.layers.0.q_proj'
    """
    known: Sequence[str] = list(names)
    near = get_close_matches(name, known, n=3, cutoff=0.85)
    if near:
        return f"near are {', '.join(near)}"
    return f"its names look like {known[0]}" if known else "it has none"
