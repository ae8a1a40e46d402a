"""The earlier study as input of the decoder: its tokens, its films, what is absent, and a decoder without it."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from amrg.config import DecoderConfig, GenerateConfig, Stage2Config
from amrg.config_files import config_to_dict
from amrg.data.labels import LABELS
from amrg.data.prior import Prior
from amrg.data.studies import Study
from amrg.errors import UserError
from amrg.models.classifier import DiseaseClassifier
from amrg.models.prior import (
    ALONE,
    FILMS,
    TEXT,
    PriorFilms,
    PriorInputs,
    PriorTokenizer,
    drop_batch_priors,
    format_prior,
)
from amrg.models.report_generator import ReportGenerator
from amrg.models.tokenizer import IGNORE_INDEX
from amrg.training.collate import ReportCollator
from tests.models.test_context import Letters
from tests.models.test_report_generator import DECODING, build, classifier, inputs, one  # noqa: F401

PROMPT = "Film {image}. Asked: {context} Text:"
BOTH = ("report", "films")
PRIORS = [Prior("a", "Small effusion.", 30), None, Prior("b", "Clear.")]


def reading(classifier: DiseaseClassifier, **changes: object) -> ReportGenerator:  # noqa: F811
    return build(classifier, **{"prior": BOTH, "prompt": PROMPT, **changes})


def given(model: ReportGenerator, priors: list[Prior | None] = PRIORS) -> PriorInputs:
    """The inputs of priors, whose films are those of the studies in another order; that of no prior is not a number."""
    sight, *_ = inputs(model)
    given_B = torch.tensor([prior is not None for prior in priors])
    films = [part[[2, 0, 1]][: len(priors)].clone() for part in sight[:3]]
    for part in films:
        part[~given_B] = 7.0
    return PriorInputs(model.encode_priors(priors), PriorFilms(*films, given_B))


def study_of(prior: PriorInputs, i: int) -> PriorInputs:
    assert prior.films is not None
    return PriorInputs(prior.text_BR[i : i + 1], PriorFilms(*(part[i : i + 1] for part in prior.films)))


def test_the_text_of_an_earlier_study_by_hand() -> None:
    assert format_prior(PRIORS[0], BOTH) == "Earlier report (30 days before): Small effusion.\n"
    assert format_prior(PRIORS[2], BOTH) == "Earlier report: Clear.\n"
    assert format_prior(PRIORS[0], ("films",)) == "Earlier film (30 days before)\n"
    assert format_prior(Prior("a", "", 1), BOTH) == "Earlier film (1 day before)\n"
    assert (
        format_prior(PRIORS[2], ("films",)) == format_prior(None, BOTH) == format_prior(Prior("a"), ("report",)) == ""
    )
    ids_BR = PriorTokenizer(Letters(), ("report",), 14)(PRIORS)
    assert "".join(map(chr, ids_BR[0])) == "Earlier report"  # cut on the right
    assert (ids_BR[1] == IGNORE_INDEX).all()


def test_the_prefix_of_a_study_by_hand(classifier: DiseaseClassifier) -> None:  # noqa: F811
    """The language model's own loss on embeddings put together by hand; an absent prior has no place."""
    model = reading(classifier)
    sight, groups, report_BT = inputs(model)
    prior = given(model)
    found = model(sight, groups, report_BT, prior=prior).loss_B
    embed, tokenizer = model.decoder.get_input_embeddings(), model.tokenizer

    def words(text: str) -> torch.Tensor:
        return torch.tensor(tokenizer(text, add_special_tokens=False).input_ids).long()

    for i, text in enumerate(("Earlier report (30 days before): Small effusion.\n", "", "Earlier report: Clear.\n")):
        report = report_BT[i][report_BT[i] != IGNORE_INDEX]
        before = torch.cat([torch.tensor([tokenizer.bos_token_id]), words("Film ")])
        behind = torch.cat([words(". Asked: "), words(text), words(" Text:"), report])
        films = []
        if text:
            tokens, queries, logits = (part[i : i + 1] for part in prior.films[:3])
            streams = model.norm(model.projection(torch.cat([tokens, queries], dim=1)))
            streams = streams + model.mark_PE[: streams.shape[1]] + model.earlier_E
            streams[:, tokens.shape[1] :] += logits.sigmoid()[..., None] * model.finding_QE
            films = [streams]
        own = model.embed_streams(one(sight, i), groups[i : i + 1])
        logits = model.decoder(
            inputs_embeds=torch.cat([embed(before)[None], own, *films, embed(behind)[None]], 1)
        ).logits
        expected = F.cross_entropy(logits[0, -len(report) - 1 : -1], report, reduction="sum")
        torch.testing.assert_close(found[i], expected, rtol=1e-4, atol=1e-4)


