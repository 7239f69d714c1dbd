"""How well a language model predicts texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from eckart.errors import EckartError, first_line
from eckart.model.checkpoint import Checkpoint, resolve
from eckart.model.progress import Progress, quiet
from eckart.model.run import find_device
from eckart.model.skeleton import without_bars
from eckart.model.text import ids_for, read_text, window_length

BATCH_TOKENS = 2048  # windows are run together up to this many tokens


@dataclass(frozen=True)
class Score:
    """A model's negative log-likelihood of a text: the sum in nats over the tokens that were scored.

    >>> score = Score(tokens=4, total=4 * math.log(8))
    >>> round(score.perplexity, 9), round(score.mean / math.log(2), 9)
    (8.0, 3.0)
    """

    tokens: int
    total: float

    @property
    def mean(self) -> float:
        """Nats per scored token."""
        return self.total / self.tokens

    @property
    def perplexity(self) -> float:
        """``exp(mean)``; infinity where that overflows."""
        return math.exp(self.mean) if self.mean < 700 else math.inf


def load(folder: str | Path, **options: Any) -> Any:
    """``AutoModelForCausalLM.from_pretrained`` for original and compressed checkpoints alike, in evaluation mode.

    ``options`` go to transformers, for instance ``dtype=torch.float32`` or ``device_map="auto"``. Raises ``EckartError``
    for a directory that is no complete model.
    """
    from transformers import AutoModelForCausalLM

    path = Checkpoint(resolve(folder)).folder
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            path, output_loading_info=True, **{"trust_remote_code": False, **options}
        )
    except Exception as error:  # whatever a damaged config leads to, inside of any architecture's code
        raise EckartError(f"{path} cannot be loaded by transformers: {first_line(error)}") from error
    if report["missing_keys"]:
        missing = min(report["missing_keys"])
        raise EckartError(f"{path} holds no tensor for {missing}, which config.json asks for: fetch the model again")
    return model.eval()


@torch.no_grad()
def score_ids(model: Any, ids: Tensor, window: int, *, tick: Any = lambda done, total: None) -> Score:
    """Score a stream of token ids (t,) in non-overlapping windows; the first token of each window is not scored.

    The last window may be shorter; a rest of one token scores nothing. Logits are compared in float32, sums are float64.
    """
    whole = ids[: len(ids) // window * window].reshape(-1, window)
    size = max(1, BATCH_TOKENS // window)
    batches = [*whole.split(size)] if len(whole) else []
    if len(ids) % window > 1:
        batches.append(ids[None, len(whole) * window :])
    total, tokens = 0.0, 0
    for done, batch in enumerate(batches):
        batch = batch.to(model.device)
        logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
        losses = F.cross_entropy(
            logits.reshape(-1, logits.shape[-1]).float(), batch[:, 1:].reshape(-1), reduction="none"
        )
        total += float(losses.to(torch.float64).sum())
        tokens += losses.numel()
        tick(done + 1, len(batches))
    return Score(tokens, total)


def evaluate(
    model: str | Path,
    texts: Sequence[Path],
    *,
    window: int | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Progress = quiet,
) -> dict[str, Score]:
    """Score each text file with a model directory or hub id, original or compressed.

    ``window`` is by default the smaller of the model's context and 2048 tokens. Arithmetic runs in ``dtype``. Raises
    ``EckartError`` for a missing, empty or too short text and for a directory that is no model.
    """
    folder = resolve(model)
    contents = {str(path): read_text(path) for path in texts}
    place = find_device(device)
    length = window_length(Checkpoint(folder).folder, window)
    streams = {name: ids_for(folder, text) for name, text in contents.items()}
    for name, ids in streams.items():
        if len(ids) < 2:
            raise EckartError(f"{name} has fewer than two tokens: there is nothing to predict")
    with without_bars():
        loaded = load(folder, dtype=dtype).to(place)
    return {
        name: score_ids(
            loaded, ids, length, tick=lambda done, total, name=name: progress("evaluate", done, total, name)
        )
        for name, ids in streams.items()
    }
