"""Adapters of narrower models, lifted to the whole one: against rows and columns found by their numbers, and what stock PEFT computes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import combinations
import pytest
import torch
from models import ARCHITECTURES, SENTENCES
from outputs import far, loaded, logits
from peft import LoraConfig, PeftModel, get_peft_model
from runs import Killer, calibration_text, cli, edit_json, refused, tree
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import eckart
from eckart.adapt import Course, tune, wrap
from eckart.adapters.base import LessAll
from eckart.adapters.forms import Directed, Pair
from eckart.adapters.sources import OfWeight
from eckart.adapters.split import Even
from eckart.adapters.start import Start
from eckart.adapters.stored import Rounded
from eckart.allocate import Entropic, Level
from eckart.approx import NormalFloat
from eckart.bonds.choosing import Principal, Select
from eckart.bonds.correction import Refit
from eckart.bonds.depth import LastBlocks
from eckart.bonds.scores import Magnitude, SecondMoment
from eckart.errors import EckartError
from eckart.model.adapting.export import export
from eckart.model.adapting.within import Itself, Smaller
from eckart.model.certificate import Certificate
from eckart.model.compression import Narrow, Paper
from eckart.model.output import work_folder
from eckart.model.surgery import Adapter, Layer, lift, read, write
from eckart.recipes import bonds
from eckart.recipes.adapters import ADAPTERS
from eckart.recipes.adapters.pairs import lora
from eckart.recipes.adapters.smaller import loram
from eckart.recipes.compress import svd

OWN = Paper("own", "")
UNITS = Narrow(paper=OWN, hidden=Select(Magnitude()), groups=Select(Magnitude()), allocate=Level())
WIDTH = replace(UNITS, groups=None)
# The axes on which units lie: outputs of what writes them, inputs of what reads them.
OUTPUTS = ("gate_proj", "up_proj", "q_proj", "k_proj", "v_proj", "c_fc")
INPUTS = ("down_proj", "o_proj", "mlp.c_proj")


def many_heads(folder: Path, kind: str = "llama") -> Path:
    """A model with four groups of two queries each, and biases where its kind has them."""
    source = ARCHITECTURES[kind](folder / "source")
    config = AutoConfig.from_pretrained(source)
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 8, 4, 6
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        parameter.data *= 6 if parameter.ndim == 2 else 1
        parameter.data += 0.3 * torch.randn(parameter.shape) if name.endswith("bias") else 0
    model.save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(source).save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {kind: many_heads(tmp_path_factory.mktemp(kind), kind) for kind in ("llama", "qwen2")}
    return made | {"gpt2": ARCHITECTURES["gpt2"](tmp_path_factory.mktemp("gpt2") / "model")}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibration_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    path.write_text("\n".join(json.dumps({"text": sentence}) for sentence in SENTENCES * 3))
    return path


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    made = Killer()
    yield made
    made.close()


def compress(model: Path, out: Path, recipe: Any = UNITS, keep: float = 0.65, **options: Any) -> Path:
    eckart.compress(model, out, recipe=recipe, keep=keep, **options)
    return out


def trained(folder: Path, out: Path, **options: Any) -> Path:
    """An adapter that PEFT saved, its factors drawn at random as if they had trained."""
    kind = AutoConfig.from_pretrained(folder).model_type
    targets = (
        ["c_attn", "c_proj", "c_fc"]
        if kind == "gpt2"
        else ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    )
    told = {"r": 3, "lora_alpha": 6, "target_modules": targets, "fan_in_fan_out": kind == "gpt2"}
    model = get_peft_model(loaded(folder), LoraConfig(**(told | options)))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if ".lora_" in name and "magnitude" not in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.15
        elif parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(out)
    return out


def served(folder: Path, adapter: Path) -> Any:
    return PeftModel.from_pretrained(loaded(folder), adapter).eval()


def places(small: Tensor, whole: Tensor) -> list[int]:
    """For each row of a matrix the one row of the other that is the same number by number."""
    found = [(whole == row).all(1).nonzero().flatten().tolist() for row in small]
    assert all(len(some) == 1 for some in found)
    return [place for some in found for place in some]


def placed(folder: Path, small: Path, updates: dict[str, Tensor]) -> dict[str, Tensor]:
    """Updates of a small model's maps in the shapes of the whole one, by where the numbers of its weights stand there."""
    big, little = loaded(folder), loaded(small)
    transposed = big.config.model_type == "gpt2"

    def matrix(model: Any, name: str) -> Tensor:
        weight = model.get_submodule(name).weight.data
        return weight.T if transposed else weight

    made = {}
    for name, update in updates.items():
        whole, part = matrix(big, name), matrix(little, name)
        rows, columns = list(range(len(whole))), list(range(whole.shape[1]))
        if name.endswith(OUTPUTS):
            rows = places(part, whole)
        if name.endswith(INPUTS):
            columns = places(part.T, whole.T)
        made[name] = torch.zeros(whole.shape, dtype=update.dtype)
        made[name][torch.tensor(rows)[:, None], torch.tensor(columns)] = update
    return made


