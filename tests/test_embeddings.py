"""Adapters of embeddings: what stock PEFT makes of them on the untouched model, tied heads, and what they have no place for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import ARCHITECTURES, SENTENCES, VOCABULARY, tokenizer
from outputs import far, loaded, logits, token_ids
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BertConfig, BertForSequenceClassification

from eckart.adapt import Course, tune
from eckart.adapters.forms import Band
from eckart.errors import EckartError
from eckart.model.adapting.export import export
from eckart.model.adapting.modules import AdaptedEmbedding, matrix_of
from eckart.model.adapting.records import collate, examples_of, read_records
from eckart.model.adapting.wrap import targets_of, wrap
from eckart.model.adapting.wrapped import Wrapped
from eckart.model.surgery import merge
from eckart.recipes.adapters import ADAPTERS
from eckart.recipes.adapters.others import semi_nmf_embeddings
from eckart.recipes.adapters.pairs import RANDOM, lora
from eckart.recipes.adapters.products import svft

RANK = 5
TABLES = {
    "llama": "model.embed_tokens",
    "gpt2": "transformer.wte",
    "bert": "bert.embeddings.word_embeddings",
    "gemma3": "model.embed_tokens",
}
TIED = ("gpt2", "gemma3")
OF_MOMENTS = ("corda", "corda-preview", "eva")
NOT_OF_IDS = ("dora", "flylora", "moe-lora-riemannian")  # rows of lengths, and directions by what the inputs are
SMALLER = ("loram", "loram-width")
OF_HIGH_RANK = ("svft", "dota", "smt", "full", "semi-nmf-embeddings")
ROUNDED = ("qlora", "qpissa", "qdota", "loftq")
SEARCHED = ("autolora", "diffora")  # for ranks of many maps
PLAIN = [key for key in ADAPTERS if key not in (*OF_MOMENTS, *NOT_OF_IDS, *SMALLER, *OF_HIGH_RANK, *ROUNDED, *SEARCHED)]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: ARCHITECTURES[name](tmp_path_factory.mktemp(name) / "model") for name in ("llama", "gpt2", "gemma3")}


def model_of(kind: str, shelf: dict[str, Path]) -> Any:
    if kind != "bert":
        return loaded(shelf[kind])
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = BertForSequenceClassification(BertConfig(vocab_size=VOCABULARY, num_labels=3, **sizes)).eval()
    for parameter in model.parameters():
        parameter.data *= 6 if parameter.ndim == 2 else 1
    return model


def batch(kind: str) -> dict[str, Tensor]:
    ids = token_ids()
    return {"input_ids": ids, "labels": torch.tensor([0, 2, 1]) if kind == "bert" else ids}


def train(made: Wrapped, kind: str, steps: int = 3, rate: float = 1e-2) -> None:
    optimiser = torch.optim.AdamW(made.groups(rate))
    for _ in range(steps):
        made.model(**batch(kind)).loss.backward()
        optimiser.step()
        optimiser.zero_grad()


SHORT = ("lora", "pissa", "kasa", "vera", "smt")  # on all models; the others on one, and on all in the slow tests
CASES = [
    pytest.param(key, kind, marks=() if kind == "llama" or key in SHORT else pytest.mark.slow)
    for key in PLAIN
    for kind in TABLES
]


@pytest.mark.parametrize(("key", "kind"), CASES)
def test_an_adapted_embedding_is_served_by_peft(key: str, kind: str, shelf: dict[str, Path], tmp_path: Path) -> None:
    model = model_of(kind, shelf)
    before, table = logits(model), matrix_of(model.get_submodule(TABLES[kind])).clone()
    recipe = ADAPTERS[key]()
    options = {"rank": RANK + 1, "only": [TABLES[kind].rpartition(".")[2]], "batches": [batch(kind)]}
    if kind in TIED and type(recipe.base).__name__ != "Untouched":
        with pytest.raises(
            EckartError, match=r"are one weight, and nothing can be taken of it for one alone: start at zero \(lora\)"
        ):
            wrap(model, recipe, **options)
        assert far(logits(model), before) == 0
        return
    made = wrap(model, recipe, **options)
    assert list(made.adapters) == [TABLES[kind]]
    assert isinstance(made.adapters[TABLES[kind]], AdaptedEmbedding)
    close = 1e-4 if key in ("nlora", "inttune") else 1e-5
    assert (far(logits(model), before) < close) == (key not in ("kasa", "lora-sb"))
    with made.untouched():
        assert far(logits(model), before) < close
    train(made, kind)
    after = logits(model)
    assert far(after, before) > 1e-3
    export(made, tmp_path / "adapter")
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    names = {f"base_model.model.{TABLES[kind]}.lora_embedding_{side}" for side in "AB"}
    assert stored.keys() == names
    served = PeftModel.from_pretrained(model_of(kind, shelf), tmp_path / "adapter").eval()
    assert far(logits(served), after) < close
    # A head that is tied never had an adapter, and keeps the weight.
    if kind in TIED:
        assert torch.equal(model.get_output_embeddings().weight, table)
    merged = made.merge()
    assert far(logits(merged), after) < close
    if kind in TIED:
        assert torch.equal(merged.get_output_embeddings().weight, table)
        merged.save_pretrained(tmp_path / "merged")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
        assert far(logits(again), after) < close
        merge(shelf[kind], tmp_path / "adapter", tmp_path / "other")
        assert far(logits(loaded(tmp_path / "other")), after) < close


def test_rows_are_those_of_the_table(shelf: dict[str, Path]) -> None:
    """In float64, by hand: row t is ``E_t + s F_t G``, and what no id names gets no gradient."""
    made = wrap(loaded(shelf["llama"]), lora(alpha=10.0), rank=RANK, only=["embed_tokens"])
    adapter = made.adapters["model.embed_tokens"]
    assert adapter.params["left"].shape == (VOCABULARY, RANK)
    assert float(adapter.params["left"].detach().abs().max()) == 0  # so that ids that are never seen stay as they are
    train(made, "llama", steps=2)
    seen = set(token_ids()[:, :-1].flatten().tolist())  # of the last ones nothing is asked
    moved = adapter.params["left"].detach().abs().sum(1) > 0
    assert set(moved.nonzero().flatten().tolist()) == seen
    table = adapter.base.weight.detach().double().numpy()
    left, right = (adapter.params[side].detach().double().numpy() for side in ("left", "right"))
    ids = torch.tensor([[3, 7], [7, 299]])
    expected = table[ids] + 10.0 / RANK * left[ids] @ right
    assert float((adapter(ids).detach().double() - torch.from_numpy(expected)).abs().max()) < 1e-6


def test_the_same_course_as_peft(shelf: dict[str, Path]) -> None:
    made = wrap(loaded(shelf["gemma3"]), lora(), rank=RANK, only=["embed_tokens"])
    theirs = get_peft_model(loaded(shelf["gemma3"]), LoraConfig(r=RANK, lora_alpha=16, target_modules=["embed_tokens"]))
    module = theirs.base_model.model.model.embed_tokens
    with torch.no_grad():
        module.lora_embedding_B["default"].copy_(made.adapters["model.embed_tokens"].params["right"].T)
    train(made, "gemma3", 10, 1e-1)
    optimiser = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], lr=1e-1, weight_decay=0.0)
    for _ in range(10):
        theirs(**batch("gemma3")).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    own = made.adapters["model.embed_tokens"].update.dense()
    their = (module.lora_embedding_B["default"] @ module.lora_embedding_A["default"]).T * 16 / RANK
    assert far(own, their) < 1e-3
    assert far(logits(made.model), logits(theirs)) < 1e-3


def test_what_is_of_no_low_rank_is_truncated(shelf: dict[str, Path], tmp_path: Path) -> None:
    made = wrap(loaded(shelf["llama"]), svft(Band(1)), rank=RANK, only=["embed_tokens"])
    train(made, "llama", rate=1e-1)
    after = logits(made.model)
    done = export(made, tmp_path / "adapter", rank=48)
    assert done.ranks == {"model.embed_tokens": 48}
    served = PeftModel.from_pretrained(loaded(shelf["llama"]), tmp_path / "adapter").eval()
    assert far(logits(served), after) < 1e-4
    assert far(logits(made.merge()), after) < 1e-5


def test_nothing_of_the_table_is_left_under_semi_nonnegative_factors(shelf: dict[str, Path], tmp_path: Path) -> None:
    """What was looked up is ``F G``, of which F trains: a number for each token and rank; and the whole table comes back."""
    stock = loaded(shelf["llama"])
    table = matrix_of(stock.model.embed_tokens).detach().clone()
    before = logits(stock)
    made = wrap(loaded(shelf["llama"]), semi_nmf_embeddings(), rank=20, only=["embed_tokens"])
    adapter = made.adapters["model.embed_tokens"]
    assert made.numbers == VOCABULARY * 20
    assert float(adapter.base.weight.abs().max()) == 0
    left, right = (adapter.params[side].detach().clone() for side in ("left", "right"))
    assert float(right.min()) >= 0
    values = torch.linalg.svdvals(table.double()).square()
    error = float((table - left @ right).double().square().sum())
    assert float(values[20:].sum()) * (1 - 1e-6) <= error <= float(values[19:].sum()) * (1 + 1e-6)
    stock.model.embed_tokens.weight.data = left @ right
    assert far(logits(made.model), logits(stock)) < 1e-5
    with made.untouched():
        assert far(logits(made.model), before) < 1e-5
    train(made, "llama")
    assert torch.equal(adapter.params["right"], right)
    assert not torch.equal(adapter.params["left"], left)
    # The change of the table is of full rank, and is written as such where there is room for it.
    after = logits(made.model)
    export(made, tmp_path / "adapter", rank=48)
    served = PeftModel.from_pretrained(loaded(shelf["llama"]), tmp_path / "adapter").eval()
    assert far(logits(served), after) < 1e-4
    assert far(logits(made.merge()), after) < 1e-5


@pytest.mark.parametrize("key", ["pissa", "semi-nmf-embeddings"])
def test_an_embedding_is_fine_tuned_from_records(key: str, shelf: dict[str, Path], tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps({"text": sentence}) for sentence in SENTENCES * 3))
    course = Course(steps=20, batch=4, rate=1e-2, held_out=0.0)
    options: dict[str, Any] = {"rank": 20, "only": ["embed_tokens"], "course": course, "export_rank": 48}
    done = tune(shelf["llama"], data, tmp_path / "out", ADAPTERS[key](), **options)
    assert list(done.ranks) == ["model.embed_tokens"]
    assert done.trained[20] < done.trained[10]
    words = tokenizer()
    batch = collate(
        [e.table for e in examples_of(read_records(data, labelled=False), words, 64)[:6]], words.pad_token_id
    )
    served = PeftModel.from_pretrained(loaded(shelf["llama"]), tmp_path / "out").eval()
    assert float(served(**batch).loss) < done.trained[10]


def test_embeddings_are_adapted_where_they_are_named(shelf: dict[str, Path]) -> None:
    model = loaded(shelf["gpt2"])
    tables = {name for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    assert tables == {"transformer.wte", "transformer.wpe"}
    assert not tables & set(targets_of(model))
    assert targets_of(model, ["wte", "*.0.mlp.c_fc"]) == ["transformer.wte", "transformer.h.0.mlp.c_fc"]
    assert "transformer.wpe" in targets_of(model, ["*"], ["wte"])


@pytest.mark.parametrize("key", OF_MOMENTS)
def test_there_are_no_moments_of_ids(key: str, shelf: dict[str, Path]) -> None:
    with pytest.raises(
        EckartError, match=r"model\.embed_tokens is an embedding, which has no inputs to take moments of: leave it out"
    ):
        wrap(
            loaded(shelf["llama"]),
            ADAPTERS[key](),
            rank=RANK,
            only=["embed_tokens", "q_proj"],
            batches=[batch("llama")],
        )


@pytest.mark.parametrize("key", NOT_OF_IDS)
def test_what_goes_by_outputs_or_inputs_is_refused(key: str, shelf: dict[str, Path]) -> None:
    with pytest.raises(
        EckartError, match=r"model\.embed_tokens cannot be adapted so: it is an embedding, and (Directed|Gated) goes by"
    ):
        wrap(loaded(shelf["llama"]), ADAPTERS[key](), rank=RANK, only=["embed_tokens"])


def test_heads_that_are_tied_are_told_apart_from_others(shelf: dict[str, Path]) -> None:
    recipe = replace(ADAPTERS["pissa"](), start=RANDOM)
    for name in ("lm_head", "wte"):
        with pytest.raises(EckartError, match=r"transformer\.wte and lm_head are one weight"):
            wrap(loaded(shelf["gpt2"]), recipe, rank=RANK, only=[name])
    wrap(loaded(shelf["llama"]), recipe, rank=RANK, only=["lm_head", "embed_tokens"])
