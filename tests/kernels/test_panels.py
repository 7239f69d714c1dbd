import pytest
import torch
from market import gaussian

from eckart.kernels.panels import panels


@pytest.mark.parametrize(
    ("rows", "sizes"), [(1, [1]), (512, [512]), (513, [512, 1]), (1024, [512, 512]), (1300, [512, 512, 276])]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rows_go_by_five_hundred_and_twelve_at_a_time(rows: int, sizes: list[int], dtype: torch.dtype) -> None:
    a = gaussian(rows, 3).to(dtype)
    parts = list(panels(a))
    assert [len(part) for part in parts] == sizes
    assert {part.dtype for part in parts} == {torch.float64}
    assert torch.equal(torch.cat(parts), a.to(torch.float64))
