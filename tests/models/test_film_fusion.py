"""Views of films, and attention over the films of a study, against hand-computed values."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from amrg.config import VisionConfig
from amrg.config_files import config_to_dict
from amrg.data.film_checks import VIEW_KINDS, view_kinds_of_films
from amrg.models.classifier import DiseaseClassifier, Stage1Output, mean_over_views

MEAN = VisionConfig(image_size=64, embed_dim=32, depths=(1, 1), query_dim=24, qformer_layers=1, qformer_heads=2)
BOTH = dataclasses.replace(MEAN, view_embeddings=True, film_fusion="attention")
VIEWS = (1, 3, 2)


def output(scores_MK: Tensor | None) -> Stage1Output:
    """An output of which only the scores of films matter."""
    nothing = torch.empty(0)
    tokens, queries, logits, pooled, fine, projected, film = [nothing] * 7
    return Stage1Output(tokens, queries, logits, pooled, fine, projected, film, scores_MK)


def build(config: VisionConfig) -> DiseaseClassifier:
    torch.manual_seed(0)
    return DiseaseClassifier(config, pretrained=False).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_weights_by_hand() -> None:
    """One study of two films: the second has weight 3/4 for the first label and 1/2 for the other."""
    out = output(torch.tensor([[0.0, 1.0], [math.log(3.0), 1.0]]))
    values_M = torch.tensor([[8.0, 8.0], [16.0, 16.0]])
    assert out.of_studies(values_M, (2,)).tolist() == [[pytest.approx(14.0), pytest.approx(12.0)]]
    tokens_MN = torch.tensor([[8.0, 0.0, 80.0], [16.0, 16.0, 0.0]])  # the mean weight over the labels is 5/8
    found = out.of_studies(tokens_MN, (2,), by_label=False)
    torch.testing.assert_close(found, torch.tensor([[13.0, 10.0, 30.0]]))


def test_without_scores_it_is_the_mean() -> None:
    values = torch.randn(6, 14, 5)
    assert torch.equal(output(None).of_studies(values, VIEWS), mean_over_views(values, VIEWS))
    even = output(torch.zeros(6, 14))
    torch.testing.assert_close(even.of_studies(values, VIEWS), mean_over_views(values, VIEWS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_study_of_one_film_is_that_film_bit_for_bit(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(6, 14, 5, generator=generator).to(dtype)
    out = output(30 * torch.randn(6, 14, generator=generator))
    for by_label in (True, False):
        found = out.of_studies(values, (1,) * 6, by_label)
        assert found.dtype == dtype
        assert torch.equal(found, values)


def test_films_of_other_studies_do_not_count() -> None:
    values, scores = torch.randn(6, 14, 5), torch.randn(6, 14)
    expected = output(scores).of_studies(values, VIEWS)
    values[[0, 4, 5]] = scores[[0, 4, 5]] = torch.nan
    found = output(scores).of_studies(values, VIEWS)
    assert torch.equal(found[1], expected[1])
    assert found[[0, 2]].isnan().all()


@pytest.mark.parametrize("by_label", [True, False])
def test_gradients_of_the_attention(by_label: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(6, 3, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    scores = torch.randn(6, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s, v: output(s).of_studies(v, VIEWS, by_label), (scores, values))


def test_views_by_name() -> None:
    names = ("PA", "LATERAL", "", "AP SUPINE", "LL", "XTABLE LATERAL", "FRONTAL", "LAO")
    found = [VIEW_KINDS[kind] for kind in view_kinds_of_films(names, len(names))]
    assert found == ["frontal", "lateral", "unknown", "frontal", "lateral", "lateral", "frontal", "unknown"]
    assert view_kinds_of_films((), 2) == (0, 0)
    assert view_kinds_of_films(("PA",), 2) == (1, 0)


def test_a_new_classifier_gives_what_it_gave_before(images: Tensor) -> None:
    """Embeddings and weights begin at zero, and draw nothing from the generator."""
    with torch.no_grad():
        before, after = build(MEAN)(images), build(BOTH)(images, kinds=[0, 1, 2, 1, 2, 0])
    for name in ("tokens_BND", "queries_BQD", "logits_BK", "projected_BHWD", "pooled_BD"):
        assert torch.equal(getattr(before, name), getattr(after, name))
    assert before.film_scores_BK is None
    assert after.film_scores_BK is not None
    assert not after.film_scores_BK.any()


def test_the_embedding_of_a_view_reaches_its_films_alone(images: Tensor) -> None:
    model = build(BOTH)
    with torch.no_grad():
        model.view_embeddings_VD[2] = torch.randn(24)
        without, lateral = model(images), model(images, kinds=[0, 1, 2, 1, 2, 0])
        changed = (lateral.queries_BQD - without.queries_BQD).abs().amax((1, 2)) > 1e-4
        assert changed.tolist() == [False, False, True, False, True, False]
        torch.testing.assert_close(
            lateral.tokens_BND[2] - without.tokens_BND[2], model.view_embeddings_VD[2].expand(4, -1)
        )
        # Regions have the film's mean taken off, and the training distance compares films: neither knows the view.
        assert torch.equal(lateral.projected_BHWD, without.projected_BHWD)
        assert torch.equal(lateral.pooled_BD, without.pooled_BD)


def test_in_training_some_views_are_unknown() -> None:
    model = build(BOTH)
    with torch.no_grad():
        model.view_embeddings_VD[1] = 1.0
        assert model._view_embeddings([1] * 500).all()
        known = float(model.train()._view_embeddings([1] * 500)[:, 0, 0].mean())
    assert 0.85 < known < 0.95


def test_every_new_weight_learns(images: Tensor) -> None:
    model = build(BOTH)
    out = model(images, kinds=[0, 1, 2, 1, 2, 0])
    out.of_studies(out.logits_BK, VIEWS).square().sum().backward()
    assert model.view_embeddings_VD.grad is not None
    assert model.view_embeddings_VD.grad.abs().sum(1).gt(0).all()
    assert model.film_weight_KD.grad is not None
    assert model.film_weight_KD.grad.abs().sum(1).gt(0).all()


def test_saved_and_loaded_it_knows_views_and_former_classifiers_load(tmp_path: Path, images: Tensor) -> None:
    model = build(BOTH)
    with torch.no_grad():
        model.view_embeddings_VD.normal_()
        model.film_weight_KD.normal_()
    model.save_pretrained(tmp_path / "new")
    loaded, kinds = DiseaseClassifier.from_pretrained(tmp_path / "new"), [1, 1, 2, 0, 1, 2]
    assert loaded.config.film_fusion == "attention"
    with torch.no_grad():
        found, expected = (one(images, kinds=kinds) for one in (loaded, model))
    for name in ("scores_BK", "queries_BQD"):
        fused = [one.of_studies(getattr(one, name), VIEWS) for one in (found, expected)]
        assert torch.equal(*fused)
    build(MEAN).save_pretrained(tmp_path / "old")
    assert not {"view_embeddings", "film_fusion"} & config_to_dict(MEAN).keys()
    assert DiseaseClassifier.from_pretrained(tmp_path / "old").config.film_fusion == "mean"
