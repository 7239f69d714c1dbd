"""Factorisations with bounds on how far they are from the best possible; below this layer there is nothing but torch."""

from eckart.kernels.norms import SpectralNorm, spectral_norm
from eckart.kernels.svd import SVD, fix_signs, singular_values, svd
from eckart.kernels.symmetric import psd_root
from eckart.linalg.batch import truncated_svds
from eckart.linalg.enclosure import Optimum, bounds_of, measured_bounds
from eckart.linalg.incremental import Directions, RowStream
from eckart.linalg.routes import Automatic, BlockKrylov, GramMatrix, Lanczos, Lapack, Route, SubspaceIteration
from eckart.linalg.truncated import ACCURACY, truncated_svd
from eckart.linalg.truncation import Truncation

__all__ = [
    "ACCURACY",
    "SVD",
    "Automatic",
    "BlockKrylov",
    "Directions",
    "GramMatrix",
    "Lanczos",
    "Lapack",
    "Optimum",
    "Route",
    "RowStream",
    "SpectralNorm",
    "SubspaceIteration",
    "Truncation",
    "bounds_of",
    "fix_signs",
    "measured_bounds",
    "psd_root",
    "singular_values",
    "spectral_norm",
    "svd",
    "truncated_svd",
    "truncated_svds",
]
