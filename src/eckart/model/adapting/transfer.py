"""A model under another vocabulary: new rows before a map of its embedding that stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from eckart.adapters.base import LessAll
from eckart.adapters.forms import Pair
from eckart.adapters.seed import LEFT, RIGHT, Seen
from eckart.bound import Bound
from eckart.errors import EckartError
from eckart.linalg import bounds_of, psd_root
from eckart.model.adapting.modules import Adapted, kind_for, matrix_of
from eckart.model.adapting.places import put
from eckart.model.adapting.recipe import Adapt
from eckart.model.adapting.wrap import Begun, begin
from eckart.model.adapting.wrapped import Wrapped
from eckart.model.run import seeded
from eckart.operator import Factors

Sources = Sequence[int | None]  # for each id of the new vocabulary the same token's old one, where there was one


@dataclass(frozen=True)
class Transferred:
    """A model with adapters in the place of its embedding, and of its head: rows of numbers F' for each new token, before a map G.

    ``tied`` tells of heads that hold the same as the embedding, ``bounds`` how far ``F G`` is from each table that it was found for.
    """

    wrapped: Wrapped
    tied: Mapping[str, str]
    bounds: Mapping[str, Bound]

    def merge(self) -> Any:
        """The model with dense tables ``F' G``, tied where they were: a stock model of the new vocabulary."""
        model = self.wrapped.model
        heads = {name: model.get_submodule(name).base for name in self.tied}
        for name, head in heads.items():
            head.weight = nn.Parameter(torch.empty(0), requires_grad=False)
            put(model, name, head)
        self.wrapped.merge()
        for name, head in heads.items():
            head.weight = model.get_submodule(self.tied[name]).weight
        return model


def overlap(old: Any, new: Any) -> tuple[int | None, ...]:
    """For each id of a tokenizer the id of the same string in another one, of special tokens that of the same role; ``None`` for others."""
    there, own = old.get_vocab(), new.get_vocab()
    found: list[int | None] = [None] * (max(own.values()) + 1)
    for token, index in own.items():
        found[index] = there.get(token)
    roles = old.special_tokens_map
    for role, token in new.special_tokens_map.items():
        index = own.get(token) if isinstance(token, str) else None
        if index is not None and found[index] is None and isinstance(roles.get(role), str):
            found[index] = there.get(roles[role])
    return tuple(found)


