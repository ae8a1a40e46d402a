"""Length, loops and copying, by hand."""

from pathlib import Path

import pytest
import torch

from amrg.banks.bank import REPORTS
from amrg.banks.writer import BankWriter
from amrg.evaluation.reports import GeneratedReport
from amrg.evaluation.text_statistics import num_distinct_retrievals, report_copy_rates, retrieved_texts, text_statistics


def test_length_and_repetition() -> None:
    stock = "No acute disease."
    texts = [stock, "NO acute disease", "The heart is large. The heart is large.", "", "a b c d " * 3]
    assert text_statistics([*texts, "Stable."])["compares"] == pytest.approx(1 / 6)
    found = text_statistics(texts)
    assert found["words_mean"] == pytest.approx((3 + 3 + 8 + 0 + 12) / 5)
    assert (found["words_p10"], found["words_median"]) == (pytest.approx(1.2), 3)
    assert found["different"] == 0.8  # two say the same, whatever case and full stop
    assert found["generic"] == 0.4
    assert found["loops"] == 0.2
    assert found["repeated_sentences"] == 0.2
    assert found["cut_off"] == 0.4
    assert found["empty"] == 0.2
    assert found["distinct_1"] == pytest.approx(11 / 26)
    assert text_statistics([""])["distinct_4"] == 0


def test_copying() -> None:
    said = "a b c d e f g h i"  # 6 runs of 4 words, 2 of 8
    other = "p q r s t u v w x"
    train = ["z a b c d z", other, "The report."]
    found = report_copy_rates(
        [said, "the REPORT", "x y z w"],
        [["a b c d e. f g h i", "e f g h"], ["The report."], []],
        train,
        ["one", "two", "three"],
    )
    assert found["retrieved_4"] == 1.0  # the second is too short for a run, the third retrieved nothing
    assert found["retrieved_8"] == 1.0  # punctuation is no word
    assert found["others_4"] == 0.0
    assert found["train_4"] == pytest.approx((1 / 6 + 0) / 2)
    assert found["train_8"] == 0.0
    assert found["whole_retrieved"] == 1.0
    assert found["whole_train"] == pytest.approx(1 / 3)


def test_the_control_is_another_patient() -> None:
    rows = [["a b c d"], ["a b c d"], ["k l m n"]]
    same, other = (report_copy_rates(["a b c d"] * 3, rows, [], groups)["others_4"] for groups in ("ppq", "pqr"))
    assert same == pytest.approx(1 / 3)  # of one patient's two studies both look at the other patient's row
    assert other == pytest.approx(2 / 3)
    nothing = report_copy_rates(["a b c d"], [[]], ["x"], ["p"])
    assert nothing["retrieved_4"] is None
    assert nothing["whole_retrieved"] is None


def test_retrieved_texts(tmp_path: Path) -> None:
    origin = {"key": "k", "group": "g", "split": "train", "source": "report", "findings": []}
    with BankWriter(tmp_path / REPORTS, 4) as writer:
        writer.add(torch.randn(3, 4), [origin | {"text": f"Text {i}."} for i in range(3)])
    rows = [{"row": i, "weight": 0.1} for i in (2, 0, 7)]
    reports = [
        GeneratedReport("a", "", {"report": rows}),
        GeneratedReport("b", "", {"visual": rows}),
        GeneratedReport("c", "", recalled=[1]),
    ]
    assert num_distinct_retrievals(reports) == {"report": 2, "visual": 2}  # one set each, and none
    assert num_distinct_retrievals(
        [GeneratedReport("a", "", {"report": rows}), GeneratedReport("b", "", {"report": rows[::-1]})]
    ) == {"report": 1}
    assert retrieved_texts(tmp_path, reports) == [["Text 2.", "Text 0."], [], ["Text 1."]]
