"""Surgery on adapters, against NumPy's SVD of dense products and against what stock PEFT computes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import ARCHITECTURES, CONTEXT, VOCABULARY, shard, variant
from outputs import far, loaded, logits, token_ids
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.other import get_pattern_key
from runs import Killer, calibration_text, cli, edit_json, edit_tensor, edit_tensors, left_behind, refused, tree
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import RobertaConfig, RobertaForSequenceClassification

from eckart.errors import EckartError
from eckart.model.output import work_folder
from eckart.model.surgery import (
    Adapter,
    Convolution,
    Layer,
    Map,
    Text,
    ToBytes,
    ToEnergy,
    ToError,
    ToRank,
    combine,
    differences,
    extract,
    intruding,
    look,
    merge,
    read,
    resize,
    write,
)
from eckart.model.surgery.base import Base
from eckart.model.surgery.reading import pattern_of
from eckart.model.text import draw_windows, ids_for

RANK = 6
LLAMA = ["q_proj", "v_proj", "down_proj"]
GPT2 = ["c_attn", "c_proj", "c_fc"]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {
        name: ARCHITECTURES[name](tmp_path_factory.mktemp(name) / "model") for name in ("llama", "gpt2", "llama_tied")
    }
    # A tied weight that is stored under both of its names, as some writers do.
    made["gpt2_twice"] = ARCHITECTURES["gpt2"](tmp_path_factory.mktemp("twice") / "model")
    edit_tensors(
        made["gpt2_twice"] / "model.safetensors",
        lambda table: table.update({"lm_head.weight": table["transformer.wte.weight"].clone()}),
    )
    return made


def trained(folder: Path, out: Path, seed: int = 0, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
    """An adapter that PEFT saved, its factors drawn at random as if they had trained."""
    config = LoraConfig(**({"r": RANK, "lora_alpha": 16} | options))
    model = get_peft_model(loaded(folder), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name and "magnitude" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
            elif parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05 * parameter.std())
    model.save_pretrained(out)
    if dtype != torch.float32:
        tensors = load_file(out / "adapter_model.safetensors")
        save_file({name: t.to(dtype) for name, t in tensors.items()}, out / "adapter_model.safetensors")
    return out


def served(folder: Path, adapter: Path) -> Any:
    return PeftModel.from_pretrained(loaded(folder), adapter).eval()


def products(adapter: Path) -> dict[str, np.ndarray]:
    """The dense updates of an adapter as PEFT's file says them; one alpha and one rank for all."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    tensors = load_file(adapter / "adapter_model.safetensors")
    found = {}
    for name, right in tensors.items():
        if ".lora_A" in name:
            left = tensors[name.replace("lora_A", "lora_B")]
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            found[module] = config["lora_alpha"] / config["r"] * (left.double() @ right.double()).numpy()
    return found


def truncated(matrix: np.ndarray, rank: int) -> np.ndarray:
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    result: np.ndarray = (u[:, :rank] * s[:rank]) @ vt[:rank]
    return result


def with_updates(folder: Path, updates: Mapping[str, np.ndarray], *, turned: bool = False) -> Any:
    """The stock model with dense updates added to its weights."""
    model = loaded(folder)
    with torch.no_grad():
        for name, update in updates.items():
            dense = torch.from_numpy(update.T if turned else update).to(torch.float32)
            model.get_submodule(name).weight.add_(dense)
    return model


# ---- reading and writing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": LLAMA},
        {"target_modules": LLAMA, "use_rslora": True},
        {
            "target_modules": LLAMA,
            "rank_pattern": {"layers.1.self_attn.q_proj": 3, "down_proj": 2},
            "alpha_pattern": {"down_proj": 5},
        },
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": LLAMA, "use_dora": True},
        {"target_modules": LLAMA, "bias": "all"},
    ],
    ids=lambda options: "-".join(sorted(options)),
)
@pytest.mark.parametrize("uniform", [False, True])
def test_what_is_read_is_written_again(
    options: dict[str, Any], uniform: bool, shelf: dict[str, Path], tmp_path: Path
) -> None:
    source = trained(shelf["llama"], tmp_path / "source", **options)
    write(read(source), tmp_path / "copy", uniform=uniform)
    expected = logits(served(shelf["llama"], source))
    assert far(expected, logits(loaded(shelf["llama"]))) > 1e-2
    assert far(logits(served(shelf["llama"], tmp_path / "copy")), expected) < 1e-5
    if uniform:
        table = json.loads((tmp_path / "copy" / "adapter_config.json").read_text())
        assert (table["r"], table["lora_alpha"]) == (RANK, RANK)
        assert table["rank_pattern"] == {} == table["alpha_pattern"]
    else:
        before, after = (load_file(p / "adapter_model.safetensors") for p in (source, tmp_path / "copy"))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)


class Pictures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 6, (3, 5), padding=(1, 2))

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.first(x)
        return made


def test_kernels_are_flattened_behind_their_outputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Pictures()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wrapped = get_peft_model(model, LoraConfig(r=3, lora_alpha=6, target_modules=["first"], init_lora_weights=False))
    wrapped.save_pretrained(tmp_path / "source")
    found = read(tmp_path / "source")
    assert found.layers["first"].kind == Convolution((4, 3, 5))
    kernel = wrapped.base_model.model.first.get_delta_weight("default")
    assert far(found.layers["first"].update.dense().reshape(kernel.shape).float(), kernel) < 1e-5
    made = resize(found, ToRank(2)).adapter
    write(made, tmp_path / "small")
    stock = Pictures()
    stock.load_state_dict(state)
    x = torch.randn(2, 4, 8, 8)
    expected = torch.from_numpy(truncated(found.layers["first"].update.dense().numpy(), 2)).float()
    weight = state["first.weight"] + expected.reshape(kernel.shape)
    after = nn.functional.conv2d(x, weight, state["first.bias"], padding=(1, 2))
    assert far(PeftModel.from_pretrained(stock, tmp_path / "small").eval()(x), after) < 1e-5


