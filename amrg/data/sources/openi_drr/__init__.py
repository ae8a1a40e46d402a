"""The embedded data set: real Open-i reports, films rendered from one real CT with the annotated lesions painted in.

Scores on it say nothing clinical: see ``docs/embedded-data.md``.
"""

from amrg.data.sources.openi_drr.source import OpeniDrr

__all__ = ["OpeniDrr"]
