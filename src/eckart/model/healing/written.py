"""What a healing writes: the tensors that it trained in their old places, and a certificate measured anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Generator, Tensor

from eckart.bound import Bound
from eckart.errors import EckartError
from eckart.kernels.svd import LAPACK_SIDE, singular_values
from eckart.linalg import Optimum, measured_bounds
from eckart.linalg.formed import formed_bounds
from eckart.metric import Metric
from eckart.model.certificate import FORMAT, NAME, HealingRecord, HeldOut, MatrixRecord
from eckart.model.checkpoint import INDEX, Checkpoint
from eckart.model.densify import OperatorModules
from eckart.model.files import read_json, write_json, written_whole
from eckart.model.healing.student import Student
from eckart.model.journal import Journal
from eckart.model.output import FOLDER, copy_companions
from eckart.model.progress import Progress
from eckart.model.run import environment, seeded
from eckart.model.targets import Target, Untouched, find_targets
from eckart.model.tensorfile import TensorFile, write
from eckart.operator import Dense, Factors, Operator, kind_of, nbytes

CARD = "README.md"


def write_result(
    student: Student, record: HealingRecord, trained: Path | None, journal: Journal, progress: Progress
) -> None:
    """Write the healed checkpoint into the work folder; ``trained`` is the file of what training gave, if that is kept."""
    checkpoint, made = student.checkpoint, journal.path(FOLDER)
    made.mkdir(exist_ok=True)
    hashes = _write_weights(checkpoint, trained, journal, progress)
    write_json(made / "config.json", checkpoint.config)
    result = Checkpoint(made)
    table = _table(student, record.seed) | {"tensors": hashes}
    if trained is not None or student.certificate is None:
        table |= _measured(student, result, table, journal, progress)
    earlier = [] if student.certificate is None else [entry.to_json() for entry in student.certificate.healing]
    write_json(made / NAME, table | {"healing": [*earlier, record.to_json()]})
    copy_companions(checkpoint, made)
    _write_card(checkpoint, made, record)


def _write_weights(
    checkpoint: Checkpoint, trained: Path | None, journal: Journal, progress: Progress
) -> dict[str, str]:
    """The weight files with every tensor in its old place, dtype and shape; the SHA-256 of each tensor."""
    file_of_trained = None if trained is None else TensorFile(trained)
    made = journal.path(FOLDER)

    def produce(name: str) -> Tensor:
        if file_of_trained is not None and name in file_of_trained.specs:
            return file_of_trained.read(name)
        return checkpoint.read(name)

    hashes: dict[str, str] = {}
    for done, file in enumerate(checkpoint.files):

        def make(file: str = file) -> tuple[object, list[str]]:
            metadata = {"format": "pt"} | checkpoint.metadata(file)
            return write(made / file, checkpoint.specs(file), metadata, produce), [f"{FOLDER}/{file}"]

        found = journal.once(f"write/{file}", make)
        assert isinstance(found, dict)
        hashes |= found
        progress("write", done + 1, len(checkpoint.files), file)
    if (checkpoint.folder / INDEX).exists():
        write_json(made / INDEX, read_json(checkpoint.folder / INDEX))
    return hashes


def _table(student: Student, seed: int) -> dict[str, object]:
    """The certificate that was there, or one for a checkpoint that another program made."""
    if student.certificate is not None:
        return read_json(student.checkpoint.folder / NAME)
    return {
        "format": FORMAT,
        "environment": environment(),
        "recipe": {},
        "request": {"keep": None, "bytes": None, "only": [], "exclude": [], "seed": seed, "device": "cpu", "quick": False},
        "calibration": None,
        "source": student.teacher.file_hashes(),
        "sizes": {
            "targets": {"before": 0, "after": 0},
            "files": {"before": student.teacher.weight_bytes(), "after": 0},
        },
        "ranks": {"kept": "healed", "losses": {}, "gap": None},
        "untouched": [],
    }  # fmt: skip


def _measured(
    student: Student, result: Checkpoint, table: Mapping[str, object], journal: Journal, progress: Progress
) -> dict[str, object]:
    """The entries of a certificate that training changed: matrices beside their originals, bonds without their errors, sizes."""
    targets, untouched = _counterparts(student)
    modules = OperatorModules(result, optional=True)
    told = {} if student.certificate is None else {matrix.name: matrix for matrix in student.certificate.matrices}
    spectral = student.certificate is None or not student.certificate.quick
    request, sizes = table["request"], table["sizes"]
    assert isinstance(request, dict)
    assert isinstance(sizes, dict)
    records: list[MatrixRecord] = []
    for done, target in enumerate(targets):
        op = stored_operator(target, result, modules)
        rng = seeded(request["seed"], f"{target.name}/norm")

        def make(target: Target = target, op: Operator = op, rng: Generator = rng) -> tuple[object, list[str]]:
            bounds = figures(target.read(student.teacher), op, rng, spectral=spectral)
            return [bound.to_json() for bound in bounds], []

        value = journal.once(f"figures/{target.name}", make)
        assert isinstance(value, list)
        bounds = tuple(Bound.from_json(entry) for entry in value)
        blank = MatrixRecord(target.name, target.shape, kind_of(op), _rank(op), nbytes(op), ())
        records.append(replace(told.get(target.name, blank), bounds=bounds))
        progress("figures", done + 1, len(targets), target.name)
    total = {"before": sum(target.bytes for target in targets), "after": sum(record.bytes for record in records)}
    changed: dict[str, object] = {
        "matrices": [record.to_json() for record in records],
        "sizes": {
            "targets": sizes["targets"] if student.certificate is not None else total,
            "files": {**sizes["files"], "after": result.weight_bytes()},
        },
    }
    if student.certificate is None:
        changed["untouched"] = [{"name": u.name, "shape": list(u.shape), "reason": u.reason} for u in untouched]
    elif student.certificate.bonds:  # what crosses them is another thing now, and was read by other maps
        changed["bonds"] = [replace(bond, bound=None).to_json() for bond in student.certificate.bonds]
    return changed


def _counterparts(student: Student) -> tuple[list[Target], list[Untouched]]:
    """The matrices of the original that the certificate tells of; where there is none, those of the same network."""
    certificate = student.certificate
    if certificate is not None:
        if not certificate.matrices:
            return [], []
        found, _ = find_targets(student.original, certificate.only, certificate.exclude)
        recorded = {matrix.name: matrix.shape for matrix in certificate.matrices}
        kept = [target for target in found if recorded.get(target.name) == target.shape]
        if len(kept) != len(recorded):
            raise EckartError(
                f"{student.checkpoint.folder / NAME} is damaged or was edited: it tells of other matrices"
            )
        return kept, []
    if not student.same_network:
        return [], []
    return find_targets(student.original)


def _rank(op: Operator) -> int | None:
    """The rank of factors; what is dense has none."""
    return op.rank if isinstance(op, Factors) else None


def stored_operator(target: Target, checkpoint: Checkpoint, modules: OperatorModules) -> Operator:
    """What a checkpoint holds in place of a matrix of the original, as (outputs, inputs)."""
    if target.name in modules.names:
        return modules.read(target.name)
    weight = checkpoint.read_finite(target.disk)
    return Dense(weight.T if target.transposed else weight)


def figures(weight: Tensor, op: Operator, rng: Generator, *, spectral: bool) -> tuple[Bound, ...]:
    """How far ``op`` is from ``weight`` (m, n), in the Frobenius and (with ``spectral``) the spectral norm.

    Of factors ``lower`` is certain: from the singular values up to a smaller side of 1024, else from the factors themselves, and then
    loose. Of other operators no theorem tells what is possible at their size.

    >>> import torch
    >>> w = torch.diag(torch.tensor([2.0, 1.0]))
    >>> far = Factors(torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0, 0.0]]))
    >>> [(round(b.lower, 6), round(b.achieved, 6)) for b in figures(w, far, Generator(), spectral=False)]
    [(1.0, 1.414214)]
    """
    if not isinstance(op, Factors):
        return formed_bounds(weight, op, Metric.plain(), lower=None, rng=rng, spectral=spectral)
    values = singular_values(weight) if min(weight.shape) <= LAPACK_SIDE else None
    optimum = None if values is None else Optimum(values, values)
    return measured_bounds(weight, op, Metric.plain(), optimum, rng=rng, spectral=spectral)


def _write_card(checkpoint: Checkpoint, folder: Path, record: HealingRecord) -> None:
    """The model card that was there, with a section on what training did."""
    card = checkpoint.folder / CARD
    if not card.is_file():
        return
    section = [
        "",
        "## Healed",
        "",
        f"Trained for {record.steps} steps to do what the original does; nats per token on held-out windows: "
        f"original {_told(record.original)}, before {_told(record.before)}, after {_told(record.after)}."
        + ("" if record.trained else " The numbers from before were kept."),
        "",
    ]
    with written_whole(folder / CARD) as handle:
        handle.write(card.read_bytes() + "\n".join(section).encode())


def _told(losses: HeldOut) -> str:
    return "no number" if losses.nats is None else f"{losses.nats:.4f}"
