"""Studies, reports and bank rows of a run on disk, looked up by key and number, never by path."""

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cache, cached_property
from types import MappingProxyType
from typing import Any

import numpy as np

from amrg.artifacts import Artifact
from amrg.banks.bank import REPORTS, VISUAL, MemoryBank
from amrg.data.image_ops import letterbox_to_square
from amrg.data.stream import Sample, SampleLookup, load_split_studies
from amrg.data.studies import SPLITS, Study
from amrg.errors import UserError
from amrg.evaluation.confidence import StatedFindings
from amrg.evaluation.highlight import FindingErrors
from amrg.evaluation.reports import FILE, GeneratedReport, parse_reports
from amrg.evaluation.retrieval_lift import MeanRetrieval
from amrg.inference.run_artifacts import RunArtifacts, holds_no_reports
from amrg.pages.overlays import crop_film_to_box, film_data_url
from amrg.pages.retrieved_rows import USUAL

BANKS = {"visual": VISUAL, "report": REPORTS}
MAX_LISTED = 200  # maximal studies per page of a listing
#: Words for calibrated probabilities, and the least probability of each.
WORDS = {"likely": 0.75, "possible": 0.4, "unlikely": 0.0}
#: Search words of the form ``missed:edema``, by the errors of the run's own report.
ERRORS = ("missed", "extra", "conflicting")


class NotFound(UserError):
    """The run does not have the requested object."""


