"""Differences weighed by what arrives at them: the metric of the base's inputs on a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator

from eckart.metric import Metric
from eckart.model.adapting.observe import Batch, observe
from eckart.model.checkpoint import resolve
from eckart.model.evaluate import BATCH_TOKENS, load
from eckart.model.skeleton import without_bars
from eckart.model.text import draw_windows, ids_for, read_text, window_length
from eckart.stats import Gram, Need


@dataclass(frozen=True)
class Text:
    """A UTF-8 text, how many tokens of it are used, tokens a window, and the seed by which windows are drawn."""

    path: Path
    tokens: int = 32768
    window: int | None = None
    seed: int = 0


class Inputs:
    """For each of some modules the metric in which an error E counts ``mean |E x|^2`` over the inputs x of a text.

    Moments are taken when they are asked for, of as many modules from there on as there is room for: who asks in the order of
    ``modules`` has each taken once.
    """

    def __init__(self, model: Any, modules: Sequence[str], batches: Sequence[Batch]) -> None:
        self._model, self._modules, self._batches = model, list(modules), batches
        self._held: Mapping[str, Metric] = {}

    @classmethod
    def of(cls, base: str | Path, modules: Sequence[str], text: Text) -> Inputs:
        """With the base loaded whole, in float32; raises ``EckartError`` for a missing or short text and a base without tokenizer."""
        content = read_text(text.path)
        folder = resolve(base)
        window = window_length(folder, text.window)
        windows = draw_windows(ids_for(folder, content), window, text.tokens, Generator().manual_seed(text.seed))
        batches = [{"input_ids": ids} for ids in windows.split(max(1, BATCH_TOKENS // window))]
        with without_bars():
            return cls(load(folder, dtype=torch.float32), modules, batches)

    def __call__(self, module: str) -> Metric:
        """The metric of one module."""
        if module not in self._held:
            self._held = {}
            rest = self._modules[self._modules.index(module) :]
            seen = next(observe(self._model, rest, frozenset({Need.GRAM}), self._batches))
            rule = Gram()
            self._held = {name: rule(entry.moments) for name, entry in seen.items()}
        return self._held[module]
