"""Graphs of declared architectures: every tensor has its place, and what does not fit is named with the nearest that does."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from models import ARCHITECTURES
from networks import NAMES, Network, network
from typer.testing import CliRunner

import eckart
from eckart.bonds import BondGraph, Fixed, Invertible, Orthogonal, Pairs, Permutation, assembled, declarations, declared
from eckart.cli.main import app
from eckart.errors import EckartError


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Network:
    return network("llama", tmp_path_factory.mktemp("llama"))


def graph_of(there: Network, **shapes: tuple[int, ...] | None) -> BondGraph:
    """The graph with tensors reshaped, added or (``None``) left out; dots in names as double underscores."""
    found: dict[str, tuple[int, ...]] = {name: tuple(t.shape) for name, t in there.tensors.items()}
    for key, shape in shapes.items():
        name = key.replace("__", ".")
        if shape is None:
            del found[name]
        else:
            found[name] = shape
    declaration = declared(there.config["model_type"])
    assert declaration is not None
    return assembled(declaration, there.config, found)


@pytest.mark.parametrize("kind", NAMES)
def test_every_axis_of_every_tensor_belongs_to_a_bond(kind: str, tmp_path: Path) -> None:
    """All entries of all axes of maps are taken hold of, and none by two bonds but where one is a subgroup of another."""
    there = network(kind, tmp_path)
    graph = there.graph()
    held: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for bond in graph.bonds.values():
        if not bond.name.endswith((".linear", ".channels")):
            for end in bond.ends:
                held.setdefault((end.tensor, end.axis), []).append((end.start, end.stop))
    for entry in graph.maps.values():
        for axis, size in enumerate(there.tensors[entry.weight].shape):
            ranges = sorted(held[entry.weight, axis])
            assert ranges[0][0] == 0
            assert ranges[-1][1] == size
            assert all(a[1] == b[0] for a, b in pairwise(ranges)), (entry.name, axis)
    for bond in graph.bonds.values():
        assert {end.size for end in bond.ends} == {bond.size}


def test_the_graph_of_a_llama_by_hand(llama: Network) -> None:
    graph = llama.graph()
    assert isinstance(graph.bond("residual").symmetry, Orthogonal)
    assert isinstance(graph.bond("vocabulary").symmetry, Fixed)
    values = graph.bond("model.layers.1.values.1")
    assert isinstance(values.symmetry, Invertible)
    assert [str(end) for end in values.writers] == ["model.layers.1.self_attn.v_proj.weight[12:24]"]
    assert [str(end) for end in values.readers] == [
        "model.layers.1.self_attn.o_proj.weight[:, 24:36]",
        "model.layers.1.self_attn.o_proj.weight[:, 36:48]",
    ]
    keys = graph.bond("model.layers.0.keys.0")
    assert keys.symmetry == Pairs(12, 0)
    assert [str(end) for end in keys.readers] == [
        "model.layers.0.self_attn.q_proj.weight[0:12]",
        "model.layers.0.self_attn.q_proj.weight[12:24]",
    ]
    hidden = graph.bond("model.layers.2.hidden")
    assert hidden.symmetry == Permutation(positive=False)
    assert len(hidden.ends) == 3
    assert graph.bond("residual").norms[0] == "model.norm"
    assert len(graph.bond("residual").norms) == 7


def test_normalised_and_partly_rotary_keys(tmp_path: Path) -> None:
    for kind in ("qwen3", "gemma3"):
        keys = network(kind, tmp_path / kind).graph().bond("model.layers.0.keys.0")
        assert str(keys.symmetry).startswith("fixed: model.layers.0.self_attn.")
    assert network("phi", tmp_path / "phi").graph().bond("model.layers.0.keys.0").symmetry == Pairs(6, 6)


def test_relu_passes_positive_scales_on(tmp_path: Path) -> None:
    for kind, positive in (("opt", True), ("vit", True), ("gpt2", False), ("bert", False)):
        graph = network(kind, tmp_path / kind).graph()
        assert graph.bond(f"{graph.blocks[0]}.hidden").symmetry == Permutation(positive)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"model__layers__0__mlp__up_proj__weight": None},
            r"llama declares model\.layers\.0\.mlp\.up_proj\.weight, which the model does not have: the nearest is model\.layers\.\d\.mlp",
        ),
        (
            {"model__layers__0__mlp__extra__weight": (4, 4)},
            r"model\.layers\.0\.mlp\.extra\.weight is not declared for llama: the nearest is model\.layers\.0\.mlp\.\w+\.weight",
        ),
        (
            {"model__layers__1__mlp__up_proj__weight": (90, 48)},
            r"gate_proj\.weight and model\.layers\.1\.mlp\.up_proj\.weight meet in hidden, but have 96 and 90 entries",
        ),
        ({"model__layers__1__mlp__up_proj__weight": (96, 40)}, "meet in residual, but have 48 and 40 entries"),
        ({"model__layers__1__self_attn__k_proj__weight": (36, 48)}, r"has 36 outputs, but 2 keys of size 12 are 24"),
        (
            {"model__layers__1__self_attn__o_proj__weight": (48, 47)},
            "reads 47 values, which 4 heads do not share evenly",
        ),
        ({"model__norm__weight": ()}, r"declares model\.norm\.weight as a norm, but its shape is \[\]"),
        ({"model__norm__weight": (40,)}, r"model\.norm\.weight and lm_head\.weight meet, but have 40 and 48 entries"),
        ({"model__layers__1__self_attn__o_proj__weight": (48, 48, 1)}, r"as a matrix, but its shape is \[48, 48, 1\]"),
    ],
)
def test_tensors_that_do_not_fit_are_named(llama: Network, change: dict[str, Any], said: str) -> None:
    with pytest.raises(EckartError, match=said):
        graph_of(llama, **change)


@pytest.mark.parametrize(
    ("entry", "value", "said"),
    [
        ("num_attention_heads", 0, "num_attention_heads is 0"),
        ("num_key_value_heads", 3, "4 heads do not share 3 groups"),
        ("rope_parameters", {"partial_rotary_factor": "half"}, "partial_rotary_factor is half: a share from 0 to 1"),
        ("rope_parameters", {"partial_rotary_factor": 2.0}, "partial_rotary_factor is 2.0"),
    ],
)
def test_configs_that_do_not_fit_are_named(llama: Network, entry: str, value: object, said: str) -> None:
    other = Network(llama.folder, llama.kind, llama.config | {entry: value}, llama.tensors)
    with pytest.raises(EckartError, match=said):
        other.graph()


def test_a_single_head_has_one_bond_each(llama: Network) -> None:
    other = Network(
        llama.folder,
        llama.kind,
        llama.config | {"num_attention_heads": 1, "num_key_value_heads": None},
        {
            name: tensor[:1].expand(48, 48) if name.endswith(("k_proj.weight", "v_proj.weight")) else tensor
            for name, tensor in llama.tensors.items()
        },
    )
    values = [bond for bond in other.graph().bonds if ".values." in bond]
    assert values == [f"model.layers.{layer}.values.0" for layer in range(3)]


def test_a_model_that_was_saved_without_its_head_has_shorter_names(tmp_path: Path) -> None:
    """As the first GPT-2 is on the hub."""
    there = network("gpt2", tmp_path)
    shapes = {n.removeprefix("transformer."): tuple(t.shape) for n, t in there.tensors.items() if n != "lm_head.weight"}
    declaration = declared("gpt2")
    assert declaration is not None
    tied = assembled(
        declaration, there.config | {"tie_word_embeddings": True}, shapes | {"h.0.attn.bias": (1, 1, 8, 8)}
    )
    assert tied.ties == {"lm_head": "wte"}
    assert tied.norms["ln_f"].readers == ("lm_head",)
    assert tied.bond("h.1.values.2").readers[0].tensor == "h.1.attn.c_proj.weight"
    whole = there.graph()
    assert {name.removeprefix("transformer.") for name in whole.bonds} == {*tied.bonds}
    assert [b.size for b in whole.bonds.values()] == [b.size for b in tied.bonds.values()]


def test_declarations_tell_norms_that_subtract_the_mean() -> None:
    declarations.cache_clear()
    centred = {name for name, declaration in declarations().items() if declaration.centres}
    assert centred == {"bert", "gpt2", "gpt_neox", "opt", "phi", "vit"}


def test_a_missing_head_that_is_not_tied_is_missed(llama: Network) -> None:
    with pytest.raises(EckartError, match=r"lm_head\.weight, which the model does not have"):
        graph_of(llama, lm_head__weight=None)


def test_each_model_type_is_declared_once() -> None:
    types = [name for declaration in declarations().values() for name in declaration.model_types]
    assert len(types) == len(set(types))
    assert {
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "gemma2",
        "gemma3_text",
        "gpt2",
        "gpt_neox",
        "opt",
        "phi",
        "bert",
        "vit",
    } == {*types}


# ---- of a model directory -------------------------------------------------------------------------------------------


def test_an_architecture_that_nobody_declared_has_inner_bonds(tmp_path: Path) -> None:
    ARCHITECTURES["mixtral"](tmp_path)
    graph = eckart.bond_graph(tmp_path)
    assert dict(graph.bonds) == {}
    assert graph.maps["model.layers.0.self_attn.q_proj"].shape == (48, 48)


def test_norms_behind_the_blocks_of_opt_are_refused(tmp_path: Path) -> None:
    ARCHITECTURES["opt_projected"](tmp_path)
    with pytest.raises(EckartError, match="declared for do_layer_norm_before = True only, and this model has False"):
        eckart.bond_graph(tmp_path)


def test_a_compressed_model_is_refused(tmp_path: Path) -> None:
    ARCHITECTURES["llama"](tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "eckart"}}))
    with pytest.raises(EckartError, match="is compressed: ask for the bonds of the original"):
        eckart.bond_graph(tmp_path)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., str]:
    ARCHITECTURES["llama_tied"](tmp_path / "model")

    def said(*options: str) -> str:
        done = CliRunner().invoke(app, ["bonds", str(tmp_path / "model"), *options])
        assert done.exit_code == 0, done.output
        return done.output

    return said


def test_the_command_tells_each_kind_of_bond_once(run: Callable[..., str]) -> None:
    lines = run().splitlines()
    at = lines.index("residual: size 48, rotations")
    assert lines[at + 1].split() == ["written", "by", "mlp.down_proj,", "model.embed_tokens,", "self_attn.o_proj"]
    at = lines.index("model.layers.*.values.* (6 times): size 12, any invertible matrix")
    assert [line.split() for line in lines[at + 1 : at + 3]] == [
        ["written", "by", "self_attn.v_proj"],
        ["read", "by", "self_attn.o_proj"],
    ]
    assert "model.layers.*.keys.* (6 times): size 12, a rotation and scale for each of 6 rotary pairs" in lines
    assert lines[-2] == "inside each of 23 maps: any invertible matrix between its factors"
    assert lines[-1] == "lm_head has the weight of model.embed_tokens"


def test_the_command_tells_machines_everything(run: Callable[..., str]) -> None:
    told = json.loads(run("--json"))
    assert told["architecture"] == "llama"
    assert told["ties"] == {"lm_head": "model.embed_tokens"}
    bonds = {bond["bond"]: bond for bond in told["bonds"]}
    assert bonds["model.layers.2.values.0"]["writers"] == [
        {"tensor": "model.layers.2.self_attn.v_proj.weight", "axis": 0, "start": 0, "stop": 12}
    ]
    assert {"map": "model.layers.0.mlp.down_proj", "shape": [48, 96], "inner": 48} in told["maps"]
