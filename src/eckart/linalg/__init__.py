"""Factorisations with bounds on how far they are from the best possible; below this layer there is nothing but torch."""

from eckart.kernels.alignment import Alignment, Assignment, assignment, procrustes
from eckart.kernels.eigen import SymmetricEigen, qr, symmetric_eigen
from eckart.kernels.hadamard import RandomHadamard, hadamard, hadamard_transform, nearest_supported, supported
from eckart.kernels.norms import SpectralNorm, spectral_norm
from eckart.kernels.pivoting import Pivoted, pivoted_qr
from eckart.kernels.polar import BAND, CUBIC, QUINTIC, OddPolynomial, OrthogonalFactor, newton_schulz, polar
from eckart.kernels.roots import InverseRoot, inverse_root, newton_inverse_root
from eckart.kernels.selection import (
    DEIM,
    Candidates,
    Entries,
    Given,
    Largest,
    LeadingVectors,
    PivotedQR,
    Rarest,
    RidgeVectors,
    Rule,
    Sampled,
    StrongRRQR,
    View,
)
from eckart.kernels.svd import SVD, fix_signs, singular_values, svd
from eckart.kernels.symmetric import psd_root
from eckart.linalg.batch import truncated_svds
from eckart.linalg.certified import bounds_of
from eckart.linalg.cur import cur, interpolative
from eckart.linalg.enclosure import Optimum, frobenius_error, measured_bounds
from eckart.linalg.incremental import Directions, RowStream
from eckart.linalg.nonnegative import semi_nmf
from eckart.linalg.nystrom import generalised_nystrom, nystrom
from eckart.linalg.routes import Automatic, BlockKrylov, GramMatrix, Lanczos, Lapack, Route, SubspaceIteration
from eckart.linalg.selected import select
from eckart.linalg.tensor import kronecker_sum, tensor_train, tucker
from eckart.linalg.truncated import ACCURACY, truncated_svd
from eckart.linalg.truncation import Truncation

__all__ = [
    "ACCURACY",
    "BAND",
    "CUBIC",
    "DEIM",
    "QUINTIC",
    "SVD",
    "Alignment",
    "Assignment",
    "Automatic",
    "BlockKrylov",
    "Candidates",
    "Directions",
    "Entries",
    "Given",
    "GramMatrix",
    "InverseRoot",
    "Lanczos",
    "Lapack",
    "Largest",
    "LeadingVectors",
    "OddPolynomial",
    "Optimum",
    "OrthogonalFactor",
    "Pivoted",
    "PivotedQR",
    "RandomHadamard",
    "Rarest",
    "RidgeVectors",
    "Route",
    "RowStream",
    "Rule",
    "Sampled",
    "SpectralNorm",
    "StrongRRQR",
    "SubspaceIteration",
    "SymmetricEigen",
    "Truncation",
    "View",
    "assignment",
    "bounds_of",
    "cur",
    "fix_signs",
    "frobenius_error",
    "generalised_nystrom",
    "hadamard",
    "hadamard_transform",
    "interpolative",
    "inverse_root",
    "kronecker_sum",
    "measured_bounds",
    "nearest_supported",
    "newton_inverse_root",
    "newton_schulz",
    "nystrom",
    "pivoted_qr",
    "polar",
    "procrustes",
    "psd_root",
    "qr",
    "select",
    "semi_nmf",
    "singular_values",
    "spectral_norm",
    "supported",
    "svd",
    "symmetric_eigen",
    "tensor_train",
    "truncated_svd",
    "truncated_svds",
    "tucker",
]
