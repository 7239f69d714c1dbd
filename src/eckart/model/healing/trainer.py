"""Teacher and student in memory, and the steps of training between them, which go on from any state that was saved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from eckart.errors import EckartError
from eckart.model.certificate import HeldOut
from eckart.model.evaluate import load
from eckart.model.healing.course import Course
from eckart.model.healing.losses import Logits, Match, Seen, look
from eckart.model.healing.student import Student
from eckart.model.healing.training import Training
from eckart.model.progress import Progress
from eckart.model.run import find_device
from eckart.model.skeleton import without_bars
from eckart.model.tensorfile import TensorFile, write_all

LONGEST_STEP = 1.0  # the norm to which the gradient of all parameters together is clipped
MOMENTS = ("exp_avg", "exp_avg_sq")  # what torch's AdamW keeps of each parameter besides the step


@dataclass(frozen=True)
class Plan:
    """What a healing is made of: who learns, by which loss, what of it, for how long and on which windows (k, length)."""

    student: Student
    match: Match
    train: Training
    course: Course
    windows: Tensor
    held_out: Tensor

    def blocks(self) -> tuple[Sequence[str], Sequence[str]]:
        """The blocks whose hidden states the loss wants, of the student and of the teacher."""
        return self.student.corresponding() if self.match.states else ((), ())


class Trainer:
    """Both models whole and in float32, dropout off; ``step`` counts the steps that the parameters have seen.

    Raises ``EckartError`` for models that transformers can't load.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan, self.step = plan, 0
        self._place = find_device(plan.course.device)
        self._own, self._theirs = plan.blocks()
        with without_bars():
            self._teacher = load(plan.student.teacher.folder, dtype=torch.float32).to(self._place)
            self.model = load(plan.student.checkpoint.folder, dtype=torch.float32).to(self._place)
        self._teacher.requires_grad_(False)
        self._trained = plan.train.attach(plan.student, self.model, plan.course.seed)
        self._parameters = list(self._trained.parameters.values())
        # Nothing is drawn towards zero: where training begins is where it wants to be.
        self._optimiser = torch.optim.AdamW(self._parameters, lr=plan.course.rate, weight_decay=0.0)

    def advance(self, stop: int, progress: Progress) -> float:
        """Train up to a step; the mean of the losses on the way.

        Raises ``EckartError`` where the loss is no number any more.
        """
        losses = []
        course = self.plan.course
        for batch in course.batches(self.plan.windows, self.step):
            for group in self._optimiser.param_groups:
                group["lr"] = course.rate_at(self.step)
            loss = self.plan.match(*self._both(batch))
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                raise EckartError(f"the loss of step {self.step + 1} is no number: give a smaller --rate")
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._parameters, LONGEST_STEP)
            self._optimiser.step()
            self._optimiser.zero_grad()
            self.step += 1
            progress("train", self.step, course.steps, f"loss {losses[-1]:.4f}")
            if self.step == stop:
                break
        return sum(losses) / len(losses)

    def _both(self, batch: Tensor) -> tuple[Seen, Seen]:
        """What student and teacher make of windows."""
        ids = batch.to(self._place)
        with torch.no_grad():
            theirs = look(self._teacher, ids, self._theirs)
        return look(self.model, ids, self._own), theirs

    def save(self, path: Path) -> None:
        """Write parameters and the state of the optimiser."""
        table = {f"{name}/value": p.detach() for name, p in self._trained.parameters.items()}
        for name, parameter in self._trained.parameters.items():
            kept = self._optimiser.state[parameter]
            table |= {f"{name}/{moment}": kept[moment] for moment in MOMENTS}
        write_all(path, table)

    def restore(self, step: int, path: Path) -> None:
        """Take up the state that was saved after a step."""
        file = TensorFile(path)
        with torch.no_grad():
            for name, parameter in self._trained.parameters.items():
                parameter.copy_(file.read(f"{name}/value"))
        state = {
            index: {"step": torch.tensor(float(step))} | {moment: file.read(f"{name}/{moment}") for moment in MOMENTS}
            for index, name in enumerate(self._trained.parameters)
        }
        self._optimiser.load_state_dict({**self._optimiser.state_dict(), "state": state})
        self.step = step

    def settle(self) -> dict[str, Tensor]:
        """The tensors that training gave, as stored and by their names on disk; the student holds them from now on."""
        with torch.no_grad():
            tensors = self._trained.merged()
            self._trained.detach()
            held = [*self.plan.student.operators, *self.plan.student.stock]
            places = {disk: place for entry in held for disk, place in entry.parameters.items()}
            for disk, tensor in tensors.items():
                self.model.get_parameter(places[disk]).copy_(tensor)
        return tensors

    @torch.no_grad()
    def judge(self, stage: str, progress: Progress) -> tuple[HeldOut, HeldOut]:
        """The losses of the original and of the student on the held-out windows, added up in float64."""
        nats, divergence, tokens, scored = [0.0, 0.0], 0.0, 0, 0
        batches = self.plan.held_out.split(self.plan.course.windows_at_once(self.plan.held_out.shape[1]))
        for done, batch in enumerate(batches):
            own, theirs = self._both(batch)
            labels = batch[:, 1:].to(self._place)
            for index, found in enumerate((theirs, own)):
                nats[index] += _negative_log_likelihood(found.logits, labels)
            divergence += float(Logits()(own, theirs)) * batch.numel()
            tokens, scored = tokens + batch.numel(), scored + labels.numel()
            progress(stage, done + 1, len(batches), "held-out windows")
        original = HeldOut(_finite(nats[0] / scored), 0.0)
        return original, HeldOut(_finite(nats[1] / scored), _finite(divergence / tokens))


def _negative_log_likelihood(logits: Any, labels: Tensor) -> float:
    found = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels.flatten(), reduction="none")
    return float(found.to(torch.float64).sum())


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
