"""The truncated SVD against those of torch, scikit-learn and SciPy, on spectra that are known and on real weights.

    python benchmarks/svd.py                      every case; hours on one core, goes on where it was interrupted
    python benchmarks/svd.py --only 4096x4096     the cases whose name contains this
    python benchmarks/svd.py --table              the table of what was measured so far

Every call runs in a process of its own on one thread. Noted are the median CPU time, the error and the captured energy over
those of the best approximation (known for synthetic matrices, from LAPACK for real ones), how far the bounds are apart, and how much
memory the process took beyond one that only loads the matrix. The table, with the ratios that were aimed for, is
``results/svd.md``; the single figures are in ``results/svd.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from eckart.linalg import truncated_svd
from eckart.operator import Factors

HERE = Path(__file__).parent
NOTES, TABLE = HERE / "results" / "svd.jsonl", HERE / "results" / "svd.md"
sys.path.insert(0, str(HERE))
SHAPES = ((1024, 1024), (2048, 2048), (4096, 4096), (4096, 11008), (11008, 4096))
SPECTRA: dict[str, Callable[[Tensor], Tensor]] = {"p0.5": lambda i: i**-0.5, "slow": lambda i: i**-0.2}
LONGEST = 90.0  # seconds; what takes longer is noted as such, and not tried at larger ranks of the same matrix


@dataclass(frozen=True)
class Case:
    """A matrix and a rank."""

    name: str
    shape: tuple[int, int]
    rank: int
    spectrum: str  # of SPECTRA, or the file and the tensor of a real matrix

    def matrix(self) -> Tensor:
        """In float32."""
        if self.spectrum in SPECTRA:
            return synthetic(*self.shape, values(self.spectrum, min(self.shape)))
        from safetensors import safe_open

        path, _, tensor = self.spectrum.partition("::")
        with safe_open(path, framework="pt") as handle:
            return handle.get_tensor(tensor).float()

    def energies(self) -> Tensor:
        """The squared singular values."""
        if self.spectrum in SPECTRA:
            return values(self.spectrum, min(self.shape)).square()
        return torch.linalg.svdvals(self.matrix().double()).square()


def values(spectrum: str, side: int) -> Tensor:
    """The singular values of a synthetic matrix."""
    return SPECTRA[spectrum](torch.arange(1, side + 1, dtype=torch.float64))


def synthetic(m: int, n: int, s: Tensor) -> Tensor:
    """A matrix of these singular values up to float32: random reflections applied to a diagonal from both sides.

    Sixteen reflections a side mix well enough that no method finds a shortcut, at a thousandth of the cost of a random basis.
    """
    rng = Generator().manual_seed(m * n)
    a = torch.zeros(m, n, dtype=torch.float64)
    a.diagonal().copy_(s)
    for _ in range(16):
        left, right = (torch.randn(k, generator=rng, dtype=torch.float64) for k in (m, n))
        a -= torch.outer(left, 2 / left.dot(left) * (left @ a))
        a -= torch.outer(2 / right.dot(right) * (a @ right), right)
    return a.float()


def ranks(side: int) -> tuple[int, ...]:
    """The ranks that are tried on a matrix of this smaller side."""
    return tuple(sorted({min(r, side // 2) for r in (16, 64, 256, side // 4, side // 2)}))


def cases() -> Iterator[Case]:
    """All of them; real weights where ECKART_DATA is set."""
    for m, n in SHAPES:
        for spectrum in SPECTRA:
            for rank in ranks(min(m, n)):
                yield Case(f"{m}x{n} {spectrum} r={rank}", (m, n), rank, spectrum)
    data = os.environ.get("ECKART_DATA")
    if data:
        file = Path(data) / "wikitext2_llama_8m" / "model.safetensors"
        for tensor in (
            "model.embed_tokens.weight",
            "model.layers.3.mlp.up_proj.weight",
            "model.layers.3.mlp.down_proj.weight",
        ):
            from safetensors import safe_open

            with safe_open(str(file), framework="pt") as handle:
                m, n = handle.get_slice(tensor).get_shape()
            for rank in (16, 64, min(m, n) // 4, min(m, n) // 2):
                yield Case(f"{tensor.removesuffix('.weight')} {m}x{n} r={rank}", (m, n), rank, f"{file}::{tensor}")


# ---- the methods: each gives two factors of the approximation, and bounds where it has them -------------------------

Result = tuple[Tensor, Tensor, tuple[float | None, float] | None]


def ours(a: Tensor, rank: int, **options: Any) -> Result:
    """With the bounds that come with it."""
    fit = truncated_svd(a, rank, **options)
    assert isinstance(fit.op, Factors)
    return fit.op.left, fit.op.right, (fit.bounds[0].lower, fit.bounds[0].upper)


def lapack(a: Tensor, rank: int) -> Result:
    """``torch.linalg.svd`` on the tall orientation."""
    tall = a if a.shape[0] >= a.shape[1] else a.T
    u, s, vh = torch.linalg.svd(tall, full_matrices=False)
    left, right = u[:, :rank] * s[:rank], vh[:rank]
    return (left, right, None) if tall is a else (right.T, left.T, None)


def lowrank(a: Tensor, rank: int, niter: int) -> Result:
    """``torch.svd_lowrank`` as others call it."""
    torch.manual_seed(0)
    u, s, v = torch.svd_lowrank(a, q=rank, niter=niter)
    return u * s, v.T, None


def sklearn(a: Tensor, rank: int) -> Result:
    """scikit-learn's randomized_svd with its defaults."""
    from sklearn.utils.extmath import randomized_svd

    u, s, vh = randomized_svd(a.numpy(), rank, random_state=0)
    return torch.from_numpy(u * s), torch.from_numpy(np.ascontiguousarray(vh)), None


