import json
import math
from pathlib import Path

import pytest
import torch
from market import float64, lapack_values
from models import ARCHITECTURES, shard
from safetensors.torch import load_file, save_file
from torch import Tensor

import eckart
from eckart.errors import EckartError
from eckart.model.inspect import Inspection, inspect


def tensors_in(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, read by safetensors itself."""
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


def matrices_in(folder: Path) -> dict[str, Tensor]:
    return {name.removesuffix(".weight"): t for name, t in tensors_in(folder).items() if t.ndim == 2}


def rewrite(folder: Path, **changed: Tensor | None) -> Path:
    """Put tensors into a single-file checkpoint, or take out those that are ``None``."""
    file = folder / "model.safetensors"
    tensors = {n: t for n, t in (load_file(file) | changed).items() if t is not None}
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def factored(folder: Path, *names: str, rank: int = 5) -> dict[str, Tensor]:
    """Compress a checkpoint by hand: cut these maps to ``rank``, by NumPy's means; their products."""
    file, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    tensors, modules, products = load_file(file), {}, {}
    for name in names:
        u, s, vh = torch.linalg.svd(tensors[f"{name}.weight"].double(), full_matrices=False)
        left, right = (u[:, :rank] * s[:rank]).float().contiguous(), vh[:rank].float().contiguous()
        tensors[f"{name}.weight"], tensors[f"{name}.right"] = left, right
        modules[name] = {"operator": "factors", "shapes": {"left": list(left.shape), "right": list(right.shape)}}
        products[name] = left.double() @ right.double()
    config["quantization_config"] = {"quant_method": "eckart", "format": 1, "modules": modules}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, file, metadata={"format": "pt"})
    return products


