"""AM-MRG: chest X-ray report generation with an associative memory (arXiv:2501.03458)."""

import logging

__version__ = "0.1.0"

# bitsandbytes comes with peft, and advises on a kernel from the hub even where nothing is quantised.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
