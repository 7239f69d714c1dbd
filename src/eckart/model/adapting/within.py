"""Which model adapters train in: the one that they are for, or a smaller one that is made of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from eckart.adapters.base import Base, LessAll
from eckart.adapters.forms import Form
from eckart.adapters.stored import Stored
from eckart.model.certificate import NAME
from eckart.model.compression import Narrow
from eckart.model.engine import compress
from eckart.model.files import written_whole
from eckart.model.output import work_folder
from eckart.model.progress import Progress
from eckart.model.run import Request
from eckart.model.surgery.lift import lift
from eckart.model.surgery.reading import read
from eckart.model.surgery.writing import put_into
from eckart.model.text import ids_for

SMALLER, TEXT = "smaller", "calibration.txt"  # in the work folder


class Within(Protocol):
    """Makes the model that adapters train in, and of what trained there an adapter of the model that was named."""

    def check(self, form: Form, base: Base, stored: Stored) -> None:
        """Raise ``ValueError`` for parts whose adapters can't be brought back."""

    def model(
        self,
        folder: Path,
        work: Path,
        records: Sequence[Mapping[str, Any]],
        *,
        length: int,
        seed: int,
        progress: Progress,
    ) -> Path:
        """The folder of the model to train in, made in a work folder unless it is there; windows have ``length`` tokens at most."""

    def bring_back(self, adapter: Path, model: Path, named: str | Path) -> None:
        """Make of the adapter that was exported to a folder one of the model that was named."""


@dataclass(frozen=True)
class Itself:
    """The model that the adapters are for."""

    def check(self, form: Form, base: Base, stored: Stored) -> None:
        """Nothing is to be checked."""

    def model(
        self,
        folder: Path,
        work: Path,
        records: Sequence[Mapping[str, Any]],
        *,
        length: int,
        seed: int,
        progress: Progress,
    ) -> Path:
        """That folder."""
        return folder

    def bring_back(self, adapter: Path, model: Path, named: str | Path) -> None:
        """It is one already."""


@dataclass(frozen=True)
class Smaller:
    """The model with fewer units, of which the share ``keep`` of the bytes is left; factors are lifted to the units that were left.

    What ``narrow`` measures it measures on the records that are trained on. What of the model is left out is never loaded in training.

    Raises ``ValueError`` for a share that is not above 0 and below 1, and for what leaves out more than units inside of blocks.
    """

    narrow: Narrow
    keep: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.keep) and 0 < self.keep < 1):
            raise ValueError(f"a smaller model keeps a share above 0 and below 1 of the bytes, not {self.keep:g}")
        beside = [name for name in ("stream", "values", "keys", "depth", "maps", "vocabulary") if self._has(name)]
        if beside:
            raise ValueError(f"adapters are lifted to hidden units and groups of heads: leave {beside[0]} out")

    def _has(self, name: str) -> bool:
        return getattr(self.narrow, name) is not None

    def check(self, form: Form, base: Base, stored: Stored) -> None:
        """Two factors are what can be lifted, and they have to fit the weights of the larger model."""
        if not form.is_factored:
            raise ValueError(
                f"{type(form).__name__} is no pair of factors, which is what can be lifted to a larger model: take another form, or leave "
                "within out"
            )
        if isinstance(base, LessAll):
            raise ValueError(
                "without the weight of the smaller model there is no pair of factors to lift: leave LessAll out"
            )
        if not stored.keeps_the_weight:
            raise ValueError(
                f"weights of the smaller model that are {type(stored).__name__} are none of the larger one: leave stored or within out"
            )

    def model(
        self,
        folder: Path,
        work: Path,
        records: Sequence[Mapping[str, Any]],
        *,
        length: int,
        seed: int,
        progress: Progress,
    ) -> Path:
        """The smaller model, which a run that was killed goes on to make."""
        small = work / SMALLER
        if (small / NAME).exists() and not work_folder(small).exists():
            return small
        request = Request(keep=self.keep, seed=seed)
        if self.narrow.reads_text:
            text = "\n".join(said(record) for record in records)
            with written_whole(work / TEXT) as handle:
                handle.write(text.encode())
            window = min(length, len(ids_for(folder, text)))
            request = Request(keep=self.keep, seed=seed, calibration=work / TEXT, window=window)
        compress(folder, small, self.narrow, request, progress=progress)
        return small

    def bring_back(self, adapter: Path, model: Path, named: str | Path) -> None:
        """Its factors at the places that the units had."""
        put_into(lift(read(adapter), model, named), adapter)


def said(record: Mapping[str, Any]) -> str:
    """The text of a record, or its prompt and completion.

    >>> said({"prompt": "a", "completion": "b"}), said({"text": "c", "label": 1})
    ('ab', 'c')
    """
    return str(record["text"]) if "text" in record else f"{record['prompt']}{record['completion']}"
