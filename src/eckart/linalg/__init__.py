"""Factorisations with bounds on how far they are from the best possible; below this layer there is nothing but torch."""

from eckart.kernels.norms import SpectralNorm, spectral_norm
from eckart.kernels.svd import SVD, fix_signs, singular_values, svd
from eckart.kernels.symmetric import psd_root
from eckart.linalg.enclosure import Optimum, bounds_of, measured_bounds
from eckart.linalg.truncated import ACCURACY, Truncation, truncated_svd

__all__ = [
    "ACCURACY",
    "SVD",
    "Optimum",
    "SpectralNorm",
    "Truncation",
    "bounds_of",
    "fix_signs",
    "measured_bounds",
    "psd_root",
    "singular_values",
    "spectral_norm",
    "svd",
    "truncated_svd",
]
