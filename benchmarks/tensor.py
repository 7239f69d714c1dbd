"""Tucker's decomposition and tensor trains of real tensors, against tensorly.

    ECKART_DATA=DIR python benchmarks/tensor.py        a minute on one core; tensorly must be installed

Median CPU time on one thread, ours with its bounds, and errors over what the unfoldings leave at these ranks, below which nothing
can come. tensorly iterates from the same start, to a tolerance of 1e-8 and at most 100 times. The table is ``results/tensor.md``.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import tensorly
import torch
from tensorly.decomposition import tensor_train as their_train
from tensorly.decomposition import tucker as their_tucker

from eckart.bound import Bound
from eckart.linalg import tensor_train, tucker

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from machine import facts  # noqa: E402

REPEATS = 7
SHARES = (6, 3)  # ranks are this part of each side
BONDS = (4, 16)  # ranks of trains


def tensors() -> Iterator[tuple[str, np.ndarray]]:
    """The real ones, in float64; what is missing counts as zero."""
    for path in sorted((Path(os.environ["ECKART_DATA"]) / "tensorly_tensors").glob("*.npy")):
        if "missing" not in path.name:
            yield path.stem, np.nan_to_num(np.load(path)).astype(np.float64)


def timed(work: Callable[[], object]) -> float:
    """Median CPU seconds."""
    seconds = []
    for _ in range(REPEATS):
        begun = time.process_time()
        work()
        seconds.append(time.process_time() - begun)
    return median(seconds)


def row(case: str, own: Bound, seconds: float, error: float, theirs: float) -> str:
    """One line of the table."""
    assert own.lower is not None
    return (
        f"| {case} | {1e3 * seconds:.1f} | {1e3 * theirs:.1f} | {theirs / seconds:.2f} | {own.achieved / own.lower:.6f} "
        f"| {error / own.lower:.6f} | {own.upper / own.achieved - 1:.0e} |"
    )


def compared(name: str, a: np.ndarray) -> Iterator[str]:
    """Both decompositions at all ranks."""
    ours = torch.from_numpy(a)
    for share in SHARES:
        ranks = [max(1, side // share) for side in a.shape]
        seconds = timed(lambda ranks=ranks: tucker(ours, ranks))
        found = their_tucker(a, ranks, init="svd", n_iter_max=100, tol=1e-8)
        theirs = timed(lambda ranks=ranks: their_tucker(a, ranks, init="svd", n_iter_max=100, tol=1e-8))
        error = float(np.linalg.norm(a - tensorly.tucker_to_tensor(found)))
        yield row(f"{name}, Tucker {tuple(ranks)}", tucker(ours, ranks).bounds[0], seconds, error, theirs)
    flat, ones = ours.reshape(-1, 1), (1,) * a.ndim
    for rank in BONDS:
        fit = tensor_train(flat, a.shape, ones, rank)
        bonds = [1, *fit.op.ranks, 1]  # type: ignore[attr-defined]
        seconds = timed(lambda rank=rank: tensor_train(flat, a.shape, ones, rank))
        theirs = timed(lambda bonds=bonds: their_train(a, bonds))
        error = float(np.linalg.norm(a - their_train(a, bonds).to_tensor()))
        yield row(f"{name}, train of bonds {fit.op.ranks}", fit.bounds[0], seconds, error, theirs)  # type: ignore[attr-defined]


def main() -> None:
    """Measure and write the table."""
    warnings.filterwarnings("ignore", module="tensorly")
    torch.set_num_threads(1)
    lines = ["# Tucker's decomposition and tensor trains", "", *(f"{k}: {v}  " for k, v in facts().items())]
    lines += [f"tensorly: {tensorly.__version__}  ", ""]
    lines += ["| case | CPU ms | tensorly | times faster | error / lower | tensorly's | upper / error - 1 |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for name, a in tensors():
        for line in compared(f"{name} {' x '.join(map(str, a.shape))}", a):
            print(line, flush=True)
            lines.append(line)
    (HERE / "results" / "tensor.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
