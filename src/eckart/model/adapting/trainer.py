"""Transformers' Trainer for adapters: their groups, penalties and rules, and checkpoints that hold them alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from eckart.model.adapting.kept import put_state, state_of
from eckart.model.adapting.records import Example, collate
from eckart.model.adapting.wrapped import Wrapped
from eckart.model.files import written_whole
from eckart.model.progress import Progress, quiet
from eckart.model.tensorfile import TensorFile, write_all

STATE, SCHEDULE, WHOLE = "adapters.safetensors", "schedule.safetensors", "whole"


class Steps(TrainerCallback):
    """What happens to gradients between backpropagation and the optimiser: penalties are added, then the rule acts."""

    def __init__(self, wrapped: Wrapped, progress: Progress) -> None:
        self.wrapped, self.progress = wrapped, progress
        self.state = wrapped.begin()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """What the schedule wants to see of the step is kept."""
        self.wrapped.watch(state.global_step + 1, state.max_steps)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Once for each step of the optimiser, however many batches it takes; penalties are not clipped."""
        if self.wrapped.recipe.penalties:
            self.wrapped.penalty().backward()
        self.wrapped.rule()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The schedule acts, while the gradients are there."""
        self.state = self.wrapped.scheduled(state.global_step + 1, state.max_steps, self.state)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Tell how far training has come."""
        self.progress("train", state.global_step, state.max_steps, "")


class AdapterTrainer(Trainer):
    """A ``Trainer`` whose checkpoints hold the adapters and nothing of the model; one is whole once it has a mark."""

    optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        wrapped: Wrapped,
        args: TrainingArguments,
        examples: Sequence[Example],
        held: Sequence[Example],
        *,
        padding: int,
        patience: int | None = None,
        progress: Progress = quiet,
    ) -> None:
        self.wrapped, self.steps = wrapped, Steps(wrapped, progress)

        def collator(batch: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
            return collate(batch, padding)

        super().__init__(
            model=wrapped.model,
            args=args,
            data_collator=collator,
            train_dataset=[example.table for example in examples],
            eval_dataset=[example.table for example in held] or None,
            callbacks=[self.steps, *([EarlyStoppingCallback(patience)] if patience else [])],
        )
        self.remove_callback(PrinterCallback)

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The model's own loss, and in training what the recipe has against its outputs: a mean, as many parts as a step may have."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if model.training and self.wrapped.recipe.outputs:
            parts = 1 if num_items_in_batch is None else self.args.gradient_accumulation_steps
            loss = loss + self.wrapped.output_penalty(inputs, outputs.logits) / parts
        return (loss, outputs) if return_outputs else loss

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW over the groups that roles make."""
        if self.optimizer is None:
            given = self.args
            groups = self.wrapped.groups(given.learning_rate, given.weight_decay)
            betas = (given.adam_beta1, given.adam_beta2)
            self.optimizer = torch.optim.AdamW(groups, lr=given.learning_rate, betas=betas, eps=given.adam_epsilon)
        return self.optimizer

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_all(folder / STATE, state_of(self.wrapped))
        write_all(folder / SCHEDULE, self.steps.state)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        folder = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            with written_whole(folder / WHOLE) as handle:
                handle.write(b"")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        file = TensorFile(Path(resume_from_checkpoint) / STATE)
        put_state(self.wrapped, {name: file.read(name) for name in file.specs})
        file = TensorFile(Path(resume_from_checkpoint) / SCHEDULE)
        self.steps.state = {name: file.read(name) for name in file.specs}

    def _load_best_model(self) -> None:
        if self.state.best_model_checkpoint is not None:
            self._load_from_checkpoint(self.state.best_model_checkpoint)


def newest(folder: Path) -> Path | None:
    """The last checkpoint that is whole, ``None`` where there is none."""
    steps = {
        int(match[1]): path
        for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if (match := re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name)) and (path / WHOLE).exists()
    }
    return steps[max(steps)] if steps else None
