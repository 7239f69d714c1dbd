"""What long work tells of itself. It imports nothing: a command that only answers about itself needs no torch."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable

# Told after every finished piece: the stage, how many pieces of it are done and how many there are, and the piece.
Progress = Callable[[str, int, int, str], None]


def quiet(stage: str, done: int, total: int, piece: str) -> None:
    """The progress of a library call: none."""


def peak_memory() -> int:
    """The largest resident size of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if os.uname().sysname == "Darwin" else peak * 1024
