"""Parts from tables: a class by its name, its settings by theirs, and the parts that it is made of in the same way."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from eckart.errors import EckartError
from eckart.model.files import read_small, shown

LARGEST = 100_000  # bytes of a recipe
NUMBERS: Mapping[Any, object] = {"int": 0, "float": 0.0, "bool": False}
Parts = Mapping[
    str, Mapping[str, type]
]  # what may be named where, by role; a role is a setting, or "Class.setting" for one class alone


def read_table(path: Path) -> dict[str, Any]:
    """The table of a TOML file; raises ``EckartError`` naming the file where there is none."""
    try:
        return tomllib.loads(read_small(path, LARGEST).decode())
    except FileNotFoundError as error:
        raise EckartError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # also text that is not UTF-8, and numbers of thousands of digits
        raise EckartError(f"{path} is not valid TOML: {str(error)[:200]}") from error


def part_of(parts: Parts, role: str, entry: Any, origin: str) -> Any:
    """The part that a table describes: ``part`` names the class, everything else is a setting of it.

    >>> from eckart.stats import ActivationScale
    >>> part_of({"metric": {"ActivationScale": ActivationScale}}, "metric", {"part": "ActivationScale", "power": 1}, "example").power
    1.0

    Raises ``EckartError`` naming ``origin`` and the entry for anything unknown, missing or of another type.
    """
    choices = parts[role]
    if not isinstance(entry, Mapping) or not isinstance(entry.get("part"), str) or entry["part"] not in choices:
        raise EckartError(f"{origin}: [{role.rpartition('.')[2]}] needs part = one of {', '.join(choices)}")
    kind = choices[entry["part"]]
    settings = {key: value for key, value in entry.items() if key != "part" and value is not None}
    needed = [field.name for field in fields(kind) if field.default is MISSING]
    defaults = {field.name: field.default for field in fields(kind)}
    # Numbers without a default are of the type that their field says.
    defaults |= {
        field.name: NUMBERS[field.type] for field in fields(kind) if field.name in needed and field.type in NUMBERS
    }
    for key, default in defaults.items():
        of = _role(parts, kind, key, default)
        if of is not None and (key in settings or key in needed):
            settings[key] = part_of(parts, of, settings.get(key), origin)
        elif key in needed and key not in settings:
            raise EckartError(f"{origin}: {kind.__name__} needs a setting {key}")
    for key, value in settings.items():
        if key not in defaults:
            raise EckartError(
                f"{origin}: {kind.__name__} has no setting {shown(key)}; it has {', '.join(defaults) or 'none'}"
            )
        if _role(parts, kind, key, defaults[key]) is None:
            check_setting(f"{origin}: {kind.__name__}.{key}", value, defaults[key])
    try:
        # A float where a float is meant, so that 1 and 1.0 describe the same part.
        return kind(**{k: float(value) if isinstance(defaults[k], float) else value for k, value in settings.items()})
    except (ValueError, OverflowError) as error:
        told = ", ".join(f"{key} = {shown(value, 20)}" for key, value in settings.items())
        raise EckartError(f"{origin}: {kind.__name__} with {told}: {error}") from error


def _role(parts: Parts, kind: type, setting: str, default: object) -> str | None:
    """The role of what a setting takes, ``None`` where it is a number."""
    if isinstance(default, int | float):
        return None
    return next((role for role in (f"{kind.__name__}.{setting}", setting) if role in parts), None)


def check_setting(name: str, value: Any, default: Any) -> None:
    """Raise ``EckartError`` for a value of another type than the default has."""
    if isinstance(default, bool) or isinstance(value, bool):
        if not (isinstance(default, bool) and isinstance(value, bool)):
            raise EckartError(
                f"{name} is {shown(value)}; give {'true or false' if isinstance(default, bool) else 'a number'}"
            )
        return
    if not isinstance(value, int | float):
        raise EckartError(f"{name} is {shown(value)}; give a number")
    if isinstance(default, int) and not isinstance(value, int):
        raise EckartError(f"{name} is {shown(value)}; give a whole number")
