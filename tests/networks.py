"""Small networks of every declared architecture, run in float64 throughout, so that a change that is exact is seen to be."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from market import generator
from models import ARCHITECTURES, CONTEXT, VOCABULARY
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

from eckart.bonds import BondGraph, assembled, declared

WIDTH = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4, "num_hidden_layers": 2}
DECODERS = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gpt2", "gpt_neox", "opt", "phi")
OTHERS: Mapping[str, Callable[[], PreTrainedModel]] = {
    "bert": lambda: BertForMaskedLM(BertConfig(**WIDTH, vocab_size=VOCABULARY, max_position_embeddings=CONTEXT)),
    "vit": lambda: ViTForImageClassification(
        ViTConfig(**WIDTH, hidden_act="relu", image_size=28, patch_size=7, num_channels=1, num_labels=10)
    ),
}
NAMES = (*DECODERS, *OTHERS)


@dataclass(frozen=True)
class Network:
    """A checkpoint in float64 with its config, whose head is a tensor of its own."""

    folder: Path
    kind: str
    config: dict[str, Any]
    tensors: Mapping[str, Tensor]

    def graph(self) -> BondGraph:
        declaration = declared(self.config["model_type"])
        assert declaration is not None
        return assembled(declaration, self.config, {name: tuple(t.shape) for name, t in self.tensors.items()})

    def outputs(self, changed: Mapping[str, Tensor] | None = None) -> Tensor:
        """Logits with some tensors replaced, everything in float64."""
        folder = self.folder / "run"
        folder.mkdir(exist_ok=True)
        together = {**self.tensors, **(changed or {})}
        save_file(
            {n: t.to(torch.float64).clone(memory_format=torch.contiguous_format) for n, t in together.items()},
            folder / "model.safetensors",
        )
        (folder / "config.json").write_text(json.dumps(json.loads((self.folder / "config.json").read_text()) | _UNTIED))
        loader = AutoModelForCausalLM if self.kind in DECODERS else type(OTHERS[self.kind]())
        model = loader.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
        for module in model.modules():
            if type(module).__name__.endswith("RMSNorm"):
                _widen(module, stored_less=float(type(module).__name__.startswith("Gemma")))
        with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
            softmax = nn.functional.softmax
            patch.setattr(nn.functional, "softmax", lambda x, dim=-1, dtype=None: softmax(x, dim=dim))
            if self.kind == "vit":
                found = model(torch.randn(2, 1, 28, 28, generator=generator(3), dtype=torch.float64)).logits
            else:
                found = model(torch.randint(3, VOCABULARY, (2, 24), generator=generator(3))).logits
        assert found.dtype == torch.float64
        return found


_UNTIED = {"tie_word_embeddings": False, "dtype": "float64"}


def network(kind: str, folder: Path) -> Network:
    """One of ``NAMES``, with random weights, biases and norms, and its head untied."""
    if kind in DECODERS:
        ARCHITECTURES[kind](folder)
    else:
        OTHERS[kind]().save_pretrained(folder)
    config = AutoConfig.from_pretrained(folder).to_dict() | {"tie_word_embeddings": False}
    stored = load_file(folder / "model.safetensors")
    graph_of_stored = declared(config["model_type"])
    assert graph_of_stored is not None
    rng = generator(7)
    tensors = {}
    for name, tensor in sorted(stored.items()):
        wide = tensor.to(torch.float64)
        if kind not in DECODERS:  # drawn with small numbers by transformers: make everything count
            wide = wide + 0.2 * torch.randn(wide.shape, generator=rng, dtype=torch.float64)
        tensors[name] = wide
    for head, entry in graph_of_stored.outside.items():
        if entry.tied_to is not None and f"{head}.weight" not in tensors:
            tensors[f"{head}.weight"] = tensors[f"{entry.tied_to}.weight"] * 1.5
            if kind == "bert":
                tensors[f"{head}.bias"] = tensors["cls.predictions.bias"]
    return Network(folder, kind, config, tensors)


def _widen(module: nn.Module, stored_less: float) -> None:
    """A norm that stays in float64, where stock ones go through float32."""
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    assert eps is not None

    def forward(x: Tensor) -> Tensor:
        scale: Tensor = module.weight + stored_less  # type: ignore[assignment, operator]
        return scale * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)

    module.forward = forward  # type: ignore[method-assign]
