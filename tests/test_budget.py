"""How many bytes remain: budgets, what is chosen within them, and which maps they are spent on.

All bytes are counted from the headers of the files by a reader of this module, never by the library's own.
"""

import json
import math
import os
import struct
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import ARCHITECTURES, SENTENCES, shard, tokenizer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.models.llama import LlamaConfig
from transformers.pytorch_utils import Conv1D

import eckart
from eckart.allocate import Allocation, Allocator, EqualMarginalLoss, Slot, Uniform, smallest, total_bytes
from eckart.stats import Need

WIDTHS = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
RECIPES = ("svd", "asvd", "svd-llm")
WINDOW = 32


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "calibration.txt"
    path.write_text(" ".join([*SENTENCES, *SENTENCES[::-1]]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoints that several tests start from."""
    folder = tmp_path_factory.mktemp("sources")
    for name in ("llama", "llama_tied", "gpt2", "mixtral"):
        ARCHITECTURES[name](folder / name)
    ARCHITECTURES["llama"](folder / "bfloat16", dtype=torch.bfloat16)
    shard(ARCHITECTURES["llama"](folder / "sharded"), 60_000)
    write_narrow(folder / "narrow")
    return folder


def write_narrow(folder: Path) -> None:
    """A Llama whose feed-forward part is one wide and whose keys and values are two wide."""
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=1,
        num_attention_heads=8,
        num_key_value_heads=1,
        num_hidden_layers=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def headers(folder: Path) -> dict[str, dict[str, Any]]:
    """The header of every safetensors file of a directory, by the letter of the format."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            found[path.name] = json.loads(file.read(length))
            data = max((e["data_offsets"][1] for n, e in found[path.name].items() if n != "__metadata__"), default=0)
            assert path.stat().st_size == 8 + length + data
    return found


def specs(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The dtype and shape of every tensor of a directory."""
    return {
        name: (entry["dtype"], tuple(entry["shape"]))
        for table in headers(folder).values()
        for name, entry in table.items()
        if name != "__metadata__"
    }


def blobs(folder: Path) -> dict[str, bytes]:
    """The bytes of every tensor of a directory."""
    found = {}
    for file, table in headers(folder).items():
        raw = (folder / file).read_bytes()
        start = 8 + struct.unpack("<Q", raw[:8])[0]
        for name, entry in table.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                found[name] = raw[start + begin : start + end]
    return found


def spec_bytes(spec: tuple[str, tuple[int, ...]]) -> int:
    return WIDTHS[spec[0]] * math.prod(spec[1])


def matrices(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "eckart.json").read_text(encoding="utf-8"))["matrices"]


def next_cost(rows: int, columns: int, rank: int | None) -> int | None:
    """What the next rank would add, in entries; where it saves nothing more, the step to dense. ``None``: dense already."""
    if rank is None:
        return None
    if (rank + 1) * (rows + columns) < rows * columns:
        return rows + columns
    return rows * columns - rank * (rows + columns)


@dataclass(frozen=True)
class Bytes:
    """The targeted maps of a result: bytes before and after, and the bytes of each next rank."""

    before: int
    after: int
    steps: dict[str, int]


def target_bytes(source: Path, out: Path) -> Bytes:
    old, new = specs(source), specs(out)
    before = after = 0
    steps: dict[str, int] = {}
    for entry in matrices(out):
        name, (rows, columns), rank = entry["name"], entry["shape"], entry["rank"]
        dtype, shape = old[f"{name}.weight"]
        assert sorted(shape) == sorted((rows, columns))
        before += spec_bytes(old[f"{name}.weight"])
        if rank is None:
            assert new[f"{name}.weight"] == old[f"{name}.weight"]
            assert f"{name}.right" not in new
        else:
            assert new[f"{name}.weight"] == (dtype, (rows, rank))
            assert new[f"{name}.right"] == (dtype, (rank, columns))
            assert rank * (rows + columns) < rows * columns  # else it would be smaller dense
        held = sum(spec_bytes(new[key]) for key in (f"{name}.weight", f"{name}.right") if key in new)
        assert entry["bytes"] == held
        after += held
        step = next_cost(rows, columns, rank)
        if step is not None:
            steps[name] = step * WIDTHS[dtype]
    return Bytes(before, after, steps)


def load(folder: Path) -> Any:
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


def batch(length: int = 24) -> Tensor:
    return torch.tensor([ids[:length] for ids in tokenizer()(list(SENTENCES))["input_ids"]])


@torch.no_grad()
def logits(model: Any, ids: Tensor) -> Tensor:
    return model(input_ids=ids, use_cache=False).logits


# ---- --keep -----------------------------------------------------------------------------------------------------------

ALLOCATORS = {"uniform": Uniform(), "allocated": EqualMarginalLoss()}


@pytest.mark.parametrize("keep", [0.83, 0.4])
@pytest.mark.parametrize("ranks", sorted(ALLOCATORS))
@pytest.mark.parametrize("recipe", RECIPES)
def test_keep_is_used_up_to_one_rank(
    recipe: str, ranks: str, keep: float, sources: Path, text: Path, tmp_path: Path
) -> None:
    source, out = sources / "llama", tmp_path / "out"
    result = eckart.compress(
        source, out, keep=keep, recipe=recipe, ranks=ALLOCATORS[ranks], calibration=text, tokens=256, window=WINDOW
    )
    counted = target_bytes(source, out)
    assert result.target_bytes == (counted.before, counted.after)
    assert counted.after <= keep * counted.before
    assert counted.steps
    assert {
        n: counted.after + step for n, step in counted.steps.items() if counted.after + step <= keep * counted.before
    } == {}


@pytest.mark.parametrize("name", ["bfloat16", "gpt2", "mixtral", "narrow", "sharded"])
def test_keep_is_used_up_for_other_models_too(name: str, sources: Path, tmp_path: Path) -> None:
    for keep in (0.95, 0.77, 0.61, 0.5):
        out = tmp_path / f"{keep}"
        eckart.compress(sources / name, out, keep=keep, recipe="svd")
        counted = target_bytes(sources / name, out)
        assert counted.after <= keep * counted.before
        assert min(counted.steps.values()) + counted.after > keep * counted.before


def test_uniform_ranks_keep_about_the_same_share_of_every_map(sources: Path, tmp_path: Path) -> None:
    eckart.compress(sources / "llama", tmp_path / "out", keep=0.6, recipe="svd")
    for entry in matrices(tmp_path / "out"):
        rows, columns = entry["shape"]
        exact = 0.6 * rows * columns / (rows + columns)
        assert math.floor(exact) <= entry["rank"] <= math.ceil(exact), entry["name"]


def test_less_than_the_smallest_possible_is_refused_with_that_figure(sources: Path, tmp_path: Path) -> None:
    old = {n: s for n, (_, s) in specs(sources / "llama").items() if "_proj" in n}
    least = sum(map(sum, old.values())) / sum(map(math.prod, old.values()))
    with pytest.raises(eckart.EckartError, match=f"{math.ceil(1e4 * least) / 1e4}"):
        eckart.compress(sources / "llama", tmp_path / "out", keep=least * 0.999, recipe="svd")
    assert not (tmp_path / "out").exists()
    eckart.compress(sources / "llama", tmp_path / "out", keep=least * 1.001, recipe="svd")
    assert {entry["rank"] for entry in matrices(tmp_path / "out")} == {1}


# ---- --bytes ----------------------------------------------------------------------------------------------------------


def files_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def check_size(source: Path, out: Path, size: int, result: Any) -> None:
    """The files fit, and would not if any matrix had its next rank and as much header as goes with it."""
    after = files_bytes(out)
    assert result.file_bytes == (files_bytes(source), after)
    assert after <= size
    # Numbers in shapes and offsets may gain a digit, each file's header is padded to eight bytes, and a matrix that turns
    # from dense to factors has one entry more.
    slack = 2 * len(specs(out)) + 8 * len(headers(out)) + 128
    steps = target_bytes(source, out).steps
    assert min(steps.values()) + after + slack > size, (
        f"{size - after} bytes are left, and a rank takes {min(steps.values())}"
    )


@pytest.mark.parametrize("name", ["bfloat16", "gpt2", "llama", "narrow", "sharded"])
@pytest.mark.parametrize("share", [0.95, 0.8, 0.75])
def test_files_fill_the_size_up_to_one_rank(name: str, share: float, sources: Path, tmp_path: Path) -> None:
    source, out = sources / name, tmp_path / "out"
    size = int(files_bytes(source) * share) if name != "narrow" else files_bytes(source) - int(1800 * (1 - share))
    check_size(source, out, size, eckart.compress(source, out, size=size, recipe="svd"))


@pytest.mark.parametrize("share", [0.9, 0.72])
def test_allocated_ranks_fill_the_size_too(share: float, sources: Path, text: Path, tmp_path: Path) -> None:
    source, out = sources / "llama", tmp_path / "out"
    size = int(files_bytes(source) * share)
    result = eckart.compress(source, out, size=size, calibration=text, tokens=256, window=WINDOW)
    check_size(source, out, size, result)


def test_the_smallest_size_that_the_refusal_names_is_possible(sources: Path, tmp_path: Path) -> None:
    source, out = sources / "sharded", tmp_path / "out"
    with pytest.raises(eckart.EckartError, match=r"take (\d+) bytes") as refusal:
        eckart.compress(source, out, size=1000, recipe="svd")
    least = int(str(refusal.value).split("take ")[1].split()[0])
    with pytest.raises(eckart.EckartError, match=f"take {least} bytes"):
        eckart.compress(source, out, size=least - 1, recipe="svd")
    eckart.compress(source, out, size=least, recipe="svd")
    assert files_bytes(out) == least
    assert {entry["rank"] for entry in matrices(out)} == {1}


# ---- what stays dense -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
def test_maps_that_no_rank_makes_smaller_stay_dense(recipe: str, sources: Path, text: Path, tmp_path: Path) -> None:
    source, out = sources / "narrow", tmp_path / "out"
    eckart.compress(source, out, keep=0.4, recipe=recipe, calibration=text, tokens=256, window=WINDOW)
    ranks = {entry["name"]: entry["rank"] for entry in matrices(out)}
    assert len(ranks) == 2 * 7
    for name, rank in ranks.items():
        if "mlp" in name:
            assert rank is None, name  # (1, 16) and (16, 1): one rank takes 17 entries
        if name.endswith(("k_proj", "v_proj")):
            assert rank in (1, None), name  # (2, 16): one rank takes 18 of 32
    before, after = blobs(source), blobs(out)
    assert all(after[f"{n}.weight"] == before[f"{n}.weight"] for n, rank in ranks.items() if rank is None)
    assert sum(rank is not None for rank in ranks.values()) >= 4
    assert float((logits(load(out), batch()) - logits(load(source), batch())).norm()) > 0
    counted = target_bytes(source, out)
    assert counted.before == sum(spec_bytes(s) for n, s in specs(source).items() if "_proj" in n)
    assert counted.after <= 0.4 * counted.before


@pytest.mark.parametrize("name", ["llama", "llama_tied", "sharded"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_keep_everything_changes_no_bit(recipe: str, name: str, sources: Path, text: Path, tmp_path: Path) -> None:
    source, out = sources / name, tmp_path / "out"
    result = eckart.compress(source, out, keep=1.0, recipe=recipe, calibration=text, tokens=128, window=WINDOW)
    assert {m.rank for m in result.matrices} == {None}
    assert blobs(out) == blobs(source)
    assert specs(out) == specs(source)
    assert json.loads((out / "config.json").read_text()) == json.loads((source / "config.json").read_text())
    assert eckart.verify(out, source, calibration=None if recipe == "svd" else text).holds


def test_what_was_kept_whole_loads_without_eckart(sources: Path, tmp_path: Path) -> None:
    """Both one file and shards, in a process that cannot import eckart, with the very logits of the original."""
    for name in ("gpt2", "sharded"):
        eckart.compress(sources / name, tmp_path / name, keep=1.0, recipe="svd")
    script = """
import sys
sys.modules["eckart"] = None
import torch
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
for name in ("gpt2", "sharded"):
    ids = torch.arange(20)[None]
    old, new = (AutoModelForCausalLM.from_pretrained(f"{d}/{name}").eval()(ids).logits for d in sys.argv[1:])
    print(name, torch.equal(old, new), float(old.std()) > 0.1)
"""
    command = [sys.executable, "-c", script, str(sources), str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["gpt2 True True", "sharded True True"]


# ---- --only and --exclude ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("only", "exclude", "wanted"),
    [
        (["q_proj"], [], {f"model.layers.{i}.self_attn.q_proj" for i in range(3)}),
        (["layers.1.*"], ["*.mlp.*"], {f"model.layers.1.self_attn.{p}_proj" for p in "qkvo"}),
        (["model.layers.2.mlp.down_proj"], [], {"model.layers.2.mlp.down_proj"}),
        (
            [],
            ["self_attn.*", "up_proj", "layers.0.*"],
            {f"model.layers.{i}.mlp.{p}_proj" for i in (1, 2) for p in ("gate", "down")},
        ),
        (["layers.[02].*.gate_proj"], ["layers.2.*"], {"model.layers.0.mlp.gate_proj"}),
        (["lm_head", "o_proj"], [], {"lm_head", *(f"model.layers.{i}.self_attn.o_proj" for i in range(3))}),
    ],
)
def test_only_and_exclude_pick_the_targets_and_the_budget_is_theirs(
    only: list[str], exclude: list[str], wanted: set[str], sources: Path, tmp_path: Path
) -> None:
    source, out = sources / "llama", tmp_path / "out"
    eckart.compress(source, out, keep=0.6, recipe="svd", only=only, exclude=exclude)
    assert {entry["name"] for entry in matrices(out)} == wanted
    before, after = blobs(source), blobs(out)
    changed = {name for name in before if after.get(name) != before[name]}
    assert changed == {f"{name}.weight" for name in wanted}
    assert after.keys() - before.keys() == {f"{name}.right" for name in wanted}
    counted = target_bytes(source, out)
    assert counted.before == sum(len(before[f"{name}.weight"]) for name in wanted)
    assert 0.6 * counted.before - min(counted.steps.values()) < counted.after <= 0.6 * counted.before


@pytest.mark.parametrize(
    ("only", "exclude", "sentence"),
    [
        (["q_prj"], [], "'q_prj' fits no matrix"),
        ([], ["lm_heads"], "'lm_heads' fits no matrix"),
        (["q_proj"], ["self_attn.*"], "no linear map to compress is left"),
    ],
)
def test_patterns_that_leave_nothing_are_refused(
    only: list[str], exclude: list[str], sentence: str, sources: Path, tmp_path: Path
) -> None:
    with pytest.raises(eckart.EckartError, match=sentence):
        eckart.compress(sources / "llama", tmp_path / "out", keep=0.6, recipe="svd", only=only, exclude=exclude)
    assert list(tmp_path.iterdir()) == []


# ---- embeddings and heads ---------------------------------------------------------------------------------------------


def product(out: Path, name: str) -> Tensor:
    tensors, shapes = blobs(out), specs(out)
    left, right = (
        np.frombuffer(tensors[key], np.float32).reshape(shapes[key][1]).astype(np.float64)
        for key in (f"{name}.weight", f"{name}.right")
    )
    return torch.from_numpy(left @ right)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    ("name", "only", "stored_as"),
    [
        ("llama", "lm_head", "lm_head"),
        ("llama", "embed_tokens", "model.embed_tokens"),
        ("llama_tied", "lm_head", "model.embed_tokens"),
        ("llama_tied", "embed_tokens", "model.embed_tokens"),
        ("gpt2", "lm_head", "transformer.wte"),
    ],
)
def test_head_and_embedding(
    name: str, only: str, stored_as: str, recipe: str, sources: Path, text: Path, tmp_path: Path
) -> None:
    source, out = sources / name, tmp_path / "out"
    tied = name != "llama"
    eckart.compress(source, out, keep=0.5, recipe=recipe, only=[only], calibration=text, tokens=256, window=WINDOW)
    assert [entry["name"] for entry in matrices(out)] == [stored_as]
    counted = target_bytes(source, out)
    assert counted.after <= 0.5 * counted.before < counted.after + min(counted.steps.values())
    assert specs(out).keys() - specs(source).keys() == {f"{stored_as}.right"}
    model, stock = load(out), load(source).double()
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    assert (ends[0].weight is ends[1].weight) == tied
    if tied:
        assert ends[0].right is ends[1].right
    with torch.no_grad():
        stock.get_submodule(stored_as).weight.copy_(product(out, stored_as))
    ids = batch()
    wanted = logits(stock, ids)
    torch.testing.assert_close(logits(model.double(), ids), wanted, rtol=0, atol=1e-9 * float(wanted.std()))
    assert eckart.verify(out, source, calibration=text if recipe != "svd" else None).failures == ()
    dense = load(eckart.densify(out, tmp_path / "dense"))
    ends = (dense.get_input_embeddings(), dense.get_output_embeddings())
    assert (ends[0].weight is ends[1].weight) == tied
    torch.testing.assert_close(logits(dense.double(), ids), wanted, rtol=0, atol=1e-5 * float(wanted.std()))


@pytest.mark.parametrize("pattern", ["lm_head", "embed_tokens"])
def test_excluding_either_end_of_a_tied_pair_spares_it(pattern: str, sources: Path, tmp_path: Path) -> None:
    source, out = sources / "llama_tied", tmp_path / "out"
    eckart.compress(source, out, keep=0.6, recipe="svd", only=["*"], exclude=[pattern])
    assert len(matrices(out)) == 3 * 7
    assert blobs(out)["model.embed_tokens.weight"] == blobs(source)["model.embed_tokens.weight"]


def test_a_tied_head_that_is_stored_twice_is_compressed_once(sources: Path, tmp_path: Path) -> None:
    source, out = ARCHITECTURES["llama_tied"](tmp_path / "source"), tmp_path / "out"
    add_tensor(source, "lm_head.weight", like="model.embed_tokens.weight")
    stock = load(source)
    assert stock.lm_head.weight is stock.model.embed_tokens.weight  # transformers ties equal copies
    eckart.compress(source, out, keep=0.5, recipe="svd", only=["lm_head"])
    assert [entry["name"] for entry in matrices(out)] == ["model.embed_tokens"]
    assert "lm_head.weight" not in specs(out)
    model = load(out)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.right is model.model.embed_tokens.right
    assert eckart.verify(out, source).failures == ()


def add_tensor(folder: Path, name: str, *, like: str, plus: float = 0.0) -> None:
    """Store a changed copy of a tensor under a further name, in the one file of a directory."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors[name] = tensors[like] + plus
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_ends_that_the_config_calls_tied_but_that_differ_are_both_kept(tmp_path: Path) -> None:
    """Such a pair is loaded untied by transformers: both must come through, or the model be refused."""
    source, out = ARCHITECTURES["llama_tied"](tmp_path / "source"), tmp_path / "out"
    add_tensor(source, "lm_head.weight", like="model.embed_tokens.weight", plus=0.25)
    ids = batch()
    stock = load(source)
    assert stock.lm_head.weight is not stock.model.embed_tokens.weight
    refusal = ""
    try:
        eckart.compress(source, out, keep=0.9, recipe="svd", only=["embed_tokens"])
    except eckart.EckartError as error:
        refusal = str(error)
    if refusal:
        assert "lm_head" in refusal
        assert "embed_tokens" in refusal
        return
    with torch.no_grad():
        stock.model.embed_tokens.weight.copy_(product(out, "model.embed_tokens"))
    wanted = logits(stock, ids)
    torch.testing.assert_close(logits(load(out), ids), wanted, rtol=0, atol=1e-4 * float(wanted.std()))


# ---- shards -----------------------------------------------------------------------------------------------------------


def test_shards_stay_shards_with_an_index_of_what_they_hold(sources: Path, tmp_path: Path) -> None:
    source, out, single = sources / "sharded", tmp_path / "out", tmp_path / "single"
    eckart.compress(source, out, keep=0.6, recipe="svd")
    eckart.compress(sources / "llama", single, keep=0.6, recipe="svd")
    index = json.loads((out / "model.safetensors.index.json").read_text())
    found = headers(out)
    assert len(found) > 3
    assert found.keys() == headers(source).keys()
    held = {name: file for file, table in found.items() for name in table if name != "__metadata__"}
    assert index["weight_map"] == held
    assert index["metadata"]["total_size"] == sum(map(spec_bytes, specs(out).values()))
    assert not (out / "model.safetensors").exists()
    assert blobs(out) == blobs(single)
    assert torch.equal(logits(load(out), batch()), logits(load(single), batch()))
    home = json.loads((source / "model.safetensors.index.json").read_text())["weight_map"]
    assert all(home[name.replace(".right", ".weight")] == file for name, file in held.items())
    dense = eckart.densify(out, tmp_path / "dense")
    assert json.loads((dense / "model.safetensors.index.json").read_text())["weight_map"] == home
    assert eckart.verify(out, source).failures == ()


def test_a_shard_that_held_only_a_copy_is_gone_from_the_index(tmp_path: Path) -> None:
    """The tied head lay alone in the last shard: once factored, the embedding stands for both."""
    source, out = ARCHITECTURES["llama_tied"](tmp_path / "source"), tmp_path / "out"
    add_tensor(source, "lm_head.weight", like="model.embed_tokens.weight")
    shard(source, 50_000)
    home = json.loads((source / "model.safetensors.index.json").read_text())["weight_map"]
    alone = [name for name in home if list(home.values()).count(home[name]) == 1]
    assert "lm_head.weight" in alone
    eckart.compress(source, out, keep=0.5, recipe="svd", only=["lm_head"])
    assert home["lm_head.weight"] not in {path.name for path in out.iterdir()}
    model = load(out)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert eckart.verify(out, source).failures == ()
    assert load(eckart.densify(out, tmp_path / "dense")).lm_head.weight.shape == (300, 48)


# ---- which ranks are kept ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FirstComeFirstServed:
    """Spends everything on the first matrices and leaves rank 1 for the last, whatever the curves say."""

    needs: ClassVar[frozenset[Need]] = frozenset({Need.SENSITIVITY})

    def __call__(self, slots: Mapping[str, Slot], budget: int) -> Allocation:
        assert all(slot.losses is not None for slot in slots.values())
        ranks = smallest(slots)
        for name in slots:
            if total_bytes(slots, ranks | {name: None}) <= budget:
                ranks[name] = None
        return Allocation(ranks, gap=1.0)


def mean_nll(model: Any, windows: Tensor) -> float:
    values = logits(model, windows)[:, :-1]
    return float(F.cross_entropy(values.reshape(-1, values.shape[-1]).double(), windows[:, 1:].reshape(-1)))


@pytest.mark.parametrize("recipe", ["svd", "svd-llm"])
def test_uniform_is_kept_where_allocated_is_worse(recipe: str, sources: Path, text: Path, tmp_path: Path) -> None:
    source, windows = sources / "gpt2", windows_of(text)

    def made(name: str, ranks: Allocator) -> Any:
        out = tmp_path / name
        return eckart.compress(
            source, out, keep=0.5, recipe=recipe, ranks=ranks, calibration=text, tokens=1 << 20, window=WINDOW
        )

    bad, uniform = made("bad", FirstComeFirstServed()), made("uniform", Uniform())
    assert bad.kept == "uniform"
    assert bad.losses["allocated"] > bad.losses["uniform"]
    assert blobs(tmp_path / "bad") == blobs(tmp_path / "uniform")
    assert [m.rank for m in bad.matrices] == [m.rank for m in uniform.matrices]
    assert json.loads((tmp_path / "bad" / "eckart.json").read_text())["ranks"]["kept"] == "uniform"
    assert bad.losses["uniform"] == pytest.approx(mean_nll(load(tmp_path / "uniform"), windows), rel=1e-6)
    assert bad.losses["original"] == pytest.approx(mean_nll(load(source), windows), rel=1e-6)
    checked = eckart.verify(tmp_path / "bad", source, calibration=text)
    assert checked.failures == ()


def test_allocated_is_kept_where_uniform_is_worse(text: Path, tmp_path: Path) -> None:
    """Half of the maps have no effect at all, for nothing reads what they give."""
    source = ARCHITECTURES["llama"](tmp_path / "source")
    model = load(source)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()  # q, k and v are then without any effect
            layer.mlp.up_proj.weight.mul_(2)
    model.save_pretrained(source)
    only = ["v_proj", "up_proj"]
    result = eckart.compress(
        source, tmp_path / "out", keep=0.6, only=only, calibration=text, tokens=1 << 20, window=WINDOW
    )
    assert result.kept == "allocated"
    assert result.losses["allocated"] != result.losses["uniform"]
    ranks = {m.name: m.rank for m in result.matrices}
    assert {rank for name, rank in ranks.items() if "v_proj" in name} <= {1, 2}  # uniform ones would be 9
    assert result.losses["allocated"] == pytest.approx(mean_nll(load(tmp_path / "out"), windows_of(text)), rel=1e-6)


def windows_of(text: Path) -> Tensor:
    ids = tokenizer()(text.read_text(encoding="utf-8"))["input_ids"]
    return torch.tensor(ids[: len(ids) // WINDOW * WINDOW]).reshape(-1, WINDOW)


def test_maps_of_gpt2_are_counted_in_the_orientation_of_their_names(sources: Path, tmp_path: Path) -> None:
    """GPT-2 stores (inputs, outputs); the factors are (outputs, rank) and (rank, inputs) all the same."""
    out = tmp_path / "out"
    eckart.compress(sources / "gpt2", out, keep=0.5, recipe="svd", only=["h.0.mlp.c_fc"])
    (entry,) = matrices(out)
    stock = load(sources / "gpt2").transformer.h[0].mlp.c_fc
    assert isinstance(stock, Conv1D)
    assert entry["shape"] == [stock.weight.shape[1], stock.weight.shape[0]] == [192, 48]
    assert specs(out)["transformer.h.0.mlp.c_fc.weight"] == ("F32", (192, entry["rank"]))
    values = torch.linalg.svdvals(stock.weight.detach().double())
    rest = stock.weight.detach().double().T - product(out, entry["name"])
    assert float(rest.norm()) == pytest.approx(float(values[entry["rank"] :].norm()), rel=1e-6)
