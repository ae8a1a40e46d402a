"""Scores of findings, impression, and both together, of reports that tell them apart."""

from collections.abc import Sequence
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
    return {
        name: _scores(names, studies, reports, train, val, nearest, samples, seed, meteor_timeout)
        for name, names in {**{name: (name,) for name in SECTIONS}, "both": SECTIONS}.items()
    }


def _scores(
    names: tuple[str, ...],
    studies: Sequence[Study],
    reports: Sequence[GeneratedReport],
    train: Sequence[Study],
    val: Sequence[Study],
    nearest: Sequence[int],
    samples: int,
    seed: int,
    meteor_timeout: float | None,
) -> dict[str, Any]:
    def text(sections: dict[str, str], complete: bool = False) -> str:
        """Join the sections; empty if one is missing and the text must be complete."""
        parts = [sections[name] for name in names]
        return "" if complete and not all(parts) else join_sections(*parts, *[""] * (2 - len(parts)))

    references = {i: found for i, study in enumerate(studies) if (found := text(study.sections, complete=True))}
    known = [[found for study in some if (found := text(study.sections, complete=True))] for some in (train, val)]
    systems = {
        MODEL: [text(reports[i].sections) for i in references],
        "nearest neighbour": [text(train[nearest[i]].sections) for i in references],
    }
    if all(known):
        systems["best constant"] = [best_constant(*known)] * len(references)
    groups = [studies[i].group for i in references]
    return {
        "studies": len(references),
        "patients": len(set(groups)),
        "written": sum(bool(text(reports[i].sections, complete=True)) for i in references),
        "systems": score_systems(list(references.values()), systems, groups, samples, seed, meteor_timeout)
        if references
        else {},
    }
