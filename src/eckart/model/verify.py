"""Checking a compressed checkpoint against its certificate, and the certificate against the original."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from eckart.bound import Bound
from eckart.errors import EckartError
from eckart.kernels.svd import LAPACK_SIDE
from eckart.metric import Metric
from eckart.model import recheck
from eckart.model.certificate import Certificate, MatrixRecord
from eckart.model.checkpoint import Checkpoint, resolve
from eckart.model.compression import AnyRecipe, Statistics
from eckart.model.densify import OperatorModules
from eckart.model.files import sha256_of
from eckart.model.ledger import Ledger
from eckart.model.progress import Progress, quiet
from eckart.model.repeat import check_repeated
from eckart.model.skeleton import Skeleton
from eckart.model.targets import Target, find_targets
from eckart.model.tensorfile import tensor_bytes
from eckart.model.workers import side_by_side
from eckart.stats import MetricRule

# A figure computed again on another machine may differ by the rounding of another BLAS, relative to the target's norm;
# errors of large matrices are formed in float32, and figures that go through activations in float32 differ by theirs.
TOLERANCE = 1e-9
TOLERANCE_LARGE = 1e-6
TOLERANCE_ACTIVATIONS = 1e-5
PLAIN_NORMS = ("frobenius", "spectral")


@dataclass(frozen=True)
class Verification:
    """What was checked, how often, and every check that failed as a sentence."""

    checked: Mapping[str, int]
    not_rechecked: tuple[str, ...]
    failures: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether every check passed."""
        return not self.failures


def verify(
    folder: str | Path,
    against: str | Path | None = None,
    *,
    rule: MetricRule | None = None,
    statistics: Statistics = Statistics.ORIGINAL,
    recipe: AnyRecipe | None = None,
    calibration: Path | None = None,
    progress: Progress = quiet,
) -> Verification:
    """Check a compressed checkpoint: the hash of every tensor, sizes, ranks and shapes; with the original, every figure.

    ``against`` is the original: its files must be those that were recorded, copied tensors and config must equal its own, and
    the Frobenius and spectral figures are computed again from both. With ``rule`` and ``statistics`` (as recorded) and
    the ``calibration`` text the figures in the recipe's metric are as well; without, they are named as not
    rechecked. Nothing holds the whole model. Where a ``recipe`` is given (of bonds, or anything but factors), the original and, if one was
    used, the text are what it takes to make the result again, and all of it is compared.

    Raises ``EckartError`` if either directory is unreadable, the original is itself compressed, or the calibration text is not
    the one that was recorded, or config.json names another operator than factors.
    """
    checkpoint = Checkpoint(Path(folder))
    certificate = Certificate.read(checkpoint.folder)
    if calibration is not None and certificate.calibration is None:
        raise EckartError(f"no calibration text was used for {folder}: leave --calibration out")
    if calibration is not None and against is None:
        raise EckartError("--calibration needs the original as well: name it with --against")
    ledger = Ledger()
    modules = OperatorModules(checkpoint, optional=True)
    other = next((name for name in modules.names if modules.kind(name) != "factors"), None)
    if other is not None and recipe is None:
        raise EckartError(
            f"{folder}: {other} holds a {modules.kind(other)} operator; certificates tell of factors alone"
        )
    check_hashes(checkpoint, certificate, ledger, progress)
    if recipe is None:
        _check_records(checkpoint, certificate, modules, ledger)
    if against is None:
        return Verification(ledger.checked, ("all figures (name the original with --against)",), tuple(ledger.failures))
    original = Checkpoint(resolve(against))
    if "quantization_config" in original.config:
        raise EckartError(f"{original.folder} is compressed itself: name the original with --against")
    if recipe is not None:
        check_files(original, certificate, ledger)
        check_size("files", "after", certificate.file_bytes[1], checkpoint.weight_bytes(), ledger)
        left = check_repeated(checkpoint, original, certificate, recipe, calibration, ledger, progress)
        return Verification(ledger.checked, left, tuple(ledger.failures))
    check_source(checkpoint, original, certificate, ledger)
    skipped: list[str] = []
    if certificate.losses:
        skipped.append("the losses on the calibration text (eckart eval measures a model's)")
    if not ledger.failures or _same_architecture(checkpoint, original):
        skeleton = Skeleton(original)
        targets = _check_targets(skeleton, certificate, modules, ledger)
        _check_copies(skeleton, targets, certificate, modules, ledger)
        records = {matrix.name: matrix for matrix in certificate.matrices}
        own = {bounds[0].norm for bounds in (m.bounds for m in certificate.matrices) if bounds} - set(PLAIN_NORMS)
        if own and calibration is None:
            skipped.append(f"figures in the {', '.join(sorted(own))} metric (name the text with --calibration)")
        done = 0

        def figures(pair: tuple[Target, Metric | None]) -> tuple[Bound, ...]:
            record, metric = records[pair[0].name], pair[1] or Metric.plain()
            return recheck.figures(skeleton, pair[0], record, modules, metric, certificate)

        for pairs in _metrics(skeleton, targets, certificate, modules, rule, statistics, calibration, ledger):
            for (target, metric), found in zip(pairs, side_by_side(figures, pairs), strict=True):
                check_figures(target, records[target.name], metric, found, ledger, quick=certificate.quick)
                done += 1
                progress("verify", done, len(targets), target.name)
            pairs.clear()  # the statistics of one block are not kept while those of the next are taken
            metric = None
    return Verification(ledger.checked, tuple(skipped), tuple(ledger.failures))