def test_a_batch_is_written_as_each_study_alone(classifier: DiseaseClassifier) -> None:  # noqa: F811
    model = reading(classifier)
    sight, groups, _ = inputs(model)
    prior = given(model)
    together = model.generate(sight, groups, DECODING, prior=prior)
    alone = [model.generate(one(sight, i), groups[i : i + 1], DECODING, prior=study_of(prior, i))[0] for i in range(3)]
    assert together == alone
    assert together[1] == model.generate(one(sight, 1), groups[1:2], DECODING)[0]  # none, and a masked one


def test_the_loss_reaches_the_mark_of_earlier_films_only_where_there_are_some(
    classifier: DiseaseClassifier,  # noqa: F811
) -> None:
    model = reading(classifier)
    sight, groups, report_BT = inputs(model)
    model(sight, groups, report_BT, prior=given(model)).loss_B.sum().backward()
    assert model.earlier_E.grad.abs().sum() > 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    model.zero_grad()
    nothing = given(model, [None, None, None])
    model(sight, groups, report_BT, prior=nothing).loss_B.sum().backward()
    assert model.earlier_E.grad is not None  # so that every rank reduces it
    assert not model.earlier_E.grad.any()


def test_a_decoder_that_reads_none_is_as_before(classifier: DiseaseClassifier) -> None:  # noqa: F811
    """The same losses bit by bit, the same parameters, and the same settings on disk."""
    plain = build(classifier, prompt=PROMPT.replace("{context}", ""))
    assert "earlier_E" not in dict(plain.named_parameters())
    assert plain.encode_priors(PRIORS) is None
    report = reading(classifier, prior=("report",), prompt=PROMPT)
    assert "earlier_E" not in dict(report.named_parameters())
    sight, groups, report_BT = inputs(plain)
    assert torch.equal(
        plain(sight, groups, report_BT).loss_B, plain(sight, groups, report_BT, prior=PriorInputs()).loss_B
    )
    settings = config_to_dict(DecoderConfig()) | config_to_dict(Stage2Config()) | config_to_dict(GenerateConfig())
    assert not {"prior", "prior_study", "prior_tokens", "prior_dropout"} & settings.keys()


def test_the_context_stands_before_the_earlier_report(classifier: DiseaseClassifier) -> None:  # noqa: F811
    model = reading(classifier, prior=("report",), context=("sex",))
    sight, groups, report_BT = inputs(model)
    context_BC = model.tokenizer("Sex: male\n", add_special_tokens=False, return_tensors="pt").input_ids.expand(3, -1)
    text_BR = model.encode_priors(PRIORS)
    apart = model(sight, groups, report_BT, context_BC=context_BC, prior=PriorInputs(text_BR)).loss_B
    joined = model(sight, groups, report_BT, context_BC=torch.cat([context_BC, text_BR], 1)).loss_B
    assert torch.equal(apart, joined)


