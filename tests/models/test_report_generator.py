"""The report generator against an independent computation, and the properties it must have."""

import dataclasses
import math
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import CompileConfig

from amrg.banks.bank import normalise_rows
from amrg.config import DecoderConfig, GenerateConfig, MemoryConfig, VisionConfig
from amrg.errors import UserError
from amrg.models.cam import activation_maps
from amrg.models.classifier import DiseaseClassifier
from amrg.models.decoder import build_decoder
from amrg.models.memory_layer import LocalBank
from amrg.models.regions import PLACES, regions_of_films, regions_of_studies
from amrg.models.report_generator import ReportGenerator
from amrg.models.tokenizer import IGNORE_INDEX
from amrg.models.vision_output import NORMAL_LOUDNESS, VisionOutput, pool_token_grid

REPORTS = ["The heart is large. Clear lungs.", "Small left effusion.", "Normal."]
SETTINGS = DecoderConfig(
    hidden_size=16, layers=2, heads=2, vocab_size=60, max_visual_tokens=4, prompt="Film {image}. Text:"
)
VISION = VisionConfig(embed_dim=32, depths=(1, 1), query_dim=24, qformer_layers=1, qformer_heads=2, image_size=64)
DECODING = GenerateConfig(num_beams=2, max_new_tokens=6)


def banks() -> tuple[LocalBank, LocalBank]:
    generator = torch.Generator().manual_seed(7)
    groups = torch.tensor([0, 0, 1, 1, 2, -1, 9])
    return tuple(LocalBank(normalise_rows(torch.randn(7, dim, generator=generator)), None, groups) for dim in (24, 5))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def classifier() -> DiseaseClassifier:
    torch.manual_seed(0)
    return DiseaseClassifier(VISION, pretrained=False).requires_grad_(False).eval()


MEMORY = MemoryConfig(heads=2, head_dim=4, beta=2.0)


def build(classifier: DiseaseClassifier, memory: MemoryConfig = MEMORY, **changes: object) -> ReportGenerator:
    settings = dataclasses.replace(SETTINGS, **changes)  # type: ignore[arg-type]
    torch.manual_seed(3)
    parts = build_decoder(settings, REPORTS, 0)
    return ReportGenerator(classifier, *parts, banks(), memory, settings).eval()


