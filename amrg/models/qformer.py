"""The Q-Former: BLIP-2's (Li et al. 2023, arXiv:2301.12597), normalised after each part as published, or before it.

Shape legend: B batch, Q queries, M keys, D width.

From scratch twelve layers of 768 that are normalised after each part make all queries one vector; what
``vision.qformer_norm pre`` and ``stage1.qformer_lr`` do about it: docs/results.md, "Q-Former depth". BLIP-2 begins with
BERT's weights instead of none: ``vision.qformer_init``.
"""

import json
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import BertModel, Blip2QFormerConfig, Blip2QFormerModel
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerLayer

from amrg.config import VisionConfig
from amrg.errors import UserError, collect_errors
from amrg.model_files import find_weights_file, pickle_faults, safetensors_faults, silence_transformers

#: Of what a part of a layer adds, at first.
FIRST_SCALE = 0.3
_INIT = "vision.qformer_init"


class PreNormLayer(Blip2QFormerLayer):
    """Self-attention, cross-attention and MLP: each reads the normalised stream, and a scaled part of it is added.

    The scales are LayerScale (Touvron et al. 2021, arXiv:2103.17239): one learned number a channel, small at first.
    Without them what all queries read alike outgrows, within ten steps, what tells them apart.
    """

    def __init__(self, config: Blip2QFormerConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.self_scale, self.cross_scale, self.mlp_scale = (
            nn.Parameter(torch.full((config.hidden_size,), FIRST_SCALE)) for _ in range(3)
        )

    def forward(
        self, hidden_states: Any, attention_mask: Any = None, encoder_hidden_states: Any = None, *_: Any, **__: Any
    ) -> Tensor:
        """Queries [B, Q, D] and keys [B, M, D] → queries; nothing is masked."""
        x_BQD = hidden_states
        for part, scale_D, keys_BMD in (
            (self.attention, self.self_scale, None),
            (self.crossattention, self.cross_scale, encoder_hidden_states),
        ):
            read_BQD, _weights = part.attention(part.output.LayerNorm(x_BQD), encoder_hidden_states=keys_BMD)
            x_BQD = x_BQD + scale_D * part.output.dense(read_BQD)
        inner = self.intermediate_query(self.output_query.LayerNorm(x_BQD))
        return x_BQD + self.mlp_scale * self.output_query.dense(inner)


class PreNormQFormer(Blip2QFormerModel):
    """BLIP-2's Q-Former with ``PreNormLayer``s, and a last normalisation of what they added up to."""

    def __init__(self, config: Blip2QFormerConfig) -> None:
        super().__init__(config)
        self.encoder.layer = nn.ModuleList(PreNormLayer(config, number) for number in range(config.num_hidden_layers))
        self.last_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def forward(self, query_embeds: Tensor, encoder_hidden_states: Tensor) -> Any:
        """Queries [B, Q, D] and keys [B, M, D] → transformers' output."""
        out = super().forward(query_embeds=query_embeds, encoder_hidden_states=encoder_hidden_states)
        out.last_hidden_state = self.last_norm(out.last_hidden_state)
        return out


def build_qformer(config: VisionConfig, pretrained: bool = True) -> nn.Module:
    """The Q-Former that ``config`` describes; without ``pretrained`` BERT's weights are left out.

    Raises:
        UserError: ``vision.qformer_init`` is missing, damaged or does not fit.
    """
    dim = config.query_dim
    shape = Blip2QFormerConfig(
        hidden_size=dim,
        num_hidden_layers=config.qformer_layers,
        num_attention_heads=config.qformer_heads,
        intermediate_size=4 * dim,
        encoder_hidden_size=dim,
        cross_attention_frequency=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = PreNormQFormer(shape) if config.qformer_norm == "pre" else Blip2QFormerModel(shape)
    if pretrained and config.qformer_init:
        if faults := qformer_init_faults(config):
            raise UserError("\n".join(faults))
        _begin_with_bert(model, Path(config.qformer_init))
    return model


def qformer_init_faults(config: VisionConfig) -> list[str]:
    """Check the BERT of ``vision.qformer_init`` without loading its weights; return the faults."""
    if not config.qformer_init:
        return []
    if config.qformer_norm != "post":
        return [f"{_INIT}: BERT is normalised after each part: say vision.qformer_norm post, or leave {_INIT} out"]
    folder = Path(config.qformer_init)
    if faults := collect_errors(lambda: find_weights_file(folder, _INIT)):
        return faults
    weights = find_weights_file(folder, _INIT)
    check = safetensors_faults if weights.suffix == ".safetensors" else pickle_faults
    return [f"{_INIT}: {fault}" for fault in check(weights)] + _misfit(config, folder)


def _misfit(config: VisionConfig, folder: Path) -> list[str]:
    """Return a fault if a BERT has other sizes than the Q-Former."""
    try:
        content = json.loads((folder / "config.json").read_text())
        kind, depth = content["model_type"], content["num_hidden_layers"]
        found = [content[name] for name in ("hidden_size", "num_attention_heads", "intermediate_size", "hidden_act")]
    except (OSError, ValueError, KeyError, TypeError):
        return [f"{_INIT}: {folder / 'config.json'} is missing or does not describe a BERT: download it again"]
    if kind != "bert":
        return [f"{_INIT}: {folder} holds a model of type {kind}: give a BERT"]
    dim = config.query_dim
    if found == [dim, config.qformer_heads, 4 * dim, "gelu"] and depth >= config.qformer_layers:
        return []
    width, heads, inner, activation = found
    return [
        f"{_INIT}: {folder} has {depth} layers of {width}, {heads} heads, an MLP of {inner} with {activation}; needed "
        f"are vision.qformer_layers {config.qformer_layers} (at least) of vision.query_dim {dim}, vision.qformer_heads "
        f"{config.qformer_heads}, an MLP of {4 * dim} with gelu: change these, or give another BERT"
    ]


def _begin_with_bert(model: Any, folder: Path) -> None:
    """Copy norms, self-attention and MLPs from the first layers of a BERT; cross-attention stays random."""
    try:
        with silence_transformers():
            loaded: Any = BertModel.from_pretrained(
                folder, add_pooling_layer=False, local_files_only=True, weights_only=True, dtype=torch.float32,
                output_loading_info=True,
            )  # fmt: skip
    except (OSError, EOFError, ValueError, RuntimeError, SafetensorError, UnpicklingError) as error:
        raise UserError(f"{_INIT}: the weights in {folder} cannot be read ({type(error).__name__})") from None
    bert, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise UserError(f"{_INIT}: {folder} lacks {len(missing)} weights of a BERT (first: {missing[0]})")
    model.layernorm.load_state_dict(bert.embeddings.LayerNorm.state_dict())
    for layer, bert_layer in zip(model.encoder.layer, bert.encoder.layer, strict=False):  # a BERT may have more
        for part, source in (
            (layer.attention.attention, bert_layer.attention.self),
            (layer.attention.output, bert_layer.attention.output),
            (layer.intermediate_query, bert_layer.intermediate),
            (layer.output_query, bert_layer.output),
        ):
            part.load_state_dict(source.state_dict())
