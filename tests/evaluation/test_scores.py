"""Systems side by side: what stands in the table is what the single metrics give."""

import io
import json
import re

import numpy as np
import pytest
from rich.console import Console

from amrg.data.labels import LABELS
from amrg.evaluation.highlight import FindingErrors, highlight_findings
from amrg.evaluation.scores import mention_tables, score_systems
from amrg.pages import score_table

REFERENCES = ["Small effusion.", "No effusion. Heart size is normal.", "Cardiomegaly. Large effusion."] * 4
GROUPS = [f"p{i // 2}" for i in range(12)]


def score(**systems):
    return score_systems(REFERENCES, systems, GROUPS, samples=100, seed=0, meteor_timeout=None)


def test_a_perfect_system_and_one_that_says_nothing():
    scores = score(model=REFERENCES, silent=[""] * 12)
    assert scores["model"]["clinical"]["micro_13"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0}
    assert scores["model"]["clinical"]["intervals"]["micro_13"] == [1.0, 1.0]
    assert scores["model"]["language"]["BLEU-4"]["value"] == pytest.approx(1.0, abs=1e-6)
    assert scores["silent"]["wording"]["empty"] == 1
    assert scores["model"]["clinical_uncertain_as_present"]["intervals"]["example_5"] == [1.0, 1.0]
    assert scores["silent"]["clinical"]["micro_13"]["f1"] == 0
    assert scores["silent"]["language"]["ROUGE-L"]["value"] == 0
    assert scores["silent"]["model_minus_this"] == {"value": 1.0, "interval": [1.0, 1.0]}
    assert "model_minus_this" not in scores["model"]
    assert scores["model"]["details"]["severity exact"] == {"value": 1.0, "interval": [1.0, 1.0], "cases": 8}
    assert scores["silent"]["details"]["severity exact"]["value"] is None
    assert scores["model"]["language"]["METEOR"].startswith("unavailable: ")


def test_cider_of_one_study_is_null_with_a_reason():
    """A dash in the tables of page and terminal, with one footnote for all systems."""
    systems = score_systems(
        REFERENCES[:1], {"model": REFERENCES[:1], "other": ["No."]}, GROUPS[:1], samples=10, seed=0, meteor_timeout=None
    )
    reason = "undefined: it weighs words by how few references have them, and here all references are equal"
    for system in systems.values():
        assert system["language"]["CIDEr"] == {"value": None, "interval": None, "reason": reason}
        assert system["language"]["BLEU-1"]["value"] is not None
    assert "NaN" not in json.dumps({name: system["language"] for name, system in systems.items()})
    scores = {"systems": {n: s | {"learned": {}} for n, s in systems.items()}, "studies": 1, "split": "test"}
    heads, rows = score_table.system_score_rows(scores)
    assert [row[heads.index("CIDEr")] for row in rows] == ["–", "–"]
    assert f"CIDEr {reason}" in score_table.unavailable_metrics(scores)
    with io.StringIO() as terminal:
        Console(file=terminal, width=80).print(score_table.terminal_score_table(scores))
        shown = terminal.getvalue()
    assert re.search(r"CIDEr +– +–", shown)
    assert "CIDEr undefined" in shown


def test_same_system_twice_does_not_differ():
    said = REFERENCES[1:] + REFERENCES[:1]
    scores = score(model=said, again=said)
    assert scores["again"]["model_minus_this"] == {"value": 0.0, "interval": [0.0, 0.0]}
    low, high = scores["model"]["clinical"]["intervals"]["micro_13"]
    assert low <= scores["model"]["clinical"]["micro_13"]["f1"] <= high
    assert score(model=said, again=said) == scores


def test_mention_tables_use_the_studies_own_labels():
    present = np.zeros((12, 14), bool)
    present[:6, LABELS.index("Pleural Effusion")] = True
    present[:, LABELS.index("Edema")] = True  # nobody is without: no table
    tables = mention_tables(present, ["Small effusion."] * 5 + ["No effusion."] * 6 + ["Small effusion."])
    assert set(tables) == {"Pleural Effusion"}
    assert tables["Pleural Effusion"]["odds_ratio"] == pytest.approx((5.5 / 1.5) ** 2)


def test_highlighted_texts():
    reference, generated = highlight_findings(
        "Small effusion. Cardiomegaly. No pneumothorax.", "Effusion. Rib fracture. Possible pneumonia."
    )
    assert reference.count('class="hit"') == generated.count('class="hit"') == 1
    assert '<mark class="miss" title="Cardiomegaly: only in the reference">Cardiomegaly</mark>' in reference
    assert '<mark class="extra" title="Fracture: only in the generated report">fracture</mark>' in generated
    assert '<mark class="unsure" title="Pneumonia: uncertain">pneumonia</mark>' in generated
    assert "pneumothorax<" not in reference


def test_a_finding_on_the_other_side_has_a_mark_of_its_own():
    reference, generated = highlight_findings("Left effusion. Cardiomegaly.", "Right effusion. Cardiomegaly.")
    mark = '<mark class="detail" title="Pleural Effusion: in both reports, with another side or kind of device">'
    assert reference.count(mark) == generated.count(mark) == 1
    assert reference.count('class="hit"') == generated.count('class="hit"') == 1
    _, generated = highlight_findings("Effusion.", "Right effusion.")
    assert 'class="hit"' in generated
    assert 'class="detail"' not in generated


def test_errors_of_a_report_by_hand():
    found = FindingErrors.of(
        "Small left effusion. Cardiomegaly. Right basilar atelectasis. No pneumothorax. Possible pneumonia.",
        "Right effusion. The heart is enlarged. Rib fracture. Pneumonia.",
    )
    assert found == FindingErrors(("Cardiomegaly",), ("Pleural Effusion",), ("Atelectasis",), ("Pneumonia", "Fracture"))
    assert found.count == 4
    assert found.verdict == ("1 of 3 findings found, 1 missed, 2 extra, 1 with another side or kind of device")
    assert FindingErrors.of("Clear lungs.", "").verdict == "no finding to find"
    assert FindingErrors.of("Clear lungs.", "") == FindingErrors((), (), (), ())
