"""Vision encoders as they are published: any timm model by name, any of timm, transformers or open_clip in a folder.

Of the feature maps that a model gives, the fine grid is the deepest one with the largest cells of at most 16 pixels (a
ViT's patches, stage 3 of a Swin or a ResNet), the coarse grid the deepest one with cells of twice the side; a model
without such cells (ViTs) gives the mean of 2 × 2 fine cells.

Shape legend: B batch, H W pixels or grid rows and columns, C channels, N tokens.
"""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig

from amrg.config import VisionConfig
from amrg.errors import UserError
from amrg.model_files import error_in_one_line, silence_transformers
from amrg.models.encoder_base import STRIDE, VisionEncoder, VisionFeatures
from amrg.models.encoder_files import (
    EncoderDescription,
    constructor_options,
    encoder_weights,
    timm_model_options,
    vision_config,
)

OFFLINE = "with no network, give vision.weights (a safetensors file) or set vision.pretrained: false"


class _Maps(NamedTuple):
    """The feature maps of a model, from the shallowest to the deepest.

    Attributes:
        strides: pixels on a side of a cell.
        dims: channels.
        unused: names of parameters that neither grid depends on.
    """

    strides: list[int]
    dims: list[int]
    unused: frozenset[str] = frozenset()

    @property
    def fine(self) -> int:
        """Index of the fine grid."""
        return self._deepest(max((stride for stride in self.strides if stride <= STRIDE), default=min(self.strides)))

    @property
    def coarse(self) -> int | None:
        """Index of the coarse grid; None: to be pooled."""
        wanted = 2 * self.strides[self.fine]
        return self._deepest(wanted) if wanted in self.strides else None

    def _deepest(self, stride: int) -> int:
        return len(self.strides) - 1 - self.strides[::-1].index(stride)


class PublishedEncoder(VisionEncoder):
    """A published model with the grids that are taken of it. ``vision.tuning`` says what of its weights is trained."""

    frozen_stem = False
    net: Any

    def __init__(
        self, config: VisionConfig, net: Any, size: int, mean: tuple[float, ...], std: tuple[float, ...], maps: _Maps
    ) -> None:
        stride = maps.strides[maps.fine]
        super().__init__(size, mean, std, stride)
        multiple = stride if maps.coarse is None else 2 * stride
        if size % multiple:
            raise UserError(
                f"vision.image_size is {size}: vision.encoder {config.encoder} needs a multiple of {multiple}"
            )
        self._fine, self._coarse = maps.fine, maps.coarse
        self.fine_dim = maps.dims[maps.fine]
        self.coarse_dim = self.fine_dim if maps.coarse is None else maps.dims[maps.coarse]
        self._frozen = config.tuning == "frozen"
        self.net = _tuned(net, config, maps.unused)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; a frozen model stays in evaluation (statistics of batches, dropped paths)."""
        super().train(mode)
        if self._frozen:
            self.net.eval()
        return self

    def stem(self, images_B3HW: Tensor) -> Tensor:
        """Images in [0, 1] → normalised images."""
        return self.normalise(images_B3HW).to(next(self.net.parameters()).dtype)

    def maps(self, pixels_BCHW: Tensor) -> Sequence[Tensor]:
        """Normalised images → feature maps [B, H, W, C], from the shallowest to the deepest."""
        raise NotImplementedError

    def trunk(self, stem_out: Tensor) -> VisionFeatures:
        """Normalised images → features."""
        maps = self.maps(stem_out)
        fine_BHWC = maps[self._fine]
        assert fine_BHWC.shape[1:] == (self.grid, self.grid, self.fine_dim), fine_BHWC.shape
        if self._coarse is None:
            pooled_BCHW = F.avg_pool2d(fine_BHWC.permute(0, 3, 1, 2), 2, ceil_mode=True)
            return VisionFeatures(fine_BHWC, pooled_BCHW.permute(0, 2, 3, 1))
        coarse_BHWC = maps[self._coarse]
        assert coarse_BHWC.shape[1:3] == (self.coarse_grid, self.coarse_grid), coarse_BHWC.shape
        return VisionFeatures(fine_BHWC, coarse_BHWC)


def _tuned(net: Any, config: VisionConfig, unused: frozenset[str]) -> Any:
    """Freeze a model's weights, or all but those used, or put a LoRA around its linear layers."""
    for name, parameter in net.named_parameters():
        if config.tuning == "frozen" or name in unused:
            parameter.requires_grad_(False)
    if config.tuning != "lora":
        return net
    linear = [
        name for name, module in net.named_modules() if isinstance(module, nn.Linear) and f"{name}.weight" not in unused
    ]
    if not linear:
        raise UserError(
            f"vision.tuning lora: vision.encoder {config.encoder} has no linear layers: take full or frozen"
        )
    from peft import LoraConfig, inject_adapter_in_model  # takes a second

    lora = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=linear)
    return inject_adapter_in_model(lora, net)


