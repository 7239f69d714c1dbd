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
from eckart.stats import Moments, Need

ROOM, SHARE = 250_000_000, 8  # bytes of moments or gradients at any one time: these, or of the model's one in so many
Batch = Mapping[str, Tensor]


class _Enough(Exception):
    """Everything that was to be seen of a batch has been seen."""


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
    gram = Need.GRAM in needs
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
    of_inputs = bool(needs - {Need.GRADIENTS})
    leaders = _leaders(model, names, batches[0]) if of_inputs else {}
    size = {
        name: _bytes(shape_of(model.get_submodule(name)), needs, shared=leaders.get(name, name) != name)
        for name in names
    }
    if room is None:
        room = max(ROOM, sum(tensor.nbytes for tensor in model.parameters()) // SHARE)
    for group in _groups(names, size, room):
        led = {name: leaders[name] if leaders[name] in group else name for name in group} if of_inputs else {}
        moments = _moments(model, sorted({*led.values()}, key=names.index), batches, gram=gram) if led else {}
        common: dict[str, dict[str, Any]] = {leader: {} for leader in moments}
        gradients = _gradients(model, group, batches) if Need.GRADIENTS in needs else {}
        yield {
            name: Seen(
                _weight(module),
                moments.get(led.get(name, name)),
                gradients.get(name),
                sizes=_sizes(module),
                worked_out=common.get(led.get(name, name), {}),
            )
            for name, module in ((name, model.get_submodule(name)) for name in group)
        }


def _sizes(module: nn.Module) -> tuple[int, ...]:
    return tuple(module.weight.shape) if isinstance(module, CONVOLUTIONS) else ()


def _weight(module: nn.Module) -> Tensor:
    why = why_packed(module)
    return matrix_of(module).detach() if why is None else Unread.of(shape_of(module), device_of(module), why)


def _bytes(shape: tuple[int, int], needs: frozenset[Need], *, shared: bool) -> int:
    m, n = shape
    return (8 * n * n if Need.GRAM in needs and not shared else 0) + (4 * m * n if Need.GRADIENTS in needs else 0)


def _groups(names: Sequence[str], size: Mapping[str, int], room: int) -> Iterator[list[str]]:
    """The names in order, cut where the next one would be too much; one that is too large for the room comes alone.

    What takes no room of its own stays with what comes before it.
    """
    group: list[str] = []
    for name in names:
        if group and size[name] and sum(size[other] for other in group) + size[name] > room:
            yield group
            group = []
        group.append(name)
    yield group


@torch.no_grad()
def _leaders(model: Any, names: Sequence[str], batch: Batch) -> dict[str, str]:
    """For each map the first one that is handed the very same tensor, one after the other: itself where there is none."""
    found: dict[str, str] = {}
    last: list[tuple[str, Tensor]] = []

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if not last or last[0][1] is not args[0]:
                last[:] = [(name, args[0])]
            # A map that is called again, with something else, is on its own.
            found[name] = last[0][0] if found.get(name, last[0][0]) == last[0][0] else name

        return hook

    with evaluating(model), _hooked(model, {name: note(name) for name in names}):
        model(**batch)
    return {name: found.get(found.get(name, name), name) for name in names}


@torch.no_grad()
def _moments(model: Any, names: Sequence[str], batches: Sequence[Batch], *, gram: bool) -> dict[str, Moments]:
    found = {name: Moments.zeros(shape_of(model.get_submodule(name))[1], gram=gram) for name in names}
    hidden: Tensor | None = None

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            rows = args[0].detach().flatten(0, -2)
            found[name].add(rows if hidden is None or len(hidden) != len(rows) else rows[hidden])
            waiting.discard(name)
            if not waiting:
                raise _Enough

        return hook

    with evaluating(model), _hooked(model, {name: note(name) for name in names}):
        for batch in batches:
            waiting, mask = set(names), batch.get("attention_mask")
            hidden = None if mask is None or mask.ndim != 2 else mask.bool().flatten()
            try:
                model(**batch)
            except _Enough:
                continue
    return found


def _gradients(model: Any, names: Sequence[str], batches: Sequence[Batch]) -> dict[str, Tensor]:
    weights = {name: model.get_submodule(name).weight for name in names}
    found = {name: torch.zeros(shape_of(model.get_submodule(name))) for name in names}
    with evaluating(model):
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for weight in weights.values():
            weight.requires_grad_(True)
        try:
            for batch in batches:
                grads = torch.autograd.grad(model(**batch).loss, list(weights.values()))
                for name, grad in zip(names, grads, strict=True):
                    found[name] += turned(model.get_submodule(name), grad).float() / len(batches)
        finally:
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
    """Without dropout, for the time of the context."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
