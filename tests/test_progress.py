"""What a caller is told while work goes on: every stage counts from one to its end."""

from pathlib import Path

import pytest
from runs import calibration_text, tiny

import eckart
from eckart.allocate import EqualMarginalLoss
from eckart.model.compression import Narrow
from eckart.recipes import modegpt

Told = list[tuple[str, int, int, str]]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("progress")
    tiny(folder / "model", sharded=True)
    calibration_text(folder / "text.txt")
    return folder


def counted(told: Told) -> dict[str, int]:
    """How many pieces each stage has; each is told of once, in order."""
    stages: dict[str, list[tuple[int, int]]] = {}
    for stage, done, total, piece in told:
        assert piece
        stages.setdefault(stage, []).append((done, total))
    for stage, counts in stages.items():
        assert counts == [(i, len(counts)) for i in range(1, len(counts) + 1)], stage
    return {stage: len(counts) for stage, counts in stages.items()}


@pytest.mark.parametrize(
    ("recipe", "stages"),
    [
        ("slicegpt", {"measure": 2, "narrow": 3}),
        ("slicegpt-per-norm", {"narrow": 2, "store": 3}),
        ("modegpt", {"influence": 2, "narrow": 2, "loss": 2}),
        (modegpt(EqualMarginalLoss()), {"measure": 2, "sensitivity": 2, "narrow": 2, "loss": 2}),
    ],
)
def test_bonds_are_narrowed_in_stages(
    recipe: str | Narrow, stages: dict[str, int], places: Path, tmp_path: Path
) -> None:
    told: Told = []
    model, text = places / "model", places / "text.txt"
    eckart.compress(
        model,
        tmp_path / "out",
        recipe=recipe,
        keep=0.8,
        calibration=text,
        tokens=512,
        window=64,
        progress=lambda *said: told.append(said),
    )
    assert counted(told) == stages | {"write": len(list(model.glob("*.safetensors")))}


def test_every_stage_counts_to_its_end(places: Path, tmp_path: Path) -> None:
    model, text, told = places / "model", places / "text.txt", []

    def note(stage: str, done: int, total: int, piece: str) -> None:
        told.append((stage, done, total, piece))

    def said() -> dict[str, int]:
        found = counted(told)
        told.clear()
        return found

    files = len(list(model.glob("*.safetensors")))
    small = tmp_path / "small"
    eckart.compress(model, small, keep=0.7, calibration=text, tokens=256, window=64, progress=note)
    assert said() == {
        "measure": 2,
        "sensitivity": 2,
        "fit": 14,
        "loss with allocated ranks": 2,
        "loss with uniform ranks": 2,
        "write": files,
    }
    eckart.verify(small, against=model, progress=note)
    assert set(found := said()) == {"hash", "verify"}
    assert found["verify"] == 14
    eckart.densify(small, tmp_path / "dense", progress=note)
    assert said() == {"densify": files}
    eckart.inspect(model, only=["*.mlp.*"], progress=note)
    assert said() == {"inspect": 6}
    eckart.evaluate(model, [text], window=64, progress=note)
    assert set(said()) == {"evaluate"}
