"""Which linear maps of a model are approximated, and what else it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from eckart.allocate import ListedSlot, Slot
from eckart.allocate.slots import Rank
from eckart.approx import Approximator
from eckart.errors import EckartError
from eckart.model.checkpoint import Checkpoint
from eckart.model.skeleton import Skeleton
from eckart.operator import Operator


@dataclass(frozen=True)
class Target:
    """A linear map to approximate: the weight of a ``nn.Linear``, of GPT-2's ``Conv1D`` or of an embedding.

    ``shape`` is (outputs, inputs), whatever the storage; for an embedding (entries, width). ``twins`` are the modules that
    share the weight (a tied head). ``block`` is the index of the block that it lies in, ``None`` outside of all.
    """

    name: str  # the module's path
    disk: str  # the tensor's name on disk
    shape: tuple[int, int]
    dtype: torch.dtype
    transposed: bool  # stored as (inputs, outputs)
    block: int | None
    looked_up: bool = False  # an embedding: its rows are looked up by index
    twins: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Bytes of the dense weight."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    def slot(self, approx: Approximator, losses: Tensor | None = None) -> Slot | ListedSlot:
        """How an allocator sees it when it is stored as an approximator does."""
        found = approx.slot(*self.shape, self.dtype.itemsize)
        return replace(found, losses=losses, block=self.block)

    def form(self, approx: Approximator, rank: Rank) -> Operator | None:
        """What is stored of it at a rank, on the meta device; ``None`` where it stays dense."""
        return None if rank is None else approx.form(*self.shape, rank, self.dtype)

    def read(self, checkpoint: Checkpoint) -> Tensor:
        """The weight as (outputs, inputs); raises ``EckartError`` on NaN or infinity."""
        weight = checkpoint.read_finite(self.disk)
        return weight.T if self.transposed else weight

    def stored(self, matrix: Tensor) -> Tensor:
        """A matrix (outputs, inputs) in the orientation of the file."""
        return (matrix.T if self.transposed else matrix).contiguous()


@dataclass(frozen=True)
class Untouched:
    """A matrix that is left as it is, and why."""

    name: str
    shape: tuple[int, ...]
    reason: str


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern fits the module's path or a tail of it that begins after a dot.

    >>> matches("model.layers.0.self_attn.q_proj", ["q_proj"]), matches("model.layers.0.mlp.up_proj", ["*.mlp.*"])
    (True, True)
    >>> matches("model.layers.10.mlp.up_proj", ["layers.1.*"])
    False
    """
    parts = name.split(".")
    tails = [".".join(parts[i:]) for i in range(len(parts))]
    return any(fnmatchcase(tail, pattern) for tail in tails for pattern in patterns)


def find_targets(
    skeleton: Skeleton, only: Sequence[str] = (), exclude: Sequence[str] = ()
) -> tuple[list[Target], list[Untouched]]:
    """The linear maps to approximate, in the order of the model, and the matrices left alone.

    Without ``only``, the maps inside the model's blocks; with it, every map or embedding that one of the patterns fits.
    Raises ``EckartError`` if nothing is left to do or a pattern fits nothing.
    """
    targets: list[Target] = []
    untouched: list[Untouched] = []
    modules = dict(skeleton.model.named_modules())
    ties = skeleton.ties
    for disk, place in sorted(skeleton.places.items(), key=lambda item: natural(item[1] or item[0])):
        _, spec = skeleton.checkpoint.tensors[disk]
        if len(spec.shape) < 2:
            continue
        if place is None:
            untouched.append(Untouched(disk, spec.shape, "converted by transformers when it loads (stacked or fused)"))
            continue
        name, _, leaf = place.rpartition(".")
        module = modules.get(name)
        if place in ties and ties[place] in skeleton.places.values():
            continue  # a second copy of a tied weight: it follows the first
        twins = tuple(copy.rpartition(".")[0] for copy, source in ties.items() if source == place)
        block = skeleton.block_of(disk)
        reason = _unfit(module, leaf, spec.dtype, len(spec.shape))
        if not reason and block is None and not matches(name, only) and not any(matches(t, only) for t in twins):
            reason = "outside of the blocks (name it with --only)"
        if not reason and only and not any(matches(n, only) for n in (name, *twins)):
            reason = "not named by --only"
        if not reason and any(matches(n, exclude) for n in (name, *twins)):
            reason = "named by --exclude"
        if reason:
            untouched.append(Untouched(name if leaf == "weight" else place, spec.shape, reason))
            continue
        transposed = isinstance(module, Conv1D)
        rows, columns = reversed(spec.shape) if transposed else spec.shape
        looked_up = isinstance(module, nn.Embedding)
        targets.append(Target(name, disk, (rows, columns), spec.dtype, transposed, block, looked_up, twins))
    names = [t.name for t in targets] + [u.name for u in untouched] + [copy.rpartition(".")[0] for copy in ties]
    _check_patterns([*only, *exclude], names)
    if not targets:
        raise EckartError(
            f"{skeleton.checkpoint.folder}: no linear map to compress is left"
            + (" by --only and --exclude" if only or exclude else f" in {type(skeleton.model).__name__}")
        )
    return targets, untouched


def _unfit(module: nn.Module | None, leaf: str, dtype: torch.dtype, dimensions: int) -> str:
    """Why a tensor is no linear map that can be factored; empty if it is one."""
    if module is None:
        return "not part of the architecture in config.json"
    if dimensions != 2:
        return f"{dimensions}-dimensional"
    if leaf != "weight" or type(module) not in (nn.Linear, Conv1D, nn.Embedding):
        return f"part of a {type(module).__name__}, not of a plain linear map"
    if dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        return f"stored as {dtype}: not a plain floating-point matrix"
    return ""


def _check_patterns(patterns: Sequence[str], names: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(matches(name, [pattern]) for name in names):
            raise EckartError(f"the pattern {pattern!r} fits no matrix of the model; names look like {names[0]}")


def natural(name: str) -> list[tuple[bool, int, str]]:
    """A sort key that puts layer 10 after layer 9."""
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in name.split(".")]
