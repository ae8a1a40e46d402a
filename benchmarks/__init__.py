"""Programs that measure: run them from the checkout as ``python -m benchmarks.NAME``."""