def scipy(a: Tensor, rank: int, solver: str) -> Result:
    """SciPy's svds."""
    from scipy.sparse.linalg import svds

    u, s, vh = svds(a.numpy(), k=rank, solver=solver, rng=np.random.default_rng(0))
    return torch.from_numpy(u * s), torch.from_numpy(np.ascontiguousarray(vh)), None


def fbpca(a: Tensor, rank: int) -> Result:
    """Facebook's pca without centring, with its defaults."""
    from fbpca import pca

    np.random.seed(0)  # it knows no other
    u, s, vh = pca(a.numpy(), rank, raw=True)
    return torch.from_numpy(u * s), torch.from_numpy(np.ascontiguousarray(vh)), None


WHOLE = "torch.linalg.svd"  # takes the same at every rank, and is measured once for a matrix
METHODS: dict[str, Callable[[Tensor, int], Result]] = {
    "eckart": ours,
    "eckart, accuracy 6e-3": lambda a, rank: ours(a, rank, accuracy=6e-3),
    "eckart, accuracy 2e-4": lambda a, rank: ours(a, rank, accuracy=2e-4),
    "eckart, spectral": lambda a, rank: ours(a, rank, spectral=True),
    "eckart, exact": lambda a, rank: ours(a, rank, accuracy=0.0),
    WHOLE: lapack,
    "svd_lowrank 2": lambda a, rank: lowrank(a, rank, 2),
    "svd_lowrank 4": lambda a, rank: lowrank(a, rank, 4),
    "scikit-learn": sklearn,
    "fbpca": fbpca,
    "svds propack": lambda a, rank: scipy(a, rank, "propack"),
    "svds arpack": lambda a, rank: scipy(a, rank, "arpack"),
}


def measured(case: Case, method: str, matrix: Path, repeats: int) -> dict[str, Any]:
    """One method on one case, in this process."""
    a = torch.from_numpy(np.load(matrix))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, wall = [], []
    for _ in range(repeats):
        begun, clock = time.process_time(), time.monotonic()
        left, right, bounds = METHODS[method](a, case.rank)
        seconds.append(time.process_time() - begun)
        wall.append(time.monotonic() - clock)
        if seconds[-1] > 10:
            break
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    error = float(torch.linalg.vector_norm(a.double() - left.double() @ right.double()))
    return {
        "seconds": statistics.median(seconds),
        "wall": statistics.median(wall),
        "memory": peak * 1024,
        "error": error,
        "bounds": bounds,
    }


