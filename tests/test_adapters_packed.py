"""Models whose weights another library has packed: what begins at random trains and is exported, what needs a weight is refused by name."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import ARCHITECTURES, SENTENCES
from outputs import far, loaded, logits, token_ids
from peft import PeftModel
from runs import refused
from torch import Tensor, nn

from eckart.adapters.base import LessStart
from eckart.adapters.seed import Unread
from eckart.errors import EckartError
from eckart.model.adapting.export import export
from eckart.model.adapting.wrap import targets_of, wrap
from eckart.recipes.adapters import ADAPTERS


class FourBits(nn.Linear):
    """A stand-in for ``bitsandbytes.nn.Linear4bit``: two codes a byte, all in one column, and one scale."""

    def __init__(self, dense: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = dense.in_features, dense.out_features
        self.scale = float(dense.weight.detach().abs().max()) / 7
        codes = (dense.weight.detach() / self.scale).round().to(torch.int64).flatten() + 8
        packed = (codes[::2] << 4 | codes[1::2]).to(torch.uint8)[:, None]
        self.weight = nn.Parameter(packed, requires_grad=False)  # type: ignore[assignment]
        self.bias = dense.bias

    def unpacked(self) -> Tensor:
        codes = torch.stack([self.weight >> 4, self.weight & 15], 1).flatten().to(torch.float32)
        return ((codes - 8) * self.scale).reshape(self.out_features, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.unpacked(), self.bias)


class Qweight(nn.Module):
    """A stand-in for the modules of GPTQ and AWQ: no ``nn.Linear``, and no ``weight``."""

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = dense.in_features, dense.out_features
        self.of = [FourBits(dense)]
        self.register_buffer("qweight", self.of[0].weight.detach().to(torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.of[0](x)
        return made


class Sealed(Tensor):
    """A stand-in for the tensor subclasses of torchao: of the shape and dtype of a weight, and none."""


def sealed(dense: nn.Linear) -> nn.Linear:
    dense.weight = nn.Parameter(dense.weight.detach().as_subclass(Sealed))
    return dense


Packer = Callable[[nn.Linear], nn.Module]


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ARCHITECTURES["llama"](tmp_path_factory.mktemp("packed") / "model")


def packed(stock: Path, packer: Packer) -> Any:
    model = loaded(stock)
    for name in targets_of(model):
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, packer(model.get_submodule(name)))
    return model


def batches() -> list[dict[str, Tensor]]:
    ids = token_ids()
    return [{"input_ids": ids[i : i + 1], "labels": ids[i : i + 1]} for i in range(3)]


@pytest.mark.parametrize("packer", [FourBits, Qweight])
@pytest.mark.parametrize("key", ["lora", "lora-plus", "eva", "vera"])
def test_what_needs_no_weight_trains_beside_codes(key: str, packer: Packer, stock: Path, tmp_path: Path) -> None:
    """The update that is exported is the one that trained: PEFT adds it to the same codes, unpacked."""
    model = packed(stock, packer)
    before = logits(model)
    made = wrap(model, ADAPTERS[key](), rank=4, batches=batches())
    assert len(made.adapters) == len(targets_of(loaded(stock))) if key != "eva" else made.adapters
    assert far(logits(model), before) < 1e-6
    optimiser = torch.optim.AdamW(made.groups(1e-1))
    losses = []
    for step in range(6):
        loss = model(**batches()[step % 3]).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    assert min(losses[3:]) < losses[0] - 0.02
    after = logits(model)
    export(made, tmp_path / "adapter")
    plain = loaded(stock)
    for name in targets_of(plain):
        plain.get_submodule(name).weight.data.copy_(FourBits(plain.get_submodule(name)).unpacked())
    assert far(logits(PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()), after) < 1e-5
    with pytest.raises(EckartError, match=r"layers\.0\.self_attn\.q_proj can't be merged: its weight is packed, as"):
        made.merge()


@pytest.mark.parametrize(
    ("packer", "told"),
    [
        (FourBits, r"Tensor of torch\.uint8 and shape \(1152, 1\)"),
        (Qweight, r"Tensor of torch\.int32 and shape \(1152, 1\)"),
        (sealed, r"Sealed of torch\.float32 and shape \(48, 48\)"),
    ],
)
@pytest.mark.parametrize(
    "key", ["pissa", "milora", "olora", "corda", "dota", "dora", "kasa", "svft", "nlora", "qlora", "loftq"]
)
def test_no_start_is_made_of_packed_bytes(key: str, packer: Packer, told: str, stock: Path) -> None:
    model = packed(stock, packer)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sentence = rf"layers\.0\.self_attn\.q_proj cannot be adapted so: its weight is packed, as {told}: load the model in float32"
    with pytest.raises(EckartError, match=sentence):
        wrap(model, ADAPTERS[key](), rank=4, batches=batches())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("key", ["lora-ga", "lora-sb", "smt"])
def test_packed_bytes_have_no_gradient(key: str, stock: Path) -> None:
    with pytest.raises(EckartError, match=r"q_proj has no gradient: its weight is packed, as Tensor of torch\.uint8"):
        wrap(packed(stock, FourBits), ADAPTERS[key](), rank=4, batches=batches())


def test_what_is_taken_from_packed_bytes_is_refused_though_no_weight_is_read(stock: Path) -> None:
    """A random start whose product is to be taken from the weight: nothing of the weight is needed for it but the weight."""
    with pytest.raises(EckartError, match="q_proj cannot be adapted so: its weight is packed"):
        wrap(packed(stock, FourBits), replace(ADAPTERS["lora"](), base=LessStart()), rank=4)


def test_whoever_asks_for_more_than_a_shape_is_told_why_not() -> None:
    matrix = Unread.of((4, 3), torch.device("cpu"), "it is packed")
    assert (tuple(matrix.shape), matrix.device, matrix.ndim) == ((4, 3), torch.device("cpu"), 2)
    for asked in (
        lambda: matrix + 1,
        lambda: torch.linalg.svd(matrix),
        matrix.double,
        lambda: matrix[0],
        lambda: matrix.T,
        lambda: torch.ones(2, 4) @ matrix,
        matrix.tolist,
    ):
        with pytest.raises(ValueError, match="it is packed"):
            asked()
    with pytest.raises(ValueError, match="packed nothing is known but its shape"):
        torch.cat([matrix, matrix])


@pytest.mark.parametrize(
    ("quantization", "library"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bitsandbytes"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "optimum"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}, "gptqmodel"),
    ],
)
def test_a_checkpoint_whose_library_is_missing_is_refused_in_one_sentence(
    quantization: dict[str, Any], library: str, stock: Path, tmp_path: Path
) -> None:
    if importlib.util.find_spec(library) is not None:
        pytest.skip(f"{library} is installed: such a checkpoint loads, and is packed as above")
    folder = tmp_path / "model"
    shutil.copytree(stock, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    data = tmp_path / "data.txt"
    data.write_text("\n".join(SENTENCES))
    told = refused("adapt", folder, "--data", data, "-o", tmp_path / "out", "--steps", "1")
    assert f"{folder} cannot be loaded by transformers: " in told
    assert library in told
    assert told.count("\n") <= 1
    assert not (tmp_path / "out").exists()
