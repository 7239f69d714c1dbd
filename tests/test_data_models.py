"""Trained models in the data folder: evaluation meets their published figures, compression of them verifies."""

from pathlib import Path

import pytest
import torch
from runs import cli
from stories import convert

import eckart
from eckart.model.evaluate import score_ids
from eckart.model.text import ids_for

pytestmark = pytest.mark.data

MODELS = ("wikitext2_llama_8m", "wikitext2_gpt2_6m")
# Nats per token and tokens scored as the models' makers state them, in windows of 256 tokens and float32.
PUBLISHED = {
    ("wikitext2_llama_8m", "stories"): (3.1003, 22_742),
    ("wikitext2_llama_8m", "shakespeare"): (6.3846, 43_247),
    ("wikitext2_llama_8m", "valid"): (3.4248, 316_005),
    ("wikitext2_gpt2_6m", "stories"): (3.3948, 22_742),
    ("wikitext2_gpt2_6m", "shakespeare"): (6.0424, 43_247),
    ("wikitext2_gpt2_6m", "valid"): (3.7143, 316_005),
}


@pytest.fixture(scope="module")
def texts(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("texts")
    stories = (data_dir / "tinystories_sample" / "tinystories_val.txt").read_text(encoding="utf-8")
    shakespeare = (data_dir / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    (folder / "stories").write_text(stories[len(stories) * 9 // 10 :], encoding="utf-8")
    (folder / "shakespeare").write_text(shakespeare[-100_000:], encoding="utf-8")
    return {
        "stories": folder / "stories",
        "shakespeare": folder / "shakespeare",
        "valid": data_dir / "wikitext2" / "valid.txt",
    }


@pytest.mark.parametrize(
    ("model", "text"),
    [pytest.param(*case, marks=[pytest.mark.slow] if case[1] != "stories" else []) for case in PUBLISHED],
)
def test_evaluation_meets_the_published_figure(data_dir: Path, texts: dict[str, Path], model: str, text: str) -> None:
    score = eckart.evaluate(data_dir / model, [texts[text]])[str(texts[text])]
    mean, tokens = PUBLISHED[model, text]
    assert score.tokens == tokens
    assert score.mean == pytest.approx(mean, abs=1.5e-4)


@pytest.fixture(scope="module")
def stories260k(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(data_dir, tmp_path_factory.mktemp("stories260k"))


VERIFIED = [
    pytest.param(model, recipe, marks=pytest.mark.slow if recipe == "asvd" or model == "wikitext2_gpt2_6m" else ())
    for model in ("stories260k", *MODELS)
    for recipe in ("svd", "asvd", "svd-llm")
]


@pytest.mark.parametrize(("model", "recipe"), VERIFIED)
def test_a_compressed_trained_model_verifies(
    data_dir: Path, stories260k: Path, texts: dict[str, Path], tmp_path: Path, model: str, recipe: str
) -> None:
    source = stories260k if model == "stories260k" else data_dir / model
    out = tmp_path / "out"
    text = texts["stories"]
    done = eckart.compress(source, out, keep=0.8, recipe=recipe, calibration=text, tokens=2048)
    assert done.target_bytes[1] <= 0.8 * done.target_bytes[0]
    checked = cli("verify", out, "--against", source, *(() if recipe == "svd" else ("--calibration", text)))
    assert checked.code == 0, checked.err
    assert "everything that was checked holds" in checked.out


@pytest.mark.slow
def test_what_is_recorded_of_the_loss_is_what_evaluation_measures(
    data_dir: Path, texts: dict[str, Path], tmp_path: Path
) -> None:
    """The walk by blocks with the products multiplied out, against the loaded checkpoint run as a whole."""
    source, out = data_dir / "wikitext2_llama_8m", tmp_path / "out"
    short = tmp_path / "short.txt"
    short.write_text(texts["stories"].read_text(encoding="utf-8")[:16_000], encoding="utf-8")
    done = eckart.compress(source, out, keep=0.7, calibration=short)
    assert set(done.losses) == {"original", "allocated", "uniform"}
    assert done.losses[done.kept] == min(done.losses["allocated"], done.losses["uniform"])
    ids = ids_for(source, short.read_text(encoding="utf-8"))
    whole = ids[: len(ids) // 256 * 256]  # calibration takes no shorter last window
    for folder, label in ((source, "original"), (out, done.kept)):
        score = score_ids(eckart.load(folder, dtype=torch.float32), whole, 256)
        assert score.mean == pytest.approx(done.losses[label], abs=2e-5)


@pytest.mark.parametrize("recipe", ["slicegpt-per-norm", "modegpt"])
def test_a_narrower_trained_model_has_the_recorded_loss_and_verifies(
    stories260k: Path, texts: dict[str, Path], tmp_path: Path, recipe: str
) -> None:
    """The walk with the original's blocks, projected or with zeros, against the loaded checkpoint run as a whole."""
    short = tmp_path / "short.txt"
    short.write_text(texts["stories"].read_text(encoding="utf-8")[:16_000], encoding="utf-8")
    done = eckart.compress(stories260k, tmp_path / "out", keep=0.8, recipe=recipe, calibration=short, window=256)
    ids = ids_for(stories260k, short.read_text(encoding="utf-8"))
    score = score_ids(eckart.load(done.folder, dtype=torch.float32), ids[: len(ids) // 256 * 256], 256)
    assert score.mean == pytest.approx(done.losses["narrowed"], abs=1e-4)
    assert eckart.verify(done.folder, stories260k, calibration=short).failures == ()