def test_patterns_fit_their_modules_alone(tmp_path: Path) -> None:
    """One module's name may be the end of another's; PEFT's rule must tell them apart in what is written."""
    layers = {
        name: Layer(torch.randn(4, rank), torch.randn(rank, 4), scale)
        for name, rank, scale in (("a.q", 2, 1.0), ("x.a.q", 3, 1.0), ("y.a.q", 3, 2.0), ("b.q", 3, 1.0))
    }
    write(Adapter(layers), tmp_path / "adapter")
    table = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert table["rank_pattern"] == {"^a.q": 2}
    assert pattern_of(table["rank_pattern"], "x.a.q") is None
    again = read(tmp_path / "adapter")
    assert {name: (layer.rank, layer.scale) for name, layer in again.layers.items()} == {
        name: (layer.rank, layer.scale) for name, layer in layers.items()
    }


@pytest.mark.parametrize(
    "name", ["q_proj", "layers.0.q_proj", "model.layers.0.q_proj", "model.layers.10.q_proj", "a.xq_proj", "q_projx"]
)
@pytest.mark.parametrize(
    "patterns",
    [["q_proj"], ["layers.0.q_proj", "q_proj"], ["^q_proj"], ["^model.layers.0.q_proj"], [r".*\.10\.q_proj"], ["q"]],
)
def test_patterns_are_matched_as_peft_does(patterns: list[str], name: str) -> None:
    assert (pattern_of(dict.fromkeys(patterns), name) or name) == get_pattern_key(patterns, name)


# ---- resize -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_resized_adapter_is_the_dense_truncation(kind: str, shelf: dict[str, Path], tmp_path: Path) -> None:
    source = trained(shelf[kind], tmp_path / "source", target_modules=LLAMA if kind == "llama" else GPT2)
    dense = products(source)
    made = resize(read(source), ToRank(2))
    for name, update in dense.items():
        best = truncated(update, 2)
        assert far(made.adapter.layers[name].update.dense(), torch.from_numpy(best)) < 1e-5
        bound = made.bounds[name]
        tail = np.linalg.norm(update - best)
        assert bound.lower == pytest.approx(tail, rel=1e-9)
        assert bound.achieved == pytest.approx(tail, rel=1e-6)
        assert bound.scale == pytest.approx(np.linalg.norm(update), rel=1e-9)
    write(made.adapter, tmp_path / "small")
    expected = with_updates(
        shelf[kind], {name: truncated(update, 2) for name, update in dense.items()}, turned=kind == "gpt2"
    )
    assert far(logits(served(shelf[kind], tmp_path / "small")), logits(expected)) < 2e-5


@pytest.mark.parametrize("rank", [RANK, RANK + 3])
def test_a_rank_that_is_no_smaller_keeps_the_product(rank: int, shelf: dict[str, Path], tmp_path: Path) -> None:
    before = read(trained(shelf["llama"], tmp_path / "source", target_modules=LLAMA))
    made = resize(before, ToRank(rank))
    assert set(made.adapter.ranks.values()) == {rank}
    for name, layer in before.layers.items():
        assert torch.equal(made.adapter.layers[name].update.dense(), layer.update.dense())
        assert made.bounds[name].upper == 0


def test_each_size_is_met_by_the_least_rank(shelf: dict[str, Path], tmp_path: Path) -> None:
    before = read(trained(shelf["llama"], tmp_path / "source", target_modules=LLAMA))
    values = {
        name: np.linalg.svd(layer.update.dense().numpy(), compute_uv=False)[:RANK]
        for name, layer in before.layers.items()
    }
    kept = {name: np.cumsum(s**2) / np.sum(s**2) for name, s in values.items()}
    by_energy = resize(before, ToEnergy(0.7))
    assert by_energy.adapter.ranks == {name: int(np.argmax(share >= 0.7)) + 1 for name, share in kept.items()}
    by_error = resize(before, ToError(0.5))
    assert by_error.adapter.ranks == {name: int(np.argmax(share >= 0.75)) + 1 for name, share in kept.items()}
    assert all(b.upper <= 0.5 * b.scale for b in by_error.bounds.values())
    for all_of_it in (ToEnergy(1.0), ToError(0.0)):  # what no smaller rank holds stays as it is, bit by bit
        same = resize(before, all_of_it).adapter.layers
        assert all(torch.equal(same[name].left, layer.left) for name, layer in before.layers.items())
        assert {layer.scale for layer in same.values()} == {16 / RANK}
    # A budget: as many ranks as fit, and no exchange of one for another would be better.
    budget = 15_000
    made = resize(before, ToBytes(budget)).adapter
    write(made, tmp_path / "small")
    size = (tmp_path / "small" / "adapter_model.safetensors").stat().st_size
    assert budget - 1200 < size <= budget
    gains = {n: [float(v**2) / before.layers[n].rank_bytes for v in s] for n, s in values.items()}
    least_taken = min(gains[name][rank - 1] for name, rank in made.ranks.items() if rank > 1)
    most_left = max((gains[name][rank], name) for name, rank in made.ranks.items() if rank < RANK)
    assert most_left[0] <= least_taken or before.layers[most_left[1]].rank_bytes > budget - size
    assert len(set(made.ranks.values())) > 1


def test_an_update_of_zero(tmp_path: Path) -> None:
    """What was never trained: no size is divided by, and rank 1 is enough of it."""
    nothing = Adapter({"q": Layer(torch.zeros(5, 3), torch.ones(3, 4)), "v": Layer(torch.ones(5, 3), torch.ones(3, 4))})
    for size in (ToRank(1), ToEnergy(0.9), ToError(0.1)):
        made = resize(nothing, size)
        assert made.adapter.ranks == {"q": 1, "v": 1}
        assert made.bounds["q"].relative == 0
        assert float(made.adapter.layers["q"].update.dense().norm()) == 0
    (row, _) = look(nothing)
    assert row.kept == {}
    assert json.loads(json.dumps(row.to_json()))["spectrum"]["stable_rank"] is None


