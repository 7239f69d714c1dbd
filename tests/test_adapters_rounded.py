"""Adapters on rounded weights: what is held, what is written beside them, and what a stock loader makes of both."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import ARCHITECTURES, SENTENCES
from outputs import far, loaded, logits, token_ids
from peft import PeftModel
from runs import cli
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import eckart
from eckart.adapt import RECIPES, Course, Wrapped, export, tune, wrap
from eckart.adapters.stored import Rounded
from eckart.approx import NormalFloat
from eckart.errors import EckartError
from eckart.model.adapting.kept import read_begun, write_begun
from eckart.model.adapting.wrap import begin_all, install, targets_of
from eckart.model.densify import densify
from eckart.model.evaluate import load
from eckart.model.linear import OperatorLinear
from eckart.model.output import work_folder
from eckart.model.verify import verify
from eckart.operator import Levels, nbytes
from eckart.recipes.adapters.rounded import loftq, qlora, qpissa

RANK = 4
COURSE = Course(steps=8, batch=4, rate=1e-2, save=4, judge=4)


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ARCHITECTURES["llama"](tmp_path_factory.mktemp("rounded") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    path.write_text("\n".join(json.dumps({"text": sentence}) for sentence in SENTENCES * 3))
    return path


def batches() -> list[dict[str, Tensor]]:
    ids = token_ids()
    return [{"input_ids": ids[i : i + 1], "labels": ids[i : i + 1]} for i in range(3)]


def trained(made: Wrapped, steps: int = 4) -> Tensor:
    """What the model says after some steps."""
    optimiser = torch.optim.AdamW(made.groups(1e-2))
    made.model.train()
    for step in range(steps):
        made.model(**batches()[step % 3]).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return logits(made.model.eval())


# ---- in memory --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["qlora", "qpissa", "loftq"])
def test_codes_take_the_place_of_weights(key: str, stock: Path) -> None:
    model = loaded(stock)
    weights = {name: model.get_submodule(name).weight.detach().clone() for name in targets_of(model)}
    made = wrap(model, RECIPES[key](), rank=RANK)
    for name, adapter in made.adapters.items():
        assert isinstance(adapter.base, OperatorLinear)
        assert isinstance(adapter.base.operator, Levels)
        m, n = weights[name].shape
        assert nbytes(adapter.base.operator) == m * (n // 2 + 4 * -(-n // 64)) + 64
        held = [tensor for tensor in [*adapter.parameters(), *adapter.buffers()] if tensor.is_floating_point()]
        assert sum(tensor.numel() for tensor in held) == RANK * (m + n) + m * -(-n // 64) + 16
        base, update = adapter.base.operator.dense().double(), adapter.update.dense().detach().double()
        error = (weights[name].double() - base - update).norm() / weights[name].double().norm()
        assert float(error) == pytest.approx(min(made.rounded[name]), rel=1e-4)
    assert not any(parameter.requires_grad for a in made.adapters.values() for parameter in a.base.parameters())


def test_a_start_of_the_error_leaves_less_than_rounding_alone(stock: Path) -> None:
    """In every map: PiSSA before rounding, LoftQ in every sweep, below LoRA on rounded weights."""
    found = {key: wrap(loaded(stock), RECIPES[key](), rank=RANK).rounded for key in ("qlora", "qpissa", "loftq")}
    assert len(found["qlora"]) == 21
    for name, (plain,) in found["qlora"].items():
        assert found["qpissa"][name][0] < plain
        assert max(found["loftq"][name]) < plain
        assert found["loftq"][name][1] < found["loftq"][name][0]


def test_starts_are_read_as_they_were_written(stock: Path, tmp_path: Path) -> None:
    model = loaded(stock)
    for key in ("loftq", "pissa"):
        begun = begin_all(model, RECIPES[key](), targets_of(model), rank=RANK)
        write_begun(tmp_path, begun)
        again = read_begun(tmp_path)
        assert again is not None
        one, other = (install(loaded(stock), RECIPES[key](), each, rank=RANK) for each in (begun, again))
        assert one.rounded == other.rounded
        assert (key == "loftq") == bool(one.rounded)
        state = dict(other.model.state_dict())
        assert all(torch.equal(tensor, state[name]) for name, tensor in one.model.state_dict().items())


def test_a_compressed_checkpoint_may_be_rounded_and_merged(stock: Path, tmp_path: Path) -> None:
    """What is factored is rounded as the matrix that it is; the maps beside stay factors, in memory and in what is written."""
    eckart.compress(stock, tmp_path / "small", recipe="svd", keep=0.6)
    model = loaded(tmp_path / "small")
    with pytest.raises(EckartError, match="nothing can be taken from a weight that is stored as an operator: densify"):
        wrap(loaded(tmp_path / "small"), RECIPES["pissa"](), rank=RANK)
    before = {name: module.operator.dense() for name, module in model.named_modules() if hasattr(module, "operator")}
    made = wrap(model, qpissa(bits=8), rank=RANK, only=["q_proj", "down_proj"])
    for name, adapter in made.adapters.items():
        assert far(adapter.base.operator.dense() + adapter.update.dense(), before[name]) < 0.02
    after = trained(made)
    export(made, tmp_path / "out")
    base = loaded(tmp_path / "out" / "base")
    kinds = {name: module.record["kind"] for name, module in base.named_modules() if isinstance(module, OperatorLinear)}
    assert {kinds[name] for name in made.adapters} == {"levels"}
    assert {kind for name, kind in kinds.items() if name not in made.adapters} == {"factors"}
    assert far(logits(PeftModel.from_pretrained(base, tmp_path / "out").eval()), after) < 1e-5
    assert far(logits(made.merge()), after) < 1e-5
    assert {type(made.model.get_submodule(name)) for name in made.adapters} == {nn.Linear}


class Pictures(nn.Module):
    """A convolution in a list, so that it is a block."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(6, 6, 3)])


