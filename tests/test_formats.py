"""Recipes of other formats than factors from checkpoint to checkpoint: zeros, branches beside damage, columns and rows."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import ARCHITECTURES, shard
from outputs import loaded, logits
from runs import calibration_text, edit_json, edit_tensor, tiny
from safetensors.torch import load_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

import eckart
from eckart.allocate import EqualMarginalLoss
from eckart.approx import Compensated, NormalFloat, Prune, RoundToNearest
from eckart.errors import EckartError
from eckart.linalg.patterns import OfGroup
from eckart.model.compression import Compress, Paper, Statistics
from eckart.model.run import seeded
from eckart.model.tensorfile import tensor_bytes
from eckart.model.text import draw_windows, ids_for
from eckart.recipes.notation import compose
from eckart.stats import Gram, Plain

RECIPES = ("magnitude", "wanda", "sparsegpt", "eora", "curing")
KINDS = {"magnitude": "masked", "wanda": "masked", "sparsegpt": "masked", "eora": "sum", "curing": "product"}
OPTIONS: dict[str, Any] = {"tokens": 256, "window": 32}
OWN = Paper("own", "")
CODES: Mapping[str, Compress] = {
    "codes": Compress(paper=OWN, metric=Plain(), approx=RoundToNearest(bits=4, group=16)),
    "normal codes": Compress(paper=OWN, metric=Plain(), approx=NormalFloat(bits=4, group=16)),
    "codes and a branch": Compress(
        paper=OWN, metric=Gram(), approx=Compensated(RoundToNearest(bits=3, group=24), keep=0.2)
    ),
}


class Shelf:
    """Models and what recipes make of them, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.text = calibration_text(folder / "text.txt")
        self.made: dict[str, eckart.Compressed] = {}

    def model(self, architecture: str) -> Path:
        folder = self.folder / architecture
        if not folder.exists():
            (tiny if architecture == "tiny" else ARCHITECTURES[architecture])(folder)
        return folder

    def compressed(self, recipe: str, architecture: str = "llama") -> Path:
        folder = self.folder / f"{recipe}-{architecture}"
        if not folder.exists():
            self.made[folder.name] = self.run(self.model(architecture), folder, recipe)
        return folder

    def run(self, model: Path, out: Path, recipe: str, **changes: Any) -> eckart.Compressed:
        options = {"keep": 0.75, "calibration": self.text, **OPTIONS, **changes}
        return eckart.compress(model, out, recipe=CODES.get(recipe, recipe), **options)

    def windows(self, architecture: str) -> Tensor:
        ids = ids_for(self.model(architecture), self.text.read_text())
        return draw_windows(ids, OPTIONS["window"], OPTIONS["tokens"], seeded(0, "windows"))

    def verified(self, folder: Path, model: Path, recipe: str) -> Any:
        told = CODES[recipe].needs if recipe in CODES else recipe != "magnitude"
        return eckart.verify(folder, model, calibration=self.text if told else None)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("shelf"))


def modules(folder: Path) -> dict[str, Any]:
    table: dict[str, Any] = json.loads((folder / "config.json").read_text())["quantization_config"]["modules"]
    return table


def records(folder: Path) -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry for entry in json.loads((folder / "eckart.json").read_text())["matrices"]}


def unpacked(mask: Tensor, width: int) -> np.ndarray:
    return np.unpackbits(mask.numpy(), axis=1, bitorder="little")[:, :width].astype(bool)


def spread(values: Tensor, mask: Tensor, width: int) -> np.ndarray:
    """A matrix of values at the places of a mask."""
    places = unpacked(mask, width)
    made = np.zeros(places.shape)
    made[places] = values.double().numpy()
    return made


def stored(folder: Path, name: str) -> np.ndarray:
    """The matrix that a file holds, from its tensors by NumPy."""
    held = {key: value for file in sorted(folder.glob("*.safetensors")) for key, value in load_file(file).items()}
    own = {key.removeprefix(f"{name}."): value for key, value in held.items() if key.startswith(f"{name}.")}
    own.pop("bias", None)
    entry = modules(folder)[name]
    record = entry["operator"]
    kind = record if isinstance(record, str) else record["kind"]
    wide = {key: value.double().numpy() for key, value in own.items()}
    if kind == "masked":
        return spread(own["weight"], own["mask"], record["settings"]["width"])
    if kind == "product":
        return np.linalg.multi_dot([wide["weight"], wide["1_matrix"], wide["2_matrix"]])
    assert kind == "sum"
    width = record["children"]["terms"][0]["settings"]["width"]
    return spread(own["weight"], own["0_mask"], width) + wide["1_left"] @ wide["1_right"]


