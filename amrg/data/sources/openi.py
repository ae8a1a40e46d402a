"""Reader of Open-i's own release: one XML per study, which names the PNG films."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

from amrg.config import DataConfig
from amrg.data.image_io import load_film
from amrg.data.sources.tables import Need, data_root, refuse_views
from amrg.data.splits import assign_splits, hash_patient
from amrg.data.studies import Study, StudyImages
from amrg.data.text.labeler import label_report
from amrg.data.text.sections import select_sections
from amrg.errors import UserError
from amrg.progress import echo

_SUFFIXES = (".png", ".jpg", ".dcm")


def open_source(config: DataConfig, seed: int) -> "Openi":
    """Open the reader of the data set in ``data.path``."""
    return Openi(config, seed)


def counted(config: DataConfig) -> None:
    """Return None: there is no table."""


def recognize(root: Path) -> bool:
    """Return whether a folder holds reports of Open-i, by the first XML in it."""
    first = next(root.rglob("*.xml"), None)
    return first is not None and b"<eCitation" in first.read_bytes()[:1000]


def needs(config: DataConfig) -> list[Need]:
    """Return one check per file or folder that the reader needs in ``data.path``."""
    root = data_root(config)
    return [lambda: _any_report(root), lambda: refuse_views(config)]


def _any_report(root: Path) -> None:
    if next(root.rglob("*.xml"), None) is None:
        raise UserError(f"{root} has no XML reports: set data.path to the folder of Open-i's release")


def _film_name(name: str) -> str:
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
        UserError: there are no reports, a report is not XML, or a split is empty.
    """

    def __init__(self, config: DataConfig, seed: int) -> None:
        refuse_views(config)
        root = data_root(config)
        self._size = config.image_size
        _any_report(root)
        reports = sorted(root.rglob("*.xml"))
        # In order, so that a PNG comes after the DICOM of the same film and is the one that is kept.
        films = {_film_name(path.stem): path for path in sorted(root.rglob("*")) if path.suffix.lower() in _SUFFIXES}
        self._films: dict[str, list[Path]] = {}
        studies = []
        for path in reports:
            try:
                content = ET.parse(path).getroot()
            except ET.ParseError:
                raise UserError(f"{path.name} is no XML: fetch Open-i's reports again") from None
            study = self._study(content, config, films)
            if study is not None:
                studies.append(study)
        if len(studies) < len(reports):
            left_out = len(reports) - len(studies)
            echo(f"{left_out} of {len(reports)} studies have no {config.sections} text or no film and are left out")
        self._studies = assign_splits(studies, config, seed)

    def studies(self) -> list[Study]:
        """Return all studies with their splits."""
        return list(self._studies)

    def films(self, study: Study) -> StudyImages:
        """Load all films of a study."""
        return StudyImages([load_film(path, self._size) for path in self._films[study.key]])

    def _study(self, content: ET.Element, config: DataConfig, films: dict[str, Path]) -> Study | None:
        """Return the study; None without a text, or if none of its films exists."""
        uid = content.find("uId")
        key = uid.get("id", "") if uid is not None else ""
        sections = {node.get("Label", ""): node.text or "" for node in content.iter("AbstractText")}
        text = select_sections(sections.get("FINDINGS"), sections.get("IMPRESSION"), config.sections)
        names = [_film_name(image.get("id", "")) for image in content.iter("parentImage")]
        paths = [films[name] for name in names if name in films]
        if not key.isalnum() or not text or not paths:
            return None
        self._films[key] = paths
        return Study(key, hash_patient(f"iu {key}"), "train", text, label_report(text))
