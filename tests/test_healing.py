"""Healing: the loss falls, what must not change does not, a killed run ends in the same bytes, and the certificate stays true."""

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from models import ARCHITECTURES, write_model
from runs import (
    CALIBRATED,
    SIZES,
    Killer,
    calibration_text,
    cli,
    edit_json,
    edit_tensor,
    flip_byte,
    refused,
    tiny,
    tree,
)
from torch import Tensor
from transformers.models.llama import LlamaConfig

import eckart
from eckart.errors import EckartError
from eckart.model.certificate import Certificate
from eckart.model.checkpoint import Checkpoint
from eckart.model.healing import Course, Features, Logits, Seen, Together, TrainFactors, TrainLora
from eckart.model.healing.losses import look
from eckart.model.healing.student import Student
from eckart.model.healing.training import Training
from eckart.model.output import work_folder
from eckart.operator import Factors, Masked

RATE = 3e-3  # tiny models learn fast
SMALL = ("--window", "32", "--batch-tokens", "128", "--rate", str(RATE))
COURSE = Course(steps=12, rate=RATE, window=32, batch_tokens=128)
# How each is made: the recipe and what remains.
RECIPES = {
    "svd": ("svd", "0.5"),
    "svd-llm": ("svd-llm", "0.6"),
    "magnitude": ("magnitude", "0.5"),
    "eora": ("eora", "0.8"),
    "curing": ("curing", "0.6"),
    "modegpt": ("modegpt", "0.6"),
    "lorap": ("lorap", "0.6"),
    "slicegpt": ("slicegpt", "0.5"),
    "shrink-width": ("shrink-width", "0.7"),
    "shortgpt": ("shortgpt", "0.5"),
}


@dataclass(frozen=True)
class Ground:
    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def text(self) -> Path:
        return self.folder / "text.txt"

    def small(self, name: str, model: Path | None = None) -> Path:
        """The model compressed by a recipe, made once."""
        recipe, keep = RECIPES[name]
        out = self.folder / f"{name}-{(model or self.model).name}"
        if not out.exists():
            text = ("--calibration", self.text, *CALIBRATED)
            outcome = cli("compress", model or self.model, "-o", out, "--keep", keep, "--recipe", recipe, *text)
            assert outcome.code == 0, outcome.err
        return out

    def command(self, out: Path, *changes: object, small: str = "svd") -> list[object]:
        places = ("--teacher", self.model, "-o", out, "--text", self.text)
        return ["heal", self.small(small), *places, *SMALL, "--steps", "12", *changes]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    folder = tmp_path_factory.mktemp("ground")
    tiny(folder / "model", sharded=True)
    calibration_text(folder / "text.txt")
    return Ground(folder)


@pytest.fixture(scope="module")
def healed(ground: Ground) -> Path:
    """The factors of the model, healed."""
    out = ground.folder / "healed"
    outcome = cli(*ground.command(out))
    assert outcome.code == 0, outcome.err
    return out


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def tensors(folder: Path) -> dict[str, Tensor]:
    checkpoint = Checkpoint(folder)
    return {name: checkpoint.read(name) for name in checkpoint.tensors}


def changed(before: Path, after: Path) -> set[str]:
    """Names of the tensors that differ; names, files, dtypes and shapes must not."""
    old, new = Checkpoint(before), Checkpoint(after)
    assert old.tensors == new.tensors
    assert old.config == new.config
    return {name for name in old.tensors if not torch.equal(old.read(name), new.read(name))}


# ---- losses ---------------------------------------------------------------------------------------------------------


def logits(seed: int) -> Tensor:
    return 3 * torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_divergence_is_that_of_its_definition(temperature: float) -> None:
    student, teacher = logits(0), logits(1)
    total = 0.0
    for own, theirs in zip(student.flatten(0, 1).tolist(), teacher.flatten(0, 1).tolist(), strict=True):
        p, q = ([math.exp(x / temperature) for x in row] for row in (theirs, own))
        p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    found = Logits(temperature)(Seen(student), Seen(teacher))
    assert float(found) == pytest.approx(temperature**2 * total / 10, rel=1e-5)
    assert float(Logits(temperature)(Seen(teacher), Seen(teacher))) == pytest.approx(0, abs=1e-6)


def test_together_is_a_weighted_sum_and_knows_what_it_looks_at() -> None:
    student, teacher = (Seen(logits(s), (logits(s + 5), logits(s + 7))) for s in (0, 1))
    both = Together(Logits(), Features(), weight=0.25)
    apart = float(Logits()(student, teacher)) + 0.25 * float(Features()(student, teacher))
    assert float(both(student, teacher)) == pytest.approx(apart)
    assert (both.states, Together(Logits(), Logits(2.0)).states) == (True, False)


