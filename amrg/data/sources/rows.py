"""Studies of a list with a row for each study or film: grouping, order of films and studies, texts, labels, checks.

The readers of such lists (``table``, ``iu_kaggle``, ``rexgradient``, ``padchest``, ``padchest_gr``, ``vindr_cxr``) only
turn their files into rows.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from amrg.config import DataConfig
from amrg.data.context import Context
from amrg.data.labels import LABELS
from amrg.data.prior import EarlierStudies, days_between
from amrg.data.sources.study_films import load_study_films
from amrg.data.sources.tables import Tally, labels_of_row, parse_moment
from amrg.data.splits import assign_splits, hash_patient_group
from amrg.data.studies import Study, StudyImages
from amrg.data.text.cleaning import clean_report_text
from amrg.data.text.labeler import label_report
from amrg.data.text.sections import context_sections, select_impression, select_sections, split_sections
from amrg.errors import UserError
from amrg.progress import track_progress

#: Split by its published name.
SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validate": "val", "validation": "val",
    "dev": "val", "test": "test", "testing": "test",
}  # fmt: skip

_VIEWS = {
    "POSTERO ANTERIOR": "PA", "POSTEROANTERIOR": "PA", "ANTERO POSTERIOR": "AP", "ANTEROPOSTERIOR": "AP",
    "AP HORIZONTAL": "AP", "L": "LATERAL", "LL": "LATERAL", "RL": "LATERAL", "LAT": "LATERAL",
}  # fmt: skip
_SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")


@dataclass(frozen=True)
class Row:
    """What one row says of a study; rows of the same patient and study belong together.

    Attributes:
        study: name of the study.
        patient: name of the patient.
        films: paths below the folders of films.
        views: view of each film as published; empty if they are not given.
        split: as published (``SPLIT_NAMES``); empty if it is not given.
        report: whole report with headings, if it has any.
        findings, impression: sections, where they are given one by one.
        labels: published labels by name: empty ones are not mentioned, others without a name unknown; None: there are
            none.
        time: of the study, as ``parse_moment`` reads it.
        context: texts by field of ``amrg.data.context``, where they are given one by one.
    """

    study: str
    patient: str
    films: tuple[str, ...]
    views: tuple[str, ...] = ()
    split: str = ""
    report: str = ""
    findings: str = ""
    impression: str = ""
    labels: Mapping[str, Any] | None = None
    time: str = ""
    context: Mapping[str, str] = field(default_factory=dict)


class RowSource:
    """Studies of some rows. Implements ``amrg.data.studies.Source``.

    Rows of one study that contradict each other, and films outside the folders, are faults of their study, which
    ``prepare`` leaves out and counts.

    Args:
        rows: in any order.
        config: ``sections``, ``splits``, ``labels``, ``views`` and the limits are read.
        seed: seed of the split and of the studies kept under a limit.
        find_film: returns the file of a film; it must be picklable, and may name a file that is not there.
        family: name of the data set, before the patients' names when they are hashed.

    Raises:
        UserError: the name of a split is unknown, a patient is in two splits, or a setting does not fit the rows.
    """

    def __init__(
        self,
        rows: Iterable[Row],
        config: DataConfig,
        seed: int,
        find_film: Callable[[str], Path],
        family: str,
    ) -> None:
        self._config, self._find, self._family = config, find_film, family
        studies: dict[tuple[str, str], list[Row]] = {}
        for row in rows:
            studies.setdefault((row.patient, row.study), []).append(row)
        all_rows = [row for some in studies.values() for row in some]
        if config.views and not any(view for row in all_rows for view in row.views):
            raise UserError(
                f"data.views {' '.join(config.views)}: {config.source} does not tell the views: leave it out"
            )
        if config.splits == "temporal" and _time(all_rows) is None:
            raise UserError(
                f"data.splits temporal: {config.source} does not tell the time of a study here by a number or a date "
                "that begins with the year"
            )
        has_split = any(row.split for row in all_rows)
        if not has_split and config.splits == "official":
            config = replace(config, splits="patient")
        self._films: dict[str, list[str]] = {}
        self._studies = assign_splits(self._read(studies, has_split and config.splits == "official"), config, seed)
        self._films = {study.key: self._films[study.key] for study in self._studies}

    def studies(self) -> list[Study]:
        """Return all studies with their splits."""
        return list(self._studies)

    def films(self, study: Study) -> StudyImages:
        """Load all films of a study, frontal ones first."""
        return load_study_films(map(self._find, self._films[study.key]), self._config.image_size)

    def _read(self, studies: dict[tuple[str, str], list[Row]], split_needed: bool) -> list[Study]:
        tally = Tally(self._config.sections)
        repeated = {name for name, times in Counter(study for _, study in studies).items() if times > 1}
        found: list[Study] = []
        earlier = EarlierStudies()
        # Studies of a patient in order of time; those without one stay in the order of the rows, before the others.
        ordered = sorted(studies.items(), key=lambda item: (item[0][0], _place(item[1])))
        for (patient, name), rows in track_progress(ordered, "reading reports"):
            key = _key(name, patient if name in repeated else "")
            study = self._study(key, hash_patient_group(f"{self._family} {patient}"), rows)
            if key not in self._films:
                tally.counts[tally.no_film if self._config.views else tally.no_file] += 1
            elif split_needed and not any(row.split for row in rows):
                tally.counts[tally.no_split] += 1
            elif study.load_error or tally.keeps(study.report, study.labels):
                time = _time(rows)
                tally.counts.update([tally.no_time] if time is None and any(row.time for row in rows) else [])
                if time is not None:
                    prior, before = earlier.find(patient, time)
                    study = replace(study, prior=prior, prior_days=days_between(before, time))
                    if study.report:
                        earlier.add(patient, time, key)
                found.append(study)
        self.left_out = dict(tally.counts)
        tally.report(len(studies))
        tally.refuse_nothing(len(found), len(studies), Path(self._config.path or ""))
        return found

    def _study(self, key: str, group: str, rows: list[Row]) -> Study:
        """Return the study of some rows, with its films in ``_films`` if it has any of the wanted views."""
        texts = {name: _agreed(rows, name) for name in ("split", "report", "findings", "impression")}
        faults = [f"its rows do not agree on its {name}" for name, values in texts.items() if len(values) > 1]
        split, report, findings, impression = (values[0] if values else "" for values in texts.values())
        if split and split.lower() not in SPLIT_NAMES:
            raise UserError(f"{self._config.source}: split {split!r} is none of {', '.join(SPLIT_NAMES)}")
        parts = split_sections(report) if report else {}
        context = context_sections(report) if report else {}
        for row in reversed(rows):  # the first row that has a field counts
            context |= {name: value for name, value in row.context.items() if value}
        both = findings or parts.get("findings"), impression or parts.get("impression")
        text, ending = (select(*both, self._config.sections) for select in (select_sections, select_impression))
        if report and not parts:
            text = clean_report_text(report)  # one text without headings
        labels, unlabelled = self._labels(rows, text, faults)
        shown = [pair for row in rows for pair in zip(row.films, _views(row), strict=True)]
        ordered = sorted(dict(shown).items(), key=lambda film: _rank(film[1]))  # a film once, frontal ones first
        chosen = [(film, view) for film, view in ordered if not self._config.views or view in self._config.views]
        if any(Path(film).is_absolute() or ".." in Path(film).parts for film, _ in chosen):
            faults.append("a path of a film that leaves the folder")
        if chosen:
            self._films[key] = [film for film, _ in chosen]
        views = tuple(view for _, view in chosen)
        return Study(
            key, group, SPLIT_NAMES.get(split.lower(), "train"), text, labels, views if any(views) else (),
            load_error="; ".join(dict.fromkeys(faults)), unlabelled=unlabelled,
            context=Context.read(context, (findings, impression, *parts.values(), text)), impression=ending,
        )  # fmt: skip

    def _labels(self, rows: list[Row], text: str, faults: list[str]) -> tuple[dict[str, float | None], tuple[str, ...]]:
        """Return the labels of a study and those that are not known; contradictions are added to ``faults``."""
        given = [row.labels for row in rows if row.labels is not None]
        if self._config.labels == "rules" or not given:
            return (label_report(text), ()) if text else (dict.fromkeys(LABELS), LABELS)
        labels: dict[str, float | None] = dict.fromkeys(LABELS)
        for one in given:
            values, fault = labels_of_row(dict(one))
            faults += [fault] if fault else []
            if any(labels[name] not in (None, value) for name, value in values.items() if value is not None):
                faults.append("its rows do not agree on its labels")
            labels |= {name: value for name, value in values.items() if value is not None}
        nothing = all(value is None for value in labels.values())
        unknown = tuple(label for label in LABELS if not any(label in one for one in given))
        return labels, LABELS if nothing else unknown


def normalize_view_name(view: str) -> str:
    """Return the name of a view in the form of ``data.views``: capitals, PA, AP and LATERAL for their other names."""
    name = re.sub(r"[\s_-]+", " ", view).strip().upper()
    return _VIEWS.get(name, name)


def find_film_file(root: Path, folders: Sequence[str], name: str) -> Path:
    """Return the file of a film in the first folder that has it, with its own suffix or another; else the first guess.

    Args:
        root: folder of the data set.
        folders: folders below it, one of which holds the films.
        name: path of the film below such a folder.
    """
    places = [root / folder / name for folder in folders]
    others = (place.with_suffix(suffix) for place in places for suffix in _SUFFIXES)
    return next((path for path in (*places, *others) if path.is_file()), places[0])


def _views(row: Row) -> tuple[str, ...]:
    """Return the view of each film of a row; empty texts unless every film has one."""
    if len(row.views) != len(row.films):
        return ("",) * len(row.films)
    return tuple(map(normalize_view_name, row.views))


def _rank(view: str) -> int:
    """Return the place of a view in its study: PA, AP, other frontal ones and those not given, lateral ones."""
    return {"PA": 0, "AP": 1, "LATERAL": 3}.get(view, 2)


def _agreed(rows: Sequence[Row], name: str) -> list[str]:
    """Return the different texts of a column, without empty ones."""
    return list(dict.fromkeys(filter(None, (getattr(row, name) for row in rows))))


def _key(study: str, patient: str) -> str:
    """Return a key that is safe in shards; names that it does not keep, and the patient, become part of a hash."""
    safe = re.sub(r"[^\w-]", "-", study, flags=re.ASCII)
    if safe == study and not patient:
        return safe
    return f"{safe}-{hashlib.sha256(f'{patient} {study}'.encode()).hexdigest()[:8]}"


def _time(rows: list[Row]) -> float | None:
    """Return the first time of some rows, or None."""
    return min((time for row in rows if (time := parse_moment(row.time)) is not None), default=None)


def _place(rows: list[Row]) -> tuple[bool, float]:
    time = _time(rows)
    return time is not None, time or 0.0
