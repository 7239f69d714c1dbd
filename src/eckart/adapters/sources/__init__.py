"""Where the matrices come from with which an adapter begins."""

from eckart.adapters.sources.drawn import Drawn, InCommon
from eckart.adapters.sources.protocol import Explaining, Source
from eckart.adapters.sources.shapes import (
    Crossing,
    OfBlocks,
    OfSemiNonnegative,
    OfTrain,
    OrthogonalTriangular,
    digits,
)
from eckart.adapters.sources.spectral import OfFirstStep, OfGradient, OfInputs, OfWeight, components

__all__ = [
    "Crossing",
    "Drawn",
    "Explaining",
    "InCommon",
    "OfBlocks",
    "OfFirstStep",
    "OfGradient",
    "OfInputs",
    "OfSemiNonnegative",
    "OfTrain",
    "OfWeight",
    "OrthogonalTriangular",
    "Source",
    "components",
    "digits",
]
