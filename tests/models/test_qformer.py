from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from amrg.config import VisionConfig
from amrg.config_files import config_to_dict
from amrg.data.labels import LABELS
from amrg.errors import UserError
from amrg.models.classifier import DiseaseClassifier, query_cosines
from amrg.models.qformer import build_qformer, qformer_init_faults
from amrg.models.text_encoder import WHEELS
from amrg.pipeline import step_recipe

SMALL = VisionConfig(image_size=64, embed_dim=32, depths=(1, 1), query_dim=24, qformer_layers=2, qformer_heads=2)
PRE = replace(SMALL, qformer_norm="pre")


def randomised(model: nn.Module) -> nn.Module:
    """Every number another, so that none of them can be left out unseen."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def torchs(model: nn.Module, config: VisionConfig) -> nn.TransformerDecoder:
    """The same as torch's own decoder, normalised before each part: a scale goes into the weights before it."""

    def scaled(name: str, scale_D: Tensor) -> Tensor:
        return torch.einsum("o...,o->o...", weights[name], scale_D)

    dim = config.query_dim
    layer = nn.TransformerDecoderLayer(
        dim, config.qformer_heads, 4 * dim, 0.0, "gelu", 1e-12, batch_first=True, norm_first=True
    )
    theirs = nn.TransformerDecoder(layer, config.qformer_layers, nn.LayerNorm(dim, 1e-12))
    weights = model.state_dict()
    taken = {f"norm.{end}": weights[f"last_norm.{end}"] for end in ("weight", "bias")}
    for number in range(config.qformer_layers):
        inside, layer_ = f"encoder.layer.{number}", f"layers.{number}"
        scales = {
            name: weights[f"{inside}.{scale}_scale"]
            for name, scale in (("attention", "self"), ("crossattention", "cross"), ("mlp", "mlp"))
        }
        for end in ("weight", "bias"):
            for ours, name, norm in (
                ("attention", "self_attn", "norm1"),
                ("crossattention", "multihead_attn", "norm2"),
            ):
                parts = [weights[f"{inside}.{ours}.attention.{part}.{end}"] for part in ("query", "key", "value")]
                taken[f"{layer_}.{name}.in_proj_{end}"] = torch.cat(parts)
                taken[f"{layer_}.{name}.out_proj.{end}"] = scaled(f"{inside}.{ours}.output.dense.{end}", scales[ours])
                taken[f"{layer_}.{norm}.{end}"] = weights[f"{inside}.{ours}.output.LayerNorm.{end}"]
            taken[f"{layer_}.linear1.{end}"] = weights[f"{inside}.intermediate_query.dense.{end}"]
            taken[f"{layer_}.linear2.{end}"] = scaled(f"{inside}.output_query.dense.{end}", scales["mlp"])
            taken[f"{layer_}.norm3.{end}"] = weights[f"{inside}.output_query.LayerNorm.{end}"]
    theirs.load_state_dict(taken, strict=True)
    return theirs


def test_normalised_before_each_part_it_is_torchs_decoder() -> None:
    torch.manual_seed(0)
    model = randomised(build_qformer(PRE))
    theirs = torchs(model, PRE)
    queries_BQD, keys_BMD = torch.randn(2, 14, 24), torch.randn(2, 20, 24, requires_grad=True)
    found = model(query_embeds=queries_BQD, encoder_hidden_states=keys_BMD).last_hidden_state
    first_norm = nn.functional.layer_norm(queries_BQD, (24,), model.layernorm.weight, model.layernorm.bias, 1e-12)
    expected = theirs(first_norm, keys_BMD)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(out.square().sum(), keys_BMD)[0] for out in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_every_number_of_it_learns_and_it_is_saved_and_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, images = DiseaseClassifier(PRE), torch.rand(2, 3, 64, 64)
    out = model(images)
    out.logits_BK.square().sum().backward()
    assert not [name for name, p in model.qformer.named_parameters() if p.grad is None or not p.grad.any()]
    model.save_pretrained(tmp_path)
    loaded = DiseaseClassifier.from_pretrained(tmp_path)
    assert loaded.config == PRE
    assert torch.equal(loaded(images).scores_BK, out.scores_BK)


@pytest.mark.parametrize(("norm", "low", "high"), [("pre", -0.01, 0.15), ("post", 0.25, 1.0)])
def test_at_true_width_and_depth_queries_begin_apart_only_so(norm: str, low: float, high: float) -> None:
    """Twelve layers of 768: what all queries read alike adds up where each part is normalised again."""
    torch.manual_seed(0)
    config = VisionConfig(query_dim=768, qformer_layers=12, qformer_heads=12, qformer_norm=norm)  # type: ignore[arg-type]
    queries_QD, keys_BMD = torch.randn(len(LABELS), 768) * 0.02, torch.randn(1, 245, 768) + torch.randn(768)
    with torch.no_grad():
        out = build_qformer(config)(query_embeds=queries_QD[None], encoder_hidden_states=keys_BMD)
    assert low < float(query_cosines(out.last_hidden_state).mean()) < high


def minilm() -> Path:
    """The folder of the text encoder in a wheel: a BERT of 6 layers of 384."""
    package, _, inside = WHEELS["minilm"]
    return Path(find_spec(package).submodule_search_locations[0]) / inside  # type: ignore[union-attr, index]