@pytest.mark.parametrize(
    ("small", "pairs"),
    [
        ("svd", {0: 0, 1: 1}),
        ("shortgpt", {0: 1}),  # whichever block went, the one that is left has to give what the last one gave
    ],
)
def test_features_are_what_corresponding_blocks_give(ground: Ground, small: str, pairs: dict[int, int]) -> None:
    student = Student(Checkpoint(ground.small(small)), Checkpoint(ground.model))
    own, theirs = eckart.load(ground.small(small)), eckart.load(ground.model)
    ids = torch.randint(0, 300, (2, 16), generator=torch.Generator().manual_seed(0))
    given: dict[tuple[str, int], Tensor] = {}
    for label, model in (("own", own), ("theirs", theirs)):
        for index, layer in enumerate(model.model.layers):

            def hook(module: Any, inputs: Any, output: Any, key: tuple[str, int] = (label, index)) -> None:
                given[key] = output[0] if isinstance(output, tuple) else output

            layer.register_forward_hook(hook)
    blocks = student.corresponding()
    with torch.no_grad():
        seen = look(own, ids, blocks[0]), look(theirs, ids, blocks[1])
        shares = [
            float(((given["own", i] - given["theirs", j]) ** 2).mean() / (given["theirs", j] ** 2).mean())
            for i, j in pairs.items()
        ]
        assert len(own.model.layers) == len(pairs)
        assert float(Features()(*seen)) == pytest.approx(sum(shares) / len(shares), rel=1e-5)


def test_what_stands_before_blocks_left_out_stands_for_them_too(ground: Ground, tmp_path: Path) -> None:
    model = write_model(LlamaConfig, SIZES | {"num_hidden_layers": 5}, tmp_path / "model")
    small = write_model(LlamaConfig, SIZES | {"num_hidden_layers": 3}, tmp_path / "small")
    shutil.copy(ground.small("shortgpt") / "eckart.json", small / "eckart.json")
    edit_json(small / "eckart.json", lambda t: t.update(dropped=["model.layers.0", "model.layers.2"]))
    student = Student(Checkpoint(small), Checkpoint(model))
    assert student.corresponding() == (
        ["model.layers.0", "model.layers.1", "model.layers.2"],  # blocks 1, 3 and 4 of the original
        ["model.layers.2", "model.layers.3", "model.layers.4"],
    )


@pytest.mark.parametrize(
    "make",
    [lambda: Logits(0), lambda: Together(Logits(), Features(), -1), lambda: TrainLora(0), lambda: TrainLora(1, 0)],
)
def test_parts_refuse_settings_without_meaning(make: Any) -> None:
    with pytest.raises(ValueError, match="must"):
        make()


# ---- the course -----------------------------------------------------------------------------------------------------


