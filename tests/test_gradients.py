"""Recipes that go by gradients of weights, against autograd on the whole model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models import ARCHITECTURES
from runs import Killer, calibration_text, cli, edit_json, tiny, tree
from torch import Tensor
from transformers import AutoModelForCausalLM

import eckart
from eckart.allocate import EqualMarginalLoss, Uniform
from eckart.metric import Metric
from eckart.model import engine
from eckart.model.output import work_folder
from eckart.model.progress import quiet
from eckart.model.run import Request, Run, observed
from eckart.model.survey import measure_columns, original
from eckart.recipes import fwsvd
from eckart.stats import FisherColumns, Moments

OPTIONS: dict[str, Any] = {"tokens": 256, "window": 32}
KINDS = (
    "llama",
    "llama_tied",
    "gpt2",
    "opt",
    "gemma2",
)  # plain, tied, transposed weights, flattened tokens, two norms a branch


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibration_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("model") / "model")


def opened(model: Path, out: Path, text: Path, *only: str) -> Run:
    request = Request(keep=0.7, calibration=text, only=only, **OPTIONS)
    return engine._open_run(model, out, fwsvd(), request, restart=False, progress=quiet)


def by_autograd(model: Path, run: Run) -> dict[str, Tensor]:
    """``sum_w sum_i (dl_w / dW_ij)^2`` of every map, the whole model run on one window at a time."""
    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    names = [target.name for target in run.targets]
    windows = run.walking().windows
    with torch.no_grad():
        shares = whole(input_ids=windows, use_cache=False).logits.float().softmax(-1)
    labels = torch.multinomial(shares.flatten(0, 1), 1, generator=run.rng("labels")).reshape(windows.shape)
    found: dict[str, Tensor] = {}
    for window, drawn in zip(windows, labels, strict=True):
        whole.zero_grad()
        logits = whole(input_ids=window[None], use_cache=False).logits[0].float()
        torch.nn.functional.cross_entropy(logits, drawn, reduction="sum").backward()
        for name in names:
            module = whole.get_submodule(name)
            gradient = module.weight.grad.double()
            oriented = gradient.T if type(module).__name__ == "Conv1D" else gradient
            found[name] = found.get(name, 0) + oriented.square().sum(0)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_columns_weigh_as_much_as_their_gradients(kind: str, text: Path, tmp_path: Path) -> None:
    folder = ARCHITECTURES[kind](tmp_path / "model")
    run = opened(folder, tmp_path / "out", text)
    measure_columns(run)
    expected = by_autograd(folder, run)
    tokens = run.walking().windows.numel()
    checked = 0
    for block in range(run.blocks):
        targets = run.in_block(block)
        moments = run.walking().run_block(block, run.file(original(block)), None, observe=observed(targets))
        for name, metric in run.metrics(targets, moments).items():
            assert metric.name == "fisher columns"
            assert metric.right is not None
            scale = (expected[name] / tokens).sqrt()
            assert metric.right.tolist() == pytest.approx(scale.tolist(), rel=2e-3, abs=2e-4 * float(scale.max()))
            checked += 1
    assert checked == len(run.targets)
    run.journal.close()


def test_a_head_is_weighed_as_the_maps_inside(model: Path, text: Path, tmp_path: Path) -> None:
    run = opened(model, tmp_path / "out", text, "lm_head", "q_proj")
    measure_columns(run)
    expected = by_autograd(model, run)["lm_head"]
    heads = run.in_block(None)
    _, moments = run.walking().tail(run.file(original(run.blocks)), observe=observed(heads))
    right = run.metrics(heads, moments)["lm_head"].right
    assert right is not None
    assert (right**2 * run.walking().windows.numel()).tolist() == pytest.approx(expected.tolist(), rel=2e-3)
    run.journal.close()


def test_a_column_is_never_free() -> None:
    moments = Moments.zeros(3, gram=False)
    moments.add(torch.ones(2, 3))
    assert FisherColumns()(moments) == Metric.plain()  # no gradient came back here
    moments.gradient = torch.zeros(3)
    assert FisherColumns()(moments) == Metric.plain()
    moments.gradient = torch.tensor([8.0, 0.0, 2.0])
    right = FisherColumns(floor=1e-3)(moments + moments).right
    assert right is not None
    assert right.tolist() == pytest.approx([2.0, 2e-3, 1.0])
    for floor in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="floor"):
            FisherColumns(floor=floor)


@pytest.mark.parametrize("allocate", [Uniform(), EqualMarginalLoss()], ids=["uniform", "allocated"])
def test_a_result_is_verified_by_making_it_again(
    model: Path, text: Path, tmp_path: Path, allocate: Uniform | EqualMarginalLoss
) -> None:
    out = tmp_path / "out"
    done = eckart.compress(model, out, recipe=fwsvd(allocate), keep=0.7, calibration=text, **OPTIONS)
    assert done.target_bytes[1] <= 0.7 * done.target_bytes[0]
    assert {m.bounds[0].norm for m in done.matrices if m.rank is not None} == {"fisher columns"}
    told = eckart.verify(out, model, calibration=text)
    assert told.failures == ()
    assert told.checked["figures made again"] > 0
    assert eckart.verify(out, model).not_rechecked != ()

    def worse(table: dict[str, Any]) -> None:
        bound = table["matrices"][0]["bounds"][0]
        bound["achieved"] = bound["upper"] = 1.01 * bound["upper"]

    edit_json(out / "eckart.json", worse)
    failures = eckart.verify(out, model, calibration=text).failures
    assert any("achieved is recorded" in sentence for sentence in failures)


def test_a_plan_is_what_comes_out(model: Path, text: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"recipe": "fwsvd", "keep": 0.7, "calibration": text, **OPTIONS}
    planned = eckart.plan(model, tmp_path / "out", **options)
    done = eckart.compress(model, tmp_path / "out", **options)
    assert [(row.name, row.rank) for row in planned.rows] == [(m.name, m.rank) for m in done.matrices]
    for row, matrix in zip(planned.rows, done.matrices, strict=True):
        assert row.predicted == pytest.approx(matrix.bounds[0].relative, rel=1e-2)
    recorded = json.loads((tmp_path / "out" / "eckart.json").read_text())
    assert recorded["recipe"]["metric"] == {"part": "FisherColumns", "floor": 1e-6}


@pytest.mark.slow
def test_killed_at_every_line_of_the_journal(model: Path, text: Path, tmp_path: Path) -> None:
    """A plan in the middle, which wants files that are gone by then, changes nothing either."""
    out = tmp_path / "out"
    options = ("--recipe", "fwsvd", "--keep", "0.7", "--calibration", text, "--tokens", "256", "--window", "32")
    command = ["compress", model, "-o", out, *options]
    assert cli(*command[:3], tmp_path / "undisturbed", *options).code == 0
    killer, kills = Killer(), 0
    try:
        for _ in killer.until_done(*command):
            kills += 1
            if b"fit/original-0" in (work_folder(out) / "journal.jsonl").read_bytes():
                assert cli(*command, "--dry-run").code == 0
    finally:
        killer.close()
    assert kills >= 10
    assert tree(out) == tree(tmp_path / "undisturbed")
