"""Adapters in models: what they leave alone, what trains, and that merged, exported and stock PEFT's forward are the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from models import ARCHITECTURES, VOCABULARY
from outputs import far, loaded, logits, token_ids
from peft import LoraConfig, PeftModel, VeraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from eckart.adapters.forms import Aligned, Band, Directed, Gated, Pair, Scattered, Tucker
from eckart.adapters.gates import Router
from eckart.adapters.growth import Grow
from eckart.adapters.roles import FROZEN, Role
from eckart.adapters.seed import Seed
from eckart.adapters.sources import digits
from eckart.errors import EckartError
from eckart.linalg import truncated_svd
from eckart.model.adapting.export import _least, difference, export
from eckart.model.adapting.modules import Adapted, matrix_of
from eckart.model.adapting.observe import observe
from eckart.model.adapting.recipe import Adapt
from eckart.model.adapting.wrap import targets_of, wrap
from eckart.model.adapting.wrapped import Wrapped
from eckart.model.compression import Paper
from eckart.operator import Factors
from eckart.recipes.adapters import ADAPTERS
from eckart.recipes.adapters.others import flora_tucker, flylora, moe_lora_riemannian, smt
from eckart.recipes.adapters.pairs import RANDOM, lora, lora_ga, lora_plus, pissa
from eckart.recipes.adapters.products import svft, vera
from eckart.recipes.adapters.searched import autolora, diffora
from eckart.stats import Need

RANK = 6
KINDS = ("llama", "gpt2", "bert")
ROUNDED = ("qlora", "qpissa", "qdota", "loftq")  # their exports fit the rounded model that is written beside them
# Their starts change the model: by what the truncated base or the factors lack, by the first step of training, and by rounding.
CHANGED = ("kasa", "lora-sb", "semi-nmf-embeddings", *ROUNDED)
# Small enough for the models here.
MADE: dict[str, Callable[[], Adapt]] = {
    **ADAPTERS,
    "flylora": lambda: flylora(active=3, share=0.5),
    "smt": lambda: smt(size=16),
    "moe-lora-riemannian": lambda: moe_lora_riemannian(experts=4, top=2),
    "autolora": lambda: autolora(steps=3),
    "diffora": lambda: diffora(steps=3, warm_up=1),
}
RANKED = ("eva", "autolora", "diffora")  # maps have ranks of their own, some may have none
GATED = ("flylora", "moe-lora-riemannian")  # which directions act depends on the token
OF_HIGH_RANK = ("svft", "dota", "smt", "full", "qdota", "semi-nmf-embeddings")
SMALLER = ("loram", "loram-width")  # they train within a model that is made of files: tests/test_lifting.py
# Columns and rows around an inverse: what goes through them is larger than what comes out, and is computed in float32.
LARGE_INSIDE = ("nlora", "inttune")


def numbers_of_train(m: int, n: int, r: int) -> int:
    rows, columns = digits(m, 3), digits(n, 3)
    sizes = [a * b for a, b in zip(rows, columns, strict=True)]
    bonds = [1, min(r, sizes[0], sizes[1] * sizes[2]), 0, 1]
    bonds[2] = min(r, bonds[1] * sizes[1], sizes[2])
    return sum(size * bonds[i] * bonds[i + 1] for i, size in enumerate(sizes))


# The numbers that train for a weight (m, n) at rank r, as the papers count them.
NUMBERS: dict[str, Callable[[int, int, int], int]] = {
    "full": lambda m, n, r: m * n,
    "dora": lambda m, n, r: r * (m + n) + m,
    "kasa": lambda m, n, r: r * (m + n + 1),
    "adalora": lambda m, n, r: r * (m + n + 1),
    "increlora": lambda m, n, r: 2 * r * (m + n + 1),  # those that may ever act
    "sorsa": lambda m, n, r: r * (m + n + 1),
    "svfit": lambda m, n, r: r,
    "effort": lambda m, n, r: r * (m + n + 1),
    "svft": lambda m, n, r: min(m, n),
    "nora": lambda m, n, r: 2 * r * 4,
    "curlora": lambda m, n, r: r * r,
    "lora-sb": lambda m, n, r: r * r,
    "nlora": lambda m, n, r: r * (m + n) + r * r,
    "slora": lambda m, n, r: r * (m + n) + r * r,
    "inttune": lambda m, n, r: r * r,
    "block-lora": lambda m, n, r: r // 2 * (m + n),
    "vera": lambda m, n, r: m + r,
    "flora-tucker": lambda m, n, r: r * (m + n) + r * r,
    "dota": numbers_of_train,
    "qdota": numbers_of_train,
    "aflora": lambda m, n, r: r * (m + n) + m + r,
    "flylora": lambda m, n, r: r * m,
    "semi-nmf-embeddings": lambda m, n, r: r * m,
    "moe-lora-riemannian": lambda m, n, r: 4 * (r * (m + n) + n),
}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: ARCHITECTURES[name](tmp_path_factory.mktemp(name) / "model") for name in ("llama", "gpt2")}


def classifier() -> Any:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_labels=3,
    )
    model = BertForSequenceClassification(config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data *= 6  # the stock start is so small that nothing in it matters
    return model


def model_of(kind: str, shelf: dict[str, Path]) -> Any:
    return classifier() if kind == "bert" else loaded(shelf[kind])


def served_on(key: str, kind: str, shelf: dict[str, Path], folder: Path) -> Any:
    """The adapter of a folder, by stock PEFT on the model that it fits."""
    if key not in ROUNDED:
        base = model_of(kind, shelf)
    elif kind == "bert":
        base = BertForSequenceClassification.from_pretrained(folder / "base")
    else:
        base = loaded(folder / "base")
    return PeftModel.from_pretrained(base, folder).eval()


def batches(kind: str) -> list[dict[str, Tensor]]:
    ids = token_ids()
    labels = torch.tensor([0, 2, 1]) if kind == "bert" else ids
    return [{"input_ids": ids[i : i + 1], "labels": labels[i : i + 1]} for i in range(3)]


def wrapped(key: str, kind: str, shelf: dict[str, Path], **options: Any) -> Wrapped:
    return wrap(model_of(kind, shelf), MADE[key](), rank=RANK, batches=batches(kind), **options)


def train(model: Any, groups: list[dict[str, Any]], kind: str, steps: int = 3) -> list[float]:
    torch.manual_seed(0)  # of dropout: in some draws training ends where float32 loses a digit of any forward
    optimiser = torch.optim.AdamW(groups)
    losses = []
    for step in range(steps):
        loss = model(**batches(kind)[step % 3]).loss
        loss.backward()
        losses.append(float(loss.detach()))
        optimiser.step()
        optimiser.zero_grad()
    return losses


# On all models; the others on one, and on all in the slow tests.
EVERYWHERE = (
    "full",
    "lora",
    "dora",
    "pissa",
    "eva",
    "kasa",
    "adalora",
    "svft",
    "vera",
    "flora-tucker",
    "flylora",
    "loftq",
    "lora-sb",
    "smt",
)
CASES = [
    pytest.param(key, kind, marks=() if kind == "llama" or key in EVERYWHERE else pytest.mark.slow)
    for key in [key for key in ADAPTERS if key not in SMALLER]
    for kind in KINDS
]


@pytest.mark.parametrize(("key", "kind"), CASES)
def test_every_recipe_in_a_model(key: str, kind: str, shelf: dict[str, Path], tmp_path: Path) -> None:
    stock = model_of(kind, shelf)
    before = logits(stock)
    made = wrapped(key, kind, shelf)
    # The start changes nothing, but for those whose start is a change.
    close = 1e-4 if key in LARGE_INSIDE else 1e-5
    began = far(logits(made.model), before)
    assert began < close if key not in CHANGED else began > 1e-2
    # Only what is declared trains, and as many numbers as the paper counts.
    formula = NUMBERS.get(key, lambda m, n, r: r * (m + n))
    ranks = {name: len(adapter.right) if key in RANKED else RANK for name, adapter in made.adapters.items()}
    shapes = [(*matrix_of(adapter.base).shape, ranks[name]) for name, adapter in made.adapters.items()]
    if key == "smt":  # as many blocks as the rank says for a weight, wherever they are
        count = len(targets_of(model_of(kind, shelf)))
        assert made.numbers == RANK * count * 16 * 16
    else:
        assert made.numbers == sum(formula(m, n, r) for m, n, r in shapes)
    declared = {name for name, _, _ in made.trainable()}
    assert {name for name, parameter in made.model.named_parameters() if parameter.requires_grad} == declared
    state = made.model.state_dict().items()
    frozen = {name: tensor.clone() for name, tensor in state if name not in declared and "balance" not in name}
    made.model.train()
    train(made.model, made.groups(1e-2), kind)
    made.model.eval()
    assert {name for name, parameter in made.model.named_parameters() if parameter.grad is not None} <= declared
    now = made.model.state_dict()
    assert all(torch.equal(tensor, now[name]) for name, tensor in frozen.items())
    after = logits(made.model)
    assert far(after, before) > 1e-3
    if key in GATED:
        for refused in (lambda: export(made, tmp_path / "adapter", rank=RANK), made.merge):
            with pytest.raises(EckartError, match="depends on the token: no weight and no LoRA does the same"):
                refused()
        assert not list(tmp_path.iterdir())
        return
    # What stock PEFT makes of the export on the untouched model is what is computed here.
    done = export(made, tmp_path / "adapter", rank=RANK)
    served = served_on(key, kind, shelf, tmp_path / "adapter")
    if done.is_exact:
        assert far(logits(served), after) < close
    else:
        assert key in OF_HIGH_RANK
    # Merged into plain weights it computes the same.
    assert far(logits(made.merge()), after) < close
    assert not any(isinstance(module, Adapted) for module in made.model.modules())


@pytest.mark.parametrize("key", [key for key in ADAPTERS if key not in ("dora", *OF_HIGH_RANK, *GATED, *SMALLER)])
def test_an_export_before_training_changes_what_the_start_does(
    key: str, shelf: dict[str, Path], tmp_path: Path
) -> None:
    made = wrapped(key, "llama", shelf)
    export(made, tmp_path / "adapter")
    served = served_on(key, "llama", shelf, tmp_path / "adapter")
    assert far(logits(served), logits(made.model)) < 2e-5


def test_ranks_are_the_least_that_hold_the_change(shelf: dict[str, Path], tmp_path: Path) -> None:
    """Twice the rank where both sides moved, once where they stayed, the inner one where only that trains."""
    ranks = {"lora": RANK, "pissa": 2 * RANK, "svfit": RANK, "inttune": RANK, "nora": 4, "block-lora": RANK // 2}
    for key, rank in ranks.items():
        made = wrapped(key, "llama", shelf)
        train(made.model, made.groups(1e-2), "llama")
        done = export(made, tmp_path / key)
        assert set(done.ranks.values()) == {rank}, key
        table = json.loads((tmp_path / key / "adapter_config.json").read_text())
        assert table["r"] == rank
        assert table["rank_pattern"] == {}


def test_what_is_of_no_low_rank_is_truncated_and_says_so(shelf: dict[str, Path], tmp_path: Path) -> None:
    made = wrap(loaded(shelf["llama"]), svft(Band(1)), rank=RANK)
    train(made.model, made.groups(1e-1), "llama")
    with pytest.raises(EckartError, match=r"layers\.0\.self_attn\.q_proj: the change of its weight is of no low rank"):
        export(made, tmp_path / "adapter")
    assert not list(tmp_path.iterdir())
    done = export(made, tmp_path / "adapter", rank=RANK)
    assert not done.is_exact
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for name, adapter in made.adapters.items():
        whole = difference(adapter).dense().double()
        place = f"base_model.model.{name}.lora_"
        left_out = whole - (stored[f"{place}B.weight"] @ stored[f"{place}A.weight"]).double()
        tail = torch.linalg.svdvals(whole)[RANK:].square().sum().sqrt()
        assert float(left_out.norm()) == pytest.approx(float(tail), rel=1e-4)
        bound = done.bounds[name]
        assert bound.lower is not None
        assert bound.lower <= float(left_out.norm()) * (1 + 1e-6)
        assert bound.achieved == pytest.approx(float(left_out.norm()), rel=1e-4)


def test_one_rank_for_servers_that_want_one(shelf: dict[str, Path], tmp_path: Path) -> None:
    recipe = Adapt(paper=Paper("own", ""), form=Pair(), start=RANDOM)
    model = loaded(shelf["llama"])
    made = wrap(model, recipe, rank=2, only=["q_proj"])
    more = wrap(model, recipe, rank=4, only=["v_proj"])
    both = Wrapped(model, recipe, 4, {**made.adapters, **more.adapters})
    for adapter in both.adapters.values():
        for parameter in adapter.parameters():
            parameter.requires_grad_(True)
    train(model, both.groups(1e-2), "llama")
    expected = logits(model)
    export(both, tmp_path / "own")
    export(both, tmp_path / "uniform", uniform=True)
    tables = [json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("own", "uniform")]
    assert (tables[0]["r"], set(tables[0]["rank_pattern"].values())) in ((2, {4}), (4, {2}))
    assert (tables[1]["r"], tables[1]["lora_alpha"], tables[1]["rank_pattern"], tables[1]["alpha_pattern"]) == (
        4,
        4,
        {},
        {},
    )
    for name in ("own", "uniform"):
        assert far(logits(PeftModel.from_pretrained(loaded(shelf["llama"]), tmp_path / name).eval()), expected) < 1e-5


# ---- against PEFT -----------------------------------------------------------------------------------------------------


def names_of(made: Wrapped) -> list[str]:
    return list(made.adapters)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_the_same_course_as_peft(init: str, shelf: dict[str, Path]) -> None:
    """Twenty steps of AdamW from PEFT's start and from ours; signs of singular vectors do not count."""
    made = wrapped(init, "llama", shelf)
    scale = {"lora_alpha": RANK, "r": RANK, "target_modules": names_of(made)}
    theirs = get_peft_model(loaded(shelf["llama"]), LoraConfig(init_lora_weights=init, **scale))
    for name, adapter in made.adapters.items():
        module = theirs.base_model.model.get_submodule(name)
        a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
        assert far(adapter.params["left"] @ adapter.params["right"], b @ a) < 2e-4
        signs = torch.sign((adapter.params["left"] * b).sum(0))
        assert far(adapter.params["left"] * signs, b) < 3e-3  # vectors of values that are near each other mix
    groups = [{"params": [p for p in theirs.parameters() if p.requires_grad], "lr": 1e-3, "weight_decay": 0.0}]
    own, other = train(made.model, made.groups(1e-3), "llama", 20), train(theirs, groups, "llama", 20)
    assert own == pytest.approx(other, rel=1e-3)
    assert own[-1] < own[2] - 0.05


