"""Matrices as values: what they store, and products with them, without forming them."""

from eckart.operator.algebra import Product, Sum, Transposed
from eckart.operator.codebook import Levels
from eckart.operator.codes import Codes
from eckart.operator.masked import Masked
from eckart.operator.matrices import Dense, Factors
from eckart.operator.panels import Panelled, device_of, in_dtype, rows
from eckart.operator.protocol import Operator, TransposeProduct
from eckart.operator.row_sparse import RowSparse
from eckart.operator.sparse import Sparse
from eckart.operator.stacked import Stacked
from eckart.operator.storage import KINDS, PLAIN, Blueprint, Record, describe, kind_of, nbytes, rebuild
from eckart.operator.structured import BlockDiagonal, Diagonal, Kronecker, Shuffle, monarch
from eckart.operator.train import TensorTrain

__all__ = [
    "KINDS",
    "PLAIN",
    "BlockDiagonal",
    "Blueprint",
    "Codes",
    "Dense",
    "Diagonal",
    "Factors",
    "Kronecker",
    "Levels",
    "Masked",
    "Operator",
    "Panelled",
    "Product",
    "Record",
    "RowSparse",
    "Shuffle",
    "Sparse",
    "Stacked",
    "Sum",
    "TensorTrain",
    "TransposeProduct",
    "Transposed",
    "describe",
    "device_of",
    "in_dtype",
    "kind_of",
    "monarch",
    "nbytes",
    "rebuild",
    "rows",
]
