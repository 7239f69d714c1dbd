"""Heads that share their weights, from checkpoint to checkpoint: which do, what is stored, and the same copied by hand."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import ARCHITECTURES, VOCABULARY, shard, write_model
from outputs import far, loaded, logits
from runs import CALIBRATED, calibration_text, cli, edit_json, edit_tensor, edit_tensors, file_of, refused
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.models.llama import LlamaConfig

import eckart
from eckart.allocate import Uniform
from eckart.bonds.heads import CosineOfKeys, Match, heads_of, roots
from eckart.errors import EckartError
from eckart.model.certificate import Certificate
from eckart.model.graph import bond_graph
from eckart.model.linear import OperatorLinear
from eckart.operator import Stacked

DECLARED = ("llama", "llama_tied", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gpt2", "gpt_neox", "opt", "phi")
BIASED = ("qwen2", "gpt2", "gpt_neox", "opt", "phi")
SIDES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")


@pytest.fixture
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return ARCHITECTURES[request.param](tmp_path / "model")


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return ARCHITECTURES["llama"](tmp_path / "model")


def share(model: Path, out: Path, keep: float) -> eckart.Compressed:
    return eckart.compress(model, out, recipe="head-sharing", keep=keep)


def place(head: str) -> tuple[int, int]:
    """Block and number of a head by its name."""
    parts = head.split(".")
    return int(parts[-3]), int(parts[-1])


def modules(folder: Path) -> dict[str, Any]:
    table: dict[str, Any] = json.loads((folder / "config.json").read_text())["quantization_config"]["modules"]
    return table


# ---- heads by hand ----------------------------------------------------------------------------------------------------


def slices(model: Any, block: int, group: int) -> Iterator[tuple[Tensor, int, slice]]:
    """The entries that a group of heads has of the weights and biases of a stock model: tensor, axis, places; queries and keys first."""
    config, kind = model.config, model.config.model_type
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    many = heads // groups

    def part(number: int, times: int = 1, start: int = 0) -> slice:
        return slice(start + number * size * times, start + (number + 1) * size * times)

    if kind == "gpt2":
        attention = model.transformer.h[block].attn
        for third in range(3):
            for tensor in (attention.c_attn.weight, attention.c_attn.bias):
                yield tensor, tensor.ndim - 1, part(group, start=third * heads * size)
        yield attention.c_proj.weight, 0, part(group)
        return
    if kind == "gpt_neox":
        attention = model.gpt_neox.layers[block].attention
        for third in range(3):
            for tensor in (attention.query_key_value.weight, attention.query_key_value.bias):
                yield tensor, 0, part(third, start=group * 3 * size)
        yield attention.dense.weight, 1, part(group)
        return
    layers = model.model.decoder.layers if kind == "opt" else model.model.layers
    attention = layers[block].self_attn
    for side, times in (("q_proj", many), ("k_proj", 1), ("v_proj", 1)):
        linear = attention.get_submodule(side)
        for tensor in (linear.weight, linear.bias):
            if tensor is not None:
                yield tensor, 0, part(group, times)
    out = getattr(attention, {"opt": "out_proj", "phi": "dense"}.get(kind, "o_proj"))
    yield out.weight, 1, part(group, many)


@torch.no_grad()
def copied(stock: Any, pairs: Mapping[str, str]) -> Any:
    """A stock model whose heads hold the blocks that others have in the original."""
    made = copy.deepcopy(stock)
    for mine, theirs in pairs.items():
        for (tensor, axis, to), (source, _, at) in zip(
            slices(made, *place(mine)), slices(stock, *place(theirs)), strict=True
        ):
            tensor.movedim(axis, 0)[to] = source.movedim(axis, 0)[at]
    return made


def flattened(stock: Any, block: int, group: int) -> np.ndarray[Any, Any]:
    """Queries and keys of a head in one vector."""
    parts = [t.detach().movedim(axis, 0)[at] for t, axis, at in slices(stock, block, group) if t.ndim == 2]
    return np.concatenate([part.double().numpy().ravel() for part in parts[:2]])


# ---- which heads share, and what they compute -------------------------------------------------------------------------


@pytest.mark.parametrize("model", DECLARED, indirect=True)
@pytest.mark.parametrize("keep", [0.93, 0.85])
def test_the_result_is_the_original_with_blocks_copied_by_hand(model: Path, keep: float, tmp_path: Path) -> None:
    done = share(model, tmp_path / "out", keep)
    stock, made = loaded(model), loaded(tmp_path / "out")
    expected = logits(copied(stock, {head.name: head.root for head in done.heads}))
    assert far(logits(made), expected) < 1e-5
    assert far(expected, logits(stock)) > 1e-2
    before, after = done.target_bytes
    assert after <= keep * before
    one = (before - after) // len(done.heads)
    assert after + one > keep * before  # with one head less it would be too much
    stored = load_file(tmp_path / "out" / "model.safetensors")
    old = load_file(model / "model.safetensors")
    assert sum(t.nbytes for t in old.values()) - sum(t.nbytes for t in stored.values()) == before - after
    assert done.file_bytes[1] == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert sum(matrix.bytes for matrix in done.matrices) == sum(
        stored[name].nbytes for name in stored if name not in old or stored[name].shape != old[name].shape
    )


@pytest.mark.parametrize("model", DECLARED, indirect=True)
def test_those_most_like_an_earlier_head_share(model: Path, tmp_path: Path) -> None:
    done = share(model, tmp_path / "out", 0.85)
    stock = loaded(model)
    count = getattr(stock.config, "num_key_value_heads", None) or stock.config.num_attention_heads
    rows = {
        (block, group): flattened(stock, block, group)
        for block in range(stock.config.num_hidden_layers)
        for group in range(count)
    }
    best: dict[tuple[int, int], tuple[float, tuple[int, int]]] = {}
    for mine, a in rows.items():
        earlier = [theirs for theirs in rows if theirs[0] < mine[0]]
        if earlier:
            cosines = [float(a @ rows[o] / np.sqrt((a @ a) * (rows[o] @ rows[o]))) for o in earlier]
            best[mine] = max(zip(cosines, earlier, strict=True))
    top = sorted(best, key=lambda head: -best[head][0])[: len(done.heads)]
    assert {place(head.name) for head in done.heads} == set(top)
    for head in done.heads:
        likeness, match = best[place(head.name)]
        assert place(head.match) == match
        assert head.likeness == pytest.approx(likeness, abs=1e-9)
        while match in top:
            match = best[match][1]
        assert place(head.root) == match


@pytest.mark.parametrize("keep", [0.95, 0.9])
def test_equal_heads_are_shared_first_and_lose_nothing(llama: Path, keep: float, tmp_path: Path) -> None:
    """Two copies of one head, in two blocks."""
    pairs = {"model.layers.2.heads.1": "model.layers.0.heads.0", "model.layers.1.heads.0": "model.layers.0.heads.0"}
    copied(loaded(llama), pairs).save_pretrained(llama)
    done = share(llama, tmp_path / "out", keep)
    found = {head.name: head.root for head in done.heads}
    assert found.items() <= pairs.items()
    assert len(found) == {0.95: 1, 0.9: 2}[keep]
    assert all(head.likeness == 1.0 for head in done.heads)
    assert all(head.match == head.root for head in done.heads)  # of two that are equally like it the earlier
    assert all(bound.achieved == 0.0 for matrix in done.matrices for bound in matrix.bounds)
    assert torch.equal(logits(loaded(eckart.densify(tmp_path / "out", tmp_path / "dense"))), logits(loaded(llama)))
    assert far(logits(loaded(tmp_path / "out")), logits(loaded(llama))) < 1e-5


def near(model: Path, chain: list[str]) -> None:
    """Make each head of a chain nearly the one before it, the later ones the nearer."""
    stock = loaded(model)
    for step, (theirs, mine) in enumerate(pairwise(chain)):
        stock = copied(stock, {mine: theirs})
        with torch.no_grad():
            for tensor, axis, at in slices(stock, *place(mine)):
                part = tensor.movedim(axis, 0)[at]
                part.add_(torch.randn(part.shape, generator=torch.Generator().manual_seed(step)), alpha=0.1 / 4**step)
    stock.save_pretrained(model)


def test_chains_lead_to_their_roots(llama: Path, tmp_path: Path) -> None:
    chain = ["model.layers.0.heads.1", "model.layers.1.heads.0", "model.layers.2.heads.0"]
    near(llama, chain)
    first, second, third = chain
    whole = share(llama, tmp_path / "both", 0.9)
    assert {head.name: (head.match, head.root) for head in whole.heads} == {
        second: (first, first),
        third: (second, first),
    }
    stock = loaded(llama)
    by_hand = copied(stock, {second: first, third: first})
    assert far(logits(loaded(tmp_path / "both")), logits(by_hand)) < 1e-5
    # The match of one that keeps its own weights is the root.
    single = share(llama, tmp_path / "single", 0.95)
    assert [(head.name, head.match, head.root) for head in single.heads] == [(third, second, second)]
    assert far(logits(loaded(tmp_path / "single")), logits(copied(stock, {third: second}))) < 1e-5


def test_roots_of_long_chains() -> None:
    matches = {i: Match(i - 1, 0.5) for i in range(1, 6)}
    assert roots(matches, [5, 3, 4, 1]) == {1: 0, 3: 2, 4: 2, 5: 2}


def test_a_head_of_zeros_is_like_no_other(llama: Path, tmp_path: Path) -> None:
    for side in SIDES[:2]:
        edit_tensor(llama, f"model.layers.1.{side}.weight", torch.zeros_like)
    likeness = {head.name: head.likeness for head in share(llama, tmp_path / "out", 0.78).heads}
    assert likeness["model.layers.1.heads.0"] == likeness["model.layers.1.heads.1"] == 0.0


# ---- one storage ------------------------------------------------------------------------------------------------------


def check_one_storage(model: nn.Module, folder: Path) -> int:
    """Every tensor that the config calls shared is one parameter with its source; how many there are."""
    count = 0
    for name, entry in modules(folder).items():
        module = model.get_submodule(name)
        for side, source in entry.get("shared", {}).items():
            mine = module.get_parameter("weight" if side == module.layout[0] else side)
            assert mine is model.get_parameter(source)
            assert mine.data_ptr() == model.get_parameter(source).data_ptr()
            count += 1
    assert len({p.data_ptr() for p in model.parameters()}) == len(list(model.parameters()))
    return count


def same_state(one: nn.Module, other: nn.Module) -> None:
    left, right = one.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


@pytest.mark.parametrize("model", ["llama", "llama_tied", "gpt2", "qwen2"], indirect=True)
def test_shared_heads_are_one_tensor_through_saving_and_loading(model: Path, tmp_path: Path) -> None:
    done = share(model, tmp_path / "out", 0.87)
    made = loaded(tmp_path / "out")
    count = check_one_storage(made, tmp_path / "out")
    assert count == 4 * len(done.heads)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert len(weights) == len(made.state_dict()) - count - ("lm_head.weight" not in weights)
    made.save_pretrained(tmp_path / "whole")
    made.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert load_file(tmp_path / "whole" / "model.safetensors").keys() == weights.keys()
    for folder in (tmp_path / "whole", tmp_path / "shards"):
        again = loaded(folder)
        same_state(made, again)
        assert modules(folder) == modules(tmp_path / "out")
        check_one_storage(again, folder)
        assert torch.equal(logits(again), logits(made))
        dense = eckart.densify(folder, folder / "dense")
        assert far(logits(loaded(dense)), logits(made)) < 1e-5
    twin = copy.deepcopy(made)
    check_one_storage(twin, tmp_path / "out")
    twin.tie_weights()
    twin.to(torch.bfloat16)
    check_one_storage(twin, tmp_path / "out")
    made.tie_weights()
    check_one_storage(made, tmp_path / "out")
    same_state(made, loaded(tmp_path / "out"))


def test_a_step_moves_a_shared_head_once_for_all_who_use_it(llama: Path, tmp_path: Path) -> None:
    share(llama, tmp_path / "out", 0.87)
    made = loaded(tmp_path / "out").train()
    ids = torch.randint(3, VOCABULARY, (2, 16), generator=torch.Generator().manual_seed(1))
    before = made(input_ids=ids, labels=ids).loss
    before.backward()
    torch.optim.SGD(made.parameters(), lr=1e-4).step()
    assert made(input_ids=ids, labels=ids).loss < before
    assert check_one_storage(made, tmp_path / "out")


def many(folder: Path, **settings: Any) -> Path:
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3} | settings
    return write_model(LlamaConfig, sizes, folder)


@pytest.mark.parametrize("tied", [False, True])
def test_names_that_begin_alike_are_not_taken_for_each_other(tied: bool, tmp_path: Path) -> None:
    """In one module ``blocks_1`` is another's, and ``blocks_10`` is what others are."""
    model = many(tmp_path / "model", num_attention_heads=12, tie_word_embeddings=tied, attention_bias=True)
    pairs = {f"model.layers.1.heads.{i}": f"model.layers.0.heads.{i}" for i in range(10)}
    first = copied(loaded(model), pairs)
    later = {f"model.layers.2.heads.{i}": "model.layers.1.heads.10" for i in (3, 7)}
    copied(first, later).save_pretrained(model)
    share(model, tmp_path / "out", 0.8667)
    entry = modules(tmp_path / "out")["model.layers.1.self_attn.q_proj"]
    assert "blocks_1" in entry["shared"]
    assert "blocks_10" not in entry["shared"]
    made = loaded(tmp_path / "out")
    assert far(logits(made), logits(loaded(model))) < 1e-5
    made.tie_weights()
    assert check_one_storage(made, tmp_path / "out") == 48
    made.save_pretrained(tmp_path / "again")
    assert (
        load_file(tmp_path / "again" / "model.safetensors").keys()
        == load_file(tmp_path / "out" / "model.safetensors").keys()
    )
    same_state(loaded(tmp_path / "again"), made)


