"""From a model with a smaller vocabulary back to one with the original's: its rows go where they came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from eckart.errors import EckartError
from eckart.model.certificate import NAME as CERTIFICATE
from eckart.model.certificate import Certificate
from eckart.model.checkpoint import Checkpoint, resolve
from eckart.model.files import sha256_of
from eckart.model.graph import graph_of
from eckart.model.progress import Progress, quiet
from eckart.model.rewrite import Rewriting, check_place, rewrite
from eckart.model.skeleton import Skeleton
from eckart.model.tensorfile import TensorSpec
from eckart.model.vocabulary import BOND, rows_of
from eckart.model.words import NAME, Vocabulary, read_words


def restore(
    folder: str | Path, original: str | Path, out: str | Path, *, restart: bool = False, progress: Progress = quiet
) -> Path:
    """Write the original with everything that a smaller model made of it has: the rows of its tokens, and all other weights.

    Rows of the other tokens, config, tokenizer and the division into files are the original's; where nothing was trained all of it is, bit
    by bit. Weights that were trained in another dtype keep theirs, and the config says so. One tensor is in memory at a time. A run that
    was killed goes on when it is repeated; ``restart`` begins anew. The README's example is run by the tests.

    Raises ``EckartError`` if ``folder`` has no smaller vocabulary, if it was not made from ``original`` (as far as that can be told), and
    if ``out`` is not free.
    """
    folder, out = Path(folder), Path(out)
    check_place(out)
    small, whole = Checkpoint(folder), Checkpoint(resolve(original))
    words = read_words(folder)
    if words is None:
        raise EckartError(
            f"{folder} holds no {NAME}: if it was trained, take that file from the model that training began with; else there is nothing "
            "to restore"
        )
    if "quantization_config" in small.config:
        raise EckartError(f"{folder} is compressed beside its vocabulary: densify it first")
    if "quantization_config" in whole.config:
        raise EckartError(f"{whole.folder} is compressed itself: name the original with --original")
    axes = rows_of(whole, graph_of(whole))
    source = whole.file_hashes()
    if (folder / CERTIFICATE).is_file():
        told = Certificate.read(folder)
        if any(bond.name == BOND for bond in told.bonds) and dict(told.source) != source:
            raise EckartError(f"{whole.folder} is not the model that {folder} was made from: its files are others")
    pairs = _Pairs.of(small, whole, axes, words)
    header = {"source": small.file_hashes() | {NAME: sha256_of(folder / NAME)}, "original": source}
    plan = Rewriting(
        stage="restore",
        source=whole,
        specs=lambda file: [pairs.spec(spec) for spec in whole.specs(file)],
        metadata=whole.metadata,
        produce=pairs.tensor,
        config=pairs.config(),
    )
    return rewrite(plan, out, header, restart=restart, progress=progress)


@dataclass(frozen=True)
class _Pairs:
    """For each tensor of the original that of the smaller model, by the names on disk; tensors that are no weights have none."""

    small: Checkpoint
    whole: Checkpoint
    axes: dict[str, int]
    words: Vocabulary
    names: dict[str, str]

    @classmethod
    def of(cls, small: Checkpoint, whole: Checkpoint, axes: dict[str, int], words: Vocabulary) -> _Pairs:
        """Matched by the parameters that they become, which another division or another way to save does not change.

        Raises ``EckartError`` for weights that one model has and the other has not, or in another shape.
        """
        here, there = Skeleton(small), Skeleton(whole)
        here.check_weights()
        places = {place or name: name for name, place in here.places.items()}
        names = {}
        for name, place in there.places.items():
            own = place or name
            partner = places.get(own) or places.get(here.ties.get(own, ""))
            if partner is not None:
                names[name] = partner
            elif name in there.stored:
                raise EckartError(f"{small.folder} holds no tensor for {name}, which {whole.folder} has")
        left = sorted(here.stored - {*names.values()})
        if left:
            raise EckartError(f"{small.folder} holds {left[0]}, for which {whole.folder} has no place")
        found = cls(small, whole, axes, words, names)
        for name in names:
            found.check(name)
        return found

    def check(self, name: str) -> None:
        """Raise ``EckartError`` if a tensor of the smaller model is not the original's, or the rows of it that are left."""
        full, shape = self.whole.tensors[name][1].shape, list(self.small.tensors[self.names[name]][1].shape)
        axis = self.axes.get(name)
        wanted = [len(self.words.kept) if place == axis else side for place, side in enumerate(full)]
        if shape != wanted or (axis is not None and full[axis] != self.words.size):
            raise EckartError(
                f"{self.names[name]} has the shape {shape} in {self.small.folder} and {list(full)} in {self.whole.folder}, "
                f"and {NAME} tells of {len(self.words.kept)} of {self.words.size} ids: they do not belong together"
            )

    def spec(self, spec: TensorSpec) -> TensorSpec:
        """What is stored; rows of two dtypes in one that holds the numbers of both."""
        if spec.name not in self.names:
            return spec
        dtype = self.small.tensors[self.names[spec.name]][1].dtype
        rows = spec.name in self.axes
        return TensorSpec(spec.name, torch.promote_types(dtype, spec.dtype) if rows else dtype, spec.shape)

    def tensor(self, name: str) -> Tensor:
        """The tensor of the result."""
        if name not in self.names:
            return self.whole.read(name)
        trained = self.small.read(self.names[name])
        if name not in self.axes:
            return trained
        made = self.whole.read(name).to(self.spec(self.whole.tensors[name][1]).dtype)
        return made.index_copy_(self.axes[name], self.words.old, trained.to(made.dtype))

    def config(self) -> dict[str, object] | None:
        """The original's config, as it is unless the weights have another dtype now."""
        if all(self.spec(spec).dtype == spec.dtype for _, spec in self.whole.tensors.values()):
            return None
        dtype = self.small.config.get("dtype", self.small.config.get("torch_dtype"))
        rest = {key: value for key, value in self.whole.config.items() if key not in ("dtype", "torch_dtype")}
        return rest if dtype is None else rest | {"dtype": dtype}
