"""Every two parts of adapters that go together are run, whoever would want that; those that do not say so when they are put together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from combinations import (
    BASES,
    FORMS,
    PENALTIES,
    PICKS,
    RULES,
    SCHEDULES,
    SOURCES,
    SPLITS,
    STORED,
    Combination,
    others,
    started,
)
from torch import Tensor, nn

from eckart.adapters.stored import AsItIs
from eckart.model.adapting.modules import Adapted
from eckart.model.adapting.wrap import wrap
from eckart.model.adapting.wrapped import Wrapped
from eckart.recipes.adapters.notation import PARTS

FOUND = [*started(), *others()]
RANK = 4


class Model(nn.Module):
    """Two maps, one after the other, whose outputs shall be given ones."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(12, 8), nn.Linear(8, 12)])

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        y = self.layers[1](torch.tanh(self.layers[0](x)))
        return SimpleNamespace(loss=None if labels is None else (y - labels).square().mean(), logits=y)


def batches() -> list[dict[str, Tensor]]:
    rng = torch.Generator().manual_seed(1)
    return [
        {"x": torch.randn(3, 9, 12, generator=rng), "labels": torch.randn(3, 9, 12, generator=rng)} for _ in range(2)
    ]


def outputs(model: Any) -> Tensor:
    with torch.no_grad():
        return model(batches()[0]["x"]).logits.double()


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def replaced(made: Wrapped) -> Tensor:
    """What the model computes with the weights that adapters and bases make, by hand."""
    plain = Model()
    for name, adapter in made.adapters.items():
        plain.get_submodule(name).weight.data = adapter.merged().float()
    return outputs(plain)


def name_of(made: Combination) -> str:
    return f"{made.kind}: {made.first} with {made.second}".replace(", ", "+")


@pytest.mark.parametrize("made", [made for made in FOUND if made.recipe is not None], ids=name_of)
def test_two_parts_that_go_together(made: Combination) -> None:
    recipe = made.recipe
    assert recipe is not None
    before = outputs(Model())
    wrapped = wrap(Model(), recipe, rank=RANK, batches=batches(), only=["layers.*"])
    is_matrix = not made.second.startswith("Gated")
    # What it computes is what its weights say, from the start on.
    if is_matrix:
        assert far(outputs(wrapped.model), replaced(wrapped)) < 1e-5
    # With the start taken from the weight, or a start that is zero, nothing has changed.
    at_zero = all(float(adapter.update.dense().abs().max()) == 0 for adapter in wrapped.adapters.values())
    whole = type(recipe.base).__name__ == "LessStart" or (at_zero and type(recipe.base).__name__ == "Untouched")
    if whole and recipe.stored == AsItIs() and is_matrix:
        assert far(outputs(wrapped.model), before) < 1e-5
    # Everything that is to train does, and nothing else.
    state, frozen = wrapped.begin(), {k: v.clone() for k, v in wrapped.model.state_dict().items()}
    declared = {name for name, _, _ in wrapped.trainable()}
    optimiser, moved = torch.optim.AdamW(wrapped.groups(1e-3)), set()
    for step in range(1, 7):
        wrapped.watch(step, 6)
        wrapped.model.train()
        loss = wrapped.model(**batches()[step % 2]).loss
        (loss + wrapped.penalty()).backward()
        wrapped.rule()
        optimiser.step()
        state = wrapped.scheduled(step, 6, state)
        optimiser.zero_grad()
        now = wrapped.model.state_dict()
        moved |= {name for name in declared if not torch.equal(now[name], frozen[name])}
    wrapped.model.eval()
    assert moved == declared
    assert all(torch.equal(now[k], v) for k, v in frozen.items() if k not in declared and not k.endswith("balance"))
    assert bool(torch.isfinite(outputs(wrapped.model)).all())
    if is_matrix:
        after = outputs(wrapped.model)
        assert far(after, before) > 1e-7
        assert far(outputs(wrapped.merge()), after) < 1e-5
        assert not any(isinstance(module, Adapted) for module in wrapped.model.modules())


def test_what_does_not_go_together_says_why() -> None:
    """One sentence, in which the way out or what there is instead is told."""
    refused = [made for made in FOUND if made.recipe is None]
    assert len(refused) > 100
    assert all(10 < len(made.why) < 200 and "\n" not in made.why for made in refused)


@pytest.mark.parametrize(
    ("role", "there"),
    [
        ("source", SOURCES),
        ("split", SPLITS),
        ("pick", PICKS),
        ("form", FORMS),
        ("base", BASES),
        ("stored", STORED),
        ("rule", RULES),
        ("penalties", PENALTIES),
        ("schedule", SCHEDULES),
    ],
)
def test_every_part_is_in_the_tables(role: str, there: dict[str, Any]) -> None:
    assert {type(part).__name__ for part in there.values()} == set(PARTS[role])
