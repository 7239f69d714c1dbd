"""What a compression costs beside the sum of its parts, each measured by a bare loop that uses none of the engine.

    python benchmarks/compress.py --gigabytes 3        a synthetic checkpoint, plain truncation at uniform ranks
    ECKART_DATA=DIR python benchmarks/compress.py --model     wikitext2_llama_8m in the metric of its inputs, allocated ranks
    python benchmarks/compress.py --seven-b            a checkpoint of the shapes of 7 billion parameters, 13 GB

Tables are written to ``results/compress*.md``. The parts: reading every tensor with safetensors, hashing the files
with hashlib, the calibration's passes by transformers with bare hooks, the calls of the numerical core, writing with safetensors.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn

from eckart.linalg import truncated_svd
from eckart.linalg.truncated import Truncation
from eckart.metric import Metric
from eckart.model.certificate import Certificate
from eckart.model.files import human_bytes

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from machine import facts  # noqa: E402
from memory import measured  # noqa: E402
from synthetic import SEVEN_B, Shape, make, of_size  # noqa: E402

TOKENS = 16384
BATCH = 2048  # tokens that go through the model together
LIMIT = 4 * 10**9  # of anonymous memory, for the largest checkpoint

Parts = dict[str, float]


@contextmanager
def timed(parts: Parts, name: str) -> Iterator[None]:
    """Add the seconds that the block takes to a part."""
    begun = time.monotonic()
    yield
    parts[name] = parts.get(name, 0.0) + time.monotonic() - begun


def side_by_side(work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """One thread a matrix, as many matrices as there are cores."""

    def alone(item: Any) -> Any:
        torch.set_num_threads(1)
        return work(item)

    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(alone, items))
    torch.set_num_threads(threads)
    return found


def reading(folder: Path, parts: Parts) -> None:
    """Read every tensor once, and every file once more for its hash."""
    for path in sorted(folder.glob("*.safetensors")):
        with timed(parts, "reading"), safe_open(path, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118, it is no mapping
                handle.get_tensor(name).view(torch.uint8).sum(dtype=torch.int64)
        with timed(parts, "hashing"), path.open("rb") as file:
            hashlib.file_digest(file, "sha256")


def ranks_of(result: Path) -> dict[str, int]:
    """The rank of every factored matrix of a finished run."""
    return {m.name: m.rank for m in Certificate.read(result).matrices if m.rank is not None}


def writing(result: Path, scratch: Path, parts: Parts) -> None:
    """Write the tensors of the result, hash them and wait for the disk."""
    for path in sorted(result.glob("*.safetensors")):
        tensors = load_file(path)
        with timed(parts, "writing"):
            save_file(tensors, scratch / path.name)
            with (scratch / path.name).open("rb") as file:
                os.fsync(file.fileno())
        with timed(parts, "hashing"):
            for tensor in tensors.values():
                hashlib.sha256(tensor.view(torch.uint8).numpy().data)


def weights(folder: Path) -> dict[str, tuple[Path, str]]:
    """The file of every weight, by the name of its module."""
    found: dict[str, tuple[Path, str]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as handle:
            found |= {name.removesuffix(".weight"): (path, name) for name in handle.keys()}  # noqa: SIM118
    return found


def plain_parts(folder: Path, result: Path, scratch: Path, *, only_files: bool) -> Parts:
    """The parts of a run without calibration; with ``only_files`` those that are not computed."""
    parts: Parts = {}
    reading(folder, parts)
    if only_files:
        writing(result, scratch, parts)
        return parts
    places = weights(folder)

    def truncate(item: tuple[str, int]) -> None:
        path, name = places[item[0]]
        with safe_open(path, framework="pt") as handle:
            truncated_svd(handle.get_tensor(name), item[1], spectral=True)  # as the command line does

    with timed(parts, "truncated_svd"):
        side_by_side(truncate, list(ranks_of(result).items()))
    writing(result, scratch, parts)
    return parts


def inputs_of(model: nn.Module, names: Sequence[str], grams: dict[str, Tensor]) -> Iterator[None]:
    """Hooks that add up ``x^T x`` for the inputs of maps, once for those that are given the very same tensor."""
    seen: dict[int, tuple[str, Tensor]] = {}  # tensors are held: their place in memory is not given to others meanwhile

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            owner, _held = seen.setdefault(args[0].data_ptr(), (name, args[0]))
            if owner == name:
                x = args[0].detach().reshape(-1, args[0].shape[-1]).to(torch.float64)
                grams[name] = grams[name] + x.T @ x if name in grams else x.T @ x

        return add

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
    yield seen.clear()
    for handle in handles:
        handle.remove()


def calibrated_parts(folder: Path, result: Path, scratch: Path, text: Path) -> Parts:
    """The parts of a run with allocated ranks: two passes with second moments, one back, two to judge, all decompositions."""
    from transformers import AutoModelForCausalLM

    from eckart.model.text import draw_windows, ids_for, read_text, window_length

    parts: Parts = {}
    reading(folder, parts)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with timed(parts, "tokenising"):
        ids = ids_for(folder, read_text(text))
    windows = draw_windows(ids, window_length(folder, None), TOKENS, Generator().manual_seed(0))
    batches = windows.split(max(1, BATCH // windows.shape[1]))
    ranks = ranks_of(result)
    names = [
        matrix.name for matrix in Certificate.read(result).matrices
    ]  # those that stay dense were looked at as well
    grams: dict[str, Tensor] = {}
    for _ in range(2):
        grams.clear()
        with timed(parts, "passes with second moments"), torch.no_grad():
            for batch in batches:
                for _ in inputs_of(model, names, grams):
                    model(input_ids=batch, use_cache=False)
    with timed(parts, "pass there and back"):
        for batch in batches:
            logits = model(input_ids=batch, use_cache=False).logits.flatten(0, 1)
            labels = torch.multinomial(logits.detach().softmax(-1), 1).flatten()
            nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
    with timed(parts, "passes to judge"), torch.no_grad():
        for batch in [*batches, *batches]:
            model(input_ids=batch, use_cache=False).logits.log_softmax(-1)
    owners = _owners(names, grams)

    def decompose(name: str) -> None:
        weight, metric = model.get_submodule(name).weight.detach(), metrics[owners[name]]
        metric.singular_values(weight)
        prepared = Truncation(weight, metric, 0.0)
        for rank in (ranks.get(name), ranks.get(name)):
            if rank is not None:
                prepared.fit(rank, dtype=weight.dtype, rng=Generator().manual_seed(0))

    with timed(parts, "decompositions"):
        for _ in range(2):
            metrics = dict(zip(grams, side_by_side(lambda n: Metric.gram(n, grams[n]), list(grams)), strict=True))
        side_by_side(decompose, names)
    writing(result, scratch, parts)
    return parts


def _owners(names: Sequence[str], grams: Mapping[str, Tensor]) -> dict[str, str]:
    """Under which name the second moment of each map's input was kept: the last one before it that has one."""
    return {n: max((g for g in grams if names.index(g) <= names.index(n)), key=names.index) for n in names}


