"""How the loss answers to noise on a matrix, against autograd on the whole model; and the recipe that goes by it."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from models import ARCHITECTURES
from runs import Killer, calibration_text, cli, tiny, tree
from torch import Tensor
from transformers import AutoModelForCausalLM

import eckart
from eckart.allocate import Level, Proportional
from eckart.bonds.choosing import Select
from eckart.bonds.scores import Magnitude
from eckart.model import engine, noise
from eckart.model.compression import Narrow, Paper
from eckart.model.noise import EPSILON, Pairs, block_slopes
from eckart.model.output import work_folder
from eckart.model.progress import quiet
from eckart.model.run import Request, Run
from eckart.model.survey import original
from eckart.model.targets import Target
from eckart.model.walk import Walk
from eckart.recipes import ecoflap

OPTIONS: dict[str, Any] = {"tokens": 256, "window": 32}
KINDS = ("llama", "gpt2", "opt")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibration_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("model") / "model")


def opened(model: Path, out: Path, text: Path, keep: float = 0.8) -> Run:
    request = Request(keep=keep, calibration=text, **OPTIONS)
    return engine._open_run(model, out, ecoflap(), request, restart=False, progress=quiet)


def states(run: Run) -> None:
    """Write what every block of the original model is given."""
    run.walking().embed(run.file(original(0)))
    for block in range(run.blocks):
        run.walking().run_block(block, run.file(original(block)), run.file(original(block + 1)))


def slopes(run: Run, pairs: Pairs, target: Target, purpose: str) -> Tensor:
    """One draw for every window."""
    assert target.block is not None
    pairs.prepare()
    here, there = run.file("here.bin"), run.file("there.bin")
    pairs.part(target, run.file(original(target.block)), here, run.rng(purpose))
    for block in range(target.block + 1, run.blocks):
        pairs.run_block(block, here, there)
        here, there = there, here
    return pairs.slopes(here)


def gradients(model: Path, windows: Tensor, targets: list[Target]) -> dict[str, Tensor]:
    """The gradient of the mean loss of every window with respect to the weights as stored, by PyTorch alone."""
    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    found: dict[str, list[Tensor]] = {target.name: [] for target in targets}
    for window in windows:
        whole.zero_grad()
        logits = whole(input_ids=window[None], use_cache=False).logits[0].float()
        torch.nn.functional.cross_entropy(logits[:-1], window[1:]).backward()
        for name, some in found.items():
            gradient = whole.get_submodule(name).weight.grad
            assert gradient is not None
            some.append(gradient.double().clone())
    return {name: torch.stack(some) for name, some in found.items()}


@torch.no_grad()
def difference(whole: Any, name: str, window: Tensor, drawn: Tensor) -> float:
    """How much the loss of a window differs between the weight moved along the noise and against it, over the distance."""
    weight = whole.get_submodule(name).weight
    middle, losses = weight.detach().clone(), []
    for step in (EPSILON, -EPSILON):
        weight.copy_(middle + step * drawn)
        logits = whole(input_ids=window[None], use_cache=False).logits[0].double()
        losses.append(float(torch.nn.functional.cross_entropy(logits[:-1], window[1:])))
    weight.copy_(middle)
    return abs(losses[0] - losses[1]) / (2 * EPSILON)


@pytest.mark.parametrize("kind", KINDS)
def test_a_slope_is_that_of_the_whole_model_and_nearly_the_gradient_along_the_noise(
    kind: str, text: Path, tmp_path: Path
) -> None:
    folder = ARCHITECTURES[kind](tmp_path / "model")
    run = opened(folder, tmp_path / "out", text)
    states(run)
    windows = run.walking().windows[:3]
    pairs = Pairs(run.skeleton, windows)
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = gradients(folder, windows, run.targets)
    for target in run.targets[::3]:
        found, rng = slopes(run, pairs, target, "here"), run.rng("here")
        for i, gradient in enumerate(expected[target.name]):
            drawn = torch.randn(gradient.shape, generator=rng)
            size = float(gradient.norm())
            assert float(found[i]) == pytest.approx(
                difference(whole, target.name, windows[i], drawn), abs=1e-3 * size + 1e-3
            )
            # The third derivative is not nothing, and there are kinks where units begin to fire.
            assert float(found[i]) == pytest.approx(abs(float((gradient * drawn).sum())), abs=0.06 * size + 1e-3)
    run.journal.close()


def test_the_mean_slope_is_the_size_of_the_gradient(model: Path, text: Path, tmp_path: Path) -> None:
    """``sqrt(2 / pi)`` of it. 400 draws of a half-normal variable, whose deviation is 0.756 of its mean: five deviations are 19 %."""
    run = opened(model, tmp_path / "out", text)
    states(run)
    windows = run.walking().windows
    pairs = Pairs(run.skeleton, windows)
    target = next(t for t in run.targets if t.name == "model.layers.1.mlp.up_proj")
    sizes = gradients(model, windows, [target])[target.name].flatten(1).norm(dim=1)
    draws = [slopes(run, pairs, target, f"draw {i}") / sizes for i in range(400 // len(windows))]
    found = torch.stack(draws)
    assert found.numel() == 400
    assert float(found.mean()) == pytest.approx(math.sqrt(2 / math.pi), rel=5 * 0.7555 / 20)
    assert float(found.std() / found.mean()) == pytest.approx(0.7555, abs=0.2)
    run.journal.close()


def test_blocks_are_ordered_as_their_gradients_are(model: Path, text: Path, tmp_path: Path) -> None:
    """A block's sum of slopes is about 0.8 of the sum of the norms of its gradients: 56 draws, five deviations 50 %."""
    run = opened(model, tmp_path / "out", text)
    found = block_slopes(run)
    sizes = gradients(model, run.walking().windows, run.targets)
    expected = [0.0] * run.blocks
    for target in run.targets:
        assert target.block is not None
        expected[target.block] += float(sizes[target.name].flatten(1).norm(dim=1).mean())
    for slope, size in zip(found, expected, strict=True):
        assert slope / size == pytest.approx(math.sqrt(2 / math.pi), rel=0.5)
    assert block_slopes(run) == found  # from the journal
    assert not list(work_folder(tmp_path / "out").glob("noise-*"))
    run.journal.close()


