"""Timing layers: what is made of the times, and what the command says. How long anything takes is no test's business."""

import json

import pytest
import torch
from typer.testing import CliRunner

from eckart.cli.main import app
from eckart.errors import EckartError
from eckart.model import speed
from eckart.model.speed import LayerSpeed, even_rank, layer_speeds


def timed(dense: float, *seconds: float) -> LayerSpeed:
    return LayerSpeed((8, 8), 1, torch.float32, dense, tuple(enumerate(seconds, start=1)))


@pytest.mark.parametrize(
    ("times", "rank"),
    [
        (timed(3.0, 1.0, 2.0, 4.0), 2.5),
        (timed(3.0, 4.0, 5.0), None),
        (timed(3.0, 1.0, 2.0), 2.0),  # beyond what was measured nothing is said
        (timed(3.0, 1.0, 3.0, 5.0), 2.0),
        (timed(3.0, 1.0, 4.0, 2.0), 1 + 2 / 3),  # the first crossing counts
    ],
)
def test_factors_are_faster_up_to_the_first_crossing(times: LayerSpeed, rank: float | None) -> None:
    assert times.break_even == (None if rank is None else pytest.approx(rank))


def test_every_shape_type_and_batch_is_timed_at_ranks_around_the_even_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that counts the runs of layers, so that the figures are known."""
    monkeypatch.setattr(speed, "MOST_COPIES", 2)
    ticks = iter(range(10**6))
    monkeypatch.setattr(speed.time, "perf_counter", lambda: float(next(ticks)))
    found = layer_speeds([(24, 16), (2, 2)], [1, 3], [torch.float32, torch.bfloat16], repeats=3)
    assert [(s.shape, s.batch, s.dtype) for s in found[:4]] == [
        ((24, 16), batch, dtype) for dtype in (torch.float32, torch.bfloat16) for batch in (1, 3)
    ]
    assert even_rank((24, 16)) == 9
    assert [rank for rank, _ in found[0].factored] == [2, 4, 7, 9, 11]
    assert [rank for rank, _ in found[-1].factored] == [1]
    assert {s.dense for s in found} == {0.5}  # one tick for two layers


def test_what_cannot_be_timed_is_refused() -> None:
    for wrong in ({"shapes": [(0, 4)]}, {"shapes": [(4, 4)], "batches": [0]}, {"shapes": [(4, 4)], "repeats": 0}):
        with pytest.raises(EckartError, match="numbers above 0"):
            layer_speeds(**wrong)  # type: ignore[arg-type]


def test_the_command_prints_a_line_each_and_json() -> None:
    options = ["bench", "layers", "--shape", "48x32", "--batch", "2", "--repeats", "1"]
    lines = CliRunner().invoke(app, options).output.splitlines()
    assert lines[1].split()[:5] == ["48", "x", "32", "float32", "2"]
    assert lines[2].split()[3] == "bfloat16"
    assert lines[1].split()[-1] == "19"
    told = json.loads(CliRunner().invoke(app, [*options, "--json"]).output)
    assert [entry["dtype"] for entry in told] == ["float32", "bfloat16"]
    assert list(told[0]["factored_seconds"]) == ["5", "10", "14", "19", "24"]
    assert told[0]["break_even_rank_by_operations"] == 19


def test_a_shape_that_is_none_is_refused() -> None:
    done = CliRunner().invoke(app, ["bench", "layers", "--shape", "48by32"])
    assert isinstance(done.exception, EckartError)
    assert "--shape is '48by32': give outputs and inputs such as 4096x11008" in str(done.exception)
