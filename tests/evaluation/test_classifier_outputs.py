"""Stage 1 over a split where some studies have two films."""

import numpy as np
import torch

from amrg.data.image_ops import letterbox_to_square
from amrg.data.stream import iter_split_samples
from amrg.evaluation.classifier_outputs import classify_test_split
from amrg.models.cam import activation_maps
from amrg.models.classifier import DiseaseClassifier
from amrg.models.vision import films_to_tensor


def test_a_study_is_judged_by_all_films_and_mapped_on_the_first(artefacts):
    model = DiseaseClassifier.from_pretrained(artefacts.stage1 / "model")
    size = model.config.image_size
    seen = classify_test_split(model, artefacts.data, "test", "gradcam", "float32")
    samples = list(iter_split_samples(artefacts.data, "test"))
    assert sorted(len(sample.views) for sample in samples) == [1, 1, 1, 2, 2]
    for i, sample in enumerate(samples):
        films = [letterbox_to_square(film, size) for film in sample.views]
        with torch.no_grad():
            outs = [model(films_to_tensor([film], size)) for film in films]
        logits = torch.stack([out.scores_BK[0] for out in outs]).mean(0)
        pooled = torch.stack([out.pooled_BD[0] for out in outs]).mean(0)
        maps = activation_maps(model.cam_head, outs[0].fine_BHWC, "gradcam")[0]
        np.testing.assert_array_equal(seen.films[i], films[0])
        np.testing.assert_allclose(seen.probabilities_SK[i], logits.sigmoid().numpy(), rtol=1e-4)
        np.testing.assert_allclose(seen.pooled_SD[i], pooled.numpy(), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(seen.maps_SKhw[i], maps.numpy(), rtol=1e-3, atol=1e-5)