def test_ranks_above_the_sides_of_a_map() -> None:
    """A head with two classes may have an adapter of rank 8."""
    wide = Adapter({"head": Layer(torch.randn(2, 8), torch.randn(8, 20))})
    for size in (ToRank(4), ToBytes(500), ToEnergy(1.0)):
        made = resize(wide, size)
        assert made.adapter.ranks == {"head": 2}
        assert made.bounds["head"].relative < 1e-6


def test_narrow_factors_stay_narrow(shelf: dict[str, Path], tmp_path: Path) -> None:
    source = trained(shelf["llama"], tmp_path / "source", dtype=torch.bfloat16, target_modules=LLAMA)
    made = resize(read(source), ToRank(3))
    assert {layer.left.dtype for layer in made.adapter.layers.values()} == {torch.bfloat16}
    for name, bound in made.bounds.items():
        assert bound.lower is not None
        best = truncated(products(source)[name], 3)
        assert bound.lower == pytest.approx(np.linalg.norm(products(source)[name] - best), rel=1e-9)
        left = products(source)[name] - made.adapter.layers[name].update.dense().numpy()
        assert bound.lower <= np.linalg.norm(left) * (1 + 1e-12)
        assert np.linalg.norm(left) <= bound.upper
    # No smaller factors in bfloat16 come so near: those that are there do, and are exact.
    same = resize(read(source), ToError(1e-4))
    assert set(same.adapter.ranks.values()) == {RANK}


def test_what_trained_whole_comes_along(shelf: dict[str, Path], tmp_path: Path) -> None:
    source = trained(shelf["llama"], tmp_path / "source", target_modules=LLAMA, modules_to_save=["lm_head"])
    write(resize(read(source), ToRank(2)).adapter, tmp_path / "small")
    before, after = (load_file(p / "adapter_model.safetensors") for p in (source, tmp_path / "small"))
    (name,) = (name for name in before if "lm_head" in name)
    assert torch.equal(before[name], after[name])
    expected = with_updates(shelf["llama"], {n: truncated(u, 2) for n, u in products(source).items()})
    with torch.no_grad():
        expected.lm_head.weight.copy_(before[name])
    assert far(logits(served(shelf["llama"], tmp_path / "small")), logits(expected)) < 2e-5


# ---- extract ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_known_difference_is_recovered(kind: str, shelf: dict[str, Path], tmp_path: Path) -> None:
    source = trained(shelf[kind], tmp_path / "source", target_modules=LLAMA if kind == "llama" else GPT2)
    dense = products(source)
    tuned = tmp_path / "tuned"
    with_updates(shelf[kind], dense, turned=kind == "gpt2").save_pretrained(tuned)
    # Another writing of the same model: sharded.
    shard(tuned, 60_000)
    found = extract(shelf[kind], tuned, ToRank(RANK))
    assert found.adapter.layers.keys() == dense.keys()
    assert found.left == ()
    for name, layer in found.adapter.layers.items():
        assert far(layer.update.dense(), torch.from_numpy(dense[name])) < 1e-5
        assert found.bounds[name].relative < 1e-5
    write(found.adapter, tmp_path / "adapter")
    assert far(logits(served(shelf[kind], tmp_path / "adapter")), logits(loaded(tuned))) < 2e-5


def test_what_no_layer_holds_is_told(shelf: dict[str, Path], tmp_path: Path) -> None:
    tuned = tmp_path / "tuned"
    shutil.copytree(shelf["llama"], tuned)
    name = "model.layers.0.self_attn.q_proj"
    edit_tensor(tuned, f"{name}.weight", lambda w: w + 0.1)
    edit_tensor(tuned, "model.norm.weight", lambda w: 1.5 * w)
    edit_tensor(tuned, "lm_head.weight", lambda w: 1.25 * w)
    edit_tensor(tuned, "model.embed_tokens.weight", lambda w: 2 * w)
    found = extract(shelf["llama"], tuned, ToRank(4))
    assert list(found.adapter.layers) == [name]
    left = {entry.name: entry for entry in found.left}
    assert {n: pytest.approx(e.relative, rel=1e-6) for n, e in left.items()} == {
        "lm_head.weight": 0.25,
        "model.embed_tokens.weight": 1.0,
        "model.norm.weight": 0.5,
    }
    assert "name it with --only" in left["lm_head.weight"].reason
    # Named, they become layers: an embedding too.
    more = extract(
        shelf["llama"], tuned, ToRank(48), only=["q_proj", "lm_head", "embed_tokens"], exclude=["layers.1.*"]
    )
    assert more.adapter.layers.keys() == {name, "lm_head", "model.embed_tokens"}
    edit_tensor(tuned, "model.norm.weight", lambda w: w / 1.5)
    write(more.adapter, tmp_path / "adapter")
    assert far(logits(served(shelf["llama"], tmp_path / "adapter")), logits(loaded(tuned))) < 1e-4


def test_a_tied_weight_is_left(shelf: dict[str, Path], tmp_path: Path) -> None:
    tuned = tmp_path / "tuned"
    shutil.copytree(shelf["llama_tied"], tuned)
    edit_tensor(tuned, "model.embed_tokens.weight", lambda w: 2 * w)
    edit_tensor(tuned, "model.layers.0.mlp.up_proj.weight", lambda w: 2 * w)
    found = extract(shelf["llama_tied"], tuned, ToRank(4), only=["up_proj", "embed_tokens"])
    assert list(found.adapter.layers) == ["model.layers.0.mlp.up_proj"]
    assert [(e.name, e.reason) for e in found.left] == [
        ("model.embed_tokens.weight", "tied to lm_head: no layer changes both")
    ]


