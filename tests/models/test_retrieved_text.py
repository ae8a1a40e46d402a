"""Retrieved text in the prompt: where it stands, what pads it, and what a decoder without text reads."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from amrg.errors import UserError
from amrg.models.classifier import DiseaseClassifier
from amrg.models.report_generator import ReportGenerator
from amrg.models.tokenizer import IGNORE_INDEX
from tests.models.test_report_generator import DECODING, build, classifier, inputs, one  # noqa: F401

PROMPT = "Film {image}. Alike: {retrieved} Text:"
TEXT_BL = torch.tensor([[5, 9, 11, 20], [IGNORE_INDEX, IGNORE_INDEX, 30, 31], [IGNORE_INDEX] * 4])


def reading(classifier: DiseaseClassifier, **changes: object) -> ReportGenerator:  # noqa: F811
    return build(classifier, use_retrieved_text=True, prompt=PROMPT, **changes)


def test_the_loss_is_that_of_each_study_alone_with_its_text_unpadded(classifier: DiseaseClassifier) -> None:  # noqa: F811
    """The language model's own loss on embeddings put together by hand."""
    model = reading(classifier)
    sight, groups, report_BT = inputs(model)
    found = model(sight, groups, report_BT, retrieved_BL=TEXT_BL).loss_B
    embed, prompt = model.decoder.get_input_embeddings(), model.prompt
    for i, text in enumerate(TEXT_BL):
        words = [torch.tensor(ids, dtype=torch.long) for ids in (prompt.before, prompt.between, prompt.after)]
        before, between, after = (embed(ids)[None] for ids in words)
        report = report_BT[i][report_BT[i] != IGNORE_INDEX]
        parts = [before, model.embed_streams(one(sight, i), groups[i : i + 1]), between]
        parts += [embed(text[text != IGNORE_INDEX])[None], after, embed(report)[None]]
        logits = model.decoder(inputs_embeds=torch.cat(parts, dim=1)).logits[0]
        expected = F.cross_entropy(logits[-len(report) - 1 : -1], report, reduction="sum")
        torch.testing.assert_close(found[i], expected, rtol=1e-4, atol=1e-4)
    assert len({round(x.item(), 3) for x in found}) == 3


def test_padding_changes_neither_gradients_nor_what_is_written(classifier: DiseaseClassifier) -> None:  # noqa: F811
    model = reading(classifier)
    sight, groups, report_BT = inputs(model)
    wider_BL = F.pad(TEXT_BL, (3, 0), value=IGNORE_INDEX)
    gradients = []
    for text_BL in (TEXT_BL, wider_BL):
        model.zero_grad()
        model(sight, groups, report_BT, retrieved_BL=text_BL).loss_B.sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5)
    together = model.generate(sight, groups, DECODING, retrieved_BL=wider_BL)
    alone = [
        model.generate(one(sight, i), groups[i : i + 1], DECODING, retrieved_BL=text[text != IGNORE_INDEX][None])[0]
        for i, text in enumerate(TEXT_BL)
    ]
    assert together == alone


def test_text_reaches_the_loss_and_is_hidden_in_training_like_any_stream(classifier: DiseaseClassifier) -> None:  # noqa: F811
    model = reading(classifier)
    sight, groups, report_BT = inputs(model)
    base = model(sight, groups, report_BT, retrieved_BL=TEXT_BL).loss_B
    changed_BL = TEXT_BL.clone()
    changed_BL[0, 1] = 7
    changed = model(sight, groups, report_BT, retrieved_BL=changed_BL).loss_B
    assert changed[0] != base[0]
    torch.testing.assert_close(changed[1:], base[1:])
    hiding = reading(classifier, prefix_dropout=0.999).train()
    torch.manual_seed(0)
    streams, embedding = hiding.embed_streams(sight, groups), hiding.decoder.get_input_embeddings()
    prefix, _ = hiding.prompt.embed(embedding, streams, TEXT_BL, hiding.training)
    first = len(hiding.prompt.before) + hiding.prefix_length + len(hiding.prompt.between)
    assert (prefix[:, first : first + 4] == 0).all()
    assert (prefix[:, : len(hiding.prompt.before)] != 0).any()
    losses = []
    for text_BL in (TEXT_BL, changed_BL):
        torch.manual_seed(0)
        losses.append(hiding(sight, groups, report_BT, retrieved_BL=text_BL).loss_B)
    assert torch.equal(*losses)


def test_without_text_the_prompt_closes_around_its_place(classifier: DiseaseClassifier) -> None:  # noqa: F811
    model = build(classifier, prompt=PROMPT)
    plain = build(classifier, prompt=PROMPT.replace("{retrieved}", ""))
    sight, groups, report_BT = inputs(model)
    assert torch.equal(model(sight, groups, report_BT).loss_B, plain(sight, groups, report_BT).loss_B)


@pytest.mark.parametrize("prompt", ["{image} Text:", "{retrieved} {image} Text:", "{image} {retrieved} {retrieved}"])
def test_a_prompt_has_one_place_for_the_text_behind_the_image(classifier: DiseaseClassifier, prompt: str) -> None:  # noqa: F811
    with pytest.raises(UserError, match=r"decoder\.prompt must contain \{retrieved\} once, behind \{image\}"):
        build(classifier, use_retrieved_text=True, prompt=prompt)


def test_text_without_vectors_asks_the_visual_memory_and_trains_nothing_of_it(classifier: DiseaseClassifier) -> None:  # noqa: F811
    model = reading(classifier, use_visual_memory=False, use_report_memory=False)
    sight, groups, report_BT = inputs(model)
    assert list(model.memories) == ["visual"]
    assert model.streamed == {}
    assert model.stream_slices["visual memory"] == slice(
        model.stream_slices["queries"].stop, model.stream_slices["queries"].stop
    )
    assert list(model.associations(sight, groups, 3)) == ["visual"]
    model(sight, groups, report_BT, retrieved_BL=TEXT_BL).loss_B.sum().backward()
    assert not any(parameter.requires_grad for parameter in model.visual_memory.parameters())
    assert model.finding_QE.grad is not None
    assert dataclasses.asdict(model.settings)["use_retrieved_text"]
