"""What the command line prints, character by character, of results put together by hand."""

import math
import resource
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from eckart.bound import Bound
from eckart.cli import reports, show
from eckart.measure.spectrum import Spectrum
from eckart.model.certificate import BondRecord, MatrixRecord, Removal
from eckart.model.engine import Compressed, Planned, PlannedMatrix
from eckart.model.evaluate import Score
from eckart.model.inspect import Inspection, MatrixRow
from eckart.model.progress import peak_memory
from eckart.model.targets import Untouched, natural
from eckart.model.verify import Verification

GRAM = Bound(norm="input gram", lower=1.0, achieved=1.25, upper=1.5, scale=10.0)
PLAIN = Bound(norm="frobenius", lower=2.0, achieved=3.0, upper=4.0, scale=20.0)
SPECTRAL = Bound(norm="spectral", lower=0.25, achieved=0.5, upper=0.75, scale=2.0, delta={"upper": 1e-10})
NOTHING = Bound(norm="frobenius", lower=0.0, achieved=0.0, upper=0.0, scale=7.0)


def matrix(name: str, rank: int | None, *bounds: Bound) -> MatrixRecord:
    kind = "dense" if rank is None else "factors"
    return MatrixRecord(name=name, shape=(48, 64), operator=kind, rank=rank, bytes=2_345, bounds=bounds)


DONE = Compressed(
    folder=Path("small"),
    matrices=(matrix("a.q", 3, GRAM, PLAIN, SPECTRAL), matrix("a.k", None, NOTHING, replace(NOTHING, norm="spectral"))),
    bonds=(),
    dropped=(),
    heads=(),
    removals=(Removal("h.0.hidden", 8, 2.125),),
    untouched=(*(Untouched(f"t{i}", (3,), "outside of the blocks") for i in range(5)), Untouched("x", (2,), "no")),
    target_bytes=(40_000, 10_000),
    file_bytes=(8_000_000, 6_000_000),
    losses={"uniform": 2.5, "original": 2.0, "allocated": 2.25},
    kept="allocated",
    gap=0.125,
    peak_memory=123_000_000,
)


@pytest.fixture(autouse=True)
def fixed_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "peak_memory", lambda: 321_000_000)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_a_compression(capsys: pytest.CaptureFixture[str]) -> None:
    reports.print_compressed(DONE)
    assert lines(capsys) == [
        "matrix    shape   rank   bytes  error (input gram)  over optimum  error (spectral)",
        "a.q     48 x 64      3  2.3 kB             12.50 %        1.2500           25.00 %",
        "a.k     48 x 64  dense  2.3 kB                 0 %             -               0 %",
        "",
        "linear maps     40.0 kB ->   10.0 kB  (0.2500 of before)",
        "weight files     8.0 MB ->    6.0 MB  (0.7500 of before)",
        "nats per token on the calibration text: original 2.0000, allocated 2.2500, uniform 2.5000",
        "allocated ranks were kept",
        "left as it is: t0, t1, t2 and 2 more: outside of the blocks",
        "left as it is: x: no",
        "peak memory 321.0 MB",
        "written to small",
    ]


def test_bonds_and_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    """Groups of heads in one line, with the largest figures among them."""
    read = Bound(norm="read", lower=1.0, achieved=2.0, upper=2.5, scale=10.0)
    bonds = (
        BondRecord("h.0.hidden", 96, 64, (0, 1), read),
        BondRecord("h.0.values.0", 12, 8, None, replace(read, lower=0.0)),
        BondRecord("h.0.values.1", 12, 8, None, replace(read, lower=1.6)),
        BondRecord("h.1.hidden", 96, 64, (2,), None),
    )
    reports.print_compressed(replace(DONE, matrices=(), bonds=bonds, dropped=("h.2", "h.4"), losses={}))
    assert lines(capsys)[:8] == [
        "bond                   size  left  error of what is read  over optimum",
        "h.0.hidden               96    64                20.00 %        2.0000",
        "h.0.values (2 groups)    12     8                20.00 %        1.2500",
        "h.1.hidden               96    64                      -             -",
        "",
        "blocks left out: h.2, h.4",
        "linear maps     40.0 kB ->   10.0 kB  (0.2500 of before)",
        "weight files     8.0 MB ->    6.0 MB  (0.7500 of before)",
    ]