def test_bytes_of_an_extraction(shelf: dict[str, Path], tmp_path: Path) -> None:
    """Ranks where the difference has most, a file within the budget, and each layer a best one of its rank."""
    tuned = tmp_path / "tuned"
    shutil.copytree(shelf["llama"], tuned)
    generator = torch.Generator().manual_seed(3)
    sizes = {"q_proj": 0.02, "v_proj": 0.2, "up_proj": 0.05}
    for kind, scale in sizes.items():
        name = f"model.layers.1.{'mlp' if kind == 'up_proj' else 'self_attn'}.{kind}.weight"
        edit_tensor(tuned, name, lambda w, s=scale: w + s * torch.randn(w.shape, generator=generator))
    made = cli("lora", "extract", shelf["llama"], tuned, "-o", tmp_path / "adapter", "--bytes", "12kB", "--json")
    table = json.loads(made.out)
    assert 11_000 < table["bytes"] <= 12_000
    ranks = {name.rpartition(".")[2]: entry["rank"] for name, entry in table["modules"].items()}
    assert ranks["q_proj"] < ranks["up_proj"] < ranks["v_proj"]
    for entry in table["modules"].values():
        assert entry["bound"]["achieved"] <= entry["bound"]["lower"] * (1 + 1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_errors_weighed_by_a_text(kind: str, shelf: dict[str, Path], tmp_path: Path) -> None:
    """With inputs X the error counts ``|E X^T|``: the curve is that of the singular values of the difference times them."""
    tuned, generator = tmp_path / "tuned", torch.Generator().manual_seed(6)
    shutil.copytree(shelf[kind], tuned)
    names = LLAMA if kind == "llama" else GPT2
    for name, spec in load_file(shelf[kind] / "model.safetensors").items():
        if name.endswith(".weight") and name.split(".")[-2] in names:
            noise = torch.randn(spec.shape, generator=generator)
            edit_tensor(tuned, name, lambda w, e=noise: w + 0.1 * e)
    text = calibration_text(tmp_path / "text.txt")
    found = extract(shelf[kind], tuned, ToRank(5), text=Text(text, tokens=256, window=32))
    model, inputs = loaded(shelf[kind]), {}
    for name in found.adapter.layers:
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: inputs.update({name: args[0].detach().double().flatten(0, 1)})
        )
    ids = draw_windows(ids_for(shelf[kind], text.read_text()), 32, 256, torch.Generator().manual_seed(0))
    model(input_ids=ids)
    plain = extract(shelf[kind], tuned, ToRank(5))
    for name, bound in found.bounds.items():
        change = tuned_minus_base(shelf[kind], tuned, name, turned=kind == "gpt2")
        seen = change @ inputs[name].T.numpy()
        s = np.linalg.svd(seen, compute_uv=False)
        assert bound.relative == pytest.approx(float(np.sqrt((s[5:] ** 2).sum() / (s**2).sum())), rel=1e-4)
        errors = [
            np.linalg.norm((change - e.adapter.layers[name].update.dense().numpy()) @ inputs[name].T.numpy())
            for e in (found, plain)
        ]
        assert errors[0] == pytest.approx(float(np.sqrt((s[5:] ** 2).sum())), rel=1e-4)
        assert errors[0] < errors[1]
    budget = extract(shelf[kind], tuned, ToBytes(20_000), text=Text(text, tokens=256, window=32))
    assert len(set(budget.adapter.ranks.values())) > 1


def tuned_minus_base(base: Path, tuned: Path, name: str, *, turned: bool) -> np.ndarray:
    first, second = (load_file(p / "model.safetensors")[f"{name}.weight"].double() for p in (base, tuned))
    found: np.ndarray = ((second - first).T if turned else second - first).numpy()
    return found


# ---- inspect ----------------------------------------------------------------------------------------------------------


def test_figures_of_updates(shelf: dict[str, Path], tmp_path: Path) -> None:
    source = trained(shelf["gpt2"], tmp_path / "source", target_modules=GPT2)
    base = Base(shelf["gpt2"])
    stock = loaded(shelf["gpt2"])
    for row in look(read(source), base, leading=5):
        update = products(source)[row.name]
        s = np.linalg.svd(update, compute_uv=False)
        assert row.spectrum.values.numpy()[:RANK] == pytest.approx(s[:RANK], rel=1e-9)
        shares = s[:RANK] / s[:RANK].sum()
        assert row.spectrum.effective_rank == pytest.approx(float(np.exp(-(shares * np.log(shares)).sum())), rel=1e-9)
        assert row.spectrum.stable_rank == pytest.approx(float((s**2).sum() / s[0] ** 2), rel=1e-9)
        assert row.kept[4] == pytest.approx(float((s[:4] ** 2).sum() / (s**2).sum()), rel=1e-9)
        assert list(row.kept) == [1, 2, 4, 6]
        weight = stock.get_submodule(row.name).weight.detach().double().numpy().T
        u, changed = (np.linalg.svd(m, full_matrices=False)[0] for m in (weight, weight + update))
        cosines = np.abs(u.T @ changed[:, :5]).max(0)
        assert row.beside is not None
        assert row.beside.cosines == pytest.approx(cosines.tolist(), abs=1e-8)
        assert row.beside.ratio == pytest.approx(np.linalg.norm(update) / np.linalg.norm(weight), rel=1e-9)
        assert row.beside.intruders == int((cosines < 0.5).sum())


def test_a_planted_intruder_is_found() -> None:
    """A large new direction that is spread over all old ones, beside one that is among them."""
    n = 64
    u, v = (
        torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(s), dtype=torch.float64)).Q
        for s in (1, 2)
    )
    weight = u @ torch.diag(torch.linspace(4, 1, n, dtype=torch.float64)) @ v.T
    spread = u.sum(1) / n**0.5  # a cosine of 1/8 with each of them
    planted = weight + 500 * torch.outer(spread, v[:, 3])
    cosines = intruding(weight, planted, 5)
    assert float(cosines[0]) == pytest.approx(1 / 8, abs=0.02)
    assert int((cosines < 0.5).sum()) == 1
    along = intruding(weight, weight + 50 * torch.outer(u[:, 7], v[:, 7]), 5)
    assert float(along.min()) > 0.999