def weight_of(model: Any, name: str) -> Tensor:
    """The weight of a linear map as (outputs, inputs), sharing its memory."""
    module = model.get_submodule(name)
    weight: Tensor = module.weight.data
    return weight.T if isinstance(module, Conv1D) else weight


# ---- loaded -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_loaded_computes_what_the_stored_matrices_do(recipe: str, architecture: str, shelf: Shelf) -> None:
    out = shelf.compressed(recipe, architecture)
    made, stock = loaded(out), loaded(shelf.model(architecture))
    held = records(out)
    assert modules(out)
    for name, entry in modules(out).items():
        record = entry["operator"]
        assert (record if isinstance(record, str) else record["kind"]) == KINDS[recipe] == held[name]["operator"]
        dense = torch.from_numpy(stored(out, name))
        assert list(dense.shape) == held[name]["shape"]
        torch.testing.assert_close(made.get_submodule(name).operator.dense().double(), dense, rtol=1e-5, atol=1e-5)
        weight_of(stock, name).copy_(dense)
    torch.testing.assert_close(logits(made), logits(stock), rtol=0, atol=1e-4)
    told = shelf.made[out.name]
    assert told.target_bytes[1] == sum(entry["bytes"] for entry in held.values()) <= 0.75 * told.target_bytes[0]
    assert told.file_bytes[1] == (out / "model.safetensors").stat().st_size


@pytest.mark.parametrize("recipe", RECIPES)
def test_saved_again_it_is_the_same(recipe: str, shelf: Shelf, tmp_path: Path) -> None:
    made = loaded(shelf.compressed(recipe))
    made.save_pretrained(tmp_path)
    assert modules(tmp_path) == modules(shelf.compressed(recipe))
    assert torch.equal(logits(loaded(tmp_path)), logits(made))


@pytest.mark.parametrize(
    ("recipe", "architecture"),
    [("magnitude", "llama_tied"), ("magnitude", "gpt2"), ("eora", "gpt2"), ("codes and a branch", "llama_tied")],
)
def test_a_tied_embedding_and_the_head_hold_one_operator(
    recipe: str, architecture: str, shelf: Shelf, tmp_path: Path
) -> None:
    """Parameters and buffers are shared, stored once, and saved once."""
    only = ("*embed_tokens", "*wte", "*down_proj", "*c_proj")
    wanted = [
        pattern for pattern in only if ("embed" in pattern or "down" in pattern) == (architecture == "llama_tied")
    ]
    shelf.run(shelf.model(architecture), tmp_path / "out", recipe, only=wanted, keep=0.85)
    made = loaded(tmp_path / "out")
    ends = (made.get_input_embeddings(), made.get_output_embeddings())
    tensors = [dict(end.named_parameters()) | dict(end.named_buffers()) for end in ends]
    assert tensors[0].keys() == tensors[1].keys()
    assert len(tensors[0]) >= 2
    assert all(tensor.data_ptr() == tensors[1][key].data_ptr() for key, tensor in tensors[0].items())
    assert {entry for entry in modules(tmp_path / "out") if "head" in entry} == {"lm_head"}
    stock = loaded(eckart.densify(tmp_path / "out", tmp_path / "dense"))
    torch.testing.assert_close(logits(made), logits(stock), rtol=0, atol=1e-4)
    made.save_pretrained(tmp_path / "saved")
    assert not any(key.startswith("lm_head") for key in load_file(tmp_path / "saved" / "model.safetensors"))
    assert torch.equal(logits(loaded(tmp_path / "saved")), logits(made))
    assert shelf.verified(tmp_path / "out", shelf.model(architecture), recipe).failures == ()


# ---- what the papers promise ------------------------------------------------------------------------------------------