# ---- what is lifted ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "recipe"), [("llama", UNITS), ("qwen2", UNITS), ("gpt2", WIDTH)])
def test_the_update_is_that_of_the_small_model_and_zero_elsewhere(
    kind: str, recipe: Narrow, shelf: dict[str, Path], tmp_path: Path
) -> None:
    base, small = shelf[kind], compress(shelf[kind], tmp_path / "small", recipe)
    adapter = trained(small, tmp_path / "adapter")
    out = tmp_path / "lifted"
    assert cli("lora", "lift", adapter, "--from", small, "--to", base, "-o", out).code == 0
    before = {name: layer.update.dense() for name, layer in read(adapter).layers.items()}
    after = {name: layer.update.dense() for name, layer in read(out).layers.items()}
    wanted = placed(base, small, before)
    assert after.keys() == wanted.keys()
    assert all(torch.equal(after[name], wanted[name]) for name in wanted)
    grown = [name for name in wanted if wanted[name].shape != before[name].shape]
    assert len(grown) == (6 if kind != "gpt2" else 2) * len(
        loaded(base).get_submodule("transformer.h" if kind == "gpt2" else "model.layers")
    )
    # Stock PEFT computes on the original what the original with these updates does.
    stock = loaded(base)
    for name, update in wanted.items():
        stock.get_submodule(name).weight.data += (update.T if kind == "gpt2" else update).float()
    assert far(logits(served(base, out)), logits(stock)) < 1e-5
    assert far(logits(stock), logits(loaded(base))) > 1e-2
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)


def test_where_what_went_was_nothing_the_whole_model_says_what_the_small_one_does(
    shelf: dict[str, Path], tmp_path: Path
) -> None:
    model = loaded(shelf["llama"])
    with torch.no_grad():
        for index, layer in enumerate(model.model.layers):
            gone = torch.arange(index, 96, 4)  # of the hidden units, and one group of heads
            layer.mlp.gate_proj.weight[gone] = 0
            layer.mlp.up_proj.weight[gone] = 0
            layer.mlp.down_proj.weight[:, gone] = 0
            part = slice(12 * (index + 1) % 48, 12 * (index + 1) % 48 + 12)
            layer.self_attn.q_proj.weight[part] = 0
            layer.self_attn.o_proj.weight[:, part] = 0
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(shelf["llama"]).save_pretrained(tmp_path / "model")
    small = compress(tmp_path / "model", tmp_path / "small", keep=0.75)
    assert far(logits(loaded(small)), logits(model)) < 1e-5  # as planted, so that nothing was lost
    adapter = trained(small, tmp_path / "adapter")
    write(lift(read(adapter), small, tmp_path / "model"), tmp_path / "lifted")
    said = logits(served(small, adapter))
    assert far(logits(served(tmp_path / "model", tmp_path / "lifted")), said) < 1e-5
    assert far(said, logits(model)) > 1e-2


