"""How results look: tables for people, JSON for machines, progress for a terminal."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from eckart.model.run import Progress as Told
from eckart.model.run import quiet

LONGEST = 690  # characters of a sentence; the way out at its end is always shown


def out() -> Console:
    """Where results go. Not a terminal: no colours, and lines as wide as they need to be."""
    if sys.stdout.isatty():
        return Console(markup=False)  # a name with brackets is no markup
    return Console(width=200, soft_wrap=True, highlight=False, markup=False)


def plain(text: str) -> str:
    r"""Text of unknown origin as a terminal may show it.

    >>> print(plain("a\x1b[31m\n"))
    a\x1b[31m\n
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def fail(sentence: str, code: int) -> NoReturn:
    """Print a sentence on the error stream and exit; what it quotes from a file cannot act on the terminal."""
    text = plain(sentence)
    if len(text) > LONGEST:
        text = f"{text[: LONGEST - 200]} ... {text[-190:]}"
    print(f"eckart: {text}", file=sys.stderr)
    raise SystemExit(code)


def print_json(value: object) -> None:
    """One JSON document on the output stream; numbers that JSON has no name for become null."""
    print(json.dumps(_finite(value), indent=1, ensure_ascii=False))


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value


@contextmanager
def progress() -> Iterator[Told]:
    """A bar for each stage with the time that is left, on the error stream; nothing where that is no terminal."""
    if not sys.stderr.isatty():
        yield quiet
        return
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[piece]}", style="dim", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def told(stage: str, done: int, total: int, piece: str) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, piece="")
            bars.update(tasks[stage], completed=done, total=total, piece=piece[-40:])

        yield told


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> Table:
    """A table whose first ``left`` columns are text and whose others are numbers."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index < left else "right", overflow="fold", no_wrap=index > 0)
    for row in rows:
        made.add_row(*row)
    return made


def percent(value: float) -> str:
    """A share for people.

    >>> percent(0.03456), percent(0.0), percent(2.5e-5)
    ('3.46 %', '0 %', '0.0025 %')
    """
    if value == 0:
        return "0 %"
    return f"{100 * value:.2f} %" if value >= 1e-3 else f"{100 * value:.2g} %"


def number(value: float | None, digits: int = 4) -> str:
    """A number for people; a dash where there is none.

    >>> number(1234.5678), number(None), number(float("inf"))
    ('1235', '-', 'inf')
    """
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}g}"
