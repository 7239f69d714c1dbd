"""What compression costs a small vision transformer, in accuracy: the parts of the recipes on a network that transformers does not have.

    ECKART_DATA=DIR python benchmarks/vit.py

The encoder is torch's own (norms behind the sums, ReLU), so there is no checkpoint for ``eckart compress``; metrics, approximators, choices
on bonds and allocators are called as one would from a program. Statistics come from 500 images, accuracy from 4,000 others. Some minutes
on one core; the table is ``results/vit.md``.
"""

from __future__ import annotations

import gzip
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from eckart import recipes
from eckart.allocate import Allocator, AnySlot, BondSlot, EqualMarginalLoss, Level, Threshold, Uniform
from eckart.allocate.slots import BudgetError
from eckart.bonds.choosing import Choice
from eckart.bonds.crossing import Crossing, Writing
from eckart.model.compression import Compress
from eckart.stats import Moments

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE)]

from machine import facts  # noqa: E402

KEEPS = {0.9: (0,), 0.8: (0, 1, 2), 0.7: (0,), 0.6: (0, 1, 2), 0.5: (0,)}  # and the draws of calibration images
CALIBRATED, JUDGED = 500, 4000  # images
HEADS, LAYERS = 8, 6
MAPS = ("self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight")
Weights = Mapping[str, Tensor]
Watch = Callable[[str, Tensor], None]


def forward(weights: Weights, images: Tensor, watch: Watch = lambda name, x: None) -> Tensor:
    """Logits of images (k, 1, 28, 28); ``watch`` is shown the input of every linear map of the encoder under its weight's name."""
    x = F.conv2d(images, weights["patch_embed.projection.weight"], weights["patch_embed.projection.bias"], stride=4)
    x = torch.cat([weights["cls_token"].expand(len(x), -1, -1), x.flatten(2).mT], 1) + weights["pos_embed"]
    for layer in range(LAYERS):
        if f"{stem(layer)}{MAPS[0]}" in weights:
            x = _layer(weights, stem(layer), x, watch)
    x = F.layer_norm(x[:, 0], x.shape[-1:], weights["mlp_head.0.weight"], weights["mlp_head.0.bias"])
    return F.linear(x, weights["mlp_head.1.weight"], weights["mlp_head.1.bias"])


def stem(layer: int) -> str:
    """How the names of a layer begin."""
    return f"transformer.layers.{layer}."


def _layer(weights: Weights, at: str, x: Tensor, watch: Watch) -> Tensor:
    def linear(name: str, bias: str, y: Tensor) -> Tensor:
        watch(f"{at}{name}", y)
        return F.linear(y, weights[f"{at}{name}"], weights[f"{at}{bias}"])

    def normed(name: str, y: Tensor) -> Tensor:
        return F.layer_norm(y, y.shape[-1:], weights[f"{at}{name}.weight"], weights[f"{at}{name}.bias"])

    parts = linear(MAPS[0], "self_attn.in_proj_bias", x).chunk(3, -1)
    q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    x = normed("norm1", x + linear(MAPS[1], "self_attn.out_proj.bias", mixed))
    hidden = F.relu(linear(MAPS[2], "linear1.bias", x))
    return normed("norm2", x + linear(MAPS[3], "linear2.bias", hidden))


def observed(weights: Weights, images: Tensor) -> dict[str, Moments]:
    """Moments of the inputs of all maps."""
    found: dict[str, Moments] = {}

    def watch(name: str, x: Tensor) -> None:
        found.setdefault(name, Moments.zeros(x.shape[-1], gram=True)).add(x)

    forward(weights, images, watch)
    return found


# ---- ways to compress ---------------------------------------------------------------------------------------------------


def of_matrices(recipe: Compress, allocate: Allocator) -> Callable[[Weights, dict[str, Moments], float], Weights]:
    """Every map in the recipe's metric by its approximator."""

    def method(weights: Weights, seen: dict[str, Moments], keep: float) -> Weights:
        slots: dict[str, AnySlot] = {}
        prepared = {}
        for name, moments in seen.items():
            metric, weight = recipe.metric(moments), weights[name]
            losses = recipe.approx.curve(weight, metric) if allocate.needs else None
            slot = recipe.approx.slot(*weight.shape, weight.itemsize)
            slots[name] = type(slot)(**(vars(slot) | {"losses": losses}))
            prepared[name] = recipe.approx.prepare(weight, metric)
        budget = int(keep * sum(slot.dense_bytes for slot in slots.values()))
        changed = dict(weights)
        for name, size in allocate(slots, budget).ranks.items():
            if size is not None:
                fit = prepared[name].fit(
                    size, dtype=torch.float32, rng=torch.Generator().manual_seed(0), spectral=False
                )
                changed[name] = fit.op.dense()
        return changed

    return method


