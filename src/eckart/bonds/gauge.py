"""Changing the basis of a bond, and folding what a norm does into the maps around it: the network's function stays as it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from eckart.bonds.graph import Bond, BondGraph, End, Norm
from eckart.bonds.symmetry import TOLERANCE, Change
from eckart.errors import EckartError

Tensors = Mapping[str, Tensor]


def change_basis(graph: BondGraph, bond: str, change: Change, tensors: Tensors) -> dict[str, Tensor]:
    """The tensors that change with the basis of a bond: what writes it becomes ``M W``, what reads it ``W M^-1``.

    ``tensors`` holds at least those of the bond's ends and norms, by name; the others are not looked at. Results have the dtype of
    the tensors. The way back is ``change.inverse()``.

    Raises ``EckartError`` where there is no such bond, where the change is not one of its symmetry or its size, where a norm
    through which the bond is read still has its scale (fold it first), and where a tied weight would have to change in two ways.
    """
    there = graph.bond(bond)
    if change.size != there.size:
        raise EckartError(f"the bond {bond} has {there.size} directions, and the change is one of {change.size}")
    reason = there.symmetry.refuses(change)
    if reason is not None:
        raise EckartError(f"the bond {bond} allows this ({there.symmetry}), and not that change: {reason}")
    for name in there.norms:
        check_folded(graph.norm(name), bond, tensors)
    probe = torch.eye(change.size, dtype=torch.float64)
    agree = torch.allclose(change.written(probe), change.read(probe), rtol=0, atol=TOLERANCE)
    _check_ties(graph, there, agree=agree)
    changed: dict[str, Tensor] = {}
    for end in _once(there.ends):
        changed[end.tensor] = _changed(changed.get(end.tensor, tensors[end.tensor]), end, change)
    return changed


def fold_norm(graph: BondGraph, norm: str, tensors: Tensors) -> dict[str, Tensor]:
    """Hand the scale and the bias of a norm on to the maps that read through it: it only normalises then.

    With scale s and bias b, a reader ``W x + c`` becomes ``W diag(s) x + (c + W b)``. The way back is ``unfold_norm`` with both.

    Raises ``EckartError`` where there is no such norm, where nobody reads through it, where a reader's weight is tied to another
    map, or where a reader has no bias that could take what the norm adds.
    """
    there = _readable(graph, norm)
    scale = _scale(there, tensors)
    changed = _scaled(graph, there, scale, tensors)
    if there.bias is not None:
        added = tensors[there.bias].to(torch.float64)
        changed |= _shifted(graph, there, added, tensors)
        changed[there.bias] = torch.zeros_like(tensors[there.bias])
    changed[there.weight] = torch.full_like(tensors[there.weight], 1.0 - there.less)
    return changed


def unfold_norm(graph: BondGraph, norm: str, scale: Tensor, bias: Tensor | None, tensors: Tensors) -> dict[str, Tensor]:
    """Give a folded norm the scale and the bias back that were taken from it.

    ``scale`` is what it acts with, whatever is stored for it. Raises ``EckartError`` as ``fold_norm``, where the norm is not
    folded, and for a scale with zeros, which cannot be taken out of a map again.
    """
    there = _readable(graph, norm)
    check_folded(there, f"{norm}.channels", tensors)
    if bool((scale == 0).any()):
        raise EckartError(f"{norm}: a scale of zero cannot be taken out of the maps behind it again")
    changed = _scaled(graph, there, 1 / scale.to(torch.float64), tensors)
    if bias is not None and there.bias is not None:
        changed |= _shifted(graph, there, -bias.to(torch.float64), {**tensors, **changed})
        changed[there.bias] = bias.to(tensors[there.bias])
    changed[there.weight] = (scale.to(torch.float64) - there.less).to(tensors[there.weight].dtype)
    return changed


def fold_centring(graph: BondGraph, bond: str, tensors: Tensors) -> dict[str, Tensor]:
    """Have everything that writes a bond write it with mean zero, so that LayerNorm has no mean left to subtract.

    ``W <- (1 - 1 1^T / d) W`` on the bond's axis. What it takes away nobody ever saw, so there is no way back and none is needed.

    Raises ``EckartError`` where there is no such bond, where it is not read through LayerNorm alone, and where a writer's weight is tied.
    """
    there = graph.bond(bond)
    if not there.norms or not all(graph.norm(name).centres for name in there.norms):
        raise EckartError(f"the bond {bond} is not read through LayerNorm alone: its mean counts")
    own = {graph.norm(name).bias for name in there.norms}
    changed: dict[str, Tensor] = {}
    for end in there.writers:
        if end.tensor in own:
            continue
        _check_single(graph, end.tensor)
        tensor = tensors[end.tensor]
        wide = tensor.to(torch.float64)
        changed[end.tensor] = (wide - wide.mean(end.axis, keepdim=True)).to(tensor.dtype)
    return changed


def _scaled(graph: BondGraph, norm: Norm, scale: Tensor, tensors: Tensors) -> dict[str, Tensor]:
    """The readers' weights with their inputs scaled."""
    changed = {}
    for name in norm.readers:
        entry = graph.maps[name]
        _check_single(graph, entry.weight)
        weight = tensors[entry.weight]
        factors = scale.to(torch.float64)[:, None] if entry.outputs == 1 else scale.to(torch.float64)
        changed[entry.weight] = (weight.to(torch.float64) * factors).to(weight.dtype)
    return changed


