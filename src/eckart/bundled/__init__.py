"""A small trained model and texts that come with the package (docstrings of the standard library, see NOTICE.txt)."""

from importlib.resources import files
from pathlib import Path

_HERE = Path(str(files(__name__)))

MODEL = _HERE / "model"
CALIBRATION = _HERE / "calibration.txt"
HELDOUT = _HERE / "heldout.txt"
