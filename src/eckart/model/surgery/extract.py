"""The adapter in what tells a tuned model from its base: a LoRA of the difference of two checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from eckart.bound import Bound
from eckart.errors import EckartError
from eckart.fit import Fit
from eckart.kernels.svd import LAPACK_SIDE
from eckart.linalg import singular_values
from eckart.linalg.certified import PLAIN
from eckart.metric import Metric
from eckart.model.checkpoint import Checkpoint, resolve
from eckart.model.progress import Progress, quiet
from eckart.model.skeleton import Skeleton
from eckart.model.surgery.adapter import Adapter, Embedding, Layer, Linear, nearest
from eckart.model.surgery.base import check_stock
from eckart.model.surgery.sizing import Costs, Size, ToBytes, ToEnergy, ToError, ToRank, fitted, spread
from eckart.model.surgery.weighing import Inputs, Text
from eckart.model.surgery.writing import size_of
from eckart.model.targets import Target, Untouched, find_targets, matches, natural
from eckart.model.tensorfile import TensorFile
from eckart.operator import Factors

ACCURACY = (
    2e-3  # of matrices whose smaller side is above LAPACK_SIDE, as truncated_svd has it; others are decomposed exactly
)
STORED = torch.float32  # what factors of a difference are stored in


@dataclass(frozen=True)
class Map:
    """A tensor that is the weight of a module: stored as (outputs, inputs) or, ``transposed``, the other way round."""

    module: str
    transposed: bool = False
    kind: Linear = Linear()


@dataclass(frozen=True)
class Left:
    """A tensor that differs and is in no layer of the adapter: the norm of its difference, also over that of the base's, and why.

    Norms are ``None`` where there is nothing to subtract.
    """

    name: str
    shape: tuple[int, ...]
    norm: float | None
    relative: float | None
    reason: str


@dataclass(frozen=True)
class Extracted:
    """The adapter, what each of its layers leaves out, and what of the difference is in none.

    ``unchanged`` counts the tensors that are the same in both.
    """

    adapter: Adapter
    bounds: Mapping[str, Bound]
    left: tuple[Left, ...]
    unchanged: int


def differences(
    base: Mapping[str, Tensor],
    tuned: Mapping[str, Tensor],
    size: Size,
    maps: Mapping[str, Map],
    *,
    reasons: Mapping[str, str] | None = None,
    metric: Callable[[str], Metric] | None = None,
    progress: Progress = quiet,
) -> Extracted:
    """Factors of ``tuned[name] - base[name]`` for every tensor that ``maps`` names, and word of all others that differ.

    ``base`` and ``tuned`` may read a tensor when it is asked for: two of one name are held at a time, in float64. For ``ToBytes`` those
    that differ are read twice, for the singular values and for the factors. ``reasons`` says of tensors that are no maps why, ``metric`` of
    a module how its error counts; it is asked in the natural order of names.

    >>> w = {"q.weight": torch.eye(3), "norm.weight": torch.ones(3)}
    >>> t = {"q.weight": torch.eye(3) + torch.ones(3, 3), "norm.weight": torch.full((3,), 1.5)}
    >>> found = differences(w, t, ToRank(1), {"q.weight": Map("q")})
    >>> found.adapter.layers["q"].update.dense().round(decimals=5)[0].tolist(), found.left[0].name, found.left[0].relative
    ([1.0, 1.0, 1.0], 'norm.weight', 0.5)

    Raises ``EckartError`` where no map differs, a shape is another one, or NaN is met.
    """
    metric = metric or _plain
    left, unchanged = [], 0
    fits: dict[str, Fit] = {}
    values: dict[str, Tensor] = {}
    names = sorted({*base, *tuned}, key=natural)
    for done, name in enumerate(names):
        change = _change(name, base, tuned, maps, reasons or {})
        if change is None:
            unchanged += 1
        elif isinstance(change, Left):
            left.append(change)
        elif isinstance(size, ToBytes):
            own = metric(maps[name].module)
            values[name] = (singular_values(change) if own.is_plain else own.svd(change)).s
        else:
            fits[name] = _fit(maps[name], change, size, metric)
        progress("compare", done + 1, len(names), name)
    if not fits and not values:
        only = f"only {', '.join(entry.name for entry in left[:3])}" if left else "they are the same"
        raise EckartError(f"no linear map differs between base and tuned model, {only}: there is no adapter to extract")
    if isinstance(size, ToBytes):
        for name, rank in _spread(size, values, maps, tuned).items():
            change = _change(name, base, tuned, maps, {})
            assert isinstance(change, Tensor)
            fits[name] = _fit(maps[name], change, rank, metric)
            progress("extract", len(fits), len(values), name)
    layers = {maps[name].module: _layer(maps[name], fit) for name, fit in fits.items()}
    bounds = {maps[name].module: fit.bounds[0] for name, fit in fits.items()}
    return Extracted(Adapter(layers), bounds, tuple(left), unchanged)


def _fit(place: Map, change: Tensor, size: ToRank | ToEnergy | ToError, metric: Callable[[str], Metric]) -> Fit:
    """Factors of a difference, with a lower bound that comes near the optimum also where they were iterated for."""
    large = min(change.shape) > LAPACK_SIDE
    accuracy = ACCURACY if large else 0.0
    try:
        return fitted(change, size, STORED, accuracy=accuracy, metric=metric(place.module), close=large)
    except ValueError as error:  # an error that factors in this dtype do not come down to
        raise EckartError(f"{place.module}: {error}") from error


def _layer(place: Map, fit: Fit) -> Layer:
    op = fit.op
    assert isinstance(op, Factors)
    return Layer(op.left, op.right, 1.0, place.kind)


def _change(
    name: str,
    base: Mapping[str, Tensor],
    tuned: Mapping[str, Tensor],
    maps: Mapping[str, Map],
    reasons: Mapping[str, str],
) -> Tensor | Left | None:
    """The difference of a map as (outputs, inputs) in float64, word of another tensor that differs, ``None`` where nothing does."""
    if name not in base or name not in tuned:
        where, there = ("base", base[name]) if name in base else ("tuned", tuned[name])
        return Left(name, tuple(there.shape), None, None, f"stored only in the {where} model")
    first, second = base[name], tuned[name]
    shape = tuple(second.shape)
    if first.shape != second.shape:
        told = f"{list(first.shape)} in the base and {list(shape)} in the tuned model"
        if name in maps:
            raise EckartError(f"{name} is {told}: are both of one architecture?")
        return Left(name, shape, None, None, told)
    change = second.double()
    change -= first
    if not bool(torch.isfinite(change).all()):
        raise EckartError(f"{name} holds NaN or infinity in base or tuned model; no error of it could be stated")
    norm = float(torch.linalg.vector_norm(change))
    if norm == 0:
        return None
    if name in maps:
        return change.T if maps[name].transposed else change
    size = float(torch.linalg.vector_norm(first.double()))
    return Left(name, shape, norm, norm / size if size else None, reasons.get(name, "no linear map"))


def _spread(
    size: ToBytes, values: Mapping[str, Tensor], maps: Mapping[str, Map], tuned: Mapping[str, Tensor]
) -> Mapping[str, ToRank]:
    """Ranks for a budget, from the singular values of all differences."""
    widest, costs = {}, {}
    for name, s in values.items():
        rows, columns = tuned[name].T.shape if maps[name].transposed else tuned[name].shape
        with torch.device("meta"):
            layer = Layer(torch.empty(rows, len(s)), torch.empty(len(s), columns), 1.0, maps[name].kind)
        widest[maps[name].module], costs[name] = layer, Costs.of(s, layer.rank_bytes)
    largest = Adapter(widest)
    return spread(costs, size.size, size_of(largest) - largest.bytes)


# ---- checkpoints ------------------------------------------------------------------------------------------------------


class Reading(Mapping[str, Tensor]):
    """Tensors of a checkpoint or a file by name, each read when it is asked for."""

    def __init__(self, source: Checkpoint | TensorFile, names: Mapping[str, str]) -> None:
        self._source, self._names = source, names

    def __getitem__(self, name: str) -> Tensor:
        return self._source.read(self._names[name])

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def extract(
    base: str | Path,
    tuned: str | Path,
    size: Size,
    *,
    only: Sequence[str] = (),
    exclude: Sequence[str] = (),
    text: Text | None = None,
    progress: Progress = quiet,
) -> Extracted:
    """The adapter by which a tuned model differs from its base: two Hugging Face checkpoints, or two safetensors files.

    Of checkpoints the linear maps inside of the blocks are taken, with ``only`` every map or embedding that a pattern fits. Two files
    say nothing of an architecture: there every ``NAME.weight`` of two dimensions is one, stored as (outputs, inputs).
    With a ``text`` errors of linear maps count by what the base's inputs on it make of them, for
    which the base is loaded whole, in float32.

    Raises ``EckartError`` for checkpoints that are compressed or of another architecture, and as ``differences`` does.
    """
    if all(Path(place).suffix == ".safetensors" for place in (base, tuned)):
        if text is not None:
            raise EckartError(f"{base} is a file of tensors, which no text can be run through: leave --calibration out")
        first, second = (TensorFile(Path(place)) for place in (base, tuned))
        maps = _matrices_of(first, only, exclude)
        stored = Reading(first, {name: name for name in first.specs})
        return differences(
            stored, Reading(second, {name: name for name in second.specs}), size, maps, progress=progress
        )
    before, after = _skeleton(base), _skeleton(tuned)
    kinds = [str(skeleton.checkpoint.config.get("model_type")) for skeleton in (before, after)]
    if kinds[0] != kinds[1]:
        raise EckartError(f"{base} is a {kinds[0]} and {tuned} a {kinds[1]}: give a base and what was tuned from it")
    places = _by_parameter(before)
    keys = {disk: key for key, disk in places.items()}
    targets, untouched = find_targets(before, only, exclude)
    maps = {keys[target.disk]: _map_of(target) for target in targets if not target.twins}
    metric = _plain if text is None else _weighed(base, maps, text)
    found = differences(
        Reading(before.checkpoint, places),
        Reading(after.checkpoint, _by_parameter(after)),
        size,
        maps,
        reasons=_reasons(untouched, targets, keys),
        metric=metric,
        progress=progress,
    )
    turned = any(target.transposed for target in targets)
    config = {"base_model_name_or_path": str(base), "fan_in_fan_out": turned, "task_type": "CAUSAL_LM"}
    return Extracted(Adapter(found.adapter.layers, {}, config), found.bounds, found.left, found.unchanged)


def _plain(module: str) -> Metric:
    return PLAIN


def _weighed(base: str | Path, maps: Mapping[str, Map], text: Text) -> Callable[[str], Metric]:
    """The metrics of linear maps; a table's rows are looked up one by one, and count the same."""
    linear = [maps[name].module for name in sorted(maps, key=natural) if not isinstance(maps[name].kind, Embedding)]
    inputs = Inputs.of(base, linear, text)
    known = set(linear)
    return lambda module: inputs(module) if module in known else PLAIN