def captured(model: Any, names: list[str], windows: Tensor) -> dict[str, Tensor]:
    """What these maps are given when the model runs over the windows (tokens, width)."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: seen[name].append(args[0].detach().flatten(0, -2).double())
        )
        for name in names
    ]
    with torch.no_grad():
        for window in windows:
            model(input_ids=window[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}


def by_block(folder: Path, architecture: str) -> Iterator[list[str]]:
    prefix = "model.layers" if architecture == "llama" else "transformer.h"
    names = list(records(folder))
    for block in range(3 if architecture == "llama" else 2):
        yield [name for name in names if name.startswith(f"{prefix}.{block}.")]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("recipe", ["wanda", "sparsegpt", "eora", "curing"])
def test_errors_are_those_over_the_inputs_that_were_seen(recipe: str, architecture: str, shelf: Shelf) -> None:
    """Hooks on the stock model, whose blocks before are those of the result where statistics are those of compressed blocks."""
    out = shelf.compressed(recipe, architecture)
    stock, held = loaded(shelf.model(architecture)), records(out)
    checked = 0
    for names in by_block(out, architecture):
        inputs = captured(stock, names, shelf.windows(architecture))
        changed = {name: torch.from_numpy(stored(out, name)) for name in names if name in modules(out)}
        for name, dense in changed.items():
            x, bound = inputs[name], held[name]["bounds"][0]
            error, w = weight_of(stock, name).double() - dense, weight_of(stock, name).double()
            scale = x.square().mean(0)
            if recipe in ("wanda", "curing"):
                measured, whole = (float((e.square() * scale).sum().sqrt()) for e in (error, w))
            else:
                measured, whole = (float((e @ x.T).square().sum(0).mean().sqrt()) for e in (error, w))
            assert bound["achieved"] == pytest.approx(measured, rel=2e-4, abs=1e-6 * whole)
            assert bound["scale"] == pytest.approx(whole, rel=2e-4)
            if recipe == "wanda":
                scores = (w.abs() * scale.sqrt()).numpy()
                kept = np.where(dense.numpy() != 0, scores, 0).sum(1)
                count = int((dense[0] != 0).sum())
                best = np.sort(scores, 1)[:, scores.shape[1] - count :].sum(1)
                np.testing.assert_allclose(kept, best, rtol=1e-5)
            checked += 1
        if recipe != "curing":
            for name, dense in changed.items():
                weight_of(stock, name).copy_(dense)
    assert checked == len(modules(out)) > 0


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_entries_are_left_exactly_where_the_recipe_says(architecture: str, shelf: Shelf) -> None:
    """Wanda as many in every row, magnitude and SparseGPT in every matrix, EoRA two of four; those of the first two as they were."""
    weights = loaded(shelf.model(architecture))
    for recipe in ("magnitude", "wanda", "sparsegpt", "eora"):
        out = shelf.compressed(recipe, architecture)
        tensors = load_file(out / "model.safetensors")
        for name in modules(out):
            w = weight_of(weights, name).numpy()
            mask = unpacked(tensors[f"{name}.{'0_mask' if recipe == 'eora' else 'mask'}"], w.shape[1])
            size = records(out)[name]["rank"]
            values = tensors[f"{name}.weight"].numpy()
            assert len(values) == mask.sum()
            if recipe in ("magnitude", "wanda"):
                assert np.array_equal(values, w[mask])
            if recipe == "magnitude":
                assert np.abs(w[mask]).min() >= np.abs(w[~mask]).max()
            if recipe == "wanda":
                assert mask.sum(1).tolist() == [size] * len(w)
            elif recipe == "eora":
                assert (mask.reshape(len(w), -1, 4).sum(2) == 2).all()
            else:
                assert mask.sum() == len(w) * size
            if recipe != "eora":
                assert records(out)[name]["bytes"] == 4 * mask.sum() + mask.shape[0] * -(-mask.shape[1] // 8)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_columns_and_rows_are_those_of_the_matrix(architecture: str, shelf: Shelf) -> None:
    """Submatrices, word for word; the core is the best between them; its bytes count with theirs."""
    out = shelf.compressed("curing", architecture)
    tensors, weights = load_file(out / "model.safetensors"), loaded(shelf.model(architecture))
    for name in modules(out):
        w = weight_of(weights, name)
        columns, core, rows = (tensors[f"{name}.{part}"] for part in ("weight", "1_matrix", "2_matrix"))
        rank = records(out)[name]["rank"]
        assert (columns.shape, core.shape, rows.shape) == ((len(w), rank), (rank, rank), (rank, w.shape[1]))
        assert all(any(torch.equal(column, other) for other in w.T) for column in columns.T)
        assert all(any(torch.equal(row, other) for other in w) for row in rows)
        assert records(out)[name]["bytes"] == 4 * (rank * sum(w.shape) + rank**2)


def test_the_first_and_the_last_block_are_left_to_the_end(shelf: Shelf) -> None:
    told = records(shelf.compressed("curing"))
    paying = {name.split(".")[2] for name, record in told.items() if record["rank"] is not None}
    assert "1" in paying
    assert paying != {"0", "1", "2"}


# ---- verified ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [*RECIPES, *CODES])
def test_every_result_is_verified(recipe: str, shelf: Shelf) -> None:
    out = shelf.compressed(recipe)
    told = shelf.verified(out, shelf.model("llama"), recipe)
    assert told.failures == ()
    assert told.not_rechecked == ()
    assert told.checked["tensors made again"] == len(load_file(out / "model.safetensors"))
    assert told.checked["matrices"] == len(records(out)) + 1
    assert eckart.verify(out).holds


@pytest.mark.parametrize(
    ("recipe", "dtype"),
    [
        ("magnitude", torch.float16),
        ("wanda", torch.bfloat16),
        ("sparsegpt", torch.bfloat16),
        ("eora", torch.float64),
        ("curing", torch.float16),
    ],
)
def test_other_dtypes_in_shards(recipe: str, dtype: torch.dtype, shelf: Shelf, tmp_path: Path) -> None:
    model = shard(tiny(tmp_path / "model", dtype=dtype), 24_000)
    done = shelf.run(model, tmp_path / "out", recipe, keep=0.8)
    assert done.target_bytes[1] <= 0.8 * done.target_bytes[0]
    assert {t.dtype for f in (tmp_path / "out").glob("*.safetensors") for t in load_file(f).values()} <= {
        dtype,
        torch.uint8,
    }
    assert shelf.verified(tmp_path / "out", model, recipe).failures == ()


def forged(folder: Path, name: str, change: Callable[[Tensor], Tensor]) -> None:
    """Change a tensor, and record its hash as a forger would."""
    digest = hashlib.sha256(tensor_bytes(edit_tensor(folder, name, change))).hexdigest()
    edit_json(folder / "eckart.json", lambda table: table["tensors"].update({name: digest}))


def nudged(tensor: Tensor) -> Tensor:
    tensor.view(-1)[0] += 0.01
    return tensor


def moved(mask: Tensor) -> Tensor:
    """One entry at another place of its row: the lowest set bit of a byte goes to the lowest free one."""
    byte = next(i for i, value in enumerate(mask.view(-1).tolist()) if 0 < value < 255)
    value = int(mask.view(-1)[byte])
    mask.view(-1)[byte] = value ^ (value & -value) ^ (~value & (value + 1))
    return mask


MAP = "model.layers.1.mlp.up_proj"
Damage = Callable[[Path], object]


def figure(entry: str, factor: float) -> Damage:
    def change(table: dict[str, Any]) -> None:
        record = next(record for record in table["matrices"] if record["name"] == MAP)
        record["bounds"][0][entry] *= factor

    return lambda folder: edit_json(folder / "eckart.json", change)


def told(change: Callable[[dict[str, Any]], object]) -> Damage:
    return lambda folder: edit_json(folder / "eckart.json", change)


DAMAGES: Mapping[str, tuple[Damage, str]] = {
    "a value": (lambda f: forged(f, f"{MAP}.weight", nudged), f"tensor {MAP}.weight is not what the recipe makes"),
    "a place": (lambda f: forged(f, f"{MAP}.mask", moved), f"tensor {MAP}.mask is not what the recipe makes"),
    "a copy": (
        lambda f: forged(f, "model.norm.weight", nudged),
        "tensor model.norm.weight is not what the recipe makes",
    ),
    "a value without its hash": (
        lambda f: edit_tensor(f, f"{MAP}.weight", nudged),
        f"tensor {MAP}.weight was changed: its hash is not the recorded one",
    ),
    "a lower figure": (figure("lower", 0.9), f"{MAP}: lower is recorded as"),
    "an upper figure": (figure("upper", 1.01), f"{MAP}: upper is recorded as"),
    "a scale": (figure("scale", 1.01), f"{MAP}: scale is recorded as"),
    "a rank": (
        told(lambda t: t["matrices"][3].update(rank=t["matrices"][3]["rank"] - 1)),
        "operator, rank, bytes or norms are not as recorded",
    ),
    "a norm": (
        told(lambda t: t["matrices"][3]["bounds"][1].update(norm="another")),
        "operator, rank, bytes or norms are not as recorded",
    ),
    "a matrix less": (told(lambda t: t["matrices"].pop()), "the matrices recorded are not those"),
    "bytes of the matrices": (
        told(lambda t: t["sizes"]["targets"].update(after=5)),
        "the bytes before and after are recorded as",
    ),
    "bytes before": (
        told(lambda t: t["sizes"]["files"].update(before=5)),
        "the bytes before and after are recorded as",
    ),
    "bytes after": (told(lambda t: t["sizes"]["files"].update(after=5)), "the files take"),
    "what was left alone": (
        told(lambda t: t["untouched"].pop()),
        "the list of matrices left alone is not the right one",
    ),
    "the ranks taken": (told(lambda t: t["ranks"].update(kept="other")), "the ranks taken are recorded as other"),
    "the config": (
        lambda f: edit_json(f / "config.json", lambda t: t.update(rms_norm_eps=0.5)),
        "rms_norm_eps is not what the recipe gives",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_was_changed_is_found(damage: str, shelf: Shelf, tmp_path: Path) -> None:
    out = Path(shutil.copytree(shelf.compressed("sparsegpt", "tiny"), tmp_path / "out"))
    harm, sentence = DAMAGES[damage]
    harm(out)
    found = shelf.verified(out, shelf.model("tiny"), "sparsegpt")
    assert any(sentence in failure for failure in found.failures), found.failures


def test_another_text_or_none(shelf: Shelf, tmp_path: Path) -> None:
    out = shelf.compressed("wanda")
    with pytest.raises(EckartError, match="is not the calibration text that was recorded"):
        eckart.verify(out, shelf.model("llama"), calibration=calibration_text(tmp_path / "other.txt", repeat=5))
    bare = eckart.verify(out, shelf.model("llama"))
    assert bare.holds
    assert "name it with --calibration" in bare.not_rechecked[0]


# ---- planned --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_plan_tells_what_is_made(recipe: str, shelf: Shelf, tmp_path: Path) -> None:
    options: dict[str, Any] = {"keep": 0.75, "calibration": shelf.text, **OPTIONS}
    planned = eckart.plan(shelf.model("llama"), tmp_path / "out", recipe=recipe, **options)
    held = records(shelf.compressed(recipe))
    assert {row.name: (row.operator, row.rank, row.bytes) for row in planned.rows} == {
        name: (entry["operator"], entry["rank"], entry["bytes"]) for name, entry in held.items()
    }
    done = shelf.made[shelf.compressed(recipe).name]
    assert (planned.target_bytes, planned.file_bytes) == (done.target_bytes, done.file_bytes)


@pytest.mark.parametrize("recipe", ["sparsegpt", "curing", "codes"])
def test_sizes_by_expected_loss(recipe: str, shelf: Shelf, tmp_path: Path) -> None:
    """Whatever the format, both choices of sizes are fitted, their losses measured and the better one kept."""
    done = shelf.run(shelf.model("tiny"), tmp_path / "out", recipe, ranks=EqualMarginalLoss())
    assert done.losses.keys() == {"original", "allocated", "uniform"}
    assert done.kept == min(("allocated", "uniform"), key=lambda label: done.losses[label])
    assert done.gap is not None
    assert done.gap >= 0
    windows = draw_windows(ids_for(shelf.model("tiny"), shelf.text.read_text()), 32, 256, seeded(0, "windows"))
    with torch.no_grad():
        model = loaded(tmp_path / "out")
        losses = [float(model(input_ids=window[None], labels=window[None]).loss) for window in windows]
    assert done.losses[done.kept] == pytest.approx(float(np.mean(losses)), rel=1e-4)
    assert eckart.verify(tmp_path / "out", shelf.model("tiny"), calibration=shelf.text).failures == ()


def test_bytes_of_the_files_are_met(shelf: Shelf, tmp_path: Path) -> None:
    for size in (300_000, 305_001):
        done = shelf.run(shelf.model("llama"), tmp_path / str(size), "magnitude", keep=None, size=size)
        assert size - 2_000 < done.file_bytes[1] <= size


# ---- composed ---------------------------------------------------------------------------------------------------------

TOML = """
statistics = "compressed"
[metric]
part = "RootMeanSquare"
[approx]
part = "Compensated"
keep = 0.5
[approx.damage]
part = "BrainSurgeon"
block = 24
[approx.damage.pattern]
part = "OfGroup"
group = 8
[approx.branch]
part = "LowRank"
accuracy = 0
[allocate]
part = "LeastInfluential"
least = 0.2
"""


def test_a_recipe_of_nested_parts_from_a_file(shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(TOML)
    done = shelf.run(shelf.model("llama"), tmp_path / "out", str(tmp_path / "own.toml"), keep=0.9)
    recorded = json.loads((tmp_path / "out" / "eckart.json").read_text())["recipe"]
    assert recorded["approx"]["damage"] == {
        "part": "BrainSurgeon",
        "pattern": {"part": "OfGroup", "group": 8},
        "block": 24,
        "damping": 0.01,
    }
    assert {record.operator for record in done.matrices} == {"sum", "dense"}
    assert shelf.verified(tmp_path / "out", shelf.model("llama"), "own").failures == ()


@pytest.mark.parametrize(
    ("approx", "sentence"),
    [
        (
            {"part": "Prune", "pattern": {"part": "OfGroup", "group": 1}},
            "OfGroup with group = 1: group 1 must be at least 2",
        ),
        ({"part": "Prune", "pattern": "OfGroup"}, r"\[pattern\] needs part = one of PerMatrix, PerRow, OfGroup"),
        (
            {"part": "BrainSurgeon", "block": 6, "pattern": {"part": "OfGroup"}},
            "block 6 must be at least 1, and whole groups",
        ),
        ({"part": "BrainSurgeon", "damping": 0}, "damping 0 must be finite and above 0"),
        ({"part": "Compensated"}, r"\[damage\] needs part = one of Prune, BrainSurgeon, RoundToNearest"),
        ({"part": "Compensated", "damage": {"part": "LowRank"}}, r"\[damage\] needs part = one of"),
        ({"part": "Compensated", "damage": {"part": "Prune"}, "keep": 1.0}, "keep 1 must be above 0 and below 1"),
        ({"part": "RoundToNearest", "bits": 5}, "codes take 1, 2, 3, 4, 8 bits"),
        ({"part": "NormalFloat", "bits": 1}, "normal levels take 2, 3, 4, 8 bits"),
        ({"part": "NormalFloat", "offset": 1}, "the offset 1 is a share of the normal distribution"),
        ({"part": "RoundToNearest", "group": 2.5}, "RoundToNearest.group is 2.5; give a whole number"),
        (
            {"part": "ColumnsRows", "rule": {"part": "Given"}},
            r"\[rule\] needs part = one of DEIM, PivotedQR, StrongRRQR",
        ),
        ({"part": "ColumnsRows", "rank": 3}, "ColumnsRows has no setting 'rank'"),
    ],
)
def test_what_is_no_recipe_of_formats_is_named(approx: dict[str, object], sentence: str) -> None:
    table = {"metric": {"part": "Plain"}, "approx": approx, "allocate": {"part": "Uniform"}}
    with pytest.raises(EckartError, match=sentence):
        compose(table, "here")


@pytest.mark.parametrize(
    "approx",
    [
        {"part": "Prune", "pattern": {"part": "PerRow"}},
        {"part": "BrainSurgeon", "pattern": {"part": "OfGroup", "group": 6}, "block": 12, "damping": 1.0},
        {"part": "RoundToNearest", "bits": 3, "group": 64},
        {"part": "NormalFloat", "bits": 3, "group": 32, "offset": 0.97},
        {
            "part": "Compensated",
            "damage": {"part": "RoundToNearest", "bits": 2, "group": 32},
            "keep": 0.3,
            "branch": {"part": "LowRank", "accuracy": 0.0},
        },
        {"part": "ColumnsRows", "rule": {"part": "PivotedQR", "on": {"part": "LeadingVectors", "rank": None}}},
    ],
)
def test_parts_of_formats_compose_to_what_they_describe(approx: dict[str, object]) -> None:
    table = {"metric": {"part": "Gram"}, "approx": approx, "allocate": {"part": "Uniform"}}
    made = compose(table | {"statistics": "compressed"}, "here")
    assert isinstance(made, Compress)
    told = made.describe()
    assert {key: told["approx"][key] for key in approx} == approx  # type: ignore[index]
    assert compose({key: told[key] for key in ("metric", "approx", "allocate", "statistics")}, "here") == made
    assert made.statistics is Statistics.COMPRESSED


def test_groups_of_codes_and_zeros_on_matrices_narrower_than_they_are(shelf: Shelf, tmp_path: Path) -> None:
    recipe = Compress(paper=OWN, metric=Plain(), approx=Prune(OfGroup(64)))
    done = eckart.compress(shelf.model("llama"), tmp_path / "out", recipe=recipe, keep=0.8)
    assert {record.operator for record in done.matrices} == {"masked"}
    assert eckart.verify(tmp_path / "out", shelf.model("llama")).failures == ()
