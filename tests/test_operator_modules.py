"""The one module that holds an operator, of whatever kind: alone, and in checkpoints that transformers loads."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from market import float64, gaussian
from models import ARCHITECTURES, SENTENCES, tokenizer
from operators import OPERATORS, codes, cube, dense, diagonal, factors, sparse, train
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import eckart
from eckart.model.entries import entry_of, read_entry
from eckart.model.linear import OperatorEmbedding, OperatorLinear
from eckart.operator import Diagonal, Kronecker, Operator, Product, Sum, describe, kind_of, monarch


@pytest.fixture(params=OPERATORS)
def op(request: pytest.FixtureRequest) -> Operator:
    return OPERATORS[request.param](torch.float64)


# ---- one module -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_bias", [False, True])
def test_a_module_is_the_linear_map_of_its_operator(op: Operator, with_bias: bool) -> None:
    m, n = op.shape
    bias = gaussian(m, 1, 9)[:, 0] if with_bias else None
    module = OperatorLinear.of(op, bias)
    assert (module.in_features, module.out_features) == (n, m)
    matrix = float64(op.dense().double())
    for shape in [(n,), (2, n), (2, 3, n)]:
        x = cube(*shape)
        expected = x.numpy() @ matrix.T + (0.0 if bias is None else bias.numpy())
        assert module(x).shape == expected.shape
        assert float64(module(x).detach()) == pytest.approx(expected, rel=1e-12, abs=1e-11)


def test_floating_tensors_are_parameters_and_others_buffers(op: Operator) -> None:
    module, tensors = OperatorLinear.of(op), op.tensors()
    names = ["weight", *list(tensors)[1:]] if tensors else []
    assert set(module.state_dict()) == set(names)
    for name, tensor in zip(names, tensors.values(), strict=True):
        held = module.state_dict()[name]
        assert torch.equal(held, tensor)
        assert held.data_ptr() != tensor.data_ptr() or not tensor.numel()
        assert (name in dict(module.named_parameters())) == tensor.is_floating_point()
    assert describe(module.operator) == describe(op) == module.record
    if tensors:
        assert module.weight.is_floating_point()  # stock code looks at its dtype


def test_gradients_reach_every_parameter(op: Operator) -> None:
    """Along its gradient the loss rises at the rate of the gradient's norm, by differences on both sides."""
    module = OperatorLinear.of(op)
    x, target, step = cube(4, op.shape[1], seed=7), cube(4, op.shape[0], seed=8), 1e-5

    def loss() -> Tensor:
        return (module(x) - target).square().mean()

    parameters = [p for p in module.parameters() if p.numel()]
    assert len(parameters) == sum(t.is_floating_point() and t.numel() > 0 for t in op.tensors().values())
    if parameters:
        loss().backward()
    for parameter in parameters:
        gradient = parameter.grad
        assert gradient is not None
        norm, before = float(gradient.norm()), parameter.detach().clone()
        assert norm > 0
        ends = []
        with torch.no_grad():
            for way in (1, -1):
                parameter.copy_(before + way * step / norm * gradient)
                ends.append(float(loss()))
            parameter.copy_(before)
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(norm, rel=1e-4, abs=1e-7)


def test_a_state_is_loaded_into_an_empty_module(op: Operator, tmp_path: Path) -> None:
    source = OperatorLinear.of(op)
    save_file(
        {k: v.clone(memory_format=torch.contiguous_format) for k, v in source.state_dict().items()}, tmp_path / "m"
    )
    entry = read_entry(json.loads(json.dumps(entry_of(op), sort_keys=True)))
    m, n = op.shape
    with torch.device("meta"):
        empty = OperatorLinear(entry.record, n, m, entry.shapes, bias=False, dtype=torch.float64, dtypes=entry.dtypes)
    empty.load_state_dict(load_file(tmp_path / "m"), assign=True, strict=True)
    x = cube(3, n)
    assert torch.equal(empty(x), source(x))
    assert torch.equal(copy.deepcopy(empty)(x), source(x))


