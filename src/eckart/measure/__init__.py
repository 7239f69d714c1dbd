"""Quantities read off matrices: what their singular values say about rank, conditioning and tails."""

from eckart.measure.spectrum import PowerTail, Spectrum, power_tail, spectrum

__all__ = ["PowerTail", "Spectrum", "power_tail", "spectrum"]
