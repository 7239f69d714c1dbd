"""Recipes of bonds from checkpoint to checkpoint, on every architecture that is declared, against the original with parts taken out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from models import ARCHITECTURES
from outputs import far, loaded, logits
from runs import CALIBRATED, calibration_text, cli, edit_json, edit_tensor, refused
from safetensors.torch import load_file
from torch import Tensor

import eckart
from eckart.allocate import Entropic, GreedyByLoss, Level, Threshold, Uniform
from eckart.approx import LowRank
from eckart.bonds.choosing import Chosen, Principal, Select
from eckart.bonds.correction import Refit, Tune
from eckart.bonds.crossing import Crossing
from eckart.bonds.depth import LastBlocks, LeastLoss
from eckart.bonds.scores import Condition, Magnitude, SecondMoment
from eckart.errors import EckartError
from eckart.model.certificate import Certificate
from eckart.model.checkpoint import Checkpoint
from eckart.model.compression import Compress, Narrow, Paper, Statistics
from eckart.model.sites import find_sites
from eckart.recipes import modegpt
from eckart.stats import Need, Plain, RootMeanSquare

DECLARED = ("llama", "llama_tied", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gpt2", "gpt_neox", "opt", "phi")
NORMALISED = ("qwen3", "gemma3")  # queries and keys: their bond has no symmetry
TURNED = ("llama", "llama_tied", "mistral", "qwen2", "qwen3")  # the stream may be
OPTIONS: dict[str, Any] = {"tokens": 512, "window": 32}
OWN = Paper("own", "")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibration_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return ARCHITECTURES[request.param](tmp_path / "model")


def config(folder: Path) -> dict[str, Any]:
    table: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return table


def narrow(model: Path, out: Path, recipe: Narrow | str, text: Path, keep: float = 0.8) -> eckart.Compressed:
    return eckart.compress(model, out, recipe=recipe, keep=keep, calibration=text, **OPTIONS)


def reader(folder: Path, bond: str) -> str:
    """The tensor that reads a hidden bond."""
    found = eckart.bond_graph(folder).bond(bond)
    return found.readers[0].tensor


# ---- hidden units -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", DECLARED, indirect=True)
def test_units_that_go_are_as_if_their_readers_had_zeros(model: Path, text: Path, tmp_path: Path) -> None:
    recipe = Narrow(paper=OWN, hidden=Select(Magnitude()), allocate=Level(multiple=8))
    done = narrow(model, tmp_path / "out", recipe, text, keep=0.9)
    assert "quantization_config" not in config(tmp_path / "out")
    assert done.target_bytes[1] <= 0.9 * done.target_bytes[0]
    stock = loaded(model)
    state = dict(stock.state_dict())
    graph = eckart.bond_graph(model)
    for record in done.bonds:
        assert record.kept is not None
        assert record.rank % 8 == 0
        assert record.bound is None  # nothing was measured
        end = graph.bond(record.name).readers[0]
        gone = [i for i in range(record.size) if i not in record.kept]
        name = end.tensor if end.tensor in state else f"{stock.base_model_prefix}.{end.tensor}"
        state[name].index_fill_(end.axis, torch.tensor(gone), 0.0)
    assert far(logits(loaded(tmp_path / "out")), logits(stock)) < 1e-5


@pytest.mark.parametrize("model", ["llama", "gpt2", "opt"], indirect=True)
@pytest.mark.parametrize("statistics", Statistics)
def test_refitted_readers_are_the_least_squares_of_their_inputs(
    model: Path, text: Path, tmp_path: Path, statistics: Statistics
) -> None:
    """The error of what is read, over the windows as they are run, is recorded, and no other weights on these units have less."""
    recipe = Narrow(paper=OWN, hidden=Select(SecondMoment(), Refit()), statistics=statistics)
    done = narrow(model, tmp_path / "out", recipe, text, keep=0.85)
    first = done.bonds[0]
    assert first.kept is not None
    assert first.bound is not None
    end = eckart.bond_graph(model).bond(first.name).readers[0]
    stock = loaded(model)
    module = stock.get_submodule(end.tensor.removesuffix(".weight"))
    seen: list[Tensor] = []
    module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().reshape(-1, first.size).double()))
    with torch.no_grad():
        for window in windows(model, text):
            stock(input_ids=window[None], use_cache=False)
    inputs = torch.cat(seen)
    whole = load_file(model / "model.safetensors")[end.tensor].double().movedim(end.axis, 0)
    made = load_file(tmp_path / "out" / "model.safetensors")[end.tensor].double().movedim(end.axis, 0)
    kept = torch.tensor(first.kept)
    expected = torch.linalg.lstsq(inputs[:, kept], inputs @ whole, driver="gelsd").solution
    off = inputs @ whole - inputs[:, kept] @ made
    least = inputs @ whole - inputs[:, kept] @ expected
    assert float(off.norm() / least.norm()) < 1 + 1e-5
    assert first.bound.achieved == pytest.approx(float(off.square().sum(1).mean().sqrt()), rel=1e-4)
    assert first.bound.scale == pytest.approx(float((inputs @ whole).square().sum(1).mean().sqrt()), rel=1e-4)
    values = torch.linalg.svdvals(inputs @ whole) / len(inputs) ** 0.5
    assert first.bound.lower == pytest.approx(float(values[first.rank :].norm()), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("model", ["llama", "gpt2"], indirect=True)
def test_tuned_readers_are_those_of_the_original_times_factors(model: Path, text: Path, tmp_path: Path) -> None:
    """The masks are those without tuning, and the first block, which both give the same inputs, comes out no worse."""
    plain = narrow(model, tmp_path / "plain", Narrow(paper=OWN, hidden=Select(Condition())), text)
    done = narrow(model, tmp_path / "tuned", Narrow(paper=OWN, hidden=Select(Condition(), Tune())), text)
    off = 0.0
    for before, after in zip(plain.bonds, done.bonds, strict=True):
        assert before.kept == after.kept
        end = eckart.bond_graph(model).bond(after.name).readers[0]
        whole = load_file(model / "model.safetensors")[end.tensor].double().movedim(end.axis, 0)
        made = load_file(tmp_path / "tuned" / "model.safetensors")[end.tensor].double().movedim(end.axis, 0)
        stock = whole[torch.tensor(after.kept)]
        factors = (made * stock).sum(1, keepdim=True) / stock.square().sum(1, keepdim=True)
        assert far(made, factors * stock) < 1e-6
        assert 0.0 <= float(factors.min()) <= float(factors.max()) <= 2 + 1e-6
        off = max(off, float((factors - 1).abs().max()))
        assert before.bound is not None
        assert after.bound is not None
        assert after.bound.lower == pytest.approx(before.bound.lower, rel=1e-9)
        assert after.bound.achieved <= before.bound.achieved * (1 + 1e-6)
    assert off > 0.01


def windows(model: Path, text: Path) -> Tensor:
    """The windows of a run, as its seed draws them."""
    from eckart.model.run import seeded
    from eckart.model.text import draw_windows, ids_for

    ids = ids_for(model, text.read_text())
    return draw_windows(ids, OPTIONS["window"], OPTIONS["tokens"], seeded(0, "windows"))


@pytest.mark.parametrize("model", ["llama", "gpt2"], indirect=True)
def test_widths_of_their_own_need_the_loader(model: Path, text: Path, tmp_path: Path) -> None:
    recipe = Narrow(paper=OWN, hidden=Select(Magnitude()), allocate=Uniform())
    keep = 0.8503  # what is left over buys a unit in some blocks
    done = narrow(model, tmp_path / "out", recipe, text, keep=keep)
    assert len({record.rank for record in done.bonds}) == 2
    modules = config(tmp_path / "out")["quantization_config"]["modules"]
    assert all(entry["resized"] for entry in modules.values())
    stock = loaded(model)
    state = dict(stock.state_dict())
    for record in done.bonds:
        end = eckart.bond_graph(model).bond(record.name).readers[0]
        gone = [i for i in range(record.size) if i not in (record.kept or ())]
        state[end.tensor].index_fill_(end.axis, torch.tensor(gone), 0.0)
    assert far(logits(loaded(tmp_path / "out")), logits(stock)) < 1e-5
    told = refused("densify", tmp_path / "out", "-o", tmp_path / "dense", out=tmp_path / "dense")
    assert f"{next(iter(modules))} has a width of its own" in told
    assert "Level in [allocate]" in told
    assert "densify" not in (tmp_path / "out" / "README.md").read_text()
    edit_json(tmp_path / "out" / "config.json", lambda table: table["quantization_config"]["modules"].popitem()[1])
    with pytest.raises(RuntimeError):  # a stock shape is refused
        loaded(tmp_path / "out")


# ---- values and keys --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", DECLARED, indirect=True)
def test_narrower_heads_are_put_back_in_their_places(model: Path, text: Path, tmp_path: Path, request: Any) -> None:
    """What is loaded computes what the stock model does with the same weights and zeros between them."""
    turned = request.node.callspec.params["model"] not in NORMALISED
    recipe = Narrow(paper=OWN, values=Principal(), keys=Select(SecondMoment()) if turned else None)
    done = narrow(model, tmp_path / "out", recipe, text, keep=0.9)
    made, stock = loaded(tmp_path / "out"), loaded(model)
    modules = config(tmp_path / "out")["quantization_config"]["modules"]
    changed = 0
    for name in modules:
        dense = made.get_submodule(name).operator.dense()
        old = stock.get_submodule(name)
        old.weight.data.copy_(dense.T if type(old).__name__ == "Conv1D" else dense)
        if old.bias is not None:
            old.bias.data.copy_(made.get_submodule(name).bias)
        changed += 1
    assert changed >= 2 * stock.config.num_hidden_layers
    assert far(logits(made), logits(stock)) < 1e-5
    for record in done.bonds:
        assert record.bound is not None
        if ".values." in record.name:
            assert record.kept is None
            assert record.bound.lower is not None
            assert record.bound.achieved <= 1.001 * record.bound.lower + 1e-4 * record.bound.scale
    assert done.target_bytes[1] <= 0.9 * done.target_bytes[0]
    assert done.losses["narrowed"] == pytest.approx(done.losses["original"], abs=1.0)


@pytest.mark.parametrize("model", ["llama", "gpt2"], indirect=True)
def test_one_width_for_all_blocks_makes_a_stock_checkpoint_again(model: Path, text: Path, tmp_path: Path) -> None:
    recipe = modegpt(allocate=Level())
    narrow(model, tmp_path / "out", recipe, text, keep=0.85)
    assert "eckart densify" in (tmp_path / "out" / "README.md").read_text()
    dense = eckart.densify(tmp_path / "out", tmp_path / "dense")
    assert "quantization_config" not in config(dense)
    assert far(logits(loaded(dense)), logits(loaded(tmp_path / "out"))) < 1e-5
    stored = {
        name: entry["operator"] for name, entry in config(tmp_path / "out")["quantization_config"]["modules"].items()
    }
    rows = {row.name: row for row in eckart.inspect(tmp_path / "out").rows}
    assert {rows[name].operator for name in stored} == {"row_sparse", "transposed"}
    assert "row sparse" in cli("inspect", tmp_path / "out").out


@pytest.mark.parametrize("model", ["llama", "gpt_neox"], indirect=True)
def test_keys_keep_whole_rotary_pairs(model: Path, text: Path, tmp_path: Path) -> None:
    done = narrow(model, tmp_path / "out", Narrow(paper=OWN, keys=Select(SecondMoment())), text, keep=0.9)
    for record in done.bonds:
        symmetry = eckart.bond_graph(model).bond(record.name).symmetry
        half = symmetry.rotary // 2  # type: ignore[attr-defined]
        kept = set(record.kept or ())
        assert {i + half for i in kept if i < half} == {i for i in kept if half <= i < 2 * half}
        assert len(kept) == record.rank < record.size


@pytest.mark.parametrize("model", ["gpt2", "gpt_neox", "phi", "llama"], indirect=True)
@pytest.mark.parametrize("kind", ["values", "keys"])
def test_places_beside_what_is_narrowed_are_paid_for(model: Path, kind: str, text: Path, tmp_path: Path) -> None:
    """Where queries, keys and values are one tensor, whoever is narrowed has the others' places stored as well."""
    recipe = Narrow(paper=OWN, **{kind: Select(SecondMoment())}, allocate=Level())
    sites = find_sites(Checkpoint(model), eckart.bond_graph(model), recipe, frozenset())
    whole = narrow(model, tmp_path / "whole", recipe, text, keep=1.0).target_bytes[0]
    # A budget that the narrower bonds fill to the last byte, were it not for the places of the others.
    cost = sum((site.units - 2) * site.unit_bytes - site.dense_bytes for site in sites)
    keep = (whole + cost) / whole + 1e-12
    done = narrow(model, tmp_path / "out", recipe, text, keep=keep)
    assert done.bonds
    assert done.target_bytes[1] <= keep * done.target_bytes[0]


