"""A compressed checkpoint in the hands of transformers and PEFT, and what a process without eckart makes of it."""

import copy
import hashlib
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree, which
from typing import Any

import pytest
import torch
import yaml
from models import ARCHITECTURES, SENTENCES, shard, tokenizer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

import eckart
from eckart.model.linear import OperatorEmbedding, OperatorLinear


@dataclass(frozen=True)
class Case:
    """A checkpoint to compress: its architecture, whether it is sharded, and the maps beside those in blocks."""

    architecture: str
    only: tuple[str, ...] = ()
    sharded: bool = False


CASES = {
    "llama": Case("llama"),
    "gpt2": Case("gpt2"),
    "opt": Case("opt"),
    "mixtral": Case("mixtral"),
    "gpt_neox": Case("gpt_neox"),
    "tied": Case("llama_tied"),
    "sharded": Case("llama", sharded=True),
    "embedding": Case("llama", ("embed_tokens",)),
    "head": Case("llama", ("lm_head",)),
    "tied embedding": Case("llama_tied", ("embed_tokens",)),
    "tied everything, sharded": Case("llama_tied", ("*",), sharded=True),
    "gpt2 embedding": Case("gpt2", ("wte", "c_fc")),
    "opt embedding": Case("opt", ("embed_tokens",)),
    "opt projections": Case("opt_projected", ("project_in", "project_out")),
    "gpt_neox head": Case("gpt_neox", ("lm_head", "dense")),
}
TIED = {"llama_tied", "gpt2", "opt", "opt_projected"}

every_case = pytest.mark.parametrize("case", list(CASES))
main_cases = pytest.mark.parametrize("case", ["llama", "gpt2", "tied everything, sharded"])