def _same_architecture(checkpoint: Checkpoint, original: Checkpoint) -> bool:
    return checkpoint.config.get("model_type") == original.config.get("model_type")


def check_hashes(checkpoint: Checkpoint, certificate: Certificate, ledger: Ledger, progress: Progress) -> None:
    """The tensors stored are those recorded, by their SHA-256."""
    names = sorted({*checkpoint.tensors, *certificate.tensors})
    for done, name in enumerate(names):
        recorded = certificate.tensors.get(name)
        if name not in checkpoint.tensors or recorded is None:
            where = "the checkpoint" if name not in checkpoint.tensors else "the certificate"
            ledger.check("hashes", False, f"tensor {name} is missing in {where}")
            continue
        found = hashlib.sha256(tensor_bytes(checkpoint.read(name))).hexdigest()
        ledger.check("hashes", found == recorded, f"tensor {name} was changed: its hash is not the recorded one")
        progress("hash", done + 1, len(names), name)


def _check_records(checkpoint: Checkpoint, certificate: Certificate, modules: OperatorModules, ledger: Ledger) -> None:
    """Every stored operator has one record, whose operator, rank, shape and bytes are those of what is stored."""
    names = [matrix.name for matrix in certificate.matrices]
    for name in sorted({*modules.names, *names}):
        times = names.count(name)
        ledger.check("records", times == 1, f"{name} has {times} records in the certificate instead of one")
    for matrix in certificate.matrices:
        factored = matrix.name in modules.names
        ledger.check(
            "ranks and shapes",
            (matrix.operator, matrix.rank is not None) == ("factors" if factored else "dense", factored),
            f"{matrix.name} is recorded as {matrix.operator} of rank {matrix.rank}, which is not what config.json says",
        )
        if factored:
            tensors = [checkpoint.tensors[disk][1] for disk in modules.tensors(matrix.name).values()]
            shape = (tensors[0].shape[0], tensors[-1].shape[1])
            fits = shape == matrix.shape and tensors[0].shape[1] == matrix.rank
            fits = fits and sum(t.nbytes for t in tensors) == matrix.bytes
            ledger.check("ranks and shapes", fits, f"{matrix.name}: rank, shape or bytes are not those of its factors")
    check_size("files", "after", certificate.file_bytes[1], checkpoint.weight_bytes(), ledger)
    total = sum(matrix.bytes for matrix in certificate.matrices)
    check_size("matrices", "after", certificate.target_bytes[1], total, ledger)


def check_size(what: str, when: str, recorded: int, found: int, ledger: Ledger) -> None:
    """A size in bytes is the recorded one."""
    ledger.check("sizes", recorded == found, f"the {what} take {found} bytes {when}, not {recorded} as recorded")


def check_source(checkpoint: Checkpoint, original: Checkpoint, certificate: Certificate, ledger: Ledger) -> None:
    """The original is the one that was compressed, and the config is still its own."""
    check_files(original, certificate, ledger)
    old, new = original.config, {key: v for key, v in checkpoint.config.items() if key != "quantization_config"}
    for key in sorted({*old, *new}):
        same = key in old and key in new and old[key] == new[key]
        ledger.check("config entries", same, f"{checkpoint.folder / 'config.json'}: {key} is not that of the original")
    check_size("files", "before", certificate.file_bytes[0], original.weight_bytes(), ledger)


def check_files(original: Checkpoint, certificate: Certificate, ledger: Ledger) -> None:
    """The original's files are those that were compressed."""
    for name in sorted({*certificate.source, *original.files, "config.json"}):
        path = original.folder / name
        same = path.is_file() and sha256_of(path) == certificate.source.get(name)
        ledger.check("files of the original", same, f"{path} is not the file that was compressed")


