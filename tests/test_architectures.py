"""Every architecture from end to end: compressed, loaded, checked against its own factors, verified, made dense again.

The oracle is always a stock model in float64 whose weights are set by hand from what lies on the disk.
"""

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import ARCHITECTURES, CONTEXT, SENTENCES, VOCABULARY, tokenizer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

import eckart
from eckart.model.checkpoint import Checkpoint
from eckart.model.compression import Statistics
from eckart.model.linear import OperatorLinear
from eckart.model.skeleton import Skeleton
from eckart.model.walk import Walk
from eckart.recipes import svd_llm
from eckart.stats import Moments

TIED = {"llama_tied", "gemma2", "gemma3", "gpt2", "opt", "opt_projected"}
WINDOW = 32
KEEP = 0.7

# A process that never saw eckart: it is given directories, one a line, and answers with logits in float64.
STRANGER = """
import json, sys
sys.modules["eckart"] = None
import torch
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
for line in sys.stdin:
    asked = json.loads(line)
    try:
        options = {"output_loading_info": True, "experts_implementation": "eager"}
        model, report = AutoModelForCausalLM.from_pretrained(asked["folder"], **options)
        ids = torch.tensor(asked["ids"])
        answer = {"report": sorted(str(v) for v in report.values() if v),
                  "class": type(model).__name__, "dtype": str(model.dtype),
                  "logits": model.double().eval()(ids).logits.tolist()}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
"""


