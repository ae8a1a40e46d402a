"""Acceptance checks of a machine with a GPU (``amrg gpu-check``, docs/gpu.md): right, repeatable, how fast."""
