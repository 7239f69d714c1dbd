"""Heads that are left out whole: against the original with zeros in their place, and what the others make up for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import ARCHITECTURES
from outputs import far, loaded, logits
from runs import calibration_text, refused
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import eckart
from eckart.allocate import GreedyByLoss, Level, Uniform
from eckart.bonds import BondGraph, End, Map, Projection
from eckart.bonds.choosing import Select
from eckart.bonds.correction import Refit
from eckart.bonds.groups import crossing_of_groups, without_groups
from eckart.bonds.heads import Head, heads_of
from eckart.bonds.scores import Activation, Magnitude, SecondMoment
from eckart.errors import EckartError
from eckart.model.compression import Narrow, Paper, Statistics

OWN = Paper("own", "")
OPTIONS: dict[str, Any] = {"tokens": 512, "window": 32}
SIZED = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3")  # a head's size is in the config
FEWER = Narrow(paper=OWN, groups=Select(SecondMoment()), allocate=Level())
REFITTED = replace(FEWER, groups=Select(SecondMoment(), Refit()))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibration_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return ARCHITECTURES[request.param](tmp_path / "model")


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with four groups of two queries each, drawn at random."""
    from transformers import AutoConfig, AutoTokenizer

    source = ARCHITECTURES["llama"](tmp_path_factory.mktemp("source") / "model")
    config = AutoConfig.from_pretrained(source)
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 8, 4, 6
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("many") / "model"
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def narrow(model: Path, out: Path, recipe: Narrow, text: Path, keep: float) -> eckart.Compressed:
    return eckart.compress(model, out, recipe=recipe, keep=keep, calibration=text, **OPTIONS)


def config(folder: Path) -> dict[str, Any]:
    table: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return table


def without(model: Path, done: eckart.Compressed) -> Any:
    """The original with zeros where the map behind attention reads what is gone."""
    stock = loaded(model)
    for record in done.bonds:
        gone = [i for i in range(record.size) if i not in set(record.kept or ())]
        stock.get_submodule(record.name.replace(".groups", ".self_attn.o_proj")).weight.data[:, gone] = 0
    return stock


# ---- what it computes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", SIZED, indirect=True)
def test_heads_that_go_are_as_if_nothing_read_them(model: Path, text: Path, tmp_path: Path) -> None:
    before = config(model)
    done = narrow(model, tmp_path / "out", FEWER, text, keep=0.9)
    after = config(tmp_path / "out")
    assert "quantization_config" not in after
    groups = before["num_key_value_heads"]
    assert after["num_key_value_heads"] < groups
    assert after["num_attention_heads"] * groups == before["num_attention_heads"] * after["num_key_value_heads"]
    assert far(logits(loaded(tmp_path / "out")), logits(without(model, done))) < 1e-4
    assert done.target_bytes[1] <= 0.9 * done.target_bytes[0]
    stored = load_file(tmp_path / "out" / "model.safetensors")
    maps = [t for name, t in stored.items() if ".layers." in name and name.endswith("proj.weight")]
    assert done.target_bytes[1] == sum(t.nbytes for t in maps)
    assert eckart.verify(tmp_path / "out", model, calibration=text).failures == ()


