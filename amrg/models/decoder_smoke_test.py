"""Test that a decoder computes and generates from embeddings, before a training begins."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, masking_utils

from amrg.errors import UserError
from amrg.model_files import error_in_one_line, silence_transformers
from amrg.precision import autocast


def smoke_test_decoder(model: Any, tokenizer: PreTrainedTokenizerBase, dtype: str) -> None:
    """Compute and generate two tokens from embeddings, so that a training does not begin that cannot be used.

    Args:
        model: on its device, not split over ranks.
        tokenizer: its tokenizer.
        dtype: of the training.

    Raises:
        UserError: the architecture cannot do it, or words mean another thing as embeddings than as tokens.
    """
    modes = {module: module.training for module in model.modules()}
    ids = torch.full((1, 3), tokenizer.eos_token_id, device=model.device)
    try:
        with torch.no_grad(), autocast(dtype), silence_transformers():
            embeddings = model.eval().get_input_embeddings()(ids)
            given = {"logits_to_keep": 2, "use_cache": False}
            logits = model(inputs_embeds=embeddings, **given).logits
            expected = model(input_ids=ids, **given).logits
            # The second token is computed with a cache, from positions that the model counts itself.
            written = model.generate(
                inputs_embeds=embeddings,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=2,
                max_new_tokens=2,
                pad_token_id=tokenizer.pad_token_id,
                return_dict_in_generate=True,
                output_logits=True,
            )
            first = model.get_input_embeddings()(written.sequences[:, :1])
            full = model(inputs_embeds=torch.cat([embeddings, first], dim=1), **given).logits
    except Exception as error:  # each architecture fails in its own way
        raise UserError(
            f"decoder.model: {decoder_name(model)} cannot read or generate from embeddings "
            f"({error_in_one_line(error)}): give a model of another architecture, or another decoder.base_dtype"
        ) from None
    if tuple(logits.shape[:2]) != (1, 2) or not logits_agree(logits, expected):
        raise UserError(
            f"decoder.model: {decoder_name(model)} does not compute the same from embeddings as from tokens: give "
            "a model of another architecture"
        )
    if written.sequences.shape[1] != 2 or not logits_agree(written.logits[1], full[:, -1]):
        raise UserError(
            f"decoder.model: {decoder_name(model)} does not generate from embeddings what it computes in training: "
            "give a model of another architecture"
        )
    for module, training in modes.items():
        module.training = training


@contextmanager
def unpacked_sequences() -> Iterator[None]:
    """Tell transformers that no row holds several sequences: it would look at the positions, and wait for a GPU."""
    original = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = original


def logits_agree(found: Tensor, expected: Tensor) -> bool:
    """Return whether logits are the same but for rounding."""
    return bool((found - expected).abs().max() <= 0.05 * expected.abs().max())  # several times bfloat16's rounding


def without_lora(model: Any) -> Any:
    """Return the model that peft has put a LoRA around; the model itself where there is none."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder_name(model: Any) -> str:
    """Return the name of a decoder's class, without a LoRA around it."""
    return type(without_lora(model)).__name__
