"""Fused kernels, imported as ``amrg.kernels``."""