@pytest.mark.parametrize("score", [SecondMoment(), Activation(), Magnitude()])
def test_the_heads_that_count_least_go(score: Any, many: Path, text: Path, tmp_path: Path) -> None:
    done = narrow(many, tmp_path / "out", replace(FEWER, groups=Select(score)), text, keep=0.9)
    assert len(done.bonds) == 3
    stock = loaded(many)
    for index, record in enumerate(done.bonds):
        weight = stock.model.layers[index].self_attn.o_proj.weight.data.double()
        parts = weight.reshape(len(weight), 4, 12)
        kept = sorted({i // 12 for i in record.kept or ()})
        assert len(record.kept or ()) == 12 * len(kept) == record.rank
        if isinstance(score, Magnitude):
            lengths = parts.norm(dim=0).sum(1)
            assert kept == sorted(lengths.argsort(descending=True)[: len(kept)].tolist())
            assert record.bound is None
        else:
            assert record.bound is not None
            assert record.bound.lower <= record.bound.achieved


def test_what_others_make_up_for_is_least_squares(many: Path, text: Path, tmp_path: Path) -> None:
    done = eckart.compress(
        many, tmp_path / "out", recipe=REFITTED, keep=0.9, calibration=text, tokens=1 << 20, window=32
    )
    stock = loaded(many)
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(many)(text.read_text(), return_tensors="pt").input_ids[0]
    ids = ids[: len(ids) // 32 * 32].reshape(-1, 32)
    seen: dict[int, Tensor] = {}
    for index, block in enumerate(stock.model.layers):
        block.self_attn.o_proj.register_forward_pre_hook(lambda _, args, at=index: seen.update({at: args[0]}))
    with torch.no_grad():
        stock(input_ids=ids)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    for index, record in enumerate(done.bonds):
        kept = torch.tensor(record.kept)
        x = seen[index].reshape(-1, record.size).double()
        wanted = x @ stock.model.layers[index].self_attn.o_proj.weight.data.double().T
        solved = torch.linalg.lstsq(x[:, kept], wanted).solution
        found = stored[f"model.layers.{index}.self_attn.o_proj.weight"].double()
        assert far(x[:, kept] @ found.T, x[:, kept] @ solved) < 1e-4
        error = float((wanted - x[:, kept] @ found.T).square().sum(1).mean().sqrt())
        assert record.bound is not None
        assert record.bound.achieved == pytest.approx(error, rel=1e-3)


def test_blocks_may_keep_different_numbers_of_heads(many: Path, text: Path, tmp_path: Path) -> None:
    done = narrow(many, tmp_path / "out", replace(FEWER, allocate=Uniform()), text, keep=0.95)
    assert len({record.rank for record in done.bonds}) > 1 or len(done.bonds) < 3
    assert any("resized" in entry for entry in config(tmp_path / "out")["quantization_config"]["modules"].values())
    assert far(logits(loaded(tmp_path / "out")), logits(without(many, done))) < 1e-4
    model = loaded(tmp_path / "out")
    ids = torch.arange(3, 13)[None]
    cached = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert torch.equal(cached, model.generate(ids, max_new_tokens=4, do_sample=False, use_cache=False, pad_token_id=0))


def test_hidden_units_may_go_beside_them(many: Path, text: Path, tmp_path: Path) -> None:
    both = replace(REFITTED, hidden=Select(SecondMoment(), Refit()), statistics=Statistics.COMPRESSED)
    done = narrow(many, tmp_path / "out", both, text, keep=0.7)
    kinds = {record.name.rpartition(".")[2] for record in done.bonds}
    assert kinds == {"groups", "hidden"}
    assert done.target_bytes[1] <= 0.7 * done.target_bytes[0]
    assert eckart.verify(tmp_path / "out", many, calibration=text).failures == ()


def test_the_recorded_loss_is_that_of_the_result(many: Path, text: Path, tmp_path: Path) -> None:
    """Blocks behind see what the heads that are left give, in stock shapes."""
    recipe = replace(REFITTED, statistics=Statistics.COMPRESSED)
    done = eckart.compress(many, tmp_path / "out", recipe=recipe, keep=0.9, calibration=text, tokens=1 << 20, window=32)
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(many)(text.read_text(), return_tensors="pt").input_ids[0]
    ids = ids[: len(ids) // 32 * 32].reshape(-1, 32)
    with torch.no_grad():
        scores = loaded(tmp_path / "out")(input_ids=ids).logits[:, :-1].double().log_softmax(-1)
    assert done.losses["narrowed"] == pytest.approx(-float(scores.gather(-1, ids[:, 1:, None]).mean()), rel=1e-5)


# ---- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["gpt2", "opt"], indirect=True)
def test_where_a_head_has_no_size_of_its_own_none_goes(model: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(EckartError, match=r"no stock config of .* tells of fewer heads"):
        narrow(model, tmp_path / "out", FEWER, text, keep=0.9)
    assert not (tmp_path / "out").exists()


def test_one_group_stays(many: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(EckartError, match="give at least that, or take a recipe that narrows more"):
        narrow(many, tmp_path / "out", FEWER, text, keep=0.5)


def test_groups_stand_for_what_is_in_them(tmp_path: Path, many: Path) -> None:
    with pytest.raises(ValueError, match="choose groups, or what is in them"):
        replace(FEWER, values=Select(SecondMoment()))
    with pytest.raises(ValueError, match="without heads is not measured"):
        replace(FEWER, allocate=GreedyByLoss())
    recipe = tmp_path / "own.toml"
    for allocate in ("Level", "EqualMarginalLoss"):
        recipe.write_text(
            f'[groups]\npart = "Select"\n[groups.score]\npart = "Gain"\n[allocate]\npart = "{allocate}"\n'
        )
        told = refused(
            "compress", many, "-o", tmp_path / allocate, "--recipe", recipe, "--keep", "0.9", "--tokens", "512"
        )
        assert "groups cannot be narrowed so: a greedy choice takes single directions" in told


def test_a_reader_that_is_stored_transposed_is_narrowed_along_its_inputs() -> None:
    """No architecture has both, a size of heads in its config and such maps; the graph may."""
    value = [End("v", 1, 2 * g, 2 * g + 2, reads=False) for g in range(3)]
    read = [End("o", 0, 2 * g, 2 * g + 2, reads=True) for g in range(3)]
    heads = [Head(f"h.0.heads.{g}", 0, (), (value[g], read[g]), ()) for g in range(3)]
    maps = {"v": Map("v", "v", None, (6, 4), 1), "o": Map("o", "o", None, (5, 6), 1)}
    rng = torch.Generator().manual_seed(1)
    tensors = {"v": torch.randn(4, 6, generator=rng), "o": torch.randn(6, 5, generator=rng)}
    graph = BondGraph("example", {}, maps, {}, blocks=("h.0",))
    assert torch.equal(crossing_of_groups(graph, heads, tensors, {}).read, tensors["o"].T)
    moment = torch.eye(6, dtype=torch.float64) + torch.ones(6, 6, dtype=torch.float64)
    kept = torch.tensor([0, 1, 4, 5])
    found = without_groups(graph, heads, Projection.refitted(moment, kept), tensors)
    assert torch.equal(found["v"], tensors["v"][:, kept])
    solved = torch.linalg.solve(moment[kept][:, kept], moment[kept] @ tensors["o"].double())
    assert torch.allclose(found["o"].double(), solved, atol=1e-6)


def test_half_a_group_is_no_group(many: Path) -> None:
    graph = eckart.bond_graph(many)
    heads = [head for head in heads_of(graph) if head.block == 0]
    stored = load_file(many / "model.safetensors")
    crossing = crossing_of_groups(graph, heads, stored, {})
    assert crossing.units.tolist() == torch.arange(48).reshape(4, 12).tolist()
    with pytest.raises(ValueError, match="stay or go whole"):
        without_groups(graph, heads, Projection.selection(48, torch.arange(10)), stored)
