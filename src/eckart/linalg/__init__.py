"""Factorisations with bounds on how far they are from the best possible; below this layer there is nothing but torch."""

from eckart.kernels.norms import SpectralNorm, spectral_norm
from eckart.kernels.pivoting import Pivoted, pivoted_qr
from eckart.kernels.selection import (
    DEIM,
    Candidates,
    Entries,
    Given,
    Largest,
    LeadingVectors,
    PivotedQR,
    RidgeVectors,
    Rule,
    Sampled,
    StrongRRQR,
    View,
)
from eckart.kernels.svd import SVD, fix_signs, singular_values, svd
from eckart.kernels.symmetric import psd_root
from eckart.linalg.cur import cur, interpolative
from eckart.linalg.enclosure import Optimum, bounds_of, measured_bounds
from eckart.linalg.nystrom import generalised_nystrom, nystrom
from eckart.linalg.selected import select
from eckart.linalg.truncated import ACCURACY, Truncation, truncated_svd

__all__ = [
    "ACCURACY",
    "DEIM",
    "SVD",
    "Candidates",
    "Entries",
    "Given",
    "Largest",
    "LeadingVectors",
    "Optimum",
    "Pivoted",
    "PivotedQR",
    "RidgeVectors",
    "Rule",
    "Sampled",
    "SpectralNorm",
    "StrongRRQR",
    "Truncation",
    "View",
    "bounds_of",
    "cur",
    "fix_signs",
    "generalised_nystrom",
    "interpolative",
    "measured_bounds",
    "nystrom",
    "pivoted_qr",
    "psd_root",
    "select",
    "singular_values",
    "spectral_norm",
    "svd",
    "truncated_svd",
]
