"""Checking a compressed checkpoint against its certificate, and the certificate against the original."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from eckart.approx import measured_bounds
from eckart.bound import Bound
from eckart.errors import EckartError
from eckart.linalg import singular_values
from eckart.metric import Metric
from eckart.model.certificate import Certificate, MatrixRecord
from eckart.model.checkpoint import Checkpoint, resolve
from eckart.model.compression import Compress, Statistics
from eckart.model.densify import OperatorModules
from eckart.model.files import sha256_of
from eckart.model.fitting import exact_bounds
from eckart.model.run import Progress, metric_for, observed, observed_name, quiet, seeded
from eckart.model.skeleton import Skeleton
from eckart.model.targets import Target, find_targets
from eckart.model.tensorfile import tensor_bytes
from eckart.model.text import draw_windows, encode, load_tokenizer, read_text
from eckart.model.walk import Walk
from eckart.operator import Dense, Operator
from eckart.stats import Need

# A figure computed again on another machine may differ by the rounding of another BLAS, relative to the target's norm;
# one that goes through activations in float32 differs by theirs.
TOLERANCE = 1e-9
TOLERANCE_ACTIVATIONS = 1e-4


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


class _Ledger:
    """Counts checks by kind and collects those that fail."""

    def __init__(self) -> None:
        self.checked: dict[str, int] = {}
        self.failures: list[str] = []

    def check(self, kind: str, holds: bool, sentence: str) -> None:
        self.checked[kind] = self.checked.get(kind, 0) + 1
        if not holds:
            self.failures.append(sentence)

    def bound(self, matrix: str, recorded: Bound, found: Bound, tolerance: float) -> None:
        """Compare every figure of a bound."""
        slack = tolerance * max(found.scale, recorded.scale)
        for figure in ("lower", "achieved", "upper", "scale"):
            old, new = getattr(recorded, figure), getattr(found, figure)
            same = old is None if new is None else old is not None and abs(old - new) <= slack
            self.check(
                f"{recorded.norm} figures",
                same,
                f"{matrix}: {figure} in the {recorded.norm} norm is recorded as {old}, but it is {new}",
            )
        self.check(
            f"{recorded.norm} figures",
            (recorded.delta or {}) == (found.delta or {}),
            f"{matrix}: what is certain in the {recorded.norm} norm is recorded otherwise than it is",
        )


def verify(
    folder: str | Path,
    against: str | Path | None = None,
    *,
    recipe: Compress | None = None,
    calibration: Path | None = None,
    progress: Progress = quiet,
) -> Verification:
    """Check a compressed checkpoint: the hash of every tensor, sizes, ranks and shapes; with the original, every figure.

    ``against`` is the original: its files must be those that were recorded, copied tensors must equal its own, and the Frobenius
    and spectral figures are computed again from both. With ``recipe`` (as recorded) and the ``calibration`` text the
    figures in the recipe's metric are as well; without, they are named as not rechecked. Nothing holds the whole model.

    Raises ``EckartError`` if either directory is unreadable or the calibration text is another one than was recorded.
    """
    checkpoint = Checkpoint(Path(folder))
    certificate = Certificate.read(checkpoint.folder)
    ledger = _Ledger()
    _check_hashes(checkpoint, certificate, ledger, progress)
    modules = OperatorModules(checkpoint) if "quantization_config" in checkpoint.config else None
    _check_shapes(checkpoint, certificate, modules, ledger)
    skipped: list[str] = []
    if against is None:
        skipped.append("all figures (name the original with --against)")
        return Verification(ledger.checked, tuple(skipped), tuple(ledger.failures))
    skeleton = Skeleton(Checkpoint(resolve(against)))
    _check_source(skeleton.checkpoint, certificate, ledger)
    targets = _targets(skeleton, certificate)
    _check_copies(skeleton, targets, certificate, ledger)
    metric_norms = {m.bounds[0].norm for m in certificate.matrices if m.bounds} - {"frobenius"}
    if metric_norms and (calibration is None or recipe is None):
        skipped.append(f"figures in the {', '.join(sorted(metric_norms))} metric (name the text with --calibration)")
        recipe = None
    metrics = _metrics(skeleton, targets, certificate, modules, recipe, calibration)
    records = {matrix.name: matrix for matrix in certificate.matrices}
    for done, (target, metric) in enumerate(metrics):
        _check_figures(skeleton, target, records[target.name], modules, metric, certificate, ledger)
        progress("verify", done + 1, len(targets), target.name)
    return Verification(ledger.checked, tuple(skipped), tuple(ledger.failures))


def _check_hashes(checkpoint: Checkpoint, certificate: Certificate, ledger: _Ledger, progress: Progress) -> None:
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


def _check_shapes(
    checkpoint: Checkpoint, certificate: Certificate, modules: OperatorModules | None, ledger: _Ledger
) -> None:
    """Shape, operator, rank and bytes of every matrix as recorded are those of what is stored."""
    stored = set(modules.names) if modules else set()
    for matrix in certificate.matrices:
        factored = matrix.name in stored
        ledger.check(
            "ranks and shapes",
            factored == (matrix.operator == "factors") == (matrix.rank is not None),
            f"{matrix.name} is recorded as {matrix.operator} of rank {matrix.rank}, which is not what config.json says",
        )
        if factored and modules:
            tensors = [checkpoint.tensors[disk][1] for disk in modules.tensors(matrix.name).values()]
            shape = (tensors[0].shape[0], tensors[-1].shape[1])
            fits = shape == matrix.shape and tensors[0].shape[1] == matrix.rank
            fits = fits and sum(t.nbytes for t in tensors) == matrix.bytes
            ledger.check("ranks and shapes", fits, f"{matrix.name}: rank, shape or bytes are not those of its factors")
    sizes = certificate.section("sizes")
    files = sizes.get("files")
    after = files.get("after") if isinstance(files, dict) else None
    ledger.check(
        "sizes", after == checkpoint.weight_bytes(), f"the files take {checkpoint.weight_bytes()} bytes, not {after}"
    )
    targets = sizes.get("targets")
    kept = targets.get("after") if isinstance(targets, dict) else None
    total = sum(matrix.bytes for matrix in certificate.matrices)
    ledger.check("sizes", kept == total, f"the matrices take {total} bytes, not {kept} as recorded")


def _check_source(original: Checkpoint, certificate: Certificate, ledger: _Ledger) -> None:
    recorded = certificate.section("source")
    for name in sorted({*recorded, *original.files, "config.json"}):
        path = original.folder / name
        same = path.is_file() and sha256_of(path) == recorded.get(name)
        ledger.check("files of the original", same, f"{path} is not the file that was compressed")


def _targets(skeleton: Skeleton, certificate: Certificate) -> list[Target]:
    """The recorded matrices as targets of the original, in its order."""
    request = certificate.section("request")
    only, exclude = request.get("only"), request.get("exclude")
    assert isinstance(only, list)
    assert isinstance(exclude, list)
    targets, _ = find_targets(skeleton, only, exclude)
    found, recorded = {t.name: t.shape for t in targets}, {m.name: m.shape for m in certificate.matrices}
    if found != recorded:
        odd = sorted(set(found.items()) ^ set(recorded.items()))[0][0]
        raise EckartError(
            f"{odd} is not a target of both the original and the certificate: is --against the right model?"
        )
    return targets


def _check_copies(skeleton: Skeleton, targets: list[Target], certificate: Certificate, ledger: _Ledger) -> None:
    """Tensors that were not approximated are those of the original."""
    ranks = {matrix.name: matrix.rank for matrix in certificate.matrices}
    factored = {target.disk for target in targets if ranks[target.name] is not None}
    twins = {f"{twin}.weight" for t in targets if t.disk in factored for twin in t.twins}
    for name in sorted(skeleton.checkpoint.tensors):
        if name in factored or skeleton.places[name] in twins:
            continue
        digest = hashlib.sha256(tensor_bytes(skeleton.checkpoint.read(name))).hexdigest()
        ledger.check(
            "copied tensors", certificate.tensors.get(name) == digest, f"tensor {name} is not that of the original"
        )


def _check_figures(
    skeleton: Skeleton,
    target: Target,
    record: MatrixRecord,
    modules: OperatorModules | None,
    metric: Metric | None,
    certificate: Certificate,
    ledger: _Ledger,
) -> None:
    """Compute a matrix's figures again; ``metric`` is ``None`` where the recipe's own can't be known."""
    weight = target.read(skeleton.checkpoint)
    tolerance = TOLERANCE
    if record.rank is None or modules is None:
        found = exact_bounds(weight)
    else:
        op = modules.read(target.name)
        seed = certificate.section("request").get("seed")
        rng = seeded(int(str(seed)), f"{target.name}/norm")
        own = metric or Metric.plain()
        plain = singular_values(weight)
        whitened = plain if own.right is None else singular_values(own.whiten(weight))
        found = measured_bounds(weight, op, own, whitened, plain, record.rank, rng=rng)
    by_norm = {bound.norm: bound for bound in found}
    for recorded in record.bounds:
        if recorded.norm in by_norm:
            activations = recorded.norm not in ("frobenius", "spectral")
            ledger.bound(
                target.name, recorded, by_norm[recorded.norm], TOLERANCE_ACTIVATIONS if activations else tolerance
            )
        else:
            known = metric is None
            ledger.check("norms", known, f"{target.name}: the norm {recorded.norm!r} is not one that the recipe gives")
    for norm in ("frobenius", "spectral"):
        there = any(bound.norm == norm for bound in record.bounds)
        ledger.check("norms", there, f"{target.name}: no figure in the {norm} norm is recorded")


