"""Transformers' Trainer for adapters: their groups, penalties and rules, and checkpoints that hold them alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.data_loader import prepare_data_loader
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from eckart.errors import EckartError
from eckart.model.adapting.kept import put_state, state_of
from eckart.model.adapting.processes import ALONE, Processes
from eckart.model.adapting.records import MASKED, Example, collate, share
from eckart.model.adapting.wrapped import Wrapped
from eckart.model.files import written_whole
from eckart.model.progress import Progress, quiet
from eckart.model.tensorfile import TensorFile, write_all

STATE, SCHEDULE, WHOLE = "adapters.safetensors", "schedule.safetensors", "whole"
TOLD = {"loss": "loss", "eval_loss": "held out"}  # of what is noted, while it trains


class Steps(TrainerCallback):
    """What happens to gradients between backpropagation and the optimiser: penalties are added, then the rule acts."""

    def __init__(self, wrapped: Wrapped, processes: Processes, progress: Progress) -> None:
        self.wrapped, self.processes, self.progress = wrapped, processes, progress
        self.state = wrapped.begin()
        self.losses: dict[str, float] = {}

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
        self.state = self.wrapped.scheduled(state.global_step + 1, state.max_steps, self.state, self.processes)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Tell how far training has come; what may be the best is saved, and what is saved has its loss noted, so that runs can go on."""
        self._tell(state)
        control.should_save |= args.load_best_model_at_end and control.should_evaluate
        control.should_log |= control.should_save

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **_: Any) -> None:
        """Tell the newest losses."""
        self.losses |= {told: logs[name] for name, told in TOLD.items() if logs and name in logs}
        self._tell(state)

    def _tell(self, state: Any) -> None:
        losses = ", ".join(f"{told} {loss:.4g}" for told, loss in self.losses.items())
        self.progress("train", state.global_step, state.max_steps, losses)


