"""A count of checks, and of those that failed the sentences that say so."""

from __future__ import annotations

from eckart.bound import Bound
from eckart.linalg.remainder import COARSE


class Ledger:
    """Counts checks by kind and collects those that fail."""

    def __init__(self) -> None:
        self.checked: dict[str, int] = {}
        self.failures: list[str] = []

    def check(self, kind: str, holds: bool, sentence: str) -> None:
        """Count a check of this kind; the sentence tells that it failed."""
        self.checked[kind] = self.checked.get(kind, 0) + 1
        if not holds:
            self.failures.append(sentence)

    def truth(self, matrix: str, recorded: Bound, found: Bound, tolerance: float) -> None:
        """Whether a quick bound is true, where ``found`` was measured in another way and comes nearer to the optimum."""
        slack, rounding = found.scale * tolerance, found.upper - found.achieved
        holds = {
            "lower": recorded.lower is not None and found.lower is not None and recorded.lower <= found.lower + slack,
            "achieved": abs(recorded.achieved - found.achieved) <= slack + rounding,
            "upper": found.achieved - slack <= recorded.upper <= found.achieved * (1 + 4 * COARSE) + slack + rounding,
            "scale": abs(recorded.scale - found.scale) <= slack,
        }
        for figure, true in holds.items():
            self.check(
                f"{recorded.norm} figures",
                true,
                f"{matrix}: {figure} in the {recorded.norm} norm is recorded as {getattr(recorded, figure)}, "
                f"which is not true: measured again it is {getattr(found, figure)}",
            )

    def bound(self, matrix: str, recorded: Bound, found: Bound, tolerance: float) -> None:
        """Compare every figure of a bound; ``tolerance`` is relative to the norm of the matrix."""
        slack = found.scale * tolerance
        for figure in ("lower", "achieved", "upper", "scale"):
            old, new = getattr(recorded, figure), getattr(found, figure)
            same = old is None if new is None else old is not None and abs(old - new) <= slack
            self.check(
                f"{recorded.norm} figures",
                same,
                f"{matrix}: {figure} in the {recorded.norm} norm is recorded as {old}, but it is {new}",
            )
        self.check(
            f"{recorded.norm} figures",
            (recorded.delta or {}) == (found.delta or {}),
            f"{matrix}: what is certain in the {recorded.norm} norm is recorded otherwise than it is",
        )
