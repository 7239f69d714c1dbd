"""What is measured on a model that is taken piece by piece, against the model as a whole."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from models import ARCHITECTURES, VOCABULARY
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BertConfig, BertForSequenceClassification

from eckart.errors import EckartError
from eckart.model.adapting.modules import shape_of, turned
from eckart.model.adapting.observe import evaluating, observe
from eckart.model.adapting.pieces import Order
from eckart.model.adapting.wrap import targets_of
from eckart.model.linear import OperatorLinear
from eckart.model.skeleton import block_names
from eckart.operator import Factors
from eckart.stats import Need

BOTH = frozenset({Need.GRAM, Need.GRADIENTS})
ROOMS = (10**9, 60_000, 1)


def batches(labels: int | None = None) -> list[dict[str, Tensor]]:
    """Three of different lengths; the last tokens of one of them are hidden."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for length in (24, 24, 17):
        ids = torch.randint(VOCABULARY, (2, length), generator=generator)
        made.append({"input_ids": ids, "labels": ids if labels is None else torch.tensor([0, labels - 1])})
    made[1] |= {"attention_mask": torch.ones_like(made[1]["input_ids"])}
    made[1]["attention_mask"][0, 20:] = 0
    return made


def model_of(kind: str, folder: Path) -> Any:
    if kind != "bert":
        path = ARCHITECTURES[kind](folder / "model")
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4}
    return BertForSequenceClassification(BertConfig(vocab_size=VOCABULARY, num_labels=3, **sizes)).eval()  # type: ignore[arg-type]


def all_seen(model: Any, names: list[str], given: list[dict[str, Tensor]], room: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for group in observe(model, names, BOTH, given, room=room):
        found |= group
    return found


@pytest.mark.parametrize("kind", [*ARCHITECTURES, "bert"])
def test_pieces_tell_what_the_whole_model_does(kind: str, tmp_path: Path) -> None:
    """Gradients by autograd through the whole model and moments of all inputs, however little room there is, in every family."""
    model, given = model_of(kind, tmp_path), batches(3 if kind == "bert" else None)
    names = targets_of(model)
    with torch.no_grad(), evaluating(model), Order(model) as order:
        model(**given[0])
    assert order.blocks == block_names(model)
    inputs: dict[str, list[Tensor]] = {name: [] for name in names}
    hidden: list[Tensor | None] = [None]

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            rows = args[0].detach().flatten(0, -2)
            inputs[name].append(rows if hidden[0] is None or len(rows) != len(hidden[0]) else rows[hidden[0]])

        return hook

    handles = [model.get_submodule(name).register_forward_pre_hook(note(name)) for name in names]
    losses = []
    for batch in given:
        hidden[0] = batch["attention_mask"].bool().flatten() if "attention_mask" in batch else None
        losses.append(model(**batch).loss)
    for handle in handles:
        handle.remove()
    weights = [model.get_submodule(name).weight for name in names]
    expected = dict(zip(names, torch.autograd.grad(sum(losses) / 3, weights, allow_unused=True), strict=True))
    for room in ROOMS:
        found = all_seen(model, names, given, room)
        assert sorted(found) == sorted(names)
        for name in names:
            module, gradient = model.get_submodule(name), expected[name]
            wanted = torch.zeros(shape_of(module)) if gradient is None else turned(module, gradient)
            assert torch.allclose(found[name].gradient, wanted, rtol=1e-4, atol=1e-6), (room, name)
            rows = torch.cat([torch.zeros(0, shape_of(module)[1]), *inputs[name]]).double()
            assert found[name].moments.count == len(rows), (room, name)
            assert torch.allclose(found[name].moments.gram, rows.T @ rows, rtol=1e-5, atol=1e-5), (room, name)
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())


def counted(model: Any) -> Counter[str]:
    """How often the attention of each block is run."""
    runs: Counter[str] = Counter()
    for name in block_names(model):
        attention = model.get_submodule(name).self_attn
        attention.register_forward_pre_hook(lambda *_, name=name: runs.update([name]), with_kwargs=False)
    return runs


def test_a_block_is_run_once_for_moments_and_twice_for_gradients(tmp_path: Path) -> None:
    """Beside the one batch that tells how the model is put together; what lies behind the last map is not run for moments."""
    model = model_of("llama", tmp_path)
    names, given = targets_of(model), batches()
    blocks = block_names(model)
    runs = counted(model)
    list(observe(model, names, frozenset({Need.GRAM}), given))
    assert runs == dict.fromkeys(blocks, 1 + 3)
    runs.clear()
    list(observe(model, [name for name in names if ".1." in name], frozenset({Need.GRAM}), given))
    assert runs == {blocks[0]: 1 + 3, blocks[1]: 1 + 3, blocks[2]: 1}
    runs.clear()
    list(observe(model, names, frozenset({Need.GRADIENTS}), given))
    assert runs == dict.fromkeys(blocks, 3)
    runs.clear()
    size = sum(model.get_submodule(name).weight.nbytes for name in names if ".0." in name)
    list(observe(model, names, frozenset({Need.GRADIENTS}), given, room=size))
    assert runs == {blocks[0]: 1 + 6, blocks[1]: 1 + 6, blocks[2]: 1 + 3}
    runs.clear()
    list(observe(model, names, frozenset({Need.GRADIENTS}), given, room=2 * size))
    assert runs == {blocks[0]: 1 + 6, blocks[1]: 1 + 3, blocks[2]: 1 + 3}