# ---- the stream -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", TURNED, indirect=True)
def test_a_sliced_stream_is_the_original_with_projected_writers(model: Path, text: Path, tmp_path: Path) -> None:
    done = narrow(model, tmp_path / "out", "slicegpt", text, keep=0.7)
    assert "quantization_config" not in config(tmp_path / "out")
    width = config(tmp_path / "out")["hidden_size"]
    assert [record.rank for record in done.bonds] == [width]
    assert width % 8 == 0
    stock = loaded(model)
    embedding = stock.get_input_embeddings().weight.data.double()
    small = load_file(tmp_path / "out" / "model.safetensors")["model.embed_tokens.weight"].double()
    basis = torch.linalg.lstsq(embedding, small).solution  # E Q = E'
    assert far(basis.T @ basis, torch.eye(width, dtype=torch.float64)) < 1e-4
    through = (basis @ basis.T).float()
    tied = stock.get_output_embeddings().weight.data_ptr() == stock.get_input_embeddings().weight.data_ptr()
    if tied:
        stock.get_output_embeddings().weight = torch.nn.Parameter(stock.get_output_embeddings().weight.detach().clone())
    stock.get_input_embeddings().weight = torch.nn.Parameter(stock.get_input_embeddings().weight.detach() @ through)
    for block in stock.model.layers:
        for writer in (block.self_attn.o_proj, block.mlp.down_proj):
            writer.weight.data.copy_(through @ writer.weight.data)
    assert far(logits(loaded(tmp_path / "out")), logits(stock)) < 2e-4
    bound = done.bonds[0].bound
    assert bound is not None
    assert "model.embed_tokens" not in [entry.name for entry in done.untouched]
    assert bound.lower == pytest.approx(bound.achieved, rel=1e-6)
    told = refused("densify", tmp_path / "out", "-o", tmp_path / "dense", out=tmp_path / "dense")
    assert "is a stock checkpoint already" in told
    assert len(eckart.inspect(tmp_path / "out").rows) > 4
    assert 0 < bound.relative < 1


