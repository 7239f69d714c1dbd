"""Starts that are measured on a text, against PEFT's own of the same text: EVA and CorDA."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from models import ARCHITECTURES
from outputs import far, loaded, token_ids
from peft import EvaConfig, LoraConfig, get_peft_model, initialize_lora_eva_weights
from peft.tuners.lora.config import CordaConfig
from torch import Tensor

from eckart.adapt import Wrapped, wrap
from eckart.adapters.sources import spectral
from eckart.model.adapting.observe import observe
from eckart.model.adapting.wrap import targets_of
from eckart.recipes.adapters.pairs import corda, corda_preview, eva
from eckart.stats import Need

DIFFERENT = ("q_proj", "o_proj", "gate_proj")  # maps of 48 inputs, no two of which read the same
ALIKE = (*DIFFERENT, "k_proj", "v_proj", "up_proj")


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ARCHITECTURES["llama"](tmp_path_factory.mktemp("peft") / "model")


def whole() -> dict[str, Tensor]:
    """One batch, which for an incremental decomposition is all there is."""
    return {"input_ids": token_ids(), "labels": token_ids()}


def single() -> list[dict[str, Tensor]]:
    return [{"input_ids": row[None], "labels": row[None]} for row in token_ids()]


def course(model: Any, groups: list[dict[str, Any]]) -> list[float]:
    """Losses of twenty steps of AdamW."""
    optimiser, losses = torch.optim.AdamW(groups), []
    for step in range(20):
        loss = model(**single()[step % 3]).loss
        loss.backward()
        losses.append(float(loss.detach()))
        optimiser.step()
        optimiser.zero_grad()
    return losses


def same_course(made: Wrapped, theirs: Any, rate: float) -> None:
    groups = [{"params": [p for p in theirs.parameters() if p.requires_grad], "lr": rate, "weight_decay": 0.0}]
    made.model.eval()
    theirs.eval()
    own, other = course(made.model, made.groups(rate)), course(theirs, groups)
    assert own == pytest.approx(other, rel=1e-3)
    assert own[-1] < own[2] - 0.05


# ---- EVA --------------------------------------------------------------------------------------------------------------


def peft_eva(stock: Path, names: list[str], rank: int) -> Any:
    config = LoraConfig(
        r=rank,
        lora_alpha=16,
        target_modules=names,
        init_lora_weights="eva",
        eva_config=EvaConfig(rho=2.0, tau=0.99),
    )
    model = get_peft_model(loaded(stock), config)
    initialize_lora_eva_weights(model, dataloader=[whole()], show_progress_bar=False)
    return model


def ranks_and_rows(model: Any, names: list[str]) -> dict[str, Tensor]:
    """The right factor of each map, without rows where it has no adapter."""
    found = {}
    for name in names:
        module = model.base_model.model.get_submodule(name)
        adapted = hasattr(module, "lora_A")
        found[name] = module.lora_A["default"].weight.detach() if adapted else torch.zeros(0, 48)
    return found


def test_the_same_directions_and_course_as_eva_in_peft(stock: Path) -> None:
    """Of one batch PEFT's incremental decomposition is exact where twice the components that it follows are all there are."""
    made = wrap(loaded(stock), eva(), rank=12, only=DIFFERENT, batches=[whole()])
    names = [
        f"model.layers.{i}.{part}"
        for i in range(3)
        for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj")
    ]
    theirs = peft_eva(stock, names, 12)
    rows = ranks_and_rows(theirs, names)
    ranks = {name: len(made.adapters[name].right) if name in made.adapters else 0 for name in names}
    assert ranks == {name: len(found) for name, found in rows.items()}
    assert sum(ranks.values()) == 12 * len(names)
    assert len(set(ranks.values())) > 2
    for name, adapter in made.adapters.items():
        module = theirs.base_model.model.get_submodule(name)
        assert float((adapter.right.detach() * rows[name]).sum(1).abs().min()) > 1 - 1e-4, name
        assert module.scaling["default"] == pytest.approx(adapter.scale)
        assert not bool(module.lora_B["default"].weight.any())
    same_course(made, theirs, 1e-2)


