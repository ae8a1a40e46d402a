"""Memory banks on disk: reading, writing, merging, subsets, and sampling of rows."""

from amrg.banks.bank import MemoryBank

__all__ = ["MemoryBank"]
