"""Changes of basis in trained models: their function stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from changes import EXACT, allowed, far, folded
from market import orthonormal
from networks import Network
from safetensors.torch import load_file
from transformers import AutoConfig

from eckart.bonds import Fixed, Matrix, change_basis


@pytest.mark.parametrize(("name", "kind"), [("wikitext2_llama_8m", "llama"), ("wikitext2_gpt2_6m", "gpt2")])
def test_a_trained_model_keeps_its_function(name: str, kind: str, data_dir: Path, tmp_path: Path) -> None:
    """Everything at once: values and keys of every head, units, channels; and the stream where that may be turned."""
    folder = data_dir / name
    stored = {n: t.to(torch.float64) for n, t in load_file(folder / "model.safetensors").items()}
    config: dict[str, Any] = AutoConfig.from_pretrained(folder).to_dict() | {"tie_word_embeddings": False}
    embedding = {"llama": "model.embed_tokens.weight", "gpt2": "transformer.wte.weight"}[kind]
    stored["lm_head.weight"] = stored[embedding].clone()
    (tmp_path / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text())))
    there = Network(tmp_path, kind, config, stored)
    graph, tensors = there.graph(), dict(stored)
    before = there.outputs()
    for seed, bond in enumerate(graph.bonds.values()):
        if bond.name != "residual" and not isinstance(bond.symmetry, Fixed):
            tensors |= change_basis(graph, bond.name, allowed(bond, seed)[0], tensors)
    assert far(there.outputs(tensors), before) <= EXACT
    if kind == "llama":
        tensors = folded(graph, tensors)
        tensors |= change_basis(graph, "residual", Matrix(orthonormal(320, 320, 3)), tensors)
        assert far(there.outputs(tensors), before) <= EXACT
    changed = [name for name, tensor in stored.items() if far(tensors[name], tensor) > 0.1]
    assert (
        len(changed) >= len([t for t in stored.values() if t.ndim == 2]) - 3
    )  # all but embeddings, positions and the head
