"""Generated reports in the format of the ReXrank leaderboard (rexrank.ai).

A ReXrank test set is one JSON object by study id. A submission is the same object with each study's generated report as
``model_prediction``. ReXrank compares it with the references ``section_findings`` and ``section_impression``.
"""

import json
from pathlib import Path
from typing import Any

from amrg.errors import UserError
from amrg.evaluation.reports import GeneratedReport

PREDICTION = "model_prediction"


def to_rexrank(reports: list[GeneratedReport], sections: str) -> dict[str, dict[str, Any]]:
    """Build a submission from our own references.

    Args:
        reports: generated reports with their references.
        sections: ``data.sections``. ``both`` is written as findings, since the cleaned text does not separate them.
    """
    place = "section_impression" if sections == "impression" else "section_findings"
    blank: dict[str, Any] = {"section_findings": None, "section_impression": None}
    return {
        r.key: {**blank, place: r.reference, "report": r.reference, PREDICTION: r.text}
        for r in sorted(reports, key=lambda r: r.key)
    }


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
    """Add our reports to ReXrank's test set, which writes MIMIC-CXR's study ``s50051329`` as ``50051329``.

    Raises:
        UserError: the studies differ.
    """
    texts = {r.key: r.text for r in reports}
    if not texts.keys() & test_set.keys():
        texts = {key.removeprefix("s"): text for key, text in texts.items()}
    missing, foreign = len(test_set.keys() - texts.keys()), len(texts.keys() - test_set.keys())
    if missing or foreign:
        raise UserError(
            f"{missing} of the {len(test_set)} studies of the test set have no report, and {foreign} reports are of "
            "other studies: generate for exactly its studies"
        )
    return {key: {**study, PREDICTION: texts[key]} for key, study in test_set.items()}
