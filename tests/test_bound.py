import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eckart.bound import Bound

sizes = st.floats(0, 1e30)


def bound(**changes: object) -> Bound:
    return Bound(**({"norm": "frobenius", "lower": 1.0, "achieved": 2.0, "upper": 3.0, "scale": 8.0} | changes))


@given(st.lists(sizes, min_size=3, max_size=3).map(sorted), sizes, st.booleans())
def test_figures_in_order_survive_json(figures: list[float], scale: float, known: bool) -> None:
    lower, achieved, upper = figures
    one = bound(lower=lower if known else None, achieved=achieved, upper=upper, scale=scale)
    assert Bound.from_json(json.loads(json.dumps(one.to_json()))) == one


@pytest.mark.parametrize(
    "changes",
    [
        {"lower": 2.1},
        {"achieved": 3.1},
        {"achieved": 0.9},
        {"upper": 1.9},
        {"lower": -1e-300},
        {"lower": None, "achieved": -1.0},
        {"upper": math.inf},
        {"lower": math.nan},
        {"achieved": math.nan},
        {"upper": math.nan},
        {"lower": math.inf, "achieved": math.inf, "upper": math.inf},
    ],
)
def test_figures_out_of_order_are_refused(changes: dict[str, float | None]) -> None:
    with pytest.raises(ValueError, match=r"not in order.*\(frobenius norm\)"):
        bound(**changes)


def test_equal_figures_are_in_order() -> None:
    assert bound(lower=2.0, upper=2.0).excess == 1.0
    assert bound(lower=0.0, achieved=0.0, upper=0.0).relative == 0.0


def test_relative_error_and_excess() -> None:
    assert bound().relative == 0.25
    assert bound().excess == 2.0
    assert bound(lower=None).excess is None
    assert bound(lower=0.0).excess is None  # nothing to divide by: a lossless rank
    assert bound(lower=0.0, achieved=0.0, scale=0.0).relative == 0.0
    assert bound(scale=0.0).relative == math.inf


def test_what_is_only_probable_says_so() -> None:
    certain, probable = bound(), bound(delta={"upper": 1e-10})
    assert certain.to_json()["certain"] == {"lower": True, "achieved": True, "upper": True}
    assert "delta" not in certain.to_json()
    assert probable.to_json()["certain"] == {"lower": True, "achieved": True, "upper": False}
    assert probable.to_json()["delta"] == {"upper": 1e-10}
    assert Bound.from_json(probable.to_json()) == probable
    assert bound(lower=None).to_json()["certain"] == {"achieved": True, "upper": True}


@pytest.mark.parametrize("key", ["norm", "lower", "achieved", "upper", "scale"])
def test_a_record_without_a_figure_is_refused(key: str) -> None:
    record = bound().to_json()
    del record[key]
    with pytest.raises(KeyError, match=key):
        Bound.from_json(record)


@pytest.mark.parametrize(("key", "value"), [("achieved", "2"), ("upper", True), ("scale", None), ("delta", [0.1])])
def test_a_record_of_other_types_is_refused(key: str, value: object) -> None:
    with pytest.raises(TypeError, match=key):
        Bound.from_json(bound().to_json() | {key: value})


def test_a_record_that_was_tampered_with_is_refused() -> None:
    with pytest.raises(ValueError, match="not in order"):
        Bound.from_json(bound().to_json() | {"achieved": 0.5})


def test_bounds_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        bound().achieved = 0.0  # type: ignore[misc]
