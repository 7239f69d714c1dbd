"""What is done otherwise for large matrices, on small ones sent down the same routes; and several matrices at a time."""

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from market import as_if_large, lapack_values
from runs import CALIBRATED, calibration_text, cli, edit_json, tiny, tree

from eckart.kernels import randomized
from eckart.model.checkpoint import Checkpoint
from eckart.model.workers import side_by_side

RECIPES = {
    "svd": ("--recipe", "svd"),
    "svd allocated": ("--recipe", "svd", "--ranks", "allocated"),
    "asvd uniform": ("--recipe", "asvd", "--ranks", "uniform"),
    "svd-llm": (),
}


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_large(monkeypatch)
    as_if_large(monkeypatch, "model.verify", "model.recheck")
    # A tail of a few dozen values falls too fast for the extrapolation; any result will do here.
    monkeypatch.setitem(randomized.ENERGY, torch.float32, 0.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("model") / "model", sharded=True)


def compressed(model: Path, out: Path, kind: str, keep: str = "0.3", *, quick: bool = False) -> tuple[str, ...]:
    """Compress; the options with which the result is verified against everything."""
    text = calibration_text(out.parent / "text.txt")
    calibrated = ("--calibration", str(text)) if kind != "svd" else ()
    tokens = CALIBRATED if calibrated else ()
    outcome = cli(
        "compress",
        model,
        "-o",
        out,
        "--keep",
        keep,
        *RECIPES[kind],
        *calibrated,
        *tokens,
        *(["--quick"] if quick else []),
    )
    assert outcome.code == 0, outcome.err
    return ("--against", str(model), *calibrated)


def bounds(out: Path) -> list[tuple[str, dict[str, Any]]]:
    table = json.loads((out / "eckart.json").read_text())
    return [(m["name"], bound) for m in table["matrices"] if m["rank"] for bound in m["bounds"]]