def inputs(model: ReportGenerator) -> tuple[VisionOutput, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    encoded = [torch.tensor(model.report_encoder(50)(report)) for report in REPORTS]
    report_BT = torch.nn.utils.rnn.pad_sequence(encoded, batch_first=True, padding_value=IGNORE_INDEX)
    seen = VisionOutput(*(torch.randn(3, *shape, generator=generator) for shape in model.vision_output_shapes))
    places_BQP = seen.places_BQP.softmax(-1)
    states_BQD = normalise_rows(torch.cat([seen.states_BQD[..., :-PLACES], places_BQP.sqrt()], dim=-1))
    sight = seen._replace(
        states_BQD=states_BQD, places_BQP=places_BQP, peaks_BQ=seen.peaks_BQ.abs(), boxes_BQ5=torch.zeros(3, 14, 5)
    )
    return sight, torch.tensor([0, 1, 2]), report_BT


def own_reports() -> Tensor:
    """Of each study and label; the second study says nothing of the last label, the third nothing at all."""
    own_BQD = normalise_rows(torch.randn(3, 14, 5, generator=torch.Generator().manual_seed(1)))
    own_BQD[1, -1], own_BQD[2] = 0.0, 0.0
    return own_BQD


def one(sight: VisionOutput, i: int) -> VisionOutput:
    return VisionOutput(*(part[i : i + 1] for part in sight))


def test_loss_is_the_cross_entropy_of_the_report_tokens_alone(classifier: DiseaseClassifier) -> None:
    """One study at a time, unpadded, with the labels of transformers' own loss."""
    model = build(classifier)
    sight, groups, report_BT = inputs(model)
    found = model(sight, groups, report_BT)
    assert found.retrieval_B is None
    embed = model.decoder.get_input_embeddings()
    for i in range(3):
        streams = model.embed_streams(one(sight, i), groups[i : i + 1])
        assert streams.shape == (1, 4 + 3 * 14, 16)
        report = report_BT[i][report_BT[i] != IGNORE_INDEX]
        assert report[-1] == model.tokenizer.eos_token_id
        words = model.prompt.before, model.prompt.after, report.tolist()
        before, after, text = (embed(torch.tensor(ids))[None] for ids in words)
        whole = torch.cat([before, streams, after, text], dim=1)
        labels = torch.full(whole.shape[:2], IGNORE_INDEX)
        labels[0, -len(report) :] = report
        mean = model.decoder(inputs_embeds=whole, labels=labels).loss
        torch.testing.assert_close(found.loss_B[i], mean * len(report), rtol=1e-4, atol=1e-4)


def test_gradients_reach_what_is_trained_and_nothing_else(classifier: DiseaseClassifier) -> None:
    model = build(classifier)
    model(*inputs(model)).loss_B.sum().backward()
    names = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    for part in ("projection", "norm", "visual_memory.q_proj", "report_memory.out_proj", "decoder"):
        assert any(name.startswith(part) for name in names), part
    assert not any(name.startswith("stage1") for name in names)
    assert not any("memory.memory" in name for name in (*dict(model.named_parameters()), *model.state_dict()))


def test_rows_of_the_patient_are_invisible(classifier: DiseaseClassifier) -> None:
    model = build(classifier)
    sight, groups, _ = inputs(model)
    before = model.embed_streams(sight, groups)
    for memory in (model.visual_memory, model.report_memory):
        assert memory is not None
        assert memory.memory is not None
        memory.memory[:2] += 5.0  # rows of group 0
    after = model.embed_streams(sight, groups)
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
    assert not torch.allclose(after[1], before[1])
    found = model.associations(sight, groups, 7)
    assert list(found) == ["visual", "report"]
    for weights_BQJ, rows_BQJ in found.values():
        assert set(rows_BQJ[0].flatten().tolist()) == {2, 3, 4, 5, 6, -1}
        torch.testing.assert_close(weights_BQJ.sum(-1), torch.ones(3, 14), rtol=0, atol=1e-4)
        assert torch.equal(weights_BQJ, weights_BQJ.sort(-1, descending=True).values)
    assert all(
        part.shape == (3, 14, 7) for one_of in model.associations(sight, groups, 999).values() for part in one_of
    )


def test_a_study_is_written_alike_alone_and_in_a_batch(classifier: DiseaseClassifier) -> None:
    model = build(classifier)
    sight, groups, _ = inputs(model)
    together = model.generate(sight, groups, DECODING)
    alone = [model.generate(one(sight, i), groups[i : i + 1], DECODING)[0] for i in range(3)]
    assert together == alone


def test_saved_and_loaded(classifier: DiseaseClassifier, tmp_path: Path) -> None:
    model = build(classifier)
    for parameter in (model.projection.weight, model.norm.bias):
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(tmp_path / "model")
    loaded = ReportGenerator.from_pretrained(tmp_path / "model", banks())
    batch = inputs(model)
    torch.testing.assert_close(loaded(*batch), model(*batch), rtol=0, atol=0)
    assert loaded.generate(*batch[:2], DECODING) == model.generate(*batch[:2], DECODING)
    wrong = LocalBank(torch.randn(4, 11), None, torch.zeros(4, dtype=torch.long))
    with pytest.raises(UserError, match="banks"):
        ReportGenerator.from_pretrained(tmp_path / "model", (wrong, wrong))
    with pytest.raises(UserError, match="amrg stage2"):
        ReportGenerator.from_pretrained(tmp_path, banks())


@pytest.mark.parametrize("tuning", ["lora", "frozen"])
def test_another_base_model_is_refused(classifier: DiseaseClassifier, tmp_path: Path, tuning: str) -> None:
    base, tokenizer = build_decoder(SETTINGS, REPORTS, 0)
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    model = build(classifier, model=str(tmp_path / "base"), tuning=tuning)
    model.save_pretrained(tmp_path / "model")
    batch = inputs(model)
    loaded = ReportGenerator.from_pretrained(tmp_path / "model", banks())
    torch.testing.assert_close(loaded(*batch), model(*batch), rtol=0, atol=0)
    base.get_input_embeddings().weight.data[3, 5] += 1e-3
    base.save_pretrained(tmp_path / "base")
    with pytest.raises(UserError, match="another base model"):
        ReportGenerator.from_pretrained(tmp_path / "model", banks())


def test_views_of_a_study_are_averaged(classifier: DiseaseClassifier) -> None:
    model = build(classifier)
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found, single = model.encode_images(images, [2, 1]), model.encode_images(images, [1, 1, 1])
    for part, alone in zip((*found[:3], found.film_BD), (*single[:3], single.film_BD), strict=True):
        torch.testing.assert_close(part, torch.stack([alone[:2].mean(0), alone[2]]))
    grid = model.stage1(images).projected_BHWD
    torch.testing.assert_close(single.film_BD, grid.flatten(1, 2).sum(1) / grid[0, :, :, 0].numel())
    assert [part.shape[1:] for part in found] == [torch.Size(shape) for shape in model.vision_output_shapes]
    assert (*found.tokens_BND.shape[1:2], *found.queries_BQD.shape[1:]) == model.vision_shape


@pytest.mark.parametrize(
    ("off", "length"),
    [("use_visual_tokens", 42), ("use_queries", 32), ("use_visual_memory", 32), ("use_report_memory", 32)],
)
def test_each_stream_can_be_switched_off(classifier: DiseaseClassifier, off: str, length: int) -> None:
    model = build(classifier, **{off: False})
    sight, groups, report_BT = inputs(model)
    assert model.embed_streams(sight, groups).shape[1] == length
    model(sight, groups, report_BT).loss_B.sum().backward()
    idle = {name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None}
    # The softmax drops what does not depend on the row; these serve only further association steps.
    assert {name.split(".", 1)[1] for name in idle} <= {"key_shift", "k_proj.bias"}


def test_a_hidden_memory_is_never_read(classifier: DiseaseClassifier) -> None:
    """Whatever is in the bank, the report is the same; and places tell which positions a memory fills."""
    model = build(classifier)
    sight, groups, _ = inputs(model)
    assert list(model.stream_slices.values()) == [slice(0, 4), slice(4, 18), slice(18, 32), slice(32, 46)]
    before = model.embed_streams(sight, groups)
    hidden = model.generate(sight, groups, DECODING, hidden=["report memory"])
    memory = model.report_memory
    assert memory is not None
    memory.set_bank(LocalBank(normalise_rows(torch.randn(9, 5)), None, torch.arange(9)))
    torch.nn.init.normal_(memory.out_proj.bias, std=9.0)
    changed = (model.embed_streams(sight, groups) != before).any(dim=-1).any(dim=0)
    assert changed.tolist() == [position >= 32 for position in range(46)]
    assert model.generate(sight, groups, DECODING, hidden=["report memory"]) == hidden
    assert build(classifier, use_visual_tokens=False, use_visual_memory=False).stream_slices["report memory"] == slice(
        14, 28
    )


def test_each_position_has_a_mark_of_its_own(classifier: DiseaseClassifier) -> None:
    """Visual tokens that are all alike differ by their marks and by nothing else."""
    model = build(classifier)
    sight, groups, _ = inputs(model)
    alike = sight._replace(tokens_BND=sight.tokens_BND[:, :1].expand_as(sight.tokens_BND))
    tokens_BNE = model.embed_streams(alike, groups)[:, :4]
    assert torch.pdist(tokens_BNE[0]).min() > 0.1 * model.norm.weight[0]
    unmarked_BNE = tokens_BNE - model.mark_PE[:4]
    torch.testing.assert_close(unmarked_BNE, unmarked_BNE[:, :1].expand_as(unmarked_BNE))


def test_streams_are_hidden_in_training_only(classifier: DiseaseClassifier) -> None:
    model = build(classifier, prefix_dropout=0.999999, use_queries=False, dropout=0.0)
    sight, groups, _ = inputs(model)
    torch.manual_seed(0)
    assert not model.train().embed_streams(sight, groups).any()
    assert model.eval().embed_streams(sight, groups).all(dim=-1).all()
    visible = build(classifier, use_queries=False, dropout=0.0)
    torch.testing.assert_close(model.embed_streams(sight, groups), visible.embed_streams(sight, groups))


def test_settings_that_make_no_sense(classifier: DiseaseClassifier) -> None:
    with pytest.raises(UserError, match=r"\{image\}"):
        build(classifier, prompt="no place for the film")
    with pytest.raises(UserError, match="at least one"):
        build(classifier, use_visual_tokens=False, use_queries=False, use_visual_memory=False, use_report_memory=False)


def test_pooling_keeps_the_mean_and_the_order() -> None:
    tokens = torch.arange(16.0).view(1, 16, 1)
    torch.testing.assert_close(pool_token_grid(tokens, 5), torch.tensor([2.5, 4.5, 10.5, 12.5]).view(1, 4, 1))
    assert pool_token_grid(tokens, 16) is tokens
    assert pool_token_grid(tokens, 0).shape == (1, 0, 1)


def test_a_cut_report_has_no_end(classifier: DiseaseClassifier) -> None:
    model = build(classifier)
    whole = model.report_encoder(50)(REPORTS[0])
    assert whole[-1] == model.tokenizer.eos_token_id
    assert model.report_encoder(3)(REPORTS[0]) == whole[:3]
    assert model.report_encoder(len(whole) - 1)(REPORTS[0]) == whole


def test_a_stranger_can_ask_and_own_rows_can_be_shown(classifier: DiseaseClassifier) -> None:
    model = build(classifier)
    sight, groups, _ = inputs(model)
    order = torch.tensor([1, 2, 0])
    places = model.stream_slices
    strangers = VisionOutput(*(part[order] for part in sight))
    swapped, own = model.embed_streams(sight, groups, strangers), model.embed_streams(sight, groups)
    for name in ("visual tokens", "queries"):
        assert torch.equal(swapped[:, places[name]], own[:, places[name]])
    for name in ("visual memory", "report memory"):
        assert not torch.allclose(swapped[:, places[name]], own[:, places[name]])
        asked = model.embed_streams(strangers, groups)[:, places[name]]  # marks and patients are the same
        torch.testing.assert_close(swapped[:, places[name]], asked)
    model.memory_config = dataclasses.replace(model.memory_config, mask_same_patient=False)
    unmasked = model.embed_streams(sight, torch.full((3,), 5), None)  # no row is of group 5: nothing could be hidden
    assert torch.equal(model.embed_streams(sight, groups), unmasked)
    assert not torch.allclose(unmasked[:, places["report memory"]], own[:, places["report memory"]])


def test_plain_cross_attention_takes_the_memories_place(classifier: DiseaseClassifier, tmp_path: Path) -> None:
    torch.manual_seed(3)
    memory = MemoryConfig(heads=2, head_dim=4, retrieval="cross_attention")
    parts = build_decoder(SETTINGS, REPORTS, 0)
    model = ReportGenerator(classifier, *parts, banks(), memory, SETTINGS).eval()
    sight, groups, report_BT = inputs(model)
    expected = model.visual_memory(model.memory_states(sight)["visual"], query_group=groups)
    place = model.stream_slices["visual memory"]
    streams = model.norm(model.projection(expected)) + model.mark_PE[place]
    torch.testing.assert_close(model.embed_streams(sight, groups)[:, place], streams)
    model(sight, groups, report_BT).loss_B.sum().backward()
    assert model.visual_memory.k_proj.weight.grad.abs().sum() > 0
    rows_BQJ = model.associations(sight, groups, 2)["visual"].rows_BQJ
    assert not {0, 1} & set(rows_BQJ[0].flatten().tolist())  # rows of the study's own patient
    model.save_pretrained(tmp_path / "model")
    again = ReportGenerator.from_pretrained(tmp_path / "model", banks())
    assert torch.equal(again.embed_streams(sight, groups), model.embed_streams(sight, groups))


def test_only_what_asks_the_report_memory_learns_from_it(classifier: DiseaseClassifier) -> None:
    model = build(classifier)
    own_BQD = own_reports()
    found = model(*inputs(model), own_BQD)
    assert found.retrieval_B is not None
    torch.testing.assert_close(found.loss_B, model(*inputs(model)).loss_B, rtol=0, atol=0)
    found.retrieval_B.sum().backward()
    learned = {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert learned
    assert all(name.startswith("report_memory.") for name in learned), learned
    assert not any(part in name for name in learned for part in ("v_proj", "value_", "out_proj"))


def test_a_small_bank_is_learned_to_be_asked_for_the_right_rows(classifier: DiseaseClassifier) -> None:
    model = build(classifier)
    given, own_BQD = inputs(model), own_reports()
    optimizer = torch.optim.Adam([p for n, p in model.named_parameters() if n.startswith("report_memory")], lr=0.02)
    losses = []
    for _ in range(150):
        loss_B = model(*given, own_BQD).retrieval_B
        assert loss_B is not None
        optimizer.zero_grad()
        loss_B.sum().backward()
        optimizer.step()
        losses.append(loss_B.sum().item())
    assert losses[-1] < 0.2 * losses[0], losses[::30]


def test_a_film_is_asked_for_by_its_own_regions(classifier: DiseaseClassifier) -> None:
    """Those of the map that the bank was mined with; of two films, each label's where it is plainer."""
    model = build(classifier)
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    seen = classifier(images)
    for method in ("layercam", "gradcam"):
        model.map_method = method
        maps = activation_maps(classifier.cam_head, seen.fine_BHWC, method)
        expected = regions_of_studies(regions_of_films(seen.projected_BHWD, maps), [2, 1])
        for part, truth in zip(model.encode_images(images, [2, 1]).regions, expected, strict=True):
            torch.testing.assert_close(part, truth)


@pytest.mark.parametrize("query", ["placed_regions", "regions", "queries"])
def test_states_that_ask_by_hand(classifier: DiseaseClassifier, query: Literal["placed_regions"]) -> None:
    model = build(classifier, dataclasses.replace(MEMORY, visual_query=query))
    sight, _, _ = inputs(model)
    logits = sight.logits_BQ.clone()
    states = model.memory_states(sight)
    assert states["report"] is sight.queries_BQD
    if query == "queries":
        assert states["visual"] is sight.queries_BQD
        assert model.visual_memory.sharpness_H is None
        return
    for b in range(3):
        for k in range(14):
            expected = sight.states_BQD[b, k] * (NORMAL_LOUDNESS if k == 13 else 1 / (1 + math.exp(-logits[b, k])))
            if query == "regions":
                expected[-PLACES:] = 0.0
            torch.testing.assert_close(states["visual"][b, k], expected)
    assert torch.equal(sight.logits_BQ, logits)
    assert model.visual_memory.sharpness_H.tolist() == [MEMORY.sharpness] * 2
    assert model.report_memory.sharpness_H is None


def test_the_surer_stage_1_is_the_sharper_the_visual_memory_associates(classifier: DiseaseClassifier) -> None:
    model = build(classifier)
    sight, groups, _ = inputs(model)
    entropies = []
    for logit in (-6.0, 0.0, 6.0):
        found = model.associations(sight._replace(logits_BQ=torch.full((3, 14), logit)), groups, 7)
        entropies.append(torch.special.entr(found["visual"].weights_BQJ).sum(-1))
    assert (entropies[0][:, :13] > entropies[1][:, :13]).all()
    assert (entropies[1][:, :13] >= entropies[2][:, :13]).all()
    torch.testing.assert_close(entropies[0][:, 13], entropies[2][:, 13])  # No Finding asks as softly on any film


def test_compiled_writing_says_the_same(classifier: DiseaseClassifier) -> None:
    """With the static cache of a GPU, and the step captured; not lowered, which takes long."""
    model = build(classifier)
    sight, groups, _ = inputs(model)
    decoding = GenerateConfig(num_beams=1, max_new_tokens=8, min_new_tokens=8)
    begin = ["The heart is large.", "Small", ""]
    expected = model.generate(sight, groups, decoding, forced_prefixes=begin)
    everywhere = CompileConfig(backend="eager")
    everywhere._compile_all_devices = True
    model.decoder.generation_config.compile_config = everywhere
    captured = counters["stats"]["unique_graphs"]
    compiled = dataclasses.replace(decoding, compile=True)
    assert model.generate(sight, groups, compiled, forced_prefixes=begin) == expected
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > captured
    assert model.generate(sight, groups, compiled, forced_prefixes=begin[::-1]) != expected
    assert counters["stats"]["unique_graphs"] == graphs  # once for all batches of a size


@pytest.mark.parametrize("beams", [1, 3])
def test_a_report_goes_on_from_what_it_begins_with(classifier: DiseaseClassifier, beams: int) -> None:
    """As the decoder does by itself behind the same embedded tokens; beginnings of a batch differ in length."""
    model = build(classifier)
    sight, groups, _ = inputs(model)
    begin = ["The heart is large.", "Small", ""]
    decoding = GenerateConfig(num_beams=beams, max_new_tokens=20, length_penalty=0.0)
    found = model.generate(sight, groups, decoding, forced_prefixes=begin)
    for i, text in enumerate(begin):
        ids = model.tokenizer(text, add_special_tokens=False).input_ids
        embedding = model.decoder.get_input_embeddings()
        prefix, _ = model.prompt.embed(embedding, model.embed_streams(one(sight, i), groups[i : i + 1]))
        embedded = embedding(torch.tensor([ids], dtype=torch.long))
        written = model.decoder.generate(
            inputs_embeds=torch.cat([prefix, embedded], dim=1),
            max_new_tokens=20 - len(ids),
            num_beams=beams,
            do_sample=False,
            length_penalty=0.0,
            eos_token_id=model.tokenizer.eos_token_id,
            pad_token_id=model.tokenizer.pad_token_id,
        )
        expected = model.tokenizer.batch_decode([ids + written[0].tolist()], skip_special_tokens=True)[0]
        assert found[i].startswith(text)
        assert found[i] == expected.strip()
