"""What settings of parts have to be."""

from __future__ import annotations

import math


def check_number(
    name: str, value: float, *, least: float = -math.inf, above: float = -math.inf, most: float = math.inf
) -> None:
    """Raise ``ValueError`` for a setting that is no finite number, or beyond its bounds.

    >>> check_number("damping", 1e-6, least=0)
    >>> check_number("damping", -1, least=0)
    Traceback (most recent call last):
        ...
    ValueError: damping is -1: take a number that is 0 or more
    """
    if math.isfinite(value) and least <= value <= most and value > above:
        return
    told = [
        f"{least:g} or more" if least > -math.inf else "",
        f"above {above:g}" if above > -math.inf else "",
        f"at most {most:g}" if most < math.inf else "",
    ]
    bounds = " and ".join(part for part in told if part) or "finite"
    raise ValueError(f"{name} is {value}: take a number that is {bounds}")
