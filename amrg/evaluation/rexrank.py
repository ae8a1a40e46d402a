"""Generated reports in the format of the ReXrank leaderboard (rexrank.ai).

ReXrank gives its test sets as one JSON object by study id and takes the same object back, with the report that a model
wrote as ``model_prediction`` of each study. Its evaluation reads that and ``section_findings`` and
``section_impression``, the references.
"""

import json
from pathlib import Path
from typing import Any

from amrg.errors import UserError
from amrg.evaluation.reports import GeneratedReport

PREDICTION = "model_prediction"


def to_rexrank(reports: list[GeneratedReport], sections: str) -> dict[str, dict[str, Any]]:
    """A file of its own, with our references.

    Args:
        reports: with their references.
        sections: what was written, ``data.sections``. A report of ``both`` stands as findings: our cleaned text no
            longer tells them apart.
    """
    place = "section_impression" if sections == "impression" else "section_findings"
    blank: dict[str, Any] = {"section_findings": None, "section_impression": None}
    return {
        r.key: {**blank, place: r.reference, "report": r.reference, PREDICTION: r.text}
        for r in sorted(reports, key=lambda r: r.key)
    }


def read_test_set(path: Path) -> dict[str, dict[str, Any]]:
    """One of ReXrank's own files.

    Raises:
        UserError: it is none.
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
    """ReXrank's own file with our reports in it. MIMIC-CXR's studies are ``50051329`` there and ``s50051329`` here.

    Raises:
        UserError: the studies are not the same.
    """
    ours = {r.key: r.text for r in reports}
    if not ours.keys() & test_set.keys():
        ours = {key.removeprefix("s"): text for key, text in ours.items()}
    missing, foreign = len(test_set.keys() - ours.keys()), len(ours.keys() - test_set.keys())
    if missing or foreign:
        raise UserError(
            f"{missing} of the {len(test_set)} studies of the test set have no report, and {foreign} reports are of "
            "other studies: generate for exactly its studies"
        )
    return {key: {**study, PREDICTION: ours[key]} for key, study in test_set.items()}