def run(command: Sequence[str], *, limit: int | None = None) -> tuple[float, int]:
    """Seconds and peak anonymous memory of an eckart command in a process of its own."""
    line = [sys.executable, "-c", "from eckart.cli import main; main()", *command]
    code, seconds, peak, said = measured(line, limit or 2**62)
    if code:
        raise SystemExit(f"{' '.join(command)} failed:\n{said}")
    return seconds, peak


def start() -> float:
    """Seconds that a process takes which imports torch and transformers' models, and ends: the median of three."""

    def once() -> float:
        begun = time.monotonic()
        subprocess.run([sys.executable, "-c", "import torch, transformers.modeling_utils"], check=True)
        return time.monotonic() - begun

    return median(once() for _ in range(3))


def table(title: str, total: float, parts: Parts, extra: Sequence[str] = (), *, partial: bool = False) -> str:
    """The table in Markdown; ``partial`` where not all parts were measured."""
    lines = [f"# {title}", "", *(f"{key}: {value}  " for key, value in facts().items()), "", *extra, ""]
    lines += ["| part, by a bare loop | seconds |", "|---|---|"]
    lines += [f"| {name} | {seconds:.1f} |" for name, seconds in parts.items()]
    if partial:
        return "\n".join([*lines, f"| **the run** | **{total:.1f}** |", ""])
    whole = sum(parts.values())
    lines += [f"| **sum** | **{whole:.1f}** |", f"| **the run** | **{total:.1f}** |", ""]
    lines += [f"The run takes {total / whole:.2f} times the sum of its parts.", ""]
    return "\n".join(lines)


