"""AM-MRG: chest X-ray report generation with an associative memory (arXiv:2501.03458)."""

import logging
from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("amrg")
except PackageNotFoundError:  # a checkout on the path that was never installed
    __version__ = "unknown"

# bitsandbytes comes with peft, and advises on a kernel from the hub even where nothing is quantised.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