def test_widths_that_differ_from_block_to_block(shelf: dict[str, Path], text: Path, tmp_path: Path) -> None:
    recipe = replace(WIDTH, allocate=Entropic(temperature=0.1))
    small = compress(shelf["llama"], tmp_path / "small", recipe, 0.7, calibration=text, tokens=512, window=32)
    records = {record.name: record for record in Certificate.read(small).bonds}
    assert len({record.rank for record in records.values()}) > 1
    assert "quantization_config" in json.loads((small / "config.json").read_text())
    made = wrap(loaded(small), lora(), rank=2, only=["mlp.*", "q_proj"])
    for adapter in made.adapters.values():
        adapter.params["left"].data.normal_(generator=torch.Generator().manual_seed(1))
    export(made, tmp_path / "adapter")
    lifted = lift(read(tmp_path / "adapter"), small, shelf["llama"])
    for name, layer in read(tmp_path / "adapter").layers.items():
        got, was = lifted.layers[name].update.dense(), layer.update.dense()
        record = records.get(f"{name.rpartition('.mlp')[0]}.hidden")
        if record is None:  # a block that stays as it is, or a map of attention
            assert torch.equal(got, was)
            continue
        kept = torch.tensor(record.kept)
        axis = 1 if name.endswith("down_proj") else 0
        assert torch.equal(got.index_select(axis, kept), was)
        assert int(got.count_nonzero()) == int(was.count_nonzero()) == was.numel()


def test_what_trained_whole_comes_back_into_the_numbers_of_the_base(shelf: dict[str, Path], tmp_path: Path) -> None:
    base, small = shelf["qwen2"], compress(shelf["qwen2"], tmp_path / "small")
    adapter = trained(
        small, tmp_path / "adapter", target_modules=["up_proj"], modules_to_save=["q_proj", "o_proj", "lm_head"]
    )
    write(lift(read(adapter), small, base), tmp_path / "lifted")
    big, little, now = loaded(base), loaded(small), served(small, adapter).merge_and_unload()
    after = served(base, tmp_path / "lifted").merge_and_unload()
    assert torch.equal(after.lm_head.weight, now.lm_head.weight)
    for index in range(2):
        queries = f"model.layers.{index}.self_attn.q_proj"
        rows = places(little.get_submodule(queries).weight.data, big.get_submodule(queries).weight.data)
        others = [i for i in range(48) if i not in rows]
        assert 0 < len(rows) < 48
        for kind in ("weight", "bias"):
            whole, part, old = (getattr(model.get_submodule(queries), kind).data for model in (after, now, big))
            assert torch.equal(whole[rows], part)
            assert not torch.equal(whole[rows], old[rows])
            assert torch.equal(whole[others], old[others])
        reader = f"model.layers.{index}.self_attn.o_proj"
        whole, part = after.get_submodule(reader).weight.data, now.get_submodule(reader).weight.data
        assert torch.equal(whole[:, rows], part)


def test_units_that_others_make_up_for_are_lifted_as_well(shelf: dict[str, Path], text: Path, tmp_path: Path) -> None:
    recipe = replace(WIDTH, hidden=Select(SecondMoment(), Refit()))
    small = compress(shelf["gpt2"], tmp_path / "small", recipe, 0.8, calibration=text, tokens=1024, window=32)
    adapter = trained(small, tmp_path / "adapter")
    lifted = lift(read(adapter), small, shelf["gpt2"])
    for name, layer in read(adapter).layers.items():
        if name.endswith("mlp.c_proj"):
            writer = name.replace("c_proj", "c_fc")
            rows = places(
                loaded(small).get_submodule(writer).weight.data.T,
                loaded(shelf["gpt2"]).get_submodule(writer).weight.data.T,
            )
            assert torch.equal(lifted.layers[name].right[:, rows], layer.right)


# ---- what is refused --------------------------------------------------------------------------------------------------


