"""The ``banks`` step: regions from class activation maps, encoded reports, and both banks built from them."""
