import pytest
import torch

from amrg.config import VisionConfig
from amrg.errors import UserError
from amrg.models.cam import METHODS, activation_maps, activation_maps_of_images, activation_scales
from amrg.models.classifier import DiseaseClassifier, LogSumExpHead


@pytest.fixture(scope="module")
def head():
    torch.manual_seed(0)
    return LogSumExpHead(6)


@pytest.fixture(scope="module")
def fine_BHWC():
    return torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(1))


def by_hand(head, fine_HWC, k, method):
    """One film, one class, the formulas of the papers written out with loops."""
    features = fine_HWC.clone().requires_grad_()
    head(features[None])[0, k].backward()
    gradient, height, width, channels = features.grad, *fine_HWC.shape
    result = torch.zeros(height, width)
    for c in range(channels):
        a, g = fine_HWC[..., c], gradient[..., c]
        if method == "gradcam":
            weight = g.mean()
        elif method == "gradcam++":
            weight = torch.tensor(0.0)
            for y in range(height):
                for x in range(width):
                    alpha = g[y, x] ** 2 / (2 * g[y, x] ** 2 + (a * g[y, x] ** 3).sum())
                    weight += alpha * g[y, x].clamp(min=0)
        else:
            weight = g.clamp(min=0) if method == "layercam" else g
        result += weight * a
    return result.clamp(min=0)


@pytest.mark.parametrize("method", METHODS)
def test_one_pass_gives_what_each_film_and_class_gives_alone(head, fine_BHWC, method):
    maps_BKHW = activation_maps(head, fine_BHWC, method)
    assert maps_BKHW.shape == (2, 14, 3, 5)
    assert not maps_BKHW.requires_grad
    for b in range(2):
        for k in range(14):
            expected = by_hand(head, fine_BHWC[b], k, method)
            torch.testing.assert_close(maps_BKHW[b, k], expected, rtol=1e-4, atol=1e-6)
    assert (maps_BKHW >= 0).all()
    assert maps_BKHW.any()


def test_methods_differ(head, fine_BHWC):
    maps = [activation_maps(head, fine_BHWC, method) for method in METHODS]
    assert all(not torch.allclose(a, b) for i, a in enumerate(maps) for b in maps[:i])


def test_gradcam_of_this_head_is_its_linear_score(head, fine_BHWC):
    expected = torch.einsum("bhwc,kc->bkhw", fine_BHWC, head.linear.weight).clamp(min=0) / 15
    torch.testing.assert_close(activation_maps(head, fine_BHWC, "gradcam"), expected, rtol=1e-4, atol=1e-6)


def test_maps_are_absolute(head, fine_BHWC):
    """A film with half the evidence has a map of half the size; nothing is stretched to 1."""
    whole, half = (activation_maps(head, fine_BHWC * scale, "gradcam") for scale in (1.0, 0.5))
    torch.testing.assert_close(half, whole * 0.5, rtol=1e-5, atol=1e-6)
    assert activation_scales([[1.0, 8.0, 2.0], [], [0.0]]) == [2.0, 1.0, 1.0]


def test_from_images(head):
    torch.manual_seed(0)
    config = VisionConfig(image_size=64, embed_dim=32, depths=(1, 1), query_dim=24, qformer_layers=1, qformer_heads=2)
    model = DiseaseClassifier(config, pretrained=False).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        fine_BHWC = model(images).fine_BHWC
    maps = activation_maps_of_images(model, images, "layercam")
    assert maps.shape == (2, 14, 4, 4)
    assert torch.equal(maps, activation_maps(model.cam_head, fine_BHWC, "layercam"))
    assert all(p.grad is None for p in model.parameters())


def test_unknown_method(head, fine_BHWC):
    with pytest.raises(UserError, match=r"no activation map `gradcam\+\+\+`; known: gradcam, "):
        activation_maps(head, fine_BHWC, "gradcam+++")
