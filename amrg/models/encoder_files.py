"""The folder of a published vision encoder: what it says of itself, and whether its weights fit; no weight is read.

Three layouts are read: transformers (``config.json`` with ``model_type``, ``preprocessor_config.json``), timm
(``config.json`` with ``architecture``) and open_clip around an image tower of timm (``open_clip_config.json``).
Weights are safetensors.
"""

import inspect
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Self

import timm
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from amrg.errors import UserError, collect_errors
from amrg.model_files import (
    error_in_one_line,
    read_weight_shapes,
    safetensors_faults,
    silence_transformers,
    weights_faults,
    weights_files,
)

_CONFIG, _PREPROCESSOR = "config.json", "preprocessor_config.json"
_CLIP, _CLIP_WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
_CLIP_PICKLE = "open_clip_pytorch_model.bin"
_CLIP_TOWER = "visual.trunk."  # before the names of the image tower's weights


@dataclass(frozen=True)
class EncoderDescription:
    """What the files of an encoder's folder say, apart from its weights. JSON throughout, so that it can be saved.

    Attributes:
        library: that builds the model.
        config: content of ``config.json``; of timm only ``architecture`` and ``model_args``.
        image_size: pixels on a side of its films.
        mean, std: of images in [0, 1], by channel (1 or 3).
    """

    library: Literal["timm", "transformers"]
    config: dict[str, Any]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """What ``to_dict`` gave, through JSON."""
        return cls(**{**content, "mean": tuple(content["mean"]), "std": tuple(content["std"])})


def describe_folder(folder: Path) -> EncoderDescription:
    """Read the JSON files of a folder.

    Raises:
        UserError: it is no folder of a published vision encoder, or needs code of its own.
    """
    where = f"vision.encoder: {folder}"
    if not folder.is_dir():
        raise UserError(f"{where} is no folder: correct it, or download the model there (`hf download … --local-dir`)")
    try:
        if (clip := _clip_tower(folder)) is not None:
            return clip
        content = _read(folder / _CONFIG)
        if isinstance(content.get("architecture"), str):
            return _describe_timm(content)
        if isinstance(content.get("model_type"), str):
            return _describe_transformers(folder, content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{where} is not described by its JSON files ({error_in_one_line(error)}): download them again"
        ) from None
    raise UserError(f"{where}: {_CONFIG} names neither an architecture (timm) nor a model_type (transformers)")


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        raise UserError(
            f"vision.encoder: {path.parent} lacks {path.name}: download it from where the weights are"
        ) from None


def _clip_tower(folder: Path) -> EncoderDescription | None:
    """The image tower of an open_clip model, if it is one of timm."""
    if not (folder / _CLIP).is_file():
        return None
    content = _read(folder / _CLIP)
    vision, preprocess = content["model_cfg"]["vision_cfg"], content["preprocess_cfg"]
    if "timm_model_name" not in vision:
        return None
    config = {"architecture": vision["timm_model_name"], "model_args": {}}
    return _description("timm", config, vision["image_size"], preprocess["mean"], preprocess["std"], 3)


def _describe_timm(content: dict[str, Any]) -> EncoderDescription:
    published = content.get("pretrained_cfg", content)  # older folders have all in one
    config = {"architecture": content["architecture"], "model_args": content.get("model_args", {})}
    channels, *sides = published["input_size"]
    return _description("timm", config, sides, published["mean"], published["std"], channels)


def _describe_transformers(folder: Path, content: dict[str, Any]) -> EncoderDescription:
    if content["model_type"] not in CONFIG_MAPPING:
        own = "needs Python code of its own (auto_map); such code is never run"
        why = own if "auto_map" in content else "transformers does not know"
        raise UserError(
            f"vision.encoder: {folder} is of type {content['model_type']}, which {why}: give a model of transformers, "
            "timm or open_clip"
        )
    vision = content.get("vision_config", content)
    processor = _read(folder / _PREPROCESSOR)
    cropped = processor.get("crop_size") if processor.get("do_center_crop") else None
    size = cropped or processor.get("size") or vision.get("image_size")
    if isinstance(size, dict):
        size = [size["height"], size["width"]] if "height" in size else min(size.values())
    # A pixel x of 0 … 1 is given as (255 · factor · x − mean) / std.
    factor = 255 * float(processor.get("rescale_factor", 1 / 255)) if processor.get("do_rescale", True) else 255.0
    channels = int(vision.get("num_channels", 3))
    normalised = processor.get("do_normalize", True)
    mean = [value / factor for value in (processor["image_mean"] if normalised else [0.0] * channels)]
    std = [value / factor for value in (processor["image_std"] if normalised else [1.0] * channels)]
    return _description("transformers", content, size, mean, std, channels)


def _description(
    library: Literal["timm", "transformers"], config: dict[str, Any], size: Any, mean: Any, std: Any, channels: int
) -> EncoderDescription:
    """Check that films and channels are what films can be made to be."""
    height, width = size if isinstance(size, list | tuple) else (size, size)
    if height != width:
        raise UserError(f"vision.encoder takes films of {height} × {width} pixels: only squares can be given")
    if channels not in (1, 3) or len(mean) != channels or len(std) != channels:
        raise UserError(
            f"vision.encoder has {channels} channels, and {len(mean)} means: only 1 and 3, and a mean of each, will do"
        )
    return EncoderDescription(library, config, int(height), tuple(map(float, mean)), tuple(map(float, std)))


# ---- weights ----