def test_every_window_comes_once_before_any_comes_again() -> None:
    windows = torch.arange(7)[:, None]
    course = Course(steps=14, batch_tokens=3, seed=4)
    order = torch.cat(list(course.batches(windows, 0))).flatten().tolist()
    epochs = [order[i : i + 7] for i in range(0, 42, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert [b.tolist() for b in course.batches(windows, 9)] == [b.tolist() for b in course.batches(windows, 0)][9:]
    assert torch.cat(list(Course(steps=14, batch_tokens=3, seed=5).batches(windows, 0))).flatten().tolist() != order


@pytest.mark.parametrize(("count", "length", "held"), [(2, 8, 1), (50, 8, 5), (1000, 512, 16)])
def test_windows_are_trained_on_or_held_out(count: int, length: int, held: int) -> None:
    windows = torch.arange(count)[:, None].expand(count, length)
    own, judging = Course().split(windows)
    assert len(judging) == held
    assert sorted(own[:, 0].tolist() + judging[:, 0].tolist()) == list(range(count))


def test_the_rate_rises_and_falls() -> None:
    rates = [Course(steps=100, rate=2.0).rate_at(step) for step in range(100)]
    assert max(rates) == 2.0
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.01


# ---- what training does ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("small", RECIPES)
def test_the_loss_falls_whatever_was_compressed(ground: Ground, out: Path, small: str) -> None:
    done = eckart.heal(ground.small(small), ground.model, out, ground.text, course=COURSE)
    assert done.healed
    assert done.before.divergence is not None
    assert done.after.divergence is not None
    assert done.after.divergence < 0.95 * done.before.divergence
    assert done.original.divergence == 0
    assert changed(ground.small(small), out) == set(done.trained)
    assert not work_folder(out).exists()
    assert [name for name in done.trained if "norm" in name or "embed" in name or "lm_head" in name] == []
    found = eckart.verify(out, ground.model)
    assert found.holds, found.failures
    assert any("what training gave" in entry for entry in found.not_rechecked)
    assert found.checked["hashes"] == len(tensors(out))


@torch.no_grad()
def test_losses_are_those_of_the_models(ground: Ground, healed: Path) -> None:
    """Measured again on the windows that the record names, of what lies in the folders."""
    record = Certificate.read(healed).healing[-1]
    course = Course(steps=12, window=32, batch_tokens=128)
    ids = torch.tensor(eckart.model.text.load_tokenizer(ground.model)(ground.text.read_text())["input_ids"])
    _, held = course.split(ids[: len(ids) // 32 * 32].reshape(-1, 32))
    assert record.held_out == held.numel()
    original, before, after = (
        eckart.load(folder, dtype=torch.float32)(held).logits.double().log_softmax(-1)
        for folder in (ground.model, ground.small("svd"), healed)
    )
    for told, own in ((record.original, original), (record.before, before), (record.after, after)):
        nats = -own[:, :-1].gather(-1, held[:, 1:, None]).mean()
        divergence = (original.exp() * (original - own)).sum(-1).mean()
        assert told.nats == pytest.approx(float(nats), rel=1e-5)
        assert told.divergence == pytest.approx(float(divergence), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("match", [Features(), Together(Logits(), Features(), weight=2.0)])
@pytest.mark.parametrize("small", ["svd", "shortgpt"])
def test_features_are_brought_together(ground: Ground, out: Path, small: str, match: Features | Together) -> None:
    done = eckart.heal(ground.small(small), ground.model, out, ground.text, match=match, course=Course(**_long()))
    assert done.curve[-1] < 0.9 * done.curve[0]
    assert done.healed


def _long() -> dict[str, Any]:
    return {"steps": 40, "rate": RATE, "window": 32, "batch_tokens": 128}


def test_a_mask_stays(ground: Ground, out: Path) -> None:
    eckart.heal(ground.small("magnitude"), ground.model, out, ground.text, course=COURSE)
    before, after = tensors(ground.small("magnitude")), tensors(out)
    masks = [name for name in before if name.endswith(".mask")]
    assert masks
    assert all(torch.equal(before[name], after[name]) for name in masks)
    name = "model.layers.0.self_attn.q_proj"
    old, new = (Masked(t[f"{name}.weight"], t[f"{name}.mask"], 16).dense() for t in (before, after))
    assert not torch.equal(old, new)
    assert bool((new[old == 0] == 0).all())


def test_codes_stay_and_their_branch_trains(ground: Ground, out: Path) -> None:
    done = eckart.heal(ground.small("eora"), ground.model, out, ground.text, course=COURSE)
    fixed = [name for name, tensor in tensors(out).items() if not tensor.is_floating_point()]
    assert fixed
    assert not set(fixed) & set(done.trained)
    assert any(name.endswith("_left") for name in done.trained)


def test_linear_maps_of_a_narrower_network_train(ground: Ground, out: Path) -> None:
    done = eckart.heal(ground.small("slicegpt"), ground.model, out, ground.text, course=COURSE)
    assert len(done.trained) == 14
    assert all(name.endswith("_proj.weight") for name in done.trained)


@pytest.mark.parametrize(
    ("train", "maps"), [(TrainFactors(), 1), (TrainLora(2, alpha=4.0), 7)], ids=["factors", "lora"]
)
def test_what_stayed_dense_among_factors_takes_only_adapters(
    ground: Ground, out: Path, train: Training, maps: int
) -> None:
    small = ground.folder / "one"
    if not small.exists():
        outcome = cli("compress", ground.model, "-o", small, "--keep", "0.5", "--recipe", "svd", "--only", "up_proj")
        assert outcome.code == 0, outcome.err
    done = eckart.heal(small, ground.model, out, ground.text, train=train, course=COURSE)
    assert len({name.split(".")[4] for name in done.trained}) == maps
    assert eckart.verify(out, ground.model).holds


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "gemma2", "llama_tied", "mixtral"])
@pytest.mark.parametrize("train", [TrainFactors(), TrainLora(2, alpha=4.0)], ids=["factors", "lora"])
def test_other_architectures(ground: Ground, tmp_path: Path, architecture: str, train: Training) -> None:
    model = ground.folder / architecture
    if not model.exists():
        ARCHITECTURES[architecture](model)
    small = ground.small("svd", model)
    done = eckart.heal(small, model, tmp_path / "out", ground.text, train=train, course=COURSE)
    assert done.healed
    assert changed(small, tmp_path / "out") == set(done.trained)
    assert eckart.verify(tmp_path / "out", model).holds


def test_operators_outside_of_blocks_train_where_they_are_tied(ground: Ground, tmp_path: Path) -> None:
    model = ARCHITECTURES["llama_tied"](tmp_path / "model")
    small = tmp_path / "small"
    assert cli("compress", model, "-o", small, "--keep", "0.5", "--recipe", "svd", "--only", "*").code == 0
    done = eckart.heal(small, model, tmp_path / "out", ground.text, course=COURSE)
    assert "model.embed_tokens.weight" in done.trained
    assert done.healed
    assert eckart.verify(tmp_path / "out", model).holds


def test_narrow_dtypes_train_in_float32(ground: Ground, tmp_path: Path) -> None:
    """Steps far below the grain of bfloat16 add up, which they would not in bfloat16 itself."""
    model = tiny(tmp_path / "model", dtype=torch.bfloat16)
    small = tmp_path / "small"
    assert cli("compress", model, "-o", small, "--keep", "0.5", "--recipe", "svd").code == 0
    done = eckart.heal(small, model, tmp_path / "out", ground.text, course=Course(**_long() | {"rate": 1e-4}))
    assert done.healed
    assert {tensor.dtype for tensor in tensors(tmp_path / "out").values()} == {torch.bfloat16}
    assert eckart.verify(tmp_path / "out", model).holds


# ---- adapters -------------------------------------------------------------------------------------------------------


def attached(small: Path, model: Path, train: TrainLora) -> tuple[Any, Any]:
    """The student, and its adapters with numbers that change the network."""
    student = Student(Checkpoint(small), Checkpoint(model))
    loaded = eckart.load(small, dtype=torch.float32)
    trained = train.attach(student, loaded, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in trained.parameters.items():
            if name.endswith("/b"):
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return loaded, trained


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@torch.no_grad()
def test_a_merged_adapter_gives_what_it_gave_beside(tmp_path: Path, architecture: str) -> None:
    model = ARCHITECTURES[architecture](tmp_path / "model")
    ids = torch.arange(20)[None]
    loaded, trained = attached(model, model, TrainLora(3, alpha=2.0))
    beside = loaded(ids).logits
    merged = trained.merged()
    trained.detach()
    plain = loaded(ids).logits
    for name, tensor in merged.items():
        loaded.get_parameter(name).copy_(tensor)
    assert float((beside - plain).abs().max()) > 0.01
    assert float((beside - loaded(ids).logits).abs().max()) < 1e-4


@torch.no_grad()
def test_an_adapter_begins_without_effect_and_hangs_on_the_seed(ground: Ground) -> None:
    student = Student(Checkpoint(ground.small("svd")), Checkpoint(ground.model))
    loaded, ids = eckart.load(ground.small("svd"), dtype=torch.float32), torch.arange(20)[None]
    before = loaded(ids).logits
    found = [TrainLora(2).attach(student, loaded, seed) for seed in (0, 0, 1)]
    assert torch.equal(loaded(ids).logits, before)
    starts = [next(iter(trained.parameters.values())) for trained in found]
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_an_adapter_beside_factors_is_truncated_to_their_rank(ground: Ground) -> None:
    small = ground.small("svd")
    _, trained = attached(small, ground.model, TrainLora(2, alpha=4.0))
    merged, old = trained.merged(), tensors(small)
    name = "model.layers.0.mlp.up_proj"
    up, down = (trained.parameters[f"{name}/{side}"].detach().double() for side in "ba")
    whole = old[f"{name}.weight"].double() @ old[f"{name}.right"].double() + 2.0 * up @ down
    made = Factors(merged[f"{name}.weight"].double(), merged[f"{name}.right"].double())
    rank = old[f"{name}.weight"].shape[1]
    best = torch.linalg.svdvals(whole)[rank:].norm()
    assert made.rank == rank
    assert float(best) > 1e-3
    assert float((whole - made.dense()).norm()) == pytest.approx(float(best), rel=1e-4)


def test_adapters_heal(ground: Ground, out: Path) -> None:
    done = eckart.heal(
        ground.small("svd"), ground.model, out, ground.text, train=TrainLora(4), course=Course(**_long())
    )
    assert done.healed
    assert changed(ground.small("svd"), out) == set(done.trained)
    assert eckart.verify(out, ground.model).holds


@pytest.mark.parametrize(("small", "kind"), [("magnitude", "masked"), ("eora", "sum"), ("modegpt", "row_sparse")])
def test_no_adapter_merges_into_other_operators(ground: Ground, out: Path, small: str, kind: str) -> None:
    sentence = refused(*ground.command(out, "--train", "lora", small=small), out=out)
    assert f"stored as a {kind} operator, into which no LoRA merges" in sentence
    assert "--train factors" in sentence


def test_heads_that_share_their_weights_still_share_them(ground: Ground, tmp_path: Path) -> None:
    sizes = SIZES | {"num_attention_heads": 4, "num_key_value_heads": 4}
    model, small = write_model(LlamaConfig, sizes, tmp_path / "model"), tmp_path / "small"
    assert cli("compress", model, "-o", small, "--recipe", "head-sharing", "--keep", "0.87").code == 0
    done = eckart.heal(small, model, tmp_path / "out", ground.text, course=COURSE)
    assert done.healed
    assert changed(small, tmp_path / "out") == set(done.trained)
    found = eckart.verify(tmp_path / "out", model)
    assert found.holds, found.failures


# ---- worse than before ----------------------------------------------------------------------------------------------


def test_what_training_made_worse_is_not_written(ground: Ground, out: Path) -> None:
    outcome = cli(*ground.command(out, "--rate", "5", "--steps", "3", "--json"))
    assert outcome.code == 0, outcome.err
    told = json.loads(outcome.out)
    assert told["healed"] is False
    assert told["trained"] == []
    near, nearer = (told["losses"][when]["divergence"] for when in ("before", "after"))
    assert nearer is None or nearer > near
    assert changed(ground.small("svd"), out) == set()
    before, after = Certificate.read(ground.small("svd")), Certificate.read(out)
    assert (before.matrices, before.tensors, before.file_bytes) == (after.matrices, after.tensors, after.file_bytes)
    found = eckart.verify(out, ground.model)
    assert found.holds
    assert not any("training" in entry for entry in found.not_rechecked)
    shutil.rmtree(out)
    assert "the numbers from before were kept" in cli(*ground.command(out, "--rate", "5", "--steps", "3")).out


def test_a_loss_that_is_no_number_ends_the_run(ground: Ground, out: Path, tmp_path: Path) -> None:
    small = shutil.copytree(ground.model, tmp_path / "small")
    edit_tensor(small, "model.layers.0.mlp.up_proj.weight", lambda t: t * 3e38)
    outcome = cli("heal", small, "--teacher", ground.model, "-o", out, "--text", ground.text, *SMALL)
    assert outcome.code == 2
    assert "the loss of step 1 is no number: give a smaller --rate" in outcome.sentence
    assert not out.exists()


# ---- killed, stopped, changed ---------------------------------------------------------------------------------------

STEPS = ("--steps", "45")  # states after 20, 40 and 45
STEP = {"function": "torch.nn.utils:clip_grad_norm_", "when": "after"}
SAVE = {"function": "eckart.model.healing.trainer:Trainer.save", "when": "after"}
SETTLE = {"function": "eckart.model.healing.trainer:Trainer.settle", "call": 1, "when": "after"}
FIGURES = {"function": "eckart.model.healing.written:figures", "call": 5, "when": "before"}
RENAME = {"function": "eckart.model.output:move_into_place", "call": 1, "when": "before"}


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    made = Killer()
    yield made
    made.close()


@pytest.fixture(scope="module")
def undisturbed(ground: Ground) -> dict[str, dict[str, bytes]]:
    """The files of undisturbed runs, by what trained."""
    found = {}
    for train in ("factors", "lora"):
        out = ground.folder / f"undisturbed-{train}"
        outcome = cli(*ground.command(out, *STEPS, "--train", train))
        assert outcome.code == 0, outcome.err
        found[train] = tree(out)
    return found


def states(out: Path) -> list[str]:
    return sorted(path.name for path in work_folder(out).glob("state-*"))


@pytest.mark.parametrize(
    ("place", "left", "train"),
    [
        (STEP | {"call": 13}, [], "factors"),
        (SAVE | {"call": 2, "when": "before"}, ["000020"], "lora"),
        (SAVE | {"call": 2}, ["000020", "000040"], "factors"),
        (STEP | {"call": 43}, ["000020", "000040"], "factors"),
        (SETTLE, ["000040", "000045"], "lora"),
        (SETTLE, ["000040", "000045"], "factors"),
        (FIGURES, ["000040", "000045"], "factors"),
        (RENAME, ["000040", "000045"], "factors"),
    ],
    ids=["step 13", "save", "saved", "step 43", "settled lora", "settled", "figures", "rename"],
)
def test_killed_and_repeated(
    ground: Ground,
    killer: Killer,
    undisturbed: dict[str, dict[str, bytes]],
    out: Path,
    place: dict[str, Any],
    left: list[str],
    train: str,
) -> None:
    command = ground.command(out, *STEPS, "--train", train)
    assert killer(*command, **place).code == -9
    assert not out.exists()
    assert states(out) == [f"state-{step}.safetensors" for step in left]
    outcome = killer(*command)
    assert outcome.code == 0, outcome.err
    assert tree(out) == undisturbed[train]
    assert not work_folder(out).exists()


@pytest.mark.slow
def test_killed_at_every_line_of_the_journal(
    ground: Ground, killer: Killer, undisturbed: dict[str, dict[str, bytes]], out: Path
) -> None:
    command = ground.command(out, *STEPS)
    kills = 0
    for _ in killer.until_done(*command):
        assert len(states(out)) <= 3  # the one that was about to be dropped may be there
        kills += 1
    assert kills >= 20
    assert tree(out) == undisturbed["factors"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (("--steps", "46"), ["steps", "45", "46"]),
        (("--rate", "0.5"), ["rate", "0.5"]),
        (("--match", "features"), ["match", "Features"]),
        (("--train", "lora"), ["train", "TrainLora"]),
        (("--seed", "1"), ["text", "seed"]),
        (("--batch-tokens", "64"), ["batch_tokens", "64"]),
        (("--window", "16"), ["text", "window"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_changed_option_is_refused(ground: Ground, killer: Killer, out: Path, changes: Any, named: list[str]) -> None:
    assert killer(*ground.command(out, *STEPS), **SAVE, call=1).code == -9
    before = tree(work_folder(out))
    outcome = cli(*ground.command(out, *STEPS, *changes))
    assert outcome.code == 2
    assert all(word in outcome.sentence for word in [*named, "--restart"]), outcome.sentence
    assert tree(work_folder(out)) == before


def test_another_student_or_text_is_refused_and_restart_begins_anew(
    ground: Ground, killer: Killer, undisturbed: dict[str, dict[str, bytes]], out: Path, tmp_path: Path
) -> None:
    assert killer(*ground.command(out, *STEPS), **SAVE, call=1).code == -9
    assert "source" in refused(*ground.command(out, *STEPS, small="svd-llm"))
    longer = calibration_text(tmp_path / "longer.txt", repeat=5)
    assert "text" in refused(*ground.command(out, *STEPS, "--text", longer))
    outcome = cli(*ground.command(out, *STEPS, "--restart"))
    assert outcome.code == 0, outcome.err
    assert tree(out) == undisturbed["factors"]


def test_a_changed_state_is_refused(ground: Ground, killer: Killer, out: Path) -> None:
    assert killer(*ground.command(out, *STEPS), **SAVE | {"call": 2, "when": "before"}).code == -9
    flip_byte(work_folder(out), "model.layers.0.mlp.up_proj.weight/value")
    assert "is not as the unfinished run left it" in refused(*ground.command(out, *STEPS))


# ---- refused --------------------------------------------------------------------------------------------------------


def test_another_vocabulary_is_refused(ground: Ground, out: Path, tmp_path: Path) -> None:
    other = write_model(LlamaConfig, SIZES | {"vocab_size": 320}, tmp_path / "other")
    sentence = refused(*ground.command(out, "--teacher", other), out=out)
    assert "has a vocabulary of 320" in sentence
    assert "one of 300" in sentence


def test_another_tokenizer_is_refused(ground: Ground, out: Path, tmp_path: Path) -> None:
    other = shutil.copytree(ground.model, tmp_path / "other")
    edit_json(other / "tokenizer.json", lambda table: table["model"].update(merges=table["model"]["merges"][:10]))
    assert "make different tokens" in refused(*ground.command(out, "--teacher", other), out=out)


def test_another_original_is_refused(ground: Ground, out: Path, tmp_path: Path) -> None:
    other = tiny(tmp_path / "other", sharded=True, seed=1)
    assert "is not what" in refused(*ground.command(out, "--teacher", other), out=out)


def test_a_compressed_teacher_is_refused(ground: Ground, out: Path) -> None:
    assert "is compressed itself" in refused(*ground.command(out, "--teacher", ground.small("svd-llm")), out=out)


def test_a_student_that_was_changed_is_refused(ground: Ground, out: Path, tmp_path: Path) -> None:
    small = shutil.copytree(ground.small("svd"), tmp_path / "small")
    flip_byte(small, "model.norm.weight")
    command = ground.command(out)
    command[1] = small
    assert "tensor model.norm.weight was changed" in refused(*command, out=out)
    (small / "eckart.json").unlink()
    assert "holds no eckart.json" in refused(*command, out=out)


def test_features_of_a_narrower_stream_are_refused(ground: Ground, out: Path) -> None:
    sentence = refused(*ground.command(out, "--match", "both", small="slicegpt"), out=out)
    assert "8 channels" in sentence
    assert "16: features can't be matched, take --match logits" in sentence


def test_features_of_blocks_that_nothing_tells_of_are_refused(ground: Ground, out: Path, tmp_path: Path) -> None:
    small = shutil.copytree(ground.small("shortgpt"), tmp_path / "small")
    (small / "eckart.json").unlink()
    command = ground.command(out, "--match", "features")
    command[1] = small
    assert "has 1 blocks" in refused(*command, out=out)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (("--rank", "0", "--train", "lora"), "--rank is 0: give at least 1"),
        (("--steps", "0"), "--steps is 0: give at least 1"),
        (("--rate", "0"), "--rate is 0"),
        (("--rate", "nan"), "--rate is nan"),
        (("--batch-tokens", "0"), "--batch-tokens is 0"),
        (("--window", "65"), "--window is 65"),
        (("--match", "words"), "words"),
        (("--train", "all"), "all"),
        (("--device", "nowhere"), "--device is 'nowhere'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_options_without_meaning_are_refused(ground: Ground, out: Path, changes: tuple[str, ...], named: str) -> None:
    assert named in refused(*ground.command(out, *changes), out=out)


@pytest.mark.parametrize(("content", "named"), [("A few words.", "fewer than two windows of 32"), ("", "no text")])
def test_a_text_too_short_is_refused(ground: Ground, out: Path, tmp_path: Path, content: str, named: str) -> None:
    text = tmp_path / "text.txt"
    text.write_text(content)
    assert named in refused(*ground.command(out, "--text", text), out=out)


def test_an_output_that_is_not_free_is_refused(ground: Ground, healed: Path) -> None:
    assert "is not empty" in refused(*ground.command(healed))


# ---- certificates ---------------------------------------------------------------------------------------------------


def test_the_certificate_tells_what_was_done(ground: Ground, healed: Path) -> None:
    before, after = Certificate.read(ground.small("svd")), Certificate.read(healed)
    (record,) = after.healing
    assert (record.steps, record.rate, record.batch_tokens, record.seed) == (12, RATE, 128, 0)
    assert record.match == {"part": "Logits", "temperature": 1.0}
    assert record.train == {"part": "TrainFactors"}
    assert record.source["eckart.json"] != after.source["config.json"]
    assert (after.source, after.recipe, after.target_bytes) == (before.source, before.recipe, before.target_bytes)
    assert [m.name for m in after.matrices] == [m.name for m in before.matrices]
    for old, new in zip(before.matrices, after.matrices, strict=True):
        assert (old.operator, old.rank, old.bytes) == (new.operator, new.rank, new.bytes)
        assert [b.norm for b in new.bounds] == ["frobenius", "spectral"]
        if new.rank is not None:  # what was best in this norm is so no more; what is possible stays
            assert new.bounds[0].achieved > old.bounds[0].achieved
            assert new.bounds[0].lower == pytest.approx(old.bounds[0].lower, rel=1e-6)
    assert "Healed" in (healed / "README.md").read_text()
    assert "12 steps" in (healed / "README.md").read_text()


def test_figures_are_those_of_the_matrices(ground: Ground, healed: Path) -> None:
    original, now = tensors(ground.model), tensors(healed)
    for matrix in Certificate.read(healed).matrices:
        weight = original[f"{matrix.name}.weight"].double()
        made = now[f"{matrix.name}.weight"].double()
        error = weight - (made if matrix.rank is None else made @ now[f"{matrix.name}.right"].double())
        assert matrix.bounds[0].achieved == pytest.approx(float(error.norm()), rel=1e-6)
        assert matrix.bounds[1].achieved == pytest.approx(float(torch.linalg.matrix_norm(error, 2)), rel=1e-6)


def test_bonds_lose_their_errors(ground: Ground, out: Path) -> None:
    eckart.heal(ground.small("modegpt"), ground.model, out, ground.text, course=COURSE)
    before, after = Certificate.read(ground.small("modegpt")), Certificate.read(out)
    assert [b.name for b in after.bonds] == [b.name for b in before.bonds]
    assert any(bond.bound is not None for bond in before.bonds)
    assert all(bond.bound is None for bond in after.bonds)


def test_healed_twice(ground: Ground, healed: Path, out: Path) -> None:
    eckart.heal(healed, ground.model, out, ground.text, course=COURSE)
    found = Certificate.read(out)
    assert len(found.healing) == 2
    assert found.healing[0] == Certificate.read(healed).healing[0]
    assert found.healing[1].before.nats == pytest.approx(found.healing[0].after.nats, rel=1e-6)
    assert eckart.verify(out, ground.model).holds


def test_a_stock_checkpoint_is_healed_as_well(ground: Ground, tmp_path: Path) -> None:
    dense = eckart.densify(ground.small("svd"), tmp_path / "dense")
    done = eckart.heal(dense, ground.model, tmp_path / "out", ground.text, course=COURSE)
    assert done.healed
    assert len(done.trained) == len(done.matrices) == 14
    assert all(matrix.operator == "dense" and matrix.bounds[0].achieved > 0 for matrix in done.matrices)
    found = eckart.verify(tmp_path / "out", ground.model)
    assert found.holds, found.failures
    assert found.checked["frobenius figures"] == 14 * 5


def test_a_narrow_stock_checkpoint_of_unknown_making_is_healed(ground: Ground, tmp_path: Path) -> None:
    small = shutil.copytree(ground.small("shrink-width"), tmp_path / "small")
    (small / "eckart.json").unlink()
    done = eckart.heal(small, ground.model, tmp_path / "out", ground.text, course=COURSE)
    assert done.healed
    assert done.matrices == ()
    assert eckart.verify(tmp_path / "out", ground.model).holds


def test_a_healed_checkpoint_is_one_of_its_kind(ground: Ground, healed: Path, tmp_path: Path) -> None:
    dense = eckart.densify(healed, tmp_path / "dense")
    scores = [eckart.evaluate(folder, [ground.text], window=32)[str(ground.text)].mean for folder in (healed, dense)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


Change = Any
NAME = "model.layers.0.mlp.up_proj"


def matrix(table: Any) -> Any:
    return next(entry for entry in table["matrices"] if entry["name"] == NAME)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            lambda t: matrix(t)["bounds"][0].update(achieved=matrix(t)["bounds"][0]["lower"]),
            "achieved in the frobenius",
        ),
        (lambda t: matrix(t)["bounds"][0].update(lower=0.0), "lower in the frobenius norm"),
        (lambda t: matrix(t)["bounds"][1].update(upper=1e3), "upper in the spectral norm"),
        (lambda t: matrix(t)["bounds"].pop(), "no figure in the spectral norm"),
        (lambda t: matrix(t).update(rank=1), f"{NAME}: operator, rank or bytes"),
        (lambda t: matrix(t).update(bytes=1), f"{NAME}: operator, rank or bytes"),
        (lambda t: matrix(t).update(operator="dense"), f"{NAME}: operator, rank or bytes"),
        (lambda t: t["matrices"].remove(matrix(t)), f"{NAME} has 0 records"),
        (lambda t: t["matrices"].append(matrix(t)), f"{NAME} has 2 records"),
        (lambda t: t["healing"][0]["trained"].append("nothing"), "tensor nothing is said to be trained"),
        (lambda t: t["sizes"]["files"].update(after=1), "the files take"),
        (lambda t: t["sizes"]["targets"].update(after=1), "the matrices take"),
        (lambda t: t["tensors"].update({f"{NAME}.right": "0" * 64}), f"tensor {NAME}.right was changed"),
        (lambda t: t["source"].update({"config.json": "0" * 64}), "is not the file that was compressed"),
        (lambda t: t["untouched"].pop(), "matrices left alone"),
        (lambda t: t["request"].update(exclude=["up_proj"]), "recorded otherwise"),
    ],
)
def test_a_falsified_certificate_is_found_out(
    ground: Ground, healed: Path, tmp_path: Path, change: Change, named: str
) -> None:
    folder = shutil.copytree(healed, tmp_path / "copy")
    edit_json(folder / "eckart.json", change)
    found = eckart.verify(folder, ground.model)
    assert not found.holds
    assert any(named in failure for failure in found.failures), found.failures


@pytest.mark.parametrize("tensor", [f"{NAME}.right", "model.norm.weight"])
def test_a_changed_tensor_is_found_out(ground: Ground, healed: Path, tmp_path: Path, tensor: str) -> None:
    folder = shutil.copytree(healed, tmp_path / "copy")
    flip_byte(folder, tensor)
    outcome = cli("verify", folder, "--against", ground.model)
    assert outcome.code == 1
    assert f"tensor {tensor} was changed" in outcome.err


def test_a_copied_tensor_that_is_another_is_found_out(ground: Ground, healed: Path, tmp_path: Path) -> None:
    """With its own hash on record: what did not train must be the original's."""
    import hashlib

    folder = shutil.copytree(healed, tmp_path / "copy")
    made = edit_tensor(folder, "model.norm.weight", lambda tensor: tensor * 2)
    digest = hashlib.sha256(made.numpy().tobytes()).hexdigest()
    edit_json(folder / "eckart.json", lambda table: table["tensors"].update({"model.norm.weight": digest}))
    edit_json(folder / "eckart.json", _file_size(folder))
    found = eckart.verify(folder, ground.model)
    assert [f for f in found.failures if "is not that of the original and is not said to be trained" in f]


def _file_size(folder: Path) -> Any:
    total = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return lambda table: table["sizes"]["files"].update(after=total)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t["healing"][0].pop("steps"),
        lambda t: t["healing"][0].update(steps=0),
        lambda t: t["healing"][0].update(trained="all"),
        lambda t: t["healing"][0]["before"].pop("nats"),
        lambda t: t["healing"][0]["before"].update(nats="low"),
        lambda t: t.update(healing={}),
    ],
)
def test_a_damaged_record_is_refused(healed: Path, tmp_path: Path, change: Change) -> None:
    folder = shutil.copytree(healed, tmp_path / "copy")
    edit_json(folder / "eckart.json", change)
    with pytest.raises(EckartError, match=r"is damaged or was edited"):
        eckart.verify(folder)


def test_a_calibration_text_has_nothing_to_say_of_a_healed_checkpoint(ground: Ground, healed: Path) -> None:
    sentence = refused("verify", healed, "--against", ground.model, "--calibration", ground.text)
    assert "was healed" in sentence
    assert "name the original" in cli("verify", healed).out
    assert "is compressed itself" in refused("verify", healed, "--against", healed)


# ---- what is shown --------------------------------------------------------------------------------------------------


def test_the_table_and_the_document(ground: Ground, tmp_path: Path) -> None:
    shown = cli(*ground.command(tmp_path / "a"))
    lines = shown.out.splitlines()
    assert lines[0].split("  ")[0] == "held-out windows"
    assert [line.split()[0] for line in lines[1:4]] == ["original", "before", "after"]
    assert shown.err == ""
    told = json.loads(cli(*ground.command(tmp_path / "b"), "--json").out)
    assert set(told) == {"folder", "healed", "losses", "curve", "trained", "matrices", "peak_memory"}
    assert f"{told['losses']['after']['nats']:.4f}" == lines[3].split()[1]
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_progress_is_told_step_by_step(ground: Ground, out: Path) -> None:
    told: list[tuple[str, int, int]] = []
    eckart.heal(
        ground.small("svd"),
        ground.model,
        out,
        ground.text,
        course=COURSE,
        progress=lambda stage, done, total, piece: told.append((stage, done, total)),
    )
    assert [entry[1:] for entry in told if entry[0] == "train"] == [(step, 12) for step in range(1, 13)]
    stages = list(dict.fromkeys(stage for stage, _, _ in told))
    assert stages == ["judge before", "train", "judge after", "write", "figures"]
