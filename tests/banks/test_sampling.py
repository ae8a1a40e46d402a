from collections import Counter

import numpy as np
import pytest

from amrg.banks.sampling import sample_bank_rows

WAYS = ("proportional", "uniform", "stratified")


def population(seed=0, rows=2000):
    """Findings with several labels each, some with none, one label rare."""
    rng = np.random.default_rng(seed)
    shares = {"common": 0.6, "middle": 0.2, "rare": 0.01}
    return [[name for name, share in shares.items() if rng.random() < share] for _ in range(rows)]


def count(findings, chosen):
    return Counter(name for number in chosen for name in findings[number])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rows", [1, 2, 5, 100, 1999, 2000, 6000])
def test_exactly_the_rows_asked_for_each_once_and_seeded(way, rows):
    findings = population()
    chosen = sample_bank_rows(findings, rows, way, seed=3)
    assert chosen.dtype == np.int64
    assert len(chosen) == min(rows, 2000)
    assert (np.diff(chosen) > 0).all()
    np.testing.assert_array_equal(chosen, sample_bank_rows(findings, rows, way, seed=3))
    if rows == 100:
        assert (chosen != sample_bank_rows(findings, rows, way, seed=4)).any()


def test_no_candidates():
    assert len(sample_bank_rows([], 10, "uniform", 0)) == 0


def test_single_labels_get_their_exact_allotment():
    findings = [["a"]] * 700 + [["b"]] * 200 + [["c"]] * 90 + [[]] * 10
    parts = {
        way: np.searchsorted(np.array([700, 900, 990]), sample_bank_rows(findings, 100, way, 0), "right")
        for way in WAYS
    }
    sizes = {way: np.bincount(part, minlength=4).tolist() for way, part in parts.items()}
    assert sizes["proportional"] == [70, 20, 9, 1]
    assert sizes["uniform"] == [30, 30, 30, 10]  # ten have no finding; what they cannot fill is shared equally
    assert sizes["stratified"] == [68, 20, 10, 2]  # one of each + 96 × (699, 199, 89, 9) / 996


def test_uniform_raises_rare_findings_and_proportional_keeps_frequencies():
    findings = population()
    everything = count(findings, range(2000))
    share = {way: count(findings, sample_bank_rows(findings, 400, way, 1)) for way in WAYS}
    assert share["uniform"]["rare"] == everything["rare"]
    expected = 400 * everything["rare"] / 2000
    assert abs(share["proportional"]["rare"] - expected) <= 3
    assert abs(share["stratified"]["rare"] - expected) <= 3
    assert share["uniform"]["middle"] > share["proportional"]["middle"]


def test_stratified_keeps_every_combination_in_proportion():
    findings = population()
    sets = Counter(tuple(names) for names in findings)
    drawn = Counter(tuple(findings[number]) for number in sample_bank_rows(findings, 200, "stratified", 0))
    assert drawn.keys() == sets.keys()
    for names, size in sets.items():
        assert abs(drawn[names] - 1 - (200 - len(sets)) * (size - 1) / (2000 - len(sets))) < 1


def test_every_candidate_has_the_same_chance_within_its_class():
    findings = [["a"]] * 20 + [["b"]] * 5
    hits = Counter(
        number for seed in range(2000) for number in sample_bank_rows(findings, 5, "proportional", seed).tolist()
    )
    # 4 of 20 and 1 of 5: each candidate in 400 of 2,000 draws, binomial deviation 18
    assert all(abs(hits[number] - 400) < 90 for number in range(25))
