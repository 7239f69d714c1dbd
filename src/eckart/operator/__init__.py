"""Matrices as values: what they store, and products with them, without forming them."""

from eckart.operator.algebra import Product, Sum, Transposed
from eckart.operator.matrices import Dense, Factors
from eckart.operator.panels import Panelled, device_of, in_dtype, rows
from eckart.operator.protocol import Operator, TransposeProduct
from eckart.operator.storage import KINDS, kind_of, nbytes

__all__ = [
    "KINDS",
    "Dense",
    "Factors",
    "Operator",
    "Panelled",
    "Product",
    "Sum",
    "TransposeProduct",
    "Transposed",
    "device_of",
    "in_dtype",
    "kind_of",
    "nbytes",
    "rows",
]
