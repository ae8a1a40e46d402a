"""Pinned launch configurations, one per kernel, GPU generation, storage and width: fixed, the same on every rank.

``python -m benchmarks.hopfield_compiled`` shows what each compiles to. They were chosen there (no spilled registers,
shared memory within the generation's limit, tensor cores and asynchronous copies in use), not by timing on a GPU,
with every Triton from ``MIN_TRITON`` on.
"""

from dataclasses import asdict, dataclass

GENERATIONS = (80, 90, 100)  # compute capabilities: Ampere, Hopper, Blackwell
#: Oldest version of Triton, major and minor, that compiles the configurations of a generation.
MIN_TRITON = {80: (3, 5), 90: (3, 5), 100: (3, 7)}
#: Oldest version whose assembler knows a card (compute capability), where that is not the oldest of all.
MIN_TRITON_OF_CARD = {103: (3, 6)}


@dataclass(frozen=True)
class Card:
    """A card's configurations, and the bytes of shared memory that a block may have (CUDA programming guide)."""

    generation: int
    shared_block: int


#: By compute capability, 90 for sm_90. The consumer cards take Ampere's configurations, which fit their memory.
CARDS = {
    80: Card(80, 163 * 1024),
    86: Card(80, 99 * 1024),
    89: Card(80, 99 * 1024),
    90: Card(90, 227 * 1024),
    100: Card(100, 227 * 1024),
    103: Card(100, 227 * 1024),
    120: Card(80, 99 * 1024),
}
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


def _plain(queries: int, rows: int, reload_q: bool = True) -> LaunchConfig:
    return LaunchConfig(queries, rows, SWAP_AB=False, RELOAD_Q=reload_q)


def _swapped(queries: int, reload_q: bool = False, num_stages: int = 2, rows: int = 64) -> LaunchConfig:
    return LaunchConfig(queries, rows, SWAP_AB=True, RELOAD_Q=reload_q, num_stages=num_stages)


# (kernel, storage) → generation → one launch for each of WIDTHS
LAUNCH_TABLE: dict[tuple[str, str], dict[int, tuple[LaunchConfig, LaunchConfig]]] = {
    ("forward", "half"): {
        80: (_plain(64, 32), _plain(32, 32)),
        90: (_plain(64, 32), _swapped(16)),
        100: (_swapped(32), _swapped(16, reload_q=True, rows=32)),
    },
    ("forward", "int8"): {
        80: (_plain(16, 32), _plain(16, 32)),
        90: (_swapped(16, reload_q=True), _swapped(16, reload_q=True)),
        100: (_swapped(16), _swapped(16)),
    },
    ("backward_queries", "half"): {
        80: (_plain(16, 32, reload_q=False), _plain(16, 16)),
        90: (_swapped(32, reload_q=True), _swapped(16, reload_q=True, rows=32)),
        100: (_swapped(16), _swapped(32, reload_q=True, rows=32)),
    },
    ("backward_queries", "int8"): {
        80: (_plain(16, 16), _plain(16, 16)),
        90: (_swapped(16, reload_q=True, num_stages=3), _swapped(16, reload_q=True, num_stages=3, rows=32)),
        100: (_swapped(16, reload_q=True), _swapped(16, reload_q=True)),
    },
    ("backward_memory", "half"): {
        80: (LaunchConfig(32, 64), LaunchConfig(32, 64)),
        90: (LaunchConfig(32, 64), LaunchConfig(32, 64)),
        100: (LaunchConfig(32, 64, num_stages=3), LaunchConfig(32, 64, num_stages=3)),
    },
}

#: (kernel, storage, card, width) of everything that is shipped
ALL_CONFIGS = [(kernel, storage, card, w) for kernel, storage in LAUNCH_TABLE for card in CARDS for w in WIDTHS]


def launch_config(kernel: str, storage: str, generation: int, width: int) -> LaunchConfig:
    """The configuration of a kernel; ``storage`` is ``half`` (bfloat16, float16) or ``int8``."""
    return LAUNCH_TABLE[kernel, storage][generation][next(i for i, known in enumerate(WIDTHS) if width <= known)]


def compiles_for(card: int, triton_version: tuple[int, ...]) -> bool:
    """Whether a version of Triton compiles anything for a card (compute capability, 90 for sm_90)."""
    return triton_version >= MIN_TRITON_OF_CARD.get(card, MIN_TRITON[80])


def gpu_generation(capability: tuple[int, int]) -> int | None:
    """The generation whose configurations a card takes; None for cards older than Ampere.

    Cards outside the table (sm_120 has neither wgmma nor tcgen05, and half the shared memory) take the smallest ones.
    """
    if capability < (8, 0):
        return None
    return {9: 90, 10: 100}.get(capability[0], 80)