def run(selected: list[Case], methods: list[str], repeats: int) -> None:
    """Measure what is not noted yet."""
    for case in selected:
        entries = noted()
        done = {(entry["case"], entry["method"]) for entry in entries}
        # What takes the same at every rank, or took too long at a smaller one.
        same = [entry for entry in entries if entry["case"].split(" r=")[0] == case.name.split(" r=")[0]]
        settled = {
            entry["method"] for entry in same if entry["method"] == WHOLE or "more than" in entry.get("failed", "")
        }
        wanted = [method for method in methods if (case.name, method) not in done and method not in settled]
        if not wanted:
            continue
        with tempfile.TemporaryDirectory() as folder:
            matrix = Path(folder) / "matrix.npy"
            np.save(matrix, case.matrix().numpy())
            energies = case.energies()
            optimum, best = float(energies[case.rank :].sum()) ** 0.5, float(energies[: case.rank].sum())
            for method in wanted:
                command = [sys.executable, __file__, "--one", case.name, method, str(matrix), "--repeats", str(repeats)]
                environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
                entry: dict[str, Any] = {"case": case.name, "method": method, "optimum": optimum}
                try:
                    done_process = subprocess.run(
                        command, capture_output=True, text=True, timeout=LONGEST, env=environment, check=True
                    )
                    found = json.loads(done_process.stdout)
                    captured = float(energies.sum()) - found["error"] ** 2
                    entry |= found | {"excess": found["error"] / optimum, "captured": captured / best}
                except subprocess.TimeoutExpired:
                    entry["failed"] = f"more than {LONGEST:.0f} s"
                except subprocess.CalledProcessError as error:
                    entry["failed"] = error.stderr.strip().splitlines()[-1][:120]
                with NOTES.open("a") as handle:
                    handle.write(json.dumps(entry) + "\n")
                print(json.dumps(entry), flush=True)


def noted() -> list[dict[str, Any]]:
    """What was measured so far."""
    return [json.loads(line) for line in NOTES.read_text().splitlines()] if NOTES.exists() else []


# ---- the table ------------------------------------------------------------------------------------------------------


def table(entries: list[dict[str, Any]]) -> str:
    """All figures, behind the ratios that were aimed for."""
    from machine import facts

    lines = ["# Truncated SVD", "", *(f"{key}: {value}  " for key, value in facts().items()), "", "## Ratios", ""]
    lines += ["| aim | reached |", "|---|---|", *(f"| {aim} | {reached} |" for aim, reached in ratios(entries)), ""]
    lines += [
        "## Figures",
        "",
        "| case | method | CPU s | wall s | error / best | captured / best | best / lower | upper / error | MB |",
    ]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for entry in entries:
        if "failed" in entry:
            lines.append(f"| {entry['case']} | {entry['method']} | {entry['failed']} | | | | | | |")
            continue
        lower, upper = entry["bounds"] or (None, None)
        below = f"{entry['optimum'] / lower:.4f}" if lower else ""
        above = f"{upper / entry['error']:.5f}" if upper else ""
        lines.append(
            f"| {entry['case']} | {entry['method']} | {entry['seconds']:.3f} | {entry['wall']:.3f} | {entry['excess']:.5f} "
            f"| {entry['captured']:.5f} | {below} | {above} | {entry['memory'] / 1e6:.0f} |"
        )
    return "\n".join([*lines, ""])


