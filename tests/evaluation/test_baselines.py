"""Baselines: the reports a model must beat."""

import numpy as np
import pytest

from amrg.errors import UserError
from amrg.evaluation.baselines import best_constant, draw_train_studies, most_frequent_normal, nearest_neighbor


def test_most_frequent_normal_report() -> None:
    normal, other = "Lungs are clear. Heart size is normal.", "No acute disease."
    assert most_frequent_normal(["Large effusion."] * 9 + [other, normal, normal]) == normal


def test_unique_texts_fall_back_to_the_most_frequent_sentences() -> None:
    reports = ["Lungs are clear. Bones are intact.", "Lungs are clear. No effusion.", "No effusion.", "No mass seen."]
    assert most_frequent_normal(reports) in ("Lungs are clear. No effusion.", "No effusion.")
    assert most_frequent_normal(reports) == most_frequent_normal(reports[::-1])


def test_no_normal_report() -> None:
    with pytest.raises(UserError, match="no train report is normal"):
        most_frequent_normal(["Large effusion."])


def test_nearest_neighbor_is_by_angle_and_another_patient() -> None:
    train = np.array([[10.0, 0.0], [0.0, 0.1], [1.0, 1.0]])
    query = np.array([[0.0, 5.0], [1.0, 0.1]])
    assert nearest_neighbor(query, train, ["x", "y"], ["a", "b", "c"]).tolist() == [1, 0]
    assert nearest_neighbor(query, train, ["b", "a"], ["a", "b", "c"]).tolist() == [2, 2]


def test_random_is_seeded() -> None:
    assert (draw_train_studies(50, 7, 1) == draw_train_studies(50, 7, 1)).all()
    assert set(draw_train_studies(200, 7, 1)) == set(range(7))


def test_best_constant_is_the_one_with_the_best_micro_f1() -> None:
    effusion, heart, both = "Small effusion.", "Cardiomegaly.", "Effusion. Cardiomegaly."
    val = [effusion] * 3 + [heart] * 2 + ["Lungs are clear."] * 3
    # on 8 studies with 5 findings: effusion 2·3/(8+5) = 0.46, heart 2·2/13 = 0.31, both 2·5/(16+5) = 0.48, normal 0
    assert best_constant([effusion, heart, both, "Lungs are clear.", "Lungs are clear."], val) == both
    assert best_constant([effusion, heart, "Lungs are clear."], val) == effusion
    assert best_constant(["Large effusion.", effusion, effusion], val) == effusion
    assert best_constant(["No effusion.", "Clear.", "Clear."], ["Clear."]) == "Clear."