def of_hidden_units(choice: Choice) -> Callable[[Weights, dict[str, Moments], float], Weights]:
    """Fewer hidden units, as many in every layer; they pay for the other maps as well."""

    def method(weights: Weights, seen: dict[str, Moments], keep: float) -> Weights:
        slots: dict[str, AnySlot] = {}
        whole = sum(weights[name].nbytes for name in seen)
        for layer in range(LAYERS):
            units, width = weights[f"{stem(layer)}{MAPS[2]}"].shape
            slots[stem(layer)] = BondSlot(size=units, unit_bytes=2 * width * 4)
        fixed = whole - sum(slot.dense_bytes for slot in slots.values())
        ranks = Level()(slots, int(keep * whole) - fixed).ranks
        changed = dict(weights)
        for at, rank in ranks.items():
            first, second = weights[f"{at}{MAPS[2]}"], weights[f"{at}{MAPS[3]}"]
            gram = seen[f"{at}{MAPS[3]}"].gram
            assert gram is not None
            assert rank is not None
            written = (Writing(first, seen[f"{at}{MAPS[2]}"].mean_square),)
            crossing = Crossing(written, second, gram / seen[f"{at}{MAPS[3]}"].count)
            projection = choice.prepare(crossing).projection(rank)
            assert projection.kept is not None
            changed[f"{at}{MAPS[2]}"] = first[projection.kept]
            changed[f"{at}linear1.bias"] = weights[f"{at}linear1.bias"][projection.kept]
            changed[f"{at}{MAPS[3]}"] = (second.double() @ projection.up).float()
        return changed

    return method


def last_layers(weights: Weights, seen: dict[str, Moments], keep: float) -> Weights:
    """The last layers left out, as many as it takes."""
    gone = next(count for count in range(LAYERS) if 1 - count / LAYERS <= keep)
    names = tuple(stem(layer) for layer in range(LAYERS - gone, LAYERS))
    return {name: tensor for name, tensor in weights.items() if not name.startswith(names)}


def methods() -> dict[str, Callable[[Weights, dict[str, Moments], float], Weights]]:
    """Everything that goes into the table."""
    hidden = {
        "modegpt, hidden units": recipes.modegpt().hidden,
        "greedy-output": recipes.greedy_output().hidden,
        "comp, hidden units": recipes.comp().hidden,
        "shrink-width": recipes.shrink_width().hidden,
    }
    return {
        **{
            f"{key}, {how}": of_matrices(make(), allocate)
            for key, make in (("svd", recipes.svd), ("asvd", recipes.asvd), ("svd-llm", recipes.svd_llm))
            for how, allocate in (("uniform", Uniform()), ("equal marginal error", EqualMarginalLoss()))
        },
        "welore": of_matrices(recipes.welore(), Threshold()),
        "magnitude": of_matrices(recipes.magnitude(), Uniform()),
        "wanda": of_matrices(recipes.wanda(), Uniform()),
        "sparsegpt": of_matrices(recipes.sparsegpt(), Uniform()),
        "eora": of_matrices(recipes.eora(), Uniform()),
        "curing": of_matrices(recipes.curing(), Uniform()),
        **{name: of_hidden_units(choice) for name, choice in hidden.items() if choice is not None},
        "layer-drop": last_layers,
    }


# ---- the table ----------------------------------------------------------------------------------------------------------


def images_of(data: Path) -> tuple[Tensor, Tensor]:
    """The test images of MNIST as the model wants them, and their labels."""
    raw = gzip.decompress((data / "mnist_t10k" / "t10k-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((data / "mnist_t10k" / "t10k-labels-idx1-ubyte.gz").read_bytes())
    pixels = torch.frombuffer(bytearray(raw[16:]), dtype=torch.uint8).reshape(-1, 1, 28, 28)
    return (pixels / 255 - 0.5) / 0.5, torch.frombuffer(bytearray(labels[8:]), dtype=torch.uint8).long()


def accuracy(weights: Weights, images: Tensor, labels: Tensor) -> float:
    """The share of images that are told right."""
    right = sum(
        int((forward(weights, some).argmax(1) == told).sum())
        for some, told in zip(images.split(500), labels.split(500), strict=True)
    )
    return right / len(labels)


@torch.no_grad()
def main() -> None:
    """Make the table."""
    torch.set_num_threads(1)
    data = Path(os.environ["ECKART_DATA"])
    weights = load_file(data / "vit_mnist" / "vit_mnist.safetensors")
    images, labels = images_of(data)
    draws = [slice(CALIBRATED * draw, CALIBRATED * (draw + 1)) for draw in range(3)]
    judged = slice(CALIBRATED * 3, CALIBRATED * 3 + JUDGED)
    seen = [observed(weights, images[draw]) for draw in draws]
    before = accuracy(weights, images[judged], labels[judged])
    lines = ["# Accuracy of a compressed vision transformer", ""]
    lines += [f"{key}: {value}  " for key, value in facts().items()]
    lines += [
        "",
        f"`vit_mnist` (torch's encoder, norms behind the sums), {before:.4f} of {len(labels[judged])} images before.",
        f"Share of the bytes of the encoder's linear maps; {CALIBRATED} images to calibrate, mean and spread of three at 0.8 and 0.6.",
        "Layers go whole, so that fewer bytes than asked for may be left. Written by `benchmarks/vit.py`.",
        "",
        "| keep | method | accuracy | spread | time |",
        "|---|---|---|---|---|",
    ]
    for keep, count in KEEPS.items():
        for name, method in methods().items():
            found, begun = [], time.monotonic()
            try:
                for draw in count:
                    changed = method(weights, seen[draw], keep)
                    found.append(changed)
            except BudgetError:
                lines.append(f"| {keep:g} | {name} | not possible | - | - |")
                continue
            seconds = (time.monotonic() - begun) / len(found)
            right = [accuracy(changed, images[judged], labels[judged]) for changed in found]
            spread = f"{max(right) - min(right):.4f}" if len(right) > 1 else "-"
            lines.append(f"| {keep:g} | {name} | {statistics.mean(right):.4f} | {spread} | {seconds:.2f} s |")
            print(lines[-1], flush=True)
    (HERE / "results" / "vit.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
