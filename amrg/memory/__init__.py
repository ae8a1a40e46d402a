"""Memory banks: their storage, retrieval across ranks, the encoding of reports, and how rows are sampled."""

from amrg.memory.bank import MemoryBank
from amrg.memory.sharding import ShardedMemory

__all__ = ["MemoryBank", "ShardedMemory"]