def test_what_is_said_of_the_ranks_that_were_kept(capsys: pytest.CaptureFixture[str]) -> None:
    worse = "allocated ranks came out worse than uniform ones, so uniform ranks were kept"
    reports.print_compressed(replace(DONE, kept="uniform"))
    assert worse in (told := lines(capsys))
    assert "allocated ranks were kept" not in told
    reports.print_compressed(replace(DONE, kept="uniform", losses={"original": 2.0, "uniform": 2.5}))
    told = lines(capsys)
    assert "nats per token on the calibration text: original 2.0000, uniform 2.5000" in told
    assert not any("kept" in line for line in told)
    reports.print_compressed(replace(DONE, kept="uniform", losses={}))
    assert not any("nats" in line or "kept" in line for line in lines(capsys))


def test_the_heading_names_the_metric_of_the_first_matrix_that_was_factored(capsys: pytest.CaptureFixture[str]) -> None:
    reports.print_compressed(replace(DONE, matrices=DONE.matrices[::-1]))
    assert "error (input gram)" in lines(capsys)[0]
    reports.print_compressed(replace(DONE, matrices=DONE.matrices[1:]))
    assert "error (frobenius)" in lines(capsys)[0]


def test_an_empty_original_has_no_share(capsys: pytest.CaptureFixture[str]) -> None:
    reports.print_compressed(replace(DONE, target_bytes=(0, 0)))
    assert "linear maps         0 B ->       0 B  (1.0000 of before)" in lines(capsys)


def test_three_untouched_matrices_are_all_named(capsys: pytest.CaptureFixture[str]) -> None:
    reports.print_compressed(replace(DONE, untouched=DONE.untouched[:3]))
    assert "left as it is: t0, t1, t2: outside of the blocks" in lines(capsys)
    reports.print_compressed(replace(DONE, untouched=DONE.untouched[:4]))
    assert "left as it is: t0, t1, t2 and 1 more: outside of the blocks" in lines(capsys)


PLAN = Planned(
    rows=(
        PlannedMatrix("a.q", (48, 64), "factors", 3, 2_345, 0.0345),
        PlannedMatrix("k", (4, 6), "dense", None, 7, 0.0),
    ),
    untouched=(Untouched("x", (2,), "no"),),
    target_bytes=(40_000, 10_000),
    file_bytes=(8_000_000, 6_000_000),
    scratch_bytes=5_000,
    work_folder=Path(".small.eckart-work"),
)


def test_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    reports.print_plan(PLAN)
    assert lines(capsys) == [
        "matrix    shape  operator  rank   bytes  predicted error",
        "a.q     48 x 64   factors     3  2.3 kB           3.45 %",
        "k         4 x 6     dense     -     7 B              0 %",
        "",
        "linear maps     40.0 kB ->   10.0 kB  (0.2500 of before)",
        "weight files     8.0 MB ->    6.0 MB  (0.7500 of before)",
        "left as it is: x: no",
        "temporary activation files: 5.0 kB",
        "nothing was written to the output; measurements are kept in .small.eckart-work, and the same command without "
        "--dry-run goes on from them",
    ]


