"""Checking a healed checkpoint: what it holds, and the figures that can be measured again; training is not repeated."""

from __future__ import annotations

import hashlib
from pathlib import Path

from eckart.errors import EckartError
from eckart.metric import Metric
from eckart.model.certificate import Certificate
from eckart.model.checkpoint import Checkpoint, resolve
from eckart.model.densify import OperatorModules
from eckart.model.healing.written import figures, stored_operator
from eckart.model.ledger import Ledger
from eckart.model.progress import Progress, quiet
from eckart.model.run import seeded
from eckart.model.skeleton import Skeleton
from eckart.model.targets import Target, find_targets
from eckart.model.tensorfile import tensor_bytes
from eckart.model.verify import Verification, check_figures, check_files, check_hashes, check_size


def verify_healed(folder: str | Path, against: str | Path | None = None, progress: Progress = quiet) -> Verification:
    """Check a healed checkpoint: hashes, sizes and kinds; with the original its files, figures of matrices, and what no step touched.

    Raises ``EckartError`` if either directory is unreadable, or the original is itself compressed.
    """
    checkpoint, ledger = Checkpoint(Path(folder)), Ledger()
    certificate, modules = Certificate.read(checkpoint.folder), OperatorModules(checkpoint, optional=True)
    check_hashes(checkpoint, certificate, ledger, progress)
    unknown = sorted(certificate.trained - {*checkpoint.tensors})
    ledger.check(
        "trained tensors", not unknown, f"tensor {(unknown or [''])[0]} is said to be trained and is not there"
    )
    _check_records(checkpoint, certificate, modules, ledger)
    check_size("files", "after", certificate.file_bytes[1], checkpoint.weight_bytes(), ledger)
    skipped = [f"what training gave: {len(certificate.trained)} tensors and the held-out losses are not made again"]
    if against is None:
        return Verification(
            ledger.checked, (*skipped, "all figures (name the original with --against)"), tuple(ledger.failures)
        )
    original = Checkpoint(resolve(against))
    if "quantization_config" in original.config:
        raise EckartError(f"{original.folder} is compressed itself: name the original with --against")
    check_files(original, certificate, ledger)
    if not _is_of_matrices(certificate):
        skipped.append("tensors that did not train (verify the checkpoint that was healed)")
    if certificate.matrices and not ledger.failures:
        skeleton = Skeleton(original)
        targets = _targets(skeleton, certificate, ledger)
        if _is_of_matrices(certificate):
            _check_copies(skeleton, targets, certificate, modules, ledger)
        _check_figures(targets, original, checkpoint, certificate, modules, ledger, progress)
    return Verification(ledger.checked, tuple(skipped), tuple(ledger.failures))


def _is_of_matrices(certificate: Certificate) -> bool:
    """Whether compression changed the recorded matrices of the original and nothing else."""
    others = certificate.bonds or certificate.heads or certificate.dropped
    return bool(certificate.recipe) and not others


def _check_records(checkpoint: Checkpoint, certificate: Certificate, modules: OperatorModules, ledger: Ledger) -> None:
    """Every operator has one record where matrices are recorded, whose kind and bytes are those of what is stored."""
    names = [matrix.name for matrix in certificate.matrices]
    for name in sorted({*names, *(modules.names if names else ())}):
        times = names.count(name)
        ledger.check("records", times == 1, f"{name} has {times} records in the certificate instead of one")
    for matrix in certificate.matrices:
        held = matrix.name in modules.names
        kind = modules.kind(matrix.name) if held else "dense"
        fits = matrix.operator == kind and (held or matrix.rank is None)
        if held:
            stored = [checkpoint.tensors[disk][1].nbytes for disk in modules.own(matrix.name)]
            fits = fits and sum(stored) == matrix.bytes
            left = checkpoint.tensors[next(iter(modules.tensors(matrix.name).values()))][1]
            fits = fits and (kind != "factors" or left.shape[1] == matrix.rank)
        ledger.check("records", fits, f"{matrix.name}: operator, rank or bytes are not those of what is stored")
    if names and _is_of_matrices(certificate):
        total = sum(matrix.bytes for matrix in certificate.matrices)
        check_size("matrices", "after", certificate.target_bytes[1], total, ledger)


def _targets(skeleton: Skeleton, certificate: Certificate, ledger: Ledger) -> list[Target]:
    """The matrices of the original that are recorded: all that the recorded options choose, but for those that bonds changed."""
    found, untouched = find_targets(skeleton, certificate.only, certificate.exclude)
    recorded = {matrix.name: matrix.shape for matrix in certificate.matrices}
    chosen = {target.name: target.shape for target in found}
    whole = _is_of_matrices(certificate)
    for name in sorted({*recorded, *(chosen if whole else ())}):
        same = recorded.get(name) == chosen.get(name)
        ledger.check("targets", same, f"{name} is recorded otherwise than as a matrix of the original")
    told = not whole or tuple(untouched) == certificate.untouched
    ledger.check("untouched", told, "the list of matrices left alone is not the right one")
    return [target for target in found if recorded.get(target.name) == target.shape]


def _check_copies(
    skeleton: Skeleton, targets: list[Target], certificate: Certificate, modules: OperatorModules, ledger: Ledger
) -> None:
    """What is no operator's and did not train is the original's."""
    held = [target for target in targets if target.name in modules.names]
    away = {target.disk for target in held} | certificate.trained
    twins = {f"{twin}.weight" for target in held for twin in target.twins}
    copied = {n for n in skeleton.checkpoint.tensors if n not in away and skeleton.places[n] not in twins}
    for name in sorted(copied):
        digest = hashlib.sha256(tensor_bytes(skeleton.checkpoint.read(name))).hexdigest()
        same = certificate.tensors.get(name) == digest
        ledger.check("copied tensors", same, f"tensor {name} is not that of the original and is not said to be trained")
    own = {disk for name in modules.names for disk in modules.tensors(name).values()}
    for name in sorted({*certificate.tensors} - copied - own - certificate.trained):
        ledger.check("copied tensors", False, f"tensor {name} is no operator's, not trained and not in the original")


def _check_figures(
    targets: list[Target],
    original: Checkpoint,
    checkpoint: Checkpoint,
    certificate: Certificate,
    modules: OperatorModules,
    ledger: Ledger,
    progress: Progress,
) -> None:
    """Every figure, measured again in the norms that take no text."""
    records = {matrix.name: matrix for matrix in certificate.matrices}
    for done, target in enumerate(targets):
        op = stored_operator(target, checkpoint, modules)
        rng = seeded(certificate.seed, f"{target.name}/norm")
        found = figures(target.read(original), op, rng, spectral=not certificate.quick)
        check_figures(target, records[target.name], Metric.plain(), found, ledger, quick=False)
        progress("verify", done + 1, len(targets), target.name)