def assert_rows_are(found: Inspection, matrices: dict[str, Tensor]) -> None:
    assert {row.name for row in found.rows} == set(matrices)
    assert len(found.rows) == len(matrices)
    for row in found.rows:
        matrix, s = matrices[row.name], row.spectrum
        assert (row.shape, row.dtype) == (tuple(matrix.shape), matrix.dtype)
        assert (row.operator, row.rank, row.bytes) == ("dense", None, matrix.nbytes)
        assert s.shape == row.shape
        assert s.values.tolist() == pytest.approx(lapack_values(float64(matrix)).tolist(), rel=1e-9)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_matrix_on_disk_has_a_row(name: str, tmp_path: Path) -> None:
    folder = ARCHITECTURES[name](tmp_path)
    found = inspect(folder)
    assert_rows_are(found, matrices_in(folder))
    assert [list(u.shape) for u in found.untouched] == [
        list(t.shape) for _, t in sorted(tensors_in(folder).items()) if t.ndim > 2
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_all_floating_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = ARCHITECTURES["gpt2"](tmp_path, dtype=dtype)
    assert_rows_are(inspect(folder), matrices_in(folder))


def test_shards_make_no_difference(tmp_path: Path) -> None:
    whole = inspect(ARCHITECTURES["mixtral"](tmp_path))
    parts = inspect(shard(tmp_path, 40_000))
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    assert parts.to_json() == whole.to_json()


def test_experts_as_stored_are_matrices(tmp_path: Path) -> None:
    names = [row.name for row in inspect(ARCHITECTURES["mixtral"](tmp_path)).rows]
    stored = [n for n in tensors_in(tmp_path) if ".experts." in n]
    assert sorted(f"{n}.weight" for n in names if ".experts." in n) == sorted(stored)


def test_numbers_in_names_count(tmp_path: Path) -> None:
    layers = {f"layers.{i}.weight": torch.eye(2) for i in (10, 9, 2, 100)}
    rewrite(ARCHITECTURES["llama"](tmp_path), **layers)
    names = [row.name for row in inspect(tmp_path, only=["layers.*"], exclude=["model.*"]).rows]
    assert names == ["layers.2", "layers.9", "layers.10", "layers.100"]


def test_only_and_exclude(tmp_path: Path) -> None:
    ARCHITECTURES["llama"](tmp_path)
    some = inspect(tmp_path, only=("q_proj", "lm_head"), exclude=("layers.1.*",))
    assert [row.name for row in some.rows] == [
        "lm_head",
        "model.layers.0.self_attn.q_proj",
        "model.layers.2.self_attn.q_proj",
    ]
    every = {row.name: row.to_json() for row in inspect(tmp_path).rows}
    assert all(row.to_json() == every[row.name] for row in some.rows)


@pytest.mark.parametrize("option", ["only", "exclude"])
def test_pattern_that_fits_nothing(option: str, tmp_path: Path) -> None:
    ARCHITECTURES["opt"](tmp_path)
    with pytest.raises(EckartError, match=r"'r_proj' fits no matrix .* names look like "):
        inspect(tmp_path, **{option: ("k_proj", "r_proj")})


def test_nothing_left(tmp_path: Path) -> None:
    ARCHITECTURES["opt"](tmp_path)
    with pytest.raises(EckartError, match="is left by --only and --exclude"):
        inspect(tmp_path, only=["q_proj"], exclude=["q_proj"])


def test_what_is_no_matrix_is_listed(tmp_path: Path) -> None:
    codes = {
        "stack.weight": torch.ones(2, 3, 4),
        "codes": torch.ones(3, 4, dtype=torch.int8),
        "eighth.weight": torch.ones(4, 4).to(torch.float8_e4m3fn),
        "mask": torch.ones(4, 4, dtype=torch.bool),
        "vector.weight": torch.ones(4),
        "scalar": torch.tensor(1.0),
    }
    found = inspect(rewrite(ARCHITECTURES["llama"](tmp_path), **codes))
    assert [(u.name, u.shape) for u in found.untouched] == [
        ("codes", (3, 4)),
        ("eighth", (4, 4)),
        ("mask", (4, 4)),
        ("stack", (2, 3, 4)),
    ]
    assert found.untouched[1].reason == "stored as torch.float8_e4m3fn: not a plain floating-point matrix"
    assert found.untouched[3].reason == "3-dimensional"
    names = {row.name for row in found.rows}
    assert not names & {name.removesuffix(".weight") for name in codes}
    assert inspect(tmp_path, exclude=["stack"]).untouched == tuple(u for u in found.untouched if u.name != "stack")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_named(bad: float, tmp_path: Path) -> None:
    ARCHITECTURES["llama"](tmp_path)
    name = "model.layers.1.mlp.up_proj"
    matrix = load_file(tmp_path / "model.safetensors")[f"{name}.weight"]
    matrix[3, 4] = bad
    rewrite(tmp_path, **{f"{name}.weight": matrix})
    with pytest.raises(EckartError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN or infinity"):
        inspect(tmp_path)
    assert inspect(tmp_path, exclude=[name]).rows  # what is not asked for is not read


def test_progress_tells_every_matrix(tmp_path: Path) -> None:
    told: list[tuple[str, int, int, str]] = []
    found = inspect(ARCHITECTURES["opt"](tmp_path), progress=lambda *told_now: told.append(told_now))
    assert told == [("inspect", i, len(found.rows), row.name) for i, row in enumerate(found.rows, start=1)]


def test_zero_matrix_is_a_row(tmp_path: Path) -> None:
    rewrite(ARCHITECTURES["llama"](tmp_path), **{"lm_head.weight": torch.zeros(300, 48)})
    (row,) = inspect(tmp_path, only=["lm_head"]).rows
    assert row.spectrum.numerical_rank == 0
    assert math.isnan(row.spectrum.stable_rank)


# ---- compressed checkpoints


def test_factored_map_has_the_spectrum_of_its_product(tmp_path: Path) -> None:
    names = ("model.layers.0.self_attn.q_proj", "model.layers.2.mlp.down_proj", "lm_head")
    products = factored(ARCHITECTURES["llama"](tmp_path), *names)
    rows = {row.name: row for row in inspect(tmp_path).rows}
    assert not [name for name in rows if name.endswith("right")]
    for name, product in products.items():
        row = rows.pop(name)
        assert (row.operator, row.rank, row.shape) == ("factors", 5, tuple(product.shape))
        assert row.bytes == 4 * 5 * sum(product.shape)
        assert row.dtype == torch.float32
        want = lapack_values(product)[:5].tolist()
        assert row.spectrum.values[:5].tolist() == pytest.approx(want, rel=1e-9)
        assert row.spectrum.values[5:].tolist() == [0.0] * (min(row.shape) - 5)
        assert row.spectrum.numerical_rank == 5
        assert row.spectrum.condition == math.inf
    left = {n: t for n, t in matrices_in(tmp_path).items() if n.removesuffix(".right") not in names}
    assert_rows_are(Inspection(tuple(rows.values()), ()), left)


def test_compressed_by_the_library(tmp_path: Path) -> None:
    """The rows say what the certificate says, and the same as the products written out."""
    source, small, dense = (tmp_path / part for part in ("source", "small", "dense"))
    ARCHITECTURES["llama_tied"](source)
    eckart.compress(source, small, keep=0.6, recipe="svd", only=["*_proj", "embed_tokens"])
    eckart.densify(small, dense)
    rows, written = ({row.name: row for row in inspect(folder).rows} for folder in (small, dense))
    assert set(rows) == set(written) == {row.name for row in inspect(source).rows}
    records = json.loads((small / "eckart.json").read_text())["matrices"]
    assert {record["operator"] for record in records} >= {"factors"}
    for record in records:
        row = rows[record["name"]]
        assert (list(row.shape), row.operator, row.rank, row.bytes) == (
            record["shape"],
            record["operator"],
            record["rank"],
            record["bytes"],
        )
        figures = row.spectrum, written[row.name].spectrum
        assert figures[0].stable_rank == pytest.approx(figures[1].stable_rank, rel=1e-5)
        assert figures[0].rank_for(0.9) == figures[1].rank_for(0.9)


def test_conv1d_of_a_compressed_gpt2(tmp_path: Path) -> None:
    source, small = tmp_path / "source", tmp_path / "small"
    ARCHITECTURES["gpt2"](source)
    eckart.compress(source, small, keep=0.5, recipe="svd")
    rows = [row for row in inspect(small).rows if row.operator == "factors"]
    originals = {row.name: row for row in inspect(source).rows}
    assert rows
    for row in rows:
        (original,) = (o for name, o in originals.items() if row.name.endswith(name) or name.endswith(row.name))
        assert row.shape == original.shape[::-1]
        assert row.rank is not None
        want = original.spectrum.values[: row.rank].tolist()  # Eckart–Young: the truncation keeps the first values
        assert row.spectrum.values[: row.rank].tolist() == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("side", ["weight", "right"])
def test_nan_in_a_factor(side: str, tmp_path: Path) -> None:
    factored(ARCHITECTURES["llama"](tmp_path), "lm_head")
    factor = load_file(tmp_path / "model.safetensors")[f"lm_head.{side}"]
    factor[0, 0] = math.nan
    rewrite(tmp_path, **{f"lm_head.{side}": factor})
    with pytest.raises(EckartError, match=f"lm_head.{side} holds NaN"):
        inspect(tmp_path)


def test_missing_factor_is_no_small_matrix(tmp_path: Path) -> None:
    factored(ARCHITECTURES["llama"](tmp_path), "lm_head")
    rewrite(tmp_path, **{"lm_head.right": None})
    with pytest.raises(EckartError, match="of the operator lm_head only a part is stored"):
        inspect(tmp_path)


def test_factor_of_another_shape(tmp_path: Path) -> None:
    factored(ARCHITECTURES["llama"](tmp_path), "lm_head")
    rewrite(tmp_path, **{"lm_head.right": torch.ones(4, 48)})
    with pytest.raises(EckartError, match=r"lm_head is not stored in the shapes that config\.json gives it"):
        inspect(tmp_path)


def test_json(tmp_path: Path) -> None:
    table = inspect(ARCHITECTURES["llama"](tmp_path, dtype=torch.bfloat16), only=["lm_head"]).to_json()
    assert json.loads(json.dumps(table, allow_nan=False)) == table
    row = inspect(tmp_path, only=["lm_head"]).rows[0]
    assert table == {
        "matrices": [
            {
                "name": "lm_head",
                "shape": [300, 48],
                "dtype": "bfloat16",
                "operator": "dense",
                "rank": None,
                "bytes": 300 * 48 * 2,
                "spectrum": row.spectrum.to_json(),
            }
        ],
        "untouched": [],
    }
