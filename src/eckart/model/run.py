"""What all stages of a compression share."""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors
import torch
import transformers
from safetensors.torch import load_file
from torch import Generator, Tensor

from eckart._version import __version__
from eckart.errors import EckartError
from eckart.metric import Metric
from eckart.model.checkpoint import Checkpoint
from eckart.model.compression import AnyRecipe, Compress, Share, Statistics
from eckart.model.journal import Journal
from eckart.model.layout import Forms, Ranks, forms_of, output_bytes
from eckart.model.progress import Progress, quiet
from eckart.model.skeleton import Skeleton
from eckart.model.targets import Target, Untouched
from eckart.model.walk import Walk
from eckart.operator import Factors
from eckart.stats import MetricRule, Moments, Need


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be done to a model: one of ``keep`` and ``size``, unless the recipe tells the size, and where the statistics come from.

    ``keep`` is the share of the targets' bytes that may remain, ``size`` the bytes of all safetensors files together.
    ``quick`` leaves out the spectral norm, and for large matrices the lower bound that comes near the optimum.
    Raises ``EckartError`` for values that make no sense.
    """

    keep: float | None = None
    size: int | None = None
    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    calibration: Path | None = None
    tokens: int = 32768
    window: int | None = None
    seed: int = 0
    device: str = "cpu"
    quick: bool = False

    def __post_init__(self) -> None:
        if self.keep is not None and not 0 < self.keep <= 1:
            raise EckartError(f"--keep is {self.keep:g}: give a fraction above 0 and at most 1")
        if self.size is not None and self.size <= 0:
            raise EckartError(f"--bytes is {self.size}: give a size above 0")
        if self.tokens < 1:
            raise EckartError(f"--tokens is {self.tokens}: give at least one window of tokens")
        find_device(self.device)


def find_device(name: str) -> torch.device:
    """The device of this name, tried out; raises ``EckartError`` if it can't compute here.

    >>> find_device("cpu")
    device(type='cpu')
    """
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError) as error:
        raise EckartError(f"--device is {name!r}, on which nothing can be computed here: try cpu") from error
    return torch.device(name)


@dataclass(kw_only=True)
class Run:
    """One compression under way."""

    checkpoint: Checkpoint
    skeleton: Skeleton
    recipe: AnyRecipe
    request: Request
    targets: list[Target]
    untouched: list[Untouched]
    journal: Journal
    walk: Walk | None  # None where the recipe needs no text
    source: dict[str, str]  # SHA-256 of the files of the original
    calibration: dict[str, object] | None  # what the record says of the calibration text
    progress: Progress = quiet
    counts: Tensor | None = None  # how often each token id occurs in it, where the recipe asks for that

    @property
    def blocks(self) -> int:
        """How many blocks the model has."""
        return len(self.skeleton.blocks)

    def walking(self) -> Walk:
        """The walk, where the recipe has one."""
        assert self.walk is not None
        return self.walk

    def check_tokens(self, fitted: Mapping[str, int]) -> None:
        """Raise ``EckartError`` where more is fitted to second moments than there are tokens: the rest would be left to chance."""
        name, least = max(fitted.items(), key=lambda entry: entry[1], default=("", 0))
        if self.walk is not None and self.walk.windows.numel() < least:
            tokens, window = self.walk.windows.numel(), self.walk.windows.shape[1]
            raise EckartError(
                f"what is left of {name} is fitted to the calibration text, and its {tokens} tokens are too few for that: take at least "
                f"{math.ceil(least / window) * window} (--tokens; a longer text with --calibration), or keep less"
            )

    def check_ranks(self, candidates: Mapping[str, Ranks]) -> None:
        """Raise ``EckartError`` where factors of a matrix have a rank beyond the tokens that their metric has seen."""
        seen = [target.name for target in self.targets if self.wants_gram and observed([target])]
        for ranks in candidates.values():
            forms = self.forms(ranks)
            self.check_tokens({name: op.rank for name in seen if isinstance(op := forms.get(name), Factors)})

    def in_block(self, block: int | None) -> list[Target]:
        """The targets of a block; ``None``: those outside of all."""
        return [target for target in self.targets if target.block == block]

    def file(self, name: str) -> Path:
        """A work file."""
        return self.journal.path(name)

    def rng(self, purpose: str) -> Generator:
        """A generator for one purpose, the same however far an earlier run came."""
        return seeded(self.request.seed, purpose)

    @property
    def sequential(self) -> bool:
        """Whether statistics come from the compressed model."""
        return not isinstance(self.recipe, Share) and self.recipe.statistics is Statistics.COMPRESSED

    def weight(self, target: Target) -> Tensor:
        """The weight of a target (outputs, inputs), on the device of the run."""
        return target.read(self.checkpoint).to(self.request.device)

    @property
    def matrices(self) -> Compress:
        """The recipe, where it is one of matrices."""
        assert isinstance(self.recipe, Compress)
        return self.recipe

    def forms(self, ranks: Ranks) -> Forms:
        """What is stored of every target that does not stay dense."""
        return forms_of(self.matrices.approx, self.targets, ranks)

    def output_bytes(self, ranks: Ranks) -> int:
        """The bytes of all safetensors files of the result."""
        return output_bytes(self.skeleton, self.targets, self.forms(ranks))

    def metrics(self, targets: Sequence[Target], moments: dict[str, Moments]) -> dict[str, Metric]:
        """The recipe's metric for each target; maps that share their input share the metric and its one root."""
        rule = self.matrices.metric
        if Need.GRADIENTS in rule.needs and targets:
            columns = load_file(self.file(columns_file(targets[0].block)))
            moments = {
                name: replace(seen, gradient=columns[name].to(self.request.device) if name in columns else None)
                for name, seen in moments.items()
            }
        return metrics_for(rule, targets, moments)

    @property
    def wants_gram(self) -> bool:
        """Whether second moments must be collected."""
        return Need.GRAM in self.matrices.metric.needs


def columns_file(block: int | None) -> str:
    """The work file of the gradients of columns in a block (``None``: outside of all)."""
    return f"columns-{'outside' if block is None else format(block, '04d')}.safetensors"


def seeded(seed: int, purpose: str) -> Generator:
    """A generator that depends on the seed and on what it is for, and on nothing else."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def observed_name(target: Target) -> str:
    """The module whose inputs a target's metric is made from: for a tied embedding the head."""
    return target.twins[0] if target.looked_up and target.twins else target.name


def observed(targets: Sequence[Target]) -> list[str]:
    """The modules to observe for these targets; a plain embedding has no input vectors."""
    return [observed_name(target) for target in targets if not target.looked_up or target.twins]


def metrics_for(rule: MetricRule, targets: Sequence[Target], moments: Mapping[str, Moments]) -> dict[str, Metric]:
    """The rule's metric for each target, one for all that share their input.

    Where nothing was seen (an embedding, an expert that is never chosen) it is the plain one.
    """
    made: dict[int, Metric] = {}
    found: dict[str, Metric] = {}
    for target in targets:
        seen = moments.get(observed_name(target))
        if id(seen) not in made:
            made[id(seen)] = Metric.plain() if seen is None else rule(seen)
        found[target.name] = made[id(seen)]
    return found


def environment() -> dict[str, object]:
    """What beside input and options decides the bytes of a result."""
    return {
        "eckart": __version__,
        "torch": str(torch.__version__),
        "transformers": str(transformers.__version__),
        "safetensors": str(safetensors.__version__),
        "cpu": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
    }
