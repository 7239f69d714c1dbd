"""How results look: tables for people, JSON for machines, progress for a terminal."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import NoReturn

from rich.console import Console
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table

from eckart.model.progress import Progress as Told
from eckart.model.progress import quiet

LONGEST = 690  # characters of a sentence; the way out at its end is always shown


def is_first() -> bool:
    """Whether this process is the one that speaks: of several that a launcher started together, the first."""
    return os.environ.get("RANK", "0") == "0"


def out() -> Console:
    """Where results go. Not a terminal: no colours, and lines as wide as they need to be."""
    # A name with brackets is no markup, and a number in a name no number.
    if sys.stdout.isatty():
        return Console(highlight=False, markup=False)
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
    if not sys.stderr.isatty() or not is_first():
        yield quiet
        return
    fixed = Column(no_wrap=True, overflow="ignore")
    columns = (
        TextColumn("{task.description}", table_column=fixed),
        BarColumn(bar_width=12),
        MofNCompleteColumn(table_column=fixed),
        TimeElapsedColumn(table_column=fixed),
        TextColumn("left", table_column=fixed),
        TimeRemainingColumn(table_column=fixed),
        # The only column that gives way on a narrow terminal.
        TextColumn("{task.fields[piece]}", style="dim", markup=False, table_column=Column(ratio=1, no_wrap=True)),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True, expand=True) as bars:
        tasks: dict[str, TaskID] = {}

        def told(stage: str, done: int, total: int, piece: str) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, piece="")
            bars.update(tasks[stage], completed=done, total=total, piece=piece[-40:])

        yield told


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> None:
    """Print a table whose first ``left`` columns are text and whose others are numbers; nothing of it is ever cut off.

    Where it is wider than the terminal, headings take a line a word, and what all names of the first column begin with is
    said once above. A table that is still too wide is left to the terminal to wrap.
    """
    console = out()
    made = _table(console, columns, rows, left)
    if console.is_terminal and made.width is not None and made.width > console.width:
        shared = shared_prefix([row[0] for row in rows])
        if shared:
            console.print(f"names below {shared[:-1]}")
        headings = [column.replace(" %", "\u00a0%").replace(" ", "\n") for column in columns]
        made = _table(console, headings, [(row[0].removeprefix(shared), *row[1:]) for row in rows], left)
    console.print(made, soft_wrap=True)


def _table(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> Table:
    """A table as wide as what is in it."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index < left else "right", no_wrap=True)
    for row in rows:
        made.add_row(*row)
    made.width = Measurement.get(console, console.options.update(max_width=10_000), made).maximum
    return made


def shared_prefix(names: Sequence[str]) -> str:
    """What several dotted names begin with, up to a dot and its own last part excluded.

    >>> shared_prefix(["model.layers.0.q_proj", "model.layers.10.q_proj"]), shared_prefix(["a.b"]), shared_prefix(["a.b", "c"])
    ('model.layers.', '', '')
    """
    if len(names) < 2:
        return ""
    levels = zip(*(name.split(".")[:-1] for name in names), strict=False)
    return "".join(f"{level[0]}." for level in takewhile(lambda level: len(set(level)) == 1, levels))


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
