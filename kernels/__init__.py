"""Fused kernels, imported as ``amrg.kernels``."""

from amrg.kernels.hopfield.autograd import hopfield_retrieve, quantize_rows
from amrg.kernels.hopfield.reference import Retrieval

__all__ = ["Retrieval", "hopfield_retrieve", "quantize_rows"]