class TimmEncoder(PublishedEncoder):
    """A timm model, by name or from a folder."""

    def __init__(
        self, config: VisionConfig, pretrained: bool, size: int, description: EncoderDescription | None = None
    ) -> None:
        net: Any = _create(config, pretrained, size, description)
        maps = _Maps(list(net.feature_info.reduction()), net.feature_info.channels())
        mean, std = tuple(net.pretrained_cfg["mean"]), tuple(net.pretrained_cfg["std"])
        super().__init__(config, net, size, mean, std, maps)
        self.description = description
        self._dims = maps.dims

    def maps(self, pixels_BCHW: Tensor) -> Sequence[Tensor]:
        """Normalised images → feature maps [B, H, W, C]; class and register tokens are left out by timm."""
        return [_channels_last(x, dim) for x, dim in zip(self.net(pixels_BCHW), self._dims, strict=True)]


def _create(config: VisionConfig, pretrained: bool, size: int, description: EncoderDescription | None) -> nn.Module:
    if description is not None:
        options = timm_model_options(description, size)
        if pretrained:
            assert config.folder is not None
            options["pretrained_cfg_overlay"]["state_dict"] = _state(config.folder)
    else:
        options = _options_by_name(config, pretrained, size)
    try:
        net = timm.create_model(pretrained=pretrained, features_only=True, **options)
    except Exception as error:  # timm, the hub and their network libraries share no base class
        why = " ".join(str(error).split()) or type(error).__name__
        what = "the model and its weights" if pretrained else "the model"
        remedy = OFFLINE if description is None else "give another model"
        raise UserError(f"vision.encoder {config.encoder}: cannot get {what} ({why}); {remedy}") from None
    for module in net.modules():
        if isinstance(kept := getattr(module, "pretrained_cfg", None), dict):
            kept.pop("state_dict", None)  # the weights once more
    return net


def _options_by_name(config: VisionConfig, pretrained: bool, size: int) -> dict[str, Any]:
    if not timm.is_model(config.encoder):
        close = timm.list_models(f"*{config.encoder.split('_')[0]}*")[:5]
        known = f"; some there are: {', '.join(close)}" if close else ""
        raise UserError(f"vision.encoder: there is no timm model `{config.encoder}`{known}")
    published = timm.get_pretrained_cfg(config.encoder)
    fixed = "swin" in config.encoder or (published is not None and published.fixed_input_size)
    options: dict[str, Any] = {"model_name": config.encoder} | ({"img_size": size} if fixed else {})
    if pretrained and config.weights:
        refuse_others(config.weights)
    if pretrained:
        # What lies in the cache is opened there: offline, timm would ask the hub for minutes first.
        weights = config.weights or cached_weights(hub_repository(config.encoder))
        if weights:
            options["pretrained_cfg_overlay"] = {"file": weights}
    return options


def _state(folder: Path) -> dict[str, Tensor]:
    """The encoder's weights of a folder, by their own names."""
    files, prefix = encoder_weights(folder)
    stored = {name: value for file in files for name, value in load_file(file).items()}
    return {name.removeprefix(prefix): value.float() for name, value in stored.items() if name.startswith(prefix)}


def refuse_others(weights: str) -> None:
    """Raise UserError unless a file is there and called safetensors."""
    if not Path(weights).is_file() or Path(weights).suffix != ".safetensors":
        raise UserError(f"vision.weights: {weights} is not a safetensors file")


def hub_repository(encoder: str) -> str | None:
    """Where the hub has the weights of a timm model."""
    found = timm.get_pretrained_cfg(encoder)
    return found.hf_hub_id if found else None


def cached_weights(hub_name: str | None) -> str | None:
    """The file of a timm model's weights in the local cache of the hub; None where it is not there."""
    found = try_to_load_from_cache(hub_name, "model.safetensors") if hub_name else None
    return found if isinstance(found, str) else None


def _channels_last(x: Tensor, channels: int) -> Tensor:
    """[B, C, H, W] or [B, H, W, C] → [B, H, W, C]; timm's Swin gives the latter, its convolutional nets the former."""
    return x if x.shape[-1] == channels and x.shape[1] != channels else x.permute(0, 2, 3, 1)


