"""What adapters are compared on: trained models, what they shall learn, and what they learnt before and may forget."""

from __future__ import annotations

import csv
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from stories import convert
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from eckart.model.adapting.records import Example, collate, examples_of
from eckart.model.evaluate import load, score_ids
from eckart.model.text import encode, load_tokenizer

Batch = Mapping[str, Tensor]
LENGTH = 64  # tokens of a window or of a record
JUDGED = 96  # examples that choose the rate, and as many that judge
LEARNT = 600  # steps of what a classifier learns before
MEMORY = 2048  # tokens of the text on which a model may forget


@dataclass(frozen=True)
class Task:
    """A model in a folder, examples to learn from, to choose by and to judge by, and a text, or examples, of what was learnt before."""

    name: str
    folder: Path
    train: tuple[Example, ...]
    choose: tuple[Example, ...]
    judge: tuple[Example, ...]
    before: Path | tuple[Example, ...]
    labels: int | None = None

    @property
    def padding(self) -> int:
        """The token that fills batches up."""
        return load_tokenizer(self.folder).pad_token_id or 0

    def model(self) -> Any:
        """The model as it is before; the head of a classifier is the same every time."""
        if self.labels is None:
            return load(self.folder, dtype=torch.float32)
        torch.manual_seed(0)
        model = BertForSequenceClassification.from_pretrained(self.folder, dtype=torch.float32)
        model.classifier.reset_parameters()
        return model

    def batches(self, examples: Sequence[Example], size: int, seed: int | None = None) -> Iterator[Batch]:
        """Batches of a size: in order, once; with a seed without end, every time in another order."""
        if seed is None:
            for at in range(0, len(examples), size):
                yield collate([example.table for example in examples[at : at + size]], self.padding)
            return
        rng = random.Random(seed)
        order: list[int] = []
        while True:
            if len(order) < size:
                order = rng.sample(range(len(examples)), len(examples))
            taken, order = order[:size], order[size:]
            yield collate([examples[i].table for i in taken], self.padding)

    @torch.no_grad()
    def losses(self, model: Any, examples: Sequence[Example]) -> tuple[float, float]:
        """Mean loss, per token or per text, and for a classifier the share of texts that it tells rightly."""
        model.eval()
        total, count, right = 0.0, 0, 0
        for batch in self.batches(examples, 32):
            found = model(**batch)
            one = len(batch["labels"]) if self.labels else int((batch["labels"][:, 1:] >= 0).sum())
            total, count = total + float(found.loss) * one, count + one
            right += int((found.logits.argmax(-1) == batch["labels"]).sum()) if self.labels else 0
        return total / count, right / count

    def remembered(self, model: Any) -> float:
        """Nats per token on the text of before, of a classifier per text that it learnt from before."""
        if not isinstance(self.before, Path):
            return self.losses(model, self.before)[0]
        ids = encode(load_tokenizer(self.folder), self.before.read_text(encoding="utf-8"))[:MEMORY]
        model.eval()
        return score_ids(model, ids, 256).mean


def tasks(data: Path, scratch: Path, names: Sequence[str]) -> dict[str, Task]:
    """The tasks of these names; models that have to be made first lie in ``scratch`` and are made once."""
    stories = scratch / "stories"
    if not stories.exists():
        convert(data, stories)
    llama = data / "wikitext2_llama_8m"
    tiny = (data / "tinystories_sample" / "tinystories_val.txt").read_text(encoding="utf-8")[-60_000:]
    wiki = (data / "wikitext2" / "test.txt").read_text(encoding="utf-8")[:60_000]
    (scratch / "tiny.txt").write_text(tiny, encoding="utf-8")
    (scratch / "wiki.txt").write_text(wiki, encoding="utf-8")
    play = (data / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    meals = [_meal(line) for name in ("valid", "test") for line in _lines(data / "e2e_nlg" / f"lora_{name}.txt")]
    makers: dict[str, Callable[[], Task]] = {
        "stories-e2e": lambda: _language("stories-e2e", stories, meals, scratch / "tiny.txt", length=2 * LENGTH),
        "stories-shakespeare": lambda: _language("stories-shakespeare", stories, _windows(play), scratch / "tiny.txt"),
        "llama-shakespeare": lambda: _language("llama-shakespeare", llama, _windows(play), scratch / "wiki.txt"),
        "bert-sst2": lambda: _sentiment(data, scratch),
    }
    return {name: makers[name]() for name in names}


def _language(name: str, folder: Path, records: list[dict[str, Any]], before: Path, length: int = LENGTH) -> Task:
    tokenizer = load_tokenizer(folder)
    random.Random(0).shuffle(records)
    examples = examples_of(records, tokenizer, length)
    examples = [example for example in examples if len(example.ids) > 8]
    judge, choose, train = examples[:JUDGED], examples[JUDGED : 2 * JUDGED], examples[2 * JUDGED :]
    return Task(name, folder, tuple(train), tuple(choose), tuple(judge), before)


def _windows(text: str) -> list[dict[str, Any]]:
    """Pieces of a text as records, cut at the ends of lines."""
    pieces, piece = [], ""
    for line in text.splitlines(keepends=True):
        piece += line
        if len(piece) > 200:
            pieces.append({"text": piece})
            piece = ""
    return pieces


def _meal(line: str) -> dict[str, Any]:
    slots, _, sentence = line.partition("||")
    return {"prompt": f"{slots.strip()} ||", "completion": f" {sentence.strip()}"}


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _sentiment(data: Path, scratch: Path) -> Task:
    """A small BERT that has learnt from the first half of SST-2, all of it, is to learn from the second half, with a new head."""
    folder = scratch / "bert"
    tokenizer = load_tokenizer(data / "wikitext2_llama_8m")

    def read(name: str) -> list[Example]:
        with (data / "sst2" / f"{name}.tsv").open(encoding="utf-8") as handle:
            rows = list(csv.reader(handle, delimiter="\t", quoting=csv.QUOTE_NONE))
        random.Random(0).shuffle(rows)
        records = [{"text": f"{tokenizer.bos_token}{text}", "label": int(label)} for text, label in rows]
        return examples_of(records, tokenizer, LENGTH)

    train, half = read("train"), 3460
    before = tuple(train[:half])
    if not (folder / "config.json").exists():
        work = scratch / "bert-work"
        shutil.rmtree(work, ignore_errors=True)
        _learnt(before, len(tokenizer)).save_pretrained(work)
        tokenizer.save_pretrained(work)
        work.rename(folder)
    after, choose, judge = tuple(train[half:]), tuple(read("dev")[:400]), tuple(read("test")[:800])
    return Task("bert-sst2", folder, after, choose, judge, before[:400], 2)


def _learnt(examples: Sequence[Example], vocabulary: int) -> Any:
    """A small BERT after some rounds through examples, for none that others trained is at hand."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = BertForSequenceClassification(BertConfig(vocab_size=vocabulary, num_labels=2, **sizes)).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, total_steps=LEARNT)
    rng = random.Random(0)
    for _ in range(LEARNT):
        model(**collate([example.table for example in rng.sample(examples, 32)], 0)).loss.backward()
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
    return model.eval()
