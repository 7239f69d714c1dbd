"""Fine-tuning from records to an adapter: what is learnt from, what comes out, kills in between, and bad input."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import ARCHITECTURES, SENTENCES, tokenizer
from outputs import far, loaded, logits
from peft import PeftModel
from runs import Killer, cli, refused, tree
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from eckart.adapt import RECIPES, Course, tune
from eckart.adapters.outputs import Divergence
from eckart.adapters.schedules import Constant
from eckart.errors import EckartError
from eckart.model.adapting.records import MASKED, collate, examples_of, read_records
from eckart.model.adapting.task import divided
from eckart.model.output import work_folder

FAST = (
    "--steps",
    "12",
    "--batch",
    "4",
    "--save",
    "3",
    "--judge",
    "3",
    "--rate",
    "1e-2",
    "--held-out",
    "0.1",
    "--rank",
    "4",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ARCHITECTURES["llama"](tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    records = [{"prompt": s[: len(s) // 2], "completion": s[len(s) // 2 :]} for s in SENTENCES]
    path.write_text("\n".join(json.dumps(record) for record in records * 4))
    return path


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    made = Killer()
    yield made
    made.close()


# ---- records ----------------------------------------------------------------------------------------------------------


def test_prompts_count_nothing_and_completions_end() -> None:
    words = tokenizer()
    record = {"prompt": SENTENCES[0], "completion": SENTENCES[1]}
    [example] = examples_of([record], words, 1000)
    asked = words(SENTENCES[0])["input_ids"]
    said = words(SENTENCES[1], add_special_tokens=False)["input_ids"]
    assert list(example.ids) == [*asked, *said, words.eos_token_id]
    assert isinstance(example.labels, tuple)
    assert list(example.labels) == [*([MASKED] * len(asked)), *said, words.eos_token_id]
    [cut] = examples_of([record], words, len(asked) + 2)
    assert cut.ids == example.ids[: len(asked) + 2]
    with pytest.raises(EckartError, match=rf"nothing to learn within {len(asked)} tokens|anything to learn within"):
        examples_of([record], words, len(asked))


def test_a_long_text_is_cut_into_windows() -> None:
    words = tokenizer()
    text = " ".join(SENTENCES)
    ids = words(text)["input_ids"]
    found = examples_of([{"text": text}], words, 16)
    assert [i for example in found for i in example.ids] == ids[
        : len(ids) // 16 * 16 + (len(ids) % 16 if len(ids) % 16 > 1 else 0)
    ]
    assert all(example.labels == example.ids and len(example.ids) <= 16 for example in found)


def test_batches_hide_what_fills_them_up() -> None:
    words = tokenizer()
    examples = examples_of([{"text": sentence} for sentence in SENTENCES[:3]], words, 64)
    batch = collate([example.table for example in examples], words.pad_token_id)
    for row, example in enumerate(examples):
        size = len(example.ids)
        assert batch["input_ids"][row, :size].tolist() == list(example.ids)
        assert batch["attention_mask"][row].tolist() == [1] * size + [0] * (batch["input_ids"].shape[1] - size)
        assert batch["labels"][row, size:].eq(MASKED).all()


@pytest.mark.parametrize(
    ("text", "labelled", "sentence"),
    [
        ('{"prompt": "a"}', False, "line 1 has prompt: a record is"),
        ('{"text": "a"}\n{"completion": "b"}', False, "line 2 has completion"),
        ('{"text": "a"}', True, 'line 1 has text: a record is {"text": ..., "label": ...}'),
        ('{"text": "a", "label": "x"}', True, "line 1: label is 'x'; give a whole number"),
        ('{"text": 3}', False, "line 1: text is 3; give a text"),
        ("[1, 2]", False, "line 1 has '[1, 2]'"),
        ("{", False, "line 1: '{' is no JSON"),
        ("\n \n", False, "is empty"),
    ],
)
def test_what_is_no_record_is_told_by_its_line(text: str, labelled: bool, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(text)
    with pytest.raises(EckartError, match=re.escape(sentence)):
        read_records(path, labelled=labelled)


# ---- runs -------------------------------------------------------------------------------------------------------------


def test_what_was_learnt_is_served_by_peft_on_the_untouched_model(model: Path, data: Path, tmp_path: Path) -> None:
    course = Course(steps=30, batch=4, rate=1e-2, judge=10, held_out=0.1)
    done = tune(model, data, tmp_path / "out", RECIPES["pissa"](), rank=4, course=course)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    assert done.judged[30] < done.judged[10] - 0.3
    assert list(done.trained) == [10, 20, 30]
    assert set(done.ranks.values()) == {8}
    assert done.numbers == sum(
        4 * (m + n) for m, n in 3 * [(48, 48), (24, 48), (24, 48), (48, 48), (96, 48), (96, 48), (48, 96)]
    )
    assert done.parameters == sum(parameter.numel() for parameter in loaded(model).parameters())
    served = PeftModel.from_pretrained(loaded(model), tmp_path / "out").eval()
    before = logits(loaded(model))
    assert far(logits(served), before) > 0.1
    # The held-out loss is that of the export: the same examples, drawn by the same seed.
    words = tokenizer()
    examples = examples_of(read_records(data, labelled=False), words, 64)
    held = divided(examples, course)[1]
    total = [
        served(**collate([example.table], words.pad_token_id)).loss.item()
        * (sum(x != MASKED for x in example.labels[1:]))  # type: ignore[index]
        for example in held
    ]
    counts = [sum(x != MASKED for x in example.labels[1:]) for example in held]  # type: ignore[index]
    assert sum(total) / sum(counts) == pytest.approx(done.judged[30], rel=1e-5)


def test_a_classifier_learns_to_tell_two_kinds(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=300, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4, num_labels=2
    )
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    tokenizer().save_pretrained(tmp_path / "bert")
    lines = [json.dumps({"text": f"{'no' if i % 2 else 'yes'} {SENTENCES[i % 5]}", "label": i % 2}) for i in range(40)]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    course = Course(steps=60, batch=8, rate=5e-3, judge=60, held_out=0.2)
    done = tune(
        tmp_path / "bert", tmp_path / "data.jsonl", tmp_path / "out", RECIPES["lora"](), labels=2, course=course
    )
    assert done.judged[60] < 0.3 < done.trained[10]
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "bert", num_labels=2)
    served = PeftModel.from_pretrained(base, tmp_path / "out").eval()
    words = tokenizer()
    answers = [
        int(served(input_ids=torch.tensor([words(f"{word} {SENTENCES[0]}")["input_ids"]])).logits.argmax())
        for word in ("yes", "no")
    ]
    assert answers == [0, 1]
    assert done.numbers > sum(8 * (m + n) for m, n in 2 * [*(4 * [(48, 48)]), (80, 48), (48, 80)])  # the head as well


@pytest.mark.parametrize("recipe", ["pissa", "kasa", "increlora"])
def test_parts_of_a_step_add_up_to_it(recipe: str, model: Path, data: Path, tmp_path: Path) -> None:
    """Accumulated in four parts, the penalty counted once."""
    numbers = {}
    for parts in (1, 4):
        course = Course(steps=4, batch=4, accumulate=parts, rate=1e-3, held_out=0.0)
        done = tune(model, data, tmp_path / f"{recipe}{parts}", RECIPES[recipe](), rank=4, course=course)
        numbers[parts] = logits(PeftModel.from_pretrained(loaded(model), done.folder).eval())
    assert far(numbers[1], numbers[4]) < 1e-3


def test_outputs_are_held_in_training(model: Path, data: Path, tmp_path: Path) -> None:
    """The more the divergence from the untouched model costs, the nearer to it training ends."""
    before, moved = logits(loaded(model)), []
    for weight in (0.0, 0.3, 30.0):
        recipe = replace(RECIPES["pissa"](), outputs=(Divergence(weight),))
        course = Course(steps=12, batch=4, accumulate=2, rate=1e-2, held_out=0.0)
        done = tune(model, data, tmp_path / f"{weight}", recipe, rank=4, course=course)
        moved.append(far(logits(PeftModel.from_pretrained(loaded(model), done.folder).eval()), before))
    assert moved[0] > moved[1] > 1.3 * moved[2]


def test_training_ends_early_with_the_best(model: Path, data: Path, tmp_path: Path) -> None:
    """On sentences that occur once, so that what is learnt by heart does not help with those held out."""
    few = tmp_path / "few.jsonl"
    few.write_text("\n".join(json.dumps({"text": sentence}) for sentence in SENTENCES))
    course = Course(steps=90, batch=4, rate=3e-2, judge=3, save=3, patience=2, held_out=0.3)
    done = tune(model, few, tmp_path / "out", RECIPES["lora"](), rank=4, course=course)
    best = min(done.judged, key=lambda step: done.judged[step])
    assert max(done.judged) == best + 6 < 90
    held = divided(examples_of(read_records(few, labelled=False), tokenizer(), 64), course)[1]
    served = PeftModel.from_pretrained(loaded(model), tmp_path / "out").eval()
    losses = [float(served(**collate([example.table], 2)).loss.detach()) for example in held]
    counts = [len(example.ids) - 1 for example in held]
    total = sum(loss * count for loss, count in zip(losses, counts, strict=True))
    assert total / sum(counts) == pytest.approx(done.judged[best], rel=1e-5)  # the export is that of the best step


def test_steps_are_counted_from_one(model: Path, data: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []

    class Noted(Constant):
        def watches(self, step: int, steps: int) -> bool:
            told.append(("before", step, steps))
            return False

        def __call__(self, step: int, steps: int, *given: Any) -> Any:
            told.append(("after", step, steps))
            return super().__call__(step, steps, *given)

    recipe = replace(RECIPES["lora"](), schedule=Noted())
    tune(model, data, tmp_path / "out", recipe, rank=4, course=Course(steps=3, batch=4, held_out=0.0))
    assert told == [(when, step, 3) for step in (1, 2, 3) for when in ("before", "after")]


def test_fewer_directions_are_left_in_the_end(model: Path, data: Path, tmp_path: Path) -> None:
    course = Course(steps=20, batch=4, rate=1e-2, held_out=0.0)
    done = tune(model, data, tmp_path / "out", RECIPES["adalora"](), rank=6, course=course)
    assert sum(done.ranks.values()) == round(2 / 3 * 6 * 21)
    assert len(set(done.ranks.values())) > 1
    assert done.trained[20] < done.trained[10]
    before = logits(loaded(model))
    assert far(logits(PeftModel.from_pretrained(loaded(model), tmp_path / "out").eval()), before) > 1e-2


def test_more_directions_are_there_in_the_end(model: Path, data: Path, tmp_path: Path) -> None:
    course = Course(steps=30, batch=4, rate=1e-2, held_out=0.0)
    done = tune(model, data, tmp_path / "out", RECIPES["increlora"](), rank=6, course=course)
    assert sum(done.ranks.values()) == 6 * 21
    assert len(set(done.ranks.values())) > 1
    assert done.trained[30] < done.trained[10]
    before = logits(loaded(model))
    assert far(logits(PeftModel.from_pretrained(loaded(model), tmp_path / "out").eval()), before) > 1e-2


# ---- kills ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["pissa", "eva", "lora-ga", "adalora", "increlora", "loftq"])
@pytest.mark.parametrize(
    ("function", "when"),
    [
        ("eckart.model.adapting.running:write_begun", "before"),
        ("eckart.model.adapting.running:write_begun", "after"),
        ("eckart.model.adapting.trainer:AdapterTrainer._save", "before"),
        ("eckart.model.adapting.trainer:AdapterTrainer._save_checkpoint", "after"),
        ("eckart.model.adapting.engine:move_into_place", "before"),
        ("eckart.model.adapting.engine:move_into_place", "after"),
    ],
)
def test_a_killed_run_ends_in_the_same_bytes(
    recipe: str, function: str, when: str, model: Path, data: Path, killer: Killer, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ["adapt", model, "--data", data, "-o", out, "--recipe", recipe, *FAST]
    assert killer(*command).code == 0
    wanted = tree(out)
    shutil.rmtree(out)
    again = killer(*command, function=function, call=1, when=when)
    assert again.code == -9, again.err
    while again.code == -9:  # a later save, and again where there is one left
        again = killer(*command, function=function, call=2, when=when)
    assert again.code == 0, again.err
    assert tree(out) == wanted
    assert not work_folder(out).exists()


def test_another_run_is_told_from_an_unfinished_one(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    command = ["adapt", model, "--data", data, "-o", out, *FAST]

    def ended(*_: object, **__: object) -> None:
        raise EckartError("ended in the middle")

    with monkeypatch.context() as patched:
        patched.setattr("eckart.model.adapting.running.written", ended)
        assert "ended in the middle" in refused(*command)
    assert "holds an unfinished run with another course" in refused(*command, "--rate", "1e-3")
    assert cli(*command, "--rate", "1e-3", "--restart").code == 0


# ---- the command ------------------------------------------------------------------------------------------------------


def test_the_command_tells_what_came_out(model: Path, data: Path, tmp_path: Path) -> None:
    outcome = cli(
        "adapt",
        model,
        "--data",
        data,
        "-o",
        tmp_path / "out",
        "--recipe",
        "svft",
        *FAST,
        "--export-rank",
        "4",
        "--json",
    )
    assert outcome.code == 0, outcome.err
    table: Any = json.loads(outcome.out)
    assert table["numbers"] == sum(
        min(m, n) for m, n in 3 * [(48, 48), (24, 48), (24, 48), (48, 48), (96, 48), (96, 48), (48, 96)]
    )
    assert set(table["judged"]) == {"3", "6", "9", "12"}
    assert 0 < max(table["left_out"].values()) < 1
    shown = cli("adapt", model, "--data", data, "-o", tmp_path / "other", "--only", "q_proj", *FAST)
    assert "held-out loss" in shown.out
    assert "exported 3 maps at rank 4" in shown.out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--recipe", "lroa"), "there is no recipe 'lroa' for adapters: known are full, lora"),
        (("--rank", "99"), "cannot be adapted so: rank 99 of a map of"),
        (("--only", "q_prj"), "no linear map of the model is called 'q_prj': near are q_proj"),
        (("--batch", "6", "--accumulate", "4"), "6 examples a step can't be added up from 4 equal parts"),
        (("--rate", "0"), "the learning rate is 0"),
        (("--held-out", "1"), "shares from 0 to below 1"),
        (("--patience", "1", "--save", "5"), "make --save a multiple of --judge"),
        (("--data", "nowhere.jsonl"), "nowhere.jsonl cannot be read"),
        (("--labels", "2"), "line 1 has prompt, completion"),
    ],
)
def test_what_cannot_be_is_told(
    options: tuple[str, ...], sentence: str, model: Path, data: Path, tmp_path: Path
) -> None:
    told = refused("adapt", model, "--data", data, "-o", tmp_path / "out", *FAST, *options)
    assert sentence in told


def test_a_course_is_one_that_can_be_run() -> None:
    with pytest.raises(EckartError, match="intervals are at least 1"):
        Course(save=0)