def ratios(entries: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """What was aimed for, and what came out."""
    found = {(entry["case"], entry["method"]): entry for entry in entries if "failed" not in entry}
    whole = {entry["case"].split(" r=")[0]: entry for entry in entries if entry["method"] == WHOLE}

    def told(case: str, own: str, other: str) -> str:
        mine = found.get((case, own))
        theirs = whole.get(case.split(" r=")[0]) if other == WHOLE else found.get((case, other))
        if mine is None or theirs is None:
            return "not measured"
        ratio = theirs["seconds"] / mine["seconds"]
        reached, beside = (f"error {e['excess']:.4f}, energy {e['captured']:.4f}" for e in (mine, theirs))
        return f"1/{ratio:.1f} at {reached} (theirs {beside})"

    square, lapack = "4096x4096 p0.5", WHOLE
    yield "1. 4096², r = 64: error ≤ 1.002 in ≤ 1/150 of torch.linalg.svd", told(f"{square} r=64", "eckart", lapack)
    yield "2. 4096², r = 256: error ≤ 1.003 in ≤ 1/40 of torch.linalg.svd", told(f"{square} r=256", "eckart", lapack)
    yield "2. and in ≤ 1/3 of svd_lowrank(niter=4)", told(f"{square} r=256", "eckart", "svd_lowrank 4")
    yield (
        "3. r = n/4: error ≤ 1.006 in ≤ 1/5 of torch.linalg.svd",
        told(f"{square} r=1024", "eckart, accuracy 6e-3", lapack),
    )
    for shape, share in (("4096x4096", "1/2"), ("4096x11008", "1/2.5"), ("11008x4096", "1/2.5")):
        case = f"{shape} p0.5 r=2048"
        yield f"4. exact, {shape}, r = n/2, in ≤ {share}", told(case, "eckart, exact", lapack)
        yield "4. the same, certified to be within 0.2 %", told(case, "eckart", lapack)
    slow = "4096x4096 slow r=64"
    yield "5. slow, r = 64: energy ≥ 0.98 in ≤ 1/2 of svd_lowrank(niter=4)", told(slow, "eckart", "svd_lowrank 4")
    yield "5. the same, asked for 2e-4", told(slow, "eckart, accuracy 2e-4", "svd_lowrank 4")
    yield (
        "6. whitened truncation, exact, in ≤ 1/2 of Cholesky + svd + inverse",
        "1/" + elsewhere("whitened.md", "Cholesky, SVD, inverse in float64", 3),
    )
    pissa = [float(elsewhere("pissa.md", start, 2)) for start in ("pissa_niter_4", "truncated_svd, accuracy 0.006")]
    errors = [elsewhere("pissa.md", start, 3) for start in ("pissa_niter_4", "truncated_svd, accuracy 0.006")]
    yield (
        "7. PiSSA's start in ≤ 1/3 of PEFT's niter_4",
        f"1/{pissa[0] / pissa[1]:.1f} at error {errors[1]} (theirs {errors[0]})",
    )
    yield "8. verified error and orthogonality at ≤ 10 % of the time", bounds_share()
    yield (
        "9. SVD of a LoRA product ≥ 1000 times faster than of the dense product",
        elsewhere("whitened.md", "4096 x 4096, factors", 3),
    )
    yield (
        "10. 7B-sized checkpoint at r = 256 in ≤ 3 min, ≤ 4 GB",
        "see compress-7b.md: 303 s with --quick, 0.9 GB, on another machine",
    )


def elsewhere(file: str, row: str, column: int) -> str:
    """A cell of another benchmark's table: of the first row in which this stands."""
    lines = (HERE / "results" / file).read_text().splitlines()
    found = next(line for line in lines if row in line)
    return found.split("|")[1:-1][column].strip()


def bounds_share() -> str:
    """Which share of a truncation goes into its bound, at three ranks of 4096²; measured here."""
    from eckart.kernels.randomized import leading_subspace
    from eckart.linalg.projected import Projected, frobenius_bound

    a, told = synthetic(4096, 4096, values("p0.5", 4096)), []
    size = float(torch.linalg.vector_norm(a, dtype=torch.float64))
    for rank in (16, 64, 256):
        begun = time.process_time()
        found = leading_subspace(a, rank, accuracy=2e-3, rng=Generator().manual_seed(0))
        assert found is not None
        seconds = [time.process_time()]
        assert found.skew < 1e-3  # looks at every pair of columns, once
        seconds.append(time.process_time())
        projected = Projected.on(found, a, size, torch.float32)
        seconds.append(time.process_time())
        frobenius_bound(projected, found, a, size)
        seconds.append(time.process_time())
        spent = seconds[1] - seconds[0] + seconds[3] - seconds[2]
        told.append(f"{spent / (seconds[3] - begun):.1%} at r = {rank}")
    return ", ".join(told)


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], help="cases whose name contains this; may be repeated")
    parser.add_argument("--method", action="append", default=[], help="these methods; may be repeated")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--table", action="store_true", help="write the table and measure nothing")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.one:
        name, method, matrix = arguments.one
        case = next(case for case in cases() if case.name == name)
        print(json.dumps(measured(case, method, Path(matrix), arguments.repeats)))
        return
    if not arguments.table:
        selected = [c for c in cases() if not arguments.only or any(part in c.name for part in arguments.only)]
        run(selected, arguments.method or list(METHODS), arguments.repeats)
    TABLE.write_text(table(noted()))


if __name__ == "__main__":
    main()
