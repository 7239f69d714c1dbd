"""Truncation in the metric of second moments, against the Cholesky route; and of a product of factors, against the dense product.

    python benchmarks/whitened.py        about two minutes on one core

Median CPU time on one thread, and the weighted error over the best possible one (from an exact decomposition of ``W R`` with R the root
of the moment). Inputs have a few channels that are a thousand times stronger than the others, as activations do. The Cholesky
route is that of SVD-LLM as published: a factor of the moment, the SVD of the product, its leading part times the inverse. The table is
``results/whitened.md``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Generator, Tensor

from eckart.linalg import truncated_svd
from eckart.metric import Metric
from eckart.operator import Factors, Product

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from machine import facts  # noqa: E402

Pair = tuple[Tensor, Tensor]


def inputs(tokens: int, width: int, rng: Generator) -> Tensor:
    """Correlated activations with outlier channels (tokens, width)."""
    mixing = torch.randn(width, width, generator=rng) * torch.arange(1, width + 1) ** -0.5
    x = torch.randn(tokens, width, generator=rng) @ mixing.T
    x[:, :: width // 8] *= 1e3
    return x


def cholesky(w: Tensor, gram: Tensor, rank: int, *, wide: bool) -> Pair:
    """Factor, SVD, inverse; in float64 or, as it is often run, in float32."""
    dtype = torch.float64 if wide else torch.float32
    factor = torch.linalg.cholesky(gram.to(dtype))
    u, s, vh = torch.linalg.svd(w.to(dtype) @ factor, full_matrices=False)
    return u[:, :rank] * s[:rank], vh[:rank] @ torch.linalg.inv(factor)


def roots(w: Tensor, gram: Tensor, rank: int) -> Pair:
    """The same with the symmetric root of the moment by its eigenvectors, and its pseudoinverse."""
    energies, v = torch.linalg.eigh(gram)
    root = energies.clamp(min=0).sqrt()
    u, s, vh = torch.linalg.svd(w.double() @ (v * root), full_matrices=False)
    inverse = torch.where(root > root.max() * 1e-8, 1 / root.clamp(min=1e-300), torch.zeros_like(root))
    return u[:, :rank] * s[:rank], (vh[:rank] * inverse) @ v.T


def ours(w: Tensor, gram: Tensor, rank: int) -> Pair:
    """With its bounds."""
    op = truncated_svd(w, rank, metric=Metric.gram("inputs", gram)).op
    assert isinstance(op, Factors)
    return op.left, op.right


def timed(work: Callable[[], Pair], repeats: int = 3) -> tuple[float, Pair | str]:
    """Median CPU seconds, and what came out or why nothing did."""
    seconds: list[float] = []
    for _ in range(repeats):
        begun = time.process_time()
        try:
            found = work()
        except torch.linalg.LinAlgError as error:
            return time.process_time() - begun, str(error).partition("(")[0][:60]
        seconds.append(time.process_time() - begun)
    return median(seconds), found


def whitened(side: int, rank: int, tokens: int) -> list[str]:
    """One line for every route."""
    rng = Generator().manual_seed(side + tokens)
    w, x = torch.randn(side, side, generator=rng) / side**0.5, inputs(tokens, side, rng)
    gram = x.double().T @ x.double()
    root = torch.linalg.eigh(gram)
    whole = w.double() @ (root.eigenvectors * root.eigenvalues.clamp(min=0).sqrt())
    best = float(torch.linalg.svdvals(whole)[rank:].norm())
    routes: dict[str, Callable[[], Pair]] = {
        "eckart": lambda: ours(w, gram, rank),
        "Cholesky, SVD, inverse in float64": lambda: cholesky(w, gram, rank, wide=True),
        "the same in float32": lambda: cholesky(w, gram, rank, wide=False),
        "root by eigenvectors, SVD, pseudoinverse": lambda: roots(w, gram, rank),
    }
    lines, first = [], 0.0
    for name, work in routes.items():
        seconds, found = timed(work)
        first = first or seconds
        case = f"{side} x {side}, r = {rank}, {tokens} tokens"
        if isinstance(found, str):
            lines.append(f"| {case} | {name} | {seconds:.2f} | | {found} |")
            continue
        rest = w.double() - found[0].double() @ found[1].double()
        error = float((rest @ (root.eigenvectors * root.eigenvalues.clamp(min=0).sqrt())).norm()) / best
        lines.append(f"| {case} | {name} | {seconds:.2f} | {seconds / first:.2f} | {error:.5f} |")
        print(lines[-1], flush=True)
    return lines


def product(side: int, rank: int) -> list[str]:
    """The SVD of a LoRA product by its factors, and of the same multiplied out."""
    rng = Generator().manual_seed(side)
    b, a = torch.randn(side, rank, generator=rng), torch.randn(rank, side, generator=rng)
    lora = Product((Factors(b, a),))
    begun = time.process_time()
    torch.linalg.svd(b @ a, full_matrices=False)
    dense = time.process_time() - begun
    seconds = []
    for _ in range(9):
        begun = time.process_time()
        fit = truncated_svd(lora, rank // 2)
        seconds.append(time.process_time() - begun)
    optimum = float(
        torch.linalg.svdvals(torch.linalg.qr(b.double()).R @ torch.linalg.qr(a.double().T).R.T)[rank // 2 :].norm()
    )
    line = (
        f"| {side} x {side}, factors of rank {rank} to {rank // 2} | {1e3 * median(seconds):.2f} | {1e3 * dense:.0f} "
        f"| {dense / median(seconds):,.0f} | {fit.bounds[0].achieved / optimum:.6f} |"
    )
    print(line, flush=True)
    return [line]


def main() -> None:
    """Measure and write the table."""
    torch.set_num_threads(1)
    lines = ["# Whitened truncation, and the SVD of a product", "", *(f"{k}: {v}  " for k, v in facts().items()), ""]
    lines += ["| case | route | CPU s | of eckart's | error / best |", "|---|---|---|---|---|"]
    lines += [*whitened(2048, 512, 4096), *whitened(2048, 512, 1024), *whitened(1024, 256, 4096)]
    lines += ["", "| product | CPU ms | dense SVD, CPU ms | times faster | error / best |", "|---|---|---|---|---|"]
    lines += product(4096, 16)
    (HERE / "results" / "whitened.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