@pytest.mark.parametrize("dora", [False, True])
def test_the_same_course_as_peft_from_the_same_random_start(dora: bool, shelf: dict[str, Path]) -> None:
    recipe = Adapt(paper=Paper("own", ""), form=Directed(Pair()) if dora else Pair(), start=RANDOM)
    made = wrap(loaded(shelf["llama"]), recipe, rank=RANK)
    config = LoraConfig(r=RANK, lora_alpha=16, target_modules=names_of(made), use_dora=dora)
    theirs = get_peft_model(loaded(shelf["llama"]), config)
    for name, adapter in made.adapters.items():
        module = theirs.base_model.model.get_submodule(name)
        assert float(module.lora_A["default"].weight.detach().abs().max()) == pytest.approx(
            float(adapter.params["right"].detach().abs().max()), rel=0.1
        )
        with torch.no_grad():
            module.lora_A["default"].weight.copy_(adapter.params["right"])
    groups = [{"params": [p for p in theirs.parameters() if p.requires_grad], "lr": 1e-2, "weight_decay": 0.0}]
    own, other = train(made.model, made.groups(1e-2), "llama", 20), train(theirs, groups, "llama", 20)
    assert own == pytest.approx(other, rel=2e-4)
    assert own[-1] < own[2] - 0.5