def test_begun_with_a_bert_its_layers_compute_what_the_berts_do() -> None:
    config = VisionConfig(query_dim=384, qformer_layers=4, qformer_heads=12, qformer_init=str(minilm()))
    torch.manual_seed(0)
    fresh = build_qformer(config, pretrained=False)
    torch.manual_seed(0)
    model = build_qformer(config)
    bert = BertModel.from_pretrained(minilm(), local_files_only=True).eval()
    x_BQD = torch.randn(2, 14, 384)
    with torch.no_grad():
        torch.testing.assert_close(model.layernorm(x_BQD), bert.embeddings.LayerNorm(x_BQD), rtol=0, atol=0)
        for ours, theirs in zip(model.encoder.layer, bert.encoder.layer[:4], strict=True):
            found = ours.feed_forward_chunk_query(ours.attention(x_BQD))  # all but the cross-attention
            torch.testing.assert_close(found, theirs(x_BQD), rtol=1e-5, atol=1e-5)
    stored = load_file(minilm() / "model.safetensors")
    query = model.encoder.layer[3].attention.attention.query.weight
    assert torch.equal(query, stored["encoder.layer.3.attention.self.query.weight"])
    changed = {name for name, value in fresh.state_dict().items() if not torch.equal(value, model.state_dict()[name])}
    assert changed == {name for name in fresh.state_dict() if "crossattention" not in name}


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """The folder of a BERT that fits ``SMALL``, with a layer more."""
    torch.manual_seed(1)
    shape = BertConfig(
        vocab_size=8, hidden_size=24, num_hidden_layers=3, num_attention_heads=2, intermediate_size=96,
        max_position_embeddings=8,
    )  # fmt: skip
    BertModel(shape).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def test_old_pickles_with_a_prefix_are_read(bert: Path) -> None:
    """As Bio_ClinicalBERT and bert-base-uncased are published: of another class, norms under TensorFlow's names."""
    config = replace(SMALL, qformer_init=str(bert))
    torch.manual_seed(0)
    expected = build_qformer(config).state_dict()
    stored = load_file(bert / "model.safetensors")
    renamed = {
        f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in stored.items()
    }
    (bert / "model.safetensors").unlink()
    torch.save(renamed, bert / "pytorch_model.bin")
    torch.manual_seed(0)
    found = build_qformer(config).state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_a_saved_classifier_needs_no_bert_any_more(bert: Path, tmp_path: Path) -> None:
    model = DiseaseClassifier(replace(SMALL, qformer_init=str(bert)))
    model.save_pretrained(tmp_path / "model")
    bert.rename(tmp_path / "away")
    loaded = DiseaseClassifier.from_pretrained(tmp_path / "model")
    assert loaded.config == SMALL
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


def damaged(bert: Path, name: str) -> None:
    path = bert / name
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize(
    ("change", "damage", "line"),
    [
        ({"qformer_norm": "pre"}, None, "say vision.qformer_norm post"),
        ({"qformer_init": "nowhere"}, None, "nowhere is no folder with model.safetensors or pytorch_model.bin"),
        ({"query_dim": 32}, None, r"has 3 layers of 24, 2 heads, .* needed are .* vision.query_dim 32"),
        ({"qformer_heads": 4}, None, "vision.qformer_heads 4"),
        ({"qformer_layers": 4}, None, "vision.qformer_layers 4 .at least"),
        ({}, "model.safetensors", "bytes where its header tells of"),
        ({}, "config.json", "config.json is missing or does not describe a BERT"),
    ],
)
def test_a_bert_that_cannot_be_taken_is_told_in_a_line(
    bert: Path, change: dict[str, object], damage: str | None, line: str
) -> None:
    config = replace(SMALL, **{"qformer_init": str(bert), **change})  # type: ignore[arg-type]
    if damage:
        damaged(bert, damage)
    (fault,) = qformer_init_faults(config)
    with pytest.raises(UserError, match=line) as told:
        build_qformer(config)
    assert str(told.value) == fault
    assert not qformer_init_faults(replace(config, qformer_init=None))
    build_qformer(config, pretrained=False)


def test_what_a_bert_holds_identifies_stage_1_and_not_where_it_lies(bert: Path, artefacts: Any) -> None:
    def identity(**vision: Any) -> str:
        changed = replace(artefacts.config, vision=replace(artefacts.config.vision, **vision))
        return step_recipe("stage1", changed).identity

    plain, begun = identity(), identity(qformer_init=str(bert))
    assert len({plain, begun, identity(qformer_norm="pre")}) == 3
    moved = bert.rename(bert.with_name("moved"))
    with pytest.raises(UserError, match=r"vision\.qformer_init: .*bert is no folder with"):
        identity(qformer_init=str(bert))
    assert identity(qformer_init=str(moved)) == begun
    path = moved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert identity(qformer_init=str(moved)) != begun


def test_artefacts_from_before_there_were_these_settings_keep_their_names() -> None:
    assert not {"qformer_norm", "qformer_init"} & config_to_dict(VisionConfig()).keys()
    assert config_to_dict(PRE) == config_to_dict(SMALL) | {"qformer_norm": "pre"}