@pytest.mark.parametrize("kind", RECIPES)
def test_quick_bounds_hold_and_leave_the_spectral_norm_out(model: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    against = compressed(model, out, kind, quick=True)
    assert {bound["norm"] for _, bound in bounds(out)} == {
        "svd": {"frobenius"},
        "svd allocated": {"frobenius"},
        "asvd uniform": {"activation scale", "frobenius"},
        "svd-llm": {"input gram", "frobenius"},
    }[kind]
    for known in (against, against[:2]):  # with the calibration text and without
        outcome = cli("verify", out, *known)
        assert outcome.code == 0, outcome.out
    if kind in ("asvd uniform", "svd-llm"):
        assert all((bound["lower"] is None) == (bound["norm"] == "frobenius") for _, bound in bounds(out))
    else:
        checkpoint, certain = Checkpoint(model), [b for _, b in bounds(out) if "delta" not in b]
        assert certain
        for name, bound in bounds(out):
            optimum = float(
                np.linalg.norm(lapack_values(checkpoint.read(f"{name}.weight"))[checkpoint_rank(out, name) :])
            )
            assert bound["lower"] <= optimum <= bound["upper"]


@pytest.mark.parametrize(
    ("figure", "change"),
    [
        ("lower", lambda bound: bound["achieved"]),
        ("achieved", lambda bound: 0.98 * bound["achieved"]),
        ("achieved", lambda bound: bound["upper"]),
        ("upper", lambda bound: 1.1 * bound["upper"]),
        ("scale", lambda bound: 1.01 * bound["scale"]),
    ],
)
def test_quick_figures_that_are_not_true_are_found(
    model: Path, tmp_path: Path, figure: str, change: Callable[[dict[str, float]], float]
) -> None:
    out = tmp_path / "out"
    against = compressed(model, out, "svd", quick=True)
    chosen = next(name for name, bound in bounds(out) if bound["lower"] < 0.9 * bound["achieved"])

    def falsify(table: dict[str, Any]) -> None:
        bound = next(m for m in table["matrices"] if m["name"] == chosen)["bounds"][0]
        bound["upper"] = max(bound["upper"], 1.01 * bound["achieved"])
        bound[figure] = change(bound)

    edit_json(out / "eckart.json", falsify)
    outcome = cli("verify", out, *against)
    assert outcome.code == 1, outcome.out
    assert f"{chosen}: {figure} in the frobenius norm" in outcome.out


def test_a_quick_record_without_figures_is_found(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    against = compressed(model, out, "svd", quick=True)
    chosen = bounds(out)[0][0]

    def empty(table: dict[str, Any]) -> None:
        next(m for m in table["matrices"] if m["name"] == chosen)["bounds"] = []

    edit_json(out / "eckart.json", empty)
    outcome = cli("verify", out, *against)
    assert outcome.code == 1
    assert f"{chosen}: no figure in the frobenius norm is recorded" in outcome.sentence


def test_a_lower_figure_that_is_too_modest_is_still_true(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    against = compressed(model, out, "svd", quick=True)
    chosen = next(name for name, bound in bounds(out) if bound["lower"] < 0.9 * bound["achieved"])

    def halve(table: dict[str, Any]) -> None:
        next(m for m in table["matrices"] if m["name"] == chosen)["bounds"][0]["lower"] *= 0.5

    edit_json(out / "eckart.json", halve)
    assert cli("verify", out, *against).code == 0


def test_that_bounds_are_quick_cannot_be_claimed_or_denied(model: Path, tmp_path: Path) -> None:
    for quick in (True, False):
        out = tmp_path / f"quick {quick}"
        against = compressed(model, out, "svd", quick=quick)

        def turn(table: dict[str, Any], quick: bool = quick) -> None:
            table["request"]["quick"] = not quick

        edit_json(out / "eckart.json", turn)
        outcome = cli("verify", out, *against)
        assert outcome.code == 1
        assert "norm" in outcome.sentence


@pytest.mark.parametrize("kind", RECIPES)
def test_every_recipe_holds(model: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    against = compressed(model, out, kind)
    probable = [name for name, bound in bounds(out) if "lower" in bound.get("delta", {})]
    assert probable
    outcome = cli("verify", out, *against)
    assert outcome.code == 0, outcome.out


def test_probable_bounds_are_true_and_tell_something(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    compressed(model, out, "svd")
    checkpoint = Checkpoint(model)
    ratios = []
    for name, bound in bounds(out):
        if "lower" not in bound.get("delta", {}):
            continue
        rank = checkpoint_rank(out, name)
        optimum = float(np.linalg.norm(lapack_values(checkpoint.read(f"{name}.weight"))[rank:]))
        assert bound["lower"] <= optimum <= bound["upper"]
        ratios.append(optimum / bound["lower"])
    assert np.median(ratios) <= 1.1


def checkpoint_rank(out: Path, name: str) -> int:
    table = json.loads((out / "eckart.json").read_text())
    return int(next(m["rank"] for m in table["matrices"] if m["name"] == name))


@pytest.mark.parametrize("norm", ["frobenius", "spectral"])
@pytest.mark.parametrize(("figure", "factor"), [("lower", 0.99), ("upper", 1.01), ("scale", 1.01), ("lower", 0.0)])
def test_falsified_figures_are_found(model: Path, tmp_path: Path, norm: str, figure: str, factor: float) -> None:
    out = tmp_path / "out"
    against = compressed(model, out, "svd")
    chosen = next(name for name, bound in bounds(out) if "lower" in bound.get("delta", {}))

    def falsify(table: dict[str, Any]) -> None:
        matrix = next(m for m in table["matrices"] if m["name"] == chosen)
        next(b for b in matrix["bounds"] if b["norm"] == norm)[figure] *= factor

    edit_json(out / "eckart.json", falsify)
    outcome = cli("verify", out, *against)
    assert outcome.code == 1
    assert f"{chosen}: {figure} in the {norm} norm" in outcome.out


def test_a_probable_figure_cannot_be_called_certain(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    against = compressed(model, out, "svd")
    chosen = next(name for name, bound in bounds(out) if "lower" in bound.get("delta", {}))

    def falsify(table: dict[str, Any]) -> None:
        bound = next(m for m in table["matrices"] if m["name"] == chosen)["bounds"][0]
        del bound["delta"]
        bound["certain"]["lower"] = True

    edit_json(out / "eckart.json", falsify)
    assert cli("verify", out, *against).code == 1


def test_a_plan_foretells_the_errors_without_a_text(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = cli("compress", model, "-o", out, "--keep", "0.3", *RECIPES["svd"], "--dry-run", "--json")
    predicted = {row["name"]: row["predicted_error"] for row in json.loads(told.out)["matrices"]}
    compressed(model, out, "svd")
    for name, bound in bounds(out):
        if bound["norm"] == "frobenius":
            assert predicted[name] == pytest.approx(bound["achieved"] / bound["scale"], rel=5e-3)


# ---- several at a time ----------------------------------------------------------------------------------------------


@pytest.fixture
def threads() -> Any:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_the_number_of_threads_changes_no_byte_of_a_fit(model: Path, tmp_path: Path, threads: Any) -> None:
    found = []
    for count in (1, 2, 3):
        threads(count)
        compressed(model, tmp_path / str(count), "svd")
        found.append(tree(tmp_path / str(count)))
        table = json.loads(found[-1]["eckart.json"])
        assert table["environment"].pop("threads") == count
        found[-1]["eckart.json"] = json.dumps(table).encode()
    assert found[0] == found[1] == found[2]


def test_items_come_in_order_each_on_one_thread(threads: Any) -> None:
    threads(3)
    busy: set[str] = set()

    def work(item: int) -> tuple[int, int]:
        busy.add(threading.current_thread().name)
        time.sleep(0.02 * (5 - item % 5))
        return item, torch.get_num_threads()

    assert list(side_by_side(work, range(10))) == [(item, 1) for item in range(10)]
    assert len(busy) == 3
    assert torch.get_num_threads() == 3
    assert list(side_by_side(work, [])) == []


def test_no_more_threads_compute_than_there_are_cores_for(threads: Any) -> None:
    """Two matrices at a time, each with threads of its own, would be four threads on two cores."""
    threads(2)
    matrix = torch.randn(400, 400)
    counts: list[int] = []

    def work(_: int) -> None:
        for _ in range(20):
            matrix @ matrix
        counts.append(len(os.listdir("/proc/self/task")))

    if not Path("/proc/self/task").exists():
        pytest.skip("threads are counted by means of Linux")
    before = len(os.listdir("/proc/self/task"))
    list(side_by_side(work, range(6)))
    assert max(counts) <= before + 2


def test_a_failure_stops_the_rest_and_leaves_the_threads_as_they_were(threads: Any) -> None:
    threads(2)
    begun = []

    def work(item: int) -> int:
        begun.append(item)
        time.sleep(0.01)
        if item == 1:
            raise ValueError("one is refused")
        return item

    with pytest.raises(ValueError, match="one is refused"):
        list(side_by_side(work, range(50)))
    assert len(begun) < 50
    assert torch.get_num_threads() == 2