def test_a_cast_of_the_module_leaves_integers_alone() -> None:
    op = Sum((codes(4, 6, 3, 2, torch.float32), sparse(4, 6, 0.5, torch.float32)))
    module = OperatorLinear.of(op, torch.zeros(4)).to(torch.bfloat16)
    assert {name: t.dtype for name, t in module.state_dict().items()} == {
        "weight": torch.bfloat16,
        "0_zero": torch.bfloat16,
        "0_codes": torch.uint8,
        "1_values": torch.bfloat16,
        "1_columns": torch.int16,
        "1_offsets": torch.int16,
        "bias": torch.bfloat16,
    }
    assert module(torch.ones(2, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "name",
    [
        "tensor_train 0",
        "stacked 0",
        "sparse 0",
        "codes 0",
        "transposed 1",
        "monarch",
        "sum of transposed codes and a kronecker of sums",
        "transposed kronecker of codes and sparse",
    ],
)
def test_a_module_is_compiled_as_one_graph(name: str) -> None:
    module = OperatorLinear.of(OPERATORS[name](torch.float64))
    graphs = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    x = cube(3, module.in_features)
    torch.compiler.reset()
    assert torch.equal(torch.compile(module, backend=count, fullgraph=True)(x), module(x))
    torch.compiler.reset()
    assert len(graphs) == 1


@pytest.mark.parametrize("kind", ["dense 0", "factors 0", "codes 0", "sparse 0", "tensor_train 0", "sum 0"])
def test_an_embedding_looks_up_rows(kind: str) -> None:
    op = OPERATORS[kind](torch.float64)
    entry = read_entry(entry_of(op))
    module = OperatorEmbedding(entry.record, *op.shape, entry.shapes, dtype=torch.float64, dtypes=entry.dtypes)
    module.load_state_dict(OperatorLinear.of(op).state_dict())
    ids = torch.tensor([[op.shape[0] - 1, 0], [1, 1]])
    assert float64(module(ids).detach()) == pytest.approx(float64(op.dense())[ids.numpy()], abs=1e-13)


def test_names_and_sizes_are_printed() -> None:
    module = OperatorLinear.of(codes(4, 6, 3, 2, torch.float32), torch.zeros(4))
    assert repr(module) == "OperatorLinear(6 -> 4, codes, bias=True)"


# ---- entries of config.json -------------------------------------------------------------------------------------------


def test_the_entries_of_dense_matrices_and_factors_are_what_they_were() -> None:
    assert entry_of(dense(2, 3, torch.float32)) == {"operator": "dense", "shapes": {"matrix": [2, 3]}}
    assert entry_of(factors(5, 3, torch.float32)) == {
        "operator": "factors",
        "shapes": {"left": [5, 2], "right": [2, 3]},
    }


def test_an_entry_of_a_sum_by_hand() -> None:
    op = Sum((codes(6, 6, 3, 4, torch.float16), diagonal(6, torch.float16)))
    assert entry_of(op) == {
        "operator": {
            "kind": "sum",
            "children": {
                "terms": [
                    {"kind": "codes", "settings": {"bits": 3, "columns": 6, "group": 4}},
                    {"kind": "diagonal"},
                ]
            },
        },
        "shapes": {"0_scale": [6, 2], "0_zero": [6, 2], "0_codes": [6, 3], "1_values": [6]},
        "dtypes": {"0_codes": "U8"},
    }


def test_an_entry_with_a_shared_tensor_by_hand() -> None:
    op = factors(5, 3, torch.float32)
    entry = entry_of(op, {"right": "model.other.right"})
    assert entry == {**entry_of(op), "shared": {"right": "model.other.right"}}
    assert read_entry(entry).shared == {"right": "model.other.right"}
    assert read_entry(entry_of(op)).shared == {}


def test_an_entry_is_read_whatever_the_order_of_its_names(op: Operator) -> None:
    text = json.dumps(entry_of(op), sort_keys=True)
    entry = read_entry(json.loads(text))
    assert list(entry.shapes) == list(op.tensors())
    assert entry.shape == op.shape
    assert entry.dtypes == {k: t.dtype for k, t in op.tensors().items() if not t.is_floating_point()}


SHAPES = {"left": [5, 2], "right": [2, 3]}


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        (None, "no operator with the shapes"),
        ({"operator": "factors"}, "no operator with the shapes"),
        ({"operator": "factors", "shapes": []}, "no operator with the shapes"),
        ({"shapes": SHAPES}, "the operator None; known are dense, factors, diagonal, block_diagonal, and others by"),
        ({"operator": "codes", "shapes": SHAPES}, "the operator 'codes'; known are dense, factors"),
        ({"operator": ["factors"], "shapes": SHAPES}, r"the operator \['factors'\]; known are"),
        ({"operator": {"kind": "sums"}, "shapes": SHAPES}, "the operator 'sums' is not known"),
        ({"operator": "dense", "shapes": SHAPES}, "a dense operator by its record has a tensor 'matrix'"),
        ({"operator": "factors", "shapes": {**SHAPES, "middle": [1]}}, "has no tensor 'middle'"),
        ({"operator": "factors", "shapes": SHAPES, "dtypes": {"left": "U9"}}, "dtypes that are not known"),
        ({"operator": "factors", "shapes": SHAPES, "dtypes": {"middle": "U8"}}, "of tensors that are not there"),
        ({"operator": "factors", "shapes": SHAPES, "dtypes": ["left"]}, "dtypes that are not known"),
        ({"operator": "factors", "shapes": SHAPES, "dtypes": {"left": ["U8"]}}, "dtypes that are not known"),
        ({"operator": "factors", "shapes": SHAPES, "shared": ["left"]}, "shared tensors that are not there, or"),
        (
            {"operator": "factors", "shapes": SHAPES, "shared": {"middle": "a.b"}},
            "shared tensors that are not there, or",
        ),
        ({"operator": "factors", "shapes": SHAPES, "shared": {"left": 1}}, "are no parameters of other modules"),
        ({"operator": "factors", "shapes": SHAPES, "shared": {"left": "weight"}}, "are no parameters of other modules"),
        *(
            ({"operator": "factors", "shapes": {**SHAPES, "left": wrong}}, "shapes that are no lists of sizes")
            for wrong in (5, "52", [5, -2], [5, 2.0], [True, 2], [None], [2**40, 2**40], [0, 2**60])
        ),
    ],
)
def test_entries_that_are_none_are_refused(entry: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        read_entry(entry)


# ---- checkpoints ------------------------------------------------------------------------------------------------------

Maker = Callable[[int, int], Operator]
SMALL = torch.float32
# What takes the place of the maps of a model, each of the shape that the map has.
IN_A_MODEL: dict[str, Maker] = {
    "q_proj": lambda m, n: codes(m, n, 3, 7, SMALL),
    "k_proj": lambda m, n: Sum((codes(m, n, 2, 16, SMALL), factors(m, n, SMALL))),
    "v_proj": lambda m, n: sparse(m, n, 0.3, SMALL),
    "o_proj": lambda m, n: Product((diagonal(m, SMALL), dense(m, n, SMALL))),
    "gate_proj": lambda m, n: train((m // 4, 4), (4, n // 4), 3, SMALL),
    "up_proj": lambda m, n: Kronecker(dense(m // 4, n // 2, SMALL), codes(4, 2, 8, 2, SMALL).T.T),
    "down_proj": lambda m, n: monarch(cube(4, m // 4, 2).float(), cube(2, 4, n // 2, seed=1).float()),
}


def scaled(op: Operator) -> Operator:
    """Weights of a size that leaves logits neither flat nor one-hot."""
    rows = op.shape[0]
    return Product((Diagonal(torch.full((rows,), 0.2 * rows**0.5 / float(op.dense().norm()))), op))


def compressed(source: Path, out: Path) -> tuple[Path, nn.Module]:
    """A checkpoint with an operator of another kind for every map, and the stock model with their dense matrices."""
    model = AutoModelForCausalLM.from_pretrained(source)
    stock, modules = copy.deepcopy(model), {}
    for name, module in list(model.named_modules()):
        maker = IN_A_MODEL.get(name.rpartition(".")[2])
        if maker is None or not isinstance(module, nn.Linear):
            continue
        op = scaled(maker(module.out_features, module.in_features))
        modules[name] = entry_of(op)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, OperatorLinear.of(op, module.bias))
        with torch.no_grad():
            stock.get_submodule(name).weight.copy_(op.dense())
    out.mkdir()
    save_file(model.state_dict(), out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "eckart", "format": 1, "modules": modules}
    (out / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (out / name).write_bytes((source / name).read_bytes())
    return out, stock.eval()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    folder = tmp_path_factory.mktemp("operators")
    return compressed(ARCHITECTURES["llama"](folder / "source"), folder / "compressed")


def logits(model: Any) -> Tensor:
    ids = torch.tensor([ids[:16] for ids in tokenizer()(list(SENTENCES))["input_ids"]])
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def test_a_checkpoint_of_all_kinds_is_loaded(checkpoint: tuple[Path, nn.Module], tmp_path: Path) -> None:
    folder, stock = checkpoint
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    held = {n.rpartition(".")[2]: m for n, m in model.named_modules() if isinstance(m, OperatorLinear)}
    assert held.keys() == IN_A_MODEL.keys()
    assert float(logits(stock).std()) > 0.1
    torch.testing.assert_close(logits(model), logits(stock), rtol=0, atol=2e-3)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(model))
    for name, tensor in model.state_dict().items():
        assert again.state_dict()[name].dtype == tensor.dtype
        assert torch.equal(again.state_dict()[name], tensor)


def test_in_bfloat16_integers_stay_what_they_are(checkpoint: tuple[Path, nn.Module]) -> None:
    folder, _ = checkpoint
    wide = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    narrow = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).state_dict()
    assert {t.dtype for t in wide.values()} == {torch.float32, torch.uint8, torch.int16}
    for name, tensor in wide.items():
        assert narrow[name].dtype == (torch.bfloat16 if tensor.is_floating_point() else tensor.dtype)
        assert torch.equal(narrow[name], tensor.to(narrow[name].dtype))


def test_a_checkpoint_of_all_kinds_becomes_dense(checkpoint: tuple[Path, nn.Module], tmp_path: Path) -> None:
    folder, stock = checkpoint
    dense_model = AutoModelForCausalLM.from_pretrained(eckart.densify(folder, tmp_path / "dense"))
    for name, tensor in stock.state_dict().items():
        scale = float(tensor.norm()) / tensor.numel() ** 0.5
        torch.testing.assert_close(dense_model.state_dict()[name], tensor, rtol=1e-5, atol=1e-5 * scale)


def test_a_checkpoint_of_all_kinds_is_inspected(checkpoint: tuple[Path, nn.Module]) -> None:
    rows = {row.name.rpartition(".")[2]: row for row in eckart.inspect(checkpoint[0], only=["layers.0.*"]).rows}
    assert rows["q_proj"].operator == "product"
    assert rows["q_proj"].dtype == torch.float32


def test_verify_says_that_certificates_know_factors_alone(tmp_path: Path) -> None:
    source, out = ARCHITECTURES["llama"](tmp_path / "source"), tmp_path / "out"
    eckart.compress(source, out, keep=0.6, recipe="svd")
    config = json.loads((out / "config.json").read_text())
    name, entry = next(iter(config["quantization_config"]["modules"].items()))
    state = load_file(out / "model.safetensors")
    left, right = entry["shapes"].values()
    record = {"kind": "product", "children": {"factors": [{"kind": "dense"}, {"kind": "dense"}]}}
    config["quantization_config"]["modules"][name] = {
        "operator": record,
        "shapes": {"0_matrix": left, "1_matrix": right},
    }
    state[f"{name}.1_matrix"] = state.pop(f"{name}.right")
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(eckart.EckartError, match="holds a product operator; certificates tell of factors alone"):
        eckart.verify(out)


def other_shapes(entry: dict[str, Any]) -> None:
    entry["shapes"]["right"][0] += 1


def other_size(entry: dict[str, Any]) -> None:
    entry["shapes"]["right"][1] += 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            other_shapes,
            r"config\.json gives model\..*_proj no proper operator: factors are left \(m, r\) and right \(r, n\), not",
        ),
        (other_size, r"an operator of (\d+) x \d+, where \1 x \d+ belong"),
        (lambda entry: entry.pop("shapes"), "gives model.*_proj no operator with the shapes of its tensors"),
        (
            lambda entry: entry.update(operator={"kind": "sum"}),
            "gives model.*_proj no proper operator: the children of a sum operator",
        ),
    ],
)
def test_an_entry_that_does_not_fit_the_model_is_told(
    change: Callable[[dict[str, Any]], object], sentence: str, tmp_path: Path
) -> None:
    source, out = ARCHITECTURES["llama"](tmp_path / "source"), tmp_path / "out"
    eckart.compress(source, out, keep=0.6, recipe="svd")
    config = json.loads((out / "config.json").read_text())
    change(next(iter(config["quantization_config"]["modules"].values())))
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(eckart.EckartError, match=sentence):
        eckart.load(out)


def test_integers_stored_as_other_integers_are_refused(checkpoint: tuple[Path, nn.Module], tmp_path: Path) -> None:
    folder, _ = checkpoint
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    state = load_file(folder / "model.safetensors")
    name = next(name for name in state if name.endswith("_columns"))
    state[name] = state[name].to(torch.int64)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(eckart.EckartError, match=r"v_proj is not stored in the dtypes that config\.json gives it"):
        eckart.inspect(tmp_path)


def test_every_operator_in_the_model_is_of_another_kind() -> None:
    kinds = {kind_of(maker(8, 8)) for maker in IN_A_MODEL.values()}
    assert kinds == {"codes", "sum", "sparse", "product", "tensor_train", "kronecker"}