def test_targets_have_words_of_change_only_with_a_prior(classifier: DiseaseClassifier) -> None:  # noqa: F811
    model = reading(classifier)
    texts = [
        "Clear lungs. Heart size is unchanged from the prior film.",
        "Stable cardiomegaly.",
        "No change since then.",
    ]
    studies = [Study(str(i), "g", "train", text, dict.fromkeys(LABELS)) for i, text in enumerate(texts)]
    collate = ReportCollator(model.report_encoder(90), None, model.prior_encoder(), {"0": PRIORS[0]})
    batch = collate(studies)

    def read(row: torch.Tensor) -> str:
        return model.tokenizer.decode(row[row != IGNORE_INDEX], skip_special_tokens=True)

    def written(text: str) -> str:
        return model.tokenizer.decode(model.tokenizer(text, add_special_tokens=False).input_ids)

    assert [read(row) for row in batch["report"]] == [written(texts[0]), written("Cardiomegaly."), ""]
    assert [read(row) for row in batch[ALONE]] == [written("Clear lungs."), written("Cardiomegaly."), ""]
    assert (batch["report"][2] == IGNORE_INDEX).all()  # not even an end is learned of a report of change alone
    assert batch["report"].shape == batch[ALONE].shape
    batch[FILMS] = given(model, [PRIORS[0], None, None]).films
    dropped = drop_batch_priors(batch, torch.tensor([True, False, False]))
    assert torch.equal(dropped["report"], batch[ALONE])
    assert (dropped[TEXT] == IGNORE_INDEX).all()
    assert not dropped[FILMS].given_B.any()
    kept = drop_batch_priors(batch, torch.tensor([False, True, True]))
    assert all(torch.equal(kept[name], batch[name]) for name in ("report", TEXT))
    assert kept[FILMS].given_B.tolist() == [True, False, False]


def test_words_of_change_are_taken_out_of_each_section(classifier: DiseaseClassifier) -> None:  # noqa: F811
    sections = [
        ("Clear lungs. No change.", "Stable cardiomegaly."),
        ("Clear lungs.", "No change since then."),
        ("No change since then.", "Clear lungs."),
    ]
    studies = [
        Study(str(i), "g", "train", f"{findings} {impression}", dict.fromkeys(LABELS), impression=impression)
        for i, (findings, impression) in enumerate(sections)
    ]

    def alone(separate: bool) -> list[list[int]]:
        model = reading(classifier, separate_sections=separate)
        rows = ReportCollator(model.report_encoder(90), None, model.prior_encoder(), {})(studies)[ALONE]
        return [row[row != IGNORE_INDEX].tolist() for row in rows]

    def ids(text: str) -> list[int]:
        return reading(classifier).tokenizer(text, add_special_tokens=False).input_ids

    end = reading(classifier).prompt.stops[0]
    joined = ["Clear lungs. Cardiomegaly.", "Clear lungs.", "Clear lungs."]
    assert alone(separate=False) == [[*ids(text), end] for text in joined]
    # An impression without findings is not learned, and findings without their impression do not end the report.
    assert alone(separate=True) == [[*ids("Clear lungs. Impression: Cardiomegaly."), end], ids("Clear lungs."), []]


def test_settings_that_contradict_each_other(classifier: DiseaseClassifier) -> None:  # noqa: F811
    with pytest.raises(UserError, match=r"decoder\.prior report report names a part twice"):
        reading(classifier, prior=("report", "report"))
    with pytest.raises(UserError, match=r"decoder\.prior films needs use_visual_tokens or use_queries"):
        reading(classifier, use_visual_tokens=False, use_queries=False)


def test_positions_of_the_earlier_study_are_counted(classifier: DiseaseClassifier) -> None:  # noqa: F811
    model = reading(classifier, prior_tokens=50)
    model.settings = dataclasses.replace(model.settings, model="another")
    prompt = model.prompt
    words = sum(map(len, (prompt.before, prompt.behind, prompt.between, prompt.after)))
    tokens, queries, _ = model.vision_shape
    most = model.decoder.config.max_position_embeddings - words - model.prefix_length - 50 - tokens - queries
    model.refuse_too_long("stage2.max_report_tokens", most)
    with pytest.raises(UserError, match=rf"lower it to {most} or less"):
        model.refuse_too_long("stage2.max_report_tokens", most + 1)
