"""Surgery on adapters: read, resize, extract, inspect, add, lift and merge them, by their factors and with bounds."""

from eckart.model.surgery.adapter import Adapter, Convolution, Embedding, Layer, Linear
from eckart.model.surgery.combine import combine
from eckart.model.surgery.extract import Extracted, Left, Map, differences, extract
from eckart.model.surgery.inspect import Beside, LayerRow, intruding, look
from eckart.model.surgery.lift import lift
from eckart.model.surgery.merge import merge
from eckart.model.surgery.reading import read
from eckart.model.surgery.resize import Resized, resize
from eckart.model.surgery.sizing import Size, ToBytes, ToEnergy, ToError, ToRank
from eckart.model.surgery.weighing import Text
from eckart.model.surgery.writing import write

__all__ = [
    "Adapter",
    "Beside",
    "Convolution",
    "Embedding",
    "Extracted",
    "Layer",
    "LayerRow",
    "Left",
    "Linear",
    "Map",
    "Resized",
    "Size",
    "Text",
    "ToBytes",
    "ToEnergy",
    "ToError",
    "ToRank",
    "combine",
    "differences",
    "extract",
    "intruding",
    "lift",
    "look",
    "merge",
    "read",
    "resize",
    "write",
]
