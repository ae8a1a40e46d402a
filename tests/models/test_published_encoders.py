"""Encoders from folders: grids, normalisation, tuning, saving, what is refused; in use: test_encoder_chain."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from amrg.config import VisionConfig
from amrg.errors import UserError
from amrg.models.cam import activation_maps_of_images
from amrg.models.classifier import DiseaseClassifier
from amrg.models.regions import regions_of_films
from amrg.models.vision import build_encoder, weights_faults
from tests.encoder_folders import FOLDERS, MEAN, STD, make_folder

SMALL = VisionConfig(query_dim=24, qformer_layers=1, qformer_heads=2, lora_rank=2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of an encoder by name, made once."""
    root = tmp_path_factory.mktemp("encoders")

    def folder(name: str) -> Path:
        return root / name if (root / name).is_dir() else make_folder(name, root / name)

    return folder


def of(folder: Path, **changes: Any) -> VisionConfig:
    return replace(SMALL, encoder=str(folder), **changes)


def films(size: int, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(1)).expand(-1, 3, -1, -1)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_says_size_grid_and_normalisation(name: str, folders: Callable[[str], Path]) -> None:
    _, size, grids, dims = FOLDERS[name]
    encoder = build_encoder(of(folders(name))).eval()
    assert (encoder.image_size, (encoder.grid, encoder.coarse_grid)) == (size, grids)
    assert (encoder.fine_dim, encoder.coarse_dim) == dims
    with torch.no_grad():
        found = encoder(films(size))
        normal = encoder.normalise(films(size))
    assert [tuple(part.shape) for part in found] == [
        (2, side, side, dim) for side, dim in zip(grids, dims, strict=True)
    ]
    channels = 1 if name == "timm_gray" else 3
    expected = [(films(size)[:, 0] - MEAN[c]) / STD[c] for c in range(channels)]
    torch.testing.assert_close(normal, torch.stack(expected, dim=1))