def test_the_same_course_as_peft_with_shared_factors(shelf: dict[str, Path]) -> None:
    """VeRA, on maps of one shape, for which PEFT shares as the paper does."""
    made = wrap(loaded(shelf["llama"]), vera(), rank=RANK, only=["gate_proj", "up_proj"])
    config = VeraConfig(r=RANK, target_modules=names_of(made), d_initial=0.1)
    theirs = get_peft_model(loaded(shelf["llama"]), config)
    for name, adapter in made.adapters.items():
        module = theirs.base_model.model.get_submodule(name)
        a, b = module.vera_A["default"], module.vera_B["default"]
        assert a.shape == adapter.params["right"].shape
        assert b.shape == adapter.params["left"].shape
        a.data.copy_(adapter.params["right"])
        b.data.copy_(adapter.params["left"])
    groups = [{"params": [p for p in theirs.parameters() if p.requires_grad], "lr": 1e-1, "weight_decay": 0.0}]
    own, other = train(made.model, made.groups(1e-1), "llama", 20), train(theirs, groups, "llama", 20)
    assert own == pytest.approx(other, rel=2e-4)
    assert own[-1] < own[2] - 0.1
    first, *others = made.adapters.values()
    assert all(adapter.right.data_ptr() == first.right.data_ptr() for adapter in others)  # one tensor in memory


# ---- rules and penalties in a model -----------------------------------------------------------------------------------


