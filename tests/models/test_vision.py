from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from amrg.config import VisionConfig
from amrg.errors import UserError
from amrg.models import vision
from amrg.models.vision import build_encoder, films_to_tensor, mask_to_cell_grid

SMALL = VisionConfig(image_size=64, embed_dim=32, depths=(1, 2))


@pytest.fixture(scope="module")
def hybrid():
    torch.manual_seed(0)
    return build_encoder(SMALL).eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_the_convolutional_stem_is_the_pretrained_efficientnet(hybrid, images):
    net = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    net.load_state_dict(vision._wheel_weights(net, None), strict=True)
    with torch.no_grad():
        x = net.bn1(net.conv_stem(images * 2 - 1))
        for block in net.blocks[:5]:
            x = block(x)
        found = hybrid.convolutions(hybrid.stem(images))
    assert found.shape == x.shape == (2, 112, 4, 4)
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-4)
    assert not [m for m in hybrid.modules() if isinstance(m, torch.nn.BatchNorm2d)]


def test_the_stem_is_frozen_and_the_rest_learns(hybrid, images):
    stem = hybrid.stem(images)
    assert stem.shape == (2, 40, 8, 8)
    assert not stem.requires_grad
    fine, coarse = hybrid.trunk(stem)
    (fine.square().sum() + coarse.square().sum()).backward()
    frozen = {name for name, p in hybrid.named_parameters() if p.grad is None}
    assert frozen == {name for name, _ in hybrid.named_parameters() if name.startswith("frozen.")}
    assert all(p.grad.any() for p in hybrid.parameters() if p.requires_grad)
    hybrid.zero_grad()


@pytest.mark.parametrize("blocks", [1, 5])
def test_any_number_of_frozen_stages_computes_the_same(hybrid, images, blocks):
    other = build_encoder(VisionConfig(image_size=64, embed_dim=32, depths=(1, 2), frozen_blocks=blocks)).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            other.convolutions(other.stem(images)), hybrid.convolutions(hybrid.stem(images)), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize(
    ("name", "dims"),
    [("swin_tiny_patch4_window7_224", (384, 768)), ("resnet18", (256, 512)), ("vit_tiny_patch16_224", (192, 192))],
)
def test_timm_models_give_both_grids(name, dims):
    encoder = build_encoder(VisionConfig(encoder=name, pretrained=False)).eval()
    with torch.no_grad():
        fine, coarse = encoder(torch.rand(1, 3, 224, 224))
    assert fine.shape == (1, 14, 14, dims[0])
    assert coarse.shape == (1, 7, 7, dims[1])
    assert (encoder.fine_dim, encoder.coarse_dim, encoder.grid) == (*dims, 14)


def test_swin_of_another_size():
    encoder = build_encoder(
        VisionConfig(encoder="swin_tiny_patch4_window7_224", pretrained=False, image_size=96)
    ).eval()
    with torch.no_grad():
        fine, coarse = encoder(torch.rand(1, 3, 96, 96))
    assert fine.shape[1:3] == (6, 6)
    assert coarse.shape[1:3] == (3, 3)


def test_a_swin_cell_sees_its_own_patch():
    """The grid is not transposed: a change in one corner of the image changes that corner's cells most."""
    encoder = build_encoder(VisionConfig(encoder="swin_tiny_patch4_window7_224", pretrained=False)).eval()
    dark = torch.zeros(1, 3, 224, 224)
    spot = dark.clone()
    spot[..., 16:32, 192:208] = 1  # row 1, column 12
    with torch.no_grad():
        change_HW = (encoder(spot).fine_BHWC - encoder(dark).fine_BHWC).norm(dim=-1)[0]
    assert divmod(int(change_HW.argmax()), 14) == (1, 12)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"encoder": "swin_tyni"}, "no timm model `swin_tyni`"),
        ({"image_size": 100}, "multiple of 32"),
        ({"frozen_blocks": 6}, "frozen_blocks"),
        ({"embed_dim": 33}, "embed_dim"),
        ({"depths": (2, 2, 2)}, "two Swin stages"),
        ({"weights": "nowhere.pth"}, "no weights at nowhere.pth"),
        ({"encoder": "swin_tiny_patch4_window7_224", "weights": "weights.pth"}, "not a safetensors file"),
    ],
)
def test_what_a_user_gets_wrong_is_said_in_one_line(changes, part):
    with pytest.raises(UserError) as caught:
        build_encoder(VisionConfig(**changes))
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_network_and_no_weights(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"vision.weights \(a safetensors file\)"):
        build_encoder(VisionConfig(encoder="swin_tiny_patch4_window7_224"))


def test_foreign_weights_are_refused(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="does not hold the weights of EfficientNet-lite0"):
        build_encoder(VisionConfig(weights=str(tmp_path / "other.pth")))
    torch.save({"a": Path("x")}, tmp_path / "code.pth")
    with pytest.raises(UserError, match="does not hold the weights"):
        build_encoder(VisionConfig(weights=str(tmp_path / "code.pth")))


def test_films_of_any_size_become_square_images_and_masks_follow():
    film = np.full((40, 20), 255, np.uint8)
    images_B3HW = films_to_tensor([film, np.zeros((64, 64), np.uint8)], 64)
    assert images_B3HW.shape == (2, 3, 64, 64)
    assert images_B3HW[0, :, :, 16:48].min() == 1
    assert images_B3HW[0, :, :, :16].max() == images_B3HW[0, :, :, 48:].max() == images_B3HW[1].max() == 0
    mask = np.zeros((64, 64), bool)
    mask[16:32, 40:64] = True
    expected = torch.zeros(4, 4)
    expected[1, 2:] = torch.tensor([0.5, 1.0])
    assert torch.equal(mask_to_cell_grid(mask, 64, 4), expected)
