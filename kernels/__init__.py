"""Fused kernels, imported as ``amrg.kernels``."""

# By their full name: transformers looks for a package `kernels` and finds this one where the checkout is on sys.path.
# Relative imports would then run the modules again, which registers the operators again and frees those in use.
from amrg.kernels.hopfield.ops import hopfield_retrieve, quantize_rows
from amrg.kernels.hopfield.reference import Retrieval

__all__ = ["Retrieval", "hopfield_retrieve", "quantize_rows"]