class AdapterTrainer(Trainer):
    """A ``Trainer`` whose checkpoints hold the adapters and nothing of the model; one is whole once it has a mark."""

    optimizer: torch.optim.Optimizer | None
    control: TrainerControl

    def __init__(
        self,
        wrapped: Wrapped,
        args: TrainingArguments,
        examples: Sequence[Example],
        held: Sequence[Example],
        *,
        padding: int,
        patience: int | None = None,
        processes: Processes = ALONE,
        board: TrainerCallback | None = None,
        progress: Progress = quiet,
    ) -> None:
        self.wrapped, self.steps, self.processes = wrapped, Steps(wrapped, processes, progress), processes
        self.held, self.padding = held, padding
        self.labelled = isinstance(examples[0].labels, int)

        def collator(batch: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
            return share(collate(batch, padding), processes.index, processes.count)

        super().__init__(
            model=wrapped.model,
            args=args,
            data_collator=collator,
            train_dataset=[example.table for example in examples],
            eval_dataset=[example.table for example in held] or None,
            callbacks=[
                self.steps,
                *([EarlyStoppingCallback(patience)] if patience else []),
                *([board] if board else []),
            ],
        )
        self.remove_callback(PrinterCallback)
        if self.labelled:
            self.model_accepts_loss_kwargs = (
                True  # the loss is divided by the labels of a whole step here, whatever the model takes
            )
        elif processes.count > 1 and not self.model_accepts_loss_kwargs:
            raise EckartError(f"{type(wrapped.model).__name__} gives no loss that processes can share: train it in one")

    def run(self, checkpoint: Path | None) -> None:
        """Train, from a checkpoint on where there is one; after that of a run's end there is nothing left to train."""
        if checkpoint is None:
            self.train()
            return
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        stopped = state.stateful_callbacks["TrainerControl"]["args"]["should_training_stop"]
        if state.global_step < self.args.max_steps and not stopped:
            self.train(resume_from_checkpoint=str(checkpoint))
            return
        self.state = state
        best = state.best_model_checkpoint if self.args.load_best_model_at_end else None
        self._load_from_checkpoint(best or str(checkpoint))

    def get_train_dataloader(self) -> Any:
        """Batches in an order that does not depend on the number of processes, each of which takes its share of every one."""
        loader = DataLoader(
            self.train_dataset,
            batch_size=self.args.per_device_train_batch_size * self.processes.count,
            sampler=RandomSampler(self.train_dataset),
            collate_fn=self.data_collator,
        )
        seed = self.args.data_seed
        return prepare_data_loader(loader, num_processes=1, process_index=0, use_seedable_sampler=True, data_seed=seed)

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The model's own loss, and in training what the recipe has against its outputs: a mean, as many parts as a step may have.

        Of several processes each has what gives the loss of the whole step once it is averaged.
        """
        count = self.processes.count
        if self.labelled:
            outputs = model(**inputs)
            loss = summed_loss(outputs.logits, inputs["labels"]) * count / num_items_in_batch
        else:
            loss, outputs = super().compute_loss(
                model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
            )
        if model.training and self.wrapped.recipe.outputs:
            parts = 1 if num_items_in_batch is None else self.args.gradient_accumulation_steps
            against = self.wrapped.output_penalty(inputs, outputs.logits, self.processes) / parts
            loss = loss + count * against - (count - 1) * against.detach()  # gradients of one share, the number of all
        return (loss, outputs) if return_outputs else loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The loss of the held-out examples, per token or text, and the share of texts whose label is found."""
        size = self.args.per_device_eval_batch_size * self.processes.count
        found = torch.zeros(
            3, dtype=torch.float64, device=self.args.device
        )  # of losses, what counts, and what is right
        self.model.eval()
        for at in range(0, len(self.held), size):
            rows = self.processes.share(list(self.held[at : at + size]))
            if rows:
                found += self._judged(collate([row.table for row in rows], self.padding))
        loss, count, right = self.processes.total(found).tolist()
        metrics = {"eval_loss": loss / count} | ({"eval_accuracy": right / count} if self.labelled else {})
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def _judged(self, batch: Any) -> Tensor:
        batch = self._prepare_inputs(batch)
        labels = batch.pop("labels")
        logits = self.model(**batch).logits
        if not self.labelled:
            logits, labels = logits[:, :-1], labels[:, 1:]
        right = (logits.argmax(-1) == labels).sum()
        return torch.stack([summed_loss(logits, labels).double(), (labels != MASKED).sum(), right])

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW over the groups that roles make."""
        if self.optimizer is None:
            given = self.args
            groups = self.wrapped.groups(given.learning_rate, given.weight_decay)
            betas = (given.adam_beta1, given.adam_beta2)
            self.optimizer = torch.optim.AdamW(groups, lr=given.learning_rate, betas=betas, eps=given.adam_epsilon)
        return self.optimizer

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.processes.first:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_all(folder / STATE, state_of(self.wrapped))
        write_all(folder / SCHEDULE, self.steps.state)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.processes.wait()
        folder = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.processes.first:
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


def summed_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The sum of the losses, in nats, of logits (…, D) beside the labels (…) that count.

    >>> round(float(summed_loss(torch.zeros(2, 3, 4), torch.tensor([[0, 1, -100], [2, -100, -100]]))), 4)
    4.1589
    """
    return F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), ignore_index=MASKED, reduction="sum")


def step_of(checkpoint: Path | None) -> int:
    """After how many steps a checkpoint was written; 0 where there is none.

    >>> step_of(Path("work/checkpoint-50")), step_of(None)
    (50, 0)
    """
    return 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])


def newest(folder: Path) -> Path | None:
    """The last checkpoint that is whole, ``None`` where there is none."""
    steps = {
        int(match[1]): path
        for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if (match := re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name)) and (path / WHOLE).exists()
    }
    return steps[max(steps)] if steps else None