def encoder_weights(folder: Path) -> tuple[list[Path], str]:
    """Safetensors files of a folder, and what stands before the names of the encoder's weights.

    Raises:
        UserError: there are none, or they are not complete; one line for each fault.
    """
    clip = folder / _CLIP_WEIGHTS
    if _clip_tower(folder) is None:
        faults, files, prefix = weights_faults(folder), None, ""
    elif clip.is_file():
        faults, files, prefix = safetensors_faults(clip), [clip], _CLIP_TOWER
    else:
        unread = f" ({_CLIP_PICKLE} is not read: it could run code)" if (folder / _CLIP_PICKLE).is_file() else ""
        raise UserError(f"vision.encoder: {folder} has no {_CLIP_WEIGHTS}{unread}: convert the weights")
    if faults:
        raise UserError("\n".join(f"vision.encoder: {fault}" for fault in faults))
    return files or weights_files(folder), prefix


def encoder_weights_faults(folder: Path) -> list[str]:
    """Compare names and shapes of a folder's weights with what its configuration describes, on the meta device."""

    def check() -> None:
        description = describe_folder(folder)
        files, prefix = encoder_weights(folder)
        shapes = read_weight_shapes(files)
        if description.library == "timm":
            named = {name.removeprefix(prefix): value for name, value in shapes.items() if name.startswith(prefix)}
            missing, mismatched = _misfit_timm(description, named)
        else:
            missing, mismatched = _misfit_transformers(description, shapes)
        faults = [
            f"vision.encoder: the weights of {folder} {what} {len(names)} of what its JSON files describe "
            f"(first: {min(names)}): download both again, from one place"
            for what, names in (("lack", missing), ("have other shapes in", mismatched))
            if names
        ]
        if faults:
            raise UserError("\n".join(faults))

    return [line for fault in collect_errors(check) for line in fault.splitlines()]


def timm_model_options(description: EncoderDescription, size: int) -> dict[str, Any]:
    """Arguments of ``timm.create_model`` for a described encoder and films of a size.

    Raises:
        UserError: timm has no such architecture.
    """
    architecture = description.config["architecture"]
    if not timm.is_model(architecture):
        raise UserError(f"vision.encoder: timm {timm.__version__} has no architecture `{architecture}`: update timm")
    published = timm.get_pretrained_cfg(architecture)
    channels = len(description.mean)
    sized = {"img_size": size} if published is not None and published.fixed_input_size else {}
    overlay = {
        "input_size": (channels, size, size),
        "mean": description.mean,
        "std": description.std,
        "num_classes": -1,  # unlike the model's 0: the stored head, whatever its classes, is left out
        "custom_load": False,
    }
    named = {"model_name": architecture, "in_chans": channels, "num_classes": 0, "pretrained_cfg_overlay": overlay}
    return {**description.config["model_args"], **sized, **named}


def _misfit_timm(description: EncoderDescription, named: dict[str, Tensor]) -> tuple[list[str], list[str]]:
    options = timm_model_options(description, description.image_size)
    try:
        with torch.device("meta"):
            model: Any = timm.create_model(pretrained=False, **options)
    except Exception as error:  # each architecture refuses its arguments in its own way
        name = options["model_name"]
        raise UserError(
            f"vision.encoder: timm {timm.__version__} cannot build {name} ({error_in_one_line(error)})"
        ) from None
    expected = model.state_dict()
    # Renames what older versions of timm, or other libraries, called otherwise.
    rename = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if rename is not None and expected.keys() - named.keys():
        named = rename(named, model)
    mismatched = [
        f"{name} {list(named[name].shape)} for {list(value.shape)}"
        for name, value in expected.items()
        if name in named and named[name].shape != value.shape
    ]
    return sorted(expected.keys() - named.keys()), mismatched


def vision_config(description: EncoderDescription) -> tuple[PretrainedConfig, Any]:
    """Configuration and class of transformers for a described encoder; of a model of images and texts its image tower.

    Raises:
        UserError: transformers cannot build it, or it reads no images.
    """
    kind = description.config["model_type"]
    try:
        config = CONFIG_MAPPING[kind].from_dict(description.config)
    except Exception as error:  # configurations check themselves in their own ways
        raise UserError(
            f"vision.encoder of type {kind} cannot be used by transformers {version('transformers')} "
            f"({error_in_one_line(error)})"
        ) from None
    config = getattr(config, "vision_config", config)
    model_class: Any = MODEL_MAPPING.get(type(config), None)
    if model_class is None or "pixel_values" not in inspect.signature(model_class.forward).parameters:
        raise UserError(f"vision.encoder is of type {kind}, which is no vision encoder of transformers: give another")
    return config, model_class


def constructor_options(model_class: Any) -> dict[str, Any]:
    """Arguments that leave out of a model of transformers what makes one vector of all cells."""
    return {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(model_class).parameters else {}


def _misfit_transformers(description: EncoderDescription, shapes: dict[str, Tensor]) -> tuple[list[str], list[str]]:
    config, model_class = vision_config(description)
    try:
        with silence_transformers(), torch.random.fork_rng(devices=[]):
            _, info = model_class.from_pretrained(
                None,
                config=config,
                state_dict=shapes,
                device_map="meta",
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **constructor_options(model_class),
            )
    except Exception as error:  # each architecture refuses its settings in its own way
        raise UserError(
            f"vision.encoder cannot be built by transformers {version('transformers')} ({error_in_one_line(error)})"
        ) from None
    return sorted(info["missing_keys"]), [f"{name} {list(a)} for {list(b)}" for name, a, b in info["mismatched_keys"]]
