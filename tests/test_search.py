"""Ranks that are searched for before training: planted updates are found, and the model stays as it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models import ARCHITECTURES
from outputs import far, loaded, logits, token_ids
from torch import Generator, Tensor, nn

from eckart.adapters.choosing import AboveShare, TopShare
from eckart.adapters.hypergradients import Direct, Unrolled
from eckart.adapters.mixing import InGroup, Simplex, Switch
from eckart.adapters.scale import OverRank
from eckart.errors import EckartError
from eckart.model.adapting.course import Course
from eckart.model.adapting.modules import Adapted
from eckart.model.adapting.records import Example
from eckart.model.adapting.search import Search, groups_of
from eckart.model.adapting.task import Material
from eckart.model.adapting.wrap import begin_all, targets_of, wrap
from eckart.recipes.adapters.pairs import lora, pissa
from eckart.recipes.adapters.searched import autolora, diffora

RANK, BLOCKS = 8, 2
SCALE = OverRank(16.0)


class Block(nn.Module):
    """Three maps side by side, each of an input of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(16, 12, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.a(x[:, 0]), self.b(x[:, 1]), self.c(x[:, 2])], 1)


class Regression(nn.Module):
    """Blocks of maps whose outputs shall be those of other ones."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block() for _ in range(BLOCKS)])

    def forward(self, x: Tensor, labels: Tensor) -> Any:
        outputs = torch.stack([layer(x) for layer in self.layers], 1)
        return SimpleNamespace(loss=(outputs - labels).square().mean())


NAMES = [f"layers.{i}.{kind}" for i in range(BLOCKS) for kind in "abc"]


def problem(planted: dict[str, int], seed: int = 1) -> tuple[Regression, list[dict[str, Tensor]]]:
    """A model, and batches by which updates of these ranks, all of one size, are wanted in these maps, and none in others."""
    torch.manual_seed(seed)
    model, wanted = Regression(), Regression()
    wanted.load_state_dict(model.state_dict())
    for name, rank in planted.items():
        left, right = torch.linalg.qr(torch.randn(12, rank)).Q, torch.linalg.qr(torch.randn(16, rank)).Q
        wanted.get_submodule(name).weight.data += 3.4 / rank**0.5 * left @ right.T
    batches = []
    for _ in range(64):
        x = torch.randn(16, 3, 16)
        with torch.no_grad():
            outputs = torch.stack([layer(x) for layer in wanted.layers], 1)
        batches.append({"x": x, "labels": outputs + 0.1 * torch.randn_like(outputs)})
    return model, batches


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_target_of_low_rank_is_given_few_directions(seed: int) -> None:
    """By the search of AutoLoRA; beside it a target of full rank in another map is given many."""
    model, batches = problem({"layers.0.b": 1, "layers.1.a": 8}, seed)
    search = autolora(steps=300).ranks
    assert isinstance(search, Search)
    assert isinstance(search.gradient, Unrolled)
    found = search.weights(model, NAMES, batches, rank=RANK, scale=SCALE, seed=0)
    assert all(float(weights.sum()) == pytest.approx(1.0, abs=1e-5) for weights in found.values())
    ranks = search.choose(found, groups_of(model, NAMES), RANK)
    assert ranks == {name: int((weights >= (1 - 1e-6) / RANK).sum()) for name, weights in found.items()}
    assert ranks["layers.0.b"] <= 2
    assert ranks["layers.1.a"] >= 5
    assert max(ranks[name] for name in NAMES if name != "layers.1.a") <= 2
    assert max(ranks.values()) <= RANK
    carried = [float(found[name].max()) for name in ("layers.0.b", "layers.1.a")]
    assert carried[0] > 2 * carried[1]


@pytest.mark.parametrize("mixing", [Switch(), InGroup()])
@pytest.mark.parametrize("planted", [("layers.0.b", "layers.1.a"), ("layers.0.c", "layers.1.c")])
def test_the_maps_that_are_wanted_are_chosen(mixing: Any, planted: tuple[str, str]) -> None:
    model, batches = problem(dict.fromkeys(planted, 2))
    recipe = diffora(share=1 / 3)
    assert isinstance(recipe.ranks, Search)
    ranks = replace(recipe.ranks, mixing=mixing)(model, NAMES, batches, rank=RANK, scale=SCALE, seed=0)
    assert {name for name, rank in ranks.items() if rank} == set(planted)
    assert {ranks[name] for name in planted} == {RANK}
    both = replace(recipe.ranks, mixing=Switch(), choose=TopShare(1 / 3, together=True))
    model, batches = problem({"layers.1.a": 2, "layers.1.b": 2})
    ranks = both(model, NAMES, batches, rank=RANK, scale=SCALE, seed=0)
    assert {name for name, rank in ranks.items() if rank} == {"layers.1.a", "layers.1.b"}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ARCHITECTURES["llama"](tmp_path_factory.mktemp("llama") / "model")


def texts(count: int = 6) -> list[dict[str, Tensor]]:
    ids = token_ids()
    return [
        {"input_ids": ids[i % 3 : i % 3 + 1, : 20 + i], "labels": ids[i % 3 : i % 3 + 1, : 20 + i]}
        for i in range(count)
    ]


@pytest.mark.parametrize("recipe", [autolora(steps=4), diffora(steps=4, warm_up=1)])
def test_a_search_leaves_the_model_as_it_was(recipe: Any, llama: Path) -> None:
    model = loaded(llama)
    model.train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kinds = {name: type(module) for name, module in model.named_modules()}
    random = torch.get_rng_state()
    names = targets_of(model)
    found = recipe.ranks.weights(model, names, texts(), rank=6, scale=SCALE, seed=3)
    assert {name: type(module) for name, module in model.named_modules()} == kinds
    now = model.state_dict()
    assert now.keys() == state.keys()
    assert all(torch.equal(now[name], tensor) for name, tensor in state.items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)
    # It has learnt something, which depends on its seed alone.
    assert max(float((weights - weights.mean()).abs().max()) for weights in found.values()) > 1e-3 or any(
        abs(float(weights[0]) - 0.5) > 1e-3 for weights in found.values()
    )
    torch.manual_seed(99)
    again = recipe.ranks.weights(model, names, texts(), rank=6, scale=SCALE, seed=3)
    assert all(torch.equal(again[name], weights) for name, weights in found.items())


def test_a_model_is_left_as_it_was_by_a_search_that_fails(llama: Path) -> None:
    model = loaded(llama)
    with pytest.raises(IndexError):
        autolora(steps=2).ranks(  # type: ignore[union-attr,operator,call-arg]
            model,
            targets_of(model),
            [*texts(1), {"input_ids": torch.tensor([[10**6]]), "labels": torch.tensor([[1]])}],
            rank=2,
            scale=SCALE,
            seed=0,
        )
    assert not any(isinstance(module, Adapted) for module in model.modules())


def test_maps_that_are_not_chosen_are_left_alone(llama: Path) -> None:
    """DiffoRA on a Llama: four of the seven maps of each block, and what trains changes these alone."""
    made = wrap(loaded(llama), diffora(steps=6, warm_up=2), rank=4, batches=texts())
    stock = loaded(llama)
    for block in range(3):
        assert sum(name.startswith(f"model.layers.{block}.") for name in made.adapters) == 4
    optimiser = torch.optim.AdamW(made.groups(1e-2))
    for batch in texts(3):
        made.model(**batch).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    chosen = set(made.adapters)
    assert far(logits(made.model), logits(stock)) > 1e-3
    merged = dict(made.merge().named_modules())
    for name in targets_of(stock):
        same = torch.equal(merged[name].weight, stock.get_submodule(name).weight)
        assert same == (name not in chosen)
    # From scratch: the start is that of a LoRA which was given these ranks.
    begun = begin_all(stock, diffora(steps=6, warm_up=2), targets_of(stock), rank=4, batches=texts())
    plain = begin_all(stock, lora(), sorted(chosen), rank=4)
    assert set(begun) == chosen
    assert all(
        torch.equal(begun[name].params[key], plain[name].params[key]) for name in chosen for key in ("left", "right")
    )


def test_what_learns_and_what_is_judged_are_different_batches(llama: Path) -> None:
    """And free numbers stay where they are while factors warm up."""
    seen: list[tuple[bool, int]] = []

    class Spy(Direct):
        def __call__(
            self, learnt: Any, judged: Any, factors: Sequence[Tensor], free: Sequence[Tensor], rate: float
        ) -> Any:
            for kind, loss in ((True, learnt), (False, judged)):
                own = float(loss().detach())
                seen.append((kind, min(range(len(losses)), key=lambda i: abs(losses[i] - own))))
            return tuple(torch.zeros_like(number) for number in free)

    model = loaded(llama)
    with torch.no_grad():
        losses = [float(model(**batch).loss) for batch in texts(10)]
    search = Search(
        mixing=Switch(), choose=AboveShare(), gradient=Spy(), steps=12, warm_up=2, share=0.7, rate=1e-9, free_rate=1.0
    )
    found = search.weights(model, targets_of(model), texts(10), rank=2, scale=SCALE, seed=0)
    assert [number for kind, number in seen if kind] == [2, 3, 4, 5, 6, 0, 1, 2, 3, 4]
    assert [number for kind, number in seen if not kind] == [7, 8, 9] * 3 + [7]
    assert all(torch.equal(weights, torch.full((2,), 0.5)) for weights in found.values())


def test_blocks_are_found_and_what_is_outside_of_them(llama: Path) -> None:
    model = loaded(llama)
    groups = groups_of(model, ["lm_head", *targets_of(model)])
    assert [len(group) for group in groups] == [7, 7, 7, 1]
    assert groups[-1] == ["lm_head"]
    assert all(name.startswith("model.layers.1.") for name in groups[1])


def test_a_search_gets_as_many_batches_as_it_wants() -> None:
    examples = [Example((i, i), (i, i)) for i in range(400)]
    course = Course(batch=4)
    many, few = (Material(records=[], length=2, train=examples[:n], held=[], padding=0) for n in (400, 30))
    assert [len(many.first_batches(course, recipe.batches)) for recipe in (lora(), autolora())] == [8, 64]
    ids = torch.cat([batch["input_ids"][:, 0] for batch in few.first_batches(course, autolora().batches)])
    assert sorted(ids.tolist()) == list(range(30))


def test_adapters_come_off(llama: Path) -> None:
    model = loaded(llama)
    before = logits(model)
    made = wrap(model, pissa(), rank=4)
    for adapter in made.adapters.values():
        adapter.left.data.normal_(generator=Generator().manual_seed(0))
    assert far(logits(model), before) > 1e-2
    assert far(logits(made.remove()), before) < 1e-5
    assert not any(isinstance(module, Adapted) for module in model.modules())


def test_what_cannot_be_searched_is_told(llama: Path) -> None:
    model = loaded(llama)
    with pytest.raises(EckartError, match="two parts of a text: give at least two batches"):
        wrap(model, autolora(), batches=texts(1))
    with pytest.raises(EckartError, match="searched for by the loss: give batches with labels"):
        wrap(model, autolora(), batches=[{"input_ids": token_ids()}] * 2)
    nothing = Search(mixing=Simplex(), choose=AboveShare(7.5), steps=1)
    with pytest.raises(EckartError, match="leaves no map a direction"):
        wrap(model, replace(lora(), ranks=nothing), batches=texts())
    refused = {
        "warm_up": (5, "a search of 5 steps"),
        "share": (1.0, "a search of 5 steps"),
        "rate": (0.0, "rate is 0.0"),
        "batches": (1, "2 or more"),
    }
    for name, (value, sentence) in refused.items():
        with pytest.raises(ValueError, match=sentence):
            Search(mixing=Simplex(), choose=AboveShare(), steps=5, **{name: value})  # type: ignore[arg-type]