class TransformersEncoder(PublishedEncoder):
    """A vision model of transformers, from a folder."""

    def __init__(self, config: VisionConfig, pretrained: bool, size: int, description: EncoderDescription) -> None:
        architecture, model_class = vision_config(description)
        shape = _Reader(architecture, model_class, size)
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            maps = shape.probe(model_class(architecture, **constructor_options(model_class)), len(description.mean))
        net = _load(config, architecture, model_class) if pretrained else None
        if net is None:
            net = model_class(architecture, **constructor_options(model_class))
        super().__init__(config, net, size, description.mean, description.std, maps)
        self.description = description
        self._read = shape

    def maps(self, pixels_BCHW: Tensor) -> Sequence[Tensor]:
        """Normalised images → feature maps [B, H, W, C]."""
        return self._read(self.net, pixels_BCHW)


class _Reader:
    """Calls a model of transformers and makes grids of what it gives.

    Models with stages give maps of each; others give tokens, of which the last ones, row by row, are the patches: the
    class token, registers and the like, which come first, are left out.
    """

    def __init__(self, architecture: PretrainedConfig, model_class: Any, size: int) -> None:
        self._kind, self._size = architecture.model_type, size
        patch: Any = getattr(architecture, "patch_size", None)
        sides = list(patch) if isinstance(patch, list | tuple) else [patch]
        if len(set(sides)) > 1:
            raise UserError(f"vision.encoder has patches of {' × '.join(map(str, sides))} pixels: only squares will do")
        self._patch = sides[0]
        self._tokens = False
        # Position embeddings are resized for other films; some models do so unasked.
        resizes = "interpolate_pos_encoding" in inspect.signature(model_class.forward).parameters
        self._options = {"interpolate_pos_encoding": True} if resizes else {}

    def probe(self, net: Any, channels: int) -> _Maps:
        """Maps of a model on the meta device.

        Raises:
            UserError: it takes no films of that size, or its output is no square grid.
        """
        images = torch.zeros(1, channels, self._size, self._size, device="meta")
        try:
            with torch.enable_grad():
                out = net(pixel_values=images, output_hidden_states=True, **self._options)
                self._tokens = not _stages(out) and out.last_hidden_state.ndim == 3
                grids = self._grids(out)
                found = _Maps([round(self._size / grid.shape[1]) for grid in grids], [g.shape[-1] for g in grids])
                used = [grids[index] for index in (found.fine, found.coarse) if index is not None]
                sum((grid.sum() for grid in used), torch.zeros((), device="meta")).backward()
        except UserError:
            raise
        except Exception as error:  # each architecture refuses films in its own way
            raise UserError(
                f"vision.image_size {self._size}: vision.encoder takes no films of that size "
                f"({error_in_one_line(error)}): give its own"
            ) from None
        return found._replace(unused=frozenset(name for name, p in net.named_parameters() if p.grad is None))

    def __call__(self, net: Any, pixels_BCHW: Tensor) -> Sequence[Tensor]:
        """Normalised images → maps [B, H, W, C]."""
        return self._grids(net(pixel_values=pixels_BCHW, output_hidden_states=not self._tokens, **self._options))

    def _grids(self, out: Any) -> Sequence[Tensor]:
        if not self._tokens:
            return [x.permute(0, 2, 3, 1) for x in _stages(out) or [out.last_hidden_state]]
        tokens_BNC = out.last_hidden_state
        if not isinstance(self._patch, int):
            raise UserError(f"vision.encoder is of type {self._kind}, and its config.json names no patch_size")
        if self._size % self._patch:
            raise UserError(
                f"vision.image_size is {self._size}: vision.encoder has patches of {self._patch}: take a multiple"
            )
        side = self._size // self._patch
        others = tokens_BNC.shape[1] - side * side
        if others < 0:
            raise UserError(
                f"vision.encoder of type {self._kind} gives {tokens_BNC.shape[1]} tokens for {side} × {side} patches"
            )
        return [tokens_BNC[:, others:].unflatten(1, (side, side))]


def _stages(out: Any) -> list[Tensor]:
    """Feature maps [B, C, H, W] of a model with stages; none of other models."""
    found = getattr(out, "reshaped_hidden_states", None) or out.hidden_states or ()
    return [x for x in found if x.ndim == 4]


def _load(config: VisionConfig, architecture: PretrainedConfig, model_class: Any) -> Any:
    try:
        with silence_transformers():
            # Safetensors only: a checkpoint in pickles could run code.
            return model_class.from_pretrained(
                config.folder,
                config=architecture,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                **constructor_options(model_class),
            )
    except Exception as error:  # whichever part of transformers refuses
        raise UserError(
            f"vision.encoder: {config.folder} cannot be loaded by transformers ({error_in_one_line(error)})"
        ) from None
