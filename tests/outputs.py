"""What checkpoints compute: loaded by stock transformers, on the same ids every time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from models import CONTEXT, VOCABULARY
from torch import Tensor
from transformers import AutoModelForCausalLM


def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The model that a checkpoint holds: nothing missing in it, and nothing that it has no place for."""
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report.values()), report
    return model.eval()


def token_ids() -> Tensor:
    """Three rows of ids, none of them special."""
    return torch.randint(3, VOCABULARY, (3, CONTEXT // 2), generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def logits(model: Any) -> Tensor:
    """What a model says to them."""
    found: Tensor = model(input_ids=token_ids(), use_cache=False).logits
    return found


def far(a: Tensor, b: Tensor) -> float:
    """The largest difference, by the largest entry of ``b``."""
    return float((a - b).detach().abs().max() / b.detach().abs().max())
