"""Narrowed networks against the original ones whose activations are projected as they pass, and refits against least squares."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from changes import EXACT, conditioned, far, folded
from market import float64, gaussian, generator, orthonormal
from networks import Network, network
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from eckart.bonds import Matrix, Projection, change_basis, narrow, narrowed_eps
from eckart.errors import EckartError

# The map behind the hidden units of a block, and the config's entry for how many there are.
READERS = {
    "llama": ("mlp.down_proj", "intermediate_size"),
    "gpt2": ("mlp.c_proj", "n_inner"),
    "opt": ("fc2", "ffn_dim"),
}


@pytest.fixture(scope="module", params=READERS)
def there(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Network:
    return network(request.param, tmp_path_factory.mktemp(request.param))


def hidden(there: Network) -> dict[str, str]:
    """The bond of hidden units of each block, and who reads it."""
    return {f"{block}.hidden": f"{block}.{READERS[there.kind][0]}" for block in there.graph().blocks}


def with_width(there: Network, width: int, folder: Path) -> Network:
    """The same with another stock configuration."""
    config = json.loads((there.folder / "config.json").read_text()) | {READERS[there.kind][1]: width}
    (folder / "config.json").write_text(json.dumps(config))
    return Network(folder, there.kind, there.config | {READERS[there.kind][1]: width}, there.tensors)


def projected(there: Network, places: Mapping[str, Tensor]) -> Tensor:
    """Logits of the original network in which what some maps read is multiplied by a matrix as it arrives."""
    folder = there.folder / "oracle"
    folder.mkdir(exist_ok=True)
    save_file({n: t.clone() for n, t in there.tensors.items()}, folder / "model.safetensors")
    config = json.loads((there.folder / "config.json").read_text()) | {"tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    maps = dict(places)
    load = AutoModelForCausalLM.from_pretrained

    def hooked(*args: object, **kwargs: object) -> nn.Module:
        model = load(*args, **kwargs)  # type: ignore[arg-type]
        for name, module in model.named_modules():
            if name in maps:
                matrix = maps.pop(name)
                module.register_forward_pre_hook(lambda _, given, m=matrix: (given[0] @ m.T, *given[1:]))
        assert maps == {}
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AutoModelForCausalLM, "from_pretrained", hooked)
        return there.outputs()


def test_selected_units_are_those_of_a_network_that_loses_the_others(there: Network, tmp_path: Path) -> None:
    """In a stock configuration of less width; with a refit, against the same units with what others are told by them."""
    places = hidden(there)
    size = there.graph().bond(next(iter(places))).size
    kept = torch.randperm(size, generator=generator(1))[: size // 2]
    moment = gaussian(3 * size, size, 5).T @ gaussian(3 * size, size, 5)
    for projection in (Projection.selection(size, kept), Projection.refitted(moment, kept)):
        smaller = with_width(there, len(kept), tmp_path)
        changed = narrow(there.graph(), dict.fromkeys(places, projection), there.tensors)
        found = smaller.outputs(changed)
        matrix = projection.up @ projection.down
        assert far(found, projected(there, dict.fromkeys(places.values(), matrix))) <= EXACT
        assert far(found, there.outputs()) > 1e-3


def test_all_units_in_another_order_change_nothing(there: Network, tmp_path: Path) -> None:
    places = hidden(there)
    size = there.graph().bond(next(iter(places))).size
    whole = Projection.selection(size, torch.arange(size).flip(0))
    changed = narrow(there.graph(), dict.fromkeys(places, whole), there.tensors)
    assert far(with_width(there, size, tmp_path).outputs(changed), there.outputs()) <= EXACT


def test_values_go_through_any_subspace(there: Network) -> None:
    """Of all heads of a block: between the narrowed maps stands what the oracle multiplies the values by."""
    graph = there.graph()
    block, reader = (
        graph.blocks[0],
        {"llama": "self_attn.o_proj", "gpt2": "attn.c_proj", "opt": "self_attn.out_proj"}[there.kind],
    )
    names = [name for name in graph.bonds if name.startswith(f"{block}.values.")]
    size = graph.bond(names[0]).size
    # Down to two directions less and up again, as one step: the narrowed maps multiplied by orthonormal columns once more.
    projections = {name: Projection.onto(orthonormal(size, size - 2, seed)) for seed, name in enumerate(names)}
    changed = narrow(graph, projections, there.tensors)
    again = dict(there.tensors)
    for name, projection in projections.items():
        for end in graph.bond(name).ends:
            again[end.tensor] = _put(again[end.tensor], end.axis, end.start, end.stop, projection.up @ projection.down)
    maps = graph.maps
    for entry in (m for m in maps.values() if m.name.startswith(f"{block}.") and m.weight in changed):
        assert changed[entry.weight].shape != there.tensors[entry.weight].shape
    heads = len(graph.bond(names[0]).readers) * len(names)
    readers = [projections[names[at * len(names) // heads]] for at in range(heads)]
    matrix = torch.block_diag(*(p.up @ p.down for p in readers))
    assert far(there.outputs(again), projected(there, {f"{block}.{reader}": matrix})) <= EXACT
    # What the narrowed maps compute together is what the projected ones do.
    weight = changed[f"{block}.{reader}.weight"]
    columns = weight if there.kind == "gpt2" else weight.T
    whole = there.tensors[f"{block}.{reader}.weight"]
    whole = whole if there.kind == "gpt2" else whole.T
    assert far(torch.block_diag(*(p.up for p in readers)) @ columns, matrix @ whole) <= EXACT


def _put(tensor: Tensor, axis: int, start: int, stop: int, matrix: Tensor) -> Tensor:
    moved = tensor.movedim(axis, 0).clone()
    moved[start:stop] = torch.tensordot(matrix, moved[start:stop], 1)
    return moved.movedim(0, axis).contiguous()


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
def test_a_sliced_stream_is_one_that_is_projected_after_every_write(kind: str, tmp_path: Path) -> None:
    """In a stock configuration of less width, against the network as it was with all that writes the stream projected."""
    (tmp_path / "whole").mkdir()
    (tmp_path / "sliced").mkdir()
    there = network(kind, tmp_path / "whole")
    graph = there.graph()
    tensors = folded(graph, dict(there.tensors))
    projection = Projection.onto(orthonormal(48, 36, 3))
    config = json.loads((there.folder / "config.json").read_text())
    eps = narrowed_eps(config["rms_norm_eps"], projection)
    (tmp_path / "sliced" / "config.json").write_text(
        json.dumps(config | {"hidden_size": 36, "head_dim": 12, "rms_norm_eps": eps})
    )
    sliced = Network(tmp_path / "sliced", kind, there.config, tensors)
    found = sliced.outputs(narrow(graph, {"residual": projection}, tensors))
    matrix = projection.up @ projection.down
    written = dict(tensors)
    for end in graph.bond("residual").writers:
        written[end.tensor] = (
            torch.tensordot(written[end.tensor], matrix, ([end.axis], [0])).movedim(-1, end.axis).contiguous()
        )
    assert far(found, there.outputs(written)) <= EXACT
    assert far(found, there.outputs()) > 1e-2


def test_a_stream_is_sliced_where_norms_let_it(tmp_path: Path) -> None:
    for kind, said in (
        ("llama", "fold it first"),
        ("gpt2", "is not narrowed by projections"),
        ("gemma2", "is not narrowed"),
    ):
        (tmp_path / kind).mkdir()
        there = network(kind, tmp_path / kind)
        with pytest.raises(EckartError, match=said):
            narrow(there.graph(), {"residual": Projection.onto(orthonormal(48, 36, 3))}, there.tensors)
    there = network("llama", tmp_path / "llama")
    skewed = Projection(2 * orthonormal(48, 36, 3).T, orthonormal(48, 36, 3) / 2)
    with pytest.raises(EckartError, match="measure its length: project it orthogonally"):
        narrow(there.graph(), {"residual": skewed}, folded(there.graph(), dict(there.tensors)))


def test_whole_bonds_are_changes_of_basis(there: Network) -> None:
    """A projection without loss is a change of basis, and gives the same tensors."""
    graph = there.graph()
    name = next(name for name in graph.bonds if ".values." in name)
    m = conditioned(graph.bond(name).size, 3)
    changed = narrow(graph, {name: Projection(m, torch.linalg.inv(m))}, there.tensors)
    expected = change_basis(graph, name, Matrix(m), there.tensors)
    assert changed.keys() == expected.keys()
    assert max(far(changed[n], expected[n]) for n in changed) <= EXACT


@pytest.mark.parametrize("rank", [12, 5])
def test_a_refit_is_least_squares(rank: int) -> None:
    """Against NumPy on the data themselves; with moments of lower rank and units of very different size too."""
    x = gaussian(60, rank, 1) @ gaussian(rank, 12, 2) * torch.logspace(0, -9, 12, dtype=torch.float64)
    kept = torch.tensor([7, 0, 3, 11])
    up = float64(Projection.refitted(x.T @ x, kept).up)
    data = float64(x)
    best = np.linalg.lstsq(data[:, kept.numpy()] / np.linalg.norm(data[:, kept.numpy()], axis=0), data, rcond=None)[0]
    best = (best / np.linalg.norm(data[:, kept.numpy()], axis=0)[:, None]).T
    sizes = np.linalg.norm(data, axis=0)
    rest = np.linalg.norm(data - data[:, kept.numpy()] @ up.T, axis=0) / sizes
    assert rest == pytest.approx(np.linalg.norm(data - data[:, kept.numpy()] @ best.T, axis=0) / sizes, abs=1e-7)
    assert rest[kept.numpy()].max() <= 1e-7


def test_units_that_never_speak_are_refitted_by_nothing() -> None:
    moment = torch.zeros(4, 4, dtype=torch.float64)
    moment[0, 0] = 2.0
    up = Projection.refitted(moment, torch.tensor([0, 2])).up
    assert up.tolist() == [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]


def test_what_cannot_be_narrowed_is_refused(there: Network) -> None:
    graph = there.graph()
    name = f"{graph.blocks[0]}.hidden"
    size = graph.bond(name).size
    with pytest.raises(EckartError, match=f"{name} lies behind a nonlinearity, .*: select units"):
        narrow(graph, {name: Projection.onto(orthonormal(size, 4))}, there.tensors)
    with pytest.raises(EckartError, match=f"{name} has {size} directions, and the projection is one of 5"):
        narrow(graph, {name: Projection.selection(5, torch.arange(3))}, there.tensors)
    mean = torch.full((1, size), 1 / size, dtype=torch.float64)
    with pytest.raises(EckartError, match="select units"):
        narrow(graph, {name: Projection(mean, size * mean.T)}, there.tensors)
    with pytest.raises(EckartError, match="there is no bond nowhere: the nearest is"):
        narrow(graph, {"nowhere": Projection.selection(5, torch.arange(3))}, there.tensors)


@pytest.mark.parametrize("kept", [[0, 0], [5], [-1]])
def test_what_is_no_selection_is_refused(kept: list[int]) -> None:
    with pytest.raises(ValueError, match="different ones from 0 to 4"):
        Projection.selection(5, torch.tensor(kept))


def test_what_does_not_fit_is_no_projection() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        Projection(torch.ones(2, 5), torch.ones(4, 2))
    with pytest.raises(ValueError, match="do not fit"):
        Projection(torch.ones(5, 2), torch.ones(2, 5))
