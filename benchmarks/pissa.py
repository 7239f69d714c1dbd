"""The start of PiSSA: the leading singular directions of every matrix of a model, as PEFT takes them and by ``truncated_svd``.

    python benchmarks/pissa.py        about five minutes on one core

A Llama of 8 layers and width 1024 with random weights, 56 matrices, rank 16. PEFT's time is that of wrapping the model with
``init_lora_weights`` set, less that of wrapping it with the default start. Errors ``W - B A`` are over the least possible ones by
LAPACK: the geometric mean over the matrices, and the largest. Median CPU time on one thread. The table is ``results/pissa.md``.
"""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from eckart.linalg import truncated_svd
from eckart.operator import Factors

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from machine import facts  # noqa: E402

RANK = 16
MAPS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
REPEATS = 3


def model(exponent: float) -> LlamaForCausalLM:
    """Random weights; their singular values are those of a random matrix times ``k ** -exponent``."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8, "num_attention_heads": 16}
    made = LlamaForCausalLM(LlamaConfig(vocab_size=1000, **sizes))  # type: ignore[arg-type]
    for _, weight in weights(made):
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        weight.copy_(u * (s * torch.arange(1, len(s) + 1) ** -exponent) @ vh)
    return made


def weights(of: nn.Module) -> list[tuple[str, Tensor]]:
    """The matrices that get an adapter."""
    return [(n, p.data) for n, p in of.named_parameters() if any(f"{m}.weight" in n for m in MAPS)]


def wrapped(start: object, original: LlamaForCausalLM) -> tuple[float, nn.Module]:
    """CPU seconds in which PEFT wraps a copy of the model, and what it makes of it."""
    fresh = copy.deepcopy(original)
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=MAPS, init_lora_weights=start)  # type: ignore[arg-type]
    begun = time.process_time()
    adapted = get_peft_model(fresh, config)
    return time.process_time() - begun, adapted


def products(adapted: nn.Module) -> dict[str, Tensor]:
    """``B A`` of every adapter."""
    found = {}
    for name, module in adapted.named_modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            found[name] = module.lora_B["default"].weight.data @ module.lora_A["default"].weight.data
    return found


def excess(
    originals: list[tuple[str, Tensor]], optima: list[float], approximations: list[Tensor]
) -> tuple[float, float]:
    """Geometric mean and maximum of the error over the optimum."""
    ratios = []
    for (_, w), optimum, found in zip(originals, optima, approximations, strict=True):
        ratios.append(float((w.double() - found.double()).norm()) / optimum)
    return math.exp(sum(map(math.log, ratios)) / len(ratios)), max(ratios)


def ours(matrices: list[tuple[str, Tensor]], accuracy: float) -> tuple[float, list[Tensor]]:
    """CPU seconds for all matrices, with their bounds, and the products."""
    begun = time.process_time()
    fits = [truncated_svd(w, RANK, accuracy=accuracy).op for _, w in matrices]
    seconds = time.process_time() - begun
    assert all(isinstance(op, Factors) for op in fits)
    return seconds, [op.left @ op.right for op in fits]  # type: ignore[attr-defined]


def repeated(work: Callable[[], float]) -> float:
    """The median of a few."""
    return median(work() for _ in range(REPEATS))


def main() -> None:
    """Measure and write the table."""
    torch.set_num_threads(1)
    lines = ["# The start of PiSSA", "", *(f"{k}: {v}  " for k, v in facts().items()), ""]
    lines += ["| spectra | start | CPU s | error / best, mean | largest |", "|---|---|---|---|---|"]
    for exponent in (0.0, 0.5):
        case = "of random matrices" if not exponent else f"the same times k^-{exponent}"
        original = model(exponent)
        matrices = weights(original)
        optima = [float(torch.linalg.svdvals(w.double())[RANK:].norm()) for _, w in matrices]
        base = repeated(lambda original=original: wrapped(True, original)[0])
        for start in ("pissa_niter_4", "pissa_niter_16"):
            seconds = repeated(lambda start=start, original=original: wrapped(start, original)[0]) - base
            adapted = wrapped(start, original)[1]
            mean, largest = excess(matrices, optima, list(products(adapted).values()))
            lines.append(f"| {case} | PEFT, {start} | {seconds:.2f} | {mean:.6f} | {largest:.6f} |")
            print(lines[-1], flush=True)
        for accuracy in (6e-3, 2e-3, 2e-4):
            seconds = repeated(lambda matrices=matrices, accuracy=accuracy: ours(matrices, accuracy)[0])
            mean, largest = excess(matrices, optima, ours(matrices, accuracy)[1])
            lines.append(
                f"| {case} | truncated_svd, accuracy {accuracy:g} | {seconds:.2f} | {mean:.6f} | {largest:.6f} |"
            )
            print(lines[-1], flush=True)
    (HERE / "results" / "pissa.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