def _check_targets(
    skeleton: Skeleton, certificate: Certificate, modules: OperatorModules, ledger: Ledger
) -> list[Target]:
    """The recorded matrices are those that the recorded options choose in the original; those that are, in its order."""
    targets, untouched = find_targets(skeleton, certificate.only, certificate.exclude)
    recorded = {matrix.name: matrix for matrix in certificate.matrices}
    chosen = {target.name: target for target in targets}
    for name in sorted({*recorded, *chosen}):
        if name not in recorded:
            ledger.check("targets", False, f"{name} was a target, but the certificate has no record of it")
        elif name not in chosen:
            ledger.check("targets", False, f"{name} is no target in the original")
        else:
            matrix, target = recorded[name], chosen[name]
            ledger.check(
                "targets",
                matrix.shape == target.shape and (matrix.rank is not None or matrix.bytes == target.bytes),
                f"{name}: shape or bytes are not those of the original",
            )
    check_size("matrices", "before", certificate.target_bytes[0], sum(t.bytes for t in targets), ledger)
    ledger.check(
        "untouched", tuple(untouched) == certificate.untouched, "the list of matrices left alone is not the right one"
    )
    return [
        target
        for target in targets
        if target.name in recorded
        and recorded[target.name].shape == target.shape
        and (recorded[target.name].rank is not None) == (target.name in modules.names)
    ]


def _check_copies(
    skeleton: Skeleton, targets: list[Target], certificate: Certificate, modules: OperatorModules, ledger: Ledger
) -> None:
    """Tensors that were not approximated are those of the original, and there are no others."""
    held = [target for target in targets if target.name in modules.names]
    factored = {target.disk for target in held}
    twins = {f"{twin}.weight" for target in held for twin in target.twins}
    copied = [n for n in skeleton.checkpoint.tensors if n not in factored and skeleton.places[n] not in twins]
    for name in sorted(copied):
        digest = hashlib.sha256(tensor_bytes(skeleton.checkpoint.read(name))).hexdigest()
        same = certificate.tensors.get(name) == digest
        ledger.check("copied tensors", same, f"tensor {name} is not that of the original")
    factors = {disk for name in modules.names for disk in modules.tensors(name).values()}
    for name in sorted({*certificate.tensors} - {*copied} - factors):
        ledger.check("copied tensors", False, f"tensor {name} is neither a factor nor in the original")


def _metrics(
    skeleton: Skeleton,
    targets: list[Target],
    certificate: Certificate,
    modules: OperatorModules,
    rule: MetricRule | None,
    statistics: Statistics,
    calibration: Path | None,
    ledger: Ledger,
) -> Iterator[list[tuple[Target, Metric | None]]]:
    """The targets with the recipe's metric, ``None`` where that can't be known; a block at a time where it takes statistics."""
    if calibration is None or rule is None or certificate.calibration is None:
        known = Metric.plain() if rule is not None and not rule.needs else None
        return iter([[(target, known) for target in targets]])
    walk = recheck.recorded_walk(skeleton, certificate.calibration, calibration)
    same = recheck.same_windows(walk, certificate.calibration)
    ledger.check(
        "calibration", same, "the windows drawn from the text, or the number of their tokens, are not as recorded"
    )
    if not rule.needs:
        return iter([[(target, rule(None)) for target in targets]])
    return iter(recheck.metrics(walk, targets, modules, rule, statistics))


def check_figures(
    target: Target,
    record: MatrixRecord,
    metric: Metric | None,
    found: tuple[Bound, ...],
    ledger: Ledger,
    *,
    quick: bool,
) -> None:
    """Compare a matrix's figures, computed again, with those recorded, where they can be known."""
    recorded = {bound.norm: bound for bound in record.bounds}
    for bound in found:
        there = bound.norm in recorded
        ledger.check("norms", there, f"{target.name}: no figure in the {bound.norm} norm is recorded")
        if there:
            own = TOLERANCE if min(target.shape) <= LAPACK_SIDE else TOLERANCE_LARGE
            tolerance = own if bound.norm in PLAIN_NORMS else TOLERANCE_ACTIVATIONS
            nearer = quick and "lower" in (bound.delta or {}) and not recorded[bound.norm].delta
            compare = ledger.truth if nearer else ledger.bound
            compare(target.name, recorded[bound.norm], bound, tolerance)
    others = [bound.norm for bound in record.bounds if bound.norm not in {b.norm for b in found}]
    unknown = others if metric is not None else others[1:]  # without a metric one norm can't be known
    ledger.check(
        "norms",
        not unknown and len(recorded) == len(record.bounds),
        f"{target.name}: the norms {', '.join(b.norm for b in record.bounds)} are not those that the recipe gives",
    )
