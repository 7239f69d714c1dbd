"""Tables and JSON of the library's results."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.padding import Padding

from eckart.cli.show import number, out, percent, plain, print_table
from eckart.model.files import human_bytes
from eckart.model.progress import peak_memory

if TYPE_CHECKING:  # torch and transformers, which take seconds to import, come with the first call of the library
    from eckart.bonds import BondGraph
    from eckart.model.certificate import BondRecord
    from eckart.model.engine import Compressed, Planned
    from eckart.model.evaluate import Score
    from eckart.model.inspect import Inspection
    from eckart.model.speed import LayerSpeed
    from eckart.model.targets import Untouched
    from eckart.model.verify import Verification
    from eckart.recipes import Recipe


def print_compressed(done: Compressed) -> None:
    """What was made: a line per matrix, sizes, losses and the place."""
    rows = []
    for matrix in done.matrices:
        own, spectral = matrix.bounds[0], next((b for b in matrix.bounds if b.norm == "spectral"), None)
        rows.append(
            (
                matrix.name,
                _shape(matrix.shape),
                matrix.operator.replace("_", " ") if matrix.rank is None else str(matrix.rank),
                human_bytes(matrix.bytes),
                percent(own.relative),
                "-" if own.excess is None else f"{own.excess:.4f}",
                "-" if spectral is None else percent(spectral.relative),
            )
        )
    norm = next((m.bounds[0].norm for m in done.matrices if m.rank is not None), "frobenius")
    columns = ("matrix", "shape", "rank", "bytes", f"error ({norm})", "over optimum", "error (spectral)")
    console = out()
    if rows:
        print_table(columns, rows)
        console.print()
    if done.bonds:
        _print_narrowed(done.bonds)
        console.print()
    if done.heads:
        shared = [(head.name, head.match, head.root, f"{head.likeness:.4f}") for head in done.heads]
        print_table(("head", "is most like", "takes the weights of", "likeness"), shared, left=3)
        console.print()
    if done.dropped:
        console.print(f"blocks left out: {', '.join(done.dropped)}")
    _print_sizes(done.target_bytes, done.file_bytes)
    _print_losses(done)
    _print_untouched(done.untouched)
    print_peak_memory()
    console.print(f"written to {done.folder}")


def _print_narrowed(bonds: Sequence[BondRecord]) -> None:
    """A line for each bond that was made narrower, one for all heads of a block, with the largest figures among them."""
    groups: dict[str, list[BondRecord]] = {}
    for bond in bonds:
        head, _, last = bond.name.rpartition(".")
        groups.setdefault(head if last.isdecimal() else bond.name, []).append(bond)
    rows = []
    for name, group in groups.items():
        known = [bond.bound for bond in group if bond.bound is not None]
        excess = [bound.excess for bound in known if bound.excess is not None]
        rows.append(
            (
                name if len(group) == 1 else f"{name} ({len(group)} groups)",
                str(group[0].size),
                str(group[0].rank),
                percent(max(bound.relative for bound in known)) if known else "-",
                f"{max(excess):.4f}" if excess else "-",
            )
        )
    print_table(("bond", "size", "left", "error of what is read", "over optimum"), rows)


def _print_losses(done: Compressed) -> None:
    if not done.losses:
        return
    told = ", ".join(f"{label} {loss:.4f}" for label, loss in sorted(done.losses.items(), key=_original_first))
    console = out()
    console.print(f"nats per token on the calibration text: {told}")
    if done.kept == "uniform" and "allocated" in done.losses:
        console.print("allocated ranks came out worse than uniform ones, so uniform ranks were kept")
    elif done.kept == "allocated":
        console.print("allocated ranks were kept")


def print_peak_memory() -> None:
    """The most memory that this process has held so far, mapped files included."""
    out().print(f"peak memory {human_bytes(peak_memory())}")


def _original_first(entry: tuple[str, float]) -> tuple[bool, str]:
    return entry[0] != "original", entry[0]


def _print_sizes(targets: tuple[int, int], files: tuple[int, int]) -> None:
    console = out()
    for label, (before, after) in (("linear maps", targets), ("weight files", files)):
        share = after / before if before else 1.0
        console.print(f"{label:<13} {human_bytes(before):>9} -> {human_bytes(after):>9}  ({share:.4f} of before)")


def _print_untouched(untouched: Sequence[Untouched]) -> None:
    reasons: dict[str, list[str]] = {}
    for entry in untouched:
        reasons.setdefault(entry.reason, []).append(entry.name)
    for reason, names in reasons.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        out().print(f"left as it is: {', '.join(names[:3])}{more}: {reason}")


def print_plan(plan: Planned) -> None:
    """What a run would do."""
    rows = [
        (
            row.name,
            _shape(row.shape),
            row.operator,
            "-" if row.rank is None else str(row.rank),
            human_bytes(row.bytes),
            percent(row.predicted),
        )
        for row in plan.rows
    ]
    console = out()
    print_table(("matrix", "shape", "operator", "rank", "bytes", "predicted error"), rows)
    console.print()
    _print_sizes(plan.target_bytes, plan.file_bytes)
    _print_untouched(plan.untouched)
    console.print(f"temporary activation files: {human_bytes(plan.scratch_bytes)}")
    console.print(
        f"nothing was written to the output; measurements are kept in {plan.work_folder}, and the same command "
        "without --dry-run goes on from them",
    )


def compressed_json(done: Compressed) -> dict[str, Any]:
    """The result for machines."""
    return {
        "folder": str(done.folder),
        "bonds": [bond.to_json() for bond in done.bonds],
        "heads": [head.to_json() for head in done.heads],
        "dropped": list(done.dropped),
        "removals": [removal.to_json() for removal in done.removals],
        "target_bytes": _before_after(done.target_bytes),
        "file_bytes": _before_after(done.file_bytes),
        "losses": dict(done.losses),
        "kept": done.kept,
        "gap": done.gap,
        "peak_memory": done.peak_memory,
        "matrices": [matrix.to_json() for matrix in done.matrices],
        "untouched": [_untouched_json(entry) for entry in done.untouched],
    }


def planned_json(plan: Planned) -> dict[str, Any]:
    """The plan for machines."""
    return {
        "target_bytes": _before_after(plan.target_bytes),
        "file_bytes": _before_after(plan.file_bytes),
        "scratch_bytes": plan.scratch_bytes,
        "work_folder": str(plan.work_folder),
        "matrices": [
            {
                "name": row.name,
                "shape": list(row.shape),
                "operator": row.operator,
                "rank": row.rank,
                "bytes": row.bytes,
                "predicted_error": row.predicted,
            }
            for row in plan.rows
        ],
        "untouched": [_untouched_json(entry) for entry in plan.untouched],
    }


def _before_after(pair: tuple[int, int]) -> dict[str, int]:
    return {"before": pair[0], "after": pair[1]}


def _untouched_json(entry: Untouched) -> dict[str, Any]:
    return {"name": entry.name, "shape": list(entry.shape), "reason": entry.reason}


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(str(size) for size in shape)


def print_scores(scores: Mapping[str, Mapping[str, Score]]) -> None:
    """Scores of texts under one or several models."""
    rows = [
        (model, Path(text).name, f"{score.tokens:,}", f"{score.mean:.4f}", f"{score.perplexity:.2f}")
        for model, texts in scores.items()
        for text, score in texts.items()
    ]
    print_table(("model", "text", "tokens", "nats per token", "perplexity"), rows, left=2)


def scores_json(scores: Mapping[str, Score]) -> dict[str, Any]:
    """Scores for machines."""
    return {
        text: {"tokens": score.tokens, "mean_nll": score.mean, "perplexity": score.perplexity}
        for text, score in scores.items()
    }


def print_verification(found: Verification) -> None:
    """What was checked and what failed."""
    console = out()
    told = ", ".join(f"{count} {kind}" for kind, count in found.checked.items())
    console.print(f"checked: {told}")
    for entry in found.not_rechecked:
        console.print(f"not rechecked: {entry}")
    for failure in found.failures[:10]:
        console.print(f"FAILED: {plain(failure)}")
    if len(found.failures) > 10:
        console.print(f"and {len(found.failures) - 10} more")
    if found.holds:
        console.print("everything that was checked holds")


def print_spectra(found: Inspection) -> None:
    """A line per matrix."""
    rows = []
    for row in found.rows:
        s = row.spectrum
        ranks = (str(s.rank_for(share)) for share in (0.9, 0.99, 0.999))
        rows.append(
            (
                row.name,
                _shape(row.shape),
                row.operator.replace("_", " ") if row.rank is None else f"rank {row.rank}",
                number(s.stable_rank),
                number(s.effective_rank),
                *ranks,
                number(s.condition, 3),
                number(s.tail_exponent, 3),
            )
        )
    columns = (
        "matrix",
        "shape",
        "stored",
        "stable rank",
        "effective rank",
        "90 %",
        "99 %",
        "99.9 %",
        "condition",
        "tail exponent",
    )
    print_table(columns, rows)


def print_speeds(speeds: Sequence[LayerSpeed]) -> None:
    """A line for each shape, dtype and batch: how many times faster factors are at shares of the rank where operations are even."""
    from eckart.model.speed import SHARES, even_rank

    rows = []
    for s in speeds:
        ratios = [f"{s.dense / seconds:.2f}" for _, seconds in s.factored]
        even = "none" if s.break_even is None else f"{s.break_even:.0f}"
        cells = (_shape(s.shape), str(s.dtype).removeprefix("torch."), str(s.batch), f"{1e3 * s.dense:.3f}")
        rows.append((*cells, *ratios, *[""] * (len(SHARES) - len(ratios)), even, str(even_rank(s.shape))))
    shares = tuple(f"at {share:g}" for share in SHARES)
    print_table(("shape", "dtype", "rows", "dense ms", *shares, "even at rank", "by operations"), rows, left=2)
    out().print("how many times faster factors are, at shares of the rank at which they take as many operations")


def print_bonds(graph: BondGraph) -> None:
    """A paragraph for bonds that differ by block and head only: how many, their size and symmetry, who writes and who reads."""
    kinds: dict[tuple[str, int, str, str, str], int] = {}
    for bond in graph.bonds.values():
        written, read = (_told({_everywhere(end.tensor) for end in group}) for group in (bond.writers, bond.readers))
        kind = (_everywhere(bond.name), bond.size, str(bond.symmetry), written, read)
        kinds[kind] = kinds.get(kind, 0) + 1
    console = out()
    for (name, size, symmetry, written, read), count in kinds.items():
        times = f" ({count} times)" if count > 1 else ""
        console.print(f"{name}{times}: size {size}, {symmetry}", style="bold" if console.is_terminal else None)
        console.print(Padding(f"written by {written}", (0, 0, 0, 4), expand=False))
        console.print(Padding(f"read by {read}", (0, 0, 0, 4), expand=False))
    console.print(f"inside each of {len(graph.maps)} maps: any invertible matrix between its factors")
    for name, other in graph.ties.items():
        console.print(f"{name} has the weight of {other}")
    if not graph.bonds:
        console.print(f"{graph.architecture} is not declared: what its maps share is not known")


def _told(tensors: Collection[str]) -> str:
    """Names within the block, of a map with its bias once."""
    return ", ".join(sorted({_short(name) for name in tensors})) or "nothing"


def _everywhere(name: str) -> str:
    """A name with its numbers left open."""
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))


def _short(tensor: str) -> str:
    """What a map or tensor is called within its block."""
    return tensor.rpartition("*.")[2].removesuffix(".weight").removesuffix(".bias")


def print_recipes(entries: Sequence[Recipe[Any]]) -> None:
    """The catalogue."""
    rows = []
    for entry in entries:
        made = entry.make()
        needs = ", ".join(sorted(need.name.lower() for need in made.needs)) or "nothing"
        rows.append((entry.key, entry.family, made.paper.link, needs, str(len(made.paper.deviations))))
    print_table(("key", "family", "paper", "needs", "deviations"), rows, left=4)
    console = out()
    console.print()
    for entry in entries:
        console.print(f"{entry.key}: {entry.summary}")


def recipe_json(entry: Recipe[Any]) -> dict[str, Any]:
    """A recipe for machines."""
    made = entry.make()
    return {
        "key": entry.key,
        "family": entry.family,
        "summary": entry.summary,
        "paper": {"title": made.paper.title, "link": made.paper.link},
        "needs": sorted(need.name.lower() for need in made.needs),
        "deviations": list(made.paper.deviations),
        "parts": made.describe(),
    }


def print_recipe(entry: Recipe[Any]) -> None:
    """One recipe with its parts, needs and deviations."""
    record = recipe_json(entry)
    console = out()
    console.print(f"{entry.key} ({entry.family}): {entry.summary}")
    console.print(f"paper: {record['paper']['title']}, {record['paper']['link']}")
    console.print(f"needs: {', '.join(record['needs']) or 'nothing'}")
    for role, told in record["parts"].items():
        for part in told if isinstance(told, list) else [told]:
            settings = (
                " ".join(f"{k}={_part(v)}" for k, v in part.items() if k != "part") if isinstance(part, dict) else part
            )
            name = f"{part['part']} " if isinstance(part, dict) and "part" in part else ""
            console.print(f"{role}: {name}{settings}".rstrip())
    for deviation in record["deviations"]:
        console.print(f"deviation: {deviation}")


def _part(value: object) -> str:
    """A setting, a part in it as its name and settings in brackets."""
    if not isinstance(value, dict):
        return f"{value:.6g}" if isinstance(value, float) else str(value)
    settings = ", ".join(f"{k}={_part(v)}" for k, v in value.items() if k != "part")
    return f"{value['part']}({settings})" if "part" in value else f"({settings})"
