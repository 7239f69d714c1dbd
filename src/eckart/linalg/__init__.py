"""Factorisations of plain tensors, with stated rounding errors; usable without the rest of the library."""

from eckart.linalg.norms import SpectralNorm, spectral_norm
from eckart.linalg.svd import SVD, fix_signs, singular_values, svd
from eckart.linalg.symmetric import psd_root

__all__ = ["SVD", "SpectralNorm", "fix_signs", "psd_root", "singular_values", "spectral_norm", "svd"]
