"""Reader of Open-i's own release: one XML per study, which names the PNG films."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

from amrg.config import DataConfig
from amrg.data.context import Context
from amrg.data.sources.indiana_views import frontal_first
from amrg.data.sources.study_films import load_study_films
from amrg.data.sources.tables import (
    Need,
    Tally,
    check_data_root,
    decode_text,
    refuse_views,
    stripped_text,
    walk_data_files,
)
from amrg.data.splits import assign_splits, hash_patient_group
from amrg.data.studies import Study, StudyImages
from amrg.data.text.labeler import label_report
from amrg.data.text.sections import select_impression, select_sections
from amrg.errors import UserError

_SUFFIXES = (".png", ".jpg", ".dcm")


def open_source(config: DataConfig, seed: int) -> "Openi":
    """Open the reader of the data set in ``data.path``."""
    return Openi(config, seed)


def published_counts(config: DataConfig) -> None:
    """Return None: there is no table."""


def recognize_folder(root: Path) -> bool:
    """Return whether a folder holds reports of Open-i, by the first XML files in it."""
    return any(_is_report(path) for path in islice(iter_report_files(root), 20))


def _is_report(path: Path) -> bool:
    try:
        return "<eCitation" in decode_text(path.read_bytes())[:1000]
    except OSError:
        return False


def required_files(config: DataConfig) -> list[Need]:
    """Return one check per file or folder that the reader needs in ``data.path``."""
    root = check_data_root(config)
    return [lambda: _any_report(root), lambda: refuse_views(config)]


def _any_report(root: Path) -> None:
    if next(iter_report_files(root), None) is None:
        raise UserError(f"{root} has no XML reports: set data.path to the folder of Open-i's release")


def iter_report_files(root: Path) -> Iterator[Path]:
    """Yield the files of reports."""
    return (path for path in walk_data_files(root) if path.suffix.lower() == ".xml")


def film_files_by_name(root: Path) -> dict[str, Path]:
    """Map the name of each film (``film_names_of_report``) to its file; of several, to the first by format and path."""
    paths = [path for path in walk_data_files(root) if path.suffix.lower() in _SUFFIXES]
    ordered = sorted(paths, key=lambda path: _SUFFIXES.index(path.suffix.lower()))
    return {_dicom_name(path.stem): path for path in reversed(ordered)}


def parse_report_xml(path: Path) -> ET.Element:
    """Parse a report, in whatever encoding it is.

    Raises:
        ValueError: it is unreadable, or no XML.
    """
    try:
        data = path.read_bytes()
        try:
            return ET.fromstring(data)
        except ET.ParseError:  # not in the encoding that it says
            return ET.fromstring(decode_text(data))
    except (OSError, ET.ParseError) as error:
        raise ValueError(f"not readable ({type(error).__name__})") from None


def read_sections(content: ET.Element) -> dict[str, str]:
    """Return the texts of a report by their labels in capitals."""
    found: dict[str, str] = {}
    for node in content.iter("AbstractText"):
        label, text = node.get("Label", "").strip().upper(), stripped_text("".join(node.itertext()))
        found[label] = f"{found.get(label, '')} {text}".strip()
    return found


def context_of_sections(sections: Mapping[str, str]) -> Context:
    """Return the context of a report, given its texts by their labels."""
    texts = {name.lower(): sections.get(name) for name in ("INDICATION", "COMPARISON", "TECHNIQUE")}
    return Context.read(texts, (sections.get("FINDINGS"), sections.get("IMPRESSION")))


def study_of_report(content: ET.Element) -> str:
    """Return the study of a report; empty if it does not say."""
    uid = content.find("uId")
    return uid.get("id", "").strip() if uid is not None else ""


def film_names_of_report(content: ET.Element) -> list[str]:
    """Return the names of a report's films in the form of the DICOM files, each once, frontal ones first."""
    names = list(dict.fromkeys(image.get("id", "").strip() for image in content.iter("parentImage")))
    return [_dicom_name(names[place]) for place in frontal_first(names)]


def _dicom_name(name: str) -> str:
    """Return the name of a film in the form of Open-i's DICOM files: ``CXR1_1_IM-0001-3001`` → ``1_IM-0001-3001``."""
    return re.sub(r"^CXR(\d+)_(?:\1_)?(?=IM)", r"\1_", name.removesuffix(".dcm"))


class Openi:
    """Studies of Open-i. Implements ``amrg.data.studies.Source``.

    There is no published split: use ``data.splits patient`` (every study counts as one patient). Labels come from the
    rule labeler.

    Args:
        config: ``path`` holds the XML files and the films, at any depth (``ecgen-radiology/``, ``NLMCXR_png/``).
        seed: seed of the split and of the studies kept under a limit.

    Raises:
        UserError: there are no reports, none can be used, or a split is empty.
    """

    def __init__(self, config: DataConfig, seed: int) -> None:
        refuse_views(config)
        root = check_data_root(config)
        self._size = config.image_size
        _any_report(root)
        films = film_files_by_name(root)
        self._films: dict[str, list[Path]] = {}
        studies, tally = [], Tally(config.sections)
        reports = list(iter_report_files(root))
        for path in reports:
            try:
                found = self._study(parse_report_xml(path), config, films, tally)
            except ValueError:
                found = tally.unreadable
            if isinstance(found, str):
                tally.counts[found] += 1
            else:
                studies.append(found)
        self.left_out = dict(tally.counts)
        tally.refuse_nothing(len(studies), len(reports), root)
        tally.report(len(reports))
        self._studies = assign_splits(studies, config, seed)

    def studies(self) -> list[Study]:
        """Return all studies with their splits."""
        return list(self._studies)

    def films(self, study: Study) -> StudyImages:
        """Load all films of a study, frontal ones first."""
        return load_study_films(self._films[study.key], self._size)

    def _study(self, content: ET.Element, config: DataConfig, films: dict[str, Path], tally: Tally) -> Study | str:
        """Return the study, or why it is left out: without a text, or if none of its films exists."""
        key, sections = study_of_report(content), read_sections(content)
        both = sections.get("FINDINGS"), sections.get("IMPRESSION")
        text, ending = (select(*both, config.sections) for select in (select_sections, select_impression))
        paths = [films[name] for name in film_names_of_report(content) if name in films]
        if not key.isalnum():
            return tally.no_id
        if key in self._films:
            return tally.study_twice
        if not (text and paths):
            return tally.mute if paths else tally.no_file
        self._films[key] = paths
        return Study(
            key, hash_patient_group(f"iu {key}"), "train", text, label_report(text),
            context=context_of_sections(sections), impression=ending,
        )  # fmt: skip
