"""A model that is in memory taken piece by piece: stretches of its blocks one after the other, each given what the one before it gave.

So every block is run once, however few maps there is room to look at, and gradients need a second forward run at most.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from eckart.errors import EckartError
from eckart.model.calling import Call, doing, listen
from eckart.model.skeleton import block_names

Batch = Mapping[str, Tensor]
Groups = Sequence[Sequence[str]]
PLAIN = (Tensor, bool, int, float, str, type(None))  # what a call may hold: nothing that a call changes


class Piece(Protocol):
    """A part of a model, and the maps of it that are looked at together."""

    @property
    def groups(self) -> Groups:
        """Names of maps, as many at a time as there is room for."""

    def run(self, batch: int) -> None:
        """Take the batch of this number through."""

    def back(self, batch: int) -> None:
        """Take the gradient of its loss back, to all that asks for one."""


class Whole:
    """All of a model."""

    def __init__(self, model: Any, batches: Sequence[Batch], groups: Groups) -> None:
        self.groups = groups
        self._model, self._batches = model, batches

    def run(self, batch: int) -> None:
        """Take a batch through."""
        self._model(**self._batches[batch])

    def back(self, batch: int) -> None:
        """Take the gradient of its loss back."""
        self._model(**self._batches[batch]).loss.backward()


class Order:
    """Notes, while it is entered and the model runs once, whether its blocks are run one after another."""

    def __init__(self, model: Any) -> None:
        self._model, self._names = model, block_names(model)
        self._handles: list[Any] = []
        self._done: list[nn.Module] = []
        self._last: Any = None
        self._broken = False

    def __enter__(self) -> Order:
        for name in self._names:
            block = self._model.get_submodule(name)
            self._handles.append(block.register_forward_hook(self._note, with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._last = None

    def _note(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = args[0] if args else None
        follows = isinstance(given, Tensor) and (not self._done or given is self._last)
        if not follows or not isinstance(output, Tensor) or not _is_plain([args[1:], kwargs]):
            self._broken = True
        self._done.append(block)
        self._last = output

    @property
    def blocks(self) -> list[str]:
        """The blocks, where each was run once and given the very tensor that the one before it gave; else none.

        One that is compiled by itself is called by another way than ``forward``, and no part of a chain.
        """
        wanted = [self._model.get_submodule(name) for name in self._names]
        compiled = any(block._compiled_call_impl is not None for block in wanted)
        return [] if self._broken or compiled or self._done != wanted else self._names


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_plain(part) for part in value)
    if isinstance(value, dict):
        return all(_is_plain(part) for part in value.values())
    return isinstance(value, PLAIN)


class Stream:
    """Batches before the first block of a model, and how each block is to be called with them."""

    def __init__(self, model: Any, blocks: Sequence[str], batches: Sequence[Batch]) -> None:
        self._model, self._batches = model, batches
        self._blocks = [model.get_submodule(name) for name in blocks]
        self._calls: list[list[Call]] = []
        self.begin = [self._listen(batch) for batch in batches]

    def __len__(self) -> int:
        return len(self._blocks)

    def _listen(self, batch: Batch) -> Tensor:
        heard = listen(self._blocks, lambda: self._model(**batch))
        if heard is None:
            raise EckartError(f"{type(self._model).__name__} runs its blocks in another way for one of the batches")
        hidden, calls = heard
        self._calls.append(calls)
        return hidden

    def through(self, batch: int, blocks: range, hidden: Tensor) -> Tensor:
        """The hidden states after these blocks."""
        for index in blocks:
            args, kwargs = self._calls[batch][index]
            hidden = self._blocks[index](hidden, *args, **kwargs)
        return hidden

    def loss(self, batch: int, hidden: Tensor) -> Tensor:
        """The model's own loss where these are the hidden states after the last block."""
        with doing(self._blocks, lambda *_, **__: hidden):
            found: Tensor = self._model(**self._batches[batch]).loss
        return found


