"""Differences weighed by what arrives at them: the metric of the base's inputs on a text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator

from eckart.adapters.seed import Seen
from eckart.metric import Metric
from eckart.model.adapting.observe import observe
from eckart.model.adapting.pieces import Batch
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

    Moments are taken when they are asked for, a few modules at a time: who asks in the order of ``modules`` has each taken once.
    """

    def __init__(self, model: Any, modules: Sequence[str], batches: Sequence[Batch]) -> None:
        self._model, self._modules, self._batches = model, list(modules), batches
        self._coming: Iterator[dict[str, Seen]] = iter(())
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
            self._held = self._next_with(module)
        return self._held[module]

    def _next_with(self, module: str) -> Mapping[str, Metric]:
        """The metrics of those that are seen together with a module; from the beginning where it has gone by."""
        self._held = {}
        for _ in range(2):
            for seen in self._coming:
                if module in seen:
                    return {name: Gram()(entry.moments) for name, entry in seen.items()}
            self._coming = observe(self._model, self._modules, frozenset({Need.GRAM}), self._batches)
        raise KeyError(module)
