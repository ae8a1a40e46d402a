"""Published sizes of models and data sets that are not on this disk.

The tables are for planning before a download; a folder with a ``config.json`` takes precedence.
"""

from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoConfig, LlamaConfig, PretrainedConfig, Qwen2Config

from amrg.errors import UserError
from amrg.models.decoder_files import SMOLLM2, base_of_adapter, is_adapter_folder


def _llama(vocabulary: int, hidden: int, inner: int, layers: int, heads: int, keys: int, tied: bool = False) -> Any:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        tie_word_embeddings=tied,
        max_position_embeddings=4096,
    )


#: Published dimensions of causal LMs, by the beginning of their folder's name.
PUBLISHED: dict[str, Any] = {
    "llama-2-7b": lambda: _llama(32000, 4096, 11008, 32, 32, 32),
    "llama-2-13b": lambda: _llama(32000, 5120, 13824, 40, 40, 40),
    "llama-3.1-8b": lambda: _llama(128256, 4096, 14336, 32, 32, 8),
    "smollm2-135m": lambda: _llama(49152, 576, 1536, 30, 9, 3, tied=True),
    "qwen1.5-0.5b": lambda: Qwen2Config(
        vocab_size=151936,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_key_value_heads=16,
        tie_word_embeddings=True,
    ),
}

#: Published widths of text encoders.
ENCODER_WIDTHS = {"minilm": 384, "bio_clinicalbert": 768}


class Size(NamedTuple):
    """Size of a split, and the source of the figures."""

    studies: int
    films: int
    origin: str = "published size of the data set"


#: A third of MIMIC-CXR's reports has no findings section, which is what is written by default.
_ALL = "published size of the data set, with or without text"

#: Official splits as published (IU X-ray: R2Gen's).
SPLITS = {
    "mimic_cxr": {
        "train": Size(222_758, 368_960, _ALL),
        "val": Size(1_808, 2_991, _ALL),
        "test": Size(3_269, 5_159, _ALL),
    },
    "iu_xray": {"train": Size(2_069, 2 * 2_069), "val": Size(296, 2 * 296), "test": Size(590, 2 * 590)},
}


def language_model(name: str) -> tuple[PretrainedConfig, str]:
    """Find the architecture of a causal LM and name its source; the weights are not opened.

    Raises:
        UserError: no such folder with a ``config.json``, and no well-known model of that name.
    """
    if is_adapter_folder(Path(name)):
        return language_model(base_of_adapter(Path(name)))
    if (Path(name) / "config.json").is_file():
        try:
            found = AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=False)
            return found, f"{name}/config.json"
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"decoder.model {name}: its config.json names no known model ({error})") from None
    called = "smollm2-135m" if name == SMOLLM2 else Path(name).name.lower()
    for known, make in PUBLISHED.items():
        if called.startswith(known):
            return make(), f"published dimensions of {known}"
    raise UserError(
        f"decoder.model {name} is no folder with a config.json, and its sizes are not among the published ones "
        f"({', '.join(PUBLISHED)}): download its config.json alone, that is enough to plan"
    )


def encoder_width(name: str) -> int:
    """Width of a text encoder, which is the width of a row of the report bank.

    Raises:
        UserError: neither a folder with a ``config.json`` nor a well-known encoder.
    """
    if (Path(name) / "config.json").is_file():
        return int(AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=False).hidden_size)
    width = ENCODER_WIDTHS.get(Path(name).name.lower())
    if width is None:
        raise UserError(
            f"banks.reports.encoder {name} is no folder with a config.json, and none of {', '.join(ENCODER_WIDTHS)}"
        )
    return width