class Stretch:
    """Blocks that follow each other, each batch's hidden states before them, and where it is known the loss's gradient behind them."""

    def __init__(
        self, stream: Stream, blocks: range, groups: Groups, given: Sequence[Tensor], above: Sequence[Tensor]
    ) -> None:
        self.groups = groups
        self._stream, self._blocks, self._given, self._above = stream, blocks, given, above
        self.gave = [torch.empty(0)] * len(given)
        self.below = [torch.empty(0)] * len(given)

    def run(self, batch: int) -> None:
        """Take a batch through."""
        self.gave[batch] = self._stream.through(batch, self._blocks, self._given[batch])

    def back(self, batch: int) -> None:
        """Take the gradient of its loss back through these blocks."""
        given = self._given[batch].detach().requires_grad_(self._blocks.start > 0)
        made = self._stream.through(batch, self._blocks, given)
        if self._blocks.stop == len(self._stream):
            self._stream.loss(batch, made).backward()
        else:
            made.backward(self._above[batch])
        if given.grad is not None:
            self.below[batch] = given.grad


def forward(stream: Stream, parts: Sequence[tuple[range, Groups]]) -> Iterator[Piece]:
    """Stretches from the first to the last; each is to be run with all batches before the next is asked for."""
    given: Sequence[Tensor] = stream.begin
    for blocks, groups in parts:
        piece = Stretch(stream, blocks, groups, given, ())
        yield piece
        given = piece.gave


def backward(stream: Stream, parts: Sequence[tuple[range, Groups]]) -> Iterator[Piece]:
    """Stretches from the last to the first; through each all batches are to be taken back before the next is asked for."""
    given: list[Sequence[Tensor]] = [stream.begin]
    with torch.no_grad():
        for blocks, _ in parts[:-1]:
            given.append([stream.through(batch, blocks, hidden) for batch, hidden in enumerate(given[-1])])
    above: Sequence[Tensor] = ()
    for blocks, groups in reversed(parts):
        piece = Stretch(stream, blocks, groups, given.pop(), above)
        yield piece
        above = piece.below


def parted(
    inside: Mapping[int, Sequence[str]], size: Mapping[str, int], room: int, *, together: bool, stop: int
) -> list[tuple[range, Groups]]:
    """Blocks up to ``stop`` in stretches that begin with a block of ``inside``, whose maps have these sizes.

    They have one such block each, or where they may go ``together`` as many as there is room for, the last ones first: what comes
    before the last stretch is run twice.

    >>> sizes = {"a": 2, "b": 2, "c": 1, "d": 2}
    >>> maps = {1: ["a"], 2: ["b", "c"], 4: ["d"]}
    >>> parted(maps, sizes, 5, together=True, stop=6)
    [(range(0, 2), [['a']]), (range(2, 6), [['b', 'c', 'd']])]
    >>> parted(maps, sizes, 5, together=False, stop=5)
    [(range(0, 2), [['a']]), (range(2, 4), [['b', 'c']]), (range(4, 5), [['d']])]
    """
    begins: list[int] = []
    names: list[list[str]] = []
    for number, maps in reversed([*inside.items()]):
        if together and names and sum(size[name] for name in (*maps, *names[0])) <= room:
            begins[0], names[0] = number, [*maps, *names[0]]
        else:
            begins.insert(0, number)
            names.insert(0, [*maps])
    ends = [*begins[1:], stop]
    return [
        (range(begin if index else 0, end), list(grouped(names[index], size, room)))
        for index, (begin, end) in enumerate(zip(begins, ends, strict=True))
    ]


def grouped(names: Sequence[str], size: Mapping[str, int], room: int) -> Iterator[list[str]]:
    """The names in order, cut where the next one would be too much; one that is too large for the room comes alone.

    What takes no room of its own stays with what comes before it.
    """
    group: list[str] = []
    for name in names:
        if group and size[name] and sum(size[other] for other in group) + size[name] > room:
            yield group
            group = []
        group.append(name)
    if group:
        yield group
