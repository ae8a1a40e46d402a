"""Studies and bank rows of a run on disk, looked up by key and number, never by path."""

import threading
from functools import cache
from typing import Any

from amrg.banks.bank import REPORTS, VISUAL, MemoryBank
from amrg.data.image_ops import letterbox
from amrg.data.stream import Sample, SampleLookup, load_studies
from amrg.data.studies import SPLITS, Study
from amrg.errors import UserError
from amrg.inference.run import RunArtifacts
from amrg.pages.overlays import crop, film_url

BANKS = {"visual": VISUAL, "report": REPORTS}
MAX_LISTED = 200  # maximal studies per listing


class NotFound(UserError):
    """The run does not have the requested object."""


class RunStore:
    """Studies and bank rows of a run.

    Args:
        chain: the run's artefacts; reads ``data`` and ``banks``.
        size: pixels per side of the films that the visual bank's regions were mined from.
        grid: cells per side of the grid of the boxes.
    """

    def __init__(self, chain: RunArtifacts, size: int, grid: int) -> None:
        self._data, self._size, self._grid = chain.data.path, size, grid
        self._banks = {name: MemoryBank.open(chain.banks.path / folder) for name, folder in BANKS.items()}
        # Listing and index of a split are read once. The lock is there because parquet readers are not thread-safe.
        self._studies = cache(lambda split: {study.key: study for study in load_studies(self._data, split)})
        self._lookup = cache(lambda split: SampleLookup(self._data, split))
        self._lock = threading.Lock()

    def listing(self, split: str, words: str) -> dict[str, Any]:
        """List the studies of a split whose key and findings contain all ``words``, at most ``MAX_LISTED``."""
        wanted = words.lower().split()
        rows = [(study, study.positive_findings) for study in self._split(split).values()]
        found = [
            {"key": study.key, "findings": names}
            for study, names in rows
            if all(word in " ".join([study.key, *(names or ["no finding"])]).lower() for word in wanted)
        ]
        return {"total": len(rows), "found": len(found), "studies": found[:MAX_LISTED]}

    def study(self, split: str, key: str) -> Sample:
        """Load a study; raises NotFound for an unknown split or study, UserError for a damaged study."""
        if key not in self._split(split):
            raise NotFound(f"no such study among the {split} studies of this run: choose one from the list")
        with self._lock:
            return self._lookup(split)[key]

    def row(self, bank: str, number: int) -> dict[str, Any]:
        """Return a bank row's provenance, with a thumbnail of a region if its film is available.

        Raises:
            NotFound: unknown bank or row.
        """
        if bank not in self._banks or not 0 <= number < len(self._banks[bank]):
            raise NotFound(f"no row {number} in a {bank} bank of this run")
        with self._lock:
            (origin,) = self._banks[bank].provenance_rows(number, number + 1).to_pylist()
        fields = {name: origin[name] for name in ("key", "split", "source", "text", "view")}
        box = origin["box"]
        return fields | {"findings": origin["findings"] or [], "image": self._thumbnail(origin) if box else None}

    def _thumbnail(self, origin: dict[str, Any]) -> str | None:
        try:
            film = self.study(origin["split"], origin["key"]).views[origin["view"]]
        except (UserError, IndexError):  # the bank comes from other data, or the film is damaged
            return None
        return film_url(crop(letterbox(film, self._size), tuple(origin["box"]), self._grid), 144)

    def _split(self, split: str) -> dict[str, Study]:
        if split not in SPLITS:
            raise NotFound(f"no split `{split}`: one of {', '.join(SPLITS)}")
        with self._lock:
            return self._studies(split)
