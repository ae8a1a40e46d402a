"""Pinned launch configurations, one per kernel, GPU generation, storage and width: fixed, the same on every rank.

``python -m benchmarks.hopfield_compiled`` shows what each compiles to. They were chosen there (no spilled registers,
shared memory within the generation's limit, tensor cores and asynchronous copies in use), not by timing on a GPU,
with the compiler of ``MIN_TRITON``. With an older one some spill or ask for more shared memory than there is: the
blockwise products are used then.
"""

from dataclasses import asdict, dataclass

#: Oldest version of Triton, major and minor.
MIN_TRITON = (3, 9)
GENERATIONS = (80, 90, 100)  # compute capabilities: Ampere, Hopper, Blackwell
WIDTHS = (384, 768)  # a bank of width D takes the configuration of the next of these


@dataclass(frozen=True)
class LaunchConfig:
    """Block sizes and compiler options of one kernel."""

    BM: int  # queries
    BN: int  # memory rows
    BD: int = 128  # tile of the width
    SWAP_AB: bool | None = None  # transposed products: the memory, not the queries, on the rows of the tensor core
    RELOAD_Q: bool | None = None  # read the queries again for every block of memory: fewer registers
    num_warps: int = 8
    num_stages: int = 2

    def constants(self) -> dict[str, int | bool]:
        """Compile-time arguments of the kernel."""
        return {name: value for name, value in asdict(self).items() if name.isupper() and value is not None}

    def options(self) -> dict[str, int]:
        """Options of Triton's compiler."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}


def _plain(queries: int, rows: int) -> LaunchConfig:
    return LaunchConfig(queries, rows, SWAP_AB=False, RELOAD_Q=True)


def _swapped(queries: int, reload_q: bool = False, num_stages: int = 2, rows: int = 64) -> LaunchConfig:
    return LaunchConfig(queries, rows, SWAP_AB=True, RELOAD_Q=reload_q, num_stages=num_stages)


# (kernel, storage) → generation → one launch for each of WIDTHS
LAUNCH_TABLE: dict[tuple[str, str], dict[int, tuple[LaunchConfig, LaunchConfig]]] = {
    ("forward", "half"): {
        80: (_plain(64, 32), _plain(32, 32)),
        90: (_plain(64, 32), _swapped(16)),
        100: (_swapped(32), _swapped(16)),
    },
    ("forward", "int8"): {
        80: (_plain(16, 32), _plain(16, 32)),
        90: (_swapped(16, reload_q=True), _swapped(16, reload_q=True)),
        100: (_swapped(16), _swapped(16)),
    },
    ("backward_queries", "half"): {
        80: (_plain(16, 32), _plain(16, 32)),
        90: (_swapped(32, reload_q=True), _swapped(16)),
        100: (_swapped(32), _swapped(32, reload_q=True, rows=32)),
    },
    ("backward_queries", "int8"): {
        80: (_plain(16, 32), _plain(16, 32)),
        90: (_swapped(16, reload_q=True, num_stages=3), _swapped(16, reload_q=True, num_stages=3)),
        100: (_swapped(16, reload_q=True), _swapped(16, reload_q=True)),
    },
    ("backward_memory", "half"): {
        80: (LaunchConfig(32, 64), LaunchConfig(32, 64)),
        90: (LaunchConfig(32, 64), LaunchConfig(32, 64)),
        100: (LaunchConfig(32, 64, num_stages=3), LaunchConfig(32, 64, num_stages=3)),
    },
    ("top_k", "half"): {
        80: (LaunchConfig(16, 64), LaunchConfig(16, 64)),
        90: (LaunchConfig(16, 64), LaunchConfig(16, 64)),
        100: (LaunchConfig(32, 64), LaunchConfig(32, 64)),
    },
    ("top_k", "int8"): {g: (LaunchConfig(16, 64), LaunchConfig(16, 64)) for g in GENERATIONS},
}

#: (kernel, storage, generation, width) of everything that is shipped
ALL_CONFIGS = [(kernel, storage, g, w) for (kernel, storage), row in LAUNCH_TABLE.items() for g in row for w in WIDTHS]


def launch_config(kernel: str, storage: str, generation: int, width: int) -> LaunchConfig:
    """The configuration of a kernel; ``storage`` is ``half`` (bfloat16, float16) or ``int8``."""
    return LAUNCH_TABLE[kernel, storage][generation][next(i for i, known in enumerate(WIDTHS) if width <= known)]


def gpu_generation(capability: tuple[int, int]) -> int | None:
    """The generation whose configurations a card takes; None for cards older than Ampere.

    Cards outside the table (sm_120 has neither wgmma nor tcgen05, and half the shared memory) take the smallest ones.
    """
    if capability < (8, 0):
        return None
    return {9: 90, 10: 100}.get(capability[0], 80)