# ---- add --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.7, 0.3]])
def test_concatenation_is_the_sum(weights: list[float], shelf: dict[str, Path], tmp_path: Path) -> None:
    """Of adapters of different ranks and modules, as PEFT's own concatenation computes it."""
    one = trained(shelf["llama"], tmp_path / "one", target_modules=["q_proj", "up_proj"])
    two = trained(shelf["llama"], tmp_path / "two", seed=1, target_modules=["q_proj", "v_proj"], r=3, lora_alpha=4)
    both = combine({"one": read(one), "two": read(two)}, weights)
    assert set(both.ranks.values()) == {RANK, 3, RANK + 3}
    write(both, tmp_path / "both")
    updates = [products(place) for place in (one, two)]
    summed = {
        name: sum(w * table[name] for w, table in zip(weights, updates, strict=True) if name in table)
        for name in both.layers
    }
    expected = logits(with_updates(shelf["llama"], summed))
    assert far(logits(served(shelf["llama"], tmp_path / "both")), expected) < 2e-5
    theirs = PeftModel.from_pretrained(loaded(shelf["llama"]), one, adapter_name="one")
    theirs.load_adapter(two, adapter_name="two")
    theirs.add_weighted_adapter(["one", "two"], weights, combination_type="cat", adapter_name="both")
    theirs.set_adapter("both")
    for name in updates[0].keys() & updates[1].keys():
        delta = theirs.base_model.model.get_submodule(name).get_delta_weight("both")
        assert far(both.layers[name].update.dense(), delta.double()) < 1e-5
    cut = resize(both, ToRank(4))
    for name, update in summed.items():
        assert far(cut.adapter.layers[name].update.dense(), torch.from_numpy(truncated(update, 4))) < 1e-5


def test_an_adapter_and_its_opposite(shelf: dict[str, Path], tmp_path: Path) -> None:
    one = read(trained(shelf["llama"], tmp_path / "one", target_modules=LLAMA))
    nothing = combine({"a": one, "b": one}, [1.0, -1.0])
    sizes = [float(layer.update.dense().norm()) for layer in nothing.layers.values()]
    assert max(sizes) < 1e-6
    assert set(resize(nothing, ToEnergy(0.9)).adapter.ranks.values()) <= set(range(1, 2 * RANK + 1))


