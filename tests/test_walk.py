"""How a model is cut into blocks and a text into batches."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from eckart.errors import EckartError
from eckart.model.skeleton import block_names
from eckart.model.walk import Walk, batches


@pytest.mark.parametrize(
    ("count", "length", "tokens", "sizes"),
    [(5, 100, 250, [2, 2, 1]), (4, 100, 100, [1] * 4), (3, 100, 99, [1] * 3), (3, 100, 0, [1] * 3), (0, 9, 9, [])],
)
def test_batches_hold_what_fits_and_never_less_than_a_window(
    count: int, length: int, tokens: int, sizes: list[int]
) -> None:
    found = list(batches(count, length, tokens))
    assert [b.stop - b.start for b in found] == sizes
    assert [i for b in found for i in range(b.start, b.stop)] == list(range(count))


def stack(*blocks: nn.Module) -> nn.ModuleList:
    return nn.ModuleList(blocks)


def lists(**parts: nn.Module) -> nn.Module:
    model = nn.Module()
    for name, part in parts.items():
        model.add_module(name, part)
    return model


def test_blocks_are_the_longest_list_of_equal_modules_and_the_first_of_two() -> None:
    def linear() -> nn.Linear:
        return nn.Linear(2, 2)

    three, also, two = (stack(*(linear() for _ in range(n))) for n in (3, 3, 2))
    assert block_names(lists(a=two, b=three, c=also)) == ["b.0", "b.1", "b.2"]
    assert block_names(lists(a=two)) == ["a.0", "a.1"]
    assert block_names(lists(a=stack(linear()))) == ["a.0"]
    assert block_names(lists(a=linear())) == []
    # Modules of different types, or without a matrix, are no blocks.
    assert block_names(lists(a=stack(linear(), nn.LayerNorm(2)), b=two)) == ["b.0", "b.1"]
    assert block_names(lists(a=stack(nn.LayerNorm(2), nn.LayerNorm(2), nn.LayerNorm(2)), b=two)) == ["b.0", "b.1"]
    # A list within a block is part of the block, however long.
    inner = [lists(experts=stack(*(linear() for _ in range(4)))) for _ in range(2)]
    assert block_names(lists(layers=stack(*inner))) == ["layers.0", "layers.1"]


def test_a_file_in_a_folder_that_is_gone_cannot_be_made(tmp_path: Path) -> None:
    walk = SimpleNamespace(windows=torch.zeros(2, 3), width=4, activation_bytes=96)
    with pytest.raises(EckartError, match="free space or choose another output"):
        Walk._create(walk, tmp_path / "gone" / "hidden.bin")  # type: ignore[arg-type]
