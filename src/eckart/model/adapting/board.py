"""Losses for TensorBoard."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from eckart.errors import EckartError

WRITERS = {"tensorboard": "torch.utils.tensorboard", "tensorboardX": "tensorboardX"}  # by the package that they need


def check_board() -> None:
    """Raise ``EckartError`` where no package is installed that writes for TensorBoard."""
    if not any(map(find_spec, WRITERS)):
        raise EckartError(
            "--tensorboard needs a package that is not installed: pip install tensorboard, or leave the option out"
        )


def board_in(folder: Path, *, after: int) -> TrainerCallback:
    """Transformers' own callback, with a writer into a folder that replaces what stands there of steps beyond ``after``.

    Raises ``EckartError`` as ``check_board`` does.
    """
    check_board()
    module = next(module for package, module in WRITERS.items() if find_spec(package))
    writer = import_module(module).SummaryWriter(log_dir=str(folder), purge_step=after + 1 if after else None)
    return TensorBoardCallback(writer)