def test_one_step_moves_the_weights_by_the_projection_of_the_full_gradient(shelf: dict[str, Path]) -> None:
    """LoRA-Pro from factors that are not zero, against the gradients of the weights themselves."""
    made = wrapped("lora-pro", "llama", shelf)
    for number, adapter in enumerate(made.adapters.values()):
        adapter.left.data.normal_(std=0.05, generator=torch.Generator().manual_seed(number))
    bases = {name: adapter.base.weight for name, adapter in made.adapters.items()}
    for weight in bases.values():
        weight.requires_grad_(True)
    made.model(**batches("llama")[0]).loss.backward()
    made.rule()
    for name, adapter in made.adapters.items():
        left, right, full = adapter.left.detach().double(), adapter.right.detach().double(), bases[name].grad.double()
        effect = adapter.scale * (left @ adapter.right.grad.double() + adapter.left.grad.double() @ right)
        p_left, p_right = left @ torch.linalg.pinv(left), torch.linalg.pinv(right) @ right
        assert far(effect, p_left @ full + full @ p_right - p_left @ full @ p_right) < 1e-3


def test_gradients_of_whole_updates_are_those_of_the_weights(shelf: dict[str, Path]) -> None:
    """Added up over two batches, and nothing once nobody looks."""
    made = wrapped("increlora", "llama", shelf)
    for number, adapter in enumerate(made.adapters.values()):
        adapter.middle.data.normal_(std=3.0, generator=torch.Generator().manual_seed(number))
    bases = {name: adapter.base.weight for name, adapter in made.adapters.items()}
    for weight in bases.values():
        weight.requires_grad_(True)
    made.watch(1, 100)
    for batch in batches("llama")[:2]:
        made.model(**batch).loss.backward()
    with torch.no_grad():
        made.model(**batches("llama")[2])
    for name, adapter in made.adapters.items():
        assert far(adapter.felt, bases[name].grad) < 1e-5
    made.watch(100, 100)
    made.model(**batches("llama")[0]).loss.backward()
    assert {adapter.felt for adapter in made.adapters.values()} == {None}
    torch.manual_seed(1)
    made = wrap(Pictures(), ADAPTERS["increlora"](), rank=3)
    made.watch(1, 100)
    for adapter in made.adapters.values():
        adapter.middle.data.fill_(1.0)
        adapter.base.weight.requires_grad_(True)
    made.model(torch.randn(2, 6, 8, 8)).square().mean().backward()
    for adapter in made.adapters.values():
        assert adapter.felt.shape == (6, 54)
        assert far(adapter.felt, adapter.base.weight.grad.flatten(1)) < 1e-5


def test_directions_are_added_to_maps_while_they_train(shelf: dict[str, Path], tmp_path: Path) -> None:
    """IncreLoRA: step by step as many directions act as the budget says, and in the end its ranks are exported."""
    made = wrapped("increlora", "llama", shelf)
    recipe, steps, count = made.recipe, 60, len(made.adapters)
    assert isinstance(recipe.schedule, Grow)
    bases = {name: adapter.base.weight.clone() for name, adapter in made.adapters.items()}
    optimiser, state, totals = torch.optim.AdamW(made.groups(1e-2)), made.begin(), []
    for step in range(1, steps + 1):
        made.watch(step, steps)
        before = recipe.schedule.acting(state)
        made.model(**batches("llama")[step % 3]).loss.backward()
        made.penalty().backward()
        optimiser.step()
        state = made.scheduled(step, steps, state)
        optimiser.zero_grad()
        for name, adapter in made.adapters.items():
            acting = recipe.schedule.acting(state)[name]
            assert acting == before[name] or step in (10, 20, 30, 40, 42)
            # All that has begun to act or to wait adds 1e-5 times products of sides, and nothing else is changed by it.
            left, middle, right = (adapter.params[key].detach() for key in ("left", "middle", "right"))
            new = slice(before[name], None)
            added = adapter.scale * (left[:, new] * middle[new]) @ right[new]
            assert float(added.norm()) <= 1.01e-5 * adapter.scale * float(left[:, new].norm() * right[new].norm())
            assert bool(added.any()) == ((before[name] < 2 * RANK and step < 42) or acting > before[name])
        totals.append(sum(recipe.schedule.acting(state).values()))
    assert totals[0] == count
    assert totals[-1] == RANK * count
    assert all(one <= other for one, other in pairwise(totals))
    ranks = recipe.schedule.acting(state)
    assert len(set(ranks.values())) > 2
    assert max(ranks.values()) <= 2 * RANK
    assert all(torch.equal(bases[name], adapter.base.weight) for name, adapter in made.adapters.items())
    after = logits(made.model.eval())
    done = export(made, tmp_path / "adapter")
    assert done.ranks == ranks
    table = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert {table["r"], *table["rank_pattern"].values()} == set(ranks.values())
    assert far(logits(PeftModel.from_pretrained(loaded(shelf["llama"]), tmp_path / "adapter").eval()), after) < 1e-5


