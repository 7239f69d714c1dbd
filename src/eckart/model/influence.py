"""How much each block of a model matters."""

from __future__ import annotations

from pathlib import Path

from eckart.model.passing import pass_through
from eckart.model.run import Run
from eckart.model.survey import embed_original


def block_influence(run: Run) -> list[float]:
    """How much each block turns the stream: ``1 - mean cos`` between what it is given and what it gives."""
    embed_original(run)
    found: list[float] = []

    def measure(block: int, source: Path, there: Path) -> None:
        def make() -> tuple[object, list[str]]:
            run.walking().run_block(block, source, there)
            return run.walking().turning(source, there), [there.name]

        value = run.journal.once(f"influence/{block}", make)
        assert isinstance(value, float)
        found.append(value)

    last = pass_through(run, range(run.blocks), lambda block: f"turned-{block:04d}.bin", measure, "influence")
    run.journal.drop(last)
    return found