@pytest.mark.parametrize("model", ["llama"], indirect=True)
def test_slicing_without_rotation_keeps_channels_and_loses_more(model: Path, text: Path, tmp_path: Path) -> None:
    plain = Narrow(paper=OWN, stream=Select(SecondMoment()), allocate=Level(8))
    done = narrow(model, tmp_path / "plain", plain, text, keep=0.7)
    turned = narrow(model, tmp_path / "turned", "slicegpt", text, keep=0.7)
    (before, after) = (found.bonds[0].bound for found in (done, turned))
    assert before is not None
    assert after is not None
    assert before.lower == pytest.approx(after.lower, rel=1e-9)
    assert before.achieved > 1.01 * after.achieved
    kept = torch.tensor(done.bonds[0].kept)
    small = load_file(tmp_path / "plain" / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(small, load_file(model / "model.safetensors")["model.embed_tokens.weight"][:, kept])


# ---- blocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", DECLARED, indirect=True)
def test_blocks_that_go_are_gone(model: Path, text: Path, tmp_path: Path) -> None:
    count = len(eckart.bond_graph(model).blocks)
    done = narrow(model, tmp_path / "out", "layer-drop", text, keep=(count - 1) / count)
    stock, made = loaded(model), loaded(tmp_path / "out")
    name, _, last = done.dropped[0].rpartition(".")
    assert (len(done.dropped), int(last)) == (1, count - 1)
    blocks = stock.get_submodule(name)
    del blocks[count - 1]
    assert far(logits(made), logits(stock)) < 1e-6
    kinds = config(model).get("layer_types")
    assert config(tmp_path / "out").get("layer_types") == (kinds[:-1] if kinds else None)
    assert done.losses == {}


@pytest.mark.parametrize("model", ["llama", "gemma3"], indirect=True)
def test_blocks_of_least_influence_go_and_the_others_close_up(model: Path, text: Path, tmp_path: Path) -> None:
    done = narrow(model, tmp_path / "out", "shortgpt", text, keep=0.67)
    stock = loaded(model)
    blocks = stock.model.layers
    states: list[Tensor] = []
    handles = [blocks[0].register_forward_pre_hook(lambda _, args: states.append(args[0]))]
    handles += [block.register_forward_hook(lambda _, args, out: states.append(out)) for block in blocks]
    turned = torch.zeros(len(blocks), dtype=torch.float64)
    with torch.no_grad():
        for window in windows(model, text):
            states.clear()
            stock(input_ids=window[None], use_cache=False)
            for i in range(len(blocks)):
                x, y = states[i].double(), states[i + 1].double()
                turned[i] += (1 - torch.nn.functional.cosine_similarity(x, y, dim=-1)).sum()
    for handle in handles:
        handle.remove()
    least = int(turned.argmin())
    assert done.dropped == (f"model.layers.{least}",)
    kinds = config(model).get("layer_types")
    if kinds:
        del kinds[least]
        assert config(tmp_path / "out")["layer_types"] == kinds
    del blocks[least]
    for block, kind in zip(blocks, kinds or (), strict=False):
        assert block.attention_type == kind if hasattr(block, "attention_type") else True
    assert far(logits(loaded(tmp_path / "out")), logits(stock)) < 1e-6
    assert set(done.losses) == {"original", "narrowed"}


@pytest.mark.parametrize("model", ["llama"], indirect=True)
def test_blocks_and_units_go_together(model: Path, text: Path, tmp_path: Path) -> None:
    recipe = Narrow(paper=OWN, depth=LastBlocks(), hidden=Select(Magnitude()), share=0.9)
    done = narrow(model, tmp_path / "out", recipe, text, keep=0.5)
    assert len(done.dropped) == 1
    assert len(done.bonds) == 2
    assert 0.4 < done.target_bytes[1] / done.target_bytes[0] <= 0.5
    assert loaded(tmp_path / "out").config.num_hidden_layers == 2


HIDDEN = ("*.mlp.*",)


def keep_of_units(model: Path, keep: float) -> float:
    """The share with which hidden units alone come to the widths that they have where other maps pay their own."""
    sizes = {name: tensor.nbytes for name, tensor in load_file(model / "model.safetensors").items() if tensor.ndim == 2}
    inside = {name: size for name, size in sizes.items() if ".layers." in name or ".h." in name}
    other = sum(size for name, size in inside.items() if ".mlp." not in name)
    total = sum(inside.values())
    return (math.floor(keep * total) - math.ceil(keep * other) + other) / total + 1e-9


@pytest.mark.parametrize("model", ["llama", "gpt2", "qwen2"], indirect=True)
@pytest.mark.parametrize("statistics", list(Statistics))
def test_maps_beside_bonds_are_those_of_a_recipe_of_matrices(
    model: Path, statistics: Statistics, text: Path, tmp_path: Path
) -> None:
    """Attention as a recipe of matrices leaves it, hidden units as a recipe of bonds does, in one checkpoint."""
    maps = Compress(paper=OWN, metric=RootMeanSquare(), approx=LowRank(), statistics=Statistics.ORIGINAL)
    units = Select(SecondMoment(), Refit())
    both = Narrow(paper=OWN, hidden=units, maps=maps, statistics=statistics)
    done = narrow(model, tmp_path / "both", both, text, keep=0.6)
    only = narrow(model, tmp_path / "units", replace(both, maps=None), text, keep=keep_of_units(model, 0.6))
    beside = eckart.compress(
        model, tmp_path / "maps", recipe=maps, keep=0.6, calibration=text, exclude=HIDDEN, **OPTIONS
    )
    assert done.bonds == only.bonds
    assert done.matrices == beside.matrices
    assert done.target_bytes[1] == only.target_bytes[1] - beside.target_bytes[0] + beside.target_bytes[1]
    made, units_made, maps_made = (load_file(tmp_path / f / "model.safetensors") for f in ("both", "units", "maps"))
    touched = {
        name
        for name in maps_made
        if name.rpartition(".")[0] in config(tmp_path / "maps")["quantization_config"]["modules"]
    }
    assert touched
    assert made.keys() == (units_made.keys() - touched) | maps_made.keys()
    assert all(torch.equal(made[name], (maps_made if name in touched else units_made)[name]) for name in made)
    whole = loaded(tmp_path / "both")
    assert far(logits(whole), logits(loaded(tmp_path / "units"))) > 1e-3
    assert eckart.verify(tmp_path / "both", model, calibration=text).failures == ()


def test_maps_of_blocks_that_are_left_out_are_not_approximated(ground: Path, text: Path, tmp_path: Path) -> None:
    maps = Compress(paper=OWN, metric=Plain(), approx=LowRank())
    recipe = Narrow(paper=OWN, depth=LastBlocks(), hidden=Select(Magnitude()), share=0.9, maps=maps)
    done = narrow(ground, tmp_path / "out", recipe, text, keep=0.5)
    assert len(done.dropped) == 1
    assert done.matrices
    assert not any(matrix.name.startswith(done.dropped[0]) for matrix in done.matrices)
    assert done.target_bytes[1] <= 0.5 * done.target_bytes[0]
    assert loaded(tmp_path / "out").config.num_hidden_layers == 2


# ---- by measured loss -------------------------------------------------------------------------------------------------


@torch.no_grad()
def measured(model: Any, folder: Path, text: Path) -> float:
    """Nats per token over the windows of a run."""
    ids = windows(folder, text)
    found = model(input_ids=ids, use_cache=False).logits[:, :-1].double().log_softmax(-1)
    return float(-found.gather(-1, ids[:, 1:, None]).mean())


@pytest.mark.parametrize("model", ["llama", "gemma3"], indirect=True)
def test_blocks_of_least_loss_go_one_by_one(model: Path, text: Path, tmp_path: Path) -> None:
    recipe = Narrow(paper=OWN, depth=LeastLoss(tolerance=9.0))
    done = narrow(model, tmp_path / "out", recipe, text, keep=0.34)
    stock = loaded(model)
    name, _, _ = done.dropped[0].rpartition(".")
    blocks = stock.get_submodule(name)
    whole, gone = list(blocks), list[int]()
    assert len(done.removals) == len(done.dropped) == 2
    for removal in done.removals:
        losses = {}
        for block in sorted(set(range(len(whole))) - set(gone)):
            left = [other for other in range(len(whole)) if other not in (*gone, block)]
            blocks._modules = {str(place): whole[other] for place, other in enumerate(left)}
            if "layer_types" in config(model):
                stock.config.layer_types = [config(model)["layer_types"][other] for other in left]
            losses[block] = measured(stock, model, text)
        gone.append(min(losses, key=losses.__getitem__))
        assert (removal.name, removal.left) == (f"{name}.{gone[-1]}", 0)
        assert removal.loss == pytest.approx(losses[gone[-1]], rel=1e-5)
    assert set(done.dropped) == {f"{name}.{block}" for block in gone}
    assert done.losses["narrowed"] == pytest.approx(done.removals[-1].loss, rel=1e-6)
    with pytest.raises(EckartError, match="may go by this recipe"):
        narrow(model, tmp_path / "other", Narrow(paper=OWN, depth=LeastLoss()), text, keep=0.34)


@pytest.mark.parametrize("model", DECLARED, indirect=True)
def test_steps_lead_to_the_loss_that_was_measured(model: Path, text: Path, tmp_path: Path) -> None:
    """The last accepted loss, of weights among zeros, is that of the model that is written; what was taken is what is left."""
    hidden, values = Select(SecondMoment(), Refit()), Principal()
    recipe = Narrow(paper=OWN, hidden=hidden, values=values, allocate=GreedyByLoss(steps=3))
    done = narrow(model, tmp_path / "out", recipe, text, keep=0.8)
    assert done.target_bytes[1] <= 0.8 * done.target_bytes[0]
    assert done.removals[-1].loss == pytest.approx(done.losses["narrowed"], rel=1e-6)
    assert measured(loaded(tmp_path / "out"), model, text) == pytest.approx(done.losses["narrowed"], rel=1e-5)
    left = {removal.name: removal.left for removal in done.removals}
    for record in done.bonds:
        assert left[record.name.rstrip("0123456789").rstrip(".")] == record.rank
    steps: dict[str, int] = {}
    for removal in done.removals:
        assert removal.left < steps.get(removal.name, removal.left + 1)
        steps[removal.name] = removal.left
    assert done.kept == "greedybyloss"


@pytest.mark.parametrize("model", ["llama"], indirect=True)
def test_the_first_step_is_the_best_of_all(model: Path, text: Path, tmp_path: Path) -> None:
    recipe = Narrow(paper=OWN, hidden=Select(Magnitude()), allocate=GreedyByLoss(steps=4))
    done = narrow(model, tmp_path / "out", recipe, text, keep=0.96)
    first = done.removals[0]
    losses: dict[str, float] = {}
    for block in range(3):
        bond = eckart.bond_graph(model).bond(f"model.layers.{block}.hidden")
        stock = loaded(model)
        end = bond.readers[0]
        weight = stock.get_parameter(end.tensor)
        score = sum(
            stock.get_parameter(e.tensor).detach().double().movedim(e.axis, 0).flatten(1).norm(dim=1) for e in bond.ends
        )
        assert isinstance(score, Tensor)
        gone = score.argsort()[: bond.size - first.left]
        weight.data.index_fill_(end.axis, gone, 0.0)
        losses[bond.name] = measured(stock, model, text)
    assert first.name == min(losses, key=losses.__getitem__)
    assert first.loss == pytest.approx(losses[first.name], rel=1e-5)


@pytest.mark.parametrize(
    ("model", "tolerance", "count"), [("llama", 0.0, 1), ("gemma3", 0.0, 0), ("gemma3", 0.5, 1)], indirect=["model"]
)
def test_blocks_that_may_go_go_before_units(
    model: Path, tolerance: float, count: int, text: Path, tmp_path: Path
) -> None:
    """Those of least loss, while it is at most the tolerance above the best so far; units take what is left to go."""
    recipe = Narrow(
        paper=OWN,
        depth=LeastLoss(tolerance),
        hidden=Select(SecondMoment()),
        values=Select(SecondMoment()),
        allocate=GreedyByLoss(4),
    )
    done = narrow(model, tmp_path / "out", recipe, text, keep=0.6)
    assert done.target_bytes[1] <= 0.6 * done.target_bytes[0]
    blocks = [removal for removal in done.removals if not removal.left]
    assert tuple(done.removals[: len(blocks)]) == tuple(blocks)
    assert sorted(removal.name for removal in blocks) == sorted(done.dropped)
    assert len(blocks) == count
    best = done.losses["original"]
    for removal in blocks:
        assert removal.loss <= best * (1 + tolerance)
        best = min(best, removal.loss)
    assert done.removals[-1].loss == pytest.approx(done.losses["narrowed"], rel=1e-6)


def test_losses_decide_for_statistics_of_the_compressed_model_as_well(ground: Path, text: Path, tmp_path: Path) -> None:
    recipe = Narrow(
        paper=OWN, hidden=Select(SecondMoment()), allocate=GreedyByLoss(4), statistics=Statistics.COMPRESSED
    )
    done = narrow(ground, tmp_path / "out", recipe, text, keep=0.8)
    left = {removal.name: removal.left for removal in done.removals}
    assert left == {record.name: record.rank for record in done.bonds}


def test_removals_that_were_changed_are_found(ground: Path, text: Path, tmp_path: Path) -> None:
    narrow(ground, tmp_path / "out", "axformer", text)
    kept = (tmp_path / "out" / "eckart.json").read_text()
    harms: Mapping[str, Callable[[Any], object]] = {
        "or the order in which it went, is not as recorded": lambda t: t["removals"].reverse(),
        "is recorded as 1.5, but it is": lambda t: t["removals"][0].update(loss=1.5),
        "damaged or was edited": lambda t: t["removals"][0].update(left=-1),
    }
    for sentence, harm in harms.items():
        (tmp_path / "out" / "eckart.json").write_text(kept)
        edit_json(tmp_path / "out" / "eckart.json", harm)
        try:
            found = eckart.verify(tmp_path / "out", ground, calibration=text)
        except EckartError as error:
            assert sentence in str(error)  # noqa: PT017
        else:
            assert any(sentence in failure for failure in found.failures), found.failures


# ---- checked again, and refused ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ARCHITECTURES["llama"](tmp_path_factory.mktemp("ground") / "model")


RECIPES = (
    "modegpt",
    "slicegpt",
    "slicegpt-per-norm",
    "greedy-output",
    "comp",
    "axformer",
    "lorap",
    "shortgpt",
    "layer-drop",
    "shrink-width",
)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_result_is_verified(recipe: str, ground: Path, text: Path, tmp_path: Path) -> None:
    done = narrow(ground, tmp_path / "out", recipe, text, keep=0.75)
    assert done.target_bytes[1] <= 0.75 * done.target_bytes[0]
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert done.file_bytes[1] == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert sum(t.nbytes for t in stored.values()) < done.file_bytes[1]
    told = eckart.verify(tmp_path / "out", ground, calibration=text if done.losses else None)
    assert told.failures == ()
    assert told.checked["tensors made again"] == len(stored)
    assert cli("verify", tmp_path / "out").code == 0
    by_itself = eckart.verify(tmp_path / "out", ground)
    assert by_itself.holds
    assert bool(by_itself.not_rechecked) == bool(done.losses)


@pytest.mark.parametrize("recipe", RECIPES)
def test_where_everything_may_stay_nothing_changes(recipe: str, ground: Path, text: Path, tmp_path: Path) -> None:
    done = narrow(ground, tmp_path / "out", recipe, text, keep=1.0)
    assert (done.bonds, done.dropped) == ((), ())
    assert done.target_bytes[0] == done.target_bytes[1]
    stored, old = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", ground))
    assert stored.keys() == old.keys()
    assert all(torch.equal(stored[name], old[name]) for name in old)
    assert config(tmp_path / "out") == config(ground)
    needs_text = eckart.recipe(recipe).make().reads_text
    told = eckart.verify(tmp_path / "out", ground, calibration=text if needs_text else None)
    assert told.failures == ()
    assert told.checked["tensors made again"] == len(stored)


Damage = Callable[[Path], object]
DAMAGES: Mapping[str, tuple[Damage, str]] = {
    "a tensor": (
        lambda f: edit_tensor(f, "model.norm.weight", lambda t: t + 1),
        "tensor model.norm.weight was changed",
    ),
    "what is left": (
        lambda f: edit_json(f / "eckart.json", lambda t: t["bonds"][0]["kept"].reverse()),
        "model.layers.0.hidden: what is left of the bond is not as recorded",
    ),
    "a figure": (
        lambda f: edit_json(
            f / "eckart.json",
            lambda t: t["bonds"][1]["bound"].update(achieved=t["bonds"][1]["bound"]["upper"], upper=9e9),
        ),
        "upper is recorded as",
    ),
    "a loss": (
        lambda f: edit_json(f / "eckart.json", lambda t: t["ranks"]["losses"].update(narrowed=1.0)),
        "the loss narrowed is recorded as 1.0",
    ),
    "the config": (
        lambda f: edit_json(f / "config.json", lambda t: t.update(rms_norm_eps=0.5)),
        "rms_norm_eps is not what the recipe gives",
    ),
    "a bond less": (
        lambda f: edit_json(f / "eckart.json", lambda t: t["bonds"].pop()),
        "is recorded or narrowed, and not both",
    ),
    "the size": (
        lambda f: edit_json(f / "eckart.json", lambda t: t["sizes"]["files"].update(after=1)),
        "the files take",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_was_changed_is_found(damage: str, ground: Path, text: Path, tmp_path: Path) -> None:
    recipe = Narrow(paper=OWN, hidden=Select(SecondMoment(), Refit()))
    narrow(ground, tmp_path / "out", recipe, text)
    harm, sentence = DAMAGES[damage]
    harm(tmp_path / "out")
    found = eckart.verify(tmp_path / "out", ground, calibration=text)
    assert any(sentence in failure for failure in found.failures), found.failures


def test_another_text_is_refused(ground: Path, text: Path, tmp_path: Path) -> None:
    narrow(ground, tmp_path / "out", "shortgpt", text, keep=0.7)
    other = calibration_text(tmp_path / "other.txt", repeat=5)
    with pytest.raises(EckartError, match="is not the calibration text that was recorded"):
        eckart.verify(tmp_path / "out", ground, calibration=other)
    with pytest.raises(EckartError, match=r"absent\.txt cannot be read"):
        eckart.verify(tmp_path / "out", ground, calibration=tmp_path / "absent.txt")
    with pytest.raises(EckartError, match="needs the original as well: name it with --against"):
        eckart.verify(tmp_path / "out", calibration=text)
    assert "name it with --calibration" in eckart.verify(tmp_path / "out", ground).not_rechecked[0]
    narrow(ground, tmp_path / "plain", "layer-drop", text, keep=0.7)
    with pytest.raises(EckartError, match=r"no calibration text was used for .*: leave --calibration out"):
        eckart.verify(tmp_path / "plain", ground, calibration=text)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--bytes", "1MB"), "takes a share: give --keep"),
        (("--keep", "0.8", "--only", "q_proj"), "--only and --exclude name matrices"),
        (("--keep", "0.3"), "on its bonds 0.3889 of the bytes remain"),
        (("--keep", "0.8", "--dry-run"), "leave --dry-run out"),
    ],
)
def test_what_a_recipe_of_bonds_cannot_do(
    ground: Path, tmp_path: Path, options: tuple[str, ...], sentence: str
) -> None:
    told = refused("compress", ground, "-o", tmp_path / "out", "--recipe", "shrink-width", *options, *CALIBRATED)
    assert sentence in told


@pytest.mark.parametrize(
    ("model", "recipe", "sentence"),
    [
        ("mixtral", "shrink-width", "the architecture mixtral is not declared"),
        ("gpt2", "slicegpt", "no stock config of gpt2 tells of a narrower stream"),
        ("gemma2", "slicegpt", "writes it channel by channel"),
        (
            "qwen3",
            "keys.toml",
            "model.layers.0.keys.0 (fixed: model.layers.0.self_attn.k_norm normalises it) cannot be narrowed",
        ),
    ],
    indirect=["model"],
)
def test_bonds_that_cannot_be_narrowed_are_refused(
    model: Path, recipe: str, sentence: str, text: Path, tmp_path: Path
) -> None:
    (tmp_path / "keys.toml").write_text(
        '[keys]\npart = "Select"\n[keys.score]\npart = "SecondMoment"\n[allocate]\npart = "Level"\n'
    )
    with pytest.raises(EckartError) as error:
        narrow(model, tmp_path / "out", str(tmp_path / recipe) if recipe.endswith("toml") else recipe, text)
    assert sentence in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_score_that_takes_no_pairs_is_refused_with_the_way_out(ground: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "keys.toml").write_text(
        '[keys]\npart = "Select"\n[keys.score]\npart = "Gain"\n[allocate]\npart = "Level"\n'
    )
    told = refused(
        *("compress", ground, "-o", tmp_path / "out", "--keep", "0.9", "--recipe", tmp_path / "keys.toml"),
        *("--calibration", text, *CALIBRATED),
    )
    assert "the bond model.layers.0.keys.0 cannot be narrowed so" in told
    assert "another rule, such as SecondMoment" in told


@pytest.mark.parametrize(
    ("recipe", "bond"), [("modegpt", "hidden"), ("greedy-output", "hidden"), ("slicegpt", "residual")]
)
@pytest.mark.parametrize("window", [2, 4])
def test_more_than_the_tokens_can_fit_is_refused_with_the_number_that_will_do(
    recipe: str, bond: str, window: int, ground: Path, text: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"recipe": recipe, "keep": 0.9, "calibration": text, "window": window, "restart": True}
    with pytest.raises(
        EckartError, match=f"what is left of .*{bond} is fitted .* its {window} tokens are too few"
    ) as error:
        eckart.compress(ground, tmp_path / "out", tokens=2, **options)
    least = int(str(error.value).split("at least ")[1].split()[0])
    with pytest.raises(EckartError, match=f"its {least - window} tokens are too few .* at least {least}"):
        eckart.compress(ground, tmp_path / "out", tokens=least - 1, **options)
    done = eckart.compress(ground, tmp_path / "out", tokens=least, **options)
    norms = 7 if recipe == "slicegpt" else 1
    assert (least - window) * norms < max(record.rank for record in done.bonds) <= least * norms


def test_where_nothing_is_fitted_any_tokens_will_do(ground: Path, text: Path, tmp_path: Path) -> None:
    recipe = Narrow(paper=OWN, hidden=Select(SecondMoment()))
    done = eckart.compress(ground, tmp_path / "out", recipe=recipe, keep=0.9, calibration=text, tokens=2, window=2)
    assert max(record.rank for record in done.bonds) > 2


@pytest.mark.parametrize("model", NORMALISED, indirect=True)
def test_bonds_without_a_symmetry_are_left_as_they_are(model: Path, text: Path, tmp_path: Path) -> None:
    done = narrow(model, tmp_path / "out", "modegpt", text)
    assert not any(".keys." in record.name for record in done.bonds)
    assert any(".values." in record.name for record in done.bonds)
    left = {entry.name: entry.reason for entry in done.untouched}
    assert "normalises it" in left["model.layers.0.keys"]
    assert eckart.verify(tmp_path / "out", model, calibration=text).failures == ()


def test_the_last_block_stays(ground: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(EckartError, match="not even one of 3 blocks would be left"):
        narrow(ground, tmp_path / "out", "layer-drop", text, keep=0.3)


def test_recipes_of_bonds_are_put_together_sensibly() -> None:
    with pytest.raises(ValueError, match="chooses what crosses at least one"):
        Narrow(paper=OWN)
    with pytest.raises(ValueError, match="narrow it by itself"):
        Narrow(paper=OWN, stream=Principal(), hidden=Select(Magnitude()))
    for share in (0.0, 1.1):
        with pytest.raises(ValueError, match="share"):
            Narrow(paper=OWN, depth=LastBlocks(), share=share)
    with pytest.raises(ValueError, match="select its channels without a refit"):
        Narrow(paper=OWN, stream=Select(SecondMoment(), Refit()))
    with pytest.raises(ValueError, match="Threshold goes by singular values"):
        Narrow(paper=OWN, hidden=Select(Magnitude()), allocate=Threshold())
    with pytest.raises(ValueError, match="Entropic goes by the influence of blocks, and a stream lies in none"):
        Narrow(paper=OWN, stream=Principal(), allocate=Entropic())


def test_a_stream_that_is_not_projected_orthogonally_is_refused(ground: Path, text: Path, tmp_path: Path) -> None:
    """A choice of one's own may refit as well: what reads the stream is not silently left as it was."""

    @dataclass(frozen=True)
    class Refitted:
        needs: ClassVar[frozenset[Need]] = frozenset({Need.GRAM})
        fitted: ClassVar[bool] = True

        def prepare(self, crossing: Crossing) -> Chosen:
            return Select(SecondMoment(), Refit()).prepare(crossing)

    with pytest.raises(EckartError, match="project it orthogonally"):
        narrow(ground, tmp_path / "out", Narrow(paper=OWN, stream=Refitted(), allocate=Level(8)), text, keep=0.7)


def test_the_record_tells_of_bonds_and_blocks(ground: Path, text: Path, tmp_path: Path) -> None:
    recipe = Narrow(paper=OWN, depth=LastBlocks(), hidden=Select(Magnitude()), share=0.9)
    done = narrow(ground, tmp_path / "out", recipe, text, keep=0.5)
    found = Certificate.read(tmp_path / "out")
    assert found.bonds == done.bonds
    assert found.dropped == done.dropped
    shown = cli("compress", ground, "-o", tmp_path / "again", "--keep", "0.8", "--recipe", "shrink-width")
    assert "model.layers.0.hidden" in shown.out
    assert json.loads(
        cli("compress", ground, "-o", tmp_path / "more", "--keep", "0.8", "--recipe", "shrink-width", "--json").out
    )["bonds"]