def test_a_penalty_is_a_mean_over_adapters(shelf: dict[str, Path]) -> None:
    made = wrapped("kasa", "llama", shelf)
    expected = torch.stack(
        [
            1e-4 * adapter.middle.square().sum()
            + 1e-3 * (adapter.left.T @ adapter.left - torch.eye(RANK)).norm()
            + 1e-3 * (adapter.right @ adapter.right.T - torch.eye(RANK)).norm()
            for adapter in made.adapters.values()
        ]
    ).mean()
    assert float(made.penalty().detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert float(wrapped("sorsa", "llama", shelf).penalty().detach()) < 1e-5  # singular vectors are orthonormal
    assert float(wrapped("lora", "llama", shelf).penalty()) == 0
    orthonormal = next(iter(wrapped("sorsa", "llama", shelf).adapters.values()))
    orthonormal.left.data *= 2
    assert all(float(penalty(orthonormal.params).detach()) > 1e-4 for penalty in ADAPTERS["sorsa"]().penalties)


def test_principal_components_stay_while_the_smallest_train(shelf: dict[str, Path], tmp_path: Path) -> None:
    """Effort: the start is the weight, nothing of its principal part moves, penalties hold, and the export is the whole change."""
    stock = loaded(shelf["llama"])
    made = wrapped("effort", "llama", shelf)
    for name, adapter in made.adapters.items():
        weight = matrix_of(stock.get_submodule(name)).double()
        values = torch.linalg.svdvals(weight)
        assert torch.allclose(adapter.merged(), weight, atol=1e-6)
        assert torch.allclose(adapter.middle.double(), values[-RANK:], atol=1e-5)
        assert torch.allclose(torch.linalg.svdvals(matrix_of(adapter.base).double())[:-RANK], values[:-RANK], atol=1e-5)
    assert 0 <= float(made.penalty().detach()) < 1e-4
    principal = {
        name: {key: t.clone() for key, t in adapter.params.items() if key.startswith("principal")}
        for name, adapter in made.adapters.items()
    }
    off = []
    for weight in (0.0, 1.0):
        penalties = ADAPTERS["effort"]().penalties if weight else ()
        other = wrap(loaded(shelf["llama"]), replace(ADAPTERS["effort"](), penalties=penalties), rank=RANK)
        optimiser = torch.optim.AdamW(other.groups(1e-3, decay=0.1))
        for _ in range(30):
            (other.model(**batches("llama")[0]).loss + other.penalty()).backward()
            optimiser.step()
            optimiser.zero_grad()
        for name, tensors in principal.items():
            assert all(torch.equal(other.adapters[name].params[key], tensor) for key, tensor in tensors.items())
        off.append(float(Wrapped(other.model, ADAPTERS["effort"](), RANK, other.adapters).penalty().detach()))
    assert off[1] < 0.5 * off[0]
    done = export(other, tmp_path / "adapter")
    assert set(done.ranks.values()) == {2 * RANK}


@pytest.mark.parametrize("key", ["pissa", "kasa", "lora-sb", "dota", "dora", "flylora"])
def test_the_untouched_model_is_there_all_the_time(key: str, shelf: dict[str, Path]) -> None:
    before = logits(loaded(shelf["llama"]))
    made = wrapped(key, "llama", shelf)
    train(made.model, made.groups(1e-2), "llama")
    made.model.eval()
    after = logits(made.model)
    with made.untouched():
        assert far(logits(made.model), before) < 1e-5
    assert torch.equal(logits(made.model), after)


def test_outputs_are_held_to_those_of_the_untouched_model(shelf: dict[str, Path]) -> None:
    made = wrapped("ba-lora", "llama", shelf)
    batch = {**batches("llama")[0], "attention_mask": torch.ones_like(token_ids()[:1])}
    batch["labels"] = batch["labels"].clone()
    batch["labels"][:, :10] = -100
    own = made.model(**batch).logits
    started = made.output_penalty(batch, own)
    rows = own[0, 9:-1].detach().double()
    p, s = rows.softmax(-1), torch.linalg.svdvals(rows)
    expected = 3e-4 * float((p * p.log()).sum(-1).mean()) - 1e-4 * float(s[:3].sum() / s.sum())
    assert float(started.detach()) == pytest.approx(expected, rel=1e-4)  # the divergence is still zero
    train(made.model, made.groups(3e-2), "llama")
    own = made.model.eval()(**batch).logits
    reference = loaded(shelf["llama"])(input_ids=batch["input_ids"]).logits
    divergence = (
        (reference[0, 9:-1].softmax(-1) * (reference[0, 9:-1].log_softmax(-1) - own[0, 9:-1].log_softmax(-1)))
        .sum(-1)
        .mean()
    )
    rows = own[0, 9:-1].detach().double()
    p, s = rows.softmax(-1), torch.linalg.svdvals(rows)
    rest = 3e-4 * float((p * p.log()).sum(-1).mean()) - 1e-4 * float(s[:3].sum() / s.sum())
    found = made.output_penalty(batch, own)
    assert float(found.detach()) - rest == pytest.approx(1e-4 * float(divergence.detach()), rel=2e-3)
    assert float(wrapped("lora", "llama", shelf).output_penalty(batch, own)) == 0


# ---- what starts are measured on --------------------------------------------------------------------------------------


def test_what_is_seen_does_not_depend_on_the_room(shelf: dict[str, Path]) -> None:
    model = loaded(shelf["llama"])
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and "layers" in name]
    needs = frozenset({Need.GRAM, Need.GRADIENTS})

    def seen(room: int) -> Iterator[tuple[str, Any]]:
        for group in observe(model, names, needs, batches("llama"), room=room):
            yield from group.items()

    once, often = dict(seen(10**9)), dict(seen(1))
    assert sorted(once) == sorted(names) == sorted(often)
    inputs: dict[str, list[Tensor]] = {name: [] for name in names}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: inputs[name].append(args[0]))
        for name in names
    ]
    whole = sum(model(**batch).loss for batch in batches("llama")) / 3
    for handle in handles:
        handle.remove()
    weights = [model.get_submodule(name).weight for name in names]
    for weight in weights:
        weight.requires_grad_(True)
    for name, expected in zip(
        names,
        torch.autograd.grad(sum(model(**batch).loss for batch in batches("llama")) / 3, weights),
        strict=True,
    ):
        assert torch.allclose(once[name].gradient, expected, atol=1e-6)
        assert torch.allclose(often[name].gradient, expected, atol=1e-6)
        rows = torch.cat([x.flatten(0, -2) for x in inputs[name]]).double()
        assert torch.allclose(once[name].moments.gram, rows.T @ rows, rtol=1e-9, atol=1e-9)
        assert torch.allclose(often[name].moments.total, rows.sum(0), rtol=1e-9, atol=1e-9)
        assert once[name].moments.count == len(rows)
    assert float(whole) > 0


