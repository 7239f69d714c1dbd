"""A model run block by block: one block's weights in memory, activations between blocks in files.

Only the model's own forward is used. Its blocks are made to record how they are called (masks, positions and whatever else
the architecture hands down), and later each block is called that way again; so any architecture works whose blocks
take and return the hidden states as their first argument and result.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from eckart.errors import EckartError
from eckart.model.calling import Call, doing, listen
from eckart.model.files import cannot_write
from eckart.model.gradients import GradientWatch
from eckart.model.skeleton import Skeleton
from eckart.stats import Moments

# Windows run together up to this many tokens, and up to this many logits; fixed, so that results depend on neither
# memory nor cores.
BATCH_TOKENS = 1024
BATCH_LOGITS = 1 << 26


class Walk:
    """Runs the model of a skeleton over windows of token ids (k, length)."""

    def __init__(self, skeleton: Skeleton, windows: Tensor) -> None:
        if not skeleton.blocks:
            raise EckartError(
                f"{type(skeleton.model).__name__} has no list of equal blocks to run one by one: use a recipe without calibration, "
                "such as svd with uniform ranks"
            )
        self.skeleton = skeleton
        self.windows = windows
        self._calls: dict[int, list[Call]] = {}

    @property
    def width(self) -> int:
        """Width of the hidden states."""
        return int(self.skeleton.model.config.get_text_config().hidden_size)

    @property
    def activation_bytes(self) -> int:
        """Size of one file of hidden states."""
        return self.windows.numel() * self.width * 4

    def _batches(self, tokens: int = BATCH_TOKENS) -> Iterator[slice]:
        count, length = self.windows.shape
        return batches(count, length, tokens)

    @property
    def _blocks(self) -> list[nn.Module]:
        return [self.skeleton.model.get_submodule(name) for name in self.skeleton.blocks]

    def _run_model(self, batch: slice) -> Any:
        return self.skeleton.model(input_ids=self.windows[batch].to(self.skeleton.device), use_cache=False)

    def _listen(self, batch: slice) -> Tensor:
        """What the first block is given, remembering how all blocks are called. Weights outside blocks must be filled."""
        heard = listen(self._blocks, lambda: self._run_model(batch))
        if heard is None:
            raise EckartError(f"{type(self.skeleton.model).__name__} does not run its blocks one after another")
        received, calls = heard
        self._calls.setdefault(batch.stop - batch.start, calls)
        return received

    def embed(self, out: Path, instead: Mapping[str, Tensor] | None = None) -> None:
        """Write what the first block is given for all windows; ``instead`` replaces weights by their name on disk."""
        target = self._create(out)
        with self.skeleton.filled(None, instead):
            for batch in self._batches():
                target[batch] = self._listen(batch).cpu().numpy()
        self._finish(target, out)

    def prepare(self) -> None:
        """Learn how the blocks are called, where ``embed`` was done by an earlier run."""
        unknown = {batch.stop - batch.start: batch for batch in self._batches()}
        for size in self._calls:
            unknown.pop(size, None)
        if unknown:
            with self.skeleton.filled(None):
                for batch in unknown.values():
                    self._listen(batch)

    def run_block(
        self,
        block: int,
        source: Path,
        out: Path | None,
        *,
        instead: Mapping[str, Tensor] | None = None,
        observe: Sequence[str] = (),
        gram: bool = False,
        tick: Callable[[], None] = lambda: None,
    ) -> dict[str, Moments]:
        """Take the hidden states in ``source`` through a block and write them to ``out``; the moments of the inputs of maps.

        Maps of ``observe`` that are given the very same input share one ``Moments``. ``gram`` asks for second moments,
        ``instead`` replaces weights (by name on disk) and ``tick`` is called after every batch.
        """
        hidden = self._open(source)
        target = None if out is None else self._create(out)
        observer = _Observer(self.skeleton.model, observe, gram)
        with self.skeleton.filled(block, instead) as module, torch.no_grad():
            for batch in self._batches():
                with observer:
                    result = self._call(module, block, torch.from_numpy(np.array(hidden[batch])))
                if target is not None:
                    target[batch] = result.cpu().numpy()
                tick()
        if out is not None and target is not None:
            self._finish(target, out)
        return observer.moments()

    def _call(self, module: nn.Module, block: int, hidden: Tensor) -> Tensor:
        args, kwargs = self._calls[len(hidden)][block]
        result = module(hidden.to(self.skeleton.device), *args, **kwargs)
        if not isinstance(result, Tensor) or result.shape != hidden.shape:
            raise EckartError(
                f"the blocks of {type(self.skeleton.model).__name__} do not return hidden states alone; "
                "this architecture cannot be calibrated: use svd with uniform ranks"
            )
        self._check_finite(result, f"block {self.skeleton.blocks[block]}")
        return result

    def _check_finite(self, numbers: Tensor, origin: str) -> None:
        """Refuse statistics of a model that overflows."""
        if not bool(torch.isfinite(numbers).all()):
            raise EckartError(
                f"{self.skeleton.checkpoint.folder}: {origin} gives infinity or NaN on the calibration text, "
                "so no statistics can be taken: use svd with uniform ranks"
            )

    def tail(
        self,
        source: Path,
        *,
        instead: Mapping[str, Tensor] | None = None,
        observe: Sequence[str] = (),
        gram: bool = False,
    ) -> tuple[float, dict[str, Moments]]:
        """Mean negative log-likelihood per predicted token from the hidden states after the last block, and moments.

        ``instead``, ``observe`` and ``gram`` are those of ``run_block``, for maps after the blocks.
        """
        hidden = self._open(source)
        total = 0.0
        observer = _Observer(self.skeleton.model, observe, gram)
        with self.skeleton.filled(None, instead), torch.no_grad():
            for batch in self._batches(self._tail_tokens()):
                with observer:
                    logits = self._logits(batch, torch.from_numpy(np.array(hidden[batch])))
                self._check_finite(logits, "the head")
                labels = self.windows[batch].to(logits.device)
                total += float(nll(logits, labels))
        return total / (self.windows.numel() - len(self.windows)), observer.moments()

    def _tail_tokens(self) -> int:
        return min(BATCH_TOKENS, max(1, BATCH_LOGITS // int(self.skeleton.model.config.get_text_config().vocab_size)))

    def _logits(self, batch: slice, hidden: Tensor) -> Tensor:
        with doing(self._blocks, lambda *_, **__: hidden.to(self.skeleton.device)):
            logits = self._run_model(batch).logits
        assert isinstance(logits, Tensor)
        return logits

    def loss_gradient(
        self, source: Path, out: Path, rng: Generator, maps: Sequence[str] = (), *, columns: bool = False
    ) -> GradientWatch:
        """Write the gradient of the summed loss with respect to the hidden states after the last block.

        The labels are drawn from the model's own distribution: the second moment of such gradients is the Fisher matrix.
        Gives what was noted of the gradients of ``maps``, those of their weights' ``columns`` where asked for.
        """
        hidden, target = self._open(source), self._create(out)
        with self.skeleton.filled(None), self._watching(maps, columns) as watch:
            for batch in self._batches(self._tail_tokens()):
                watch.windows = batch.stop - batch.start
                x = torch.from_numpy(np.array(hidden[batch])).to(self.skeleton.device).requires_grad_(True)
                logits = self._logits(batch, x)
                flat = logits.reshape(-1, logits.shape[-1])
                with torch.no_grad():
                    labels = torch.multinomial(flat.float().softmax(-1).cpu(), 1, generator=rng)[:, 0].to(flat.device)
                F.cross_entropy(flat.float(), labels, reduction="sum").backward()
                assert x.grad is not None
                target[batch] = x.grad.cpu().numpy()
        self._finish(target, out)
        return watch

    def _watching(self, maps: Sequence[str], columns: bool) -> GradientWatch:
        return GradientWatch(self.skeleton.model, maps, self.windows.shape[1], columns=columns)

    def back_block(
        self, block: int, source: Path, gradient: Path, out: Path, maps: Sequence[str], *, columns: bool = False
    ) -> GradientWatch:
        """Take a gradient back through a block; what was noted of it, as by ``loss_gradient``."""
        hidden, above, target = self._open(source), self._open(gradient), self._create(out)
        with self.skeleton.filled(block) as module, self._watching(maps, columns) as watch:
            for batch in self._batches():
                watch.windows = batch.stop - batch.start
                x = torch.from_numpy(np.array(hidden[batch])).to(self.skeleton.device).requires_grad_(True)
                result = self._call(module, block, x)
                result.backward(torch.from_numpy(np.array(above[batch])).to(self.skeleton.device))
                assert x.grad is not None
                self._check_finite(x.grad, f"the gradient of block {self.skeleton.blocks[block]}")
                target[batch] = x.grad.cpu().numpy()
        self._finish(target, out)
        return watch

    def mean_square(self, file: Path) -> float:
        """Mean over tokens of the squared length of the vectors in a file of hidden states or gradients."""
        rows = self._open(file)
        return sum(float(np.square(rows[b], dtype=np.float64).sum()) for b in self._batches()) / self.windows.numel()

    def turning(self, before: Path, after: Path) -> float:
        """Mean over tokens of ``1 - cos`` between the vectors in two files of hidden states, float64; a zero vector turns by nothing."""
        first, second, total = self._open(before), self._open(after), 0.0
        for batch in self._batches():
            x, y = (torch.from_numpy(np.array(rows[batch])).to(torch.float64) for rows in (first, second))
            lengths = torch.linalg.vector_norm(x, dim=-1) * torch.linalg.vector_norm(y, dim=-1)
            total += float(torch.where(lengths > 0, 1 - (x * y).sum(-1) / lengths, torch.zeros_like(lengths)).sum())
        return total / self.windows.numel()

    def _create(self, path: Path) -> np.memmap[Any, np.dtype[np.float32]]:
        """A file to fill beside ``path``: what lies there stays whole until ``_finish``, as other pieces may have it on record."""
        shape = (*self.windows.shape, self.width)
        try:
            with _aside(path).open("wb") as handle:
                # Reserved now: a full disk is then an error here instead of a bus error in the middle of a run.
                _reserve(handle.fileno(), self.activation_bytes)
            return np.memmap(_aside(path), dtype=np.float32, mode="r+", shape=shape)
        except OSError as error:
            _aside(path).unlink(missing_ok=True)
            raise cannot_write(path, error, "free space or choose another output") from error

    def _finish(self, target: np.memmap[Any, np.dtype[np.float32]], path: Path) -> None:
        """Give a file that is full its name."""
        try:
            target.flush()
            with _aside(path).open("rb") as handle:
                os.fsync(handle.fileno())
            _aside(path).replace(path)
        except OSError as error:
            raise cannot_write(path, error, "free space or choose another output") from error

    def _open(self, path: Path) -> np.memmap[Any, np.dtype[np.float32]]:
        return np.memmap(path, dtype=np.float32, mode="r", shape=(*self.windows.shape, self.width))


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def _reserve(descriptor: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)


def nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed negative log-likelihood of every token of each window but the first, float64."""
    flat = logits[:, :-1].reshape(-1, logits.shape[-1]).float()
    return F.cross_entropy(flat, labels[:, 1:].reshape(-1), reduction="none").to(torch.float64).sum()


