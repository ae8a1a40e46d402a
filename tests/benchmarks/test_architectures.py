"""Architectures that need care as decoders; the table of all is that of ``python -m benchmarks.architectures``."""

from pathlib import Path

import pytest

from amrg.config import DecoderConfig
from benchmarks.architectures import TUNINGS, make_folder, try_family


@pytest.mark.parametrize("family", ["mixtral", "mamba", "mpt", "gemma3"])
def test_trained_saved_read_back_and_written(family: str, tmp_path: Path) -> None:
    """Stacked experts, state space, peft's own refusal of embeddings, and a language model inside a multimodal one."""
    make_folder(family, tmp_path / family)
    for tuning in TUNINGS:
        config = DecoderConfig(tuning=tuning, lora_rank=2)
        outcome = try_family(tmp_path / family, config, tmp_path / tuning, tokens=6)
        assert outcome.works, (tuning, outcome)
