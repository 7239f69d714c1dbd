"""A stream that has directions of its own at every norm: against the original with projections in between, and where it goes from there."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import ARCHITECTURES, write_model
from outputs import far, loaded, logits, token_ids
from runs import CALIBRATED, calibration_text, edit_json, refused
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer
from transformers.models.llama import LlamaConfig

import eckart
from eckart.allocate import Level
from eckart.bonds import Projection
from eckart.bonds.choosing import EachNorm, Principal, Select
from eckart.bonds.correction import Refit
from eckart.bonds.scores import Magnitude, SecondMoment
from eckart.bonds.stages import linked, staged, stages
from eckart.errors import EckartError
from eckart.model.compression import Narrow, Paper, Statistics
from eckart.model.linked import put_link, without

OWN = Paper("own", "")
OPTIONS: dict[str, Any] = {"tokens": 512, "window": 32}
TURNED = ("llama", "llama_tied", "mistral", "qwen2", "qwen3")
RECIPE = "slicegpt-per-norm"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibration_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ARCHITECTURES["llama"](tmp_path_factory.mktemp("ground") / "model")


@pytest.fixture(scope="module")
def sliced(ground: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> eckart.Compressed:
    return slices(ground, tmp_path_factory.mktemp("sliced") / "out", RECIPE, text)


@pytest.fixture
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return ARCHITECTURES[request.param](tmp_path / "model")


def slices(model: Path, out: Path, recipe: Narrow | str, text: Path, keep: float = 0.75) -> eckart.Compressed:
    return eckart.compress(model, out, recipe=recipe, keep=keep, calibration=text, **OPTIONS)


class Dense:
    """The original, its stream projected before every norm by hand; ``rank`` directions, or the given projections."""

    def __init__(self, stock: Any, rank: int) -> None:
        self.stock, self.rank = stock, rank
        self.through: list[Tensor] = []
        self.moments: list[Tensor] = []

    @torch.no_grad()
    def __call__(self, ids: Tensor, *, choose: bool = False, interleaved: bool = True) -> Tensor:
        """The logits; with ``choose`` every projection is first taken from what comes there."""
        at, inner = 0, self.stock.model

        def cut(x: Tensor) -> Tensor:
            nonlocal at
            if choose:
                rows = x.reshape(-1, x.shape[-1]).double()
                self.moments.append(rows.T @ rows / len(rows))
                basis = torch.linalg.eigh(self.moments[-1]).eigenvectors[:, -self.rank :]
                self.through.append((basis @ basis.T).float())
            at += 1
            return x @ self.through[at - 1] if interleaved else x

        x = inner.embed_tokens(ids)
        how = self.called(ids)
        for block in inner.layers:
            x = cut(x)
            x = x + block.self_attn(block.input_layernorm(x), **how)[0]
            x = cut(x)
            x = x + block.mlp(block.post_attention_layernorm(x))
        found: Tensor = self.stock.lm_head(inner.norm(cut(x)))
        return found

    def called(self, ids: Tensor) -> dict[str, Any]:
        """The mask and the rotations that the blocks are given."""
        seen: dict[str, Any] = {}
        hook = self.stock.model.layers[0].register_forward_pre_hook(
            lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True
        )
        self.stock(input_ids=ids, use_cache=False)
        hook.remove()
        return {name: seen[name] for name in ("attention_mask", "position_embeddings")}


def calibration_ids(model: Path, text: Path) -> Tensor:
    """The windows that the runs here draw: all there are, so that their order does not count."""
    ids = AutoTokenizer.from_pretrained(model)(text.read_text(), return_tensors="pt").input_ids[0]
    return ids[: len(ids) // 32 * 32].reshape(-1, 32)


# ---- what it computes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", TURNED, indirect=True)
@pytest.mark.parametrize("statistics", list(Statistics))
def test_it_is_the_original_projected_before_every_norm(
    model: Path, statistics: Statistics, text: Path, tmp_path: Path
) -> None:
    recipe = Narrow(paper=OWN, stream=EachNorm(Principal()), allocate=Level(8), statistics=statistics)
    done = eckart.compress(
        model, tmp_path / "out", recipe=recipe, keep=0.75, calibration=text, tokens=1 << 20, window=32
    )
    stock = loaded(model)
    width = done.bonds[0].rank
    assert {record.rank for record in done.bonds} == {width}
    assert len(done.bonds) == 2 * stock.config.num_hidden_layers + 1
    dense = Dense(stock, width)
    dense(calibration_ids(model, text), choose=True, interleaved=statistics is Statistics.COMPRESSED)
    assert far(logits(loaded(tmp_path / "out")), dense(token_ids())) < 1e-3
    for record, moment in zip(done.bonds, dense.moments, strict=True):
        values = torch.linalg.eigvalsh(moment)
        assert record.bound is not None
        assert record.bound.achieved == pytest.approx(math.sqrt(float(values[:-width].sum())), rel=1e-3)
        assert record.bound.lower == pytest.approx(record.bound.achieved, rel=1e-6)


def test_the_recorded_loss_is_that_of_the_result(ground: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = eckart.compress(ground, out, recipe=RECIPE, keep=0.75, calibration=text, tokens=1 << 20, window=32)
    ids = calibration_ids(ground, text)
    with torch.no_grad():
        scores = loaded(out)(input_ids=ids).logits[:, :-1].double().log_softmax(-1)
    measured = -scores.gather(-1, ids[:, 1:, None]).mean()
    assert done.losses["narrowed"] == pytest.approx(float(measured), rel=1e-5)


def test_channels_may_be_selected_at_every_norm(ground: Path, text: Path, tmp_path: Path) -> None:
    recipe = Narrow(paper=OWN, stream=EachNorm(Select(SecondMoment())), allocate=Level(8))
    done = slices(ground, tmp_path / "out", recipe, text)
    kept = [record.kept for record in done.bonds]
    assert len(set(kept)) > 1
    dense = Dense(loaded(ground), done.bonds[0].rank)
    size = done.bonds[0].size
    dense.through = [torch.diag(torch.isin(torch.arange(size), torch.tensor(some)).float()) for some in kept]
    assert far(logits(loaded(tmp_path / "out")), dense(token_ids())) < 1e-4
    assert len(done.losses) == 1
    assert "original" in done.losses


def test_links_are_counted_among_the_bytes(ground: Path, sliced: eckart.Compressed, text: Path, tmp_path: Path) -> None:
    stored = load_file(sliced.folder / "model.safetensors")
    maps = [t for name, t in stored.items() if name.startswith("model.layers.") and t.ndim == 2]
    assert sliced.target_bytes[1] == sum(t.nbytes for t in maps)
    assert sliced.target_bytes[1] <= 0.75 * sliced.target_bytes[0]
    links = {name: t for name, t in stored.items() if name.endswith(".link")}
    size, rank = sliced.bonds[0].size, sliced.bonds[0].rank
    assert len(links) == len(sliced.bonds) - 1
    assert {tuple(t.shape) for t in links.values()} == {(rank, size - rank)}
    more = slices(
        ground, tmp_path / "more", RECIPE, text, keep=0.3
    )  # most directions go: as many as are left may differ
    size, rank = more.bonds[0].size, more.bonds[0].rank
    assert rank < size / 2
    link = next(t for name, t in load_file(more.folder / "model.safetensors").items() if name.endswith(".link"))
    assert link.shape == (rank, rank)
    assert more.target_bytes[1] <= 0.3 * more.target_bytes[0]


def test_nothing_is_sliced_where_all_may_stay(ground: Path, text: Path, tmp_path: Path) -> None:
    done = slices(ground, tmp_path / "out", RECIPE, text, keep=1.0)
    assert done.bonds == ()
    assert torch.equal(logits(loaded(tmp_path / "out")), logits(loaded(ground)))


# ---- links ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "rank"), [(6, 5), (6, 3), (6, 2), (7, 1), (40, 32)])
def test_a_link_takes_as_few_columns_as_directions_may_differ(size: int, rank: int) -> None:
    rng = torch.Generator().manual_seed(size + rank)
    bases = [torch.linalg.qr(torch.randn(size, rank, generator=rng, dtype=torch.float64)).Q for _ in range(2)]
    before, after = (Projection.onto(basis) for basis in bases)
    turned, link = linked(before, after)
    assert link.shape == (rank, min(rank, size - rank))
    one = torch.eye(rank, dtype=torch.float64)
    assert torch.allclose(turned.up @ turned.down, after.up @ after.down, atol=1e-12)  # the same subspace
    assert torch.allclose(turned.down @ turned.up, one, atol=1e-12)
    assert torch.allclose(turned.down @ before.up, one - link @ link.T, atol=1e-12)
    # Sums of squares are 1 minus the cosines of the principal angles, by SciPy.
    from scipy.linalg import subspace_angles

    angles = torch.from_numpy(subspace_angles(bases[0].numpy(), bases[1].numpy()))
    expected = (1 - angles.cos()).sort(descending=True).values[: link.shape[1]]
    assert torch.allclose(link.square().sum(0).sort(descending=True).values, expected, atol=1e-12)


def test_subspaces_that_agree_need_no_link() -> None:
    basis = torch.linalg.qr(torch.randn(9, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).Q
    spin = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)).Q
    _, link = linked(Projection.onto(basis), Projection.onto(basis @ spin))
    assert float(link.abs().max()) < 1e-7


@pytest.mark.parametrize("model", TURNED, indirect=True)
def test_a_stream_is_cut_without_losing_an_end(model: Path) -> None:
    graph = eckart.bond_graph(model)
    stream = graph.bond("residual")
    chain = stages(graph, "residual")
    ends = [end for stage in chain for end in stage.bond.ends]
    assert sorted(map(str, ends)) == sorted(map(str, stream.ends))
    assert {stage.norm for stage in chain} == set(stream.norms)
    names = [f"model.layers.{block}.{norm}" for block in range(3) for norm in ("input", "post_attention")]
    assert [stage.norm for stage in chain] == [*(f"{name}_layernorm" for name in names), "model.norm"]
    writers = [f"model.layers.{block}.{leaf}" for block in range(3) for leaf in ("self_attn.o_proj", "mlp.down_proj")]
    assert [stage.writer for stage in chain] == [*writers, None]
    first, last = chain[0].bond, chain[-1].bond
    assert [end.tensor for end in first.writers] == ["model.embed_tokens.weight"]
    assert [end.tensor for end in last.writers if end.tensor.endswith("weight")] == [
        "model.layers.2.mlp.down_proj.weight"
    ]
    cut = staged(graph, "residual", chain)
    assert "residual" not in cut.bonds
    assert set(graph.bonds) - {"residual"} < set(cut.bonds)


@pytest.mark.parametrize("model", ["phi"], indirect=True)
def test_a_stream_whose_sublayers_stand_side_by_side_is_not_cut(model: Path) -> None:
    with pytest.raises(EckartError, match=r"can't be cut at its norms: one norm and one map .* have to take turns"):
        stages(eckart.bond_graph(model), "residual")


@pytest.mark.parametrize("model", ["llama"], indirect=True)
@pytest.mark.parametrize("block", [0, 1, 2])
def test_every_stretch_has_one_writer(model: Path, block: int) -> None:
    """Both sublayers of any block behind one norm are enough for a refusal."""
    graph = eckart.bond_graph(model)
    at = f"model.layers.{block}"
    maps = dict(graph.maps)
    for leaf in ("gate_proj", "up_proj"):
        maps[f"{at}.mlp.{leaf}"] = replace(maps[f"{at}.mlp.{leaf}"], after=f"{at}.input_layernorm")
    with pytest.raises(EckartError, match="can't be cut at its norms"):
        stages(replace(graph, maps=maps), "residual")


def test_cuts_leave_nothing_behind(ground: Path) -> None:
    """Also where something goes wrong in between: the model is as it was, its hooks and attributes gone."""
    model = loaded(ground)
    before = logits(model)
    rest = torch.linalg.qr(torch.randn(48, 8, generator=torch.Generator().manual_seed(1))).Q
    cut = ("model.layers.0.input_layernorm", "model.layers.0.self_attn.o_proj", rest)

    def run_into_it() -> None:
        with without(model, [cut]):
            assert far(logits(model), before) > 1e-3
            raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"):
        run_into_it()
    assert torch.equal(logits(model), before)
    assert not hasattr(model.model.layers[0].self_attn.o_proj, "link")


def test_a_link_may_have_one_column(ground: Path) -> None:
    model = loaded(ground)
    put_link(model, "model.layers.0.mlp.down_proj", {"norm": "model.layers.0.input_layernorm", "shape": [48, 1]})
    assert model.model.layers[0].mlp.down_proj.link.shape == (48, 1)
    assert model.model.layers[0].input_layernorm.weight.shape == (1,)


@pytest.mark.parametrize("recipe", ["slicegpt", RECIPE])
def test_a_stream_that_was_seen_in_few_directions_is_as_wide_everywhere(
    recipe: str, ground: Path, tmp_path: Path
) -> None:
    """Where few tokens come in, the first norm needs few directions only; what fills them up carries nothing."""
    few = tmp_path / "few.txt"
    few.write_text("a b " * 400)
    seen = calibration_ids(ground, few)
    assert len(seen.unique()) < 10
    done = slices(ground, tmp_path / "out", recipe, few, keep=0.8)
    narrow = loaded(done.folder)
    width = narrow.config.hidden_size
    assert 10 < width < 48
    assert narrow.model.embed_tokens.weight.shape[1] == width
    assert eckart.verify(done.folder, ground, calibration=few).failures == ()
    if recipe == RECIPE:  # nothing is lost behind the embedding
        assert done.bonds[0].bound is not None
        assert done.bonds[0].bound.achieved == pytest.approx(0, abs=1e-6)


def test_maps_too_thin_for_links_are_told(tmp_path: Path, text: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1}
    thin = write_model(LlamaConfig, {**sizes, "head_dim": 8, "num_hidden_layers": 2}, tmp_path / "thin")
    told = refused(
        "compress",
        thin,
        "-o",
        tmp_path / "out",
        "--recipe",
        RECIPE,
        "--keep",
        "0.8",
        "--calibration",
        text,
        *CALIBRATED,
    )
    assert "would take as many bytes as channels of the stream save: take one set of directions (slicegpt)" in told
    slices(thin, tmp_path / "one", "slicegpt", text)


# ---- where it goes ----------------------------------------------------------------------------------------------------


def test_it_is_verified_and_a_changed_link_is_found(
    sliced: eckart.Compressed, ground: Path, text: Path, tmp_path: Path
) -> None:
    told = eckart.verify(sliced.folder, ground, calibration=text)
    assert told.failures == ()
    assert told.checked["bonds"] > len(sliced.bonds)
    again = slices(ground, tmp_path / "out", RECIPE, text)

    def other(table: dict[str, Any]) -> None:
        links = table["quantization_config"]["links"]
        links["model.layers.0.self_attn.o_proj"]["norm"] = "model.layers.1.input_layernorm"

    edit_json(again.folder / "config.json", other)
    assert any("quantization_config" in told for told in eckart.verify(again.folder, ground, calibration=text).failures)


def test_it_survives_saving_copying_and_adapters(sliced: eckart.Compressed, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = loaded(sliced.folder)
    expected = logits(model)
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(loaded(tmp_path / "saved")), expected)
    twin = copy.deepcopy(model)
    twin.model.layers[0].self_attn.o_proj.link.data.zero_()
    assert far(logits(twin), expected) > 1e-3
    assert torch.equal(logits(model), expected)
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(target_modules=["q_proj", "o_proj", "down_proj"], r=2))
    assert far(logits(adapted), expected) < 1e-6
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.02, generator=torch.Generator().manual_seed(len(name)))
    apart = logits(adapted)
    assert far(apart, expected) > 1e-3
    assert far(logits(adapted.merge_and_unload()), apart) < 1e-5


def test_links_train_and_checkpointed_activations_give_the_same_gradient(sliced: eckart.Compressed) -> None:
    gradients = []
    for checkpointed in (False, True):
        model = loaded(sliced.folder).train()
        if checkpointed:
            model.gradient_checkpointing_enable()
        model(input_ids=token_ids(), labels=token_ids()).loss.backward()
        gradients.append(model.model.layers[1].mlp.down_proj.link.grad)
    assert float(gradients[0].abs().max()) > 0
    assert torch.allclose(*gradients)


def test_without_the_library_it_does_not_load(sliced: eckart.Compressed) -> None:
    code = f"from transformers import AutoModelForCausalLM as A; A.from_pretrained({str(sliced.folder)!r})"
    # The registration waits for transformers' own table: a process that never hears of this library.
    block = "import sys; sys.modules['eckart'] = None; "
    found = subprocess.run([sys.executable, "-c", block + code], capture_output=True, text=True, check=False)
    assert found.returncode != 0
    assert "mismatched" in found.stderr


def test_a_cached_generation_is_that_of_the_whole_text(sliced: eckart.Compressed) -> None:
    model, ids = loaded(sliced.folder), token_ids()
    whole = model.generate(ids, max_new_tokens=5, do_sample=False, use_cache=False, pad_token_id=0)
    assert torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0), whole)


# ---- refused ----------------------------------------------------------------------------------------------------------


def test_it_has_no_stock_form(sliced: eckart.Compressed, tmp_path: Path) -> None:
    told = refused("densify", sliced.folder, "-o", tmp_path / "dense", out=tmp_path / "dense")
    assert "the directions of the stream change at model.layers.0." in told
    assert "with one set of directions (slicegpt)" in told
    assert "densify" not in (sliced.folder / "README.md").read_text()


def test_a_choice_that_measures_nothing_is_not_made_at_every_norm(tmp_path: Path, ground: Path) -> None:
    with pytest.raises(ValueError, match="the same at every norm: make it once"):
        EachNorm(Select(Magnitude()))
    with pytest.raises(ValueError, match="select its channels without a refit"):
        Narrow(paper=OWN, stream=EachNorm(Select(SecondMoment(), Refit())))
    recipe = tmp_path / "own.toml"
    recipe.write_text(
        '[stream]\npart = "EachNorm"\n[stream.choice]\npart = "Select"\n[stream.choice.score]\npart = "Magnitude"\n'
    )
    told = refused("compress", ground, "-o", tmp_path / "out", "--recipe", recipe, "--keep", "0.8")
    assert "the same at every norm" in told


@pytest.mark.parametrize(
    ("writer", "entry", "sentence"),
    [
        ("model.layers.0.self_attn.o_proj", {"shape": [8, 2]}, "to no norm, or not by a matrix: it is damaged"),
        ("model.layers.0.self_attn.o_proj", {"norm": "model.norm", "shape": [8]}, "not by a matrix"),
        ("model.layers.0.self_attn.o_proj", {"norm": "model.norm", "shape": [8, 0]}, "not by a matrix"),
        ("model.layers.9.mlp.down_proj", {"norm": "model.norm", "shape": [8, 2]}, "names the module model.layers.9"),
        ("model.layers.0.mlp.down_proj", {"norm": "model.knorm", "shape": [8, 2]}, "names the module model.knorm"),
        ("model.layers.0.mlp.down_proj", {"norm": "model.norm", "shape": [8, 2]}, "to a norm of 48 channels"),
        ("model.layers.0.mlp", {"norm": "model.norm", "shape": [64, 2]}, "a LlamaMLP, which is no linear map"),
        ("model.layers.0.mlp.down_proj", {"norm": "model.layers.0", "shape": [64, 2]}, "no norm"),
    ],
)
def test_damaged_links_are_told(writer: str, entry: dict[str, object], sentence: str, ground: Path) -> None:
    with pytest.raises(EckartError) as error:
        put_link(loaded(ground), writer, entry)
    assert sentence in str(error.value)


def test_a_map_alone_says_what_it_lacks(sliced: eckart.Compressed) -> None:
    module = loaded(sliced.folder).model.layers[0].mlp.down_proj
    with pytest.raises(EckartError, match="without the norm in front of its sublayer"):
        module(torch.zeros(1, module.in_features))


def test_the_config_says_where_links_are(sliced: eckart.Compressed) -> None:
    table = json.loads((sliced.folder / "config.json").read_text())["quantization_config"]
    assert table["modules"] == {}
    rank = sliced.bonds[0].rank
    assert table["links"]["model.layers.2.mlp.down_proj"] == {
        "norm": "model.layers.2.post_attention_layernorm",
        "shape": [rank, min(rank, sliced.bonds[0].size - rank)],
    }
    assert len(table["links"]) == 6
