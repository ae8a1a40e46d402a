"""Choice of the back end of a retrieval: fused Triton, two products with Triton between them, or blockwise torch.

The rule is pinned, so all ranks choose alike and a run is repeatable. It follows from what compiled code allows
(``docs/kernels.md``); no back end was timed on a GPU.
"""

import logging
import os
from functools import cache
from typing import TYPE_CHECKING

import torch

from . import launch_configs
from .reference import HALF, Operands

if TYPE_CHECKING:
    from .triton_backend import FusedRetrieval
    from .two_products import TwoProductsRetrieval

_logger = logging.getLogger("amrg.kernels")
#: Environment variable that overrides the rule with the name of a back end.
OVERRIDE = "AMRG_RETRIEVAL"
BACKENDS = ("fused", "two_products", "blockwise")
#: The fused kernels read each row once for 16 to 64 queries. They are taken where the memory's traffic is the bound:
#: at most this many queries …
FUSED_QUERIES = 64
#: … and at least this many rows.
FUSED_ROWS = 100_000


def choose_backend(operands: Operands, capability: tuple[int, int], triton_version: tuple[int, ...]) -> tuple[str, str]:
    """Return the back end of these operands on a card, and the reason.

    Args:
        operands: on a CUDA device.
        capability: compute capability of the card.
        triton_version: (major, minor); (0, 0) if there is no Triton.
    """
    queries, memory = operands.queries, operands.memory
    M, (N, D) = queries.shape[0], memory.shape
    card = f"sm_{capability[0]}{capability[1]}"
    if memory.dtype not in (*HALF, torch.int8) or queries.dtype == torch.float64:
        return "blockwise", f"a {str(memory.dtype)[6:]} memory"
    if not M * N:
        return "blockwise", "nothing to retrieve"
    known = launch_configs.compiles_for(10 * capability[0] + capability[1], triton_version)
    if capability < (8, 0) or not known:
        return "blockwise", f"{card}, Triton {'.'.join(map(str, triton_version))}"
    generation = launch_configs.gpu_generation(capability)
    if M > FUSED_QUERIES or N < FUSED_ROWS:
        return "two_products", f"{card}, more than {FUSED_QUERIES} queries or fewer than {FUSED_ROWS:,} rows"
    if generation is None or triton_version < launch_configs.MIN_TRITON[generation]:
        return "two_products", f"{card}, Triton {'.'.join(map(str, triton_version))}"
    if launch_configs.WIDTHS[-1] < D:
        return "two_products", f"{card}, rows wider than {launch_configs.WIDTHS[-1]}"
    return "fused", card


def back_end(operands: Operands) -> "FusedRetrieval | TwoProductsRetrieval | None":
    """The back end of these operands; None for blockwise torch. Each choice is logged once.

    Raises:
        ValueError: the environment names an unknown back end.
    """
    wanted = os.environ.get(OVERRIDE)
    if wanted is not None and wanted not in BACKENDS:
        raise ValueError(f"{OVERRIDE} is one of {', '.join(BACKENDS)}, got `{wanted}`")
    if not operands.queries.is_cuda or wanted == "blockwise":
        return None
    try:
        from . import triton_backend, two_products
    except ImportError:  # torch without Triton
        name, why = "blockwise", "no Triton"
    else:
        if torch.version.hip:  # its compute capabilities are no NVIDIA card's
            name, why = "blockwise", "AMD"
        else:
            name, why = choose_backend(
                operands, torch.cuda.get_device_capability(operands.queries.device), triton_backend.TRITON_VERSION
            )  # fmt: skip
    if wanted is not None and name != "blockwise":  # what only blockwise products serve stays with them
        name, why = wanted, OVERRIDE
    _log_once(name, why)
    if name == "blockwise":
        return None
    return triton_backend.FusedRetrieval(operands) if name == "fused" else two_products.TwoProductsRetrieval(operands)


@cache
def _log_once(name: str, why: str) -> None:
    _logger.info("retrieval: %s (%s)", name.replace("_", " "), why)