def test_what_cannot_be_lifted_is_told(shelf: dict[str, Path], text: Path, tmp_path: Path) -> None:
    base = shelf["llama"]
    small = compress(base, tmp_path / "small")
    adapter = trained(small, tmp_path / "adapter")
    calibrated: dict[str, Any] = {"calibration": text, "tokens": 1024, "window": 32}

    def told(what: Path, source: Path = small, target: Path = base) -> str:
        return refused("lora", "lift", what, "--from", source, "--to", target, "-o", tmp_path / "out")

    assert "has a magnitude vector (DoRA)" in told(trained(small, tmp_path / "dora", use_dora=True))
    assert f"was not made from {shelf['qwen2']}, as its certificate tells" in told(adapter, target=shelf["qwen2"])
    assert "holds no eckart.json" in told(adapter, source=base)
    assert "places in the adapter where" in told(trained(base, tmp_path / "whole"))
    write(Adapter({"model.layers.0.mlp.upp_proj": Layer(torch.ones(4, 1), torch.ones(1, 48))}), tmp_path / "unknown")
    assert "has no module model.layers.0.mlp.upp_proj" in told(tmp_path / "unknown")
    others = {
        "lacks the block model.layers.1": Narrow(paper=OWN, depth=LastBlocks()),
        "model.layers.0.values.0, which are no units": Narrow(paper=OWN, values=Principal(), allocate=Level()),
        "model.layers.0.keys.0 is made of neither hidden units nor whole groups": Narrow(
            paper=OWN, keys=Select(SecondMoment()), allocate=Level()
        ),
        "directions of its own at residual": bonds.slicegpt(),
        "approximated": svd(),
    }
    for index, (sentence, recipe) in enumerate(others.items()):
        made = compress(base, tmp_path / f"other{index}", recipe, 0.9 if index else 0.66, **calibrated)
        found = told(adapter, source=made)
        assert sentence in found
        assert "narrow by such a recipe (shrink-width)" in found


def test_an_edited_list_of_what_is_left_is_found_out(shelf: dict[str, Path], tmp_path: Path) -> None:
    small = compress(shelf["llama"], tmp_path / "small")
    assert eckart.verify(small, shelf["llama"]).failures == ()

    def other(table: dict[str, Any]) -> None:
        kept = table["bonds"][0]["kept"]
        table["bonds"][0]["kept"] = [next(i for i in range(99) if i not in kept), *kept[1:]]

    edit_json(small / "eckart.json", other)
    assert any(
        "what is left of the bond is not as recorded" in failure
        for failure in eckart.verify(small, shelf["llama"]).failures
    )


def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="Directed is no pair of factors, which is what can be lifted"):
        replace(loram(), form=Directed(Pair()))
    with pytest.raises(ValueError, match="weights of the smaller model that are Rounded are none of the larger one"):
        replace(loram(), stored=Rounded(NormalFloat()))
    with pytest.raises(ValueError, match="no pair of factors to lift: leave LessAll out"):
        replace(loram(), start=Start(OfWeight(), split=Even()), base=LessAll())
    with pytest.raises(ValueError, match="leave values out"):
        Smaller(Narrow(paper=OWN, values=Principal()), 0.5)
    with pytest.raises(ValueError, match="a share above 0 and below 1 of the bytes, not 1"):
        Smaller(UNITS, 1.0)


