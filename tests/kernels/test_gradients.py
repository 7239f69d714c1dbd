"""Energies of a gradient's columns, against the gradient itself."""

import pytest
import torch
from market import gaussian

from eckart.kernels import gradients
from eckart.kernels.gradients import column_energies


@pytest.mark.parametrize(("windows", "tokens", "m", "n"), [(1, 1, 3, 4), (3, 7, 5, 4), (2, 9, 1, 6), (4, 1, 6, 2)])
@pytest.mark.parametrize("at_once", [2, 1024])
def test_columns_are_those_of_the_gradient_of_every_window(
    windows: int, tokens: int, m: int, n: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradients, "TOKENS", at_once)
    x = gaussian(windows * tokens, n).reshape(windows, tokens, n)
    g = gaussian(windows * tokens, m, 1).reshape(windows, tokens, m)
    formed = torch.einsum("wti,wtj->wij", g, x)
    assert column_energies(x, g).tolist() == pytest.approx(formed.square().sum((0, 1)).tolist(), rel=1e-12)


def test_what_cancels_is_not_below_nothing() -> None:
    x = torch.tensor([[[1.0, 0.1]], [[1.0, 0.0]]]).reshape(1, 2, 2) * 3
    g = torch.tensor([[[0.7, 0.3], [-0.7, -0.3]]])
    found = column_energies(x, g)
    assert found[0] >= 0.0
    assert float(found[1]) == pytest.approx(0.09 * 0.58, rel=1e-6)
    assert column_energies(torch.zeros(2, 3, 4), torch.ones(2, 3, 5)).tolist() == [0.0] * 4