def _metrics(
    skeleton: Skeleton,
    targets: list[Target],
    certificate: Certificate,
    modules: OperatorModules | None,
    recipe: Compress | None,
    calibration: Path | None,
) -> Iterator[tuple[Target, Metric | None]]:
    """Each target with the recipe's metric, its statistics taken anew; with ``None`` where they can't be."""
    if recipe is None or not recipe.metric.needs:
        for target in targets:
            yield target, recipe.metric(None) if recipe else None
        return
    assert calibration is not None
    walk = _walk(skeleton, certificate, calibration)
    gram = Need.GRAM in recipe.metric.needs
    with tempfile.TemporaryDirectory(prefix="eckart-verify-") as scratch:
        here, there = Path(scratch) / "in.bin", Path(scratch) / "out.bin"
        instead = _instead(recipe, modules)
        walk.embed(here, instead(targets, None))
        for block in [*range(len(skeleton.blocks)), None]:
            inside = [target for target in targets if target.block == block]
            if block is None:
                if not inside:
                    return
                _, moments = walk.tail(here, observe=observed(inside), gram=gram)
            else:
                moments = walk.run_block(block, here, there, observe=observed(inside), gram=gram)
                changed = instead(targets, block)
                if changed:  # the next block saw what the compressed one gives
                    walk.run_block(block, here, there, instead=changed)
                here, there = there, here
            for target in inside:
                yield target, metric_for(recipe.metric, moments.get(observed_name(target)))


