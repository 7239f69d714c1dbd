"""The loss that each matrix's error is expected to cost, against one pass of the whole model with hooks and autograd."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from market import lapack_values
from runs import calibration_text, tiny
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from eckart.allocate import EqualMarginalLoss
from eckart.model import engine
from eckart.model.compression import Compress
from eckart.model.progress import quiet
from eckart.model.run import Request, Run
from eckart.model.survey import predicted_error, survey
from eckart.recipes import asvd, svd, svd_llm

RECIPES = {"svd": svd, "asvd": asvd, "svd-llm": svd_llm}
NAMES = ("model.layers.0.self_attn.k_proj", "model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("survey") / "model")


def opened(model: Path, out: Path, recipe: Compress) -> Run:
    text = calibration_text(out.parent / "text.txt")
    request = Request(keep=0.7, calibration=text, tokens=256, window=64)
    return engine._open_run(model, out, recipe, request, restart=False, progress=quiet)


def seen(model: Path, run: Run) -> tuple[float, dict[str, np.ndarray], dict[str, float]]:
    """The loss, the inputs of maps (tokens, n), and the mean squared gradient at their outputs, by PyTorch alone."""
    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    inputs: dict[str, np.ndarray] = {}
    outputs: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        def hook(_: object, args: tuple[Tensor, ...], output: Tensor) -> None:
            inputs[name] = args[0].detach().flatten(0, 1).double().numpy()
            output.retain_grad()
            outputs[name] = output

        return hook

    for name in NAMES:
        whole.get_submodule(name).register_forward_hook(note(name))
    windows = run.walking().windows
    logits = whole(input_ids=windows).logits.float()
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), windows[:, 1:].flatten())
    every = logits.flatten(0, 1)  # a label is drawn for the last token of a window as well
    labels = torch.multinomial(every.detach().softmax(-1), 1, generator=run.rng("labels")).flatten()
    torch.nn.functional.cross_entropy(every, labels, reduction="sum").backward()
    squares = {
        n: float(o.grad.double().square().sum()) / windows.numel() for n, o in outputs.items() if o.grad is not None
    }
    return loss.item(), inputs, squares


@pytest.mark.parametrize("kind", RECIPES)
def test_the_expected_loss_is_the_formula(model: Path, tmp_path: Path, kind: str) -> None:
    """``mean ||d||^2 / (2 m) * mean ||x||^2 / ||R||_F^2 * ||(W - W_r) R||_F^2``, from the inputs and gradients themselves."""
    run = opened(model, tmp_path / "out", RECIPES[kind](allocate=EqualMarginalLoss()))
    slots, loss = survey(run)
    expected_loss, inputs, squares = seen(model, run)
    assert loss == pytest.approx(expected_loss, rel=1e-4)
    for target in run.targets:
        if target.name not in NAMES:
            continue
        w, x = target.read(run.checkpoint).double().numpy(), inputs[target.name]
        scale = np.abs(x).mean(0) ** 0.5
        root = {"svd": np.eye(w.shape[1]), "asvd": np.diag(scale + 1e-6 * scale.max()), "svd-llm": x.T / len(x) ** 0.5}
        values = lapack_values(w @ root[kind])
        energy = (x**2).sum(1).mean() / (root[kind] ** 2).sum()
        losses = slots[target.name].losses
        assert losses is not None
        assert len(losses) == min(target.shape) + 1
        for rank in range(0, len(losses), 3):
            tail = float((values[rank:] ** 2).sum())
            expected = squares[target.name] / (2 * w.shape[0]) * energy * tail
            assert float(losses[rank]) == pytest.approx(expected, rel=2e-3, abs=1e-9 * float(losses[0]))
        ratio = np.sqrt(float((values[7:] ** 2).sum() / (values**2).sum()))
        assert predicted_error(run, target, 7) == pytest.approx(ratio, rel=1e-4)
        assert predicted_error(run, target, None) == 0.0
    run.journal.close()


def test_a_matrix_of_zeros_has_no_error_to_expect(tmp_path: Path) -> None:
    """The share of nothing is nothing, not all of it."""
    folder = tiny(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    dead = "model.layers.0.mlp.up_proj.weight"
    tensors[dead] = torch.zeros_like(tensors[dead])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    for recipe in (svd(), svd_llm(EqualMarginalLoss())):
        run = opened(folder, tmp_path / recipe.metric.__class__.__name__, recipe)
        if run.walk is not None:
            survey(run)
        target = next(t for t in run.targets if t.name == dead.removesuffix(".weight"))
        assert predicted_error(run, target, 3) == 0.0
        run.journal.close()
