"""How far a student is from its teacher, as parts that training minimises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Seen:
    """What a model made of windows: logits (windows, tokens, vocabulary) and hidden states (windows, tokens, width) behind some blocks."""

    logits: Tensor
    states: tuple[Tensor, ...] = ()


class Match(Protocol):
    """A loss between a student and its teacher, a scalar tensor."""

    @property
    def states(self) -> bool:
        """Whether hidden states are looked at."""
        ...

    def __call__(self, student: Seen, teacher: Seen) -> Tensor:
        """The loss."""
        ...


@dataclass(frozen=True)
class Logits:
    """``T^2 KL(softmax(t / T) || softmax(s / T))``, the mean over tokens: in nats per token at the temperature T = 1.

    The factor keeps gradients of one size at every temperature.

    >>> import torch
    >>> teacher, student = (Seen(torch.tensor([[[0.0, x]]]).log_softmax(-1)) for x in (0.0, 1.0))
    >>> round(float(Logits()(student, teacher)), 4)  # 0.5 log(0.5 / 0.268941) + 0.5 log(0.5 / 0.731059)
    0.1201

    Raises ``ValueError`` for a temperature that is not above 0.
    """

    temperature: float = 1.0
    states: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature {self.temperature:g} must be above 0")

    def __call__(self, student: Seen, teacher: Seen) -> Tensor:
        """Of logits of the same shape."""
        own, theirs = ((seen.logits.float() / self.temperature).log_softmax(-1) for seen in (student, teacher))
        return self.temperature**2 * F.kl_div(own, theirs, reduction="sum", log_target=True) / own[..., 0].numel()


@dataclass(frozen=True)
class Features:
    """The mean of ``||s - t||^2 / ||t||^2`` over the places between blocks, s and t being all hidden states of the batch there.

    >>> import torch
    >>> student, teacher = (Seen(torch.zeros(1, 1, 2), (torch.tensor([[x]]),)) for x in ([1.0, 2.0], [2.0, 0.0]))
    >>> float(Features()(student, teacher))
    1.25
    """

    states: ClassVar[bool] = True

    def __call__(self, student: Seen, teacher: Seen) -> Tensor:
        """Of hidden states at the same places."""
        pairs = zip(student.states, teacher.states, strict=True)
        shares = [(own - theirs).square().mean() / theirs.square().mean() for own, theirs in pairs]
        return sum(shares[1:], shares[0]) / len(shares)


@dataclass(frozen=True)
class Together:
    """``first + weight second``.

    >>> Together(Logits(), Features(), weight=0.5).states
    True

    Raises ``ValueError`` for a weight below 0.
    """

    first: Match
    second: Match
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise ValueError(f"weight {self.weight:g} must not be below 0")

    @property
    def states(self) -> bool:
        """Whether one of both looks at hidden states."""
        return self.first.states or self.second.states

    def __call__(self, student: Seen, teacher: Seen) -> Tensor:
        """Of whatever both look at."""
        return self.first(student, teacher) + self.weight * self.second(student, teacher)


def look(model: Any, ids: Tensor, blocks: Sequence[str] = ()) -> Seen:
    """Run a model on windows of ids (windows, tokens), and note what the blocks of these names give."""
    states: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        def hook(module: object, inputs: object, output: Any) -> None:
            states[name] = output[0] if isinstance(output, tuple) else output

        return hook

    hooks = [model.get_submodule(name).register_forward_hook(note(name)) for name in blocks]
    try:
        logits = model(input_ids=ids, use_cache=False).logits
    finally:
        for handle in hooks:
            handle.remove()
    return Seen(logits, tuple(states[name] for name in blocks))