@pytest.mark.parametrize(("name", "others"), [("rad_dino", 1), ("dinov2_registers", 5), ("vit", 1), ("clip", 1)])
def test_the_fine_grid_is_the_patches_of_the_last_layer(name: str, others: int, folders: Callable[[str], Path]) -> None:
    """As transformers itself computes them, from pixels normalised by hand, row by row; the coarse grid, by hand."""
    folder, size, side = folders(name), FOLDERS[name][1], FOLDERS[name][2][0]
    net: Any = AutoModel.from_pretrained(folder).eval()
    net = getattr(net, "vision_model", net)
    pixels = (films(size) - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    with torch.no_grad():
        tokens = net(pixel_values=pixels).last_hidden_state
        fine, coarse = build_encoder(of(folder)).eval()(films(size))
    assert tokens.shape[1] == others + side * side
    for row in range(side):
        for column in range(side):
            torch.testing.assert_close(fine[:, row, column], tokens[:, others + row * side + column])
    last = -(-side // 2) - 1
    torch.testing.assert_close(coarse[:, 0, last], fine[:, 0:2, 2 * last : 2 * last + 2].mean((1, 2)))
    torch.testing.assert_close(coarse[:, last, last], fine[:, 2 * last :, 2 * last :].mean((1, 2)))


def test_timms_weights_are_those_of_the_folder(folders: Callable[[str], Path]) -> None:
    """The open_clip tower under its own names; the features are the last block's patches, without registers."""
    stored = load_file(folders("biomed_clip") / "open_clip_model.safetensors")
    net = build_encoder(of(folders("biomed_clip"))).net.model
    for name, value in net.state_dict().items():
        assert torch.equal(value, stored[f"visual.trunk.{name}"]), name
    encoder = build_encoder(of(folders("timm_vit_registers"))).eval()
    plain = timm.create_model("test_vit2", num_classes=5, img_size=64).eval()
    plain.load_state_dict(load_file(folders("timm_vit_registers") / "model.safetensors"))
    seen: list[torch.Tensor] = []
    plain.blocks[-1].register_forward_hook(lambda *given: seen.append(given[2]))
    with torch.no_grad():
        plain(encoder.normalise(films(64)))
        fine = encoder(films(64)).fine_BHWC
    assert plain.num_prefix_tokens >= 1
    torch.testing.assert_close(fine.flatten(1, 2), seen[0][:, plain.num_prefix_tokens :], rtol=1e-4, atol=1e-4)


def test_another_size_of_films_has_another_grid(folders: Callable[[str], Path]) -> None:
    for name, size, grid in (("rad_dino", 98, 7), ("vit", 80, 5), ("timm_vit_registers", 96, 6)):
        encoder = build_encoder(of(folders(name), image_size=size)).eval()
        with torch.no_grad():
            assert encoder(films(size)).fine_BHWC.shape[1:3] == (grid, grid)


def test_gradcam_of_a_vit_by_hand(folders: Callable[[str], Path]) -> None:
    """Grad-CAM as published (gradients of a logit at the patch tokens, by autograd), on a grid of 5 × 5."""
    torch.manual_seed(0)
    model = DiseaseClassifier(of(folders("rad_dino"))).eval()
    images = films(70)
    found = activation_maps_of_images(model, images, "gradcam")
    assert found.shape == (2, 14, 5, 5)
    for k in (0, 7):
        fine = model.fine_norm(model.encoder(images).fine_BHWC).detach().requires_grad_()
        model.cam_head(fine)[:, k].sum().backward()
        assert fine.grad is not None
        for b in range(2):
            expected = torch.zeros(5, 5)
            for channel in range(24):
                expected += fine.grad[b, :, :, channel].mean() * fine[b, :, :, channel].detach()
            torch.testing.assert_close(found[b, k], expected.clamp(min=0), rtol=1e-4, atol=1e-7)
    regions = regions_of_films(model(images).projected_BHWD, found)
    assert regions.boxes_BK5.max() <= 5


@pytest.mark.parametrize("name", ["rad_dino", "timm_resnet"])
def test_a_frozen_encoder_has_no_gradient_and_stays_in_evaluation(name: str, folders: Callable[[str], Path]) -> None:
    model = DiseaseClassifier(of(folders(name), tuning="frozen")).train()
    assert not model.encoder.net.training
    before = {key: value.clone() for key, value in model.encoder.state_dict().items()}
    out = model(films(model.image_size))
    (out.logits_BK.sum() + out.cam_logits_BK.sum()).backward()
    assert all(parameter.grad is None for parameter in model.encoder.parameters())
    assert model.fine_projection.weight.grad is not None
    for key, value in model.encoder.state_dict().items():  # statistics of batches too
        assert torch.equal(value, before[key]), key


def test_what_of_a_trained_encoder_has_no_part_in_the_grids_is_frozen(folders: Callable[[str], Path]) -> None:
    for name, unused in (("rad_dino", {"mask_token"}), ("clip", {"post_layernorm"}), ("swin", {"layernorm"})):
        model = DiseaseClassifier(of(folders(name)))
        out = model(films(model.image_size))
        (out.logits_BK.sum() + out.cam_logits_BK.sum()).backward()
        left = {key for key, parameter in model.encoder.named_parameters() if parameter.grad is None}
        assert left == {key for key, parameter in model.encoder.named_parameters() if not parameter.requires_grad}
        assert {key.removeprefix("net.").removeprefix("embeddings.").split(".")[0] for key in left} == unused


@pytest.mark.parametrize("name", ["rad_dino", "biomed_clip"])
def test_a_lora_is_trained_saved_and_read_back(name: str, folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "models" / name
    folder.parent.mkdir()
    make_folder(name, folder)
    model = DiseaseClassifier(of(folder, tuning="lora")).train()
    plain = build_encoder(of(folder)).eval()
    images = films(model.image_size)
    with torch.no_grad():  # it begins as the published model
        torch.testing.assert_close(model.encoder(images).fine_BHWC, plain(images).fine_BHWC)
    trained = {key: value for key, value in model.encoder.named_parameters() if value.requires_grad}
    assert trained
    assert all(".lora_" in key for key in trained)
    optimizer = torch.optim.SGD(trained.values(), lr=1.0)
    for _ in range(2):  # B is zero at first, so that A learns from the second step on
        optimizer.zero_grad()
        sum(part.square().mean() for part in model.encoder(images)).backward()
        optimizer.step()
    assert all(value.grad is not None and value.grad.any() for key, value in trained.items() if "lora_B" in key)
    model.eval().save_pretrained(tmp_path / "saved")
    folder.rename(tmp_path / "away")
    loaded = DiseaseClassifier.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        for found, expected in zip(loaded(images), model(images), strict=True):
            assert found is expected is None or torch.equal(found, expected)
        assert not torch.equal(model.encoder(images).fine_BHWC, plain(images).fine_BHWC)
    again = {key for key, value in loaded.encoder.named_parameters() if value.requires_grad}
    assert again == set(trained)
    loaded.save_pretrained(tmp_path / "twice")
    assert (tmp_path / "twice" / "config.json").read_text() == (tmp_path / "saved" / "config.json").read_text()


def edit(name: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, **changes}))

    return change


def reshape(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[0]
    save_file({**weights, name: torch.zeros(3)}, folder / "model.safetensors")


def lose(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights[sorted(weights)[-1]]
    save_file(weights, folder / "model.safetensors")


def rename(old: str, new: str) -> Callable[[Path], None]:
    return lambda folder: (folder / old).rename(folder / new) and None


def pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


#: The encoder, what befalls its folder, settings, and what is said.
REFUSED: dict[str, tuple[str, Callable[[Path], Any], dict[str, Any], str]] = {
    "not there": ("vit", lambda folder: folder.rename(folder.with_name("away")), {}, "is no folder"),
    "lacks a weight": ("vit", lose, {}, "the weights of .* lack 1 .*download both again"),
    "other shapes": ("rad_dino", reshape, {}, r"have other shapes in 1 .*\[3\]"),
    "timm lacks a weight": ("timm_resnet", lose, {}, "the weights of .* lack 1 .*download both again"),
    "timm, other shapes": ("timm_vit_registers", reshape, {}, r"have other shapes in 1 .*\[3\]"),
    "a pickle": ("vit", pickle, {}, "pytorch_model.bin is not read: it could run code"),
    "open_clip's pickle": (
        "biomed_clip", rename("open_clip_model.safetensors", "open_clip_pytorch_model.bin"), {},
        "no open_clip_model.safetensors .open_clip_pytorch_model.bin is not read",
    ),
    "no preprocessing": (
        "vit", rename("preprocessor_config.json", "other.json"), {}, "lacks preprocessor_config.json",
    ),
    "code of its own": (
        "vit", edit("config.json", model_type="cxr-bert", auto_map={"AutoModel": "a.B"}), {},
        "of type cxr-bert, which needs Python code of its own",
    ),
    "unknown type": ("vit", edit("config.json", model_type="vitt"), {}, "vitt, which transformers does not know"),
    "a text model": ("vit", edit("config.json", model_type="bert"), {}, "bert, which is no vision encoder"),
    "unknown architecture": (
        "timm_resnet", edit("config.json", architecture="resnet_x"), {}, "no architecture `resnet_x`: update timm",
    ),
    "neither": ("timm_resnet", edit("config.json", architecture=None), {}, "config.json names neither an architecture"),
    "oblong films": (
        "vit", edit("preprocessor_config.json", size={"height": 64, "width": 32}), {}, "64 × 32 pixels: only squares",
    ),
    "oblong patches": ("vit", edit("config.json", patch_size=[16, 8]), {"pretrained": False}, "patches of 16 × 8"),
    "cut patches": ("rad_dino", lambda folder: None, {"image_size": 72}, "is 72: .* patches of 14: take a multiple"),
    "cut patches of timm": ("timm_vit_registers", lambda folder: None, {"image_size": 72}, "72"),
    "cut cells": ("timm_convnext", lambda folder: None, {"image_size": 80}, "is 80: .* needs a multiple of 32"),
    "no linear layers": ("timm_resnet", lambda folder: None, {"tuning": "lora"}, "has no linear layers"),
    "weights given twice": ("vit", lambda folder: None, {"weights": "a.safetensors"}, "has its own weights"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    name, damage, changes, expected = REFUSED[case]
    folder = make_folder(name, tmp_path / "models" / name)
    damage(folder)
    with pytest.raises(UserError) as caught:
        build_encoder(of(folder, **changes))
    assert re.search(expected, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_are_checked_without_being_read(folders: Callable[[str], Path], tmp_path: Path) -> None:
    """Names and shapes: the values may be missing in a copy whose headers are whole."""
    for name in FOLDERS:
        assert weights_faults(of(folders(name))) == []
    assert "lack" in weights_faults(of(_lost(tmp_path)))[0]
    assert weights_faults(of(tmp_path / "models" / "vit", pretrained=False)) == []


def _lost(tmp_path: Path) -> Path:
    folder = make_folder("vit", tmp_path / "models" / "vit")
    lose(folder)
    return folder


def test_hybrid_swin_has_its_own_way_of_freezing() -> None:
    with pytest.raises(UserError, match=r"vision.tuning lora: hybrid_swin has vision.frozen_blocks instead"):
        build_encoder(VisionConfig(tuning="lora"))


def test_an_encoder_by_name_is_tuned_too() -> None:
    encoder = build_encoder(VisionConfig(encoder="test_vit", pretrained=False, image_size=64, tuning="lora"))
    assert all(parameter.requires_grad == (".lora_" in name) for name, parameter in encoder.named_parameters())