@dataclass(frozen=True)
class Made:
    """One architecture's checkpoint, what compressing it gave, and the text that statistics came from."""

    name: str
    source: Path
    out: Path
    text: Path
    result: Any

    @property
    def table(self) -> dict[str, Any]:
        """The certificate as JSON, read without the library."""
        return json.loads((self.out / "eckart.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibration text of a few hundred tokens, without a repeated window."""
    path = tmp_path_factory.mktemp("text") / "calibration.txt"
    path.write_text(" ".join([*SENTENCES, *SENTENCES[::-1], *SENTENCES[::2]]), encoding="utf-8")
    return path


@pytest.fixture(scope="module", params=sorted(ARCHITECTURES))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, text: Path) -> Made:
    folder = tmp_path_factory.mktemp(request.param)
    source = ARCHITECTURES[request.param](folder / "source")
    result = eckart.compress(source, folder / "out", keep=KEEP, calibration=text, tokens=1 << 20, window=WINDOW)
    return Made(request.param, source, folder / "out", text, result)


@pytest.fixture(scope="module")
def stranger() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", STRANGER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    yield process
    process.communicate()


def ask(process: subprocess.Popen[str], folder: Path, ids: Tensor) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps({"folder": str(folder), "ids": ids.tolist()}) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def stored(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a directory by the letter of the safetensors format; float32 only."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        raw = path.read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        header = json.loads(raw[8 : 8 + length])
        header.pop("__metadata__", None)
        for name, entry in header.items():
            assert entry["dtype"] == "F32"
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            found[name] = np.frombuffer(raw[begin:end], np.float32).reshape(entry["shape"])
    return found


def products(folder: Path) -> dict[str, Tensor]:
    """For every factored matrix of the certificate its product (outputs, inputs) in float64."""
    tensors = stored(folder)
    table = json.loads((folder / "eckart.json").read_text(encoding="utf-8"))
    found = {}
    for entry in table["matrices"]:
        if entry["operator"] == "factors":
            left, right = (tensors[f"{entry['name']}.{side}"].astype(np.float64) for side in ("weight", "right"))
            assert left.shape[1] == right.shape[0] == entry["rank"]
            found[entry["name"]] = torch.from_numpy(left @ right)
    return found


def put(model: nn.Module, name: str, matrix: Tensor) -> None:
    """Set the weight of a stock map to a matrix (outputs, inputs)."""
    module = model.get_submodule(name)
    with torch.no_grad():
        module.weight.copy_(matrix.T if isinstance(module, Conv1D) else matrix)


def load(folder: Path) -> Any:
    # The fast way to run experts knows no float64.
    options = {"output_loading_info": True, "experts_implementation": "eager"}
    model, report = AutoModelForCausalLM.from_pretrained(folder, **options)
    assert not any(report.values()), report
    return model.eval()


def multiplied_out(source: Path, out: Path) -> Any:
    """The stock model in float64 with every factored weight replaced by its product."""
    model = load(source).double()
    for name, product in products(out).items():
        put(model, name, product)
    return model


def maps_in_blocks(model: nn.Module) -> dict[str, tuple[int, int]]:
    """The linear maps inside the blocks of a stock model, with (outputs, inputs)."""
    found = {}
    for name, module in model.named_modules():
        if (".layers." in name or ".h." in name) and isinstance(module, nn.Linear | Conv1D):
            shape = tuple(module.weight.shape)
            found[name] = shape[::-1] if isinstance(module, Conv1D) else shape
    return found


def batch(length: int = 24) -> Tensor:
    return torch.tensor([ids[:length] for ids in tokenizer()(list(SENTENCES))["input_ids"]])


def windows_of(text: Path) -> Tensor:
    ids = tokenizer()(text.read_text(encoding="utf-8"))["input_ids"]
    return torch.tensor(ids[: len(ids) // WINDOW * WINDOW]).reshape(-1, WINDOW)


@torch.no_grad()
def logits(model: Any, ids: Tensor) -> Tensor:
    return model(input_ids=ids, use_cache=False).logits


def mean_nll(model: Any, windows: Tensor) -> float:
    values = logits(model, windows)[:, :-1]
    return float(F.cross_entropy(values.reshape(-1, values.shape[-1]).double(), windows[:, 1:].reshape(-1)))


@torch.no_grad()
def inputs_of(model: nn.Module, names: list[str], windows: Tensor) -> dict[str, Tensor]:
    """What each of these maps is given over all windows, (tokens, inputs)."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: seen[name].append(args[0].reshape(-1, args[0].shape[-1]))
        )
        for name in names
    ]
    logits(model, windows)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}


def check_errors(stock: Any, products_of: dict[str, Tensor], table: dict[str, Any], seen: dict[str, Tensor]) -> None:
    """The recorded errors are root mean squares over all tokens of the change of the output, and the least possible."""
    for entry in table["matrices"]:
        name, (own, spectral) = entry["name"], (entry["bounds"][0], entry["bounds"][-1])
        assert spectral["norm"] == "spectral"
        if entry["operator"] == "dense":
            assert own["achieved"] == spectral["achieved"] == 0
            continue
        module = stock.get_submodule(name)
        weight = module.weight.detach().double()
        weight = weight.T if isinstance(module, Conv1D) else weight
        error, x = weight - products_of[name], seen[name].double()
        tokens = len(x)
        assert own["achieved"] == pytest.approx(float((x @ error.T).norm()) / tokens**0.5, rel=2e-4), name
        tail = torch.linalg.svdvals(weight @ x.T)[entry["rank"] :]
        assert own["achieved"] == pytest.approx(float(tail.norm()) / tokens**0.5, rel=2e-3), name
        assert spectral["achieved"] == pytest.approx(float(torch.linalg.svdvals(error)[0]), rel=1e-6), name


# ---- what was compressed ----------------------------------------------------------------------------------------------


def test_every_map_inside_the_blocks_is_a_target(made: Made) -> None:
    wanted = maps_in_blocks(load(made.source))
    recorded = {entry["name"]: tuple(entry["shape"]) for entry in made.table["matrices"]}
    assert recorded == wanted
    assert recorded.keys() == {matrix.name for matrix in made.result.matrices}
    assert any(entry["operator"] == "factors" for entry in made.table["matrices"])


def test_targets_became_operators_and_nothing_else_changed(made: Made) -> None:
    stock, model = load(made.source), load(made.out)
    ranks = {entry["name"]: entry["rank"] for entry in made.table["matrices"]}
    modules = dict(model.named_modules())
    for name, old in stock.named_modules():
        if ranks.get(name) is None:
            assert type(modules[name]) is type(old), name
            for key, parameter in old.named_parameters(recurse=False):
                assert torch.equal(getattr(modules[name], key), parameter), f"{name}.{key}"
            continue
        new = modules[name]
        assert type(new) is OperatorLinear, name
        rows, columns = maps_in_blocks(stock)[name]
        assert (new.out_features, new.in_features) == (rows, columns)
        assert {key: tuple(value.shape) for key, value in new.named_parameters() if key != "bias"} == {
            "weight": (rows, ranks[name]),
            "right": (ranks[name], columns),
        }
        assert (new.bias is None) == (old.bias is None)
        assert old.bias is None or torch.equal(new.bias, old.bias)
    assert modules.keys() == dict(stock.named_modules()).keys()


def test_what_was_left_alone_is_listed_with_a_reason(made: Made) -> None:
    untouched = {entry["name"]: entry["reason"] for entry in made.table["untouched"]}
    assert all(untouched.values())
    embedding = next(n for n, m in load(made.source).named_modules() if isinstance(m, nn.Embedding))
    assert embedding in untouched
    assert ("lm_head" in untouched) == (made.name not in TIED)


# ---- what it computes -------------------------------------------------------------------------------------------------


def test_logits_are_those_of_the_stock_model_with_the_products(made: Made) -> None:
    ids = batch()
    found = logits(load(made.out).double(), ids)
    wanted = logits(multiplied_out(made.source, made.out), ids)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9 * float(wanted.std()))
    before = logits(load(made.source).double(), ids)
    assert float((wanted - before).norm() / before.norm()) > 0.01  # it is not the original that was compared


def test_tied_embeddings_are_still_tied(made: Made) -> None:
    model = load(made.out)
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (head is embedding) == (made.name in TIED)
    assert (head.data_ptr() == embedding.data_ptr()) == (made.name in TIED)


# ---- what is said of it -----------------------------------------------------------------------------------------------


def test_verify_holds_with_the_calibration_text(made: Made) -> None:
    checked = eckart.verify(made.out, made.source, calibration=made.text)
    assert checked.failures == ()
    assert [entry for entry in checked.not_rechecked if "losses" not in entry] == []
    assert checked.checked["hashes"] == len(stored(made.out))
    assert checked.checked["input gram figures"] > 0


def test_recorded_errors_are_those_of_the_whole_model(made: Made) -> None:
    stock, table = load(made.source), made.table
    names = [entry["name"] for entry in table["matrices"]]
    check_errors(stock, products(made.out), table, inputs_of(stock, names, windows_of(made.text)))


def test_recorded_losses_are_those_of_the_whole_model(made: Made) -> None:
    losses, windows = made.result.losses, windows_of(made.text)
    assert losses.keys() == {"original", "allocated", "uniform"}
    assert losses["original"] == pytest.approx(mean_nll(load(made.source), windows), rel=1e-6)
    assert losses[made.result.kept] == pytest.approx(mean_nll(load(made.out), windows), rel=1e-6)
    assert losses[made.result.kept] == min(losses["allocated"], losses["uniform"])


# ---- and back ---------------------------------------------------------------------------------------------------------


def test_densified_it_is_a_stock_checkpoint_with_the_same_logits(
    made: Made, stranger: subprocess.Popen[str], tmp_path: Path
) -> None:
    dense = eckart.densify(made.out, tmp_path / "dense")
    before, after, multiplied = stored(made.source), stored(dense), products(made.out)
    assert {name: a.shape for name, a in after.items()} == {name: b.shape for name, b in before.items()}
    assert json.loads((dense / "config.json").read_text()) == json.loads((made.source / "config.json").read_text())
    stock, ids = load(made.source), batch()
    for name, product in multiplied.items():
        stored_product = after[f"{name}.weight"]
        found = stored_product.T if isinstance(stock.get_submodule(name), Conv1D) else stored_product
        np.testing.assert_allclose(found, product, rtol=0, atol=1e-6 * float(product.abs().max()))
    rest = [name for name in before if name.removesuffix(".weight") not in multiplied]
    assert all(before[name].tobytes() == after[name].tobytes() for name in rest)
    answer = ask(stranger, dense, ids)
    assert "error" not in answer
    assert (answer["class"], answer["dtype"], answer["report"]) == (type(stock).__name__, "torch.float32", [])
    wanted = logits(multiplied_out(made.source, made.out), ids)
    torch.testing.assert_close(
        torch.tensor(answer["logits"], dtype=torch.float64), wanted, rtol=0, atol=1e-5 * float(wanted.std())
    )


# ---- block by block ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_walking_block_by_block_is_the_whole_model(name: str, tmp_path: Path) -> None:
    source = ARCHITECTURES[name](tmp_path / "source")
    windows = torch.randint(VOCABULARY, (37, CONTEXT), generator=torch.Generator().manual_seed(3))
    skeleton = Skeleton(Checkpoint(source))
    walk = Walk(skeleton, windows)  # 37 windows: a full batch and a smaller one
    stock = load(source)
    blocks = {n.split(".")[-3 if ".experts." in n else -1] for n in skeleton.blocks}
    assert blocks == {str(index) for index in range(stock.config.num_hidden_layers)}
    observed = sorted(maps_in_blocks(stock))
    seen = inputs_of(stock, observed, windows)
    here, there = tmp_path / "here.bin", tmp_path / "there.bin"
    walk.embed(here)
    found: dict[str, Moments] = {}
    for index, block in enumerate(skeleton.blocks):
        filled: set[str] = set()

        def look(filled: set[str] = filled) -> None:
            filled |= {n for n, p in skeleton.model.named_parameters() if not p.is_meta}

        inside = [n for n in observed if n.startswith(f"{block}.")]
        found |= walk.run_block(index, here, there, observe=inside, gram=True, tick=look)
        assert filled == {f"{block}.{n}" for n, _ in stock.get_submodule(block).named_parameters()}
        here, there = there, here
    loss, _ = walk.tail(here)
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())
    assert loss == pytest.approx(mean_nll(stock, windows), rel=2e-6)
    assert found.keys() == set(observed)
    for n, x in seen.items():
        moments, gram = found[n], (x.double().T @ x.double())
        assert moments.count == len(x) == windows.numel()
        assert moments.gram is not None
        torch.testing.assert_close(moments.gram, gram, rtol=0, atol=2e-5 * float(gram.diagonal().max()))
        torch.testing.assert_close(moments.magnitude, x.double().abs().sum(0), rtol=1e-4, atol=1e-6)


# ---- statistics from the compressed model -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gemma3", "gpt2", "llama", "mixtral", "opt_projected"])
def test_sequential_statistics_are_those_behind_the_compressed_blocks(name: str, tmp_path: Path, text: Path) -> None:
    source, out = ARCHITECTURES[name](tmp_path / "source"), tmp_path / "out"
    recipe = svd_llm(statistics=Statistics.COMPRESSED)
    result = eckart.compress(source, out, keep=0.5, recipe=recipe, calibration=text, tokens=1 << 20, window=WINDOW)
    table = json.loads((out / "eckart.json").read_text(encoding="utf-8"))
    assert table["recipe"]["statistics"] == "compressed"
    stock, multiplied, windows = load(source), products(out), windows_of(text)
    moved, seen = load(source), {}
    for block in Skeleton(Checkpoint(source)).blocks:
        inside = [e["name"] for e in table["matrices"] if e["name"].startswith(f"{block}.")]
        seen |= inputs_of(moved, inside, windows)
        for map_name in inside:
            if map_name in multiplied:
                put(moved, map_name, multiplied[map_name])
    check_errors(stock, multiplied, table, seen)
    assert result.losses[result.kept] == pytest.approx(mean_nll(load(out), windows), rel=1e-6)
    assert eckart.verify(out, source, calibration=text).failures == ()


# ---- mixtures of experts ----------------------------------------------------------------------------------------------


def test_experts_are_listed_as_untouched_and_attention_is_compressed(tmp_path: Path) -> None:
    source = ARCHITECTURES["mixtral"](tmp_path / "source")
    result = eckart.compress(source, tmp_path / "out", keep=0.5, recipe="svd")
    stock = load(source)
    assert {m.name for m in result.matrices} == {
        f"model.layers.{layer}.self_attn.{part}_proj" for layer in range(2) for part in "qkvo"
    }
    assert all(matrix.rank is not None for matrix in result.matrices)
    untouched = {u.name: u for u in result.untouched}
    experts = {n for n in stored(source) if ".experts." in n}
    assert len(experts) == 2 * 4 * 3
    assert experts <= untouched.keys()
    assert all("converted by transformers" in untouched[n].reason for n in experts)
    assert {n for n in untouched if ".gate" in n} == {f"model.layers.{layer}.mlp.gate" for layer in range(2)}
    assert {n: a.tobytes() for n, a in stored(tmp_path / "out").items() if n in experts} == {
        n: a.tobytes() for n, a in stored(source).items() if n in experts
    }
    packed = load(tmp_path / "out").model.layers[1].mlp.experts
    assert torch.equal(packed.gate_up_proj, stock.model.layers[1].mlp.experts.gate_up_proj)
