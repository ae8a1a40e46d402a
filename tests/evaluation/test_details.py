"""Details of findings: every score by hand, and what no text or mask tells."""

import numpy as np
import pytest

from amrg.data.labels import FINDINGS, LABELS
from amrg.evaluation.details import (
    CONTRADICTING,
    MACRO,
    MICRO,
    RATIOS,
    DetailScores,
    detail_conflicts,
    finding_details_of,
    self_contradictions,
)
from amrg.evaluation.lesion_place import lesion_sides_of_mask, lesion_zones_of_mask
from amrg.evaluation.statistics import bootstrap_counts

LEFT, RIGHT = "Small left pleural effusion.", "Small right pleural effusion."
BOTH, BARE = "Small bilateral pleural effusions.", "Pleural effusion."

#: (reference, generated): exact, opposite, neither, open in the generated text, open in the reference, missed, extra.
PAIRS = [
    (LEFT, LEFT),
    (LEFT, RIGHT),
    (BOTH, LEFT),
    (LEFT, BARE),
    (BARE, LEFT),
    (LEFT, "No pleural effusion."),
    ("No pleural effusion.", LEFT),
]


def scored(pairs, masks=None):
    references, generated = zip(*pairs, strict=True)
    return DetailScores.of(references, generated, masks)


def values(pairs, masks=None):
    return {name: float(value[0]) for name, value in scored(pairs, masks).scores().items()}


def film(left=0, right=0, row=50):
    """A film of 100 × 100 with so many lesion pixels on the patient's left and right, in one row."""
    mask = np.zeros((100, 100), bool)
    mask[row, 50 : 50 + left] = True
    mask[row, 50 - right : 50] = True
    return mask


def test_sides_by_hand():
    found = values(PAIRS)
    assert found["side stated"] == pytest.approx(3 / 4)  # four references with a side that is answered by the finding
    assert found["side exact"] == pytest.approx(1 / 3)
    assert found["side opposite"] == pytest.approx(1 / 3)
    assert found["severity exact"] == 1
    assert np.isnan([found["zone exact"], found["device kind"], found["film side exact"]]).all()


def test_f1_with_details_turns_a_conflict_into_two_errors():
    scores = scored(PAIRS)
    k = LABELS.index("Pleural Effusion")
    plain = {"tp": 5, "fp": 1, "fn": 1}
    assert {n: int(getattr(scores.clinical, n)[:, k].sum()) for n in plain} == {"tp": 3, "fp": 3, "fn": 3}
    assert values(PAIRS)[MICRO] == values(PAIRS)[MACRO] == pytest.approx(0.5)
    assert detail_conflicts(LEFT, RIGHT) == detail_conflicts(BOTH, LEFT) == {"Pleural Effusion"}
    assert detail_conflicts(LEFT, BARE) == detail_conflicts(BARE, LEFT) == detail_conflicts(LEFT, LEFT) == frozenset()


def test_a_kind_of_device_conflicts():
    pacemaker, catheter = "Left-sided pacemaker.", "Left jugular central venous catheter."
    found = values([(pacemaker, pacemaker), (pacemaker, catheter)])
    assert found["device kind"] == 0.5
    assert found["side exact"] == 1
    assert found[MICRO] == pytest.approx(0.5)
    assert detail_conflicts(pacemaker, catheter) == {"Support Devices"}


def test_details_unite_over_sentences():
    text = "Left pleural effusion. There is also a small right pleural effusion."
    details = finding_details_of(text)["Pleural Effusion"]
    assert details.sides == {"left", "right"}
    assert details.values() == {("sides", "left"), ("sides", "right"), ("severities", "mild")}
    assert values([(BOTH, text)])["side exact"] == 1
    assert not finding_details_of("No effusion. Possible pneumonia.")


def test_unsupported_details_by_hand():
    found = values([(RIGHT, LEFT), (BARE, "No effusion."), ("Heart size is normal.", LEFT)])
    assert found["unsupported details"] == pytest.approx(3 / 4)  # left; left, mild: of two sides and two severities
    nodule = "{} nodule in the right upper lobe.".format
    found = values([(nodule("1.2 cm"), nodule("12 mm")), (nodule("1.2 cm"), nodule("2 cm"))])
    assert found["unsupported details"] == pytest.approx(1 / 6)
    assert found["zone exact"] == found["zone overlap"] == 1


