"""Every change that a bond allows leaves the network's function as it is, and every other one is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from changes import EXACT, allowed, conditioned, far, folded, rotation
from market import orthonormal
from networks import NAMES, Network, network

from eckart.bonds import (
    Bond,
    Change,
    Diagonal,
    Fixed,
    Invertible,
    Matrix,
    Order,
    Orthogonal,
    Pairs,
    Permutation,
    Scales,
    change_basis,
    fold_centring,
    fold_norm,
    unfold_norm,
)
from eckart.errors import EckartError


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Network]:
    made: dict[str, Network] = {}

    class Made(dict[str, Network]):
        def __missing__(self, kind: str) -> Network:
            made[kind] = self[kind] = network(kind, tmp_path_factory.mktemp(kind))
            return made[kind]

    return Made()


def forbidden(bond: Bond, seed: int) -> list[Change]:
    """Changes that are none of its symmetry, as near to it as may be."""
    n = bond.size
    swap = torch.arange(n)
    swap[[0, 1]] = swap[[1, 0]]
    shear = torch.eye(n, dtype=torch.float64)
    shear[0, 1] = 1e-6
    scales = torch.ones(n, dtype=torch.float64)
    scales[0] = 1.0 + 1e-6
    match bond.symmetry:
        case Fixed():
            return [Order(swap), Scales(scales), Matrix(shear)]
        case Orthogonal(mean=mean):
            return [Scales(scales), Matrix(shear), *([Matrix(orthonormal(n, n, seed))] if mean else [])]
        case Permutation(positive=positive):
            return [Matrix(shear), Scales(-scales), *([] if positive else [Scales(scales)])]
        case Diagonal():
            return [Order(swap), Matrix(shear)]
        case Pairs(rotary=rotary):
            one = torch.eye(n, dtype=torch.float64)
            one[rotary // 2, rotary // 2] = 1.0 + 1e-6  # one of a pair scaled
            return [Order(swap), Matrix(one), *([_across(rotary, n)] if n > rotary else [])]
        case _:
            return [Matrix(conditioned(n + 1, 1))]


def _across(rotary: int, n: int) -> Matrix:
    """A little of what positions leave alone, mixed into the last entry that they turn."""
    mixed = torch.eye(n, dtype=torch.float64)
    mixed[rotary - 1, rotary] = 1e-6
    return Matrix(mixed)


@pytest.mark.parametrize("kind", NAMES)
def test_what_a_bond_allows_changes_nothing(kind: str, networks: dict[str, Network]) -> None:
    """All bonds at once, but the stream: each change on top of the others; then back again."""
    there = networks[kind]
    graph, tensors = there.graph(), dict(there.tensors)
    changes = [
        (bond.name, change)
        for seed, bond in enumerate(graph.bonds.values())
        if bond.name != "residual"
        for change in allowed(bond, seed)
    ]
    assert len({name for name, _ in changes}) >= 8
    for name, change in changes:
        tensors |= change_basis(graph, name, change, tensors)
    assert far(there.outputs(tensors), there.outputs()) <= EXACT
    for name, change in reversed(changes):
        tensors |= change_basis(graph, name, change.inverse(), tensors)
    assert max(far(tensors[name], tensor) for name, tensor in there.tensors.items()) <= EXACT


@pytest.mark.parametrize("kind", NAMES)
def test_each_kind_of_bond_by_itself(kind: str, networks: dict[str, Network]) -> None:
    """One of every kind, so that a change that is none would not be undone by another."""
    there = networks[kind]
    graph = there.graph()
    before = there.outputs()
    kinds = {
        bond.name.rstrip("0123456789"): bond for bond in graph.bonds.values() if f"{graph.blocks[1]}." in bond.name
    }
    for bond in kinds.values():
        for change in allowed(bond, 11):
            changed = change_basis(graph, bond.name, change, there.tensors)
            assert any(far(tensor, there.tensors[name]) > 1e-3 for name, tensor in changed.items())
            assert far(there.outputs(changed), before) <= EXACT, bond.name


@pytest.mark.parametrize("kind", NAMES)
def test_the_stream_turns_where_it_may(kind: str, networks: dict[str, Network]) -> None:
    there = networks[kind]
    graph = there.graph()
    stream = graph.bond("residual")
    if isinstance(stream.symmetry, Fixed):
        assert kind in ("gemma2", "gemma3", "bert")
        return
    start = dict(there.tensors)
    for name in stream.norms:  # the head has no place for what a final LayerNorm adds
        norm = graph.norm(name)
        if norm.bias is not None and any(graph.maps[reader].bias is None for reader in norm.readers):
            start[norm.bias] = torch.zeros_like(start[norm.bias])
    before = there.outputs(start)
    tensors = folded(graph, start)
    assert far(there.outputs(tensors), before) <= EXACT
    for change in allowed(stream, 5):
        turned = tensors | change_basis(graph, "residual", change, tensors)
        assert far(there.outputs(turned), before) <= EXACT
        back = turned | change_basis(graph, "residual", change.inverse(), turned)
        assert max(far(back[name], tensor) for name, tensor in tensors.items() if float(tensor.norm())) <= EXACT


@pytest.mark.parametrize("kind", NAMES)
def test_what_a_bond_does_not_allow_is_refused_by_name(kind: str, networks: dict[str, Network]) -> None:
    there = networks[kind]
    graph = there.graph()
    tensors = folded(graph, dict(there.tensors)) if graph.bond("residual").norms else dict(there.tensors)
    for seed, bond in enumerate(graph.bonds.values()):
        for change in forbidden(bond, seed):
            with pytest.raises(EckartError) as told:
                change_basis(graph, bond.name, change, tensors)
            assert bond.name in str(told.value)
            if not isinstance(bond.symmetry, Invertible):
                assert str(bond.symmetry) in str(told.value)


@pytest.mark.parametrize("kind", NAMES)
def test_norms_fold_and_unfold(kind: str, networks: dict[str, Network]) -> None:
    there = networks[kind]
    graph = there.graph()
    for name, norm in graph.norms.items():
        scale, bias = there.tensors[norm.weight] + norm.less, there.tensors[norm.bias] if norm.bias else None
        homeless = bias is not None and any(graph.maps[reader].bias is None for reader in norm.readers)
        if not norm.readers or homeless:
            with pytest.raises(EckartError, match=name):
                fold_norm(graph, name, there.tensors)
            continue
        tensors = there.tensors | fold_norm(graph, name, there.tensors)
        assert bool((tensors[norm.weight] + norm.less == 1).all())
        back = tensors | unfold_norm(graph, name, scale, bias, tensors)
        assert max(far(back[n], t) for n, t in there.tensors.items()) <= EXACT


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "opt", "phi", "vit"])
def test_centred_writers_leave_nothing_for_a_layer_norm_to_subtract(kind: str, networks: dict[str, Network]) -> None:
    there = networks[kind]
    graph = there.graph()
    changed = fold_centring(graph, "residual", there.tensors)
    assert far(there.outputs(changed), there.outputs()) <= EXACT
    for end in graph.bond("residual").writers:
        if end.tensor in changed:
            assert float(changed[end.tensor].mean(end.axis).abs().max()) <= 1e-12
            assert far(changed[end.tensor], there.tensors[end.tensor]) > 1e-6


def test_a_mean_that_counts_is_not_folded(networks: dict[str, Network]) -> None:
    there = networks["llama"]
    with pytest.raises(EckartError, match="residual is not read through LayerNorm alone"):
        fold_centring(there.graph(), "residual", there.tensors)


def test_a_stream_is_not_turned_before_its_norms_are_folded(networks: dict[str, Network]) -> None:
    there = networks["llama"]
    with pytest.raises(
        EckartError, match=r"residual is read through model\.norm, whose scale differs .*: fold it first"
    ):
        change_basis(there.graph(), "residual", Matrix(rotation(48, False, 1)), there.tensors)


def test_tied_weights_change_together_or_not_at_all(networks: dict[str, Network]) -> None:
    there = networks["llama"]
    declaration, stored = there.graph(), {n: t for n, t in there.tensors.items() if n != "lm_head.weight"}
    tied = Network(there.folder, there.kind, there.config | {"tie_word_embeddings": True}, stored)
    graph = tied.graph()
    assert graph.ties == {"lm_head": "model.embed_tokens"}
    assert declaration.ties == {}
    with pytest.raises(EckartError, match=r"model\.embed_tokens and lm_head, and only one of them may change: untie"):
        fold_norm(graph, "model.norm", stored)
    with pytest.raises(EckartError, match=r"only one of them may change"):
        change_basis(graph, "model.norm.channels", Scales(torch.full((48,), 2.0)), stored)
    plain = stored | {n.weight: torch.ones(48, dtype=torch.float64) for n in graph.norms.values()}
    turned = change_basis(graph, "residual", Matrix(rotation(48, False, 2)), plain)
    head = {"lm_head.weight": plain["model.embed_tokens.weight"]}
    both = {**plain, **turned, "lm_head.weight": turned["model.embed_tokens.weight"]}
    assert far(there.outputs(both), there.outputs(plain | head)) <= EXACT


def test_a_bias_that_is_not_given_back_stays_folded(networks: dict[str, Network]) -> None:
    there = networks["gpt2"]
    graph, name = there.graph(), "transformer.h.0.ln_1"
    scale = there.tensors[f"{name}.weight"]
    tensors = there.tensors | fold_norm(graph, name, there.tensors)
    back = tensors | unfold_norm(graph, name, scale, None, tensors)
    assert float(back[f"{name}.bias"].abs().max()) == 0.0
    assert far(there.outputs(back), there.outputs()) <= EXACT


def test_a_scale_of_zero_is_not_taken_back(networks: dict[str, Network]) -> None:
    there = networks["llama"]
    graph, name = there.graph(), "model.layers.0.input_layernorm"
    tensors = there.tensors | fold_norm(graph, name, there.tensors)
    with pytest.raises(EckartError, match="a scale of zero"):
        unfold_norm(graph, name, torch.zeros(48), None, tensors)
    with pytest.raises(EckartError, match="fold it first"):
        unfold_norm(graph, name, torch.ones(48), None, there.tensors)


@pytest.mark.parametrize("name", ["model.layers.0.hiden", "residuals"])
def test_a_bond_that_is_not_there_is_answered_with_the_nearest(name: str, networks: dict[str, Network]) -> None:
    there = networks["llama"]
    near = {"model.layers.0.hiden": "model.layers.0.hidden", "residuals": "residual"}[name]
    with pytest.raises(EckartError, match=f"there is no bond {name}: the nearest is {near}$"):
        change_basis(there.graph(), name, Order(torch.arange(3)), there.tensors)


def test_results_keep_the_dtype_of_the_tensors(networks: dict[str, Network], tmp_path: Path) -> None:
    there = networks["gpt2"]
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in there.tensors.items()}
    graph = there.graph()
    changed = change_basis(graph, f"{graph.blocks[0]}.hidden", Order(torch.arange(192).flip(0)), tensors)
    assert {t.dtype for t in changed.values()} == {torch.bfloat16}
    assert torch.equal(
        changed[f"{graph.blocks[0]}.mlp.c_proj.weight"], tensors[f"{graph.blocks[0]}.mlp.c_proj.weight"].flip(0)
    )


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Matrix(torch.ones(2, 3)), "square"),
        (lambda: Matrix(torch.ones(2, 2)), "singular"),
        (lambda: Order(torch.tensor([0, 0])), "every index"),
        (lambda: Scales(torch.tensor([1.0, 0.0])), "zero"),
        (lambda: Scales(torch.tensor([1.0, torch.nan])), "finite"),
    ],
)
def test_what_is_no_change_of_basis(make: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()  # type: ignore[operator]