def test_weights_are_as_they_were_afterwards(model: Path, text: Path, tmp_path: Path) -> None:
    run = opened(model, tmp_path / "out", text)
    states(run)
    target = run.targets[3]
    slopes(run, Pairs(run.skeleton, run.walking().windows), target, "here")
    before = run.file(original(1)).read_bytes()
    run.walking().run_block(0, run.file(original(0)), run.file(original(1)))
    assert run.file(original(1)).read_bytes() == before
    assert EPSILON == 1e-3
    run.journal.close()


def test_no_more_windows_than_wanted_are_run(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first ones, and their slopes hang on no others."""
    run = opened(model, tmp_path / "out", text)
    states(run)
    target, windows = run.targets[0], run.walking().windows
    monkeypatch.setattr(noise, "DRAWS", 2)
    few = block_slopes(run)
    assert all(slope > 0 for slope in few)
    some, all_of_them = (slopes(run, Pairs(run.skeleton, some), target, "here") for some in (windows[:2], windows))
    assert some.tolist() == all_of_them[:2].tolist()
    run.journal.close()


# ---- the recipe ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0.5, 0.8])
def test_blocks_that_matter_keep_more_and_the_whole_is_as_asked(
    model: Path, text: Path, tmp_path: Path, keep: float
) -> None:
    out = tmp_path / "out"
    run = opened(model, tmp_path / "scores", text, keep)
    scores = block_slopes(run)
    run.journal.close()
    told: list[tuple[str, int, int]] = []
    done = eckart.compress(
        model,
        out,
        recipe="ecoflap",
        keep=keep,
        calibration=text,
        progress=lambda stage, i, n, _: told.append((stage, i, n)),
        **OPTIONS,
    )
    assert [(i, n) for stage, i, n in told if stage == "noise"] == [(i, 14) for i in range(1, 15)]
    before, after = done.target_bytes
    assert keep - 0.02 < after / before <= keep
    shares = [
        sum(m.bytes for m in done.matrices if f".{b}." in m.name) / (before / 2) for b in range(2)
    ]  # both blocks are of one size
    assert (shares[0] > shares[1]) == (scores[0] > scores[1])
    assert min(shares) >= keep - 0.1 - 0.03
    verified = eckart.verify(out, model, calibration=text)
    assert verified.failures == ()
    assert verified.checked["tensors made again"] > 0


@pytest.mark.slow
def test_killed_at_every_line_of_the_journal(model: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--recipe", "ecoflap", "--keep", "0.7", "--calibration", text, "--tokens", "256", "--window", "32")
    command = ["compress", model, "-o", out, *options]
    assert cli(*command[:3], tmp_path / "undisturbed", *options).code == 0
    killer = Killer()
    try:
        assert len(list(killer.until_done(*command, call=4))) >= 6
    finally:
        killer.close()
    assert tree(out) == tree(tmp_path / "undisturbed")


@pytest.mark.parametrize(("recipe", "files"), [("ecoflap", 2 + 4), ("fwsvd", 2 + 3), ("wanda", 3), ("curing", 3)])
def test_a_plan_announces_at_least_the_room_that_is_taken(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, files: int
) -> None:
    options: dict[str, Any] = {"recipe": recipe, "keep": 0.8, "calibration": text, **OPTIONS}
    planned = eckart.plan(model, tmp_path / "out", **options).scratch_bytes
    assert planned == files * 256 * 16 * 4
    most, real = 0, Walk._finish

    def watched(walk: Walk, target: Any, path: Path) -> None:
        nonlocal most
        real(walk, target, path)
        most = max(most, sum(p.stat().st_size for p in path.parent.glob("*.bin")))

    monkeypatch.setattr(Walk, "_finish", watched)
    eckart.compress(model, tmp_path / "out", restart=True, **options)
    assert planned * 5 // 6 <= most <= planned


def test_bonds_are_not_moved_by_noise() -> None:
    with pytest.raises(ValueError, match="allocate by another rule"):
        Narrow(paper=Paper("own", ""), hidden=Select(Magnitude()), allocate=Proportional())
    Narrow(paper=Paper("own", ""), hidden=Select(Magnitude()), allocate=Level())