def test_contradictions():
    assert self_contradictions("Small left pleural effusion. No pleural effusion.") == {"Pleural Effusion"}
    assert not self_contradictions("Small left pleural effusion. No right pleural effusion.")
    assert not self_contradictions("Small left pleural effusion. Lungs are clear. No pneumothorax.")
    assert self_contradictions("Left base opacity. The lungs are clear.") == {"Lung Opacity"}
    assert not self_contradictions("Left base opacity. The lungs are otherwise clear.")
    assert values([(LEFT, LEFT + " No effusion."), (LEFT, LEFT)])[CONTRADICTING] == 0.5


def test_stated_places_against_the_film():
    masks = [{"Pleural Effusion": film(left=10)}, {"Pleural Effusion": film(right=10)}, {}]
    found = values([(BARE, LEFT)] * 3, masks)
    assert (found["film side exact"], found["film side opposite"]) == (0.5, 0.5)
    assert values([(BARE, LEFT)], [{"Pleural Effusion": film(10, 10)}])["film side exact"] == 0
    empty = {"Pleural Effusion": np.zeros((4, 4), bool)}
    assert np.isnan(values([(BARE, LEFT), (LEFT, BARE)], [empty, masks[0]])["film side exact"])
    upper = "Nodule in the left upper lobe."
    found = values([(upper, upper)] * 2, [{"Lung Lesion": film(9, row=20)}, {"Lung Lesion": film(9, row=70)}])
    assert (found["film zone exact"], found["film zone opposite"]) == (0.5, 0.5)


def test_sides_and_zones_of_a_mask():
    assert lesion_sides_of_mask(film(left=80 // 2, right=9)) == {"left"}
    assert lesion_sides_of_mask(film(left=40, right=10)) == {"left", "right"}  # 20 % on the right half
    assert lesion_sides_of_mask(np.ones((3, 3), bool)) == {"left", "right"}
    assert [lesion_zones_of_mask(film(9, row=row)) for row in (10, 40, 60, 90)] == [
        {"upper"},
        {"upper", "middle", "lower"},
        {"middle", "lower"},
        {"lower"},
    ]
    nothing = np.zeros((3, 3), bool)
    assert lesion_sides_of_mask(nothing) == lesion_zones_of_mask(nothing) == frozenset()


def test_weights_repeat_studies():
    masks = [{"Pleural Effusion": film(left=10)}] * len(PAIRS)
    times = np.array([3, 1, 2, 1, 4, 1, 2])
    repeated = [pair for pair, n in zip(PAIRS, times, strict=True) for _ in range(n)]
    expected = values(repeated, masks * 2)
    found = scored(PAIRS, masks).scores(times[None].astype(float))
    assert {n: float(v[0]) for n, v in found.items()} == pytest.approx(expected, nan_ok=True)
    none = scored(PAIRS, masks).scores(np.array([[0.0, 0, 0, 0, 0, 1, 0]]))
    assert np.isnan(none["side exact"]).all()


def test_summary_is_json_with_cases_and_intervals():
    weights = bootstrap_counts([f"p{i}" for i in range(7)], 200, 0)
    found = scored(PAIRS).summary(weights)
    assert set(found) == {MICRO, MACRO, CONTRADICTING, *RATIOS}
    assert found["side exact"]["cases"] == 3
    low, high = found["side exact"]["interval"]
    assert 0 <= low < found["side exact"]["value"] < high <= 1
    assert found["zone exact"] == {"value": None, "interval": None, "cases": 0}
    silent = scored([(LEFT, "")]).summary(np.ones((5, 1)))
    assert silent[MICRO]["value"] == 0
    assert silent["unsupported details"]["value"] is None


def test_per_finding_and_stacked():
    one = scored(PAIRS)
    table = one.per_finding()
    assert list(table) == ["Pleural Effusion"]
    assert (table["Pleural Effusion"]["sides both"], table["Pleural Effusion"]["sides exact"]) == (3, 1)
    other = scored([(LEFT, LEFT)])
    both, expected = one.concat(other).scores(), values([*PAIRS, (LEFT, LEFT)])
    assert {n: float(v[0]) for n, v in both.items()} == pytest.approx(expected, nan_ok=True)
    assert one.counts["sides both"].shape == (7, len(FINDINGS))
