"""Scores of findings, impression, and both together, of reports that tell them apart."""

from collections.abc import Mapping, Sequence
from typing import Any

from amrg.data.studies import Study
from amrg.data.text.sections import join_sections
from amrg.evaluation.baselines import best_constant
from amrg.evaluation.reports import SECTIONS, GeneratedReport
from amrg.evaluation.scores import MODEL, score_systems


def section_scores(
    studies: Sequence[Study],
    reports: Sequence[GeneratedReport],
    train: Sequence[Study],
    val: Sequence[Study],
    nearest: Sequence[int],
    samples: int,
    seed: int,
    meteor_timeout: float | None,
) -> dict[str, Any]:
    """Score each section on the studies whose reference has it, and both on those that have both.

    An entry has the number of ``studies`` and ``patients``, how many generated reports have the section as ``written``,
    and ``systems`` (``score_systems``), which is empty without such a study. A report without the section is scored as
    an empty text. The best constant text is chosen among those of train that have the section, by those of val.

    Args:
        studies, reports: the references and the generated reports, in the same order.
        train, val: studies of these splits.
        nearest: number of the train study whose text the nearest neighbour gives to each study.
        samples, seed, meteor_timeout: as for ``score_systems``.

    Returns:
        The entries of ``findings``, ``impression`` and ``both``; empty unless every report tells its sections apart.
    """
    if not all(report.sections for report in reports):
        return {}
    found = {}
    for name, names in {**{name: (name,) for name in SECTIONS}, "both": SECTIONS}.items():
        references = {i: text for i, study in enumerate(studies) if (text := _text(study.sections, names))}
        systems = {
            MODEL: [_text(reports[i].sections, names, partly=True) for i in references],
            "nearest neighbour": [_text(train[nearest[i]].sections, names, partly=True) for i in references],
        }
        known = [[text for study in split if (text := _text(study.sections, names))] for split in (train, val)]
        if all(known):
            systems["best constant"] = [best_constant(*known)] * len(references)
        groups = [studies[i].group for i in references]
        found[name] = {
            "studies": len(references),
            "patients": len(set(groups)),
            "written": sum(bool(_text(reports[i].sections, names)) for i in references),
            "systems": score_systems(list(references.values()), systems, groups, samples, seed, meteor_timeout)
            if references
            else {},
        }
    return found


def _text(sections: Mapping[str, str], names: Sequence[str], partly: bool = False) -> str:
    """Join the named sections; empty if one is missing, unless a part is enough."""
    parts = [sections[name] for name in names]
    return join_sections(*parts, *[""] * (2 - len(parts))) if partly or all(parts) else ""