def test_ranks_go_where_directions_explain_most(shelf: dict[str, Path], tmp_path: Path) -> None:
    """EVA's ranks from all explained variances in one list; they add up, and the scale is the same everywhere."""
    made = wrapped("eva", "llama", shelf)
    model = loaded(shelf["llama"])
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and "layers" in name]
    inputs: dict[str, list[Tensor]] = {name: [] for name in names}
    for name in names:
        model.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: inputs[name].append(args[0]))
    for batch in batches("llama"):
        model(**batch)
    pooled, variances = [], {}
    for name in names:
        rows = torch.cat([x.detach().flatten(0, -2) for x in inputs[name]]).double()
        variances[name] = torch.linalg.svdvals(rows - rows.mean(0)).square()
        pooled += [(float(value / variances[name].sum()), name) for value in variances[name][: 2 * RANK]]
    best = sorted(pooled, reverse=True)[: RANK * len(names)]
    ranks = {name: adapter.left.shape[1] for name, adapter in made.adapters.items()}
    explained = [
        float(value / variances[name].sum()) for name, rank in ranks.items() for value in variances[name][:rank]
    ]
    assert sum(ranks.values()) == RANK * len(names)
    assert max(ranks.values()) <= 2 * RANK
    assert len(set(ranks.values())) > 2
    # Maps with the same inputs tie, so what is explained is compared, not who explains it.
    assert sorted(explained, reverse=True) == pytest.approx([share for share, _ in best], rel=1e-6)
    for adapter in made.adapters.values():
        rows = adapter.right.double()
        assert torch.allclose(rows @ rows.T, torch.eye(len(rows), dtype=torch.float64), atol=1e-6)
    assert {adapter.scale for adapter in made.adapters.values()} == {16 / RANK}
    table = json.loads((export(made, tmp_path / "adapter").folder / "adapter_config.json").read_text())
    assert table["rank_pattern"]
    assert set(table["rank_pattern"]) == set(table["alpha_pattern"])


def test_hidden_tokens_are_not_seen(shelf: dict[str, Path]) -> None:
    model = loaded(shelf["llama"])
    ids = token_ids()[:1]
    mask = torch.ones_like(ids)
    mask[:, 20:] = 0
    name = "model.layers.0.self_attn.q_proj"
    counts = [
        next(observe(model, [name], frozenset({Need.GRAM}), [batch]))[name].moments
        for batch in ({"input_ids": ids, "attention_mask": mask}, {"input_ids": ids[:, :20]})
    ]
    assert counts[0] is not None
    assert counts[1] is not None
    assert counts[0].count == 20
    assert counts[0].gram is not None
    assert counts[1].gram is not None
    assert torch.allclose(counts[0].gram, counts[1].gram)


# ---- roles, places, refusals ------------------------------------------------------------------------------------------


def test_roles_become_groups_of_the_optimiser(shelf: dict[str, Path]) -> None:
    made = wrap(loaded(shelf["llama"]), lora_plus(ratio=16.0), rank=2)
    groups = made.groups(1e-3, decay=0.1)
    rates = {group["lr"]: group for group in groups}
    assert set(rates) == {1e-3, 1.6e-2}
    lefts = {id(adapter.left) for adapter in made.adapters.values()}
    assert {id(p) for p in rates[1.6e-2]["params"]} == lefts
    vectors = wrap(loaded(shelf["llama"]), vera(), rank=2).groups(1e-3, decay=0.1)
    assert [group["weight_decay"] for group in vectors] == [0.0]
    recipe = Adapt(paper=Paper("own", ""), form=Pair(), start=RANDOM, roles={"right": FROZEN})
    made = wrap(loaded(shelf["llama"]), recipe, rank=2, only=["q_proj"])
    assert {name.rpartition(".")[2] for name, _, _ in made.trainable()} == {"left"}


@pytest.mark.parametrize(
    ("places", "count"), [(Band(0), 48), (Band(2), 48 * 5 - 6), (Scattered(2), 48 * 5 - 6), (Aligned(1), 48 * 3 - 2)]
)
def test_places_between_singular_vectors(places: Any, count: int) -> None:
    u, v = (torch.linalg.qr(torch.randn(48, 48, generator=torch.Generator().manual_seed(s))).Q for s in (1, 2))
    rows, columns = places(u, v.T, torch.Generator().manual_seed(3))
    assert len({*zip(rows.tolist(), columns.tolist(), strict=True)}) == count == len(rows)
    if isinstance(places, Band):
        assert int((rows - columns).abs().max()) == places.width
    if isinstance(places, Aligned):
        alike = (u.T @ v).abs().fill_diagonal_(2.0)
        chosen = torch.zeros(48, 48, dtype=torch.bool)
        chosen[rows, columns] = True
        assert float(alike[chosen].min()) >= float(alike[~chosen].max())
        with pytest.raises(ValueError, match="48 x 30 weight can't be compared: take a Band"):
            places(u, v.T[:, :30], torch.Generator())


def test_dropout_acts_on_the_update_alone(shelf: dict[str, Path]) -> None:
    made = wrapped("lora", "llama", shelf, dropout=0.5)
    before = logits(made.model)
    made.model.train()
    assert far(logits(made.model), before) < 1e-6  # the update is zero: nothing of the model itself drops out
    for adapter in made.adapters.values():
        adapter.left.data.fill_(0.1)
    assert far(logits(made.model), logits(made.model)) > 1e-3
    made.model.eval()
    assert far(logits(made.model), logits(made.model)) == 0


