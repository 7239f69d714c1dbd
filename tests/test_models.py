import json
from pathlib import Path

import pytest
import torch
from models import ARCHITECTURES, CONTEXT, SENTENCES, VOCABULARY, shard
from models import tokenizer as shared_tokenizer
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

TIED = {"llama_tied", "gemma2", "gemma3", "gpt2", "opt", "opt_projected"}


def batch(length: int = 24) -> Tensor:
    encoded = shared_tokenizer()(list(SENTENCES))["input_ids"]
    return torch.tensor([ids[:length] for ids in encoded])


def names_on_disk(directory: Path) -> set[str]:
    with safe_open(directory / "model.safetensors", framework="pt") as file:
        return set(file.keys())


def load(directory: Path) -> PreTrainedModel:
    model, report = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


@torch.inference_mode()
def log_probabilities(model: PreTrainedModel, ids: Tensor) -> Tensor:
    return model(ids).logits.float().log_softmax(-1)


@pytest.fixture(scope="module", params=sorted(ARCHITECTURES))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def checkpoint(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ARCHITECTURES[name](tmp_path_factory.mktemp(name))


def test_logits_are_finite_and_neither_flat_nor_one_hot(checkpoint: Path) -> None:
    model = load(checkpoint)
    assert model.dtype == torch.float32
    logs = log_probabilities(model, batch())
    assert logs.shape[-1] == VOCABULARY
    assert logs.isfinite().all()
    entropy = -(logs.exp() * logs).sum(-1)
    assert 2 < entropy.mean() < 5


def test_logits_depend_on_the_past_and_not_on_the_future(checkpoint: Path) -> None:
    model, ids = load(checkpoint), batch()
    changed = ids.clone()
    changed[:, 8] = (ids[:, 8] + 100) % VOCABULARY
    before, after = log_probabilities(model, ids), log_probabilities(model, changed)
    torch.testing.assert_close(before[:, :8], after[:, :8])
    divergence = (before.exp() * (before - after)).sum(-1).mean(0)
    assert divergence[8] > 0.1
    assert (divergence[9:16] > 1e-3).all()


def test_generates_up_to_the_context(checkpoint: Path) -> None:
    ids = batch(8)[:2]
    out = load(checkpoint).generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        min_new_tokens=CONTEXT - 8,
        max_new_tokens=CONTEXT - 8,
    )
    assert out.shape == (2, CONTEXT)


def test_halving_the_rank_changes_the_output_modestly(checkpoint: Path) -> None:
    model, ids = load(checkpoint), batch()
    before = log_probabilities(model, ids)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim == 2 and (".layers." in key or ".h." in key):
                left, values, right = torch.linalg.svd(parameter, full_matrices=False)
                rank = len(values) // 2
                parameter.copy_((left[:, :rank] * values[:rank]) @ right[:rank])
    after = log_probabilities(model, ids)
    divergence = (before.exp() * (before - after)).sum(-1).mean()
    assert 0.05 < divergence < 2


def test_tokenizer_is_the_shared_one(checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    shared = shared_tokenizer()
    assert len(tokenizer) == len(shared) == VOCABULARY
    for text in (*SENTENCES, "", "  two  spaces\n\nand\tDON'T 1234", "naïve 漢字 🎉"):
        ids = tokenizer(text)["input_ids"]
        assert ids == shared(text)["input_ids"]
        assert tokenizer.decode(ids) == text


def test_tied_head_is_stored_once(name: str, checkpoint: Path) -> None:
    model = load(checkpoint)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == (name in TIED)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    assert ("lm_head.weight" in parameters.keys() - names_on_disk(checkpoint)) == (tied or name == "gpt_neox")


def test_writes_are_reproducible_and_seeded(name: str, checkpoint: Path, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    again = load_file(ARCHITECTURES[name](tmp_path / "again") / "model.safetensors")
    other = load_file(ARCHITECTURES[name](tmp_path / "other", seed=1) / "model.safetensors")
    assert torch.equal(torch.get_rng_state(), state)
    first = load_file(checkpoint / "model.safetensors")
    assert first.keys() == again.keys() == other.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first)


def test_half_precision(name: str, tmp_path: Path) -> None:
    directory = ARCHITECTURES[name](tmp_path, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in load_file(directory / "model.safetensors").values()} == {torch.bfloat16}
    model = load(directory)
    assert model.dtype == torch.bfloat16
    assert log_probabilities(model, batch(8)).isfinite().all()


def test_shards_hold_the_same_model(name: str, checkpoint: Path, tmp_path: Path) -> None:
    directory = ARCHITECTURES[name](tmp_path)
    limit = 100_000
    assert shard(directory, limit) == directory
    assert not (directory / "model.safetensors").exists()
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    files = sorted(directory.glob("model-*.safetensors"))
    assert len(files) > 1
    assert {path.name for path in files} == set(index["weight_map"].values())
    pieces = {path.name: load_file(path) for path in files}
    whole = load_file(checkpoint / "model.safetensors")
    assert whole.keys() == index["weight_map"].keys()
    assert all(torch.equal(pieces[file][key], whole[key]) for key, file in index["weight_map"].items())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    assert all(len(part) == 1 or sum(t.nbytes for t in part.values()) <= limit for part in pieces.values())
    ids = batch(8)
    assert torch.equal(log_probabilities(load(directory), ids), log_probabilities(load(checkpoint), ids))


def test_mixtral_experts_have_other_names_on_disk(tmp_path: Path) -> None:
    directory = ARCHITECTURES["mixtral"](tmp_path)
    model, disk = load(directory), load_file(directory / "model.safetensors")
    modules = dict(model.named_parameters())
    packed = modules["model.layers.0.mlp.experts.gate_up_proj"]
    assert packed.shape == (4, 192, 48)
    assert modules.keys() - disk.keys() == {
        f"model.layers.{layer}.mlp.{part}"
        for layer in range(2)
        for part in ("gate.weight", "experts.gate_up_proj", "experts.down_proj")
    }
    stem = "model.layers.0.block_sparse_moe"
    assert torch.equal(disk[f"{stem}.gate.weight"], modules["model.layers.0.mlp.gate.weight"])
    for expert in range(4):
        gate, down, up = (disk[f"{stem}.experts.{expert}.{part}.weight"] for part in ("w1", "w2", "w3"))
        assert torch.equal(packed[expert], torch.cat([gate, up]))
        assert torch.equal(modules["model.layers.0.mlp.experts.down_proj"][expert], down)


def test_gpt_neox_head_has_another_name_on_disk(tmp_path: Path) -> None:
    directory = ARCHITECTURES["gpt_neox"](tmp_path)
    modules = {key for key, _ in load(directory).named_parameters()}
    assert names_on_disk(directory) - modules == {"embed_out.weight"}
    assert modules - names_on_disk(directory) == {"lm_head.weight"}