def transfer(model: Any, sources: Sources, recipe: Adapt, *, rank: int = 100, seed: int = 0) -> Transferred:
    """Give a model another vocabulary whose tokens share the map G of factors ``F G`` near its embedding; all but F' is frozen.

    ``sources`` tells for each new id which old one is the same token (``overlap`` finds them by their strings). Its row of F' is that
    of F; the others are drawn from the normal distribution that has the mean and the covariance of F's rows. A head that is tied to
    the embedding has the same ``F' G``, another one factors of its own; its bias goes along, with the mean for new tokens. How the
    factors are found the recipe says. Special ids of the configuration are told anew. The model is changed in place.

    Raises ``EckartError`` for sources that the model has no rows for, for a recipe that puts no pair of factors in the place of a weight,
    and for a rank that is too large.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if recipe.form != Pair() or recipe.base != LessAll() or recipe.needs:
        raise EckartError(
            "a vocabulary has a pair of factors in the place of its table, found without a text: take such a recipe (semi-nmf-embeddings)"
        )
    size = len(matrix_of(embedding))
    wrong = [old for old in sources if old is not None and not 0 <= old < size]
    if wrong or not sources:
        told = f"{wrong[0]} is no id of the {size} that the model has" if wrong else "there are no ids"
        raise EckartError(f"{told}: give for each new id an old one, or None")
    is_tied = head is not None and head.weight is embedding.weight
    tables = [embedding] if head is None or is_tied else [embedding, head]
    fitted = {_name_of(model, module): _fitted(recipe, matrix_of(module).detach(), rank, seed) for module in tables}
    bias = getattr(head, "bias", None)
    biases = None if bias is None else _taken_over(bias.detach(), bias.detach().mean().expand(len(sources)), sources)
    model.resize_token_embeddings(len(sources), mean_resizing=False)
    _renumber(model, sources)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    head = model.get_output_embeddings()
    if biases is not None:
        head.bias.data.copy_(biases)
    adapters: dict[str, Adapted] = {}
    for name, (begun, _) in fitted.items():
        left = begun.params[LEFT]
        rows = _taken_over(left, _drawn_like(left, len(sources), seeded(seed, f"vocabulary/{name}")), sources)
        adapters[name] = _installed(model, name, recipe, begun, {**begun.params, LEFT: rows})
    tied = {}
    if is_tied:
        (source, adapter), name = next(iter(adapters.items())), _name_of(model, head)
        other = _installed(model, name, recipe, fitted[source][0], adapter.params)
        for key, tensor in adapter.params.items():
            setattr(other, key, tensor)  # the same tensors, of which one optimiser knows
        tied[name] = source
    made = Wrapped(model, recipe, rank, adapters)
    for _, parameter, _ in made.trainable():
        parameter.requires_grad_(True)
    return Transferred(made, tied, {name: bound for name, (_, bound) in fitted.items()})


def _name_of(model: Any, module: nn.Module) -> str:
    return next(name for name, other in model.named_modules() if other is module)


def _fitted(recipe: Adapt, table: Tensor, rank: int, seed: int) -> tuple[Begun, Bound]:
    """Factors near a table (entries, width), and how near they are."""
    wide = table.to(torch.float32)
    try:
        begun = begin(recipe, Seen(wide), rank, recipe.scale(rank), seeded(seed, "vocabulary"))
    except ValueError as error:
        raise EckartError(f"the embedding cannot be factored so: {error}") from error
    product = Factors(begun.scale * begun.params[LEFT], begun.params[RIGHT])
    return begun, bounds_of(wide, product)[0]


def _drawn_like(rows: Tensor, count: int, rng: Generator) -> Tensor:
    """Rows (count, r) drawn from the normal distribution with mean and covariance of others (m, r)."""
    wide = rows.to(torch.float64)
    mean = wide.mean(0)
    root = psd_root((wide - mean).T @ (wide - mean) / max(1, len(wide) - 1))
    return (mean + torch.randn(count, root.shape[1], generator=rng, dtype=torch.float64) @ root.T).to(rows.dtype)


def _taken_over(old: Tensor, new: Tensor, sources: Sources) -> Tensor:
    """``new``, with the old rows where there are some."""
    found = new.clone()
    known = [index for index, source in enumerate(sources) if source is not None]
    found[known] = old[[source for source in sources if source is not None]]
    return found


def _installed(model: Any, name: str, recipe: Adapt, begun: Begun, params: Mapping[str, Tensor]) -> Adapted:
    """An adapter in the place of a module whose weight is zero from here on."""
    module = model.get_submodule(name)
    module.weight.data.zero_()
    made = kind_for(module)(module, recipe.form, params, recipe.tensors, begun.scale)
    put(model, name, made)
    return made


def _renumber(model: Any, sources: Sources) -> None:
    """Tell the configurations of a model, and its embedding, the new numbers of special ids; none where they are no more."""
    now: dict[int, int] = {}
    for index, source in enumerate(sources):
        if source is not None:
            now.setdefault(source, index)
    configs = (model.config, model.config.get_text_config(), getattr(model, "generation_config", None))
    for config in {id(config): config for config in configs if config is not None}.values():
        for key, value in config.to_dict().items():
            if key.endswith("_token_id") and isinstance(value, int):
                setattr(config, key, now.get(value))
            elif key.endswith("_token_id") and isinstance(value, list):
                setattr(config, key, [now[old] for old in value if old in now] or None)
    embedding = model.get_input_embeddings()
    embedding.padding_idx = now.get(embedding.padding_idx)