class Shelf:
    """Sources and compressed checkpoints, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def source(self, case: str) -> Path:
        folder = self.folder / f"{case} source"
        if not folder.exists():
            ARCHITECTURES[CASES[case].architecture](folder)
            if CASES[case].sharded:
                shard(folder, 60_000)
        return folder

    def compressed(self, case: str) -> Path:
        folder = self.folder / case
        if not folder.exists():
            eckart.compress(self.source(case), folder, keep=0.6, recipe="svd", only=CASES[case].only)
        return folder


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("shelf"))


def load(folder: Path, **options: Any) -> Any:
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(report.values()), report
    return model.eval()


def batch(length: int = 24) -> Tensor:
    return torch.tensor([ids[:length] for ids in tokenizer()(list(SENTENCES))["input_ids"]])


@torch.no_grad()
def logits(model: Any, ids: Tensor | None = None) -> Tensor:
    return model(input_ids=batch() if ids is None else ids, use_cache=False).logits


def operators(model: nn.Module) -> dict[str, Any]:
    return {n: m for n, m in model.named_modules() if isinstance(m, OperatorLinear | OperatorEmbedding)}


def multiplied_out(shelf: Shelf, case: str) -> Any:
    """The stock model with the products of the stored factors for weights."""
    model = load(shelf.source(case))
    for name, module in operators(load(shelf.compressed(case))).items():
        stock = model.get_submodule(name)
        product = (module.weight.double() @ module.right.double()).float()
        with torch.no_grad():
            stock.weight.copy_(product.T if isinstance(stock, Conv1D) else product)
    return model


# ---- without eckart ---------------------------------------------------------------------------------------------------

# Tries to load each directory that it is given and prints what came of it; one marked with ! may end it.
STRANGER = """
import json, sys
sys.modules["eckart"] = None
import torch
from transformers import AutoModelForCausalLM
for line in sys.stdin:
    folder = line.rstrip()
    if folder.startswith("!"):
        AutoModelForCausalLM.from_pretrained(folder[1:])
        sys.exit(0)
    try:
        AutoModelForCausalLM.from_pretrained(folder)
        said = ""
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    print(json.dumps(said), flush=True)
"""


class Stranger:
    """A process that cannot import eckart; begun when first asked, and again when it has ended."""

    def __init__(self, folder: Path) -> None:
        self.stderr = folder / "stderr.txt"
        self.process: subprocess.Popen[str] | None = None

    def tell(self, line: str) -> subprocess.Popen[str]:
        if self.process is None or self.process.poll() is not None:
            with self.stderr.open("w") as errors:
                self.process = subprocess.Popen(
                    [sys.executable, "-c", STRANGER],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                )
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self.process

    def error_of(self, folder: Path) -> str:
        """The error that loading gives; empty if it works."""
        process = self.tell(str(folder))
        assert process.stdout is not None
        return json.loads(process.stdout.readline())

    def exit_of(self, folder: Path) -> tuple[int, str]:
        """How a script that loads this directory ends: its status, and what it writes to stderr."""
        process = self.tell(f"!{folder}")
        process.communicate()
        return process.returncode, self.stderr.read_text()


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stranger]:
    made = Stranger(tmp_path_factory.mktemp("stranger"))
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.communicate()


@every_case
def test_without_eckart_loading_fails_on_the_shapes(case: str, shelf: Shelf, stranger: Stranger) -> None:
    assert operators(load(shelf.compressed(case)))
    assert stranger.error_of(shelf.source(case)) == ""  # the original loads there
    said = stranger.error_of(shelf.compressed(case))
    assert said.startswith("RuntimeError")
    assert "mismatch" in said


@pytest.mark.parametrize("case", ["llama", "mixtral", "tied embedding", "gpt_neox head"])
def test_without_eckart_what_save_pretrained_wrote_fails_as_well(
    case: str, shelf: Shelf, stranger: Stranger, tmp_path: Path
) -> None:
    load(shelf.compressed(case)).save_pretrained(tmp_path)
    assert "mismatch" in stranger.error_of(tmp_path)


@pytest.mark.parametrize("recipe", ["magnitude", "eora", "curing", "sparsegpt"])
def test_without_eckart_other_formats_fail_as_well(
    recipe: str, shelf: Shelf, stranger: Stranger, tmp_path: Path
) -> None:
    eckart.compress(shelf.source("llama"), tmp_path / "out", keep=0.7, recipe=recipe, tokens=128, window=32)
    assert operators(load(tmp_path / "out"))
    said = stranger.error_of(tmp_path / "out")
    assert said.startswith("RuntimeError")
    assert "mismatch" in said


def test_without_eckart_a_script_ends_with_an_error(shelf: Shelf, stranger: Stranger) -> None:
    status, said = stranger.exit_of(shelf.compressed("gpt2 embedding"))
    assert status == 1
    assert re.search(r"^RuntimeError: .*mismatch", said, re.MULTILINE)


# ---- loaded -----------------------------------------------------------------------------------------------------------


@every_case
def test_what_is_loaded_is_what_is_stored(case: str, shelf: Shelf) -> None:
    model, out = load(shelf.compressed(case)), shelf.compressed(case)
    assert (
        operators(model).keys()
        == json.loads((out / "config.json").read_text())["quantization_config"]["modules"].keys()
    )
    torch.testing.assert_close(logits(model), logits(multiplied_out(shelf, case)), rtol=0, atol=2e-4)
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    tied = CASES[case].architecture in TIED
    assert (ends[0].weight is ends[1].weight) == tied
    if tied and isinstance(ends[0], OperatorEmbedding):
        assert ends[0].right is ends[1].right
        assert torch.equal(ends[0](torch.arange(9)), ends[1].weight[:9] @ ends[1].right)
    # Every parameter is counted once, so that an optimiser moves a shared factor once.
    assert len({p.data_ptr() for p in model.parameters()}) == len(list(model.parameters()))


@main_cases
def test_greedy_generation_is_the_argmax_step_by_step(case: str, shelf: Shelf) -> None:
    model, start = load(shelf.compressed(case)), batch(8)[:2]
    steps = 12
    found = model.generate(
        start,
        attention_mask=torch.ones_like(start),
        do_sample=False,
        min_new_tokens=steps,
        max_new_tokens=steps,
    )
    wanted = start
    for _ in range(steps):
        scores = logits(model, wanted)[:, -1]
        scores[:, model.generation_config.eos_token_id] = -torch.inf  # what min_new_tokens forbids
        wanted = torch.cat([wanted, scores.argmax(-1, keepdim=True)], 1)
    assert torch.equal(found, wanted)
    assert len(set(found[:, 8:].flatten().tolist())) > 2


@every_case
def test_gradients_reach_both_factors_and_a_step_lowers_the_loss(case: str, shelf: Shelf) -> None:
    model, ids, rate = load(shelf.compressed(case)).train(), batch(), 1e-4

    def loss() -> Tensor:
        torch.manual_seed(0)  # the same dropout before and after
        return model(input_ids=ids, labels=ids, use_cache=False).loss

    factors = {id(p): p for module in operators(model).values() for p in (module.weight, module.right)}
    optimiser = torch.optim.SGD(factors.values(), lr=rate)
    before = loss()
    before.backward()
    for name, module in operators(model).items():
        assert module.training, name
        for side in ("weight", "right"):
            assert float(getattr(module, side).grad.norm()) > 0, f"{name}.{side}"
    expected = rate * sum(float(p.grad.square().sum()) for p in factors.values())
    optimiser.step()
    assert float(before.detach() - loss().detach()) == pytest.approx(expected, rel=0.3)  # true to first order


def test_gradients_of_the_factors_are_those_of_the_product(shelf: Shelf) -> None:
    """The chain rule by hand: with W = L R the gradients are G R' and L' G, where G is that of the stock weight."""
    model, stock, ids = load(shelf.compressed("llama")), multiplied_out(shelf, "llama"), batch()
    for one in (model, stock):
        one.double()
        one(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    for name, module in operators(model).items():
        grad = stock.get_submodule(name).weight.grad
        scale = float(grad.norm())
        torch.testing.assert_close(module.weight.grad, grad @ module.right.T, rtol=0, atol=1e-5 * scale)
        torch.testing.assert_close(module.right.grad, module.weight.T @ grad, rtol=0, atol=1e-5 * scale)


def test_the_trainer_takes_it(shelf: Shelf, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    model = load(shelf.compressed("tied embedding"))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ids = batch()
    options = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=3,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )
    rows = [{"input_ids": row, "labels": row} for row in ids]
    done = Trainer(model=model, args=options, train_dataset=rows).train()
    assert done.global_step == 2
    for name in ("model.embed_tokens.weight", "model.embed_tokens.right"):
        assert not torch.equal(model.get_parameter(name), before[name])
    assert model.lm_head.right is model.model.embed_tokens.right


# ---- LoRA -------------------------------------------------------------------------------------------------------------

LORA = {
    "llama": ["q_proj", "down_proj"],
    "gpt2": ["c_attn", "c_fc"],
    "opt": ["v_proj", "fc1"],
    "tied everything, sharded": ["q_proj", "embed_tokens"],
}


@pytest.mark.parametrize("case", list(LORA))
def test_a_stock_lora_sits_on_compressed_layers(case: str, shelf: Shelf, tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    out, ids = shelf.compressed(case), batch()
    base = logits(load(out), ids)
    config = LoraConfig(r=3, lora_alpha=6, target_modules=LORA[case], task_type="CAUSAL_LM", lora_dropout=0.0)
    torch.manual_seed(0)
    model = get_peft_model(load(out), config)
    adapted = [m.base_layer for m in model.modules() if hasattr(m, "lora_A") and hasattr(m, "base_layer")]
    assert {type(layer) for layer in adapted} <= {OperatorLinear, OperatorEmbedding}
    assert len(adapted) == sum(name.endswith(tuple(LORA[case])) for name in operators(load(out)))
    assert torch.equal(logits(model, ids), base)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimiser = torch.optim.Adam(trained.values(), lr=1e-2)
    losses = []
    for _ in range(6):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1
    assert all(torch.equal(dict(model.named_parameters())[name], p) for name, p in frozen.items())
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(load(out), tmp_path)
    assert torch.equal(logits(again, ids), logits(model, ids))
    assert not torch.equal(logits(again, ids), base)
    with model.disable_adapter():
        assert torch.equal(logits(model, ids), base)


def test_merging_a_lora_into_factors_is_refused_and_not_done_wrongly(shelf: Shelf) -> None:
    """The sum has another rank: there is no place for it in the factors."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(load(shelf.compressed("llama")), LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(RuntimeError):
        model.merge_and_unload()


