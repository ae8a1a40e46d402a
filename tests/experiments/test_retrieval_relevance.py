"""Copies of whole reports, and relevance of the memories, from made-up reports over made-up banks."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from amrg.banks.bank import REPORTS, VISUAL, MemoryBank
from amrg.banks.writer import BankWriter
from amrg.config import Config, DataConfig, EvaluateConfig
from amrg.data.labels import FINDINGS, LABELS
from amrg.data.shards import prepare_shards
from amrg.data.stream import load_split_studies
from amrg.data.studies import Study, StudyImages
from amrg.evaluation.comparison import ReportSet
from amrg.evaluation.reports import Association, GeneratedReport
from amrg.experiments.retrieval_relevance import (
    copy_retrieved_reports,
    most_typical_text,
    relevance_facts,
    relevance_scores,
)
from amrg.inference.report_writer import TOP_ROWS

SIZE = 32
EFFUSION = FINDINGS.index("Pleural Effusion")


class Halves:
    """Of four test studies the first two have an effusion, on the patient's left and on the right."""

    def studies(self) -> list[Study]:
        found = [dict.fromkeys(LABELS) | {"Pleural Effusion": 1.0 if i < 2 else None} for i in range(4)]
        others = [Study(split, split, split, "Report.", dict.fromkeys(LABELS)) for split in ("train", "val")]
        return [Study(f"s{i}", f"p{i}", "test", "Report.", labels) for i, labels in enumerate(found)] + others

    def films(self, study: Study) -> StudyImages:
        mask = np.zeros((SIZE, SIZE), bool)
        if study.key in ("s0", "s1"):
            mask[:, slice(SIZE // 2, None) if study.key == "s0" else slice(SIZE // 2)] = True
        return StudyImages([np.zeros((SIZE, SIZE), np.uint8)], {"Pleural Effusion": mask} if mask.any() else {})


def made(data: Path, banks: Path) -> SimpleNamespace:
    return SimpleNamespace(path=lambda kind: {"data": data, "banks": banks}[kind])


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """Data, and banks of four rows each, one of them of an effusion."""
    folder = tmp_path_factory.mktemp("halves")
    prepare_shards(Halves(), DataConfig(image_size=SIZE, workers=1), folder / "data", 0)
    known = {"key": "t", "group": "q", "split": "train", "source": "region", "view": 0, "box": [0, 0, 1, 1]}
    for name in (VISUAL, REPORTS):
        with BankWriter(folder / "banks" / name, 8) as writer:
            for findings in [["Pleural Effusion"], [], [], []]:
                writer.add(torch.randn(1, 8), [known | {"findings": findings}])
    return made(folder / "data", folder / "banks")


def associating(key: str, share: float, side: float | None, first: int) -> GeneratedReport:
    """A report whose effusion's association has this share on rows of effusions, and this side."""
    shares, sides = [0.0] * 13, [None] * 13
    shares[EFFUSION], sides[EFFUSION] = share, side
    told = {"visual": Association(shares, [0] * 13, sides)}
    return GeneratedReport(
        key, "", {"visual": [{"row": first, "weight": 1.0}]}, f"p{key[1:]}", "Report.", association=told
    )


def test_relevance_is_of_all_seeds_and_who_answers_alike_of_each(halves):
    config = Config(evaluate=EvaluateConfig(bootstrap_samples=20))
    runs = [
        ReportSet("0", [associating(f"s{i}", share, 0.75, 0) for i, share in enumerate((0.9, 0.7, 0.2, 0.0))]),
        ReportSet("1", [associating(f"s{i}", share, 0.75, 1) for i, share in enumerate((0.5, 0.3, 0.2, 0.0))]),
    ]
    scores = relevance_scores(config, [halves, halves], runs)
    assert list(scores) == ["visual relevance", "visual relevance, absent", "visual true side"]
    assert scores["visual relevance"][0] == pytest.approx(0.6)
    assert scores["visual relevance, absent"][0] == pytest.approx(0.1)
    assert scores["visual true side"][0] == pytest.approx((0.75 + 0.25) / 2)
    low, high = scores["visual relevance"][1]
    assert 0.5 <= low <= 0.6 <= high <= 0.7  # patients: (0.9 + 0.5) / 2 and (0.7 + 0.3) / 2
    facts = relevance_facts(config, [halves, halves], runs)
    assert facts == {"visual alike": 1.0, "visual base rate": 0.25}  # each training has a row of its own for all films


def test_a_memory_that_is_off_has_no_relevance(halves):
    silent = ReportSet("0", [GeneratedReport(f"s{i}", "", {}, f"p{i}", "Report.") for i in range(4)])
    assert relevance_scores(Config(), [halves], [silent]) == {}
    assert relevance_facts(Config(), [halves], [silent]) == {}


def retrieved(key: str, *rows: int) -> GeneratedReport:
    return GeneratedReport(key, "own", {"report": [{"row": row, "weight": 0.5} for row in rows]}, "p", "ref")


def test_a_copy_is_the_whole_report_behind_a_sentence(artefacts):
    origins = MemoryBank.open(artefacts.banks / REPORTS).provenance.to_pylist()
    assert {origin["source"] for origin in origins} == {"sentence"}
    whole = {study.key: study.report for study in load_split_studies(artefacts.data, "train")}
    run = ReportSet("x", [retrieved("a", 3, 0), retrieved("b"), retrieved("c", *range(TOP_ROWS))])
    copied, lost = copy_retrieved_reports(run, made(artefacts.data, artefacts.banks), 1)
    assert copied.reports[0].text == whole[origins[3]["key"]]
    assert origins[3]["text"] in copied.reports[0].text != origins[3]["text"]
    assert (copied.reports[1].text, lost) == ("", 1)
    several, _ = copy_retrieved_reports(run, made(artefacts.data, artefacts.banks), TOP_ROWS)
    of = dict.fromkeys(origins[row]["key"] for row in range(TOP_ROWS))
    assert len(of) < TOP_ROWS  # sentences of one report are one report
    assert several.reports[2].text == most_typical_text([whole[key] for key in of])


def test_what_is_not_in_the_data_cannot_be_copied(artefacts, halves):
    """Rows of a bank that was filled from elsewhere."""
    copied, lost = copy_retrieved_reports(
        ReportSet("x", [retrieved("a", 0)]), made(halves.path("data"), artefacts.banks), 1
    )
    assert (copied.reports[0].text, lost) == ("", 1)