class Pictures(nn.Module):
    """Two convolutions in a list, so that they are blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)])
        self.name_or_path = ""
        self.config = {"model_type": "custom"}

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


@pytest.mark.parametrize("key", ["lora", "pissa", "kasa", "svfit", "dora"])
def test_convolutions_are_matrices_behind_their_outputs(key: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model, x = Pictures(), torch.randn(2, 6, 8, 8)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = model(x)
    made = wrap(model, ADAPTERS[key](), rank=3)
    assert (far(model(x), before) < 1e-5) == (key != "kasa")
    optimiser = torch.optim.AdamW(made.groups(1e-1))
    for _ in range(3):
        model(x).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    after = model(x).detach()
    assert far(after, before) > 1e-2
    if key != "dora":
        export(made, tmp_path / "adapter")
        stock = Pictures()
        stock.load_state_dict(state)
        served = PeftModel.from_pretrained(stock, tmp_path / "adapter").eval()
        assert far(served(x), after) < 1e-5
    assert far(made.merge()(x), after) < 1e-5


def test_a_core_tensor_for_the_weight_of_a_convolution(tmp_path: Path) -> None:
    """Against einsum over all modes; its change is of no low rank as a matrix, and exported as the best of one."""
    torch.manual_seed(1)
    model, x = Pictures(), torch.randn(2, 6, 8, 8)
    before = model(x)
    made = wrap(model, flora_tucker(modes=4), rank=3)
    assert made.numbers == 2 * (3 * 3 * 2 * 2 + 2 * 6 * 3 + 2 * 3 * 2)
    assert far(model(x), before) == 0
    optimiser = torch.optim.AdamW(made.groups(1e-1))
    for _ in range(3):
        model(x).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    for adapter in made.adapters.values():
        tensors = adapter.params
        modes = [tensors[f"mode_{i}"] for i in range(4)]
        expected = 4.0 * torch.einsum("abcd,ia,jb,kc,ld->ijkl", tensors["core"], *modes)
        assert torch.allclose(adapter.update.dense().reshape(6, 6, 3, 3), expected, atol=1e-5)
    after = model(x).detach()
    assert far(after, before) > 1e-2
    done = export(made, tmp_path / "adapter", rank=2)
    assert not done.is_exact
    assert all(bound.lower is not None for bound in done.bounds.values())
    assert far(made.merge()(x), after) < 1e-5
    with pytest.raises(EckartError, match="a weight of 4 modes, where the form has 2"):
        wrap(Pictures(), flora_tucker(), rank=3)
    one = Tucker(modes=4, kernel=1).init(Seed(), torch.zeros(6, 6, 3, 3), 3, torch.Generator())
    assert one["core"].shape == (3, 3, 1, 1)
    for modes, kernel in ((1, 1), (2, 0)):
        with pytest.raises(ValueError, match="take a number that is"):
            Tucker(modes, kernel)


def test_the_blocks_with_the_largest_gradients_of_all_maps_train(shelf: dict[str, Path]) -> None:
    """SMT against gradients by autograd and a list of all blocks; everything outside of the chosen ones stays bit by bit."""
    made = wrap(loaded(shelf["llama"]), smt(size=20), rank=2, batches=batches("llama"))
    model = loaded(shelf["llama"])
    names = targets_of(model)
    for name in names:
        model.get_submodule(name).weight.requires_grad_(True)
    (sum(model(**batch).loss for batch in batches("llama")) / 3).backward()
    scores = []
    for name in names:
        gradient = model.get_submodule(name).weight.grad.abs()
        for i in range(0, gradient.shape[0], 20):
            for j in range(0, gradient.shape[1], 20):
                scores.append((float(gradient[i : i + 20, j : j + 20].mean()), name, i // 20, j // 20))
    best = {entry[1:] for entry in sorted(scores, reverse=True)[: 2 * len(names)]}
    found = {(name, int(i), int(j)) for name, adapter in made.adapters.items() for i, j in adapter.places}
    assert found == best
    train(made.model, made.groups(1e-2), "llama")
    before = {name: matrix_of(model.get_submodule(name)).detach() for name in names}
    after = dict(made.merge().named_modules())
    for name in names:
        moved = matrix_of(after[name]) != before[name]
        inside = torch.zeros_like(moved)
        for _, i, j in (entry for entry in best if entry[0] == name):
            inside[20 * i : 20 * i + 20, 20 * j : 20 * j + 20] = True
        assert not bool((moved & ~inside).any())
        assert bool(moved.any()) == bool(inside.any())


# ---- gates ------------------------------------------------------------------------------------------------------------


def test_the_largest_directions_act_and_the_balance_follows(shelf: dict[str, Path]) -> None:
    """FlyLoRA, token by token in NumPy's terms; the frozen side never moves, and a balance that is not zero changes what acts."""
    made = wrapped("flylora", "llama", shelf)
    adapter = next(iter(made.adapters.values()))
    adapter.left.data.normal_(generator=torch.Generator().manual_seed(1))
    adapter.balance.normal_(std=0.3, generator=torch.Generator().manual_seed(2))
    x = torch.randn(2, 5, adapter.right.shape[1], generator=torch.Generator().manual_seed(3))
    z = x @ adapter.right.T
    expected, counts = torch.zeros(2, 5, adapter.left.shape[0]), torch.zeros(RANK)
    for i, j in ((i, j) for i in range(2) for j in range(5)):
        chosen = sorted(range(RANK), key=lambda k: -abs(float(z[i, j, k] + adapter.balance[k])))[:3]
        counts[chosen] += 1
        for k in chosen:
            expected[i, j] += adapter.scale * z[i, j, k] * adapter.left[:, k].detach()
    before = adapter.balance.clone()
    assert far(adapter.eval()(x) - adapter.base(x), expected) < 1e-5
    assert torch.equal(adapter.balance, before)
    adapter.train()(x)
    assert torch.allclose(adapter.balance - before, 1e-3 * torch.sign(counts.mean() - counts))


def test_all_directions_that_act_are_a_lora(shelf: dict[str, Path], tmp_path: Path) -> None:
    made = wrap(loaded(shelf["llama"]), flylora(active=RANK, share=0.5), rank=RANK)
    train(made.model, made.groups(1e-2), "llama")
    after = logits(made.model.eval())
    assert export(made, tmp_path / "adapter").is_exact
    assert far(logits(PeftModel.from_pretrained(loaded(shelf["llama"]), tmp_path / "adapter").eval()), after) < 1e-5
    assert far(logits(made.merge()), after) < 1e-5


