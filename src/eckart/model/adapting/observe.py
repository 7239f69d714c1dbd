"""What starts need to know, measured on batches: a few maps at a time, so that not all moments or gradients are held at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from eckart.adapters.seed import Seen, Unread
from eckart.errors import EckartError
from eckart.model.adapting.modules import CONVOLUTIONS, device_of, matrix_of, shape_of, turned, why_packed
from eckart.model.adapting.pieces import Batch, Order, Piece, Stream, Whole, backward, forward, grouped, parted
from eckart.model.linear import OperatorEmbedding, OperatorLinear
from eckart.stats import Moments, Need

ROOM, SHARE = 250_000_000, 8  # bytes of moments or gradients at any one time: these, or of the model's one in so many


def observe(
    model: Any, names: Sequence[str], needs: frozenset[Need], batches: Sequence[Batch], *, room: int | None = None
) -> Iterator[dict[str, Seen]]:
    """For one group of maps after another what is seen of them: moments of inputs, gradients of the loss, each as they are needed.

    Tokens that an attention mask hides are left out of the moments. The gradient is the mean over batches of that of the model's own
    loss, for which batches hold ``labels``. Raises ``EckartError`` where something is needed and there are no batches, or none with labels.
    """
    if needs and not batches:
        raise EckartError("this recipe starts from what the model does with a text: give batches")
    if Need.GRADIENTS in needs and not all("labels" in batch for batch in batches):
        raise EckartError("this recipe starts from gradients of the loss: give batches with labels")
    convolutions = [name for name in names if isinstance(model.get_submodule(name), CONVOLUTIONS)]
    if convolutions and needs - {Need.GRADIENTS}:
        raise EckartError(
            f"{convolutions[0]} is a convolution, of whose inputs no moments are taken: leave it out with exclude"
        )
    embeddings = [name for name in names if isinstance(model.get_submodule(name), nn.Embedding)]
    if embeddings and needs - {Need.GRADIENTS}:
        raise EckartError(
            f"{embeddings[0]} is an embedding, which has no inputs to take moments of: leave it out with exclude"
        )
    packed = {name: why for name in names if (why := why_packed(model.get_submodule(name))) is not None}
    if packed and Need.GRADIENTS in needs:
        name, why = next(iter(packed.items()))
        raise EckartError(f"{name} has no gradient: {why}")
    if room is None:
        room = max(ROOM, sum(tensor.nbytes for tensor in model.parameters()) // SHARE)
    steps = _all_seen(model, names, needs, batches, room)
    while True:
        with evaluating(model):
            found = next(steps, None)
        if found is None:
            return
        yield found
        found.clear()  # so that they are gone before the next ones come


def _all_seen(
    model: Any, names: Sequence[str], needs: frozenset[Need], batches: Sequence[Batch], room: int
) -> Iterator[dict[str, Seen]]:
    leaders, blocks = {name: name for name in names}, list[str]()
    size = {name: _bytes(model.get_submodule(name), needs, shared=False) for name in names}
    if needs - {Need.GRADIENTS} or (needs and sum(size.values()) > room):
        leaders, blocks = _looked_at(model, names, batches[0])
        size = {name: _bytes(model.get_submodule(name), needs, shared=leaders[name] != name) for name in names}
    for piece in _pieces(model, names, needs, batches, size, room, blocks):
        for group in piece.groups:
            led = {name: leaders[name] if leaders[name] in group else name for name in group}
            moments = _moments(model, piece, led, batches, needs)
            common: dict[str, dict[str, Any]] = {leader: {} for leader in moments}
            gradients = _gradients(model, piece, group, len(batches)) if Need.GRADIENTS in needs else {}
            found = {
                name: Seen(
                    _weight(module),
                    moments.get(led[name]),
                    gradients.get(name),
                    sizes=_sizes(module),
                    worked_out=common.get(led[name], {}),
                )
                for name, module in ((name, model.get_submodule(name)) for name in group)
            }
            del moments, gradients
            yield found


def _pieces(
    model: Any,
    names: Sequence[str],
    needs: frozenset[Need],
    batches: Sequence[Batch],
    size: Mapping[str, int],
    room: int,
    blocks: Sequence[str],
) -> Iterator[Piece]:
    """The blocks in stretches, where they are run one after another, and the whole model for all maps that are in none of them."""
    of_gradients = Need.GRADIENTS in needs
    inside: dict[int, list[str]] = {}
    for number, block in enumerate(blocks):
        inside |= {number: maps} if (maps := [name for name in names if name.startswith(f"{block}.")]) else {}
    outside = [name for name in names if not any(name in maps for maps in inside.values())]
    if inside:
        stream = Stream(model, blocks, batches)
        # Behind the last map that is looked at nothing has to be run, but for a loss.
        stop = len(blocks) if of_gradients else max(inside) + 1
        parts = parted(inside, size, room, together=of_gradients, stop=stop)
        yield from (backward if of_gradients else forward)(stream, parts)
    if outside:
        yield Whole(model, batches, list(grouped(outside, size, room)))


def _sizes(module: nn.Module) -> tuple[int, ...]:
    return tuple(module.weight.shape) if isinstance(module, CONVOLUTIONS) else ()


def _weight(module: nn.Module) -> Tensor:
    why = why_packed(module)
    return matrix_of(module).detach() if why is None else Unread.of(shape_of(module), device_of(module), why)


def _bytes(module: nn.Module, needs: frozenset[Need], *, shared: bool) -> int:
    """What is made for a map: its moments, its gradient, and the weight of one that holds an operator."""
    m, n = shape_of(module)
    matrices = int(Need.GRADIENTS in needs) + isinstance(module, OperatorLinear | OperatorEmbedding)
    return 4 * m * n * matrices + (8 * n * n if Need.GRAM in needs and not shared else 0)


@torch.no_grad()
def _looked_at(model: Any, names: Sequence[str], batch: Batch) -> tuple[dict[str, str], list[str]]:
    """For each map the first one that is handed the very same tensor, one after the other, itself where there is none; and the blocks.

    There are none where they are not run one after another.
    """
    found: dict[str, str] = {}
    last: list[tuple[str, Tensor]] = []

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if not last or last[0][1] is not args[0]:
                last[:] = [(name, args[0])]
            # A map that is called again, with something else, is on its own.
            found[name] = last[0][0] if found.get(name, last[0][0]) == last[0][0] else name

        return hook

    with Order(model) as order, _hooked(model, {name: note(name) for name in names}):
        model(**batch)
    return {name: found.get(found.get(name, name), name) for name in names}, order.blocks


@torch.no_grad()
def _moments(
    model: Any, piece: Piece, led: Mapping[str, str], batches: Sequence[Batch], needs: frozenset[Need]
) -> dict[str, Moments]:
    """Of the inputs of those that lead others, where they are needed."""
    if not needs - {Need.GRADIENTS}:
        return {}
    leading = {name: model.get_submodule(name) for name, leader in led.items() if name == leader}
    found = {
        name: Moments.zeros(shape_of(module)[1], gram=Need.GRAM in needs, device=device_of(module))
        for name, module in leading.items()
    }
    hidden: Tensor | None = None

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            rows = args[0].detach().flatten(0, -2)
            found[name].add(rows if hidden is None or len(hidden) != len(rows) else rows[hidden])

        return hook

    with _hooked(model, {name: note(name) for name in leading}):
        for number, batch in enumerate(batches):
            mask = batch.get("attention_mask")
            hidden = None if mask is None or mask.ndim != 2 else mask.bool().flatten()
            piece.run(number)
    return found


def _gradients(model: Any, piece: Piece, names: Sequence[str], count: int) -> dict[str, Tensor]:
    """Means over batches, added up as each weight's is there: all of one batch are never held beside them."""
    modules = {name: model.get_submodule(name) for name in names}
    found = {name: torch.zeros(shape_of(module), device=device_of(module)) for name, module in modules.items()}
    weights = {id(module.weight): module.weight for module in modules.values()}

    def add(weight: Tensor) -> None:
        assert weight.grad is not None
        for name, module in modules.items():
            if module.weight is weight:
                found[name].add_(turned(module, weight.grad), alpha=1 / count)
        weight.grad = None

    for parameter in model.parameters():
        parameter.requires_grad_(False)
    handles = [weight.requires_grad_(True).register_post_accumulate_grad_hook(add) for weight in weights.values()]
    try:
        with torch.enable_grad():
            for batch in range(count):
                piece.back(batch)
    finally:
        for handle in handles:
            handle.remove()
        for weight in weights.values():
            weight.requires_grad_(False)
    return found


@contextmanager
def _hooked(model: Any, hooks: Mapping[str, Any]) -> Iterator[None]:
    handles = [model.get_submodule(name).register_forward_pre_hook(hook) for name, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Without dropout, and without keys and values kept for tokens to come, for the time of the context."""
    training, config = model.training, getattr(model, "config", None)
    keeps = bool(getattr(config, "use_cache", False))
    model.eval()
    if config is not None and keeps:
        config.use_cache = False
    try:
        yield
    finally:
        model.train(training)
        if config is not None and keeps:
            config.use_cache = True
