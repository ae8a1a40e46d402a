"""Clinical context in the prompt: its tokens, what is absent, what pads and drops it, and a decoder without it."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from amrg.config import DecoderConfig
from amrg.config_files import config_to_dict
from amrg.data.context import Context
from amrg.data.labels import LABELS
from amrg.data.studies import Study
from amrg.errors import UserError
from amrg.models.classifier import DiseaseClassifier
from amrg.models.context import ContextTokenizer, drop_context_fields, format_context, refuse_lacking_context
from amrg.models.report_generator import ReportGenerator
from amrg.models.tokenizer import IGNORE_INDEX
from amrg.training.collate import ReportCollator
from tests.models.test_report_generator import DECODING, build, classifier, inputs, one  # noqa: F401

FIELDS = ("indication", "comparison", "age", "sex")
PROMPT = "Film {image}. Asked: {context} Text:"
CONTEXTS = [Context("Chest pain.", "Two views.", "None.", 63, "female"), Context(sex="male"), Context()]


class Letters:
    """A token a character: its code."""

    def __call__(self, text: str, add_special_tokens: bool = True) -> object:
        return type("Encoding", (), {"input_ids": [ord(letter) for letter in text]})


def reading(classifier: DiseaseClassifier, **changes: object) -> ReportGenerator:  # noqa: F811
    return build(classifier, **{"context": FIELDS, "prompt": PROMPT, **changes})


def test_the_context_of_a_study_by_hand() -> None:
    """Markers, order, absent fields, and the field of each token."""
    encode = ContextTokenizer(Letters(), FIELDS, 96)
    ids_BC, field_BC = encode(CONTEXTS)
    expected = "Indication: Chest pain.\nComparison: None.\nAge: 63\nSex: female\n"
    assert "".join(map(chr, ids_BC[0])) == expected
    assert ids_BC[1].tolist() == [IGNORE_INDEX] * (len(expected) - 10) + list(map(ord, "Sex: male\n"))
    assert (ids_BC[2] == IGNORE_INDEX).all()  # absent fields leave no marker
    lengths = {0: 24, 2: 18, 3: 8, 4: 12}  # by the place of the field; technique is not asked for
    assert field_BC[0].tolist() == [place for place, length in lengths.items() for _ in range(length)]
    cut, _ = ContextTokenizer(Letters(), ("sex", "age"), 15)(CONTEXTS[:1])
    assert "".join(map(chr, cut[0])) == "Sex: female\nAge"  # from the right
    assert format_context(CONTEXTS[0], ("age", "technique")) == "Age: 63\nTechnique: Two views.\n"


def test_the_prompt_of_a_study_by_hand(classifier: DiseaseClassifier) -> None:  # noqa: F811
    """The language model's own loss on embeddings put together by hand, study by study."""
    model = reading(classifier)
    sight, groups, report_BT = inputs(model)
    context_BC = model.encode_context(CONTEXTS)
    found = model(sight, groups, report_BT, context_BC=context_BC).loss_B
    embed, tokenizer = model.decoder.get_input_embeddings(), model.tokenizer

    def words(*texts: str) -> torch.Tensor:
        return torch.tensor([i for text in texts for i in tokenizer(text, add_special_tokens=False).input_ids]).long()

    told = [("Indication: Chest pain.\n", "Comparison: None.\n", "Age: 63\n", "Sex: female\n"), ("Sex: male\n",), ()]
    for i, texts in enumerate(told):
        report = report_BT[i][report_BT[i] != IGNORE_INDEX]
        before = torch.cat([torch.tensor([tokenizer.bos_token_id]), words("Film ")])
        behind = words(". Asked: ") if not texts else torch.cat([words(". Asked: "), words(*texts)])
        streams = model.embed_streams(one(sight, i), groups[i : i + 1])
        parts = [embed(before)[None], streams, embed(torch.cat([behind, words(" Text:"), report]))[None]]
        logits = model.decoder(inputs_embeds=torch.cat(parts, dim=1)).logits[0]
        expected = F.cross_entropy(logits[-len(report) - 1 : -1], report, reduction="sum")
        torch.testing.assert_close(found[i], expected, rtol=1e-4, atol=1e-4)


def test_a_batch_is_written_as_each_study_alone(classifier: DiseaseClassifier) -> None:  # noqa: F811
    model = reading(classifier)
    sight, groups, _ = inputs(model)
    together = model.generate(sight, groups, DECODING, context_BC=model.encode_context(CONTEXTS))
    alone = [
        model.generate(one(sight, i), groups[i : i + 1], DECODING, context_BC=model.encode_context([context]))[0]
        for i, context in enumerate(CONTEXTS)
    ]
    assert together == alone
    assert together[2] == model.generate(one(sight, 2), groups[2:], DECODING)[0]  # none, and an empty one


