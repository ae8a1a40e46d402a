"""Generated reports in the format of the ReXrank leaderboard (rexrank.ai).

A ReXrank test set is one JSON object by study id. A submission is the same object with each study's generated report as
``model_prediction``. ReXrank compares it with the references ``section_findings`` and ``section_impression``. The
sections of a report that tells them apart are also ``model_prediction_findings`` and ``model_prediction_impression``.
"""

import json
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from amrg.errors import UserError
from amrg.evaluation.reports import GeneratedReport

PREDICTION = "model_prediction"

#: What names a study in the keys of ReXrank's sets and of ours, whatever stands around it: ``patient64620_study1`` and
#: ``valid-patient64620-study1`` (CheXpert Plus), the UID of a study (ReXGradient), and its number in ``CXR38_IM-1911``
#: and ``CXR38`` (IU X-ray), ``50051329`` and ``s50051329`` (MIMIC-CXR).
_NAMES = (
    re.compile(r"(patient\d+)[^A-Za-z0-9]+(study\d+)"),
    re.compile(r"(\d+(?:[._-]\d+){5,})"),
    re.compile(r"(?:^|[^A-Za-z0-9])(?:CXR|s)?(\d+)(?:[_-]IM-.*)?$"),
)


def rexrank_submission(reports: list[GeneratedReport], sections: str) -> dict[str, dict[str, Any]]:
    """Build a submission from our own references.

    Args:
        reports: generated reports with their references.
        sections: ``data.sections``. ``both`` is written as findings, since the cleaned text does not separate them;
            reports that tell their sections apart have both.
    """
    place = "section_impression" if sections == "impression" else "section_findings"
    blank: dict[str, Any] = {"section_findings": None, "section_impression": None}
    return {
        r.key: {**blank, **_references(r, place), "report": r.reference, **_predictions(r)}
        for r in sorted(reports, key=lambda r: r.key)
    }


def _references(report: GeneratedReport, place: str) -> dict[str, str | None]:
    """Return the reference by section; all of it in one place if the report does not tell its sections apart."""
    separate = {f"section_{name}": text or None for name, text in report.reference_sections.items()}
    return separate or {place: report.reference}


def _predictions(report: GeneratedReport) -> dict[str, str]:
    """Return what was generated: the whole report, and its sections if it tells them apart."""
    return {PREDICTION: report.text, **{f"{PREDICTION}_{name}": text for name, text in report.sections.items()}}


def read_test_set(path: Path) -> dict[str, dict[str, Any]]:
    """Read one of ReXrank's test sets.

    Raises:
        UserError: the file is not a test set.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        good = isinstance(content, dict) and all(isinstance(study, dict) for study in content.values())
    except (OSError, ValueError, RecursionError):
        good = False
    if not good or not content:
        raise UserError(f"{path} is not a ReXrank test set: a JSON file with an object for each study id is needed")
    return content


def fill_test_set(test_set: dict[str, dict[str, Any]], reports: list[GeneratedReport]) -> dict[str, dict[str, Any]]:
    """Add our reports to ReXrank's test set, which writes the keys of studies otherwise than we do (``_NAMES``).

    Raises:
        UserError: the studies differ.
    """
    keys = [r.key for r in reports]
    name_of: Callable[[str], str] = str
    if not test_set.keys() & set(keys) and _distinct(keys) and _distinct(test_set):
        name_of = _study_name
    texts, known = {name_of(r.key): _predictions(r) for r in reports}, set(map(name_of, test_set))
    missing = sorted(key for key in test_set if name_of(key) not in texts)
    foreign = sorted(key for key in keys if name_of(key) not in known)
    if missing or foreign:
        raise UserError(
            f"{len(missing)} of the {len(test_set)} studies of the test set have no report{_example(missing)}, and "
            f"{len(foreign)} reports are of other studies{_example(foreign)}: generate for exactly its studies"
        )
    return {key: {**study, **texts[name_of(key)]} for key, study in test_set.items()}


def _distinct(keys: Collection[str]) -> bool:
    """Return whether every study keeps a name of its own."""
    return len(set(map(_study_name, keys))) == len(keys)


def _study_name(key: str) -> str:
    """Return what names the study in a key, with the same separators everywhere."""
    found = next((match for name in _NAMES if (match := name.search(key))), None)
    return re.sub("[^A-Za-z0-9]+", "_", "_".join(found.groups()) if found else key)


def _example(keys: list[str]) -> str:
    return f" (such as {keys[0]!r})" if keys else ""