def test_maps_of_the_same_inputs_share_ranks_as_in_peft(stock: Path) -> None:
    """Which of them has one more is left open where they tie: as many together, and as unevenly."""
    made = wrap(loaded(stock), eva(), rank=12, only=ALIKE, batches=[whole()])
    names = [name for name, _ in loaded(stock).named_modules() if name.endswith(ALIKE)]
    rows = ranks_and_rows(peft_eva(stock, names, 12), names)
    groups: dict[str, list[str]] = {}
    for name in names:
        leaf = name.rpartition(".")[2]
        kind = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "up", "up_proj": "up"}.get(leaf, leaf)
        groups.setdefault(f"{name.split('.')[2]} {kind}", []).append(name)
    own = {name: made.adapters[name].right.detach() if name in made.adapters else torch.zeros(0, 48) for name in names}
    for group in groups.values():
        assert sorted(len(own[name]) for name in group) == sorted(len(rows[name]) for name in group)
    for name in names:
        count = min(len(own[name]), len(rows[name]))
        if count:
            assert float((own[name][:count] * rows[name][:count]).sum(1).abs().min()) > 1 - 1e-4


# ---- CorDA ------------------------------------------------------------------------------------------------------------

MODES = {"kpm": corda, "ipm": corda_preview}  # the smallest components train, or the largest


def corda_module() -> Any:
    """PEFT's, which imports ``dataclass`` from attrs without asking for attrs; any other does."""
    with pytest.MonkeyPatch.context() as patched:
        if importlib.util.find_spec("attr") is None:
            stand_in = ModuleType("attr")
            stand_in.dataclass = dataclass  # type: ignore[attr-defined]
            patched.setitem(sys.modules, "attr", stand_in)
        return importlib.import_module("peft.tuners.lora.corda")


def covariances(stock: Path, names: list[str], *, scaled: bool) -> dict[str, Tensor]:
    """Second moments of inputs, in NumPy: the mean over tokens, or as PEFT has it over texts, each divided by its largest entry."""
    model = loaded(stock)
    inputs: dict[str, list[np.ndarray[Any, Any]]] = {name: [] for name in names}
    for name in names:
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: inputs[name].append(args[0][0].detach().double().numpy())
        )
    for batch in single():
        model(**batch)
    found = {}
    for name, texts in inputs.items():
        rows = [text / abs(text.max()) if scaled else text for text in texts]
        total = sum(text.T @ text for text in rows)
        found[name] = torch.tensor(total / (len(texts) if scaled else sum(map(len, texts)))).float()
    return found


def peft_corda(stock: Path, mode: str, names: list[str], rank: int, covariance: Path | None) -> Any:
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=names,
        init_lora_weights="corda",
        corda_config=CordaConfig(
            corda_method=mode,  # type: ignore[arg-type]
            covariance_file=None if covariance is None else str(covariance),
            prune_temporary_fields=True,
        ),
    )
    model = loaded(stock)

    def run() -> None:
        for batch in single():
            model(**batch)

    corda_module().preprocess_corda(model, config, run_model=run)
    return get_peft_model(model, config)


def factors_of(model: Any, name: str) -> tuple[Tensor, Tensor]:
    module = model.base_model.model.get_submodule(name)
    return module.lora_B["default"].weight.detach(), module.lora_A["default"].weight.detach()