class RunStore:
    """Studies, reports and bank rows of a run.

    Args:
        chain: the run's artefacts; reads ``data``, ``banks`` and ``reports``.
        size: pixels per side of the films that the visual bank's regions were mined from.
        grid: cells per side of the grid of the boxes.
        online: whether films that the run keeps at a URL are read from there.
        compared: reports of another run, by key.

    Attributes:
        reports: the run's own reports, by key.
        averaged: number of the reports over which the retrieval is averaged; 0 if it is not known.
    """

    def __init__(
        self,
        chain: RunArtifacts,
        size: int,
        grid: int,
        online: bool = False,
        compared: Mapping[str, GeneratedReport] = MappingProxyType({}),
    ) -> None:
        self._data, self._size, self._grid = chain.data.path, size, grid
        self._banks = {name: MemoryBank.open(chain.banks.path / folder) for name, folder in BANKS.items()}
        # Listing and index of a split are read once. The lock is there because parquet readers are not thread-safe.
        self._studies = cache(lambda split: {study.key: study for study in load_split_studies(self._data, split)})
        self._lookup = cache(lambda split: SampleLookup(self._data, split, online))
        self._lock = threading.Lock()
        written = chain.reports is not None and not holds_no_reports(chain.reports.path)
        self.reports = parse_reports(chain.reports.path / FILE) if chain.reports and written else {}
        retrieved = [report for report in self.reports.values() if any(report.memory.values())]
        # Other banks than those of the reports have other rows under the same numbers.
        same_banks = chain.reports is not None and _banks_of(chain.reports) == chain.banks.hash
        self.averaged = len(retrieved) if same_banks else 0
        self._means = MeanRetrieval.of(retrieved if same_banks else [])
        self._reported_split = chain.config.generate.split
        self._compared = compared
        self._errors: dict[tuple[str, str], FindingErrors] = {}  # by key and text of the report

    def listing(self, split: str, words: str, order: str = "file", start: int = 0) -> dict[str, Any]:
        """List the studies of a split whose key and findings contain all ``words``, ``MAX_LISTED`` from ``start`` on.

        Args:
            split: train, val or test.
            words: ``missed:NAME``, ``extra:NAME`` and ``conflicting:NAME`` match findings that the run's own report
                gets wrong.
            order: ``file``: of the data; ``errors``: most errors first; ``better`` and ``worse``: those first whose
                report of the other run has fewer errors, or more.
            start: number of the first listed study.
        """
        studies = self._split(split)
        fitting = _matcher(words, self._errors_of)
        found = [study for study in studies.values() if fitting(study)]
        if order == "errors":
            found.sort(key=lambda study: -(errors.count if (errors := self._errors_of(study)) else -1))
        elif order in ("better", "worse"):
            sign = 1 if order == "better" else -1
            differences = {study.key: self._difference(study) for study in found}
            found.sort(key=lambda study: math.inf if (d := differences[study.key]) is None else sign * d)
        return {
            "total": len(studies),
            "found": len(found),
            "compared": any(key in self.reports for key in studies),
            "studies": [
                {
                    "key": study.key,
                    "findings": study.positive_findings,
                    "errors": asdict(errors) if (errors := self._errors_of(study)) else None,
                    "difference": self._difference(study),
                }
                for study in found[start : start + MAX_LISTED]
            ],
        }

    def _errors_of(self, study: Study) -> FindingErrors | None:
        """Errors of the run's own report of a study; None without one."""
        return self._compare(study, self.reports.get(study.key))

    def _difference(self, study: Study) -> int | None:
        """Errors that the report of the other run has more than the run's own; None if either has none."""
        own, other = self._errors_of(study), self._compare(study, self._compared.get(study.key))
        return other.count - own.count if own and other else None

    def _compare(self, study: Study, written: GeneratedReport | None) -> FindingErrors | None:
        if written is None:
            return None
        where = study.key, written.text
        if where not in self._errors:
            self._errors[where] = FindingErrors.of(study.report, written.text)
        return self._errors[where]

    def find(self, split: str, key: str) -> Study:
        """Return a study without its films; raises NotFound like ``study``."""
        studies = self._split(split)
        if key not in studies:
            raise NotFound(f"no such study among the {split} studies of this run: choose one from the list")
        return studies[key]

    def study(self, split: str, key: str) -> Sample:
        """Load a study; raises NotFound for an unknown split or study, UserError for a damaged study."""
        self.find(split, key)
        return self.sample(split, key)

    def sample(self, split: str, key: str) -> Sample:
        """Load a study that exists, perhaps without a text. Raises UserError for a damaged one."""
        with self._lock:
            return self._lookup(split)[key]

    def with_lifts(self, retrieved: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
        """Compare retrieved rows with what the run's reports retrieved on average, if that is known.

        Args:
            retrieved: rows by bank, ``{"row", "weight"}``.

        Returns:
            The rows, those with the most weight above their mean first, with ``lift``, the weight over its mean (None
            for a row that is in no report), ``studies``, the share of the reports that have the row among their
            heaviest, and ``usual``, whether these are so many that the row says little about a study.
        """
        if not self.averaged:
            return {bank: list(entries) for bank, entries in retrieved.items()}
        return {
            bank: [
                {
                    "row": one.row,
                    "weight": one.weight,
                    "lift": round(one.lift, 3) if one.mean else None,
                    "studies": round(one.studies, 3),
                    "usual": one.studies >= USUAL,
                }
                for one in self._means.row_lifts(bank, entries)
            ]
            for bank, entries in retrieved.items()
        }

    @cached_property
    def certainty(self) -> dict[str, Any]:
        """Return the ``WORDS`` with what the run's own reports say of them.

        Each has ``findings``, the number of the findings that composed sentences state with such a probability, and
        ``right``, the share of them that the reference states.
        """
        studies = self._split(self._reported_split)
        reports = [one for key, one in self.reports.items() if key in studies and one.sentences]
        probability_N, right_N = np.zeros(0), np.zeros(0, dtype=bool)
        if reports:
            stated = StatedFindings.of(reports, [studies[one.key].report for one in reports])
            probability_N, right_N = stated.probability_N, stated.right_N
        words, below = [], math.inf
        for word, least in WORDS.items():
            inside_N = right_N[(least <= probability_N) & (probability_N < below)]
            right = float(inside_N.mean()) if len(inside_N) else None
            words.append({"word": word, "least": least, "findings": len(inside_N), "right": right})
            below = least
        return {"split": self._reported_split, "words": words}

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
        return film_data_url(
            crop_film_to_box(letterbox_to_square(film, self._size), tuple(origin["box"]), self._grid), 144
        )

    def _split(self, split: str) -> dict[str, Study]:
        if split not in SPLITS:
            raise NotFound(f"no split `{split}`: one of {', '.join(SPLITS)}")
        with self._lock:
            return self._studies(split)


def _banks_of(reports: Artifact) -> str | None:
    """Content hash of the banks that reports were written with."""
    recorded: str | None = reports.manifest["inputs"].get("banks", {}).get("hash")
    return recorded


def _matcher(words: str, errors_of: Callable[[Study], FindingErrors | None]) -> Callable[[Study], bool]:
    """Return whether a study matches all words of a search."""

    def matches(study: Study, word: str) -> bool:
        kind, colon, name = word.partition(":")
        if colon and kind in ERRORS:
            errors = errors_of(study)
            wrong: Sequence[str] = getattr(errors, kind) if errors else ()
            return any(name in finding.lower() for finding in wrong)
        return word in " ".join([study.key, *(study.positive_findings or ["no finding"])]).lower()

    return lambda study: all(matches(study, word) for word in words.lower().split())