def test_dropped_fields_are_absent_ones_and_the_dropout_is_seeded(classifier: DiseaseClassifier) -> None:  # noqa: F811
    model = reading(classifier)
    sight, groups, report_BT = inputs(model)
    full, field = model.context_encoder()(CONTEXTS[:1] * 3)
    torch.manual_seed(1)
    dropped = drop_context_fields(full, field, 0.5)
    torch.manual_seed(1)
    assert torch.equal(drop_context_fields(full, field, 0.5), dropped)
    assert not torch.equal(dropped[0], dropped[1]) or not torch.equal(dropped[0], dropped[2])
    found = model(sight, groups, report_BT, context_BC=dropped).loss_B
    for i in range(3):
        gone = {("indication", "technique", "comparison", "age", "sex")[j] for j in field[i][dropped[i] < 0].tolist()}
        kept = dataclasses.replace(CONTEXTS[0], **{name: None if name == "age" else "" for name in gone})
        alone = model.encode_context([kept])
        loss = model(one(sight, i), groups[i : i + 1], report_BT[i : i + 1], context_BC=alone).loss_B
        torch.testing.assert_close(found[i], loss[0], rtol=1e-4, atol=1e-4)
    assert torch.equal(drop_context_fields(full, field, 0.0), full)
    assert (drop_context_fields(full, field, 1.0) == IGNORE_INDEX).all()
    shares = [(drop_context_fields(full, field, 0.3)[0, 0] == IGNORE_INDEX).float() for _ in range(400)]
    assert 0.2 < torch.stack(shares).mean() < 0.4


def test_a_decoder_that_reads_none_is_as_before(classifier: DiseaseClassifier) -> None:  # noqa: F811
    """The same losses and texts bit by bit, whatever the prompt's place for it, and the same settings on disk."""
    model, plain = (build(classifier, prompt=text) for text in (PROMPT, PROMPT.replace("{context}", "")))
    sight, groups, report_BT = inputs(model)
    assert torch.equal(model(sight, groups, report_BT).loss_B, plain(sight, groups, report_BT).loss_B)
    assert model.generate(sight, groups, DECODING) == plain.generate(sight, groups, DECODING)
    assert model.encode_context(CONTEXTS) is None
    assert not {"context", "context_tokens"} & config_to_dict(DecoderConfig()).keys()


def test_the_place_of_the_context_where_the_prompt_has_none(classifier: DiseaseClassifier) -> None:  # noqa: F811
    model = reading(classifier, prompt="<Img>{image}</Img> Write.")
    words = [model.tokenizer(text, add_special_tokens=False).input_ids for text in ("</Img>", " Write.")]
    assert [model.prompt.behind, model.prompt.after] == words
    model = reading(classifier, prompt="{image}Findings:")
    assert model.prompt.behind == []
    for prompt in ("{context}{image}", "{image}{context}{context}", "{image}{retrieved}{context}"):
        with pytest.raises(UserError, match=r"may contain \{context\} once, behind \{image\} and before"):
            reading(classifier, prompt=prompt)
    with pytest.raises(UserError, match="names a field twice"):
        reading(classifier, context=("age", "age"))


def test_context_alone_can_be_read(classifier: DiseaseClassifier) -> None:  # noqa: F811
    """The text-only control: a decoder without any stream."""
    off = dict.fromkeys(
        (f"use_{name}" for name in ("visual_tokens", "queries", "visual_memory", "report_memory")), False
    )
    model = reading(classifier, **off)
    sight, groups, report_BT = inputs(model)
    context_BC = model.encode_context(CONTEXTS)
    loss = model(sight, groups, report_BT, context_BC=context_BC).loss_B
    other = sight._replace(tokens_BND=sight.tokens_BND + 1, queries_BQD=sight.queries_BQD + 1)
    assert torch.equal(model(other, groups, report_BT, context_BC=context_BC).loss_B, loss)
    assert model.prefix_length == 0
    loss.sum().backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(parameter.grad is not None for name, parameter in trained.items() if not name.startswith("stage1."))
    assert len(model.generate(sight, groups, DECODING, context_BC=context_BC)) == 3


def test_positions_of_the_context_are_counted(classifier: DiseaseClassifier) -> None:  # noqa: F811
    model = reading(classifier, context_tokens=50)
    model.settings = dataclasses.replace(model.settings, model="another")
    words = sum(map(len, (model.prompt.before, model.prompt.behind, model.prompt.between, model.prompt.after)))
    most = model.decoder.config.max_position_embeddings - words - model.prefix_length - 50
    model.refuse_too_long("stage2.max_report_tokens", most)
    with pytest.raises(UserError, match=rf"lower it to {most} or less"):
        model.refuse_too_long("stage2.max_report_tokens", most + 1)


def test_studies_are_collated_with_their_context(classifier: DiseaseClassifier) -> None:  # noqa: F811
    model = reading(classifier)
    studies = [Study(str(i), "g", "train", "Clear.", dict.fromkeys(LABELS), context=c) for i, c in enumerate(CONTEXTS)]
    batch = ReportCollator(model.report_encoder(9), model.context_encoder())(studies)
    assert torch.equal(batch["context"], model.encode_context(CONTEXTS))
    assert batch["context"].shape == batch["context_field"].shape
    assert "context" not in ReportCollator(model.report_encoder(9))(studies)
    refuse_lacking_context("decoder.context", FIELDS, studies)
    with pytest.raises(UserError, match=r"decoder\.context technique: no train study has it"):
        refuse_lacking_context("decoder.context", ("technique", "sex"), studies[1:])
