"""The distance from the training films: against scipy, its threshold by hand, and what it must tell apart."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis

from amrg.data.labels import FINDINGS
from amrg.errors import UserError
from amrg.models.training_distance import FALSE_ALARM_RATE, FILE, TrainingDistance
from amrg.models.vision_output import VisionOutput
from tests.models.vision_outputs import sight_of

D = 6


def vision(film_BD: torch.Tensor) -> VisionOutput:
    return sight_of(*(dict.fromkeys(FINDINGS, 0.0) for _ in film_BD))._replace(film_BD=film_BD)


def samples(count: int, seed: int, width: int = D) -> torch.Tensor:
    """Correlated features, float32."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=torch.Generator().manual_seed(99))
    return torch.randn(count, width, generator=generator) @ mix + 3.0


def distances(fitted: TrainingDistance, film_BD: torch.Tensor) -> list[float]:
    return [record["training_distance"] for record in fitted.records(vision(film_BD))]


def test_it_is_the_mahalanobis_distance_of_the_shrunk_covariance() -> None:
    train, fresh = samples(50, 0), samples(7, 1)
    fitted = TrainingDistance.fit(train, samples(20, 2))
    covariance = np.cov(train.double().numpy(), rowvar=False, bias=True)
    shrunk = 0.99 * covariance + 0.01 * np.trace(covariance) / D * np.eye(D)
    inverse, mean = np.linalg.inv(shrunk), train.double().mean(0).numpy()
    expected = [mahalanobis(row, mean, inverse) for row in fresh.double().numpy()]
    assert distances(fitted, fresh) == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize(("count", "place"), [(1, 0), (3, 2), (49, 48), (100, 98), (200, 196)])
def test_the_threshold_is_the_conformal_quantile(count: int, place: int) -> None:
    """⌈(M + 1) · 0.98⌉, counted from 1, but at most M."""
    validation = samples(count, 3)
    fitted = TrainingDistance.fit(samples(80, 0), validation)
    assert FALSE_ALARM_RATE == 0.02
    assert round(fitted.threshold, 3) == sorted(distances(fitted, validation))[place]


def test_few_films_like_the_training_films_are_flagged_and_foreign_ones_are() -> None:
    fitted = TrainingDistance.fit(samples(2000, 0), samples(1000, 1))
    flags = [record["unlike_training"] for record in fitted.records(vision(samples(5000, 2)))]
    assert 0.01 < np.mean(flags) < 0.03
    foreign = samples(20, 3) + torch.linalg.eigh(torch.cov(samples(2000, 0).T)).eigenvectors[:, 0] * 5
    assert all(record["unlike_training"] for record in fitted.records(vision(foreign)))
    assert {record["training_distance_threshold"] for record in fitted.records(vision(foreign))} == {
        round(fitted.threshold, 3)
    }


@pytest.mark.parametrize("train", [samples(3, 0), samples(1, 0), torch.ones(5, D)])
def test_fewer_films_than_dimensions_and_films_all_alike_give_finite_distances(train: torch.Tensor) -> None:
    fitted = TrainingDistance.fit(train, samples(4, 1))
    found = torch.tensor(distances(fitted, samples(4, 2)))
    assert found.isfinite().all()
    assert (found > 0).all()


def test_bfloat16_features_are_taken_as_they_are() -> None:
    fitted = TrainingDistance.fit(samples(50, 0).bfloat16(), samples(20, 1).bfloat16())
    fresh = samples(5, 2).bfloat16()
    assert distances(fitted, fresh) == distances(fitted, fresh.double())


def test_saved_and_loaded(tmp_path: Path) -> None:
    fitted = TrainingDistance.fit(samples(50, 0), samples(20, 1))
    fitted.save(tmp_path / "folder")
    loaded = TrainingDistance.load(tmp_path / "folder")
    assert loaded is not None
    assert loaded.records(vision(samples(9, 2))) == fitted.records(vision(samples(9, 2)))
    assert loaded.threshold == fitted.threshold


def test_a_former_version_has_none_and_a_damaged_file_is_one_clear_line(tmp_path: Path) -> None:
    assert TrainingDistance.load(tmp_path) is None
    (tmp_path / FILE).write_bytes(b"\0" * 20)
    with pytest.raises(UserError, match="is unreadable: run `amrg stage2` again"):
        TrainingDistance.load(tmp_path)
