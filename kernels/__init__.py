"""Fused kernels, imported as ``amrg.kernels``."""

from .hopfield.ops import hopfield_retrieve, quantize_rows
from .hopfield.reference import Retrieval

__all__ = ["Retrieval", "hopfield_retrieve", "quantize_rows"]