def test_where_only_first_heads_are_shared_the_head_stays_tied(tmp_path: Path) -> None:
    """All that is tied is called ``weight``."""
    model = many(tmp_path / "model", num_attention_heads=4, tie_word_embeddings=True)
    copied(loaded(model), {"model.layers.2.heads.0": "model.layers.0.heads.0"}).save_pretrained(model)
    share(model, tmp_path / "out", 0.97)
    assert {side for entry in modules(tmp_path / "out").values() for side in entry.get("shared", {})} == {
        "blocks_0",
        "of_blocks_0",
    }
    made = loaded(tmp_path / "out")
    made.tie_weights()
    assert check_one_storage(made, tmp_path / "out") == 4
    assert made.lm_head.weight is made.model.embed_tokens.weight
    made.save_pretrained(tmp_path / "again")
    same_state(loaded(tmp_path / "again"), made)


@pytest.mark.parametrize("model", BIASED, indirect=True)
def test_biases_go_with_the_weights_and_keep_their_length(model: Path, tmp_path: Path) -> None:
    done = share(model, tmp_path / "out", 0.87)
    made = loaded(tmp_path / "out")
    made.tie_weights()
    expected = copied(loaded(model), {head.name: head.root for head in done.heads})
    changed = 0
    for name in modules(tmp_path / "out"):
        bias = expected.get_submodule(name).bias
        held = made.get_submodule(name).bias
        assert (bias is None) == (held is None)
        if bias is not None:
            assert torch.equal(held, bias)
            changed += not torch.equal(bias, loaded(model).get_submodule(name).bias)
    assert changed


