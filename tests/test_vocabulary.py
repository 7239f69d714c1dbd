"""A smaller vocabulary from checkpoint to checkpoint and back: bit by bit what the original computes on the tokens that are left."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import ARCHITECTURES, SENTENCES, SPECIAL, VOCABULARY, shard, tokenizer, variant
from runs import Killer, calibration_text, cli, edit_json, edit_tensor, edit_tensors, left_behind, refused, tiny, tree
from safetensors.torch import load_file
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import eckart
from eckart.allocate import Uniform
from eckart.bonds.choosing import Principal
from eckart.bonds.words import Used
from eckart.errors import EckartError
from eckart.model.certificate import Certificate
from eckart.model.compression import Narrow, Paper, Statistics
from eckart.model.text import ids_for
from eckart.model.words import Vocabulary

DECLARED = ("llama", "llama_tied", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gpt2", "gpt_neox", "opt", "phi")
TIED = ("llama_tied", "gemma2", "gemma3", "gpt2", "opt")
PADDED = 512  # rows of the embedding; the tokenizer has 300
OWN = Paper("own", "")
EMBEDDING = {"gpt2": "transformer.wte", "gpt_neox": "gpt_neox.embed_in", "opt": "model.decoder.embed_tokens"}
TEXT = "She measured the rope twice: the miller keeps the grain in the barn."


def padded(name: str, folder: Path, **more: Any) -> Path:
    """A stand-in whose embedding has more rows than its tokenizer has tokens."""
    return variant(name, folder, **({"vocab_size": PADDED} | more))


def pruned(model: Path, out: Path, text: Path, **options: Any) -> eckart.Compressed:
    return eckart.compress(model, out, recipe="embedding-pruning", calibration=text, **options)


def config(folder: Path) -> dict[str, Any]:
    table: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return table


def stored(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def run(folder: Path, ids: Tensor) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False, output_hidden_states=True), model


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """``model``, untied and padded, and ``small``, made of it."""
    folder = tmp_path_factory.mktemp("ground")
    padded("llama", folder / "model")
    pruned(folder / "model", folder / "small", text)
    return folder


@pytest.fixture
def small(ground: Path, tmp_path: Path) -> Path:
    """A copy to damage or train."""
    return Path(shutil.copytree(ground / "small", tmp_path / "small"))


# ---- what it computes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DECLARED)
def test_on_tokens_that_are_left_it_computes_what_the_original_does(name: str, text: Path, tmp_path: Path) -> None:
    model, out = padded(name, tmp_path / "model"), tmp_path / "out"
    done = pruned(model, out, text)
    words = eckart.vocabulary(out)
    ids = tokenizer()(TEXT, return_tensors="pt").input_ids
    assert not torch.equal(words.shrink(ids), ids)
    (before, old), (after, new) = run(model, ids), run(out, words.shrink(ids))
    assert all(torch.equal(a, b) for a, b in zip(before.hidden_states, after.hidden_states, strict=True))
    # Here bit by bit as well; a product with fewer columns may add up in another order elsewhere.
    wanted = before.logits[..., words.old]
    assert float((after.logits - wanted).abs().max()) <= 8 * torch.finfo(torch.float32).eps * float(wanted.abs().max())
    tied = [m.get_output_embeddings().weight is m.get_input_embeddings().weight for m in (old, new)]
    assert tied == [name in TIED] * 2
    (record,) = done.bonds
    assert (record.name, record.size, record.rank, record.bound) == ("vocabulary", PADDED, len(words.kept), None)
    assert record.kept == words.kept
    weight = f"{EMBEDDING.get(name, 'model.embed_tokens')}.weight"
    assert torch.equal(stored(out)[weight], stored(model)[weight][words.old])
    assert stored(out)[weight].nbytes * PADDED == stored(model)[weight].nbytes * len(words.kept)
    assert config(out) == config(model) | {"vocab_size": len(words.kept)}  # special ids come first, and stay
    assert done.file_bytes[1] == sum(file.stat().st_size for file in out.glob("*.safetensors"))
    again = eckart.verify(out, model, calibration=text)
    assert again.failures == ()
    assert again.not_rechecked == ()


def test_exactly_what_the_text_uses_and_what_is_special_is_left(ground: Path) -> None:
    table = tokenizer()
    single = {token for name, token in table.get_vocab().items() if len(name) == 1}
    assert len(single) == 256
    used = set(table(TEXT).input_ids)
    assert used - single
    words = eckart.vocabulary(ground / "small")
    assert set(words.kept) == used | single | set(range(len(SPECIAL)))
    assert words.size == PADDED
    assert len(table) == VOCABULARY


def test_a_head_with_a_bias_keeps_its_entries(text: Path, tmp_path: Path) -> None:
    model = padded("phi", tmp_path / "model")
    pruned(model, tmp_path / "out", text)
    kept = eckart.vocabulary(tmp_path / "out").old
    for name in ("lm_head.weight", "lm_head.bias"):
        assert torch.equal(stored(tmp_path / "out")[name], stored(model)[name][kept])


def test_a_tied_head_that_is_stored_twice_stays_so(text: Path, tmp_path: Path) -> None:
    model = padded("llama_tied", tmp_path / "model")
    edit_tensors(
        model / "model.safetensors", lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()})
    )
    pruned(model, tmp_path / "out", text)
    found, kept = stored(tmp_path / "out"), eckart.vocabulary(tmp_path / "out").old
    assert torch.equal(found["lm_head.weight"], stored(model)["lm_head.weight"][kept])
    assert torch.equal(found["model.embed_tokens.weight"], found["lm_head.weight"])
    del found["lm_head.weight"]
    eckart.restore(tmp_path / "out", model, tmp_path / "full")
    assert tree(tmp_path / "full") == tree(model)


def test_a_text_that_uses_every_token_leaves_all(tmp_path: Path) -> None:
    model = ARCHITECTURES["llama"](tmp_path / "model")
    table = tokenizer()
    (tmp_path / "all.txt").write_text("".join(table.decode([i]) for i in range(VOCABULARY)) + " ".join(SENTENCES))
    done = pruned(model, tmp_path / "out", tmp_path / "all.txt")
    assert done.bonds[0].kept == tuple(range(VOCABULARY))
    assert done.file_bytes[0] == done.file_bytes[1]
    found, old = stored(tmp_path / "out"), stored(model)
    assert all(torch.equal(found[name], old[name]) for name in old)
    assert config(tmp_path / "out") == config(model)
    assert eckart.verify(tmp_path / "out", model, calibration=tmp_path / "all.txt").failures == ()


def test_what_occurs_less_often_than_asked_for_goes(ground: Path, tmp_path: Path, text: Path) -> None:
    recipe = Narrow(paper=OWN, vocabulary=Used(least=2))
    done = eckart.compress(ground / "model", tmp_path / "out", recipe=recipe, calibration=text)
    ids = tokenizer()(TEXT).input_ids
    once = {token for token in ids if ids.count(token) == 1}
    assert set(eckart.vocabulary(ground / "small").kept) - set(done.bonds[0].kept or ()) == once - set(range(259))
    assert eckart.verify(tmp_path / "out", ground / "model", calibration=text).failures == ()


def test_greedy_generation_agrees_while_it_stays_inside(ground: Path) -> None:
    words = eckart.vocabulary(ground / "small")
    ids = tokenizer()(TEXT, return_tensors="pt").input_ids[:, :8]
    options: dict[str, Any] = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": None, "pad_token_id": 2}
    whole = eckart.load(ground / "model", dtype=torch.float32)
    whole.generation_config.suppress_tokens = [i for i in range(PADDED) if i not in words.kept]
    found = eckart.load(ground / "small", dtype=torch.float32).generate(words.shrink(ids), **options)
    assert torch.equal(words.restore(found), whole.generate(ids, **options))


# ---- special tokens ---------------------------------------------------------------------------------------------------

NAMES = ["<pad>", "gone", "<s>", "</s>", "<unk>", "<tool>", "<0x41>", "a", "b", "miller", "grain", "last"]


def by_words(folder: Path) -> Path:
    """A model whose tokenizer knows whole words, with special tokens in between."""
    variant("llama", folder, vocab_size=16)
    table = Tokenizer(WordLevel({name: i for i, name in enumerate(NAMES)}, unk_token="<unk>"))  # type: ignore[arg-type]
    table.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    made = PreTrainedTokenizerFast(
        tokenizer_object=table, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    made.add_special_tokens({"additional_special_tokens": ["<tool>"]})
    made.save_pretrained(folder)
    edit_json(folder / "config.json", lambda t: t.update(bos_token_id=2, eos_token_id=[3, 11], pad_token_id=0))
    lists = {
        "suppress_tokens": [1, 9, 11],
        "begin_suppress_tokens": None,
        "forced_eos_token_id": 15,
        "sep_token_id": -1,
    }
    table = {"bos_token_id": 2, "eos_token_id": [3], "pad_token_id": 0, **lists}
    (folder / "generation_config.json").write_text(json.dumps(table))
    return folder


def test_special_tokens_and_bytes_stay_and_configs_tell_their_new_ids(tmp_path: Path) -> None:
    model, out = by_words(tmp_path / "model"), tmp_path / "out"
    (tmp_path / "text.txt").write_text("miller b miller")
    pruned(model, out, tmp_path / "text.txt")
    words = eckart.vocabulary(out)
    # "a" is no byte here and the text does not have it; 11 and 15 are named by the configs.
    assert words.kept == (0, 2, 3, 4, 5, 6, 8, 9, 11, 15)
    assert (config(out)["bos_token_id"], config(out)["eos_token_id"], config(out)["pad_token_id"]) == (1, [2, 8], 0)
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation == {
        "bos_token_id": 1,
        "eos_token_id": [2],
        "pad_token_id": 0,
        "suppress_tokens": [7, 8],
        "begin_suppress_tokens": None,
        "forced_eos_token_id": 9,
        "sep_token_id": -1,
    }
    assert AutoModelForCausalLM.from_pretrained(out).get_input_embeddings().padding_idx == 0
    assert eckart.verify(out, model, calibration=tmp_path / "text.txt").failures == ()
    eckart.restore(out, model, tmp_path / "full")
    assert tree(tmp_path / "full") == tree(model)


def test_ids_that_the_config_leaves_to_the_architecture_are_told(tmp_path: Path) -> None:
    """A Llama without a word of it ends texts with id 2, which is another token in the smaller model."""
    model, out = by_words(tmp_path / "model"), tmp_path / "out"
    edit_json(model / "config.json", lambda t: [t.pop(key) for key in ("bos_token_id", "eos_token_id")])
    (model / "generation_config.json").unlink()
    (tmp_path / "text.txt").write_text("miller")
    pruned(model, out, tmp_path / "text.txt")
    kept = eckart.vocabulary(out).kept
    assert (config(out)["bos_token_id"], config(out)["eos_token_id"]) == (kept.index(1), kept.index(2))
    assert not (out / "generation_config.json").exists()


@pytest.mark.parametrize(
    ("key", "value"), [("bad_words_ids", [[1, 9]]), ("sequence_bias", [[[1], 2.0]]), ("forced_decoder_ids", [[1, 9]])]
)
def test_lists_that_other_ids_would_change_are_refused(key: str, value: object, tmp_path: Path) -> None:
    model = by_words(tmp_path / "model")
    edit_json(model / "generation_config.json", lambda t: t.update({key: value}))
    (tmp_path / "text.txt").write_text("miller")
    with pytest.raises(EckartError, match=f"generation_config.json has {key}"):
        pruned(model, tmp_path / "out", tmp_path / "text.txt")


# ---- from one vocabulary to the other ---------------------------------------------------------------------------------


def test_ids_of_every_kind_and_shape_are_translated() -> None:
    words = Vocabulary(6, (0, 2, 5))
    for dtype in (torch.uint8, torch.int32, torch.int64):
        ids = torch.tensor([[5, 0], [2, 2]], dtype=dtype)
        assert torch.equal(words.shrink(ids), torch.tensor([[2, 0], [1, 1]]))
        assert torch.equal(words.restore(words.shrink(ids)), ids.to(torch.int64))
    labels = torch.tensor([5, -100, 2])  # what losses leave out is no id
    assert words.shrink(labels).tolist() == [2, -100, 1]
    assert words.restore(words.shrink(labels)).tolist() == [5, -100, 2]
    assert words.shrink(torch.empty(0, 3, dtype=torch.int64)).shape == (0, 3)


@pytest.mark.parametrize("ids", [[6], [-1], [-99]])
def test_what_is_no_id_is_named(ids: list[int]) -> None:
    words = Vocabulary(6, (0, 2, 5))
    for translate in (words.shrink, words.restore):
        with pytest.raises(EckartError, match=f"^{ids[0]} is no id of the "):
            translate(torch.tensor(ids))
    with pytest.raises(EckartError, match="3 is no id of the smaller model, which has those from 0 to 2"):
        words.restore(torch.tensor([3]))
    for wrong in (torch.tensor([1.0]), torch.tensor([True])):
        with pytest.raises(EckartError, match="token ids are whole numbers"):
            words.shrink(wrong)


@pytest.mark.parametrize(("size", "kept"), [(6, ()), (6, (0, 0)), (6, (2, 1)), (6, (-1, 2)), (6, (0, 6))])
def test_what_is_no_vocabulary_is_refused(size: int, kept: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="rise"):
        Vocabulary(size, kept)


def test_a_token_that_is_gone_is_named_or_unknown(tmp_path: Path, ground: Path) -> None:
    model, out = by_words(tmp_path / "model"), tmp_path / "out"
    (tmp_path / "text.txt").write_text("miller")
    pruned(model, out, tmp_path / "text.txt")
    words = eckart.vocabulary(out)
    assert words.tokenizer("grain").input_ids == [10]
    with pytest.raises(
        EckartError, match=r"^the id 10 \('grain'\) is not among the 9 of 16 that are left: make .* anew"
    ):
        words.shrink(torch.tensor([9, 10]))
    with pytest.raises(EckartError, match=r"^the id 14 is not among"):  # beyond the tokenizer
        words.shrink(torch.tensor([9, 14]))
    unknown = words.shrink(torch.tensor([9, 10, 4]), unknown=True)
    assert unknown.tolist() == [words.kept.index(9), words.kept.index(4), words.kept.index(4)]
    bare = replace(words, tokenizer=None)
    assert bare == words
    with pytest.raises(
        EckartError, match=r"^the id 10 is not among .*: and no id stands for unknown tokens|no id stands"
    ):
        bare.shrink(torch.tensor([10]), unknown=True)


def test_texts_are_evaluated_with_the_ids_of_the_smaller_model(ground: Path, text: Path, tmp_path: Path) -> None:
    small = ground / "small"
    words = eckart.vocabulary(small)
    ids = ids_for(small, TEXT)
    assert torch.equal(words.restore(ids), ids_for(ground / "model", TEXT))
    (score,) = eckart.evaluate(small, [text]).values()
    (found, _) = run(small, ids[None])
    losses = torch.nn.functional.cross_entropy(found.logits[0, :-1], ids[1:], reduction="sum")
    assert score.total == pytest.approx(float(losses), rel=1e-5)
    assert "text.txt" in cli("eval", small, "--text", text).out
    (tmp_path / "other.txt").write_text("Nobody remembers who planted the pear trees behind the station.")
    told = refused("eval", small, "--text", tmp_path / "other.txt")
    assert "is not among the" in told
    assert "'" in told


def test_the_tokenizer_does_not_lie_where_its_ids_would_be_taken_for_the_models(ground: Path) -> None:
    small = ground / "small"
    files = {p.name for p in small.iterdir() if p.is_file()}
    assert files == {
        "README.md",
        "config.json",
        "eckart.json",
        "generation_config.json",
        "model.safetensors",
        "vocabulary.json",
    }
    with pytest.raises((ValueError, OSError)):
        AutoTokenizer.from_pretrained(small)
    table = AutoTokenizer.from_pretrained(small / "tokenizer")
    assert table(TEXT).input_ids == tokenizer()(TEXT).input_ids
    card = (small / "README.md").read_text()
    assert "eckart.vocabulary(THIS_DIRECTORY)" in card
    assert "eckart restore THIS_DIRECTORY" in card
    assert "import eckart  #" not in card


def test_a_smaller_vocabulary_is_compressed_further_with_its_files(ground: Path, text: Path, tmp_path: Path) -> None:
    done = eckart.compress(ground / "small", tmp_path / "out", keep=0.8, recipe="svd", calibration=text)
    assert done.matrices
    assert eckart.vocabulary(tmp_path / "out") == eckart.vocabulary(ground / "small")
    assert eckart.evaluate(tmp_path / "out", [text])
    assert eckart.verify(tmp_path / "out", ground / "small").failures == ()
    told = refused("restore", tmp_path / "out", "--original", ground / "model", "-o", tmp_path / "full")
    assert "densify it first" in told
    eckart.densify(tmp_path / "out", tmp_path / "dense")
    eckart.restore(tmp_path / "dense", ground / "model", tmp_path / "full")
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(stored(tmp_path / "full")[name], stored(tmp_path / "dense")[name])


# ---- and back ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "llama_tied", "gpt2", "phi", "opt"])
@pytest.mark.parametrize("sharded", [False, True])
def test_what_was_not_trained_comes_back_bit_by_bit(name: str, sharded: bool, text: Path, tmp_path: Path) -> None:
    model = padded(name, tmp_path / "model")
    if sharded:
        shard(model, 60_000)
    pruned(model, tmp_path / "small", text)
    outcome = cli("restore", tmp_path / "small", "--original", model, "-o", tmp_path / "full", "--json")
    assert json.loads(outcome.out) == {"folder": str(tmp_path / "full")}
    index = "model.safetensors.index.json"
    found, old = tree(tmp_path / "full"), tree(model)
    assert found.keys() == old.keys()
    assert {file for file in old if found[file] != old[file]} <= {index}  # which may be spaced otherwise
    if sharded:
        assert len(old) > 4
        assert json.loads(found[index]) == json.loads(old[index])


def trained(folder: Path, step: float = 0.25) -> None:
    """Every weight in place, each otherwise."""
    edit_tensors(folder / "model.safetensors", lambda t: [w.add_(step * (i + 1)) for i, w in enumerate(t.values())])


def test_rows_that_were_trained_go_back_where_they_came_from(ground: Path, small: Path, tmp_path: Path) -> None:
    trained(small)
    words = eckart.vocabulary(small)
    full = eckart.restore(small, ground / "model", tmp_path / "full")
    new, old, now = stored(small), stored(ground / "model"), stored(full)
    rows = {"model.embed_tokens.weight", "lm_head.weight"}
    gone = torch.tensor([i for i in range(PADDED) if i not in words.kept])
    for name in now:
        if name in rows:
            assert torch.equal(now[name][words.old], new[name])
            assert torch.equal(now[name][gone], old[name][gone])
        else:
            assert torch.equal(now[name], new[name])
    assert config(full) == config(ground / "model")
    ids = tokenizer()(TEXT, return_tensors="pt").input_ids
    (before, _), (after, _) = run(small, words.shrink(ids)), run(full, ids)
    assert all(torch.equal(a, b) for a, b in zip(before.hidden_states, after.hidden_states, strict=True))


def test_a_step_of_training_is_that_of_the_original(ground: Path, small: Path, tmp_path: Path) -> None:
    """Where the loss does not go through the head: rows that are not used have no gradient in the original."""
    words, ids = eckart.vocabulary(small), tokenizer()(TEXT, return_tensors="pt").input_ids
    for source, own, place in ((small, words.shrink(ids), small), (ground / "model", ids, tmp_path / "whole")):
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager")
        model(input_ids=own, output_hidden_states=True).hidden_states[-1].square().mean().backward()
        torch.optim.SGD(model.parameters(), lr=0.5).step()
        model.save_pretrained(place)
    full = stored(eckart.restore(small, ground / "model", tmp_path / "full"))
    wanted, before = stored(tmp_path / "whole"), stored(ground / "model")
    for name, tensor in wanted.items():
        assert torch.allclose(full[name], tensor, rtol=1e-5, atol=1e-7), name
    moved = (
        (wanted["model.embed_tokens.weight"] - before["model.embed_tokens.weight"]).abs().amax(1).nonzero().flatten()
    )
    assert set(moved.tolist()) == set(ids.unique().tolist())


def without_prefix(table: dict[str, Tensor]) -> None:
    """Name tensors as the first checkpoints of GPT-2 do."""
    for name in list(table):
        table[name.removeprefix("transformer.")] = table.pop(name)


def test_what_transformers_saved_elsewhere_in_another_dtype(text: Path, tmp_path: Path) -> None:
    """Names, files and dtype of a trained model are those that ``save_pretrained`` gives it."""
    model = padded("gpt2", tmp_path / "model", dtype=torch.bfloat16)
    edit_tensors(model / "model.safetensors", without_prefix)
    pruned(model, tmp_path / "small", text)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "small", dtype=torch.float32)
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.add_(1 / 3)
    loaded.save_pretrained(tmp_path / "trained")
    told = refused("restore", tmp_path / "trained", "--original", model, "-o", tmp_path / "full", out=tmp_path / "full")
    assert "holds no vocabulary.json: if it was trained" in told
    shutil.copy(tmp_path / "small" / "vocabulary.json", tmp_path / "trained")
    full = eckart.restore(tmp_path / "trained", model, tmp_path / "full")
    now, old, new = stored(full), stored(model), stored(tmp_path / "trained")
    assert now.keys() == old.keys()
    assert config(full) == config(model) | {"dtype": "float32"}
    words = eckart.vocabulary(tmp_path / "trained")
    assert words.tokenizer is None
    assert torch.equal(now["wte.weight"][words.old], new["transformer.wte.weight"])
    assert torch.equal(now["wte.weight"][-1], old["wte.weight"][-1].float())
    assert torch.equal(now["h.1.mlp.c_fc.weight"], new["transformer.h.1.mlp.c_fc.weight"])
    ids = tokenizer()(TEXT, return_tensors="pt").input_ids
    (before, _), (after, _) = run(tmp_path / "trained", words.shrink(ids)), run(full, ids)
    assert all(torch.equal(a, b) for a, b in zip(before.hidden_states, after.hidden_states, strict=True))


def test_what_does_not_belong_together_is_not_restored(ground: Path, small: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "full"

    def told(folder: Path, original: Path) -> str:
        return refused("restore", folder, "--original", original, "-o", out, out=out)

    other = padded("llama", tmp_path / "other", num_hidden_layers=2)
    assert "is not the model that" in told(small, other)
    (small / "eckart.json").unlink()
    assert "model.layers.2." in told(small, other)
    assert "for which" in told(small, other)
    deeper = padded("llama", tmp_path / "deeper", num_hidden_layers=4)
    assert "holds no tensor for model.layers.3." in told(small, deeper)
    assert "they do not belong together" in told(small, padded("llama", tmp_path / "wide", intermediate_size=128))
    assert "they do not belong together" in told(small, padded("llama", tmp_path / "more", vocab_size=520))
    assert "vocabulary.json" in told(ground / "model", ground / "model")
    assert "mixtral is not declared" in told(small, ARCHITECTURES["mixtral"](tmp_path / "mixtral"))
    eckart.compress(ground / "model", tmp_path / "svd", keep=0.8, recipe="svd")
    assert "is compressed itself" in told(small, tmp_path / "svd")


# ---- checked again ----------------------------------------------------------------------------------------------------

DAMAGES: Mapping[str, tuple[Callable[[Path], object], str]] = {
    "a row": (
        lambda f: edit_tensor(
            f, "lm_head.weight", lambda t: t.index_add_(0, torch.tensor([9]), torch.ones(1, t.shape[1]))
        ),
        "tensor lm_head.weight was changed",
    ),
    "the map": (
        lambda f: edit_json(f / "vocabulary.json", lambda t: t["kept"].__setitem__(-1, t["kept"][-1] + 1)),
        "vocabulary.json is not what the recipe makes of the original",
    ),
    "the record": (
        lambda f: edit_json(f / "eckart.json", lambda t: t["bonds"][0]["kept"].__setitem__(-1, 511)),
        "vocabulary: what is left of the bond is not as recorded",
    ),
    "the config": (
        lambda f: edit_json(f / "config.json", lambda t: t.update(eos_token_id=7)),
        "eos_token_id is not what the recipe gives",
    ),
    "the generation config": (
        lambda f: edit_json(f / "generation_config.json", lambda t: t.update(eos_token_id=7)),
        "generation_config.json is not what the recipe makes of the original",
    ),
    "the tokenizer": (
        lambda f: (f / "tokenizer" / "tokenizer.json").unlink(),
        "tokenizer.json is not what the recipe makes of the original",
    ),
    "no map": (lambda f: (f / "vocabulary.json").unlink(), "vocabulary.json is not what the recipe makes"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_was_changed_is_found(damage: str, ground: Path, small: Path, text: Path) -> None:
    harm, sentence = DAMAGES[damage]
    harm(small)
    found = eckart.verify(small, ground / "model", calibration=text)
    assert any(sentence in failure for failure in found.failures), found.failures


def test_a_row_that_was_changed_with_its_hash_is_found_from_the_original(ground: Path, small: Path, text: Path) -> None:
    made = edit_tensor(
        small, "lm_head.weight", lambda t: t.mul_(torch.where(torch.arange(len(t)) == 9, 1 + 2**-23, 1.0)[:, None])
    )
    digest = hashlib.sha256(made.contiguous().numpy().tobytes()).hexdigest()
    edit_json(small / "eckart.json", lambda t: t["tensors"].update({"lm_head.weight": digest}))
    found = eckart.verify(small, ground / "model", calibration=text)
    assert found.failures == ("tensor lm_head.weight is not what the recipe makes of the original",)
    assert eckart.verify(small, ground / "model").not_rechecked


MAPS: Mapping[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no list": (lambda t: t.update(kept=7), "it holds no size, or no list"),
    "no numbers": (lambda t: t.update(kept=[0, "1"]), "it holds no size, or no list"),
    "truths": (lambda t: t.update(kept=[False, True]), "it holds no size, or no list"),
    "no size": (lambda t: t.pop("size"), "it holds no size, or no list"),
    "beyond memory": (lambda t: t.update(size=10**12), "no vocabulary has 1000000000000 ids"),
    "beyond the size": (lambda t: t.update(size=100), "must rise and lie from 0 to below 100"),
    "falling": (lambda t: t["kept"].reverse(), "must rise"),
    "one less": (lambda t: t["kept"].pop(), "they belong to different models"),
}


@pytest.mark.parametrize("damage", MAPS)
def test_a_damaged_map_is_refused(damage: str, small: Path, text: Path) -> None:
    harm, sentence = MAPS[damage]
    edit_json(small / "vocabulary.json", harm)
    told = refused("eval", small, "--text", text)
    assert "vocabulary.json" in told
    assert sentence in told
    with pytest.raises(EckartError, match=r"vocabulary\.json"):
        eckart.vocabulary(small)


# ---- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--keep", "0.8"), "leave --keep and --bytes away"),
        (("--bytes", "1MB"), "leave --keep and --bytes away"),
        (("--only", "q_proj"), "--only and --exclude name matrices"),
        (("--exclude", "q_proj"), "--only and --exclude name matrices"),
        (("--tokens", "100"), "leave --tokens and --window away"),
        (("--window", "32"), "leave --tokens and --window away"),
        (("--ranks", "uniform"), "stands alone: leave allocate out"),
        (("--dry-run",), "leave --dry-run out"),
    ],
)
def test_options_without_a_meaning(
    options: tuple[str, ...], sentence: str, ground: Path, text: Path, tmp_path: Path
) -> None:
    command = ("compress", ground / "model", "-o", tmp_path / "out", "--recipe", "embedding-pruning")
    assert sentence in refused(*command, "--calibration", text, *options, out=tmp_path / "out")


def test_it_takes_a_text_of_ones_own_and_a_declared_architecture(ground: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = refused("compress", ground / "model", "-o", out, "--recipe", "embedding-pruning", out=out)
    assert "with --calibration FILE" in told
    mixtral = ARCHITECTURES["mixtral"](tmp_path / "mixtral")
    with pytest.raises(EckartError, match="the architecture mixtral is not declared with a vocabulary"):
        pruned(mixtral, out, text)
    assert left_behind(out) == [] or not out.exists()
    with pytest.raises(EckartError, match="has a smaller vocabulary already"):
        pruned(ground / "small", out, text)
    with pytest.raises(EckartError, match=r"holds no vocabulary\.json: its vocabulary is no smaller one"):
        eckart.vocabulary(ground / "model")
    (tmp_path / "long.txt").write_text(" ".join(SENTENCES))
    few = variant("llama", tmp_path / "few", vocab_size=262)
    with pytest.raises(EckartError, match="belongs to another model"):
        pruned(few, out, tmp_path / "long.txt")


def test_a_vocabulary_stands_alone() -> None:
    for beside in (
        {"stream": Principal()},
        {"share": 0.5},
        {"allocate": Uniform()},
        {"statistics": Statistics.COMPRESSED},
    ):
        with pytest.raises(ValueError, match=f"stands alone: leave {next(iter(beside))} out"):
            Narrow(paper=OWN, vocabulary=Used(), **beside)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="least 0 must be at least 1"):
        Used(least=0)


def test_as_toml(ground: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('[vocabulary]\npart = "Used"\nleast = 2\n')
    done = eckart.compress(ground / "model", tmp_path / "out", recipe=tmp_path / "own.toml", calibration=text)
    assert Certificate.read(tmp_path / "out").recipe["vocabulary"] == {"part": "Used", "least": 2}
    assert done.bonds[0].rank < len(eckart.vocabulary(ground / "small").kept)
    (tmp_path / "both.toml").write_text('[vocabulary]\npart = "Used"\n[allocate]\npart = "Uniform"\n')
    with pytest.raises(EckartError, match="leave allocate out"):
        eckart.compress(ground / "model", tmp_path / "more", recipe=tmp_path / "both.toml", calibration=text)


# ---- killed -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kill() -> Iterator[Killer]:
    killer = Killer()
    yield killer
    killer.close()


@pytest.mark.parametrize("when", ["before", "after", "torn"])
@pytest.mark.parametrize("command", ["compress", "restore"])
def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(command: str, when: str, kill: Killer, tmp_path: Path) -> None:
    model = tiny(tmp_path / "model", sharded=True)
    text = calibration_text(tmp_path / "text.txt")
    pruned(model, tmp_path / "small", text)
    out = tmp_path / "out"
    arguments: tuple[object, ...] = ("restore", tmp_path / "small", "--original", model, "-o", out)
    if command == "compress":
        arguments = ("compress", model, "-o", out, "--recipe", "embedding-pruning", "--calibration", text)
    assert kill(*arguments).code == 0
    wanted = tree(out)
    shutil.rmtree(out)
    kills = 0
    for _ in kill.until_done(*arguments, when=when):  # each gets one piece further
        assert not out.exists()
        kills += 1
    assert kills > 1
    assert tree(out) == wanted
    assert left_behind(out) == ["out"]


def test_another_text_is_another_run(kill: Killer, ground: Path, text: Path, tmp_path: Path) -> None:
    command = ("compress", ground / "model", "-o", tmp_path / "out", "--recipe", "embedding-pruning", "--calibration")
    stop = {"function": "eckart.model.output:move_into_place", "call": 1, "when": "before"}
    assert kill(*command, text, **stop).code == -9
    (tmp_path / "other.txt").write_text("the grain")
    told = refused(*command, tmp_path / "other.txt")
    assert "another calibration" in told
    assert cli(*command, text).code == 0


# ---- trained models ---------------------------------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.parametrize("name", ["wikitext2_llama_8m", "wikitext2_gpt2_6m"])
def test_trained_models(data_dir: Path, tmp_path: Path, name: str) -> None:
    model, out, text = data_dir / name, tmp_path / "out", tmp_path / "text.txt"
    text.write_bytes((data_dir / "wikitext2" / "test.txt").read_bytes()[:20_000])
    done = pruned(model, out, text)
    words = eckart.vocabulary(out)
    assert (words.size, len(words.kept)) == (4096, 1435)
    assert 1 - done.file_bytes[1] / done.file_bytes[0] > 0.1
    ids = ids_for(model, text.read_text(encoding="utf-8"))[:512].reshape(2, 256)
    (before, _), (after, _) = run(model, ids), run(out, words.shrink(ids))
    assert all(torch.equal(a, b) for a, b in zip(before.hidden_states, after.hidden_states, strict=True))
    wanted = before.logits[..., words.old]
    assert float((after.logits - wanted).abs().max()) <= 8 * torch.finfo(torch.float32).eps * float(wanted.abs().max())
    (old,), (new,) = (eckart.evaluate(folder, [text]).values() for folder in (model, out))
    assert old.tokens == new.tokens
    assert new.mean < old.mean  # tokens that the text never has can take no probability from those that it has
    assert eckart.verify(out, model, calibration=text).failures == ()
    eckart.restore(out, model, tmp_path / "full")
    assert tree(tmp_path / "full") == {file: data for file, data in tree(model).items() if file != "SOURCE.md"}
