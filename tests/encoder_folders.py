"""Vision encoders as they are published, tiny and with random weights: each a folder with its own layout."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    ConvNextConfig,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTForImageClassification,
)

MEAN, STD = [0.5307, 0.52, 0.54], [0.2583, 0.25, 0.27]
TOKENS = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def rad_dino(folder: Path) -> None:
    """DINOv2 of transformers, patches of 14, published for 518 pixels; here for 70: 5 × 5 patches."""
    save(Dinov2Model(Dinov2Config(**TOKENS, image_size=70, patch_size=14)), folder)
    processor = {"size": {"shortest_edge": 70}, "crop_size": {"height": 70, "width": 70}, "do_center_crop": True}
    preprocess(folder, processor)


def registers(folder: Path) -> None:
    """DINOv2 with four registers behind the class token."""
    save(Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**TOKENS, image_size=70, patch_size=14)), folder)
    cropped = {"crop_size": {"height": 70, "width": 70}, "do_center_crop": True}
    preprocess(folder, {"size": {"shortest_edge": 80}, **cropped})


def vit(folder: Path) -> None:
    """A ViT with patches of 16 and the head of its classes."""
    save(ViTForImageClassification(ViTConfig(**TOKENS, intermediate_size=48, image_size=64, patch_size=16)), folder)
    preprocess(folder, {"size": {"height": 64, "width": 64}})


def clip(folder: Path) -> None:
    """A CLIP of transformers, images and texts."""
    vision = {**TOKENS, "intermediate_size": 48, "image_size": 64, "patch_size": 16}
    text = {**TOKENS, "intermediate_size": 48, "vocab_size": 20}
    save(CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=16)), folder)
    preprocess(folder, {"size": {"shortest_edge": 64}})


def swin(folder: Path) -> None:
    """A Swin of transformers with four stages."""
    shape = {"embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 3, 4], "window_size": 2}
    save(SwinModel(SwinConfig(**shape, image_size=64)), folder)
    preprocess(folder, {"size": {"height": 64, "width": 64}})


def convnext(folder: Path) -> None:
    """A ConvNeXt of transformers with four stages; the size is that of its films' short side."""
    save(ConvNextModel(ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], image_size=64)), folder)
    preprocess(folder, {"size": {"shortest_edge": 64}})


def biomed_clip(folder: Path) -> None:
    """open_clip around a ViT-B/16 of timm, as BiomedCLIP's, with its weights converted to safetensors."""
    tower = timm.create_model("test_vit", num_classes=0, img_size=64)
    weights = {f"visual.trunk.{name}": value for name, value in tower.state_dict().items()}
    vision = {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear", "image_size": 64}
    content = {"model_cfg": {"embed_dim": 16, "vision_cfg": vision}, "preprocess_cfg": {"mean": MEAN, "std": STD}}
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    save_file(weights | {"text.proj.weight": torch.zeros(2, 2)}, folder / "open_clip_model.safetensors")


def timm_folder(architecture: str, size: int, channels: int = 3) -> Callable[[Path], None]:
    """What timm pushes to the hub: ``config.json`` with ``architecture`` and ``pretrained_cfg``."""

    def write(folder: Path) -> None:
        fixed = timm.get_pretrained_cfg(architecture).fixed_input_size
        sized = {"img_size": size} if fixed else {}
        model = timm.create_model(architecture, in_chans=channels, num_classes=5, **sized)
        published = {
            "input_size": [channels, size, size], "mean": MEAN[:channels], "std": STD[:channels], "num_classes": 5,
        }  # fmt: skip
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"architecture": architecture, "pretrained_cfg": published}))
        save_file(model.state_dict(), folder / "model.safetensors")

    return write


#: By name: what writes the folder, its films' pixels, cells of the two grids, channels of the two grids.
FOLDERS: dict[str, tuple[Callable[[Path], None], int, tuple[int, int], tuple[int, int]]] = {
    "rad_dino": (rad_dino, 70, (5, 3), (24, 24)),
    "dinov2_registers": (registers, 70, (5, 3), (24, 24)),
    "vit": (vit, 64, (4, 2), (24, 24)),
    "clip": (clip, 64, (4, 2), (24, 24)),
    "swin": (swin, 64, (4, 2), (48, 96)),
    "convnext": (convnext, 64, (4, 2), (24, 32)),
    "biomed_clip": (biomed_clip, 64, (4, 2), (64, 64)),
    "timm_vit_registers": (timm_folder("test_vit2", 64), 64, (4, 2), (64, 64)),
    "timm_resnet": (timm_folder("test_resnet", 64), 64, (4, 2), (192, 96)),
    "timm_convnext": (timm_folder("test_convnext", 64), 64, (4, 2), (48, 64)),
    "timm_gray": (timm_folder("test_resnet", 64, channels=1), 64, (4, 2), (192, 96)),
}


def make_folder(name: str, folder: Path) -> Path:
    """Write the folder of an encoder; its weights are the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        FOLDERS[name][0](folder)
    return folder


def save(model: Any, folder: Path) -> None:
    """``config.json`` and ``model.safetensors``; zeros that a fresh model has are filled, so that none is missed."""
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)


def preprocess(folder: Path, size: dict[str, Any]) -> None:
    """``preprocessor_config.json``."""
    given = {"do_normalize": True, "do_rescale": True, "rescale_factor": 1 / 255}
    content = {**given, "image_mean": MEAN, "image_std": STD, **size}
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
