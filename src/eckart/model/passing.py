"""A pass through the blocks of a model: each is given what the one before it gave, in a work file that goes when it has been read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from eckart.model.run import Run
from eckart.model.survey import original


def pass_through(
    run: Run,
    blocks: Iterable[int],
    work_file: Callable[[int], str],
    each: Callable[[int, Path, Path], None],
    stage: str,
) -> str:
    """Call ``each`` with every one of ``blocks``, the file of hidden states that it is given and the one that it is to fill.

    Gives the name of the last one. The first block is given the original model's input. ``each`` notes in the journal what it finishes,
    and then what it was given is dropped, except that input, with which other passes begin. ``work_file`` names the file of hidden states
    before a block: passes of one journal need names of their own. Progress is told as that of ``stage``.
    """
    source = original(0)
    for block in blocks:
        there = work_file(block + 1)
        each(block, run.file(source), run.file(there))
        if source != original(0):
            run.journal.drop(source)
        source = there
        run.progress(stage, block + 1, run.blocks, run.skeleton.blocks[block])
    return source


def last_loss(run: Run, step: str, source: str) -> float:
    """The loss that the hidden states after the last block lead to, as the piece ``step`` of the journal; their file is dropped."""
    loss = run.journal.once(step, lambda: (run.walking().tail(run.file(source))[0], []))
    run.journal.drop(source)
    assert isinstance(loss, float)
    return loss
