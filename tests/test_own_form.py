"""Adapters that no LoRA says: kept, put into the model again, merged, refused elsewhere. And recipes of adapters as TOML."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import ARCHITECTURES, SENTENCES
from outputs import far, loaded, logits, token_ids
from runs import cli, refused
from safetensors.torch import load_file, save_file
from torch import nn

from eckart.adapt import RECIPES as ADAPTERS
from eckart.adapt import Adapt, Course, attach, export, find_recipe, merge, tune, wrap
from eckart.errors import EckartError
from eckart.model.adapting.modules import NoLoraError
from eckart.model.adapting.own import TABLE, TENSORS, keep
from eckart.recipes.adapters.notation import compose_adapter
from eckart.recipes.adapters.others import flylora, moe_lora_riemannian, smt

SMALL: dict[str, Callable[[], Adapt]] = {
    **ADAPTERS,
    "flylora": lambda: flylora(active=3, share=0.5),
    "smt": lambda: smt(size=16),
    "moe-lora-riemannian": lambda: moe_lora_riemannian(experts=4, top=2),
}
GATED = ("flylora", "moe-lora-riemannian")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: ARCHITECTURES[name](tmp_path_factory.mktemp(name) / "model") for name in ("llama", "gpt2")}


def trained(model: Any, recipe: Adapt) -> Any:
    ids = token_ids()
    made = wrap(model, recipe, rank=4, batches=[{"input_ids": ids, "labels": ids}])
    optimiser = torch.optim.AdamW(made.groups(1e-2))
    for _ in range(3):
        made.model.train()
        made.model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    made.model.eval()
    return made


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("key", ["full", "svft", "smt", "dota", "kasa", "dora", "pissa", "qdota", *GATED])
def test_kept_and_put_into_the_model_again_it_computes_the_same(
    key: str, kind: str, shelf: dict[str, Path], tmp_path: Path
) -> None:
    """Whatever a LoRA says of it; and merged from the disk it computes what it did, where it is a weight at all."""
    made = trained(loaded(shelf[kind]), SMALL[key]())
    after = logits(made.model)
    assert far(after, logits(loaded(shelf[kind]))) > 1e-3
    keep(made, tmp_path / "own")
    again = attach(loaded(shelf[kind]), tmp_path / "own")
    assert torch.equal(logits(again.model), after)
    assert {name for name, p in again.model.named_parameters() if p.requires_grad} == {
        name for name, _, _ in made.trainable()
    }
    if key in GATED:
        with pytest.raises(EckartError, match="depends on the token"):
            merge(shelf[kind], tmp_path / "own", tmp_path / "merged")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["own"]
    else:
        merge(shelf[kind], tmp_path / "own", tmp_path / "merged")
        assert far(logits(loaded(tmp_path / "merged")), after) < 1e-5


def test_a_run_keeps_what_no_lora_says_and_tells_why(shelf: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text(json.dumps({"text": "a man of sense and of more sense than money " * 40}))
    course = Course(steps=4, batch=2, rate=1e-2, length=24, held_out=0.0)
    own = tune(shelf["llama"], tmp_path / "data.jsonl", tmp_path / "own", SMALL["svft"](), course=course)
    assert own.own is not None
    assert "of no low rank" in own.own
    assert sorted(p.name for p in own.folder.iterdir()) == [TABLE, TENSORS]
    exact = attach(loaded(shelf["llama"]), own.folder).merge()
    # With a rank it is the best LoRA of that rank instead, whose error is told.
    lora = tune(
        shelf["llama"], tmp_path / "data.jsonl", tmp_path / "lora", SMALL["svft"](), course=course, export_rank=6
    )
    assert lora.own is None
    assert max(lora.left_out.values()) > 0.01
    cli("merge-adapter", str(shelf["llama"]), str(own.folder), "-o", str(tmp_path / "merged"))
    assert far(logits(loaded(tmp_path / "merged")), logits(exact)) < 1e-6


def test_no_other_model_takes_it(shelf: dict[str, Path], tmp_path: Path) -> None:
    made = trained(loaded(shelf["llama"]), SMALL["full"]())
    keep(made, tmp_path / "own")
    with pytest.raises(EckartError, match=r"GPT2LMHeadModel has no model\.layers\.0\.mlp\.down_proj, which the"):
        attach(loaded(shelf["gpt2"]), tmp_path / "own")
    other = loaded(shelf["llama"])
    other.model.layers[0].mlp.up_proj = nn.Linear(48, 50)
    with pytest.raises(EckartError, match=r"up_proj is a map of 50 x 48, and the adapter changes one of 96 x 48"):
        attach(other, tmp_path / "own")
    with pytest.raises(EckartError, match=f"holds no {TABLE}: name a folder"):
        attach(loaded(shelf["llama"]), tmp_path)
    told = json.loads((tmp_path / "own" / TABLE).read_text())
    for key, sentence in (("recipe", "lacks recipe, modules or rank"), ("modules", "lacks recipe, modules or rank")):
        (tmp_path / "own" / TABLE).write_text(json.dumps({k: v for k, v in told.items() if k != key}))
        with pytest.raises(EckartError, match=sentence):
            attach(loaded(shelf["llama"]), tmp_path / "own")
    fewer = {k: v for k, v in told["modules"].items() if "up_proj" not in k}
    (tmp_path / "own" / TABLE).write_text(json.dumps({**told, "modules": fewer}))
    with pytest.raises(EckartError, match=r"does not go with the table beside it, which has no model\.layers\.0\.mlp"):
        attach(loaded(shelf["llama"]), tmp_path / "own")


@pytest.mark.parametrize(
    "key",
    ["smt", *(pytest.param(key, marks=pytest.mark.slow) for key in ("pissa", "svft", "qdota", "flylora", "dora"))],
)
def test_whatever_is_damaged_is_one_sentence_or_harmless(key: str, shelf: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "own"
    seen = [{"input_ids": token_ids(), "labels": token_ids()}]
    keep(wrap(loaded(shelf["llama"]), SMALL[key](), rank=4, only=["*0.mlp.up_proj"], batches=seen), folder)
    table, tensors = json.loads((folder / TABLE).read_text()), load_file(folder / TENSORS)
    refusals = []

    def read_again() -> None:
        for use in (
            lambda: attach(loaded(shelf["llama"]), folder).model(input_ids=token_ids()),
            lambda: merge(shelf["llama"], folder, tmp_path / "merged"),
        ):
            try:
                use()
            except EckartError as error:
                refusals.append(str(error))
            shutil.rmtree(tmp_path / "merged", ignore_errors=True)

    def write_table(other: Any) -> None:
        (folder / TABLE).write_text(json.dumps(other))

    for path in paths({**table, "recipe": None}):  # whose settings are another test's
        for value in (None, True, -1, 0, 1e400, "x", [], {}, [1], 10**40):
            write_table(with_value(table, path, value))
            read_again()
    write_table(table)
    for name, tensor in tensors.items():
        others = [
            None,
            tensor[:1],
            tensor[None],
            tensor.flatten(),
            tensor.mT.contiguous() if tensor.ndim == 2 else None,
            tensor.to(torch.int16),
            tensor > 0,
        ]
        for other in [*others, torch.full_like(tensor, 100), torch.empty(0, dtype=tensor.dtype)]:
            kept = {k: t for k, t in tensors.items() if k != name}
            save_file(kept if other is None else {**kept, name: other}, folder / TENSORS)
            read_again()
        save_file({**tensors, f"{name}_further": tensor.clone()}, folder / TENSORS)
        before = len(refusals)
        read_again()
        assert len(refusals) == before + 2
    save_file(tensors, folder / TENSORS)
    before = len(refusals)
    read_again()
    assert len(refusals) == before + (key in GATED)  # as it was it is taken, but for weights that depend on the token
    assert not any("\n" in sentence or "Traceback" in sentence for sentence in refusals)


def paths(table: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """All places in a table."""
    entries = table.items() if isinstance(table, dict) else enumerate(table) if isinstance(table, list) else ()
    for key, entry in entries:
        yield (*at, key)
        yield from paths(entry, (*at, key))


def with_value(table: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The table with another value at one place."""
    if not path:
        return value
    made = copy.copy(table)
    made[path[0]] = with_value(table[path[0]], path[1:], value)
    return made