class Lines(nn.Module):
    """A linear map that is no part of a model of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 6)])


def test_what_cannot_be_rounded_is_told(stock: Path, tmp_path: Path) -> None:
    with pytest.raises(
        EckartError, match=r"layers\.0 cannot be adapted so: the weight of a convolution can't be rounded"
    ):
        wrap(Pictures(), qlora(), rank=2)
    tied = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=8, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(EckartError, match="lm_head cannot be adapted so: its weight is another module's as well"):
        wrap(tied, qlora(), rank=2, only=["lm_head"])
    with pytest.raises(EckartError, match="a Lines is no model of transformers: its rounded base can't be written"):
        export(wrap(Lines(), qlora(), rank=2), tmp_path / "out")
    made = wrap(loaded(stock), replace(RECIPES["dora"](), stored=Rounded(NormalFloat())), rank=RANK)
    after = trained(made)
    with pytest.raises(EckartError, match="PEFT can't measure the rows of a weight that is stored as an operator"):
        export(made, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    assert far(logits(made.merge()), after) < 1e-5


# ---- what is written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["qlora", "loftq"])
def test_the_adapter_is_served_on_the_rounded_model_beside_it(
    key: str, stock: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = tune(stock, data, out, RECIPES[key](), rank=RANK, course=COURSE)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(out / "base")
    assert set(done.rounded) == set(done.ranks)
    assert {len(errors) for errors in done.rounded.values()} == {1 if key == "qlora" else 5}
    base = loaded(out / "base")
    assert {type(base.get_submodule(name)) for name in done.ranks} == {OperatorLinear}
    plain = logits(base)
    weights = {name: base.get_submodule(name).operator.dense() for name in done.ranks}
    served = PeftModel.from_pretrained(base, out).eval()
    stored, config = load_file(out / "adapter_model.safetensors"), json.loads((out / "adapter_config.json").read_text())
    own = loaded(stock)  # by hand: the base's numbers plus B A
    assert done.parameters == sum(parameter.numel() for parameter in own.parameters())  # however few bits they have
    for name in done.ranks:
        place = f"base_model.model.{name}.lora_"
        update = stored[f"{place}B.weight"] @ stored[f"{place}A.weight"] * config["lora_alpha"] / config["r"]
        own.get_submodule(name).weight.data.copy_(weights[name] + update)
    assert far(logits(served), logits(own)) < 1e-5
    assert far(logits(served), plain) > 1e-2
    with pytest.raises(EckartError, match=r"base holds no eckart\.json: it was not made by eckart compress"):
        verify(out / "base")
    densify(out / "base", tmp_path / "dense")
    assert far(logits(loaded(tmp_path / "dense")), plain) < 1e-6


@pytest.mark.parametrize("key", ["qlora", "qpissa", "loftq"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_peft_on_the_written_base_says_what_the_model_said(
    key: str, architecture: str, stock: Path, tmp_path: Path
) -> None:
    folder = stock if architecture == "llama" else ARCHITECTURES[architecture](tmp_path / "model")
    made = wrap(loaded(folder), RECIPES[key](), rank=RANK)
    after = trained(made)
    found = export(made, tmp_path / "out")
    assert found.folder == tmp_path / "out"
    assert found.is_exact
    assert set(found.ranks.values()) == {RANK}  # nothing is to be put back
    served = PeftModel.from_pretrained(loaded(tmp_path / "out" / "base"), tmp_path / "out").eval()
    assert far(logits(served), after) < 1e-5
    assert far(logits(made.model), after) == 0  # and the model in memory is what it was
    assert not hasattr(made.model.config, "quantization_config")


def test_other_numbers_keep_the_dtype_of_the_checkpoint(stock: Path, data: Path, tmp_path: Path) -> None:
    narrow = tmp_path / "narrow"
    model = loaded(stock).to(torch.bfloat16)
    model.save_pretrained(narrow)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (narrow / name).write_bytes((stock / name).read_bytes())
    done = tune(narrow, data, tmp_path / "out", qpissa(), rank=RANK, course=COURSE, only=["q_proj"])
    before = load_file(narrow / "model.safetensors")
    after = load_file(done.folder / "base" / "model.safetensors")
    copied = [name for name in after if not any(name.startswith(f"{target}.") for target in done.ranks)]
    assert set(before) - set(copied) == {f"{name}.weight" for name in done.ranks}
    assert all(after[name].dtype == torch.bfloat16 and torch.equal(after[name], before[name]) for name in copied)
    assert {after[f"{name}.weight"].dtype for name in done.ranks} == {torch.float32}
    served = PeftModel.from_pretrained(loaded(done.folder / "base"), done.folder).eval()
    assert bool(torch.isfinite(logits(served)).all())


def test_the_command_tells_of_rounding(stock: Path, data: Path, tmp_path: Path) -> None:
    command = (
        "adapt",
        stock,
        "--data",
        data,
        "-o",
        tmp_path / "out",
        "--recipe",
        "loftq",
        "--rank",
        "4",
        "--steps",
        "2",
    )
    told = cli(*command)
    assert told.code == 0, told.err
    assert "rounded 21 weights, of which base and start leave" in told.out
    assert "the adapter fits" in told.out
    machine = json.loads(cli(*command[:5], tmp_path / "other", *command[6:], "--json").out)
    assert {len(errors) for errors in machine["rounded"].values()} == {5}
    assert not work_folder(tmp_path / "out").exists()


# ---- on real weights --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.data
def test_on_real_weights_errors_fall_with_the_first_sweeps(data_dir: Path) -> None:
    """Of a trained model of eight million numbers, at four, three and two bits: in every map below LoRA's rounding, PiSSA's lowest."""

    def left(recipe: Any) -> np.ndarray[Any, Any]:
        made = wrap(
            load(data_dir / "wikitext2_llama_8m", dtype=torch.float32), recipe, rank=8, only=["q_proj", "down_proj"]
        )
        return np.array(list(made.rounded.values()))

    for bits in (4, 3, 2):
        plain, pissa, alternating = left(qlora(bits=bits)), left(qpissa(3, bits)), left(loftq(5, bits))
        assert bool((pissa[:, 0] < plain[:, 0]).all())
        assert bool((alternating < plain).all())
        assert bool((np.diff(alternating[:, :3], axis=1) < 0).all())
        assert bool((np.diff(np.median(alternating, axis=0)) < 0).all())
        assert bool((np.diff(pissa, axis=1) < 0).all())
        assert bool((pissa[:, 0] < alternating[:, 0]).all())