# ---- without eckart, dense again, looked at ---------------------------------------------------------------------------

STRANGER = """
import sys
sys.modules["eckart"] = None
from transformers import AutoModelForCausalLM
for folder in sys.argv[1:]:
    try:
        AutoModelForCausalLM.from_pretrained(folder)
        print("loaded")
    except RuntimeError as error:
        print("mismatch" if "mismatch" in str(error) else error)
"""


def test_without_eckart_nothing_is_loaded(tmp_path: Path) -> None:
    """Not even where whole maps are shared: one group of keys, or a single head."""
    folders = []
    for name, heads, groups in (("grouped", 4, 2), ("one group", 4, 1), ("one head", 1, 1)):
        model = many(tmp_path / name, num_attention_heads=heads, num_key_value_heads=groups)
        done = share(model, tmp_path / f"{name} out", 0.87)
        expected = copied(loaded(model), {head.name: head.root for head in done.heads})
        assert far(logits(loaded(tmp_path / f"{name} out")), logits(expected)) < 1e-5
        folders += [model, tmp_path / f"{name} out"]
        loaded(tmp_path / f"{name} out").save_pretrained(tmp_path / f"{name} again")
        folders.append(tmp_path / f"{name} again")
    ran = subprocess.run(
        [sys.executable, "-c", STRANGER, *map(str, folders)], capture_output=True, text=True, check=True
    )
    assert ran.stdout.split("\n")[:-1] == ["loaded", "mismatch", "mismatch"] * 3


