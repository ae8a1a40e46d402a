"""Pinned launch configurations, one per kernel, GPU generation, storage and width: fixed, the same on every rank.

``python -m amrg.kernels.resources`` shows what each compiles to. They were chosen there (no spilled registers, shared
memory within the generation's limit, tensor cores and asynchronous copies in use), not by timing on a GPU, with the
compiler of ``TRITON``. With an older one some spill or ask for more shared memory than there is: it is not used then.
"""

from dataclasses import asdict, dataclass
from typing import Any

#: Major and minor version of Triton, at least.
TRITON = (3, 9)
GENERATIONS = (80, 90, 100)  # compute capabilities: Ampere, Hopper, Blackwell
WIDTHS = (384, 768)  # a bank of width D takes the configuration of the next of these


@dataclass(frozen=True)
class Launch:
    """Block sizes and compiler options of one kernel."""

    BM: int  # queries
    BN: int  # memory rows
    BD: int = 128  # tile of the width
    FLIP: bool | None = None  # the memory, not the queries, on the rows of the tensor core
    RELOAD: bool | None = None  # read the queries again for every block of memory: fewer registers
    warps: int = 8
    stages: int = 2

    def constants(self) -> dict[str, Any]:
        """The compile-time arguments of the kernel."""
        return {name: v for name, v in asdict(self).items() if name not in ("warps", "stages") and v is not None}


def _upright(queries: int, rows: int) -> Launch:
    return Launch(queries, rows, FLIP=False, RELOAD=True)


def _flipped(queries: int, reload: bool = False, stages: int = 2, rows: int = 64) -> Launch:
    return Launch(queries, rows, FLIP=True, RELOAD=reload, stages=stages)


# (kernel, storage) → generation → one launch for each of WIDTHS
_TABLE: dict[tuple[str, str], dict[int, tuple[Launch, Launch]]] = {
    ("forward", "half"): {
        80: (_upright(64, 32), _upright(32, 32)),
        90: (_upright(64, 32), _flipped(16)),
        100: (_flipped(32), _flipped(16)),
    },
    ("forward", "int8"): {
        80: (_upright(16, 32), _upright(16, 32)),
        90: (_flipped(16, reload=True), _flipped(16, reload=True)),
        100: (_flipped(16), _flipped(16)),
    },
    ("backward_queries", "half"): {
        80: (_upright(16, 32), _upright(16, 32)),
        90: (_flipped(32, reload=True), _flipped(16)),
        100: (_flipped(32), _flipped(32, reload=True, rows=32)),
    },
    ("backward_queries", "int8"): {
        80: (_upright(16, 32), _upright(16, 32)),
        90: (_flipped(16, reload=True, stages=3), _flipped(16, reload=True, stages=3)),
        100: (_flipped(16, reload=True), _flipped(16, reload=True)),
    },
    ("backward_memory", "half"): {
        80: (Launch(32, 64), Launch(32, 64)),
        90: (Launch(32, 64), Launch(32, 64)),
        100: (Launch(32, 64, stages=3), Launch(32, 64, stages=3)),
    },
    ("top_rows", "half"): {
        80: (Launch(16, 64), Launch(16, 64)),
        90: (Launch(16, 64), Launch(16, 64)),
        100: (Launch(32, 64), Launch(32, 64)),
    },
    ("top_rows", "int8"): {g: (Launch(16, 64), Launch(16, 64)) for g in GENERATIONS},
}

#: (kernel, storage, generation, width) of everything that is shipped
SHIPPED = [(kernel, storage, g, w) for (kernel, storage), row in _TABLE.items() for g in row for w in WIDTHS]


def launch(kernel: str, storage: str, generation: int, width: int) -> Launch:
    """The configuration of a kernel; ``storage`` is ``half`` (bfloat16, float16) or ``int8``."""
    return _TABLE[kernel, storage][generation][next(i for i, known in enumerate(WIDTHS) if width <= known)]


def generation(capability: tuple[int, int]) -> int | None:
    """The generation whose configurations a card takes; None for cards older than Ampere.

    Cards outside the table (sm_120 has neither wgmma nor tcgen05, and half the shared memory) take the smallest ones.
    """
    if capability < (8, 0):
        return None
    return {9: 90, 10: 100}.get(capability[0], 80)