@pytest.mark.parametrize(
    ("key", "kind"), [("full", "llama"), ("svft", "llama"), ("pissa", "llama"), ("full", "gpt2"), ("svft", "gpt2")]
)
def test_a_table_of_embeddings_is_merged_from_its_own_form(
    key: str, kind: str, shelf: dict[str, Path], tmp_path: Path
) -> None:
    """A head that was tied to it keeps the weight that it had."""
    table = {"llama": "model.embed_tokens", "gpt2": "transformer.wte"}[kind]
    ids, made = token_ids(), wrap(loaded(shelf[kind]), SMALL[key](), rank=4, only=[table])
    optimiser = torch.optim.AdamW(made.groups(1e-2))
    for _ in range(3):
        made.model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    after = logits(made.model)
    assert far(after, logits(loaded(shelf[kind]))) > 1e-3
    keep(made, tmp_path / "own")
    assert torch.equal(logits(attach(loaded(shelf[kind]), tmp_path / "own").model), after)
    merge(shelf[kind], tmp_path / "own", tmp_path / "merged")
    assert far(logits(loaded(tmp_path / "merged")), after) < 1e-5


def test_full_fine_tuning_is_that_of_the_weights(shelf: dict[str, Path]) -> None:
    """Step by step what AdamW makes of the weights themselves."""
    ids, stock = token_ids(), loaded(shelf["llama"])
    names = [name for name, module in stock.named_modules() if isinstance(module, nn.Linear) and "lm_head" not in name]
    for parameter in stock.parameters():
        parameter.requires_grad_(False)
    weights = [stock.get_submodule(name).weight.requires_grad_(True) for name in names]
    made = wrap(loaded(shelf["llama"]), SMALL["full"]())
    assert list(made.adapters) == names
    losses = {}
    for model, groups in ((stock, [{"params": weights, "weight_decay": 0.0}]), (made.model, made.groups(1e-3))):
        optimiser = torch.optim.AdamW(groups, lr=1e-3)
        losses[model] = []
        for _ in range(8):
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            losses[model].append(float(loss.detach()))
            optimiser.step()
            optimiser.zero_grad()
    assert losses[stock] == pytest.approx(losses[made.model], rel=1e-4)
    assert losses[stock][-1] < losses[stock][0] - 0.1
    with pytest.raises(NoLoraError, match="of no low rank"):
        export(made, "never")


