"""Parametrisations of the change of a weight."""

from eckart.adapt.forms.applied import applied, scaled
from eckart.adapt.forms.directed import Directed
from eckart.adapt.forms.gated import Gated
from eckart.adapt.forms.middle import Aligned, Band, Places, Scattered, SparseMiddle
from eckart.adapt.forms.products import Cored, Nested, Pair, Spectral, Vectors
from eckart.adapt.forms.protocol import Form
from eckart.adapt.forms.tensors import Train, Tucker

__all__ = [
    "Aligned",
    "Band",
    "Cored",
    "Directed",
    "Form",
    "Gated",
    "Nested",
    "Pair",
    "Places",
    "Scattered",
    "SparseMiddle",
    "Spectral",
    "Train",
    "Tucker",
    "Vectors",
    "applied",
    "scaled",
]
