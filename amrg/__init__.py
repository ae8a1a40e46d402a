"""AM-MRG: chest X-ray report generation with an associative memory (arXiv:2501.03458)."""

import logging
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amrg.inference.run import load_run

__all__ = ["load_run"]

try:
    __version__ = version("amrg")
except PackageNotFoundError:  # a checkout on the path that was never installed
    __version__ = "unknown"

# bitsandbytes comes with peft, and advises on a kernel from the hub even where nothing is quantised.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    """Import ``load_run`` when it is used, so that importing the package does not import torch."""
    if name != "load_run":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from amrg.inference.run import load_run

    return load_run
