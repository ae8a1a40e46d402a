"""What reports begin with, composed from banks of a few rows whose associations are given by hand."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from amrg.banks.bank import NO_GROUP, MemoryBank, patient_group_id
from amrg.banks.writer import BankWriter
from amrg.data.labels import FINDINGS, LABELS, NO_FINDING
from amrg.models.composed import Composed, ComposedSentence, Unsure
from amrg.models.composer import Composer, Support, head_features
from amrg.models.detail_heads import AttributeHeads, Head
from amrg.models.finding_calibration import Certainty
from amrg.models.regions import PLACES
from amrg.models.report_generator import Association
from tests.models.vision_outputs import WIDTH, sight_of

HEART, EFFUSION, LESION = "Cardiomegaly", "Pleural Effusion", "Lung Lesion"
#: Stage 1's own probabilities; from ½ on a finding is named.
EVEN = Certainty(((1.0, 1.0, 0.0),) * len(FINDINGS), (0.0,) * len(FINDINGS), 0.5)
LEFT, RIGHT, PLAIN = "Small left pleural effusion.", "Small right pleural effusion.", "There is a pleural effusion."
DIM = 16  # of a sentence's vector

Weights = Mapping[str, Mapping[int, float]]  # of rows, by the label whose query retrieves them
Rows = Sequence[tuple[str, str]]  # label or text, text or patient


def visual_bank(folder: Path, rows: Rows) -> MemoryBank:
    """Rows of (label, what the report says of it), each of a patient of its own; then a disease token."""
    origins: list[dict[str, Any]] = [
        {"key": f"v{i}", "group": f"visual {i}", "split": "train", "source": "region", "findings": [label]}
        | {"text": text, "view": 0, "box": [0, 0, 1, 1]}
        for i, (label, text) in enumerate(rows)
    ]
    origins.append({"key": "", "group": "", "split": "train", "source": "disease_token", "findings": [HEART]})
    with BankWriter(folder / "visual", WIDTH) as writer:
        writer.add(torch.randn(len(origins), WIDTH, generator=torch.Generator().manual_seed(0)), origins)
    return MemoryBank.open(folder / "visual")


def report_bank(folder: Path, rows: Rows, alike: Sequence[Sequence[str]] = ()) -> MemoryBank:
    """Sentences of (text, patient): each has an axis of its own, but those in a group of ``alike`` share one."""
    axis: dict[str, int] = {text: number for number, texts in enumerate(alike) for text in texts}
    for text, _ in rows:
        axis.setdefault(text, len(set(axis.values())))
    vectors = torch.eye(DIM)[[axis[text] for text, _ in rows]]
    origins = [
        {"key": f"r{i}", "group": patient, "split": "train", "source": "sentence", "findings": [], "text": text}
        for i, (text, patient) in enumerate(rows)
    ]
    with BankWriter(folder / "reports", DIM) as writer:
        writer.add(vectors, origins)
    return MemoryBank.open(folder / "reports")


def associate(weights: Weights, studies: int = 1, count: int = 6) -> Association:
    """The same of each study; what is not given is retrieved by nobody."""
    weights_QJ, rows_QJ = torch.zeros(len(LABELS), count), torch.full((len(LABELS), count), -1)
    for label, of_rows in weights.items():
        for place, (row, weight) in enumerate(sorted(of_rows.items(), key=lambda pair: -pair[1])):
            rows_QJ[LABELS.index(label), place], weights_QJ[LABELS.index(label), place] = row, weight
    return Association(weights_QJ.expand(studies, -1, -1), rows_QJ.expand(studies, -1, -1))


def compose(
    composer: Composer, named: Sequence[str], visual: Weights | None, report: Weights | None, group: int = NO_GROUP
) -> Composed:
    """Of a film on which stage 1 finds some findings, all with a probability of 0.88."""
    given = {"visual": visual, "report": report}
    associations = {name: associate(weights) for name, weights in given.items() if weights is not None}
    (found,) = composer.compose(sight_of(dict.fromkeys(named, 2.0)), associations, torch.tensor([group]))
    return found


def texts(found: Composed) -> list[str]:
    return [said.text for said in found.sentences]


def of_effusions(folder: Path, source: Support, said: Sequence[str]) -> Composer:
    """Two rows say left, one right; in the report bank all sentences of effusions have the same vector."""
    visual = visual_bank(folder, [(EFFUSION, LEFT), (EFFUSION, LEFT), (EFFUSION, RIGHT)])
    reports = report_bank(folder, [(text, f"p{i}") for i, text in enumerate(said)], alike=[said])
    return Composer(EVEN, visual, reports, source=source)


ON_THE_LEFT = {EFFUSION: {0: 0.45, 1: 0.35, 2: 0.2}}


@pytest.mark.parametrize(("source", "expected"), [("memory", LEFT), ("none", RIGHT)])
def test_the_right_side_wins_over_a_heavier_sentence_on_the_wrong_one(
    tmp_path: Path, source: Support, expected: str
) -> None:
    composer = of_effusions(tmp_path, source, [LEFT, RIGHT])
    assert texts(compose(composer, [EFFUSION], ON_THE_LEFT, {EFFUSION: {1: 0.9, 0: 0.1}})) == [expected]


LINE, PACER, KINDLESS = "Central venous line in place.", "Pacemaker in place.", "Support devices in place."


@pytest.mark.parametrize(
    ("said", "source", "expected"),
    [
        ((LINE, PACER), "memory", PACER),  # a fifth of the rows against two fifths, neither likelier than not
        ((LINE, PACER, KINDLESS), "memory", KINDLESS),
        ((LINE, PACER, KINDLESS), "none", LINE),
    ],
)
def test_no_kind_of_device_is_said_where_another_is_better_supported(
    tmp_path: Path, said: Sequence[str], source: Support, expected: str
) -> None:
    devices, others = "Support Devices", ("Tracheostomy tube in place.", "Valve replacement.")
    visual = visual_bank(tmp_path, [(devices, text) for text in (LINE, PACER, *others)])
    reports = report_bank(tmp_path, [(text, f"p{i}") for i, text in enumerate(said)], alike=[said])
    composer = Composer(EVEN, visual, reports, source=source)
    retrieved = {devices: {0: 0.2, 1: 0.4, 2: 0.2, 3: 0.2}}
    assert texts(compose(composer, [devices], retrieved, {devices: {0: 0.99, 1: 0.01}})) == [expected]


@pytest.mark.parametrize(("source", "expected"), [("memory", PLAIN), ("none", RIGHT)])
def test_a_sentence_without_the_detail_wins_where_nothing_supports_one(
    tmp_path: Path, source: Support, expected: str
) -> None:
    composer = of_effusions(tmp_path, source, [RIGHT, PLAIN])
    assert texts(compose(composer, [EFFUSION], ON_THE_LEFT, {EFFUSION: {0: 0.9, 1: 0.1}})) == [expected]


def test_a_detail_of_which_the_memory_says_nothing_is_not_said_where_another_sentence_can_be(tmp_path: Path) -> None:
    visual = visual_bank(tmp_path, [(EFFUSION, PLAIN)])
    composer = Composer(EVEN, visual, report_bank(tmp_path, [(LEFT, "p0"), (PLAIN, "p1")], alike=[[LEFT, PLAIN]]))
    assert texts(compose(composer, [EFFUSION], {EFFUSION: {0: 1.0}}, {EFFUSION: {0: 0.9, 1: 0.1}})) == [PLAIN]
    alone = Composer(EVEN, visual, report_bank(tmp_path / "alone", [(LEFT, "p0")]))
    assert texts(compose(alone, [EFFUSION], {EFFUSION: {0: 1.0}}, {EFFUSION: {0: 1.0}})) == [LEFT]


def test_half_of_a_bilateral_finding_is_better_than_the_wrong_half_and_worse_than_both(tmp_path: Path) -> None:
    left, right, both = "Left pleural effusion.", "Right pleural effusion.", "Bilateral pleural effusions."
    visual = visual_bank(tmp_path, [(EFFUSION, left), (EFFUSION, both)])
    weights = {EFFUSION: {0: 0.2, 1: 0.8}}
    for number, (said, expected) in enumerate((([left, both], both), ([right, left], left))):
        bank = report_bank(tmp_path / str(number), [(text, text) for text in said], alike=[said])
        found = compose(Composer(EVEN, visual, bank), [EFFUSION], weights, {EFFUSION: {0: 0.5, 1: 0.5}})
        assert texts(found) == [expected]


def test_words_are_those_that_the_regions_rows_are_linked_to(tmp_path: Path) -> None:
    """The report memory has both alike; their vectors differ."""
    heavy, light = "The heart is enlarged.", "There is cardiomegaly."
    visual = visual_bank(tmp_path, [(HEART, heavy), (HEART, light)])
    composer = Composer(EVEN, visual, report_bank(tmp_path, [(light, "p0"), (heavy, "p1")]))
    evenly = {HEART: {0: 0.5, 1: 0.5}}
    assert texts(compose(composer, [HEART], {HEART: {0: 0.9, 1: 0.1}}, evenly)) == [heavy]
    assert texts(compose(composer, [HEART], {HEART: {0: 0.1, 1: 0.9}}, evenly)) == [light]


def test_without_a_visual_memory_the_heaviest_sentence_of_the_report_memory_is_said(tmp_path: Path) -> None:
    composer = Composer(EVEN, None, report_bank(tmp_path, [(LEFT, "p0"), (RIGHT, "p1"), (LEFT, "p2")]))
    for weights, expected in (({0: 0.3, 2: 0.3, 1: 0.4}, LEFT), ({0: 0.2, 2: 0.2, 1: 0.6}, RIGHT)):
        found = compose(composer, [EFFUSION], None, {EFFUSION: weights})  # the copies of a sentence count together
        assert texts(found) == [expected]
        assert found.sentences[0].regions == ()
        assert all(probability is None for *_, probability in found.sentences[0].details)


@pytest.mark.parametrize(("share", "agrees"), [(0.71, True), (0.69, False)])
def test_a_finding_is_named_only_where_the_visual_memory_agrees(tmp_path: Path, share: float, agrees: bool) -> None:
    """Of five rows (one is the disease token) two are of effusions: chance would give 0.4, halfway to 1 is 0.7."""
    visual = visual_bank(tmp_path, [(EFFUSION, LEFT), (EFFUSION, LEFT), (HEART, "Cardiomegaly."), (NO_FINDING, "Ok.")])
    composer = Composer(EVEN, visual, report_bank(tmp_path, [(LEFT, "p0")]))
    weights = {EFFUSION: {0: share / 2, 1: share / 2, 2: 1 - share}}
    found = compose(composer, [EFFUSION], weights, {EFFUSION: {0: 1.0}})
    assert found.findings == ((EFFUSION,) if agrees else ())
    assert texts(found) == ([LEFT] if agrees else [])
    assert found.text == (f"pleural effusion. Report: {LEFT}" if agrees else "none. Report:")


def test_what_stage_1_does_not_find_is_not_named_whatever_the_memory_retrieves(tmp_path: Path) -> None:
    composer = of_effusions(tmp_path, "memory", [LEFT])
    assert compose(composer, [], ON_THE_LEFT, {EFFUSION: {0: 1.0}}) == Composed("none. Report:")


def test_the_own_patients_sentences_are_never_said(tmp_path: Path) -> None:
    composer = of_effusions(tmp_path, "memory", [LEFT, RIGHT])
    heavy = {EFFUSION: {0: 1.0}}
    assert texts(compose(composer, [EFFUSION], ON_THE_LEFT, heavy, patient_group_id("p0"))) == [RIGHT]
    assert texts(compose(composer, [EFFUSION], ON_THE_LEFT, heavy, patient_group_id("p1"))) == [LEFT]
    assert texts(compose(composer, [EFFUSION], ON_THE_LEFT, heavy)) == [LEFT]


def test_a_sentence_that_others_say_too_is_said_as_theirs(tmp_path: Path) -> None:
    visual = visual_bank(tmp_path, [(NO_FINDING, "The lungs are clear."), (EFFUSION, LEFT)])
    rows = [(LEFT, "me"), (LEFT, "you"), ("The lungs are clear.", "me"), ("The lungs are clear.", "you")]
    composer = Composer(EVEN, visual, report_bank(tmp_path, rows))
    weights = {NO_FINDING: {0: 1.0}, EFFUSION: {1: 1.0}}
    mine = compose(composer, [EFFUSION], weights, {EFFUSION: {0: 1.0}}, patient_group_id("me"))
    assert [said.row for said in mine.sentences] == [1, 3]
    theirs = compose(composer, [EFFUSION], weights, {EFFUSION: {0: 1.0}}, patient_group_id("you"))
    assert [said.row for said in theirs.sentences] == [0, 2]


def test_what_denies_or_suspects_something_else_is_not_said_of_a_finding(tmp_path: Path) -> None:
    denies, suspects, plain = "Cardiomegaly without pleural effusion.", "Cardiomegaly, possible edema.", "Cardiomegaly."
    visual = visual_bank(tmp_path, [(HEART, "Cardiomegaly.")])
    said = [denies, suspects, plain]
    composer = Composer(EVEN, visual, report_bank(tmp_path, [(text, text) for text in said], alike=[said]))

    def first(named: Sequence[str], heaviest: int) -> str:
        weights = {HEART: {row: 0.9 if row == heaviest else 0.05 for row in range(3)}}
        return texts(compose(composer, named, {HEART: {0: 1.0}}, weights))[0]

    assert first([HEART], 0) == denies
    assert first([HEART, EFFUSION], 0) != denies
    assert first([HEART], 1) != suspects
    assert first([HEART, "Edema"], 1) == suspects


def test_a_sentence_that_states_more_than_is_named_is_not_said_and_one_for_two_is_said_once(tmp_path: Path) -> None:
    two = "Cardiomegaly and left pleural effusion."
    visual = visual_bank(tmp_path, [(HEART, two), (EFFUSION, two)])
    composer = Composer(EVEN, visual, report_bank(tmp_path, [(two, "p0"), ("Cardiomegaly.", "p1")]))
    weights: Weights = {HEART: {0: 1.0}, EFFUSION: {1: 1.0}}
    assert texts(compose(composer, [HEART], weights, {HEART: {0: 1.0}})) == ["Cardiomegaly."]
    found = compose(composer, [HEART, EFFUSION], weights, {HEART: {0: 1.0}})
    assert found.text == f"cardiomegaly, pleural effusion. Report: {two}"
    assert found.sentences[0].labels == (HEART, EFFUSION)
    associations = {"visual": associate(weights), "report": associate({HEART: {0: 1.0}})}
    said = composer.compose(sight_of({HEART: 2.0, EFFUSION: 0.5}), associations, torch.tensor([NO_GROUP]))[0].sentences
    assert said[0].probabilities == {HEART: pytest.approx(0.880797), EFFUSION: pytest.approx(0.622459)}


def test_without_banks_the_outline_names_findings_whatever_is_retrieved(tmp_path: Path) -> None:
    associations = {"visual": associate({HEART: {7: 1.0}}), "report": associate({HEART: {909: 1.0}})}
    sight, nobody = sight_of({HEART: 2.0}), torch.tensor([NO_GROUP])
    (found,) = Composer(EVEN).compose(sight, associations, nobody)
    assert (found.findings, found.sentences) == ((HEART,), ())
    assert found.text == "cardiomegaly. Report:"
    visual = visual_bank(tmp_path, [(HEART, "")] * 8)
    (found,) = Composer(EVEN, visual).compose(sight, associations, nobody)
    assert (found.findings, found.sentences) == ((HEART,), ())


def test_a_finding_that_no_sentence_may_state_is_left_to_the_decoder(tmp_path: Path) -> None:
    composer = of_effusions(tmp_path, "memory", [LEFT])
    found = compose(composer, [EFFUSION, "Fracture"], ON_THE_LEFT, {EFFUSION: {0: 1.0}})
    assert found.findings == (EFFUSION, "Fracture")
    assert texts(found) == [LEFT]


def test_what_only_an_earlier_film_can_tell_is_never_said(tmp_path: Path) -> None:
    stable, still = "Stable cardiomegaly.", "The lungs remain clear."
    visual = visual_bank(tmp_path, [(HEART, stable), (NO_FINDING, still)])
    weights: Weights = {HEART: {0: 1.0}, NO_FINDING: {1: 1.0}}
    composer = Composer(EVEN, visual, report_bank(tmp_path, [(stable, "p0"), (still, "p1"), ("Cardiomegaly.", "p2")]))
    assert texts(compose(composer, [HEART], weights, {HEART: {0: 1.0}})) == ["Cardiomegaly."]
    alone = Composer(EVEN, visual, report_bank(tmp_path / "alone", [(stable, "p0"), (still, "p1")]))
    assert compose(alone, [HEART], weights, {HEART: {0: 1.0}}) == Composed("cardiomegaly. Report:", (HEART,))


def test_a_size_is_not_said_where_another_sentence_can_be(tmp_path: Path) -> None:
    sized, plain = "There is a 1.5 cm nodule in the right upper lobe.", "There is a nodule in the right upper lobe."
    visual = visual_bank(tmp_path, [(LESION, sized)])
    rows = [(sized, "p0"), (plain, "p1")]
    composer = Composer(EVEN, visual, report_bank(tmp_path, rows, alike=[[sized, plain]]))
    assert texts(compose(composer, [LESION], {LESION: {0: 1.0}}, {LESION: {0: 0.9, 1: 0.1}})) == [plain]


CLEAR, CLEAR_TOO, HEART_OK, BONES, NO_FLUID = (
    "The lungs are clear.", "Lungs are clear.", "Heart size is normal.", "Bony structures are intact.",
    "No pleural effusion.",
)  # fmt: skip


def of_normal_anatomy(folder: Path, said: Sequence[str], extra: Rows = ()) -> Composer:
    """A visual row for each report of normal films; two of the sentences mean the same."""
    visual = visual_bank(folder, [*((NO_FINDING, text) for text in said), *extra])
    known = [CLEAR, CLEAR_TOO, HEART_OK, BONES, NO_FLUID, *(text for _, text in extra)]
    return Composer(EVEN, visual, report_bank(folder, [(t, t) for t in known], alike=[[CLEAR, CLEAR_TOO]]))


def test_normal_sentences_cover_what_is_said_in_the_usual_order_and_number(tmp_path: Path) -> None:
    reports = [f"{HEART_OK} {CLEAR}", f"{HEART_OK} {CLEAR_TOO} {BONES}", f"{CLEAR} {BONES}"]
    composer = of_normal_anatomy(tmp_path, reports)
    found = compose(composer, [], {NO_FINDING: {0: 0.4, 1: 0.35, 2: 0.25}}, {})
    # 2.35 sentences on average. The heart: 0.75; clear lungs in both wordings 1.0, of which one is said; bones: 0.6.
    assert texts(found) == [HEART_OK, CLEAR]
    assert found.text == f"none. Report: {HEART_OK} {CLEAR}"
    assert [said.labels for said in found.sentences] == [(NO_FINDING,)] * 2
    assert found.sentences[0].box is None
    assert found.sentences[0].probabilities == {}
    assert [row for row, _ in found.sentences[0].regions] == [0, 1, 2]
    longer = compose(composer, [], {NO_FINDING: {0: 0.1, 1: 0.8, 2: 0.1}}, {})  # 2.8 on average
    assert texts(longer) == [HEART_OK, CLEAR_TOO, BONES]


def test_one_of_two_sentences_that_mean_the_same_is_said_however_many_are_to_be(tmp_path: Path) -> None:
    composer = of_normal_anatomy(tmp_path, [f"{CLEAR} {CLEAR_TOO} {CLEAR}"])
    assert len(texts(compose(composer, [], {NO_FINDING: {0: 1.0}}, {}))) == 1


def test_normal_sentences_deny_nothing_that_is_named_and_repeat_nothing(tmp_path: Path) -> None:
    composer = of_normal_anatomy(tmp_path, [f"{NO_FLUID} {CLEAR}"], extra=[(EFFUSION, LEFT)])
    weights: Weights = {NO_FINDING: {0: 1.0}, EFFUSION: {1: 1.0}}
    assert texts(compose(composer, [], weights, {})) == [NO_FLUID, CLEAR]
    assert texts(compose(composer, [EFFUSION], weights, {EFFUSION: {5: 1.0}})) == [LEFT, CLEAR]


def test_a_sentence_that_mostly_denies_again_gives_way_to_the_next(tmp_path: Path) -> None:
    both, three, two = (
        "No pleural effusion, opacity or pneumothorax.", "No pneumothorax, pleural effusion or consolidation.",
        "No consolidation or pneumothorax.",
    )  # fmt: skip
    said = [f"{both} {three} {CLEAR}", f"{both} {three} {two}", f"{both} {BONES}"]
    visual = visual_bank(tmp_path, [(NO_FINDING, text) for text in said])
    composer = Composer(EVEN, visual, report_bank(tmp_path, [(t, t) for t in (both, three, two, CLEAR, BONES)]))
    weights = {NO_FINDING: {0: 0.4, 1: 0.35, 2: 0.25}}  # 2.75 sentences on average
    # Of the second two thirds are denied by the first, of the third one half. Clear lungs repeat no opacities.
    assert texts(compose(composer, [], weights, {})) == [both, BONES, CLEAR]


def test_only_rows_of_normal_anatomy_vote_for_normal_sentences_and_unknown_ones_are_not_said(tmp_path: Path) -> None:
    reports = [f"{CLEAR} The spleen is unremarkable.", CLEAR]
    composer = of_normal_anatomy(tmp_path, reports, extra=[(EFFUSION, LEFT)])
    assert texts(compose(composer, [], {NO_FINDING: {2: 1.0}}, {})) == []
    assert texts(compose(composer, [], {NO_FINDING: {0: 0.6, 1: 0.4}}, {})) == [CLEAR]
    assert compose(composer, [], {}, {}) == Composed("none. Report:")


def test_the_decoder_begins_to_write_where_nothing_is_to_be_recalled(tmp_path: Path) -> None:
    composer = of_effusions(tmp_path, "memory", [LEFT])
    outline = Composed("pleural effusion. Report:", (EFFUSION,))
    sight = sight_of({EFFUSION: 2.0})
    both = {"visual": associate(ON_THE_LEFT), "report": associate({EFFUSION: {0: 1.0}})}
    assert composer.compose(sight, both, torch.tensor([NO_GROUP]), recall=False) == [outline]
    assert texts(composer.compose(sight, both, torch.tensor([NO_GROUP]))[0]) == [LEFT]
    decided = Composer(EVEN, visual_bank(tmp_path / "decided", [(EFFUSION, LEFT)]))
    assert decided.compose(sight, {"visual": associate({EFFUSION: {0: 1.0}})}, torch.tensor([NO_GROUP])) == [outline]
    assert Composer(EVEN).compose(sight, {}, torch.tensor([NO_GROUP])) == [outline]


def test_the_visual_memory_alone_chooses_sentences_too(tmp_path: Path) -> None:
    """They are the text that a decoder reads (``decoder.use_retrieved_text``)."""
    composer = of_effusions(tmp_path, "memory", [RIGHT, LEFT])
    assert texts(compose(composer, [EFFUSION], ON_THE_LEFT, None)) == [LEFT]


def test_with_the_visual_memory_off_stage_1_alone_names_and_no_normal_sentence_is_recalled(tmp_path: Path) -> None:
    composer = of_normal_anatomy(tmp_path, [CLEAR], extra=[(EFFUSION, LEFT)])
    found = compose(composer, [EFFUSION], None, {EFFUSION: {5: 1.0}})
    assert found.findings == (EFFUSION,)
    assert texts(found) == [LEFT]


def test_what_a_sentence_stands_on(tmp_path: Path) -> None:
    composer = of_effusions(tmp_path, "memory", [LEFT])
    sight = sight_of({EFFUSION: 2.0})
    associations = {"visual": associate(ON_THE_LEFT), "report": associate({EFFUSION: {0: 1.0}})}
    said = composer.compose(sight, associations, torch.tensor([NO_GROUP]))[0].sentences[0]
    assert (said.text, said.labels, said.row) == (LEFT, (EFFUSION,), 0)
    assert said.box == tuple(sight.boxes_BQ5[0, LABELS.index(EFFUSION)].int().tolist())
    assert said.probabilities == {said.labels[0]: pytest.approx(1 / (1 + 2.718281828**-2))}
    assert [row for row, _ in said.regions] == [0, 1, 2]
    assert [weight for _, weight in said.regions] == pytest.approx([0.45, 0.35, 0.2])
    details = {(finding, attribute): (value, p) for finding, attribute, value, p in said.details}
    assert set(details) == {(EFFUSION, "side"), (EFFUSION, "severity")}
    assert details[EFFUSION, "side"][0] == "left"
    # 0.8 of the votes, with a tenth of a vote shared as the bank has it (two of three), and 0.02 that anything is so
    vote = (0.8 + 0.1 * 2 / 3) / 1.1
    assert details[EFFUSION, "side"][1] == pytest.approx((vote + 0.02) / 1.04, abs=1e-5)
    told = said.to_dict()
    assert told["regions"][0] == {"row": 0, "weight": 0.45}
    assert told["box"] == list(said.box or ())
    assert told["details"][0].keys() == {"finding", "attribute", "value", "probability"}
    assert ComposedSentence("x", (NO_FINDING,), 3).to_dict() == {
        "text": "x", "labels": [NO_FINDING], "row": 3, "regions": [], "box": None, "probabilities": {}, "details": [],
    }  # fmt: skip


def heads_for(width: int, at: int) -> AttributeHeads:
    """Left where the feature is large, right where it is small."""
    weight_CF = torch.zeros(2, width, dtype=torch.float64)
    weight_CF[0, at], weight_CF[1, at] = 3.0, -3.0
    zeros, ones = torch.zeros(width, dtype=torch.float64), torch.ones(width, dtype=torch.float64)
    head = Head(("left", "right"), zeros, ones, weight_CF, torch.zeros(2, dtype=torch.float64))
    return AttributeHeads({(EFFUSION, "side"): head}, 1.0)


@pytest.mark.parametrize("source", ["map", "head"])
@pytest.mark.parametrize("on_the_left", [True, False])
def test_heads_support_the_side_where_the_map_or_the_region_shows_it(
    tmp_path: Path, source: Support, on_the_left: bool
) -> None:
    """Against what the memory retrieves."""
    left, right = "Left pleural effusion.", "Right pleural effusion."
    visual = visual_bank(tmp_path, [(EFFUSION, right if on_the_left else left)])
    reports = report_bank(tmp_path, [(left, "p0"), (right, "p1")], alike=[[left, right]])
    width, at = (PLACES, 2) if source == "map" else (WIDTH, WIDTH - PLACES + 2)
    heads = {source: heads_for(width, at)}
    sight = sight_of({EFFUSION: 2.0})
    k = LABELS.index(EFFUSION)
    sight.places_BQP[0, k] = 0.0
    sight.places_BQP[0, k, 2 if on_the_left else 0] = 1.0
    heads[source].heads[EFFUSION, "side"].mean_F[at] = 0.5
    composer = Composer(EVEN, visual, reports, heads, source)
    associations = {"visual": associate({EFFUSION: {0: 1.0}}), "report": associate({EFFUSION: {0: 0.5, 1: 0.5}})}
    found = composer.compose(sight, associations, torch.tensor([NO_GROUP]))[0]
    assert texts(found) == [left if on_the_left else right]


def test_memory_and_heads_together_are_their_product(tmp_path: Path) -> None:
    composer = of_effusions(tmp_path, "all", [LEFT])
    composer = Composer(EVEN, visual_bank(tmp_path / "v", [(EFFUSION, LEFT), (EFFUSION, RIGHT)]),
                        report_bank(tmp_path / "r", [(LEFT, "p0")]), {"head": heads_for(WIDTH, 0)}, "all")  # fmt: skip
    sight = sight_of({EFFUSION: 2.0})
    associations = {"visual": associate({EFFUSION: {0: 0.7, 1: 0.3}}), "report": associate({EFFUSION: {0: 1.0}})}
    said = composer.compose(sight, associations, torch.tensor([NO_GROUP]))[0].sentences[0]
    feature = float(head_features(sight)["head"][0, FINDINGS.index(EFFUSION), 0].clamp(-3, 3))
    head = 1 / (1 + 2.718281828 ** (-6 * feature))
    memory = (0.7 + 0.05) / 1.1
    left, right = (memory + 0.02) * (head + 0.02), (1 - memory + 0.02) * (1 - head + 0.02)
    (p,) = (p for _, attribute, _, p in said.details if attribute == "side")
    assert p == pytest.approx(left / (left + right), abs=1e-4)


def test_studies_of_a_batch_are_composed_alone(tmp_path: Path) -> None:
    composer = of_effusions(tmp_path, "memory", [LEFT, RIGHT])
    sight = sight_of({EFFUSION: 2.0}, {}, {EFFUSION: 2.0})
    weights = [{EFFUSION: {0: 0.5, 1: 0.5}}, {EFFUSION: {2: 1.0}}, {EFFUSION: {2: 1.0}}]
    parts = [associate(one) for one in weights]
    visual = Association(*(torch.cat(part) for part in zip(*parts, strict=True)))
    report = associate({EFFUSION: {0: 0.5, 1: 0.5}}, studies=3)
    groups = torch.tensor([NO_GROUP, NO_GROUP, NO_GROUP])
    found = composer.compose(sight, {"visual": visual, "report": report}, groups)
    assert [texts(one) for one in found] == [[LEFT], [], [RIGHT]]


def test_what_is_not_probable_enough_is_neither_stated_nor_denied_but_listed(tmp_path: Path) -> None:
    """The heart has a probability of 0.88, the effusion of 0.62; a sentence that states both is not said."""
    two = "Cardiomegaly and left pleural effusion."
    rows = [(HEART, two), (EFFUSION, LEFT), (NO_FINDING, f"{NO_FLUID} {CLEAR}")]
    said = [two, "Cardiomegaly.", LEFT, NO_FLUID, CLEAR]
    visual, reports = visual_bank(tmp_path, rows), report_bank(tmp_path, [(text, text) for text in said])
    weights: Weights = {HEART: {0: 1.0}, EFFUSION: {1: 1.0}, NO_FINDING: {2: 1.0}}
    recalled: Weights = {HEART: {0: 0.9, 1: 0.1}, EFFUSION: {0: 0.9, 2: 0.1}}
    associations = {"visual": associate(weights), "report": associate(recalled)}
    sight = sight_of({HEART: 2.0, EFFUSION: 0.5})

    def composed(abstain: float) -> Composed:
        composer = Composer(EVEN, visual, reports, abstain=abstain)
        return composer.compose(sight, associations, torch.tensor([NO_GROUP]))[0]

    every = composed(0.0)
    assert texts(every) == [two, CLEAR]
    assert (every.findings, every.unsure) == ((HEART, EFFUSION), ())
    assert composed(0.6) == every
    sure = composed(0.7)
    assert texts(sure) == ["Cardiomegaly.", CLEAR]
    assert sure.text == f"cardiomegaly. Report: Cardiomegaly. {CLEAR}"
    (unsure,) = sure.unsure
    assert (unsure.text, unsure.labels) == (LEFT, (EFFUSION,))
    assert unsure.to_dict() == {"text": LEFT, "labels": [EFFUSION], "probability": 0.6225}  # 1 / (1 + e^-0.5)
    assert sure.without_contradictions(f"Cardiomegaly. {CLEAR} {RIGHT} {NO_FLUID} {BONES}") == (
        f"Cardiomegaly. {CLEAR} {BONES}"
    )
    nothing = composed(0.9)
    assert texts(nothing) == [CLEAR]
    assert [one.labels for one in nothing.unsure] == [(HEART, EFFUSION)]  # one sentence for both
    assert nothing.unsure[0].probability == pytest.approx(0.6225, abs=1e-4)


def test_without_a_sentence_an_unsure_finding_is_listed_by_its_name(tmp_path: Path) -> None:
    composer = Composer(EVEN, visual_bank(tmp_path, [(EFFUSION, LEFT)]), abstain=0.9)
    (found,) = composer.compose(
        sight_of({EFFUSION: 2.0}), {"visual": associate({EFFUSION: {0: 1.0}})}, torch.tensor([NO_GROUP])
    )
    assert found == Composed("none. Report:", unsure=(Unsure(EFFUSION, (EFFUSION,), found.unsure[0].probability),))
    assert found.unsure[0].probability == pytest.approx(1 / (1 + 2.718281828**-2))


def test_an_impression_may_state_composed_findings_again_but_nothing_else() -> None:
    said = ComposedSentence(LEFT, (EFFUSION,), 0)
    composed = Composed("", (EFFUSION,), (said,))
    text = f"{LEFT} Cardiomegaly. {LEFT} No pleural effusion. Bones are intact."
    assert composed.agreeing_impression(text) == f"{LEFT} Bones are intact."
    assert composed.without_contradictions(f"{LEFT} {PLAIN}") == LEFT