def _instead(
    recipe: Compress, modules: OperatorModules | None
) -> Callable[[list[Target], int | None], dict[str, Tensor]]:
    """What gives a block's compressed weights where statistics came from the compressed model, else nothing."""

    def products(targets: list[Target], block: int | None) -> dict[str, Tensor]:
        if recipe.statistics is Statistics.ORIGINAL or modules is None or block is None:
            return {}
        held = [target for target in targets if target.block == block and target.name in modules.names]
        return {target.disk: target.stored(_float32(modules.read(target.name)).dense()) for target in held}

    return products


def _float32(op: Operator) -> Operator:
    tensors = {name: tensor.to(torch.float32) for name, tensor in op.tensors().items()}
    return type(op)(**tensors) if tensors else Dense(op.dense().float())


def _walk(skeleton: Skeleton, certificate: Certificate, calibration: Path) -> Walk:
    facts = certificate.section("calibration")
    if sha256_of(calibration) != facts.get("sha256"):
        raise EckartError(f"{calibration} is not the calibration text that was recorded: its hash differs")
    ids = encode(load_tokenizer(skeleton.checkpoint.folder), read_text(calibration))
    window, tokens, seed = (int(str(facts[key])) for key in ("window", "asked_tokens", "seed"))
    return Walk(skeleton, draw_windows(ids, window, tokens, seeded(seed, "windows")))