# ---- merge ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {"target_modules": LLAMA}),
        ("gpt2", {"target_modules": GPT2}),
        ("llama", {"target_modules": LLAMA, "use_dora": True}),
        ("gpt2", {"target_modules": GPT2, "use_dora": True}),
        ("llama", {"target_modules": LLAMA, "use_rslora": True, "rank_pattern": {"q_proj": 2}}),
        ("llama", {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["lm_head"]}),
        ("llama", {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True}),
        ("llama_tied", {"target_modules": ["q_proj", "embed_tokens"]}),
        ("llama_tied", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
        ("gpt2_twice", {"target_modules": ["wte", "c_attn"]}),
        ("gpt2", {"target_modules": GPT2, "bias": "all"}),
    ],
    ids=lambda case: case if isinstance(case, str) else "-".join(sorted(case)),
)
def test_a_merge_is_what_peft_merges(
    kind: str, options: dict[str, Any], shelf: dict[str, Path], tmp_path: Path
) -> None:
    source = trained(shelf[kind], tmp_path / "source", **options)
    merge(shelf[kind], source, tmp_path / "merged")
    beside = served(shelf[kind], source)
    expected = logits(beside)
    assert far(expected, logits(loaded(shelf[kind]))) > 1e-2
    merged = loaded(tmp_path / "merged")
    assert far(logits(merged), expected) < 2e-5
    if kind not in ("llama_tied", "gpt2_twice"):  # where PEFT adds to both of what is one tensor
        stock = beside.merge_and_unload().state_dict()
        for name, tensor in merged.state_dict().items():
            assert far(tensor, stock[name]) < 1e-5
    else:
        assert json.loads((tmp_path / "merged" / "config.json").read_text())["tie_word_embeddings"] is False
    files = {path.name for path in (tmp_path / "merged").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= files
    assert not any(name.startswith("adapter") for name in files)
    assert left_behind(tmp_path / "merged") == ["merged"]


def test_a_merge_rounds_once(shelf: dict[str, Path], tmp_path: Path) -> None:
    base = variant("llama", tmp_path / "base", dtype=torch.bfloat16)
    source = trained(base, tmp_path / "source", target_modules=LLAMA)
    merge(base, source, tmp_path / "merged")
    before, after = (load_file(p / "model.safetensors") for p in (base, tmp_path / "merged"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"{name}.weight" for name in products(source)}
    for name, update in products(source).items():
        exact = before[f"{name}.weight"].double() + torch.from_numpy(update)
        assert after[f"{name}.weight"].dtype == torch.bfloat16
        wrong = after[f"{name}.weight"] != exact.to(torch.bfloat16)
        assert float(wrong.float().mean()) < 1e-3  # float32 in between: next to a tie now and then


def classifier(folder: Path) -> Any:
    """A RoBERTa with three classes, saved to a folder."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = RobertaConfig(vocab_size=VOCABULARY, max_position_embeddings=CONTEXT + 2, num_labels=3, **sizes)
    model = RobertaForSequenceClassification(config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data *= 6  # the stock start is so small that nothing in it matters
    model.save_pretrained(folder)
    return model


def classes(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=token_ids()).logits
    return found


def test_a_state_dict_of_loralib_serves_and_merges(tmp_path: Path) -> None:
    """Factors on queries and values and a head that trained with them, as the authors of LoRA save them."""
    model = classifier(tmp_path / "base")
    state: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.endswith(("query", "value")):
                a, b = (torch.randn(s, generator=generator) * 0.2 for s in ((4, 48), (48, 4)))
                state[f"{name}.lora_A"], state[f"{name}.lora_B"] = a, b
                module.weight += 8 / 4 * b @ a
        for name, parameter in model.named_parameters():
            if name.startswith("classifier."):
                parameter += torch.randn(parameter.shape, generator=generator) * 0.1
                state[name] = parameter.clone()
    torch.save(state, tmp_path / "lora.bin")
    expected = classes(model)
    assert cli("merge-adapter", tmp_path / "base", tmp_path / "lora.bin", "-o", tmp_path / "m", "--alpha", 8).code == 0
    merged = RobertaForSequenceClassification.from_pretrained(tmp_path / "m").eval()
    assert far(classes(merged), expected) < 1e-5
    made = cli("lora", "resize", tmp_path / "lora.bin", "-o", tmp_path / "peft", "--alpha", 8, "--error", 0)
    assert made.code == 0, made.err
    stock = RobertaForSequenceClassification.from_pretrained(tmp_path / "base")
    assert far(classes(PeftModel.from_pretrained(stock, tmp_path / "peft").eval()), expected) < 1e-5


@pytest.mark.slow
def test_a_killed_merge_goes_on(shelf: dict[str, Path], tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(shelf["llama"], base)
    shard(base, 60_000)
    source = trained(base, tmp_path / "source", target_modules=LLAMA)
    whole = tmp_path / "whole" / "merged"
    whole.parent.mkdir()
    merge(base, source, whole)
    killer, kills = Killer(), 0
    try:
        for when in ("torn", "after"):
            out = tmp_path / when / "merged"
            out.parent.mkdir()
            kills += len(list(killer.until_done("merge-adapter", base, source, "-o", out, when=when)))
            assert tree(out) == tree(whole)
            assert left_behind(out) == ["merged"]
        # An adapter that was changed in between is another run.
        out = tmp_path / "other" / "merged"
        out.parent.mkdir()
        killer(
            "merge-adapter",
            base,
            source,
            "-o",
            out,
            function="eckart.model.journal:Journal._append",
            call=3,
            when="after",
        )
        edit_tensors(
            source / "adapter_model.safetensors", lambda table: table.update({n: 2 * t for n, t in table.items()})
        )
        assert "unfinished run with another adapter" in killer("merge-adapter", base, source, "-o", out).sentence
    finally:
        killer.close()
    assert kills > 6


# ---- the command line -------------------------------------------------------------------------------------------------


def test_commands_say_what_they_did(shelf: dict[str, Path], tmp_path: Path) -> None:
    model = shelf["llama"]
    one = trained(model, tmp_path / "one", target_modules=LLAMA)
    two = trained(model, tmp_path / "two", seed=2, target_modules=["q_proj", "o_proj"])
    table = json.loads(cli("lora", "resize", one, "-o", tmp_path / "a", "--rank", 2, "--uniform", "--json").out)
    assert {entry["rank"] for entry in table["modules"].values()} == {2}
    assert {entry["rank_before"] for entry in table["modules"].values()} == {RANK}
    assert table["bytes"] == (tmp_path / "a" / "adapter_model.safetensors").stat().st_size
    shown = cli("lora", "resize", one, "-o", tmp_path / "b", "--error", 0.5)
    assert shown.code == 0, shown.err
    assert "6 -> " in shown.out
    assert "1.0000" in shown.out
    rows = json.loads(cli("lora", "inspect", one, "--base", model, "--leading", 3, "--json").out)["layers"]
    assert len(rows) == 9
    assert all(len(row["cosines"]) == 3 and len(row["singular_values"]) == RANK for row in rows)
    shown = cli("lora", "inspect", one, "--base", model)
    assert shown.code == 0, shown.err
    assert "of 10" in shown.out
    assert cli("lora", "inspect", one / "adapter_model.safetensors").out == cli("lora", "inspect", one).out
    both = cli("lora", "add", one, two, "-o", tmp_path / "c", "--weights", "0.5,0.5", "--rank", 4, "--json")
    assert {entry["rank"] for entry in json.loads(both.out)["modules"].values()} == {4}
    assert cli("lora", "add", one, two, "-o", tmp_path / "d").code == 0
    merged = cli("merge-adapter", model, tmp_path / "d", "-o", tmp_path / "e", "--json")
    assert json.loads(merged.out) == {"folder": str(tmp_path / "e")}
    back = cli("lora", "extract", model, tmp_path / "e", "-o", tmp_path / "f", "--energy", 0.9999)
    assert back.code == 0, back.err
    found = read(tmp_path / "f")
    assert found.layers.keys() == read(tmp_path / "d").layers.keys()
    assert max(found.ranks.values()) <= 2 * RANK
    files = cli(
        "lora", "extract", model / "model.safetensors", tmp_path / "e" / "model.safetensors", "-o", tmp_path / "g",
        "--rank", 2, "--only", "q_proj", "--json",
    )  # fmt: skip
    table = json.loads(files.out)
    assert len(table["modules"]) == 3
    assert len(table["left"]) == 9


Spoil = Callable[[Path], object]


def _config(**entries: object) -> Spoil:
    return lambda folder: edit_json(folder / "adapter_config.json", lambda table: table.update(entries))


def _tensors(change: Callable[[dict[str, Tensor]], object]) -> Spoil:
    return lambda folder: edit_tensors(folder / "adapter_model.safetensors", lambda table: (change(table), None)[1])


Q0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
BAD: dict[str, tuple[Spoil, str]] = {
    "no config": (
        lambda f: (f / "adapter_config.json").unlink(),
        "adapter_config.json is missing: .* no adapter directory",
    ),
    "no tensors": (lambda f: (f / "adapter_model.safetensors").unlink(), "adapter_model.safetensors is missing"),
    "not json": (lambda f: (f / "adapter_config.json").write_text("{"), "is not valid JSON"),
    "another kind": (_config(peft_type="IA3"), "peft_type 'IA3': only LORA"),
    "no kind": (_config(peft_type=None), "peft_type None: only LORA"),
    "taken": (_config(init_lora_weights="pissa_niter_4"), "a base from which something was taken"),
    "repeated layers": (_config(layer_replication=[[0, 2]]), "layer_replication .it repeats layers"),
    "rank 0": (_config(r=0), "the rank of .* is 0"),
    "rank as text": (_config(r="8"), "the rank of .* is '8'"),
    "another rank": (_config(r=4), "says that .* has rank 4, but its tensors have rank 6: restore"),
    "alpha as text": (_config(lora_alpha="much"), "lora_alpha of .* is 'much'"),
    "pattern": (_config(rank_pattern={"(": 3}), "a pattern that can't be read"),
    "pattern table": (_config(rank_pattern=[3]), "rank_pattern is no table"),
    "nan": (_tensors(lambda t: t[f"{Q0}A.weight"].fill_(float("nan"))), "lora_A.weight holds NaN or infinity"),
    "half": (_tensors(lambda t: t.pop(f"{Q0}B.weight")), "q_proj has only one of its two factors"),
    "shapes": (
        _tensors(lambda t: t.update({f"{Q0}B.weight": torch.ones(48, 5)})),
        r"A and B of the shapes \[6, 48\] and \[48, 5\]",
    ),
    "extra": (
        _tensors(lambda t: t.update({f"{Q0}B.bias": torch.ones(48)})),
        "lora_B.bias is no factor of a plain LoRA",
    ),
    "integers": (
        _tensors(lambda t: t.update({f"{Q0}B.weight": torch.ones(48, 6).long()})),
        "no floating-point numbers",
    ),
    "nothing": (_tensors(lambda t: t.clear()), "holds no lora_A and lora_B"),
    "truncated": (lambda f: _cut(f / "adapter_model.safetensors"), "it may be truncated or damaged"),
}


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.fixture(scope="module")
def good(shelf: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(shelf["llama"], tmp_path_factory.mktemp("good") / "adapter", target_modules=LLAMA)


@pytest.mark.parametrize("case", BAD)
def test_bad_adapters_are_refused(case: str, good: Path, tmp_path: Path) -> None:
    spoil, sentence = BAD[case]
    folder = tmp_path / "adapter"
    shutil.copytree(good, folder)
    spoil(folder)
    out = tmp_path / "out"
    told = refused("lora", "resize", folder, "-o", out, "--rank", 2, out=out)
    with pytest.raises(AssertionError, match=sentence):
        raise AssertionError(told)


def test_bad_options_are_refused(good: Path, shelf: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"

    def told(*arguments: object) -> str:
        return refused("lora", *arguments, "-o", out, out=out)

    assert told("resize", good, "--rank", 0) == "--rank is 0: give at least 1"
    assert told("resize", good, "--energy", 1.5).startswith("--energy is 1.5: give a share")
    assert told("resize", good, "--error", 1.0).startswith("--error is 1: give a share")
    assert told("resize", good).startswith("give one of --rank, --energy, --error and --bytes")
    assert told("resize", good, "--rank", 2, "--error", 0.1).startswith("give one of")
    assert "rank 1 for each of the 9 modules takes" in told("resize", good, "--bytes", "1kB")
    assert "does not exist: name a PEFT directory" in told("resize", tmp_path / "none", "--rank", 1)
    assert "leave --alpha out" in told("resize", good, "--rank", 1, "--alpha", 3)
    assert "gives 3 numbers for 1 adapters" in told("add", good, "--weights", "1,2,3")
    assert "--weights is 'a'" in told("add", good, "--weights", "a")
    assert "named twice" in told("add", good, good)
    assert "no linear map differs" in told("extract", shelf["llama"], shelf["llama"], "--rank", 1)
    assert "is a llama and" in told("extract", shelf["llama"], shelf["gpt2"], "--rank", 1)
    file = shelf["llama"] / "model.safetensors"
    text = calibration_text(tmp_path / "text.txt")
    assert "leave --calibration out" in told("extract", file, file, "--rank", 1, "--calibration", text)
    missing = tmp_path / "none.txt"
    assert "none.txt cannot be read" in told(
        "extract", shelf["llama"], shelf["llama"], "--rank", 1, "--calibration", missing
    )
    (tmp_path / "text.bin").write_text("no tensors")
    assert "text.bin is no file of tensors" in told("resize", tmp_path / "text.bin", "--rank", 1)
    torch.save([1, 2], tmp_path / "list.bin")
    assert "holds something else than tensors by name" in told("resize", tmp_path / "list.bin", "--rank", 1)
    assert "holds no lora_A and lora_B" in told("resize", file, "--rank", 1, "--alpha", 1)
    work = work_folder(out)
    work.mkdir()
    (work / "journal.jsonl").touch()
    assert "an unfinished run of another command" in told("resize", good, "--rank", 1)
    shutil.rmtree(work)
    out.mkdir()
    (out / "file").touch()
    assert "is not empty" in told("resize", good, "--rank", 1)
    assert "--leading is 0" in refused("lora", "inspect", good, "--base", shelf["llama"], "--leading", 0)
    assert "--threshold is 0" in refused("lora", "inspect", good, "--base", shelf["llama"], "--threshold", 0)


def test_adapters_of_other_models_are_refused(good: Path, shelf: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"

    def told(model: Path, adapter: Path) -> str:
        return refused("merge-adapter", model, adapter, "-o", out, out=out)

    assert "has no module model.layers.0" in told(shelf["gpt2"], good)
    wide = variant("llama", tmp_path / "wide", hidden_size=64)
    assert "but the adapter changes a map of" in told(wide, good)
    shallow = variant("llama", tmp_path / "shallow", num_hidden_layers=2)
    assert "near are model.layers." in told(shallow, good)
    table = dict(Adapter({"model.embed_tokens": Layer(torch.ones(300, 1), torch.ones(1, 48))}).layers)
    write(Adapter(table), tmp_path / "linear")
    assert "an embedding in" in told(shelf["llama"], tmp_path / "linear")
    write(Adapter(read(good).layers, {"lm_head.weight": torch.ones(400, 48)}), tmp_path / "longer")
    assert "lm_head.weight is [300, 48]" in told(shelf["llama"], tmp_path / "longer")
    for method, way in (("eckart", "eckart densify"), ("gptq", "quantised ('gptq')")):
        copy = tmp_path / method
        shutil.copytree(shelf["llama"], copy)
        edit_json(
            copy / "config.json", lambda t, m=method: t.update(quantization_config={"quant_method": m, "modules": {}})
        )
        assert way in told(copy, good)
    broken = tmp_path / "broken"
    shutil.copytree(shelf["llama"], broken)
    edit_tensor(broken, "model.layers.0.self_attn.q_proj.weight", lambda w: w.fill_(float("nan")))
    assert "q_proj.weight holds NaN" in told(broken, good)


def test_magnitude_vectors_are_no_sum(shelf: dict[str, Path], good: Path, tmp_path: Path) -> None:
    dora = read(trained(shelf["llama"], tmp_path / "dora", target_modules=LLAMA, use_dora=True))
    with pytest.raises(EckartError, match=r"resize: model\.layers\.0\..*_proj has a magnitude vector \(DoRA\)"):
        resize(dora, ToRank(1))
    with pytest.raises(EckartError, match=r"dora: .* has a magnitude vector"):
        combine({"good": read(good), "dora": dora})
    assert all(row.has_lengths for row in look(dora))


def test_adapters_that_do_not_go_together() -> None:
    one = Adapter({"q": Layer(torch.ones(3, 1), torch.ones(1, 4))}, {"head.weight": torch.ones(2)})
    with pytest.raises(EckartError, match="q is a linear map of 3 x 4 in one, but a linear map of 3 x 5 in two"):
        combine({"one": one, "two": Adapter({"q": Layer(torch.ones(3, 1), torch.ones(1, 5))})})
    with pytest.raises(EckartError, match=r"head\.weight trained as a whole in one and in two, and differently"):
        combine({"one": one, "two": Adapter(one.layers, {"head.weight": torch.zeros(2)})})
    assert combine({"one": one, "two": one}).others.keys() == {"head.weight"}


# ---- real adapters and tuned models -----------------------------------------------------------------------------------


@pytest.mark.data
def test_a_trained_adapter_against_numpy(data_dir: Path, tmp_path: Path) -> None:
    """RoBERTa on MNLI, by the authors of LoRA: 24 maps of rank 8, and the head that trained with them."""
    folder = data_dir / "lora_roberta_base_mnli"
    file = folder / "roberta_base_lora_mnli.safetensors"
    told = refused("lora", "resize", file, "-o", tmp_path / "out", "--rank", 4, out=tmp_path / "out")
    assert "does not say what alpha is" in told
    found, pickled = read(file, alpha=16), read(folder / "roberta_base_lora_mnli.bin", alpha=16)
    assert len(found.layers) == 24
    assert {(layer.shape, layer.rank, layer.scale) for layer in found.layers.values()} == {((768, 768), 8, 2.0)}
    assert sorted(found.others) == sorted(pickled.others)
    made = resize(found, ToRank(4))
    rows = {row.name: row for row in look(found)}
    for name in list(found.layers)[::9]:
        layer = found.layers[name]
        assert torch.equal(layer.left, pickled.layers[name].left)
        dense = 2.0 * (layer.left.double() @ layer.right.double()).numpy()
        s = np.linalg.svd(dense, compute_uv=False)
        assert rows[name].spectrum.values[:8].tolist() == pytest.approx(s[:8].tolist(), rel=1e-9)
        assert far(made.adapter.layers[name].update.dense(), torch.from_numpy(truncated(dense, 4))) < 1e-5
        assert made.bounds[name].achieved == pytest.approx(float(np.sqrt((s[4:] ** 2).sum())), rel=1e-6)
    write(made.adapter, tmp_path / "peft")
    again = read(tmp_path / "peft")
    assert set(again.ranks.values()) == {4}
    assert again.others.keys() == found.others.keys()


@pytest.mark.data
def test_extraction_follows_the_eckart_young_curve(data_dir: Path, tmp_path: Path) -> None:
    """A character model and what full training on another text made of it."""
    folder = data_dir / "gpt_base_finetuned_pair"
    base, tuned = (load_file(folder / name) for name in ("base.safetensors", "finetuned_audi.safetensors"))
    maps = {
        name: Map(name.removesuffix(".weight"))
        for name, tensor in base.items()
        if tensor.ndim == 2 and name.startswith("blocks.")
    }
    tails = {}
    for name in maps:
        s = np.linalg.svd((tuned[name].double() - base[name].double()).numpy(), compute_uv=False)
        tails[name.removesuffix(".weight")] = np.sqrt(np.append(np.cumsum(s[::-1] ** 2)[::-1], 0.0))
    for rank in (1, 4, 8, 12):
        found = differences(base, tuned, ToRank(rank), maps)
        assert found.adapter.layers.keys() == tails.keys()
        for name, bound in found.bounds.items():
            assert bound.achieved == pytest.approx(tails[name][rank], rel=1e-5)
            assert bound.lower == pytest.approx(tails[name][rank], rel=1e-9)
            weight = tuned[f"{name}.weight"].double() - base[f"{name}.weight"].double()
            left = weight - found.adapter.layers[name].update.dense()
            assert float(left.norm()) == pytest.approx(tails[name][rank], rel=1e-5)
        assert {"token_embedding.weight", "ln_final.weight", "lm_head.bias"} <= {entry.name for entry in found.left}
    kept = 1 - (tails["blocks.0.ff.net.0"][8] / tails["blocks.0.ff.net.0"][0]) ** 2
    assert kept == pytest.approx(0.36, abs=0.01)  # as the data's own notes have it
    budget = 120_000
    found = differences(base, tuned, ToBytes(budget), maps)
    write(found.adapter, tmp_path / "adapter")
    assert 0.99 * budget < (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size <= budget