def test_experts_are_routed_and_learn_by_the_root_of_their_weight(shelf: dict[str, Path]) -> None:
    recipes = [moe_lora_riemannian(experts=3, top=2)]
    recipes.append(replace(recipes[0], form=Gated(Router(3, 2))))
    outputs, gradients = [], []
    for recipe in recipes:
        made = wrap(loaded(shelf["llama"]), recipe, rank=2, only=["q_proj"])
        adapter = next(iter(made.adapters.values()))
        adapter.left.data.normal_(generator=torch.Generator().manual_seed(1))
        x = torch.randn(1, adapter.right.shape[1], generator=torch.Generator().manual_seed(3))
        y = adapter(x) - adapter.base(x)
        y.square().sum().backward()
        outputs.append(y.detach())
        gradients.append({name: adapter.get_parameter(name).grad.clone() for name in ("left", "right", "router")})
    shares = (x @ adapter.router.T).softmax(-1)[0].detach()
    shares[shares.argmin()] = 0
    shares = (shares / shares.sum()).repeat_interleave(2)
    expected = adapter.scale * (shares * (x @ adapter.right.T)) @ adapter.left.T
    assert adapter.scale == 8.0  # of the rank of one expert
    assert far(outputs[0], expected) < 1e-5
    assert far(outputs[0], outputs[1]) < 1e-6
    plain, rooted = gradients[1], gradients[0]
    assert far(rooted["router"], plain["router"]) < 1e-5
    assert far(rooted["left"] * shares.sqrt(), plain["left"]) < 1e-5
    assert far(rooted["right"] * shares.sqrt()[:, None], plain["right"]) < 1e-5


def test_what_cannot_be_adapted_is_told(shelf: dict[str, Path]) -> None:
    llama = shelf["llama"]
    with pytest.raises(EckartError, match=r"no linear map of the model is called 'q_prj': near are q_proj"):
        wrap(loaded(llama), lora(), only=["q_prj"])
    with pytest.raises(
        EckartError, match=r"k_proj cannot be adapted so: rank 40 of a map of 24 x 48: give one from 1 to 24"
    ):
        wrap(loaded(llama), lora(), rank=40, only=["k_proj"])
    with pytest.raises(EckartError, match="starts from what the model does with a text: give batches"):
        wrap(loaded(llama), lora_ga())
    with pytest.raises(EckartError, match="starts from gradients of the loss: give batches with labels"):
        wrap(loaded(llama), lora_ga(), batches=[{"input_ids": token_ids()}])
    with pytest.raises(EckartError, match="no linear map that is to be adapted"):
        wrap(loaded(llama), lora(), only=["q_proj"], exclude=["layers.*"])
    with pytest.raises(ValueError, match="no tensor middle to give a role: left, right"):
        Adapt(paper=Paper("own", ""), form=Pair(), start=RANDOM, roles={"middle": Role()})
    with pytest.raises(ValueError, match="nothing would train"):
        Adapt(paper=Paper("own", ""), form=Pair(), start=RANDOM, roles={"left": FROZEN, "right": FROZEN})


def test_a_base_in_bfloat16_keeps_its_type(shelf: dict[str, Path]) -> None:
    model = loaded(shelf["llama"], torch.bfloat16)
    before = logits(model).float()
    made = wrap(model, pissa(), rank=RANK)
    assert {p.dtype for _, p, _ in made.trainable()} == {torch.float32}
    after = logits(model)
    assert after.dtype == torch.bfloat16
    assert far(after.float(), before) < 0.05
    weights = {a.base.weight.dtype for a in made.adapters.values()}
    assert weights == {torch.bfloat16}
    name, adapter = next(iter(made.adapters.items()))
    tail = torch.linalg.svdvals(matrix_of(adapter.base).double())[0]
    stock = matrix_of(loaded(shelf["llama"]).get_submodule(name)).double()
    fit = truncated_svd(stock, RANK, accuracy=0.0, spectral=True)
    assert float(tail) == pytest.approx(
        fit.bounds[-1].achieved, rel=0.02
    )  # what is frozen has the next singular value for norm


def test_what_nearly_cancels_is_stored_by_its_difference() -> None:
    rng = torch.Generator().manual_seed(0)
    left, right = (torch.randn(*shape, generator=rng, dtype=torch.float64) for shape in ((8, 3), (3, 6)))
    moved = left + 1e-4 * torch.randn(8, 3, generator=rng, dtype=torch.float64)
    product = Factors(torch.cat([moved, -left], 1), torch.cat([right, right + 1e-4 * right.flip(0)]))
    assert far(_least(product).dense(), product.dense()) < 1e-10
    rounded = _least(product)
    assert far(rounded.left.float() @ rounded.right.float(), product.dense().float()) < 1e-6
    assert far(product.left.float() @ product.right.float(), product.dense().float()) > 1e-5


@pytest.mark.parametrize("size", [1e-8, 1.0, 1e8])
def test_no_more_columns_are_stored_than_a_product_takes(size: float) -> None:
    """Whatever its size; of nothing one is left."""
    rng = torch.Generator().manual_seed(0)
    left = size * torch.randn(8, 3, generator=rng, dtype=torch.float64)
    right = size * torch.randn(3, 6, generator=rng, dtype=torch.float64)
    twice = Factors(torch.cat([left, -0.5 * left], 1), torch.cat([right, right]))
    least = _least(twice)
    assert least.rank == 3
    assert far(least.dense(), 0.5 * left @ right) < 1e-12
    nothing = _least(Factors(torch.cat([left, left], 1), torch.cat([right, -right])))
    assert nothing.rank == 1
    assert float(nothing.dense().abs().max()) < 1e-10 * size**2
