"""AM-MRG: chest X-ray report generation with an associative memory (arXiv:2501.03458)."""

__version__ = "0.1.0"
