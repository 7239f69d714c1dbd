"""What narrower bonds are expected to cost, against one pass of the whole model with hooks and autograd, and what allocators make of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import ARCHITECTURES
from runs import calibration_text, edit_tensor
from torch import Tensor
from transformers import AutoModelForCausalLM

import eckart
from eckart.allocate import EqualMarginalLoss, Exact, Level
from eckart.bonds.choosing import EachNorm, Principal, Select
from eckart.bonds.correction import Refit
from eckart.bonds.scores import Magnitude, SecondMoment
from eckart.model import engine
from eckart.model.compression import Narrow, Paper
from eckart.model.expected import site_losses
from eckart.model.graph import graph_of
from eckart.model.progress import quiet
from eckart.model.run import Request, Run
from eckart.model.sites import find_sites
from eckart.recipes import modegpt

OWN = Paper("own", "")
HIDDEN = Narrow(paper=OWN, hidden=Select(SecondMoment()), allocate=EqualMarginalLoss())
OPTIONS: dict[str, Any] = {"tokens": 512, "window": 32}


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ARCHITECTURES["llama"](tmp_path_factory.mktemp("ground") / "model")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibration_text(tmp_path_factory.mktemp("text") / "text.txt")


def opened(model: Path, out: Path, recipe: Narrow, text: Path) -> Run:
    request = Request(keep=0.7, calibration=text, tokens=256, window=32)
    return engine._open_run(model, out, recipe, request, restart=False, progress=quiet)


def noted(model: Path, run: Run, leaves: tuple[str, ...]) -> tuple[dict[str, Tensor], dict[str, Tensor], Any]:
    """The inputs and the gradients at the outputs of these maps, one row a token, by PyTorch alone."""
    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        def hook(_: object, args: tuple[Tensor, ...], output: Tensor) -> None:
            inputs[name] = args[0].detach().flatten(0, 1).double()
            output.retain_grad()
            outputs[name] = output

        return hook

    for name, module in whole.named_modules():
        if name.endswith(leaves):
            module.register_forward_hook(note(name))
    every = whole(input_ids=run.walking().windows).logits.float().flatten(0, 1)
    labels = torch.multinomial(every.detach().softmax(-1), 1, generator=run.rng("labels")).flatten()
    torch.nn.functional.cross_entropy(every, labels, reduction="sum").backward()
    gradients = {
        name: output.grad.flatten(0, 1).double() for name, output in outputs.items() if output.grad is not None
    }
    return inputs, gradients, whole


def per_square(gradient: Tensor) -> float:
    """``mean ||d||^2 / (2 m)``."""
    return float(gradient.square().sum(1).mean()) / (2 * gradient.shape[1])


def test_expected_losses_are_the_formula(ground: Path, text: Path, tmp_path: Path) -> None:
    recipe = Narrow(
        paper=OWN,
        hidden=Select(SecondMoment()),
        values=Principal(),
        keys=Select(SecondMoment()),
        allocate=EqualMarginalLoss(),
    )
    run = opened(ground, tmp_path / "out", recipe, text)
    graph = graph_of(run.checkpoint)
    sites = find_sites(run.checkpoint, graph, recipe, frozenset())
    found = site_losses(run, graph, sites)
    inputs, gradients, whole = noted(ground, run, ("down_proj", "o_proj", "k_proj", "v_proj"))
    for block in range(run.blocks):
        at = f"model.layers.{block}"
        down = f"{at}.mlp.down_proj"
        weight, x = whole.get_submodule(down).weight.detach().double(), inputs[down]
        losses = found[f"{at}.hidden"]
        lengths = (weight.T @ weight * (x.T @ x)).diagonal()
        order = lengths.argsort(descending=True)
        for kept in (0, 1, len(order) // 2, len(order) - 1):
            gone = order[kept:]
            error = float((x[:, gone] @ weight[:, gone].T).square().sum(1).mean())
            assert float(losses[kept]) == pytest.approx(per_square(gradients[down]) * error, rel=1e-3)
        assert float(losses[-1]) == pytest.approx(0, abs=1e-12)
        # With no keys at all everything that the map gives is wrong; with no values all that the map behind reads.
        key = whole.get_submodule(f"{at}.self_attn.k_proj")
        given = inputs[f"{at}.self_attn.k_proj"] @ key.weight.detach().double().T
        expected = per_square(gradients[f"{at}.self_attn.k_proj"]) * float(given.square().sum(1).mean())
        assert float(found[f"{at}.keys"][0]) == pytest.approx(expected, rel=1e-3)
        assert float(found[f"{at}.keys"][-1]) == pytest.approx(0, abs=1e-12)
        values = found[f"{at}.values"]
        assert bool((values[1:] <= values[:-1]).all())
        assert float(values[0]) > 0


def test_what_weights_alone_decide_costs_what_inputs_make_of_it(ground: Path, text: Path, tmp_path: Path) -> None:
    recipe = Narrow(paper=OWN, hidden=Select(Magnitude()), allocate=EqualMarginalLoss())
    run = opened(ground, tmp_path / "out", recipe, text)
    graph = graph_of(run.checkpoint)
    found = site_losses(run, graph, find_sites(run.checkpoint, graph, recipe, frozenset()))
    inputs, gradients, whole = noted(ground, run, ("down_proj",))
    for block in range(run.blocks):
        down, mlp = f"model.layers.{block}.mlp.down_proj", whole.model.layers[block].mlp
        weight, x = mlp.down_proj.weight.detach().double(), inputs[down]
        sizes = sum(w.detach().double().norm(dim=1) for w in (mlp.gate_proj.weight, mlp.up_proj.weight))
        gone = (sizes + weight.norm(dim=0)).argsort(descending=True)[30:]
        error = float((x[:, gone] @ weight[:, gone].T).square().sum(1).mean())
        loss = float(found[f"model.layers.{block}.hidden"][30])
        assert loss == pytest.approx(per_square(gradients[down]) * error, rel=1e-3)


def test_keys_count_whatever_their_size_and_silent_ones_cost_nothing(ground: Path, text: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(ground, model)
    edit_tensor(model, "model.layers.0.self_attn.k_proj.weight", lambda w: 1e-4 * w)
    edit_tensor(model, "model.layers.1.self_attn.k_proj.weight", torch.zeros_like)
    recipe = Narrow(paper=OWN, keys=Select(SecondMoment()), allocate=EqualMarginalLoss())
    run = opened(model, tmp_path / "out", recipe, text)
    graph = graph_of(run.checkpoint)
    found = site_losses(run, graph, find_sites(run.checkpoint, graph, recipe, frozenset()))
    inputs, gradients, whole = noted(model, run, ("k_proj",))
    name = "model.layers.0.self_attn.k_proj"
    given = inputs[name] @ whole.get_submodule(name).weight.detach().double().T
    expected = per_square(gradients[name]) * float(given.square().sum(1).mean())
    assert float(found["model.layers.0.keys"][0]) == pytest.approx(expected, rel=1e-3)
    assert expected > 0
    assert found["model.layers.1.keys"].tolist() == [0.0] * len(found["model.layers.1.keys"])


def test_heads_are_expected_to_cost_what_the_map_behind_them_loses(ground: Path, text: Path, tmp_path: Path) -> None:
    recipe = Narrow(paper=OWN, groups=Select(SecondMoment()), allocate=EqualMarginalLoss())
    run = opened(ground, tmp_path / "out", recipe, text)
    graph = graph_of(run.checkpoint)
    sites = find_sites(run.checkpoint, graph, recipe, frozenset())
    found = site_losses(run, graph, sites)
    inputs, gradients, whole = noted(ground, run, ("o_proj",))
    for site in sites:
        name = site.name.replace(".groups", ".self_attn.o_proj")
        weight, x = whole.get_submodule(name).weight.detach().double(), inputs[name]
        error = float((x @ weight.T).square().sum(1).mean())
        assert len(found[site.name]) == site.units + 1
        assert float(found[site.name][0]) == pytest.approx(per_square(gradients[name]) * error, rel=1e-3)


@pytest.mark.parametrize("allocate", [EqualMarginalLoss(), Exact()])
def test_widths_are_spread_where_that_is_expected_to_cost_less(
    allocate: Any, ground: Path, text: Path, tmp_path: Path
) -> None:
    recipe = replace(HIDDEN, allocate=allocate)
    done = eckart.compress(ground, tmp_path / "out", recipe=recipe, keep=0.8, calibration=text, **OPTIONS)
    run = opened(ground, tmp_path / "again", recipe, text)
    graph = graph_of(run.checkpoint)
    sites = find_sites(run.checkpoint, graph, recipe, frozenset())
    losses = site_losses(run, graph, sites)
    even = eckart.compress(
        ground, tmp_path / "even", recipe=replace(HIDDEN, allocate=Level()), keep=0.8, calibration=text, **OPTIONS
    )

    def expected(result: eckart.Compressed) -> float:
        return sum(float(losses[record.name][record.rank]) for record in result.bonds)

    assert len({record.rank for record in done.bonds}) > 1
    assert done.target_bytes[1] <= 0.8 * done.target_bytes[0]
    assert expected(done) < 1.02 * expected(even)  # other windows, nearly the same figures
    table = json.loads((tmp_path / "out" / "eckart.json").read_text())
    assert 0 <= table["ranks"]["gap"] < 1e-2
    assert eckart.verify(tmp_path / "out", ground, calibration=text).failures == ()


def test_it_may_be_taken_for_a_published_recipe(ground: Path, text: Path, tmp_path: Path) -> None:
    recipe = modegpt(EqualMarginalLoss())
    done = eckart.compress(ground, tmp_path / "out", recipe=recipe, keep=0.8, calibration=text, **OPTIONS)
    kinds = {record.name.split(".")[3] for record in done.bonds}
    assert {"hidden", "values"} <= kinds <= {"hidden", "values", "keys"}
    assert done.kept == "equalmarginalloss"


def test_where_there_is_nothing_to_spread_it_is_refused() -> None:
    for stream in (Principal(), EachNorm(Principal())):
        with pytest.raises(ValueError, match="a stream is one bond, among which there is nothing to allocate"):
            Narrow(paper=OWN, stream=stream, allocate=EqualMarginalLoss())
    refitted = replace(HIDDEN, hidden=Select(SecondMoment(), Refit()))
    assert refitted.reads_text
