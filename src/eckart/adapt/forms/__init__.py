"""Parametrisations of the change of a weight."""

from eckart.adapt.forms.applied import applied, scaled
from eckart.adapt.forms.directed import Directed
from eckart.adapt.forms.middle import Aligned, Band, Places, Scattered, SparseMiddle
from eckart.adapt.forms.products import Cored, Nested, Pair, Spectral, Vectors
from eckart.adapt.forms.protocol import Form

__all__ = [
    "Aligned",
    "Band",
    "Cored",
    "Directed",
    "Form",
    "Nested",
    "Pair",
    "Places",
    "Scattered",
    "SparseMiddle",
    "Spectral",
    "Vectors",
    "applied",
    "scaled",
]
