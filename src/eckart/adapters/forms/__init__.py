"""Parametrisations of the change of a weight."""

from eckart.adapters.forms.applied import applied, scaled
from eckart.adapters.forms.blocks import Blocks
from eckart.adapters.forms.directed import Directed
from eckart.adapters.forms.gated import Gated
from eckart.adapters.forms.middle import Aligned, Band, Places, Scattered, SparseMiddle
from eckart.adapters.forms.products import Cored, Nested, Pair, Spectral, Vectors
from eckart.adapters.forms.protocol import Form
from eckart.adapters.forms.residual import Residual
from eckart.adapters.forms.tensors import Train, Tucker
from eckart.adapters.forms.whole import Whole

__all__ = [
    "Aligned",
    "Band",
    "Blocks",
    "Cored",
    "Directed",
    "Form",
    "Gated",
    "Nested",
    "Pair",
    "Places",
    "Residual",
    "Scattered",
    "SparseMiddle",
    "Spectral",
    "Train",
    "Tucker",
    "Vectors",
    "Whole",
    "applied",
    "scaled",
]