def test_the_same_for_machines() -> None:
    assert reports.compressed_json(DONE) == {
        "folder": "small",
        "bonds": [],
        "dropped": [],
        "heads": [],
        "removals": [{"name": "h.0.hidden", "left": 8, "loss": 2.125}],
        "target_bytes": {"before": 40_000, "after": 10_000},
        "file_bytes": {"before": 8_000_000, "after": 6_000_000},
        "losses": {"uniform": 2.5, "original": 2.0, "allocated": 2.25},
        "kept": "allocated",
        "gap": 0.125,
        "peak_memory": 123_000_000,
        "matrices": [entry.to_json() for entry in DONE.matrices],
        "untouched": [{"name": u.name, "shape": list(u.shape), "reason": u.reason} for u in DONE.untouched],
    }
    planned = reports.planned_json(PLAN)
    assert planned["matrices"][0] == {
        "name": "a.q",
        "shape": [48, 64],
        "operator": "factors",
        "rank": 3,
        "bytes": 2_345,
        "predicted_error": 0.0345,
    }
    assert (planned["scratch_bytes"], planned["work_folder"]) == (5_000, ".small.eckart-work")
    assert planned["target_bytes"] == {"before": 40_000, "after": 10_000}
    assert planned["untouched"] == [{"name": "x", "shape": [2], "reason": "no"}]


def test_scores(capsys: pytest.CaptureFixture[str]) -> None:
    score = Score(tokens=12_345, total=12_345 * math.log(20.0))
    reports.print_scores({"small": {"texts/a.txt": score}})
    assert lines(capsys) == [
        "model  text   tokens  nats per token  perplexity",
        "small  a.txt  12,345          2.9957       20.00",
    ]


def test_a_verification(capsys: pytest.CaptureFixture[str]) -> None:
    checked = {"hashes": 3, "frobenius figures": 10}
    reports.print_verification(Verification(checked, ("the losses",), ()))
    assert lines(capsys) == [
        "checked: 3 hashes, 10 frobenius figures",
        "not rechecked: the losses",
        "everything that was checked holds",
    ]
    reports.print_verification(Verification(checked, (), tuple(f"number {i}" for i in range(12))))
    assert lines(capsys) == [
        "checked: 3 hashes, 10 frobenius figures",
        *(f"FAILED: number {i}" for i in range(10)),
        "and 2 more",
    ]
    reports.print_verification(Verification(checked, (), tuple(f"number {i}" for i in range(10))))
    assert "more" not in lines(capsys)[-1]


def test_spectra(capsys: pytest.CaptureFixture[str]) -> None:
    values = torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)
    row = MatrixRow("a.q", (3, 5), torch.float32, "factors", 3, 96, Spectrum((3, 5), values))
    dense = MatrixRow("k", (3, 5), torch.float32, "dense", None, 60, Spectrum((3, 5), values * 0))
    reports.print_spectra(Inspection((row, dense), ()))
    # Stable rank 21 / 16, effective rank exp(H(4/7, 2/7, 1/7)), energies 16, 20, 21 of 21.
    assert lines(capsys) == [
        "matrix  shape  stored  stable rank  effective rank  90 %  99 %  99.9 %  condition  tail exponent",
        "a.q     3 x 5  rank 3        1.312             2.6     2     3       3          4              -",
        "k       3 x 5   dense            -               -     0     0       0        inf              -",
    ]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the unit of ru_maxrss is that of Linux")
def test_peak_memory_is_in_bytes() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert before <= peak_memory() <= before + 1024 * 1024


def test_layer_ten_comes_after_layer_nine_and_numbers_before_words() -> None:
    names = ["b.10.x", "b.9.x", "b.norm", "a", "b.9.w", "b.9"]
    assert sorted(names, key=natural) == ["a", "b.9", "b.9.w", "b.9.x", "b.10.x", "b.norm"]


def test_what_names_begin_with_is_told_once() -> None:
    prefix = show.shared_prefix
    assert prefix(["model.layers.0.q_proj", "model.layers.10.q_proj"]) == "model.layers."
    assert prefix(["model.layers.0.q_proj", "model.layers.0.q_proj"]) == "model.layers.0."
    assert prefix(["model.a.q", "other.a.q"]) == ""
    assert prefix(["a.b"]) == prefix([]) == prefix(["a.b", "c"]) == ""
