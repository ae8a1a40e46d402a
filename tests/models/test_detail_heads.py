"""Details: values read from statements, heads against scikit-learn and known probabilities, distributions by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from amrg.data.labels import FINDINGS, NEGATIVE, POSITIVE, UNCERTAIN
from amrg.data.text.statements import Statement
from amrg.errors import UserError
from amrg.models.detail_heads import (
    FOLDS,
    NAMES,
    SPREADS,
    WARMTH,
    WEIGHTS,
    AttributeHeads,
    Details,
    _folds,
    _Stated,
    combine_distributions,
    detail_values,
    report_details,
    value_support,
)

LESION = FINDINGS.index("Lung Lesion")


def said(finding: str, attribute: str, value: str | None) -> Details:
    return {} if value is None else {finding: {attribute: value}}


def made_up(studies: int, width: int = 3, seed: int = 0) -> tuple[Tensor, list[Details], list[str], Tensor]:
    """Features, reports that state the side of a lesion with known probabilities, patients, those probabilities."""
    generator = torch.Generator().manual_seed(seed)
    features_NKF = torch.randn(studies, len(FINDINGS), width, generator=generator)
    logit_N = 1.5 * features_NKF[:, LESION, 0].double() - 0.5
    left_N = torch.rand(studies, generator=generator, dtype=torch.float64) < logit_N.sigmoid()
    reports = [said("Lung Lesion", "side", "left" if left else "right") for left in left_N.tolist()]
    return features_NKF, reports, [f"p{n // 2}" for n in range(studies)], logit_N.sigmoid()


def left(heads: AttributeHeads, features_NKF: Tensor) -> Tensor:
    return torch.tensor([study["Lung Lesion"]["side"]["left"] for study in heads.predict(features_NKF)])


def test_values_are_the_union_of_the_positive_statements() -> None:
    found = [
        Statement("Lung Opacity", POSITIVE, frozenset({"right"}), frozenset({"lower"}), "mild"),
        Statement("Lung Opacity", POSITIVE, frozenset({"left"}), frozenset({"middle"})),
        Statement("Lung Opacity", NEGATIVE, zones=frozenset({"upper"}), severity="severe"),
        Statement("Lung Opacity", UNCERTAIN, zones=frozenset({"upper"})),
        Statement("Support Devices", POSITIVE, device="port"),
        Statement("Support Devices", POSITIVE, device="central line"),
    ]
    assert detail_values(found, "Lung Opacity") == {"side": "left+right", "zone": "lower+middle", "severity": "mild"}
    assert detail_values(found, "Support Devices") == {"device": "central line+port"}
    assert detail_values(found, "Edema") == {}


def test_details_of_a_report() -> None:
    text = "Small left pleural effusion. Left chest port. No right pneumothorax. The lungs are clear."
    assert report_details(text) == {
        "Pleural Effusion": {"side": "left", "severity": "mild"},
        "Support Devices": {"side": "left", "device": "port"},
    }


def test_combination_by_hand() -> None:
    combined = combine_distributions([{"left": 0.9, "right": 0.1}, None, {"left": 0.5, "left+right": 0.5}], floor=0.1)
    weights = {"left": 1.0 * 0.6, "right": 0.2 * 0.1, "left+right": 0.1 * 0.6}
    assert combined == pytest.approx({v: w / 0.68 for v, w in weights.items()})
    assert combine_distributions([None, None]) is None
    assert combine_distributions([]) is None


def test_a_certain_source_does_not_decide_alone() -> None:
    certain, others = {"left": 1.0}, {"left": 0.01, "right": 0.99}
    one, two = combine_distributions([certain, others]), combine_distributions([certain, others, others])
    assert one is not None
    assert two is not None
    assert one["left"] > 0.5 > two["left"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [("left", 0.5 + 0.5 * 0.2), ("left+right", 0.2), ("right", 0.3 + 0.5 * 0.2), ("upper", 0.0)],
)
def test_support_of_a_side(value: str, expected: float) -> None:
    assert value_support(value, {"left": 0.5, "right": 0.3, "left+right": 0.2}) == pytest.approx(expected)
    assert value_support(value, None) is None


def test_a_word_inside_another_is_no_part_of_a_set() -> None:
    assert value_support("line", {"central line": 0.6, "central line+port": 0.4}) == 0.0
    assert value_support("central line", {"central line": 0.6, "central line+port": 0.4}) == pytest.approx(0.8)


def test_the_regression_is_the_one_of_scikit_learn() -> None:
    """Of so many studies that the one that is made up does not count."""
    rng = np.random.default_rng(0)
    x = rng.normal(3, [0.1, 1, 10, 1, 1], (20_000, 5)).clip([2.8, 1, -17, 1, 1], [3.2, 5, 23, 5, 5])
    scores = (x - 3) / [0.1, 1, 10, 1, 1] @ rng.normal(0, 1, (5, 3)) + rng.gumbel(size=(20_000, 3))
    y, spread = scores.argmax(1), 0.05
    every = torch.ones(len(y), dtype=torch.bool)
    stated = _Stated(("a", "b", "c"), torch.tensor(x), torch.tensor(y), torch.zeros(len(y)))
    ours = stated.fit(every, spread).logits(torch.tensor(x)).softmax(1)
    standard = (x - x.mean(0)) / x.std(0)
    theirs = LogisticRegression(C=spread**2 / 5, max_iter=1000, tol=1e-8).fit(standard, y).predict_proba(standard)
    np.testing.assert_allclose(ours.numpy(), theirs, atol=2e-4)


def test_temperature_against_a_scalar_search() -> None:
    rng = np.random.default_rng(1)
    logits, usual = rng.normal(0, 3, (60, 4)), np.log([[0.4, 0.3, 0.2, 0.1]])
    y = (logits + 3 * rng.gumbel(size=logits.shape)).argmax(1)

    def surprise(log_t: float) -> float:
        z = usual + (logits - usual) / math.exp(log_t)
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        return float(-np.log(p[np.arange(60), y]).sum() + 0.5 * (log_t / WARMTH) ** 2)

    stated = _Stated(tuple("abcd"), torch.zeros(60, 1), torch.tensor(y), torch.zeros(60))
    found = stated.temperature(torch.tensor(logits), torch.tensor(usual).expand(60, 4))
    expected = math.exp(minimize_scalar(surprise, bounds=(-3, 3), method="bounded", options={"xatol": 1e-8}).x)
    assert found == pytest.approx(expected, abs=1e-4)
    assert found > 1.5


def test_held_out_logits_know_no_study_of_the_patient() -> None:
    features_NKF, reports, groups, _ = made_up(40)
    y_M = torch.tensor([report["Lung Lesion"]["side"] == "right" for report in reports]).long()
    stated = _Stated(("left", "right"), features_NKF[:, LESION].double(), y_M, _folds(groups))
    before, _ = stated.held_out(1.0)
    other = _Stated(stated.values, stated.x_MF, y_M.clone(), stated.fold_M)
    other.y_M[:2] = 1 - other.y_M[:2]  # the first patient says the opposite
    after, _ = other.held_out(1.0)
    torch.testing.assert_close(after[:2], before[:2])
    assert not torch.allclose(after[2:], before[2:])
    assert stated.fold_M[::2].equal(stated.fold_M[1::2])
    assert stated.fold_M.bincount().tolist() == [8] * FOLDS


def test_predictions_are_calibrated() -> None:
    features_NKF, reports, groups, truth_N = made_up(3000)
    heads = AttributeHeads.fit(features_NKF[:1500], reports[:1500], groups[:1500])
    p_N = left(heads, features_NKF[1500:])
    assert (p_N - truth_N[1500:]).abs().mean() < 0.03
    assert set(heads.heads) == {("Lung Lesion", "side")}


def test_more_features_than_studies_stay_near_the_frequencies() -> None:
    """Twelve studies whose features say nothing, though they tell all twelve apart."""
    features_NKF, _, _, _ = made_up(212, width=256, seed=3)
    reports = [said("Lung Lesion", "side", "left" if n % 4 == 0 else "right") for n in range(12)]
    heads = AttributeHeads.fit(features_NKF[:12], reports, [f"p{n}" for n in range(12)])
    p_N = left(heads, features_NKF[12:])
    assert heads.spread == SPREADS[0]
    assert p_N.mean() == pytest.approx(0.25, abs=0.05)
    assert 0.1 < p_N.min() < p_N.max() < 0.5


def test_an_unheard_of_film_is_no_more_certain_than_a_far_one() -> None:
    features_NKF, reports, groups, _ = made_up(200)
    heads = AttributeHeads.fit(features_NKF, reports, groups)
    far, farther = torch.zeros(2, 1, len(FINDINGS), 3)
    far[:], farther[:] = 10.0, 1e6
    assert left(heads, far) == left(heads, farther)


def test_what_is_too_seldom_is_not_learned() -> None:
    features_NKF = torch.randn(20, len(FINDINGS), 4, generator=torch.Generator().manual_seed(0))
    groups = [f"p{n}" for n in range(20)]

    def fit(values: list[str | None], least: int = 8) -> AttributeHeads:
        values = values + [None] * (20 - len(values))
        return AttributeHeads.fit(features_NKF, [said("Support Devices", "device", v) for v in values], groups, least)

    assert not fit(["port"] * 7).heads
    assert not fit(["port"] * 7 + ["picc"] * 2).heads
    assert fit([]).predict(features_NKF[:2]) == [{}, {}]
    constant = fit(["port"] * 8 + ["picc"] * 2)
    assert constant.predict(features_NKF[:1]) == [{"Support Devices": {"device": {"port": 1.0}}}]
    assert fit(["port"] * 4 + ["picc"] * 3).heads == {}
    assert fit(["port"] * 4 + ["picc"] * 3, least=7).heads["Support Devices", "device"].values == ("picc", "port")


def test_a_finding_has_the_features_of_its_own_region() -> None:
    features_NKF, reports, groups, _ = made_up(100)
    heads = AttributeHeads.fit(features_NKF, reports, groups)
    other = features_NKF.clone()
    other[:, :LESION], other[:, LESION + 1 :] = 7.0, -7.0
    assert heads.predict(other) == heads.predict(features_NKF)
    assert heads.predict(features_NKF[:5]) == heads.predict(features_NKF)[:5]


def test_the_studies_of_one_patient_alone_and_a_feature_that_never_varies() -> None:
    features_NKF, reports, _, _ = made_up(30)
    features_NKF[..., 2] = 5.0
    heads = AttributeHeads.fit(features_NKF, reports, ["p"] * 30)
    assert heads.heads["Lung Lesion", "side"].temperature == 1.0
    assert left(heads, features_NKF).isfinite().all()


def test_as_many_reports_and_patients_as_films() -> None:
    features_NKF, reports, groups, _ = made_up(30)
    with pytest.raises(ValueError, match="30 features, 29 reports, 30 groups"):
        AttributeHeads.fit(features_NKF, reports[1:], groups)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, AttributeHeads, Tensor]:
    features_NKF, reports, groups, _ = made_up(60)
    for n in range(60):
        reports[n] |= said("Support Devices", "device", ["port", "picc", "pacemaker"][n % 3])
    heads = AttributeHeads.fit(features_NKF, reports, groups)
    heads.save(tmp_path)
    return tmp_path, heads, features_NKF


def test_saved_heads_predict_the_same_to_the_bit(saved: tuple[Path, AttributeHeads, Tensor]) -> None:
    folder, heads, features_NKF = saved
    loaded = AttributeHeads.load(folder)
    assert loaded.predict(features_NKF) == heads.predict(features_NKF)
    assert loaded.spread == heads.spread
    assert {path.name for path in folder.iterdir()} == {NAMES, WEIGHTS}
    predicted = loaded.predict(features_NKF.bfloat16())[0]["Support Devices"]["device"]
    assert list(predicted) == ["pacemaker", "picc", "port"]
    assert sum(predicted.values()) == pytest.approx(1.0, abs=1e-12)


def test_fitting_again_gives_the_same_files(saved: tuple[Path, AttributeHeads, Tensor]) -> None:
    folder, _, _ = saved
    before = [(folder / name).read_bytes() for name in (NAMES, WEIGHTS)]
    features_NKF, reports, groups, _ = made_up(60)
    for n in range(60):
        reports[n] |= said("Support Devices", "device", ["port", "picc", "pacemaker"][n % 3])
    AttributeHeads.fit(features_NKF, reports, groups).save(folder)
    assert [(folder / name).read_bytes() for name in (NAMES, WEIGHTS)] == before


def test_no_heads_are_saved_too(tmp_path: Path) -> None:
    AttributeHeads({}, 1.0).save(tmp_path)
    assert AttributeHeads.load(tmp_path) == AttributeHeads({}, 1.0)


def _cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-8])


def _other_values(folder: Path) -> None:
    content = json.loads((folder / NAMES).read_text())
    content["heads"][0]["values"].append("both")
    (folder / NAMES).write_text(json.dumps(content))


def _one_head_less(folder: Path) -> None:
    content = json.loads((folder / NAMES).read_text())
    content["heads"].pop()
    (folder / NAMES).write_text(json.dumps(content))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / NAMES).unlink(),
        lambda folder: (folder / WEIGHTS).unlink(),
        lambda folder: (folder / NAMES).write_text("[]"),
        _cut,
        _other_values,
        _one_head_less,
    ],
)
def test_damaged_files_are_named(damage, saved: tuple[Path, AttributeHeads, Tensor]) -> None:  # type: ignore[no-untyped-def]
    folder, _, _ = saved
    damage(folder)
    with pytest.raises(UserError, match=r"details\.json .* missing or damaged: run `amrg stage2` again"):
        AttributeHeads.load(folder)
