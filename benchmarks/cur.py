"""What a matrix's own rows and columns cost: error over the optimum and time of every selection rule, on one thread.

    [ECKART_DATA=DIR] python benchmarks/cur.py

The table is ``results/cur.md``. SciPy's interpolative decomposition is measured at the same ranks. Real matrices are those of
``wikitext2_llama_8m`` where ECKART_DATA names the folder that holds it.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from scipy.linalg import interpolative as scipy_id
from torch import Generator, Tensor

from eckart.linalg import (
    DEIM,
    Entries,
    Largest,
    LeadingVectors,
    PivotedQR,
    RidgeVectors,
    Rule,
    Sampled,
    StrongRRQR,
    cur,
    generalised_nystrom,
    interpolative,
    select,
    svd,
)

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE)]

from machine import facts  # noqa: E402
from synthetic import weight  # noqa: E402

from eckart.model.tensorfile import TensorSpec  # noqa: E402

DRAWS = range(3)
RULES: dict[str, Rule] = {
    "DEIM": DEIM(),
    "pivoted QR": PivotedQR(),
    "pivoted QR of vectors (Q-DEIM)": PivotedQR(LeadingVectors()),
    "strong RRQR, f = 2": StrongRRQR(),
    "largest norm": Largest(),
    "largest leverage score": Largest(LeadingVectors()),
    "sampled, squared norm": Sampled(Entries()),
    "sampled, leverage score": Sampled(LeadingVectors()),
    "sampled, ridge leverage score": Sampled(RidgeVectors()),
    "sampled, evenly": Sampled(power=0.0),
    "sampled, inverted squared norm": Sampled(power=-2.0),
}
REAL = ("model.layers.0.self_attn.q_proj", "model.layers.2.mlp.down_proj", "model.layers.5.mlp.gate_proj")


def power_law(m: int, n: int, exponent: float) -> Tensor:
    """Singular values k ** -exponent between random singular vectors, float32."""
    rng = Generator().manual_seed(0)
    k = min(m, n)
    left, right = (torch.linalg.qr(torch.randn(side, k, generator=rng, dtype=torch.float64)).Q for side in (m, n))
    return (left * torch.arange(1, k + 1, dtype=torch.float64) ** -exponent @ right.T).to(torch.float32)


def matrices() -> Iterator[tuple[str, Tensor, tuple[int, ...]]]:
    """Names, matrices in float32, and ranks."""
    yield "values k^-1, 600 x 400", power_law(600, 400, 1.0), (20, 80)
    yield "values k^-0.5, 600 x 400", power_law(600, 400, 0.5), (40,)
    yield "synthetic weight, 512 x 768", weight(TensorSpec("w", torch.float32, (512, 768)), 0), (32, 128)
    folder = os.environ.get("ECKART_DATA")
    if folder:
        from safetensors import safe_open

        with safe_open(Path(folder) / "wikitext2_llama_8m" / "model.safetensors", "pt") as file:
            for name in REAL:
                w = file.get_tensor(f"{name}.weight").to(torch.float32)
                yield f"{name}, {w.shape[0]} x {w.shape[1]}", w, (64,)


def timed(run: Callable[[], object]) -> float:
    """Processor seconds of one call."""
    begin = time.process_time()
    run()
    return time.process_time() - begin


def rows(w: Tensor, rank: int) -> Iterator[tuple[str, float, float, float, float]]:
    """Name, error of the columns and of columns and rows over the optimum, seconds to choose columns and for all of CUR."""
    energies = svd(w).s.square()
    optimum = float(energies[rank:].sum().sqrt())
    for name, rule in RULES.items():
        seeds = DRAWS if isinstance(rule, Sampled) else (0,)
        own, both = [], []
        for seed in seeds:
            rng = Generator().manual_seed(seed)
            own.append(interpolative(w, rank, rule, rng=rng).bounds[0].achieved / optimum)
            both.append(cur(w, rank, columns=rule, rows=rule, rng=rng).bounds[0].achieved / optimum)
        choose = timed(lambda rule=rule: select(w, rank, rule))
        whole = timed(lambda rule=rule: cur(w, rank, columns=rule, rows=rule))
        yield name, statistics.mean(own), statistics.mean(both), choose, whole
    sketched = statistics.mean(
        generalised_nystrom(w, rank, rng=Generator().manual_seed(seed)).bounds[0].achieved / optimum for seed in DRAWS
    )
    yield "(generalised Nyström)", float("nan"), sketched, float("nan"), timed(lambda: generalised_nystrom(w, rank))
    a = w.to(torch.float64).numpy()
    begin = time.process_time()
    order, weights = scipy_id.interp_decomp(a.copy(), rank, rand=False)
    taken = time.process_time() - begin
    found = scipy_id.reconstruct_matrix_from_id(a[:, order[:rank]], order, weights)
    yield "SciPy, interp_decomp", float(np.linalg.norm(a - found)) / optimum, float("nan"), taken, float("nan")


def table() -> str:
    """The table in Markdown."""
    lines = ["# Approximation by columns and rows", ""]
    lines += [f"{key}: {value}  " for key, value in facts().items()]
    lines += [
        "",
        "Frobenius error over the smallest possible one of the same rank (1 is the truncated SVD), of `a[:, J] X` (*columns*) and",
        f"of `C U R` (*both*); for rules that draw the mean over {len(DRAWS)} seeds. Processor seconds on one thread: *choose* is",
        "`select` of the columns (SciPy: its decomposition, coefficients included), *CUR* all of `cur`, bounds included, of which",
        "an exact decomposition is the larger part. Factors in float32. Written by `benchmarks/cur.py`.",
    ]
    for title, w, ranks in matrices():
        for rank in ranks:
            lines += ["", f"## {title}, rank {rank}", ""]
            lines += ["| rule | columns | both | choose, s | CUR, s |", "|---|---|---|---|---|"]
            for name, own, both, choose, whole in rows(w, rank):
                cells = (f"{own:.3f}", f"{both:.3f}", f"{choose:.3f}", f"{whole:.3f}")
                lines.append("| " + " | ".join([name, *("-" if cell == "nan" else cell for cell in cells)]) + " |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure and write the table."""
    torch.set_num_threads(1)
    (HERE / "results" / "cur.md").write_text(table())


if __name__ == "__main__":
    main()