def test_what_was_seen_is_gone_when_more_is_asked_for(tmp_path: Path) -> None:
    """Moments are those of one block at a time, however much room there is."""
    model = model_of("llama", tmp_path)
    groups = [{*group} for group in observe(model, targets_of(model), frozenset({Need.GRAM}), batches())]
    blocks = block_names(model)
    assert groups == [{name for name in targets_of(model) if name.startswith(f"{block}.")} for block in blocks]
    before: dict[str, Any] = {}
    for group in observe(model, targets_of(model), frozenset({Need.GRAM}), batches()):
        assert not before
        assert group
        before = group


def test_weights_that_are_made_of_operators_come_one_by_one_where_there_is_no_room(tmp_path: Path) -> None:
    """Nothing is measured, and still a compressed model is not made dense at once."""
    model = model_of("llama", tmp_path)
    names = targets_of(model)
    assert [len(group) for group in observe(model, names, frozenset(), (), room=1)] == [len(names)]
    block = model.model.layers[0].mlp
    for name in ("up_proj", "gate_proj"):
        weight = getattr(block, name).weight.detach()
        setattr(block, name, OperatorLinear.of(Factors(weight[:, :2].clone(), torch.eye(weight.shape[1])[:2]), None))
    held = [name for name in names if isinstance(model.get_submodule(name), OperatorLinear)]
    groups = [list(group) for group in observe(model, names, frozenset(), (), room=1)]
    assert len(groups) == 1 + len(held) == 3
    assert [name for group in groups for name in group] == names


def test_a_model_that_runs_other_blocks_for_another_batch_is_refused() -> None:
    class Skipping(Shortcut):
        def forward(self, x: Tensor, labels: Tensor) -> Any:
            for layer in self.layers[: 3 if len(x) == 5 else 2]:
                x = layer(x)
            return type("Output", (), {"loss": (x - labels).square().mean()})()

    given = [{"x": torch.randn(rows, 6), "labels": torch.randn(rows, 6)} for rows in (5, 4)]
    with pytest.raises(EckartError, match="Skipping runs its blocks in another way for one of the batches"):
        list(observe(Skipping(), ["layers.0.0", "layers.1.0"], frozenset({Need.GRADIENTS}), given, room=1))


class Shortcut(nn.Module):
    """A model with a list of equal blocks of which the second is given something else than the first one gave."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3)])

    def forward(self, x: Tensor, labels: Tensor) -> Any:
        first = self.layers[0](x)
        out = self.layers[2](self.layers[1](first + x))
        return type("Output", (), {"loss": (out - labels).square().mean()})()


class Twice(Shortcut):
    """One that is run through twice."""

    def forward(self, x: Tensor, labels: Tensor) -> Any:
        for layer in [*self.layers, *self.layers]:
            x = layer(x)
        return type("Output", (), {"loss": (x - labels).square().mean()})()


class Keeping(Shortcut):
    """One whose blocks change what they are called with."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Remembering() for _ in range(3)])

    def forward(self, x: Tensor, labels: Tensor) -> Any:
        kept = Kept()
        for layer in self.layers:
            x = layer(x, kept)
        return type("Output", (), {"loss": (x - labels).square().mean()})()


class Kept:
    """What was seen before."""

    total = 0.0


class Remembering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(6, 6)

    def forward(self, x: Tensor, kept: Kept) -> Tensor:
        kept.total += 1.0
        made: Tensor = self.map(x) * kept.total
        return made


@pytest.mark.parametrize("kind", [Shortcut, Twice, Keeping])
def test_a_model_whose_blocks_are_no_chain_is_run_as_a_whole(kind: type[Shortcut]) -> None:
    torch.manual_seed(0)
    model = kind()
    given = [{"x": torch.randn(5, 6), "labels": torch.randn(5, 6)} for _ in range(2)]
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    assert len(names) == 3
    with torch.no_grad(), Order(model) as order:
        model(**given[0])
    assert order.blocks == []
    weights = [model.get_submodule(name).weight for name in names]
    losses = sum(model(**batch).loss for batch in given) / 2
    expected = torch.autograd.grad(losses, weights)
    found = all_seen(model, names, given, 1)
    for name, gradient in zip(names, expected, strict=True):
        assert torch.allclose(found[name].gradient, gradient, atol=1e-6)


def test_what_others_put_in_the_place_of_a_forward_stays(tmp_path: Path) -> None:
    """As accelerate does for models that lie on several devices."""
    model = model_of("llama", tmp_path)
    block, ran = model.model.layers[1], []
    own = block.forward

    def instead(*args: Any, **kwargs: Any) -> Any:
        ran.append(1)
        return own(*args, **kwargs)

    block.forward = instead
    list(observe(model, targets_of(model), frozenset({Need.GRADIENTS}), batches(), room=1))
    assert block.forward is instead
    assert "forward" not in model.model.layers[0].__dict__
    assert len(ran) > 3


def test_blocks_that_are_compiled_are_no_chain(tmp_path: Path) -> None:
    model = model_of("llama", tmp_path)
    with torch.no_grad(), evaluating(model), Order(model) as order:
        model(**batches()[0])
    assert order.blocks
    model.model.layers[1].compile(backend="eager")
    assert order.blocks == []


def test_keys_and_values_are_kept_again_afterwards(tmp_path: Path) -> None:
    model = model_of("llama", tmp_path).train()
    assert model.config.use_cache
    with evaluating(model):
        assert not model.training
        assert model(**batches()[0]).past_key_values is None
    assert model.training
    assert model.eval()(**batches()[0]).past_key_values is not None