def stored_names(folder: Path) -> set[str]:
    return set(json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"])


@pytest.mark.parametrize("model", ["llama", "gpt2", "qwen2"], indirect=True)
@pytest.mark.parametrize("sharded", [False, True])
def test_dense_again_it_is_a_stock_checkpoint_with_copies(model: Path, sharded: bool, tmp_path: Path) -> None:
    if sharded:
        shard(model, 20_000)
    done = share(model, tmp_path / "out", 0.84)
    dense = eckart.densify(tmp_path / "out", tmp_path / "dense")
    assert "quantization_config" not in json.loads((dense / "config.json").read_text())
    expected = copied(loaded(model), {head.name: head.root for head in done.heads})
    same_state(loaded(dense), expected)
    if sharded:  # what stores anything itself stays in its file
        before, after = (
            json.loads((f / "model.safetensors.index.json").read_text())["weight_map"] for f in (model, dense)
        )
        there = {name.rpartition(".")[0] for name in stored_names(tmp_path / "out") if not name.endswith(".bias")}
        stay = [name for name in before if name.endswith(".bias") or name.rpartition(".")[0] in there]
        assert len(stay) > len(before) // 2
        assert [name for name in stay if before[name] != after[name]] == []
    assert not any(isinstance(module, OperatorLinear) for module in loaded(dense).modules())


def test_what_is_shared_is_counted_where_it_is_stored(llama: Path, tmp_path: Path) -> None:
    done = share(llama, tmp_path / "out", 0.87)
    rows = {row.name: row for row in eckart.inspect(tmp_path / "out").rows}
    recorded = {matrix.name: matrix for matrix in done.matrices}
    assert {rows[name].operator for name in recorded} == {"stacked", "transposed"}
    for name, matrix in recorded.items():
        assert (rows[name].bytes, rows[name].operator, rows[name].shape) == (
            matrix.bytes,
            matrix.operator,
            matrix.shape,
        )
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert sum(row.bytes for row in rows.values()) == sum(t.nbytes for t in weights.values() if t.ndim == 2)
    assert "transposed" in cli("inspect", tmp_path / "out").out


def test_records_hold_the_error_of_every_map_in_plain_norms(llama: Path, tmp_path: Path) -> None:
    done = share(llama, tmp_path / "out", 0.87)
    made, stock = loaded(tmp_path / "out"), loaded(llama)
    assert {matrix.name for matrix in done.matrices} == modules(tmp_path / "out").keys()
    for matrix in done.matrices:
        old = stock.get_submodule(matrix.name).weight.detach().double()
        operator = made.get_submodule(matrix.name).operator
        assert isinstance(operator if matrix.operator == "stacked" else operator.T, Stacked)
        error = operator.dense().detach().double() - old
        frobenius, spectral = matrix.bounds
        assert (frobenius.lower, spectral.lower) == (None, None)
        assert frobenius.achieved == pytest.approx(float(error.norm()), rel=1e-9)
        assert spectral.achieved == pytest.approx(float(torch.linalg.matrix_norm(error, 2)), rel=1e-9)
    quick = eckart.compress(llama, tmp_path / "quick", recipe="head-sharing", keep=0.87, quick=True)
    assert all([bound.norm for bound in matrix.bounds] == ["frobenius"] for matrix in quick.matrices)
    shown = cli("compress", llama, "-o", tmp_path / "shown", "--recipe", "head-sharing", "--keep", "0.87").out
    assert "takes the weights of" in shown
    assert all(head.name in shown for head in done.heads)
    told = cli("compress", llama, "-o", tmp_path / "told", "--recipe", "head-sharing", "--keep", "0.87", "--json").out
    assert json.loads(told)["heads"] == [head.to_json() for head in done.heads]


@pytest.mark.parametrize("model", ["llama", "qwen2"], indirect=True)
def test_healed_it_shares_as_before_and_is_verified(model: Path, tmp_path: Path) -> None:
    """Training moves what is stored, and all who share it see that."""
    done = share(model, tmp_path / "out", 0.87)
    text = calibration_text(tmp_path / "text.txt", repeat=30)
    course = ("--steps", "6", "--rate", "0.001", "--window", "32", "--batch-tokens", "128")
    healed = tmp_path / "healed"
    ran = cli("heal", tmp_path / "out", "--teacher", model, "-o", healed, "--text", text, *course)
    assert ran.code == 0, ran.err
    assert modules(healed) == modules(tmp_path / "out")
    assert Certificate.read(healed).heads == done.heads
    assert check_one_storage(loaded(healed), healed) == 4 * len(done.heads)
    before, after = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", healed))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    told = eckart.verify(healed, model)
    assert told.failures == ()
    assert any("tensors that did not train" in skipped for skipped in told.not_rechecked)
    refusal = refused(
        "heal", tmp_path / "out", "--teacher", model, "-o", tmp_path / "lora", "--text", text, "--train", "lora"
    )
    assert "into which no LoRA merges" in refusal


def test_a_checkpoint_in_bfloat16_stays_in_bfloat16(tmp_path: Path) -> None:
    model = ARCHITECTURES["llama"](tmp_path / "model", dtype=torch.bfloat16)
    share(model, tmp_path / "out", 0.87)
    assert {t.dtype for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    assert eckart.verify(tmp_path / "out", model).failures == ()


def test_where_everything_may_stay_nothing_changes(llama: Path, tmp_path: Path) -> None:
    done = share(llama, tmp_path / "out", 1.0)
    assert (done.heads, done.matrices) == ((), ())
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    stored, old = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", llama))
    assert stored.keys() == old.keys()
    assert all(torch.equal(stored[name], old[name]) for name in old)
    assert eckart.verify(tmp_path / "out", llama).failures == ()


# ---- checked again ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ARCHITECTURES["llama"](tmp_path_factory.mktemp("ground") / "model")


@pytest.mark.parametrize("model", ["llama", "gpt2", "qwen2"], indirect=True)
def test_every_result_is_verified(model: Path, tmp_path: Path) -> None:
    done = share(model, tmp_path / "out", 0.87)
    told = eckart.verify(tmp_path / "out", model)
    assert told.failures == ()
    assert told.not_rechecked == ()
    assert told.checked["heads"] == len(done.heads) + 1
    assert told.checked["tensors made again"] == len(load_file(tmp_path / "out" / "model.safetensors"))
    assert cli("verify", tmp_path / "out").code == 0
    found = Certificate.read(tmp_path / "out")
    assert (found.heads, found.matrices) == (done.heads, done.matrices)


def other_source(table: dict[str, Any]) -> None:
    """Let one head be another than the one that it takes."""
    entries = table["quantization_config"]["modules"]
    shared = next(entry["shared"] for entry in entries.values() if "shared" in entry)
    side, source = next(iter(shared.items()))
    owner, _, _ = source.rpartition(".")
    shared[side] = source if source.endswith("weight") else f"{owner}.weight"
    shared[side] = shared[side] if shared[side] != source else f"{owner}.blocks_1"


Damage = Callable[[Path], object]
DAMAGES: Mapping[str, tuple[Damage, str]] = {
    "a head": (
        lambda f: edit_tensor(f, "model.layers.0.self_attn.q_proj.weight", lambda t: t + 1),
        "tensor model.layers.0.self_attn.q_proj.weight was changed",
    ),
    "whose weights": (
        lambda f: edit_json(f / "eckart.json", lambda t: t["heads"][0].update(root="model.layers.1.heads.0")),
        "its match, whose weights it takes, or how alike they are is not as recorded",
    ),
    "how alike": (
        lambda f: edit_json(f / "eckart.json", lambda t: t["heads"][1].update(likeness=0.99)),
        "its match, whose weights it takes, or how alike they are is not as recorded",
    ),
    "a head less": (
        lambda f: edit_json(f / "eckart.json", lambda t: t["heads"].pop()),
        "is recorded or shared, and not both",
    ),
    "a head twice": (
        lambda f: edit_json(f / "eckart.json", lambda t: t["heads"].append(t["heads"][0])),
        "a head is recorded twice",
    ),
    "a figure": (
        lambda f: edit_json(f / "eckart.json", lambda t: t["matrices"][-1]["bounds"][0].update(scale=9e9)),
        "scale is recorded as",
    ),
    "the config": (
        lambda f: edit_json(f / "config.json", other_source),
        "quantization_config is not what the recipe gives",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_was_changed_is_found(damage: str, ground: Path, tmp_path: Path) -> None:
    share(ground, tmp_path / "out", 0.87)
    harm, sentence = DAMAGES[damage]
    harm(tmp_path / "out")
    found = eckart.verify(tmp_path / "out", ground)
    assert any(sentence in failure for failure in found.failures), found.failures


@pytest.mark.parametrize("key", ["name", "match", "root", "likeness"])
@pytest.mark.parametrize("value", [None, [], math.nan])
def test_a_head_map_that_is_none_is_told(key: str, value: object, ground: Path, tmp_path: Path) -> None:
    share(ground, tmp_path / "out", 0.93)
    edit_json(tmp_path / "out" / "eckart.json", lambda table: table["heads"][0].update({key: value}))
    with pytest.raises(EckartError, match="is damaged or was edited"):
        Certificate.read(tmp_path / "out")


def missing(entry: dict[str, Any]) -> None:
    entry["shared"][next(iter(entry["shared"]))] = "model.layers.0.self_attn.q_proj.blocks_9"


def of_another_shape(entry: dict[str, Any]) -> None:
    entry["shared"][next(iter(entry["shared"]))] = "model.layers.0.self_attn.k_proj.weight"


def of_one_that_shares(entry: dict[str, Any]) -> None:
    side = next(iter(entry["shared"]))
    entry["shared"][side] = "model.layers.2.self_attn.q_proj." + ("weight" if side == "blocks_0" else side)


@pytest.mark.parametrize("change", [missing, of_another_shape, of_one_that_shares])
def test_a_config_that_shares_what_is_not_there_is_told(
    change: Callable[[dict[str, Any]], None], ground: Path, tmp_path: Path
) -> None:
    share(ground, tmp_path / "out", 0.87)
    entries = modules(tmp_path / "out")
    name = next(name for name, entry in entries.items() if "shared" in entry and name.endswith("2.self_attn.q_proj"))
    edit_json(tmp_path / "out" / "config.json", lambda t: change(t["quantization_config"]["modules"][name]))
    with pytest.raises(EckartError, match=r"config\.json says that .* which is no tensor of that shape that the model"):
        eckart.load(tmp_path / "out")


# ---- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--bytes", "1MB"), "takes a share: give --keep instead of --bytes"),
        (("--keep", "0.9", "--only", "q_proj"), "--only and --exclude name matrices, and this recipe shares heads"),
        (("--keep", "0.9", "--exclude", "q_proj"), "--only and --exclude name matrices, and this recipe shares heads"),
        (
            ("--keep", "0.5"),
            "where all heads share that may, those of all blocks but the first, 0.7778 of the bytes remain",
        ),
        (("--keep", "0.9", "--dry-run"), "leave --dry-run out"),
        (("--keep", "0.9", "--ranks", "uniform"), "there are no ranks to spread: leave --ranks out"),
    ],
)
def test_what_sharing_cannot_do(ground: Path, tmp_path: Path, options: tuple[str, ...], sentence: str) -> None:
    told = refused("compress", ground, "-o", tmp_path / "out", "--recipe", "head-sharing", *options, *CALIBRATED)
    assert sentence in told
    assert not (tmp_path / "out").exists()


def test_the_least_share_that_is_named_will_do(ground: Path, tmp_path: Path) -> None:
    done = share(ground, tmp_path / "out", 0.7778)
    assert {place(head.name)[0] for head in done.heads} == {1, 2}
    assert {place(head.root)[0] for head in done.heads} == {0}
    assert len(done.heads) == 4
    with pytest.raises(EckartError, match="leave --ranks out"):
        eckart.compress(ground, tmp_path / "more", recipe="head-sharing", keep=0.9, ranks=Uniform())


def test_an_architecture_that_is_not_declared_is_refused(tmp_path: Path) -> None:
    model = ARCHITECTURES["mixtral"](tmp_path / "model")
    with pytest.raises(EckartError, match="the architecture mixtral is not declared, so its heads are not known"):
        share(model, tmp_path / "out", 0.9)


def test_weights_that_are_no_plain_numbers_are_refused(llama: Path, tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.k_proj.weight"
    edit_tensor(llama, name, lambda t: t.to(torch.float8_e4m3fn))
    with pytest.raises(EckartError, match=f"{name} is no plain linear map, so that model.layers.1.heads.0 cannot"):
        share(llama, tmp_path / "out", 0.9)


def test_heads_of_another_dtype_are_not_taken(llama: Path, tmp_path: Path) -> None:
    def narrower(table: dict[str, Tensor]) -> None:
        for name in table:
            if name.startswith("model.layers.1.self_attn"):
                table[name] = table[name].to(torch.bfloat16)

    edit_tensors(file_of(llama, "model.norm.weight"), narrower)
    done = share(llama, tmp_path / "out", 0.9)
    assert {place(head.name)[0] for head in done.heads} == {2}
    assert {place(head.match)[0] for head in done.heads} == {0}


def test_heads_are_those_of_the_graph(ground: Path) -> None:
    heads = heads_of(bond_graph(ground))
    assert [head.name for head in heads] == [f"model.layers.{b}.heads.{g}" for b in range(3) for g in range(2)]
    first = heads[1]
    assert [(end.tensor.split(".")[-2], end.start, end.stop) for end in CosineOfKeys().compared(first)] == [
        ("q_proj", 24, 36),
        ("q_proj", 36, 48),
        ("k_proj", 12, 24),
    ]
    assert [(end.tensor.split(".")[-2], end.axis) for end in first.values] == [
        ("v_proj", 0),
        ("o_proj", 1),
        ("o_proj", 1),
    ]


def test_a_toml_file_gives_the_same(ground: Path, tmp_path: Path) -> None:
    (tmp_path / "heads.toml").write_text('[heads]\npart = "CosineOfKeys"\n')
    made = eckart.compress(ground, tmp_path / "out", recipe=tmp_path / "heads.toml", keep=0.87)
    assert made.heads == share(ground, tmp_path / "other", 0.87).heads
    assert eckart.verify(tmp_path / "out", ground).failures == ()