# ---- recipes as TOML --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ADAPTERS)
def test_every_recipe_composes_from_its_own_description(key: str) -> None:
    made = SMALL[key]()
    again = compose_adapter(json.loads(json.dumps(made.describe())), "here")
    assert again.describe() == made.describe()
    assert (
        replace(again, paper=made.paper, within=made.within) == made
    )  # where the smaller model's recipe tells of no paper


RECIPE = """
[form]
part = "Directed"
of = { part = "Pair" }
[start]
part = "Start"
source = { part = "OfWeight", metric = { part = "Gram" } }
pick = { part = "Bottom" }
split = { part = "Even" }
[[outputs]]
part = "Divergence"
weight = 1
[roles.left]
rate = 4
"""


def test_a_recipe_from_a_file(shelf: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(RECIPE)
    made = find_recipe(tmp_path / "own.toml")
    assert made.describe()["roles"] == {"left": {"trains": True, "rate": 4.0, "decay": True}}
    wrapped = wrap(loaded(shelf["llama"]), made, rank=2, batches=[{"input_ids": token_ids()}])
    rates = {
        name: group["lr"]
        for group in wrapped.groups(1e-3)
        for name, p, _ in wrapped.trainable()
        if p is group["params"][0]
    }
    assert sorted(set(rates.values())) == [1e-3, 4e-3]
    few = token_ids()[:1, :20]  # fewer tokens than a map has inputs: there is no smallest direction to take
    with pytest.raises(
        EckartError, match=r"components are left in the metric of what was seen, and number \d+ is picked"
    ):
        wrap(loaded(shelf["llama"]), made, rank=2, batches=[{"input_ids": few}])
    (tmp_path / "data.txt").write_text(" ".join(SENTENCES * 4))
    shown = cli(
        "adapt",
        str(shelf["llama"]),
        "--data",
        str(tmp_path / "data.txt"),
        "-o",
        str(tmp_path / "out"),
        "--recipe",
        str(tmp_path / "own.toml"),
        "--steps",
        "2",
        "--length",
        "24",
    )
    assert shown.code == 0, shown.err
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["use_dora"] is True


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('part = "Pair"', 'part = "Pear"', "[of] needs part = one of Pair"),
        ('part = "Bottom"', 'part = "Bottom", at = 1', "Bottom has no setting 'at'; it has none"),
        ("weight = 1", 'weight = "much"', "Divergence.weight is 'much'; give a number"),
        ("[[outputs]]", "[outputs]", "outputs is a list of parts: write [[outputs]]"),
        ("[roles.left]", "[roles.top]", "there is no tensor top to give a role: left, right, lengths"),
        ("rate = 4", 'rate = "fast"', "roles.left.rate is 'fast'; give a number"),
        ("rate = 4", "speed = 4", "a role has no setting 'speed'; it has trains, rate, decay"),
        ("[form]", "[parametrisation]", "unknown entry 'parametrisation'; a recipe of adapters has form, start"),
        ('split = { part = "Even" }', 'split = { part = "Apart" }', "Pair has no place for the middle part"),
        ("[start]", "[start", "own.toml is not valid TOML"),
    ],
)
def test_what_is_no_recipe_of_adapters_is_named(old: str, new: str, sentence: str, tmp_path: Path) -> None:
    assert old in RECIPE
    (tmp_path / "own.toml").write_text(RECIPE.replace(old, new))
    with pytest.raises(EckartError, match=re.escape(sentence)):
        find_recipe(tmp_path / "own.toml")