@pytest.mark.parametrize("mode", MODES)
def test_the_same_factors_and_course_as_corda_in_peft(mode: str, stock: Path, tmp_path: Path) -> None:
    """Of the same second moments, which PEFT reads from a file: it divides each text by its largest entry, which nothing calls for."""
    made = wrap(loaded(stock), MODES[mode](), rank=6, batches=single())
    names = list(made.adapters)
    torch.save(covariances(stock, names, scaled=False), tmp_path / "covariance.pt")
    theirs = peft_corda(stock, mode, names, 6, tmp_path / "covariance.pt")
    for name, adapter in made.adapters.items():
        b, a = factors_of(theirs, name)
        left, right = adapter.left.detach(), adapter.right.detach()
        assert far(left @ right, b @ a) < 5e-3, name
        signs = torch.sign((left * b).sum(0))
        assert far(left * signs, b) < 5e-3, name
        assert far(right * signs[:, None], a) < 5e-3, name
        assert far(adapter.base.weight, theirs.base_model.model.get_submodule(name).base_layer.weight) < 1e-3
    same_course(made, theirs, 1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_what_dividing_texts_by_their_largest_entry_does(mode: str, stock: Path) -> None:
    """PEFT's own moments give the formula's factors with those moments, and not those of ours, which count every token alike."""
    names = [f"model.layers.{i}.{part}" for i in range(3) for part in ("self_attn.q_proj", "mlp.down_proj")]
    theirs = peft_corda(stock, mode, names, 6, None)
    made = wrap(loaded(stock), MODES[mode](), rank=6, only=["q_proj", "down_proj"], batches=single())
    scaled, model, apart = covariances(stock, names, scaled=True), loaded(stock), []
    for name in names:
        c = scaled[name].double().numpy()
        c = c + 0.01 * np.mean(np.diag(c)) * np.eye(len(c))
        w = model.get_submodule(name).weight.detach().double().numpy()
        u, s, vh = np.linalg.svd(w @ c, full_matrices=False)
        picked = slice(-6, None) if mode == "kpm" else slice(0, 6)
        expected = torch.tensor((u[:, picked] * s[picked]) @ vh[picked] @ np.linalg.inv(c)).float()
        b, a = factors_of(theirs, name)
        assert far(b @ a, expected) < 5e-3, name
        apart.append(far((made.adapters[name].left @ made.adapters[name].right).detach(), expected))
    assert max(apart) > 1e-3


# ---- what is measured once --------------------------------------------------------------------------------------------


def test_maps_of_the_same_inputs_share_their_moments(stock: Path) -> None:
    """Queries, keys and values; gate and up: by the tensor that they are handed, and only where their group has both."""
    model, names = loaded(stock), targets_of(loaded(stock))
    for room in (10**9, 1):
        seen = {
            name: found
            for group in observe(model, names, frozenset({Need.GRAM}), single(), room=room)
            for name, found in group.items()
        }
        assert list(seen) == names
        held = {name: id(found.moments) for name, found in seen.items()}
        assert len({*held.values()}) == 4 * 3
        for i in range(3):
            layer = f"model.layers.{i}"
            for first, *others in (
                ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
                ["mlp.gate_proj", "mlp.up_proj"],
            ):
                leader = seen[f"{layer}.{first}"]
                assert all(held[f"{layer}.{other}"] == id(leader.moments) for other in others)
                assert all(seen[f"{layer}.{other}"].worked_out is leader.worked_out for other in others)
        assert len({id(found.worked_out) for found in seen.values()}) == 4 * 3


@pytest.mark.parametrize("room", [250_000_000, 1])
def test_directions_are_decomposed_once_for_each_input(room: int, stock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For ranks and starts together; a text is run once for the ranks, a block as often as there are groups, and not for the starts."""
    decomposed, runs = [], []
    stock_components = spectral.components
    monkeypatch.setattr(spectral, "components", lambda *args: (decomposed.append(1), stock_components(*args))[1])
    monkeypatch.setattr(importlib.import_module("eckart.model.adapting.observe"), "ROOM", room)
    model = loaded(stock)
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    made = wrap(model, eva(), rank=6, batches=single())
    assert len(decomposed) == 4 * 3
    assert len(runs) == 1 + 3 * (1 if room > 1 else 3)
    assert all(bool(adapter.right.any()) for adapter in made.adapters.values())
