"""Healing from start to end: open, judge, train, judge again, write the better of both."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from eckart.errors import EckartError
from eckart.model.certificate import NAME, CalibrationRecord, Certificate, HealingRecord, HeldOut, MatrixRecord
from eckart.model.checkpoint import Checkpoint, resolve
from eckart.model.compression import describe
from eckart.model.files import sha256_of
from eckart.model.healing.course import Course
from eckart.model.healing.losses import Logits, Match
from eckart.model.healing.student import Student
from eckart.model.healing.trainer import Plan, Trainer
from eckart.model.healing.training import TrainFactors, Training
from eckart.model.healing.written import write_result
from eckart.model.journal import Journal
from eckart.model.ledger import Ledger
from eckart.model.output import check_free, is_in_place, may_be_done, put_in_place, work_folder
from eckart.model.progress import Progress, peak_memory, quiet
from eckart.model.run import environment, find_device, seeded
from eckart.model.tensorfile import tensor_bytes, write_all
from eckart.model.text import draw_windows, ids_for, read_text, window_length
from eckart.model.verify import check_hashes

EVERY = 20  # steps between two states on the disk
KEPT = 2  # states that are there at any time
MERGED = "trained.safetensors"


@dataclass(frozen=True)
class Healed:
    """What ``heal`` made: where, losses on held-out windows of the original, before and after, and the record of every matrix.

    ``healed`` is false where training brought it no nearer to the original; it then holds what it held before.
    """

    folder: Path
    healed: bool
    original: HeldOut
    before: HeldOut
    after: HeldOut
    curve: tuple[float, ...]
    trained: tuple[str, ...]
    matrices: tuple[MatrixRecord, ...]
    peak_memory: int


def heal(
    small: str | Path,
    teacher: str | Path,
    out: str | Path,
    text: str | Path,
    *,
    match: Match = Logits(),
    train: Training = TrainFactors(),
    course: Course = Course(),
    restart: bool = False,
    progress: Progress = quiet,
) -> Healed:
    """Train a compressed checkpoint for a while to do what its original does, and write it in the same layout to ``out``.

    ``small`` is what ``compress`` wrote, or any stock checkpoint of the teacher's vocabulary; ``teacher`` the original. Of the UTF-8
    ``text`` a tenth of the windows (at most 8192 tokens) only judges; the others are trained on in an order that ``course.seed``
    decides. ``match`` is what training minimises, ``train`` what changes: float32 copies by AdamW, the rate rising over a tenth of the
    steps and falling by a cosine, gradients clipped to norm 1, dropout off. What is written diverges less from the
    original on the held-out windows than what was there, or is what was there.

    Both models are held in memory whole in float32, beside two moments and a gradient of everything that trains. A run that was killed
    goes on from its last state when it is repeated, and ends in the same bytes; ``restart`` begins anew.

    Raises ``EckartError`` for a teacher that is not the original or has another vocabulary, a text of fewer than two windows, hidden
    states that do not correspond, operators into which nothing merges, and whatever ``compress`` does.
    """
    out = Path(out)
    if not may_be_done(out, NAME):
        check_free(out)
    plan, facts, header = _open(small, teacher, Path(text), match, train, course)
    journal = Journal(work_folder(out), header, restart=restart)
    try:
        if not is_in_place(journal, out, NAME):
            check_free(out)
            run = _Run(plan, journal, progress)
            record = run.record(facts, header)
            trained = journal.path(MERGED) if record.trained else None
            write_result(plan.student, record, trained, journal, progress)
            put_in_place(journal, out)
    finally:
        journal.close()
    return _read_result(out)


def _open(
    small: str | Path, teacher: str | Path, text: Path, match: Match, train: Training, course: Course
) -> tuple[Plan, dict[str, object], dict[str, object]]:
    """The plan, what the record says of the text, and the header of the journal; everything is refused here that can be."""
    find_device(course.device)
    checkpoint, original = Checkpoint(resolve(small)), Checkpoint(resolve(teacher))
    if "quantization_config" in original.config:
        raise EckartError(f"{original.folder} is compressed itself: name the original with --teacher")
    student = Student(checkpoint, original)
    _check_vocabulary(student)
    train.check(student)
    ids = _ids(student, text)
    length = window_length(checkpoint.folder, course.window)
    if len(ids) < 2 * length:
        raise EckartError(
            f"{text} has {len(ids)} tokens, fewer than two windows of {length}, one to train on and one to judge by: "
            "give a longer text or a smaller --window"
        )
    windows = draw_windows(ids, length, len(ids), seeded(course.seed, "windows"))  # all of them
    own, held_out = course.split(windows)
    plan = Plan(student, match, train, course, own, held_out)
    plan.blocks()
    source = original.file_hashes()
    _check_original(student, source)
    facts: dict[str, object] = {
        "sha256": sha256_of(text),
        "ids": hashlib.sha256(tensor_bytes(windows)).hexdigest(),
        "tokens": int(own.numel()),
        "asked_tokens": course.steps * course.windows_at_once(length) * length,
        "window": length,
        "seed": course.seed,
    }
    mine = {NAME: sha256_of(checkpoint.folder / NAME)} if student.certificate is not None else {}
    header = environment() | {
        "made by": "heal",
        "source": checkpoint.file_hashes() | mine,
        "teacher": source,
        "match": describe(match),
        "train": describe(train),
        "steps": course.steps,
        "rate": course.rate,
        "batch_tokens": course.batch_tokens,
        "device": course.device,
        "text": facts,
        "companions": {name: sha256_of(checkpoint.folder / name) for name in checkpoint.companions()},
    }
    return plan, facts, header


def _check_vocabulary(student: Student) -> None:
    """Refuse a teacher whose logits speak of other tokens, or of another number of them."""
    sizes = [s.model.config.get_text_config().vocab_size for s in (student.skeleton, student.original)]
    if sizes[0] != sizes[1]:
        raise EckartError(
            f"{student.teacher.folder} has a vocabulary of {sizes[1]} and {student.checkpoint.folder} one of {sizes[0]}: "
            "name the original with --teacher; what a smaller vocabulary is made of is healed before"
        )


def _ids(student: Student, path: Path) -> Tensor:
    """The ids of the text, which both tokenizers must agree on."""
    text = read_text(path)
    ids, theirs = (ids_for(folder, text) for folder in (student.checkpoint.folder, student.teacher.folder))
    if ids.tolist() != theirs.tolist():
        raise EckartError(
            f"the tokenizers of {student.checkpoint.folder} and {student.teacher.folder} make different tokens of {path}: "
            "name the original with --teacher"
        )
    return ids


def _check_original(student: Student, source: Mapping[str, str]) -> None:
    """Refuse another teacher than the model that was compressed, and a checkpoint that was changed since."""
    if student.certificate is None:
        return
    recorded = student.certificate.source
    other = next((name for name in sorted({*recorded, *source}) if recorded.get(name) != source.get(name)), None)
    if other is not None:
        raise EckartError(
            f"{student.teacher.folder} is not what {student.checkpoint.folder} was compressed from: its {other} is not the one that "
            f"{NAME} records; name the original with --teacher"
        )
    ledger = Ledger()
    check_hashes(student.checkpoint, student.certificate, ledger, quiet)
    if ledger.failures:
        raise EckartError(f"{student.checkpoint.folder} is not as its {NAME} says: {ledger.failures[0]}; make it again")


@dataclass(frozen=True)
class _Run:
    """One healing under way."""

    plan: Plan
    journal: Journal
    progress: Progress

    @cached_property
    def _trainer(self) -> Trainer:
        """Loaded when the first piece wants it: a run that only has to write needs no model."""
        return Trainer(self.plan)

    def _at(self, step: int) -> Trainer:
        """The trainer after this many steps, from the state that was saved there if need be."""
        if self._trainer.step != step:
            self._trainer.restore(step, self.journal.path(_state(step)))
        return self._trainer

    def record(self, facts: Mapping[str, object], header: Mapping[str, object]) -> HealingRecord:
        """Train, and say what came of it."""
        start = self.journal.once("before", self._before)
        curve = self._train()
        end = self.journal.once("after", self._after)
        assert isinstance(start, dict)
        assert isinstance(end, dict)
        course, before, after = self.plan.course, HeldOut(**start["student"]), HeldOut(**end["student"])
        near, nearer = before.divergence, after.divergence
        better = nearer is not None and (near is None or nearer < near)
        source = header["source"]
        assert isinstance(source, dict)
        return HealingRecord(
            match=describe(self.plan.match),
            train=describe(self.plan.train),
            steps=course.steps,
            rate=course.rate,
            batch_tokens=course.batch_tokens,
            seed=course.seed,
            device=course.device,
            text=CalibrationRecord(**facts),  # type: ignore[arg-type]
            held_out=self.plan.held_out.numel(),
            source=source,
            original=HeldOut(**start["original"]),
            before=before,
            after=after,
            curve=curve,
            trained=tuple(end["tensors"]) if better else (),
            environment=environment(),
        )

    def _before(self) -> tuple[object, list[str]]:
        original, student = self._at(0).judge("judge before", self.progress)
        return {"original": original.to_json(), "student": student.to_json()}, []

    def _train(self) -> tuple[float, ...]:
        """The pieces between two states; the mean loss of each."""
        steps = self.plan.course.steps
        stops = [*range(EVERY, steps, EVERY), steps]
        curve = []
        for index, stop in enumerate(stops):

            def make(stop: int = stop, start: int = stops[index - 1] if index else 0) -> tuple[object, list[str]]:
                loss = self._at(start).advance(stop, self.progress)
                self._trainer.save(self.journal.path(_state(stop)))
                return loss, [_state(stop)]

            loss = self.journal.once(f"train/{stop}", make)
            assert isinstance(loss, float)
            curve.append(loss)
            if index >= KEPT:
                self.journal.drop(_state(stops[index - KEPT]))
        return tuple(curve)

    def _after(self) -> tuple[object, list[str]]:
        trainer = self._at(self.plan.course.steps)
        tensors = trainer.settle()
        write_all(self.journal.path(MERGED), tensors)
        _, student = trainer.judge("judge after", self.progress)
        return {"student": student.to_json(), "tensors": sorted(tensors)}, [MERGED]


def _state(step: int) -> str:
    """The work file of the state after a step."""
    return f"state-{step:06d}.safetensors"


def _read_result(out: Path) -> Healed:
    """The result as its certificate tells it."""
    found = Certificate.read(out)
    last = found.healing[-1]
    return Healed(
        folder=out,
        healed=bool(last.trained),
        original=last.original,
        before=last.before,
        after=last.after,
        curve=last.curve,
        trained=last.trained,
        matrices=found.matrices,
        peak_memory=peak_memory(),
    )