def _skeleton(model: str | Path) -> Skeleton:
    checkpoint = Checkpoint(resolve(model))
    check_stock(checkpoint)
    skeleton = Skeleton(checkpoint)
    skeleton.check_weights()
    return skeleton


def _map_of(target: Target) -> Map:
    if target.looked_up:
        return Map(target.name, transposed=True, kind=Embedding())
    return Map(target.name, transposed=target.transposed)


def _matrices_of(file: TensorFile, only: Sequence[str], exclude: Sequence[str]) -> dict[str, Map]:
    held = [
        name.removesuffix(".weight")
        for name, spec in file.specs.items()
        if name.endswith(".weight") and len(spec.shape) == 2 and spec.dtype.is_floating_point
    ]
    for pattern in (*only, *exclude):
        if not any(matches(name, [pattern]) for name in held):
            raise EckartError(f"{file.path}: the pattern {pattern!r} fits no matrix; {nearest(pattern, held)}")
    return {
        f"{name}.weight": Map(name) for name in held if (not only or matches(name, only)) and not matches(name, exclude)
    }


def _by_parameter(skeleton: Skeleton) -> dict[str, str]:
    """The names on disk of a checkpoint by the parameters that they become, which two writings of one model share."""
    ties, disks = skeleton.ties, set(skeleton.places.values())
    return {
        place or disk: disk
        for disk, place in skeleton.places.items()
        if not (place in ties and ties[place] in disks)  # a second copy of a tied weight
    }


def _reasons(untouched: Sequence[Untouched], targets: Sequence[Target], keys: Mapping[str, str]) -> dict[str, str]:
    named = {name: entry.reason for entry in untouched for name in (entry.name, f"{entry.name}.weight")}
    tied = {keys[t.disk]: f"tied to {t.twins[0]}: no layer changes both" for t in targets if t.twins}
    return named | tied