# ---- compiled, moved, cast --------------------------------------------------------------------------------------------


@main_cases
def test_compiled_it_gives_the_same(case: str, shelf: Shelf) -> None:
    model, ids = load(shelf.compressed(case)), batch()
    graphs = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    wanted = logits(model, ids)
    assert torch.equal(logits(torch.compile(model, backend=count), ids), wanted)
    assert len(graphs) == 1  # no break at the factors
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.skipif(not any(map(which, ("c++", "g++", "clang++"))), reason="inductor needs a C++ compiler")
def test_compiled_to_code_it_gives_the_same(shelf: Shelf) -> None:
    for case in ("llama", "gpt2"):
        model, ids = load(shelf.compressed(case)), batch()
        wanted = logits(model, ids)
        torch.testing.assert_close(logits(torch.compile(model), ids), wanted, rtol=0, atol=2e-4)
        torch.compiler.reset()


@main_cases
def test_cast_to_bfloat16(case: str, shelf: Shelf) -> None:
    out, half = shelf.compressed(case), torch.bfloat16
    moved, loaded = load(out).to(half), load(out, dtype=half)
    assert {p.dtype for p in (*moved.parameters(), *loaded.parameters())} == {half}
    same_state(moved, loaded)
    wanted, stock = logits(multiplied_out(shelf, case)), multiplied_out(shelf, case).to(half)
    rounding = float((logits(stock).float() - wanted).norm())
    assert 0 < float((logits(moved).float() - wanted).norm()) < 2 * rounding
    assert float((logits(loaded).float() - wanted).norm()) < 2 * rounding


