"""What is on disk of a run: its studies and the rows of its banks, looked up by key and number, never by path."""

import threading
from functools import cache
from typing import Any

from amrg.banks.bank import REPORTS, VISUAL, MemoryBank
from amrg.data.image_ops import letterbox
from amrg.data.labels import FINDINGS, POSITIVE
from amrg.data.stream import Sample, SampleLookup, load_studies
from amrg.data.studies import SPLITS, Study
from amrg.errors import UserError
from amrg.inference.run import RunArtifacts
from amrg.pages.overlays import crop, film_url

BANKS = {"visual": VISUAL, "report": REPORTS}
MAX_LISTED = 200  # studies listed at a time


class NotFound(UserError):
    """What was asked for is not in the run."""


class RunStore:
    """Studies and bank rows of a chain of artefacts.

    Args:
        chain: of which ``data`` and ``banks`` are read.
        size: pixels on a side of the films that the visual bank's regions were mined from.
        grid: cells on a side of the boxes.
    """

    def __init__(self, chain: RunArtifacts, size: int, grid: int) -> None:
        self._data, self._size, self._grid = chain.data.path, size, grid
        self._banks = {name: MemoryBank.open(chain.banks.path / folder) for name, folder in BANKS.items()}
        # Listing and index of a split, read once; parquet readers are not shared by threads.
        self._studies = cache(lambda split: {study.key: study for study in load_studies(self._data, split)})
        self._shelf = cache(lambda split: SampleLookup(self._data, split))
        self._lock = threading.Lock()

    def listing(self, split: str, words: str) -> dict[str, Any]:
        """The studies of a split whose key or findings hold all ``words``; at most ``MAX_LISTED``."""
        wanted = words.lower().split()
        rows = [(study, positives(study)) for study in self._split(split).values()]
        found = [
            {"key": study.key, "findings": names}
            for study, names in rows
            if all(word in " ".join([study.key, *(names or ["no finding"])]).lower() for word in wanted)
        ]
        return {"total": len(rows), "found": len(found), "studies": found[:MAX_LISTED]}

    def study(self, split: str, key: str) -> Sample:
        """Raises NotFound for an unknown split or study; UserError where it is damaged."""
        if key not in self._split(split):
            raise NotFound(f"no such study among the {split} studies of this run: choose one from the list")
        with self._lock:
            return self._shelf(split)[key]

    def row(self, bank: str, number: int) -> dict[str, Any]:
        """What is known of a bank's row, with a thumbnail of a region where its film is at hand.

        Raises:
            NotFound: no such bank or row.
        """
        if bank not in self._banks or not 0 <= number < len(self._banks[bank]):
            raise NotFound(f"no row {number} in a {bank} bank of this run")
        with self._lock:
            (origin,) = self._banks[bank].provenance_rows(number, number + 1).to_pylist()
        told = {name: origin[name] for name in ("key", "split", "source", "text", "view")}
        box = origin["box"]
        return told | {"findings": origin["findings"] or [], "image": self._thumbnail(origin) if box else None}

    def _thumbnail(self, origin: dict[str, Any]) -> str | None:
        try:
            film = self.study(origin["split"], origin["key"]).views[origin["view"]]
        except (UserError, IndexError):  # a bank made from other data, or a damaged film: the row is shown without it
            return None
        return film_url(crop(letterbox(film, self._size), tuple(origin["box"]), self._grid), 144)

    def _split(self, split: str) -> dict[str, Study]:
        if split not in SPLITS:
            raise NotFound(f"no split `{split}`: one of {', '.join(SPLITS)}")
        with self._lock:
            return self._studies(split)


def positives(study: Study) -> list[str]:
    """The findings that the study has by its own labels."""
    return [finding for finding in FINDINGS if study.labels[finding] == POSITIVE]