def test_settings_that_make_no_sense_are_named() -> None:
    """Every setting of every part that a recipe has, with values that no part takes, and with those that some take."""
    found = {}
    for key in ADAPTERS:
        table = json.loads(json.dumps(SMALL[key]().describe()))
        for path in paths(table):
            around = table
            for step in path[:-1]:
                around = around[step]
            found[around.get("part") if isinstance(around, dict) else path[:-1], path[-1]] = (table, path)
    assert len(found) > 90
    taken = set()
    for (part, setting), (table, path) in found.items():
        for value in ("x", "", [1], {"part": 1}, math.nan, 10**400, -1, 10**40, 0, None, True):
            with contextlib.suppress(EckartError):
                compose_adapter(with_value(table, path, value), "here").describe()
                if value in ("x", "", [1], {"part": 1}, -1) or value != value:
                    taken.add((part, setting, str(value)))
    assert taken == {("Kaiming", "slope", "-1"), ("Level", "value", "-1")}


def test_recipes_are_listed_and_shown() -> None:
    listed = cli("recipes").out
    assert set(ADAPTERS) <= set(listed.split())
    shown = cli("recipes", "kasa").out
    assert "penalties: Orthonormal weight=0.001 squared=False" in shown
    assert "start: Start source=Drawn(middle=Gaussian(deviation=1), right=Kaiming(slope=2.23607))" in shown
    assert refused("recipes", "kasaa").startswith("there is no recipe 'kasaa': known are svd, ")