def synthetic(scratch: Path, shape: Shape, keep: str, name: str, limit: int | None, place: Path | None) -> None:
    """Measure plain truncation of a synthetic checkpoint."""
    model = place or scratch / "model"
    if not model.exists():
        make(model, shape)
    size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    parts: Parts = {"start of the process": start()}
    command = ["compress", str(model), "--keep", keep, "--recipe", "svd", "-o"]
    total, peak = run([*command, str(scratch / "out")], limit=limit)
    (scratch / "bare").mkdir()
    ranks = sorted(set(ranks_of(scratch / "out").values()))
    large = shape is SEVEN_B
    parts |= plain_parts(model, scratch / "out", scratch / "bare", only_files=large)
    files = sum(parts[p] for p in ("reading", "writing"))
    extra = [
        f"A checkpoint of {human_bytes(size)} (matrices of {shape.hidden_size} and {shape.intermediate_size}), "
        f"kept {keep} of the bytes: ranks {ranks[0]} to {ranks[-1]}.",
        f"Largest anonymous memory of the run: {human_bytes(peak)}. Beyond reading and writing: {total - files:.0f} s.",
    ]
    if large:
        quick, least = run([*command, str(scratch / "quick"), "--quick"], limit=limit)
        extra.append(
            f"With --quick: {quick:.0f} s, {human_bytes(least)}; beyond reading and writing {quick - files:.0f} s."
        )
    _report(name, table("Cost of a compression without calibration", total, parts, extra, partial=large))


def trained(scratch: Path) -> None:
    """Measure svd-llm with allocated ranks on the trained 8 M Llama."""
    data = Path(os.environ["ECKART_DATA"])
    model, text = data / "wikitext2_llama_8m", scratch / "text.txt"
    text.write_text(gzip.decompress((data / "wikitext2" / "train.txt.gz").read_bytes()).decode()[:1_000_000])
    parts: Parts = {"start of the process": start()}
    command = ["compress", str(model), "-o", str(scratch / "out"), "--keep", "0.8", "--calibration", str(text)]
    runs = []
    for _ in range(3):  # a short run, and a machine that is never quite quiet
        shutil.rmtree(scratch / "out", ignore_errors=True)
        runs.append(run([*command, "--tokens", str(TOKENS)]))
    total, peak = sorted(runs)[1]
    (scratch / "bare").mkdir()
    parts |= calibrated_parts(model, scratch / "out", scratch / "bare", text)
    seconds = ", ".join(f"{seconds:.1f}" for seconds, _ in runs)
    extra = [
        f"svd-llm, allocated ranks, {TOKENS} tokens. Largest anonymous memory: {human_bytes(peak)}. "
        f"The median of runs of {seconds} s."
    ]
    _report("compress-model", table("Cost of a calibrated compression of wikitext2_llama_8m", total, parts, extra))


def _report(name: str, text: str) -> None:
    (HERE / "results" / f"{name}.md").write_text(text)
    print(text, flush=True)


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float)
    parser.add_argument("--model", action="store_true")
    parser.add_argument("--seven-b", action="store_true")
    parser.add_argument("--folder", type=Path, help="where the synthetic checkpoint lies or shall lie")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if arguments.gigabytes:
            synthetic(scratch, of_size(arguments.gigabytes), "0.15", "compress", None, arguments.folder)
        if arguments.model:
            trained(scratch)
        if arguments.seven_b:
            synthetic(scratch, SEVEN_B, "0.0975", "compress-7b", LIMIT, arguments.folder)


if __name__ == "__main__":
    main()
