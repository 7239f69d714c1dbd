"""A model under another vocabulary: rows that are copied and rows that are drawn, one map that stays, and a stock checkpoint in the end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import ARCHITECTURES, VOCABULARY, tokenizer
from outputs import far, loaded
from tokenizers import Tokenizer
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from eckart.adapt import overlap, transfer, wrap
from eckart.adapters.sources import OfWeight
from eckart.adapters.split import Even
from eckart.adapters.start import Start
from eckart.errors import EckartError
from eckart.model.adapting.modules import matrix_of
from eckart.recipes.adapters import ADAPTERS
from eckart.recipes.adapters.others import semi_nmf_embeddings

RANK = 20
# Every third old token is a new one, in another order, among as many that are new.
SOURCES: tuple[int | None, ...] = tuple(
    None if new % 2 else 3 * ((new * 7) % 50) + (1 if new % 4 else 0) for new in range(200)
)
TIED = ("gpt2", "gemma3", "bert")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: ARCHITECTURES[name](tmp_path_factory.mktemp(name) / "model") for name in ("llama", "gpt2", "gemma3")}


def model_of(kind: str, shelf: dict[str, Path]) -> Any:
    if kind != "bert":
        return loaded(shelf[kind])
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = BertForMaskedLM(BertConfig(vocab_size=VOCABULARY, **sizes)).eval()
    model.cls.predictions.bias.data.normal_()
    return model


def ids() -> Tensor:
    return torch.randint(0, len(SOURCES), (3, 16), generator=torch.Generator().manual_seed(4))


@torch.no_grad()
def said(model: Any) -> Tensor:
    found: Tensor = model(input_ids=ids()).logits
    return found


def tail(matrix: Tensor, rank: int) -> float:
    values = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    return float(np.sqrt((values[rank:] ** 2).sum()))


@pytest.mark.parametrize("kind", ["llama", *TIED])
def test_a_model_under_another_vocabulary(kind: str, shelf: dict[str, Path], tmp_path: Path) -> None:
    model, stock = model_of(kind, shelf), model_of(kind, shelf)
    tables = [stock.get_input_embeddings(), *([] if kind in TIED else [stock.get_output_embeddings()])]
    made = transfer(model, SOURCES, semi_nmf_embeddings(), rank=RANK)
    adapters = made.wrapped.adapters
    # A row of numbers for each new token trains, and nothing else.
    assert made.wrapped.numbers == len(SOURCES) * RANK * len(tables)
    trains = {id(parameter) for _, parameter, _ in made.wrapped.trainable()}
    assert {id(parameter) for parameter in model.parameters() if parameter.requires_grad} == trains
    known = [new for new, old in enumerate(SOURCES) if old is not None]
    for table, (name, adapter) in zip(tables, adapters.items(), strict=True):
        old = wrap(model_of(kind, shelf), semi_nmf_embeddings(), rank=RANK, only=[name]) if kind not in TIED else None
        if old is not None:  # the same factors as the recipe gives the table where it stays
            left = old.adapters[name].params["left"]
            assert torch.equal(adapter.params["left"][known], left[[SOURCES[new] for new in known]])
        right, bound = adapter.params["right"], made.bounds[name]
        assert float(right.min()) >= 0
        whole = matrix_of(table).detach()
        assert tail(whole, RANK) * (1 - 1e-6) <= bound.achieved <= tail(whole, RANK - 1) * (1 + 1e-4)
        # The rows of tokens that are known are those of F, and so their products the nearest in the span of G.
        best = whole.double() @ torch.linalg.pinv(right.double()) @ right.double()
        rows = (adapter.params["left"] @ right).double()
        assert far(rows[known], best[[SOURCES[new] for new in known]]) < 1e-4
    before = {name: adapter.params["right"].clone() for name, adapter in adapters.items()}
    # An embedding of zeros below: what is looked up is F' G, and a tied head reads by the same.
    looked_up = next(iter(adapters.values()))
    scale = getattr(looked_up.base, "embed_scale", 1.0)
    assert far(looked_up(ids()), scale * looked_up.update.dense()[ids()]) < 1e-6
    optimiser = torch.optim.AdamW(made.wrapped.groups(1e-2))
    losses = []
    for _ in range(15):
        loss = model(input_ids=ids(), labels=ids()).loss
        loss.backward()
        losses.append(float(loss.detach()))
        optimiser.step()
        optimiser.zero_grad()
    assert losses[-1] < losses[0] - 0.1
    assert all(torch.equal(adapter.params["right"], before[name]) for name, adapter in adapters.items())
    after, products = said(model), {name: adapter.update.dense().detach() for name, adapter in adapters.items()}
    # What comes out is a stock model.
    merged = made.merge()
    assert far(said(merged), after) < 1e-5
    for name, product in products.items():
        assert far(matrix_of(merged.get_submodule(name)), product) < 1e-5
    assert (merged.get_output_embeddings().weight is merged.get_input_embeddings().weight) == (kind in TIED)
    merged.save_pretrained(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == len(SOURCES)
    again = type(merged).from_pretrained(tmp_path / "out").eval()
    assert far(said(again), after) < 1e-5


def test_biases_of_a_head_go_along(shelf: dict[str, Path]) -> None:
    model = model_of("bert", shelf)
    old = model.cls.predictions.bias.detach().clone()
    made = transfer(model, SOURCES, semi_nmf_embeddings(), rank=RANK)
    bias = made.merge().cls.predictions.bias
    for new, source in enumerate(SOURCES):
        assert float(bias[new]) == pytest.approx(float(old.mean() if source is None else old[source]))


def test_new_rows_are_drawn_like_the_old_ones(shelf: dict[str, Path]) -> None:
    """Mean and covariance, within five standard errors of their estimates; and by the seed alone."""
    count = 20000
    first, again, other = (
        transfer(loaded(shelf["llama"]), [None] * count, semi_nmf_embeddings(), rank=4, seed=seed) for seed in (0, 0, 1)
    )
    wholes = wrap(loaded(shelf["llama"]), semi_nmf_embeddings(), rank=4, only=["embed_tokens", "lm_head"]).adapters
    for name, adapter in first.wrapped.adapters.items():
        drawn, rows = adapter.params["left"].detach().double(), wholes[name].params["left"].detach().double()
        mean, covariance = rows.mean(0), torch.cov(rows.T)
        deviation = covariance.diagonal().sqrt()
        assert bool(((drawn.mean(0) - mean).abs() < 5 * deviation / count**0.5).all())
        error = (torch.outer(deviation, deviation).square() + covariance.square()).sqrt() / count**0.5
        assert bool(((torch.cov(drawn.T) - covariance).abs() < 5 * error).all())
        assert torch.equal(again.wrapped.adapters[name].params["left"], adapter.params["left"])
        assert not torch.equal(other.wrapped.adapters[name].params["left"], adapter.params["left"])


def test_the_best_of_the_rank_is_never_farther(shelf: dict[str, Path]) -> None:
    """The baseline: a truncated singular value decomposition in the same place."""
    svd = replace(semi_nmf_embeddings(), start=Start(OfWeight(accuracy=0.0), split=Even()))
    for rank in (1, 5, 40):
        ours, best = (
            transfer(loaded(shelf["llama"]), SOURCES, recipe, rank=rank) for recipe in (semi_nmf_embeddings(), svd)
        )
        for name, bound in best.bounds.items():
            assert bound.achieved <= ours.bounds[name].achieved * (1 + 1e-6)
            assert bound.excess == pytest.approx(1.0, abs=1e-4)
    assert float(best.wrapped.adapters["lm_head"].params["right"].min()) < 0


def test_special_ids_are_told_anew(shelf: dict[str, Path]) -> None:
    model = loaded(shelf["llama"])
    model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id = 0, [1, 7], 2
    model.generation_config.eos_token_id = 1
    made = transfer(model, [5, None, 1, 2, None, 2], semi_nmf_embeddings(), rank=4)
    config = made.merge().config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (None, [2], 3)
    assert model.generation_config.eos_token_id == 2
    assert model.get_input_embeddings().padding_idx == 3


def test_tokens_are_known_by_their_strings_and_roles() -> None:
    old = tokenizer()
    words = old.get_vocab()
    table = json.loads(old.backend_tokenizer.to_str())
    kept = sorted(words, key=lambda token: -words[token])[:100]
    table["model"]["vocab"] = {token: index for index, token in enumerate([*kept, "unheard of", "[CLS]"])}
    table["model"]["merges"], table["added_tokens"] = [], []
    new = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(table)), bos_token="[CLS]", unk_token=kept[3]
    )
    found = overlap(old, new)
    assert found == (*(words[token] for token in kept), None, old.bos_token_id)


@pytest.mark.parametrize(
    ("sources", "key", "rank", "sentence"),
    [
        (
            [0, 300],
            "semi-nmf-embeddings",
            4,
            "300 is no id of the 300 that the model has: give for each new id an old one, or None",
        ),
        ([0, -1], "semi-nmf-embeddings", 4, "-1 is no id of the 300"),
        ([], "semi-nmf-embeddings", 4, "there are no ids: give for each new id"),
        ([0, 1], "lora", 4, r"take such a recipe \(semi-nmf-embeddings\)"),
        ([0, 1], "eva", 4, "found without a text"),
        ([0, 1], "semi-nmf-embeddings", 49, "the embedding cannot be factored so: rank 49"),
    ],
)
def test_what_cannot_be_is_told(
    sources: list[int | None], key: str, rank: int, sentence: str, shelf: dict[str, Path]
) -> None:
    with pytest.raises(EckartError, match=sentence):
        transfer(loaded(shelf["llama"]), sources, ADAPTERS[key](), rank=rank)