class _Observer:
    """Collects moments of the inputs of maps while it is entered; entered once a batch.

    Inputs are kept alive until the batch is over, so that identity tells which maps share one.
    """

    def __init__(self, model: nn.Module, maps: Sequence[str], gram: bool) -> None:
        self._model, self._maps, self._gram = model, maps, gram
        self._seen: list[tuple[str, Tensor]] = []
        self._moments: dict[tuple[str, ...], Moments] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> _Observer:
        def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
            return lambda _, args: self._seen.append((name, args[0].detach()))

        # The hook sees the module's own argument; detaching makes a new object, so sharing is told by storage below.
        self._handles = [self._model.get_submodule(n).register_forward_pre_hook(watch(n)) for n in self._maps]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        groups: dict[tuple[int, ...], tuple[list[str], Tensor]] = {}
        for name, x in self._seen:
            key = (x.data_ptr(), x.storage_offset(), *x.shape, *x.stride())
            groups.setdefault(key, ([], x))[0].append(name)
        for names, x in groups.values():
            key_names = tuple(names)
            if key_names not in self._moments:
                self._moments[key_names] = Moments.zeros(x.shape[-1], gram=self._gram, device=x.device)
            self._moments[key_names].add(x)
        self._seen.clear()

    def moments(self) -> dict[str, Moments]:
        """The moments of every map that was called, the same object for maps that always shared their input."""
        found: dict[str, Moments] = {}
        for name in self._maps:
            parts = [moments for names, moments in self._moments.items() if name in names]
            if parts:
                found[name] = sum(parts[1:], parts[0])
        return found


def batches(count: int, length: int, tokens: int) -> Iterator[slice]:
    """Which of ``count`` windows of ``length`` tokens go through the model at a time: as many as ``tokens`` holds, at least one.

    >>> list(batches(5, 100, 250))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    size = max(1, tokens // length)
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
