"""Comparison of the reports that two runs have written of the same studies."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from amrg.data.stream import load_split_studies
from amrg.data.studies import Study
from amrg.errors import UserError
from amrg.evaluation.highlight import FindingErrors, finding_segments
from amrg.evaluation.language import language_faults, score_language
from amrg.evaluation.reports import FILE, GeneratedReport, parse_reports
from amrg.inference.run_artifacts import RunArtifacts
from amrg.webapp.run_store import BANKS, RunStore
from amrg.webapp.session import SHOWN


@dataclass(frozen=True)
class ComparedRun:
    """Another run, whose reports are shown next to those of the run.

    Attributes:
        chain: its artefacts.
        names: names of the run and of the other one.
        reports: reports of the other run, by key: those of studies that both runs report, with the same reference.
        note: how many studies are compared and left out, as one line.
    """

    chain: RunArtifacts
    names: tuple[str, str]
    reports: Mapping[str, GeneratedReport]
    note: str

    @classmethod
    def open(cls, first: RunArtifacts, other: RunArtifacts) -> "ComparedRun":
        """Find the studies that both runs report.

        Raises:
            UserError: a run has no reports, it is the same run, or no study is common.
        """
        for chain in (first, other):
            if chain.reports is None:
                raise UserError(f"{chain.stage2.path} has no reports to compare: write them with `amrg generate`")
        if first.model == other.model and _folder(first) == _folder(other):
            raise UserError("--compare names the reports that are viewed: give another run, or other reports of it")
        names = first.name, other.name
        if names[0] == names[1]:
            names = f"{names[0]}/{first.model}", f"{names[1]}/{other.model}"
        (reports, studies), (other_reports, other_studies) = _reported(first), _reported(other)
        both = [key for key in reports if key in other_reports]
        common = [key for key in both if _same(studies[key], other_studies[key])]
        if not common:
            raise UserError(
                f"{names[0]} reports {len(reports)} studies and {names[1]} {len(other_reports)}, none of them the same "
                "with the same reference: only runs over the same studies are compared"
            )
        counts = f"{len(reports) - len(both)} only of {names[0]}, {len(other_reports) - len(both)} only of {names[1]}"
        changed = len(both) - len(common)
        note = f"{len(common)} studies are compared, which both runs report" + (
            f"; left out: {counts}, {changed} with another reference"
            if len(common) < max(len(reports), len(other_reports))
            else ""
        )
        return cls(other, names, {key: other_reports[key] for key in common}, f"{note}.")


def describe_comparison(compared: ComparedRun, stores: tuple[RunStore, RunStore], study: Study) -> dict[str, Any]:
    """Compare the reports of one study: texts, errors, scores and retrieved rows of either run.

    Args:
        compared: the other run.
        stores: of the run and of the other one.
        study: one that both runs report.
    """
    reports = stores[0].reports[study.key], compared.reports[study.key]
    rows = [_rows(report, store) for report, store in zip(reports, stores, strict=True)]
    origins = [{_origin(row) for bank in BANKS for row in found[bank]} for found in rows]
    errors = [FindingErrors.of(study.report, report.text) for report in reports]
    sides = [
        {
            "name": name,
            "text": finding_segments(study.report, report.text)[1],
            "errors": asdict(wrong),
            "scores": _scores(study, report, wrong),
            "memory": {
                bank: [row | {"both": _origin(row) in elsewhere} for row in of] for bank, of in found.items()
            },
        }
        for name, report, wrong, found, elsewhere in zip(
            compared.names, reports, errors, rows, reversed(origins), strict=True
        )
    ]  # fmt: skip
    return {"note": compared.note, "sides": sides}


def _scores(study: Study, report: GeneratedReport, errors: FindingErrors) -> dict[str, float | None]:
    """Return the scores of one report by name; a higher one is better, but for the errors. None: undefined."""
    wrong = len(errors.missed) + len(errors.extra) + 2 * len(errors.conflicting)
    stated = 2 * len(errors.found) + wrong
    scores = {"errors": float(errors.count), "F1 with details": 2 * len(errors.found) / stated if stated else None}
    if not language_faults():
        language = score_language({study.key: study.report}, {study.key: report.text})
        scores |= {"BLEU-1": float(language.corpus()["BLEU-1"][0]), "ROUGE-L": float(language.rouge_l[0])}
    return scores


def _rows(report: GeneratedReport, store: RunStore) -> dict[str, list[dict[str, Any]]]:
    """Return the heaviest rows that a report has retrieved, by bank, with their provenance."""
    heaviest = store.with_lifts({bank: report.memory.get(bank, [])[:SHOWN] for bank in BANKS})
    return {bank: [store.row(bank, row["row"]) | row for row in rows] for bank, rows in heaviest.items()}


def _origin(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["key"], row["text"], row["view"], tuple(row["findings"])


def _reported(chain: RunArtifacts) -> tuple[dict[str, GeneratedReport], dict[str, Study]]:
    """Return the reports of a run and their studies, by key."""
    assert chain.reports is not None
    reports = parse_reports(chain.reports.path / FILE)
    studies = {study.key: study for study in load_split_studies(chain.data.path, chain.config.generate.split)}
    return {key: report for key, report in reports.items() if key in studies}, studies


def _same(one: Study, other: Study) -> bool:
    return (one.report, one.group) == (other.report, other.group)


def _folder(chain: RunArtifacts) -> str:
    return str(chain.stage2.path.resolve().parent)