def test_a_checkpoint_in_bfloat16_stays_in_bfloat16(tmp_path: Path) -> None:
    source = ARCHITECTURES["llama"](tmp_path / "source", dtype=torch.bfloat16)
    eckart.compress(source, tmp_path / "out", keep=0.6, recipe="svd", only=["*_proj", "embed_tokens"])
    model = load(tmp_path / "out")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert len(operators(model)) == 22
    raw = (tmp_path / "out" / "model.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
    assert {entry["dtype"] for name, entry in header.items() if name != "__metadata__"} == {"BF16"}


@main_cases
@pytest.mark.parametrize("device_map", ["cpu", "auto"])
def test_device_map(case: str, device_map: str, shelf: Shelf) -> None:
    out = shelf.compressed(case)
    model = load(out, device_map=device_map)
    assert {p.device.type for p in model.parameters()} <= {"cpu", "cuda", "mps"}
    torch.testing.assert_close(logits(model).cpu(), logits(load(out)), rtol=0, atol=1e-5)
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    assert (ends[0].weight is ends[1].weight) == (CASES[case].architecture in TIED)


def test_device_map_that_names_modules_and_spills_to_disk(shelf: Shelf, tmp_path: Path) -> None:
    out = shelf.compressed("llama")
    spread = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "cpu"}
    spread |= {"model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    model = load(out, device_map=spread, offload_folder=tmp_path)
    assert model.model.layers[1].mlp.up_proj.right.is_meta
    torch.testing.assert_close(logits(model), logits(load(out)), rtol=0, atol=1e-5)


# ---- saved again, copied ----------------------------------------------------------------------------------------------


def same_state(one: nn.Module, other: nn.Module) -> None:
    """Both hold the same tensors, bit for bit."""
    left, right = one.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    assert {n: t.dtype for n, t in left.items()} == {n: t.dtype for n, t in right.items()}
    assert [n for n in left if not torch.equal(left[n], right[n])] == []


@every_case
def test_saved_and_loaded_again_it_is_the_same_to_the_bit(case: str, shelf: Shelf, tmp_path: Path) -> None:
    model = load(shelf.compressed(case))
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    for folder in (tmp_path / "whole", tmp_path / "shards"):
        again = load(folder)
        same_state(model, again)
        assert again.config.quantization_config.to_dict() == model.config.quantization_config.to_dict()
        assert torch.equal(logits(again), logits(model))
        stored = json.loads((shelf.compressed(case) / "config.json").read_text())["quantization_config"]
        assert json.loads((folder / "config.json").read_text())["quantization_config"] == stored


@pytest.mark.parametrize("case", ["gpt_neox head", "mixtral", "tied everything, sharded", "gpt2 embedding"])
def test_what_was_saved_again_can_be_made_dense(case: str, shelf: Shelf, tmp_path: Path) -> None:
    load(shelf.compressed(case)).save_pretrained(tmp_path / "again")
    dense = load(eckart.densify(tmp_path / "again", tmp_path / "dense"))
    assert operators(dense) == {}
    torch.testing.assert_close(logits(dense), logits(multiplied_out(shelf, case)), rtol=0, atol=2e-4)


@pytest.mark.parametrize("case", ["tied everything, sharded", "gpt2 embedding"])
def test_tying_again_by_hand_changes_nothing(case: str, shelf: Shelf, tmp_path: Path) -> None:
    model = load(shelf.compressed(case))
    before = logits(model)
    model.tie_weights()
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    assert ends[0].weight is ends[1].weight
    assert ends[0].right is ends[1].right
    assert torch.equal(logits(model), before)
    model.save_pretrained(tmp_path)
    again = load(tmp_path)
    same_state(model, again)
    assert again.get_input_embeddings().right is again.get_output_embeddings().right


@main_cases
def test_deepcopy_is_the_same_and_apart(case: str, shelf: Shelf) -> None:
    model = load(shelf.compressed(case))
    twin = copy.deepcopy(model)
    before = logits(model)
    assert torch.equal(logits(twin), before)
    assert operators(twin).keys() == operators(model).keys()
    with torch.no_grad():
        for module in operators(twin).values():
            module.right.mul_(1.5)
    assert torch.equal(logits(model), before)
    assert not torch.equal(logits(twin), before)
    ends = (twin.get_input_embeddings(), twin.get_output_embeddings())
    assert (ends[0].weight is ends[1].weight) == (CASES[case].architecture in TIED)


def test_eckart_load_is_from_pretrained_in_evaluation_mode(shelf: Shelf) -> None:
    for case in ("llama", "tied embedding"):
        model = eckart.load(shelf.compressed(case))
        assert not model.training
        same_state(model, load(shelf.compressed(case)))
        same_state(eckart.load(str(shelf.source(case))), load(shelf.source(case)))


# ---- what comes along -------------------------------------------------------------------------------------------------

COMPANIONS = {
    "LICENSE": b"Permission is granted,\r\n\xff\xfe not as UTF-8.\n",
    "LICENSE.md": b"# Licence\n",
    "NOTICE": b"(c) the millers\n",
    "USE_POLICY.md": b"Bake no bricks.\n",
    "chat_template.jinja": b"{% for m in messages %}{{ m['content'] }}{% endfor %}",
    "additional_chat_templates/tool.jinja": b"{{ tools }}",
    "generation_config.json": b'{ "temperature": 0.71, "do_sample": true,  "eos_token_id": 1 }',
    "vocab.txt": b"a\nb\n",
    "added_tokens.json": b"{}",
}
CARD = """---
license: other
license_name: millers-licence
license_link: https://example.org/licence
language:
- en
- de
tags:
- bread
---

# A model of the mill

It was trained in secret at /home/miller.
"""


def dressed(folder: Path) -> Path:
    """A llama with everything around it that a model on the hub may have."""
    ARCHITECTURES["llama"](folder)
    for name, content in COMPANIONS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    (folder / "training_args.bin").write_bytes(b"pickled")
    return folder


def front_matter(folder: Path) -> dict[str, Any]:
    """The YAML at the head of a model card."""
    lines = (folder / "README.md").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "---"
    return yaml.safe_load("\n".join(lines[1 : lines.index("---", 1)]))


def test_all_that_belongs_to_the_model_comes_along_unchanged(tmp_path: Path) -> None:
    source, out = dressed(tmp_path / "source"), tmp_path / "out"
    eckart.compress(source, out, keep=0.6, recipe="svd")
    dense = eckart.densify(out, tmp_path / "dense")
    names = {*COMPANIONS, "tokenizer.json", "tokenizer_config.json"}
    for folder in (out, dense):
        assert {n: (folder / n).read_bytes() for n in names} == {n: (source / n).read_bytes() for n in names}
        assert not (folder / "training_args.bin").exists()
    assert load(out).generation_config.temperature == 0.71
    written = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert written == names | {"README.md", "config.json", "eckart.json", "model.safetensors"}
    config, old = (json.loads((folder / "config.json").read_text()) for folder in (out, source))
    assert config.pop("quantization_config")["quant_method"] == "eckart"
    assert config == old


@pytest.mark.parametrize(
    "front",
    [
        CARD,
        "---\nlicense: apache-2.0\n---\n",
        "---\nlicense:\n- apache-2.0\n- mit\ntags:\n- x\n---\n",
        '---\r\nlicense: "cc-by-4.0"\r\n---\r\n',
    ],
    ids=["other", "plain", "list", "quoted, with CRLF"],
)
def test_the_card_carries_the_licence_of_the_base(front: str, tmp_path: Path) -> None:
    source, out = ARCHITECTURES["llama"](tmp_path / "source"), tmp_path / "out"
    (source / "README.md").write_bytes(front.encode())
    eckart.compress(source, out, keep=0.6, recipe="svd")
    old, new = front_matter(source), front_matter(out)
    keys = ("license", "license_name", "license_link")
    assert {k: new.get(k) for k in keys} == {k: old.get(k) for k in keys}
    assert new["library_name"] == "transformers"
    assert "eckart" in new["tags"]


def test_the_card_names_no_licence_where_the_base_names_none(tmp_path: Path) -> None:
    source, out = ARCHITECTURES["llama"](tmp_path / "source"), tmp_path / "out"
    (source / "README.md").write_text("Just text.\n\n---\nlicense: mit\n---\n", encoding="utf-8")
    eckart.compress(source, out, keep=0.6, recipe="svd")
    assert not {"license", "license_name", "license_link"} & front_matter(out).keys()


def strings_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from strings_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings_in(item)


def test_the_record_says_nothing_of_where_and_when(tmp_path: Path) -> None:
    source, out = dressed(tmp_path / "source"), tmp_path / "out"
    text = tmp_path / "calibration.txt"
    text.write_text(" ".join(SENTENCES), encoding="utf-8")
    eckart.compress(source, out, keep=0.6, calibration=text, tokens=64, window=32)
    told = list(strings_in(json.loads((out / "eckart.json").read_text(encoding="utf-8"))))
    assert "eckart" in told
    day = re.compile(r"20\d\d[-/.]?[01]\d[-/.]?[0-3]\d|\d\d:\d\d")
    for value in told:
        if re.fullmatch(r"[0-9a-f]{64}", value):
            continue  # a hash may hold any digits
        assert not value.startswith(("/", "~", "\\")), value
        assert not day.search(value), value
    for name in ("eckart.json", "config.json", "README.md", "model.safetensors"):
        raw = (out / name).read_bytes()
        for place in (tmp_path, Path.cwd(), Path.home(), Path(eckart.__file__).parent):
            assert str(place).encode() not in raw.replace(b"\n", b""), f"{name} names {place}"


# ---- the same bytes ---------------------------------------------------------------------------------------------------

RUN = """
import os, sys
from pathlib import Path
if sys.argv[3] == "backwards":  # directories tell what is in them in whatever order the file system likes
    class Backwards:
        def __init__(self, *place):
            with scan(*place) as found:
                self.entries = sorted(found, key=lambda entry: entry.name, reverse=True)
        def __enter__(self):
            return iter(self.entries)
        def __exit__(self, *error):
            pass
        def __iter__(self):
            return iter(self.entries)
        def close(self):
            pass
    scan, names = os.scandir, os.listdir
    os.scandir, os.listdir = Backwards, lambda *place: sorted(names(*place), reverse=True)
import torch
torch.set_num_threads(1)
import eckart
from eckart.model.compression import Statistics
from eckart.recipes import svd_llm
base, out = Path(sys.argv[1]), Path(sys.argv[2])
out.mkdir()
common = dict(calibration=base / "text.txt", tokens=96, window=32, seed=3)
eckart.compress(base / "dressed", out / "svd-llm", keep=0.7, **common)
eckart.compress(base / "tied", out / "asvd", keep=0.6, recipe="asvd", only=["q_proj", "fc1", "lm_head"], **common)
eckart.compress(base / "gpt2", out / "sequential", keep=0.6, recipe=svd_llm(statistics=Statistics.COMPRESSED), **common)
eckart.compress(base / "sharded", out / "svd", size=300_000, recipe="svd")
eckart.densify(out / "svd-llm", out / "dense")
"""


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    """Other hash seeds, directories, orders of files, locales, time zones and times: nothing of that is in the result."""
    first, second = tmp_path / "first", tmp_path / "elsewhere" / "second"
    dressed(first / "dressed")
    ARCHITECTURES["opt"](first / "tied")
    ARCHITECTURES["gpt2"](first / "gpt2")
    shard(ARCHITECTURES["llama"](first / "sharded"), 60_000)
    (first / "text.txt").write_text(" ".join([*SENTENCES, *SENTENCES[::2]]), encoding="utf-8")
    copytree(first, second)
    running = []
    ascii_only = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TZ": "Asia/Kathmandu"}
    for base, seed, order, place in ((first, "1", "forwards", {}), (second, "4242", "backwards", ascii_only)):
        command = [sys.executable, "-c", RUN, str(base), str(base.parent / f"out-{seed}"), order]
        environment = os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"} | place
        running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for process in running:
        _, said = process.communicate()
        assert process.returncode == 0, said
    one, other = digests(tmp_path / "out-1"), digests(second.parent / "out-4242")
    assert one == other
    assert {name.split("/")[0] for name in one} == {"svd-llm", "asvd", "sequential", "svd", "dense"}
    assert len([name for name in one if name.startswith("svd/") and name.endswith(".safetensors")]) > 3


WRONG_MODULES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a module that is not there": (
        lambda modules: modules.update({"model.layers.9.mlp.up_proj": next(iter(modules.values()))}),
        r"names the module model\.layers\.9\.mlp\.up_proj, which LlamaForCausalLM does not have",
    ),
    "an operator that is not known": (
        lambda modules: next(iter(modules.values())).update(operator="codes"),
        r"the operator 'codes'; known are .*factors",
    ),
    "a module that is no linear map": (
        lambda modules: modules.update({"model.norm": next(iter(modules.values()))}),
        r"gives model\.norm an operator, but a LlamaRMSNorm is no linear map",
    ),
}


@pytest.mark.parametrize("kind", WRONG_MODULES)
def test_a_config_whose_modules_are_wrong_is_told(tmp_path: Path, kind: str) -> None:
    source, out = ARCHITECTURES["llama"](tmp_path / "source"), tmp_path / "out"
    eckart.compress(source, out, keep=0.6, recipe="svd")
    change, sentence = WRONG_MODULES[kind]
    config = json.loads((out / "config.json").read_text())
    change(config["quantization_config"]["modules"])
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(eckart.EckartError, match=sentence):
        eckart.load(out)
