"""Functions on plain tensors that the rest stands on: decompositions, norms, products, with stated rounding errors."""
