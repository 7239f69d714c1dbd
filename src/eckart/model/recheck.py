"""The figures of a certificate, computed again from the original and the factors as stored."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from torch import Tensor

from eckart.bound import Bound
from eckart.errors import EckartError
from eckart.kernels.svd import LAPACK_SIDE
from eckart.linalg import Optimum, frobenius_error, measured_bounds, singular_values
from eckart.metric import Metric
from eckart.model.certificate import CalibrationRecord, Certificate, MatrixRecord
from eckart.model.compression import Statistics
from eckart.model.densify import OperatorModules
from eckart.model.files import sha256_of
from eckart.model.fitting import exact_bounds
from eckart.model.run import metrics_for, observed, seeded
from eckart.model.skeleton import Skeleton
from eckart.model.targets import Target
from eckart.model.tensorfile import tensor_bytes
from eckart.model.text import draw_windows, ids_for, read_text
from eckart.model.walk import Walk
from eckart.operator import Dense, Factors, Operator
from eckart.stats import MetricRule, Need


def figures(
    skeleton: Skeleton,
    target: Target,
    record: MatrixRecord,
    modules: OperatorModules,
    metric: Metric,
    certificate: Certificate,
) -> tuple[Bound, ...]:
    """The bounds of a recorded matrix in this metric, in the Frobenius norm and, unless that was left out, in the spectral norm.

    Of large matrices that were bounded quickly ``lower`` comes nearer to the optimum than what was recorded.
    """
    weight = target.read(skeleton.checkpoint)
    rng, spectral = seeded(certificate.seed, f"{target.name}/norm"), not certificate.quick
    if record.rank is None:
        return exact_bounds(weight, rng, spectral=spectral)
    op = modules.read(target.name)
    assert isinstance(op, Factors)  # no other kind is written
    recorded = next((bound.norm for bound in record.bounds), metric.name)
    if certificate.quick and metric.is_plain and recorded != metric.name:
        return (frobenius_error(weight, op),)  # the metric is not known here, and nothing else was recorded
    iterated = any("lower" in (bound.delta or {}) for bound in record.bounds)
    if not iterated and certificate.quick and metric.is_plain and min(weight.shape) > LAPACK_SIDE:
        (near,) = measured_bounds(weight, op, metric, None, rng=rng, spectral=False)
        modest = next((bound.lower for bound in record.bounds if bound.norm == near.norm), None)
        if modest is not None and near.lower is not None and modest <= near.lower:
            return (near,)
    optimum = None
    if not iterated:
        plain = singular_values(weight) if spectral or metric.is_plain else None
        whitened = plain if plain is not None and metric.is_plain else metric.singular_values(weight)
        optimum = Optimum(whitened, plain)
    return measured_bounds(weight, op, metric, optimum, rng=rng, spectral=spectral)


def recorded_walk(skeleton: Skeleton, facts: CalibrationRecord, calibration: Path) -> Walk:
    """The walk over the windows that the statistics were taken from.

    Raises ``EckartError`` if the text, or what the tokenizer makes of it, is not what was recorded.
    """
    text = read_text(calibration)
    check_text(calibration, facts)
    ids = ids_for(skeleton.checkpoint.folder, text)
    windows = draw_windows(ids, facts.window, facts.asked_tokens, seeded(facts.seed, "windows"))
    return Walk(skeleton, windows)


def check_text(calibration: Path, facts: CalibrationRecord) -> None:
    """Raise ``EckartError`` for another text than the one that was recorded."""
    read_text(calibration)
    if sha256_of(calibration) != facts.sha256:
        raise EckartError(f"{calibration} is not the calibration text that was recorded: its hash differs")


def same_windows(walk: Walk, facts: CalibrationRecord) -> bool:
    """Whether these are the windows that were recorded."""
    digest = hashlib.sha256(tensor_bytes(walk.windows)).hexdigest()
    return (digest, walk.windows.numel()) == (facts.ids, facts.tokens)


def metrics(
    walk: Walk, targets: list[Target], modules: OperatorModules, rule: MetricRule, statistics: Statistics
) -> Iterator[list[tuple[Target, Metric | None]]]:
    """Each target with its metric, the statistics taken anew, one block at a time."""
    gram = Need.GRAM in rule.needs
    with tempfile.TemporaryDirectory(prefix="eckart-verify-") as scratch:
        here, there = Path(scratch) / "in.bin", Path(scratch) / "out.bin"
        instead = _instead(statistics, modules)
        walk.embed(here, instead(targets, None))
        for block in [*range(len(walk.skeleton.blocks)), None]:
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
            found = metrics_for(rule, inside, moments)
            del moments
            yield [(target, found.pop(target.name)) for target in inside]


def _instead(
    statistics: Statistics, modules: OperatorModules
) -> Callable[[list[Target], int | None], dict[str, Tensor]]:
    """What gives a block's compressed weights where statistics came from the compressed model, else nothing."""

    def products(targets: list[Target], block: int | None) -> dict[str, Tensor]:
        if statistics is Statistics.ORIGINAL or block is None:
            return {}
        held = [target for target in targets if target.block == block and target.name in modules.names]
        return {target.disk: target.stored(_float32(modules.read(target.name)).dense()) for target in held}

    return products


def _float32(op: Operator) -> Operator:
    tensors = {name: tensor.float() for name, tensor in op.tensors().items()}
    return type(op)(**tensors) if tensors else Dense(op.dense().float())