# ---- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "kind"), [("loram", "llama"), ("loram-width", "gpt2")])
def test_training_small_changes_what_was_left_of_the_whole_model(
    key: str, kind: str, shelf: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    base, recipe = shelf[kind], ADAPTERS[key]()
    course = Course(steps=20, batch=4, rate=1e-2, held_out=0.0)
    done = tune(base, data, tmp_path / "out", recipe, rank=2, course=course)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    # The same model made by hand: what it weighs, and where its units stood.
    assert isinstance(recipe.within, Smaller)
    small = compress(base, tmp_path / "small", recipe.within.narrow, recipe.within.keep)
    sizes = [sum(p.stat().st_size for p in folder.glob("*.safetensors")) for folder in (small, base)]
    assert done.within == sizes[0] / sizes[1] < 0.85
    layers = read(tmp_path / "out").layers
    little = loaded(small)
    weights = {name: little.get_submodule(name).weight.data for name in layers}
    mask = placed(base, small, {name: torch.ones_like(w.T if kind == "gpt2" else w) for name, w in weights.items()})
    for name, layer in layers.items():
        update = layer.update.dense()
        assert float(update[mask[name] == 0].abs().sum()) == 0
        assert float(update[mask[name] == 1].abs().mean()) > 0
    assert any(bool((part == 0).any()) for part in mask.values())
    assert done.trained[20] < done.trained[10]
    assert far(logits(served(base, tmp_path / "out")), logits(loaded(base))) > 1e-3


def test_what_narrows_may_be_measured_on_the_records(shelf: dict[str, Path], data: Path, tmp_path: Path) -> None:
    recipe = replace(loram(), within=Smaller(replace(WIDTH, hidden=Select(SecondMoment())), 0.8))
    done = tune(shelf["llama"], data, tmp_path / "out", recipe, rank=2, course=Course(steps=2, batch=2))
    text = tmp_path / "text.txt"
    text.write_text("\n".join(SENTENCES * 3))
    small = compress(
        shelf["llama"], tmp_path / "small", replace(WIDTH, hidden=Select(SecondMoment())), 0.8, calibration=text
    )
    for record in Certificate.read(small).bonds:
        right = read(done.folder).layers[record.name.replace("hidden", "mlp.down_proj")].right
        assert (right != 0).any(0).nonzero().flatten().tolist() == list(record.kept or ())


@pytest.mark.parametrize("name", combinations.FORMS)
def test_every_form_is_lifted_or_refused_before_it_trains(name: str, shelf: dict[str, Path], tmp_path: Path) -> None:
    form = combinations.FORMS[name]
    recipe = next(made.recipe for made in combinations.started() if made.second == name and made.recipe is not None)
    if not form.is_factored:
        with pytest.raises(ValueError, match=f"{type(form).__name__} is no pair of factors"):
            replace(recipe, within=Smaller(WIDTH, 0.8))
        return
    recipe = replace(recipe, within=Smaller(WIDTH, 0.8))
    small = compress(shelf["llama"], tmp_path / "narrow", WIDTH, 0.8)
    made = wrap(loaded(small), replace(recipe, within=Itself()), rank=2, only=["*down_proj"])
    for parameter in made.model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1
    export(made, tmp_path / "small")
    whole = write(lift(read(tmp_path / "small"), small, shelf["llama"]), tmp_path / "whole")
    for module, layer in read(whole).layers.items():
        updated = placed(shelf["llama"], small, {module: made.adapters[module].merged().float()})
        before = loaded(shelf["llama"]).get_submodule(module).weight.data
        there = updated[module] != 0
        assert far((before + layer.update.dense().float())[there], updated[module][there]) < 1e-5


def test_in_memory_there_is_no_smaller_model(shelf: dict[str, Path]) -> None:
    with pytest.raises(EckartError, match=r"train within a smaller model, which is made of files: take tune"):
        wrap(loaded(shelf["llama"]), loram())


def test_the_command_tells_how_small_the_model_was(shelf: dict[str, Path], data: Path, tmp_path: Path) -> None:
    command = ["adapt", shelf["llama"], "--data", data, "--recipe", "loram", "--steps", "2", "--batch", "2"]
    assert "trained within a smaller model of" in cli(*command, "-o", tmp_path / "one").out
    table = json.loads(cli(*command, "-o", tmp_path / "two", "--json").out)
    assert 0.5 < table["within"] < 0.85
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "when"),
    [
        ("eckart.model.journal:Journal._append", "torn"),
        ("eckart.model.engine:put_in_place", "before"),
        ("eckart.model.output:move_into_place", "after"),
        ("eckart.model.adapting.running:write_begun", "before"),
        ("eckart.model.adapting.trainer:AdapterTrainer._save_checkpoint", "after"),
        ("eckart.model.adapting.within:put_into", "before"),
        ("eckart.model.adapting.within:put_into", "after"),
        ("eckart.model.adapting.engine:move_into_place", "after"),
    ],
)
def test_a_killed_run_ends_in_the_same_bytes(
    function: str, when: str, shelf: dict[str, Path], data: Path, killer: Killer, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [
        "adapt",
        shelf["llama"],
        "--data",
        data,
        "-o",
        out,
        "--recipe",
        "loram",
        "--steps",
        "4",
        "--batch",
        "2",
        "--save",
        "2",
    ]
    assert killer(*command).code == 0
    wanted = tree(out)
    shutil.rmtree(out)
    again = killer(*command, function=function, call=1, when=when)
    assert again.code == -9, again.err
    while again.code == -9:
        again = killer(*command, function=function, call=2, when=when)
    assert again.code == 0, again.err
    assert tree(out) == wanted
    assert not work_folder(out).exists()
