"""How long, how fast and on what adapters are trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import TrainingArguments

from eckart.errors import EckartError


@dataclass(frozen=True, kw_only=True)
class Course:
    """``steps`` of ``batch`` examples, each added up from ``accumulate`` parts, at a rate that rises for a while and falls as a cosine.

    Examples have at most ``length`` tokens. Every ``save`` steps the run can go on from there. Every ``judge`` steps the held-out
    examples, a share ``held_out`` of all, are judged; where they got no better ``patience`` times training ends, with the best it had.
    Which examples are held out is drawn by ``division``, by default by the seed.

    Raises ``EckartError`` for numbers that are none of a training.
    """

    steps: int = 200
    batch: int = 8
    accumulate: int = 1
    rate: float = 2e-4
    warm_up: float = 0.03
    decay: float = 0.0
    dropout: float = 0.0
    length: int | None = None
    held_out: float = 0.05
    judge: int = 50
    patience: int | None = None
    save: int = 50
    seed: int = 0
    division: int | None = None
    bfloat16: bool = False

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.accumulate, self.judge, self.save) < 1:
            raise EckartError("steps, examples a step, parts of a step and intervals are at least 1")
        if self.batch % self.accumulate:
            raise EckartError(f"{self.batch} examples a step can't be added up from {self.accumulate} equal parts")
        if not 0 <= self.held_out < 1 or not 0 <= self.dropout < 1 or not 0 <= self.warm_up <= 1:
            raise EckartError("what is held out, dropped, and warmed up are shares from 0 to below 1")
        if not self.rate > 0 or self.decay < 0:
            raise EckartError(
                f"the learning rate is {self.rate:g} and the decay {self.decay:g}: the one is above 0, the other not below"
            )
        if self.patience is not None and (self.patience < 1 or self.save % self.judge):
            raise EckartError(
                "to end early, patience is at least 1, and what is saved is judged: make --save a multiple of --judge"
            )

    def check_divides(self, processes: int) -> None:
        """Raise ``EckartError`` where so many processes can't take equal parts of what goes through the model at a time."""
        part = self.batch // self.accumulate
        if part % processes:
            parts = f" in {self.accumulate} parts" if self.accumulate > 1 else ""
            raise EckartError(
                f"{self.batch} examples a step{parts} can't be shared by {processes} processes: "
                f"make --batch a multiple of {self.accumulate * processes}"
            )

    def arguments(self, work: Path, *, judged: bool, processes: int = 1) -> TrainingArguments:
        """The same for transformers' Trainer, with its checkpoints in a folder."""
        best = judged and self.patience is not None
        return TrainingArguments(
            output_dir=str(work),
            max_steps=self.steps,
            per_device_train_batch_size=self.batch // self.accumulate // processes,
            per_device_eval_batch_size=self.batch // processes,
            gradient_accumulation_steps=self.accumulate,
            learning_rate=self.rate,
            weight_decay=self.decay,
            warmup_steps=round(self.warm_up * self.steps),
            lr_scheduler_type="cosine",
            seed=self.seed,
            data_seed=self.seed,
            bf16=self.bfloat16,
            logging_steps=min(10, self.steps),
            eval_strategy="steps" if judged else "no",
            eval_steps=self.judge,
            save_strategy="steps",
            save_steps=self.save,
            save_total_limit=2,
            load_best_model_at_end=best,
            metric_for_best_model="eval_loss" if best else None,
            greater_is_better=False if best else None,
            restore_callback_states_from_checkpoint=True,
            ddp_find_unused_parameters=True,
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=False,
        )
