"""What is noted of a loss's gradients while they are taken back through a part of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eckart.kernels.gradients import column_energies


class GradientWatch:
    """Sums over all that is run back while it is entered, for each of ``maps``.

    ``squares`` has the squared gradient at its outputs. ``columns``, where asked for, has the squared gradient of every column of its
    weight (n,), of the loss of one window each: ``sum_w sum_i (dl_w / dW_ij)^2``. ``windows`` says how many of ``length`` tokens
    are being run. Tokens that were routed to an expert by themselves are taken by themselves, as no window is seen there.
    """

    def __init__(self, model: nn.Module, maps: Sequence[str], length: int, *, columns: bool) -> None:
        self.squares = dict.fromkeys(maps, 0.0)
        self.columns: dict[str, Tensor] = {}
        self.windows = 0
        self._model, self._length, self._wants_columns = model, length, columns
        self._handles: list[Any] = []

    def __enter__(self) -> GradientWatch:
        self._handles = [
            self._model.get_submodule(name).register_forward_hook(self._watch(name)) for name in self.squares
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _watch(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            inputs = args[0].detach() if self._wants_columns else None
            if output.requires_grad:
                output.register_hook(lambda gradient: self._add(name, inputs, gradient))

        return hook

    def _add(self, name: str, inputs: Tensor | None, gradient: Tensor) -> None:
        self.squares[name] += float(gradient.to(torch.float64).square().sum())
        if inputs is not None:
            found = column_energies(self._by_window(inputs), self._by_window(gradient))
            self.columns[name] = found + self.columns[name] if name in self.columns else found

    def _by_window(self, vectors: Tensor) -> Tensor:
        """Vectors (…, n) as (windows, tokens, n); some architectures flatten the tokens of a batch."""
        flat = vectors.reshape(-1, vectors.shape[-1])
        return flat.reshape(self.windows if len(flat) == self.windows * self._length else len(flat), -1, flat.shape[-1])
