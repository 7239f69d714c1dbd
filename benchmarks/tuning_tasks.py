"""What adapters are compared on: trained models, what they shall learn, and what they learnt before and may forget."""

from __future__ import annotations

import csv
import gzip
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from stories import convert
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, PreTrainedModel

from eckart.model.adapting.records import Example, collate, examples_of
from eckart.model.evaluate import load, score_ids
from eckart.model.text import encode, load_tokenizer

Batch = Mapping[str, Tensor]
LENGTH = 64  # tokens of a window or of a record
JUDGED = 96  # examples that choose the rate, and as many that judge
MEMORY = 2048  # tokens of the text on which a model may forget
HIDDEN = 0.15  # share of the tokens that a masked language model has to guess


@dataclass(frozen=True)
class Task:
    """A model in a folder, examples to learn from, to choose by and to judge by, and a text of what was learnt before."""

    name: str
    folder: Path
    train: tuple[Example, ...]
    choose: tuple[Example, ...]
    judge: tuple[Example, ...]
    before: Path
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
        return BertForSequenceClassification.from_pretrained(self.folder, num_labels=self.labels, dtype=torch.float32)

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
        """Nats per token on the text of before: of the next token, or of those that are hidden."""
        ids = encode(load_tokenizer(self.folder), self.before.read_text(encoding="utf-8"))[:MEMORY]
        model.eval()
        if self.labels is None:
            return score_ids(model, ids, 256).mean
        whole = BertForMaskedLM.from_pretrained(self.folder, dtype=torch.float32).eval()
        whole.bert.encoder, whole.bert.embeddings = model.bert.encoder, model.bert.embeddings
        with torch.no_grad():
            return float(torch.stack([whole(**batch).loss for batch in _masked(ids, seed=1)]).mean())


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
    folder = scratch / "bert"
    if not (folder / "config.json").exists():
        _learnt(data, scratch / "bert-work")
        (scratch / "bert-work").rename(folder)
    tokenizer = load_tokenizer(folder)

    def read(name: str, count: int) -> tuple[Example, ...]:
        with (data / "sst2" / f"{name}.tsv").open(encoding="utf-8") as handle:
            rows = list(csv.reader(handle, delimiter="\t", quoting=csv.QUOTE_NONE))
        random.Random(0).shuffle(rows)
        records = [{"text": f"{tokenizer.bos_token}{text}", "label": int(label)} for text, label in rows[:count]]
        return tuple(examples_of(records, tokenizer, LENGTH))

    return Task("bert-sst2", folder, read("train", 6920), read("dev", 872), read("test", 872), scratch / "wiki.txt", 2)


def _learnt(data: Path, folder: Path) -> PreTrainedModel:
    """A small BERT that learnt to guess hidden words of WikiText-2 and, unlabelled, of what it will judge; none is at hand."""
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = load_tokenizer(data / "wikitext2_llama_8m")
    text = gzip.decompress((data / "wikitext2" / "train.txt.gz").read_bytes()).decode()[:2_000_000]
    said = (data / "sst2" / "train.tsv").read_text(encoding="utf-8").splitlines()
    ids = encode(tokenizer, text + "\n".join(line.rpartition("\t")[0] for line in said) * 4)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=128,
    )
    model = BertForMaskedLM(config).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, total_steps=STEPS)
    for step in range(STEPS):
        starts = torch.randint(0, len(ids) - LENGTH, (8,), generator=torch.Generator().manual_seed(step))
        (batch,) = _masked(torch.cat([ids[at : at + LENGTH] for at in starts]), seed=step, size=8)
        model(**batch).loss.backward()
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


STEPS = 2000  # of what a BERT learns before


def _masked(ids: Tensor, seed: int, size: int = 16) -> Iterator[Batch]:
    """Windows of a text in which some tokens are hidden, by the last id of the vocabulary, and are the labels; all begin with id 0."""
    rows = ids[: len(ids) // LENGTH * LENGTH].reshape(-1, LENGTH).clone()
    rows[:, 0] = 0
    hidden = torch.rand(rows.shape, generator=torch.Generator().manual_seed(seed)) < HIDDEN
    hidden[:, 0] = False
    for at in range(0, len(rows), size):
        part, there = rows[at : at + size], hidden[at : at + size]
        yield {"input_ids": part.masked_fill(there, 4095), "labels": part.masked_fill(~there, -100)}