def _shifted(graph: BondGraph, norm: Norm, added: Tensor, tensors: Tensors) -> dict[str, Tensor]:
    """The readers' biases with what their weights make of something added before them."""
    changed = {}
    for name in norm.readers:
        entry = graph.maps[name]
        if entry.bias is None:
            if bool((added == 0).all()):
                continue
            raise EckartError(f"{norm.name} adds a bias, and {name}, which reads through it, has none to take that")
        weight, bias = tensors[entry.weight].to(torch.float64), tensors[entry.bias]
        rows = weight.T if entry.outputs == 1 else weight
        changed[entry.bias] = (bias.to(torch.float64) + rows @ added).to(bias.dtype)
    return changed


def _readable(graph: BondGraph, norm: str) -> Norm:
    there = graph.norm(norm)
    if not there.readers:
        raise EckartError(
            f"{norm} cannot be folded: what it gives is added to the stream or compared, and no map reads it alone"
        )
    return there


def _scale(norm: Norm, tensors: Tensors) -> Tensor:
    return tensors[norm.weight].to(torch.float64) + norm.less


def check_folded(norm: Norm, bond: str, tensors: Tensors) -> None:
    """Raise ``EckartError`` for a norm that does more than normalise."""
    if not bool((_scale(norm, tensors) == 1).all()):
        raise EckartError(
            f"the bond {bond} is read through {norm.name}, whose scale differs between channels: fold it first"
        )


def _check_single(graph: BondGraph, tensor: str) -> None:
    """Raise ``EckartError`` for a weight that two maps have."""
    names = graph.uses.get(tensor, ())
    if len(names) > 1:
        raise EckartError(
            f"{tensor} is the weight of {' and '.join(names)}, and only one of them may change: untie them first"
        )


def _check_ties(graph: BondGraph, bond: Bond, *, agree: bool) -> None:
    """Raise ``EckartError`` for a tied weight that other bonds take hold of as well, or both ways by this one unless these ``agree``."""
    here = Counter(end.tensor for end in bond.ends)
    for tensor, names in graph.uses.items():
        if tensor not in here or len(names) == 1:
            continue
        if here[tensor] < len(names):
            _check_single(graph, tensor)
        if not agree:
            raise EckartError(
                f"{tensor} both writes and reads {bond.name}, and this does not do the same to both: untie it first"
            )


def _once(ends: tuple[End, ...]) -> list[End]:
    """The ends without those that a tied weight has a second time."""
    found: dict[tuple[str, int, int], End] = {}
    for end in ends:
        found.setdefault((end.tensor, end.axis, end.start), end)
    return list(found.values())


def _changed(tensor: Tensor, end: End, change: Change) -> Tensor:
    """A tensor with the entries that an end takes hold of in the new basis."""
    wide = tensor.to(torch.float64).movedim(end.axis, 0).clone()
    part = wide[end.start : end.stop] + end.less
    wide[end.start : end.stop] = (change.read(part) if end.reads else change.written(part)) - end.less
    return wide.movedim(0, end.axis).to(tensor.dtype).contiguous()
