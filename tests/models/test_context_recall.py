"""Rows weighted by the contexts of their studies, against scikit-learn and by hand, and what is composed with them."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer

from amrg.banks.bank import MemoryBank, patient_group_id
from amrg.banks.transforms import merge_banks, without_texts
from amrg.banks.writer import BankWriter
from amrg.data.context import Context
from amrg.data.labels import LABELS, NO_FINDING
from amrg.models.composed import Composed
from amrg.models.composer import Composer
from amrg.models.context_recall import ContextIndex
from tests.models.test_composer import EFFUSION, EVEN, LEFT, RIGHT, Weights, associate, texts
from tests.models.vision_outputs import WIDTH, sight_of

INDICATIONS = ["Chest pain.", "chest pain, cough", "Cough.", "", "Fall from a ladder.", "Chest pain."]
COMPARISONS = ["None.", "None available.", "", "None.", "", "Two films."]


def bank(folder: Path, rows: Sequence[tuple[str, str]], contexts: Sequence[Context], visual: bool = True) -> MemoryBank:
    """Rows of (label, text), each of a study of its own with a context; a label's sentences have the same vector."""
    origins = [
        {"key": f"s{i}", "group": f"p{i}", "split": "train", "findings": [label], "text": text}
        | {"source": "region" if visual else "sentence", "context": context.known()}
        for i, ((label, text), context) in enumerate(zip(rows, contexts, strict=True))
    ]
    vectors = torch.randn(len(LABELS), WIDTH, generator=torch.Generator().manual_seed(0))
    with BankWriter(folder, WIDTH) as writer:
        writer.add(vectors[[LABELS.index(label) for label, _ in rows]], origins)
    return MemoryBank.open(folder)


@pytest.fixture
def indexed(tmp_path: Path) -> MemoryBank:
    contexts = [Context(a, "", b) for a, b in zip(INDICATIONS, COMPARISONS, strict=True)]
    return bank(tmp_path / "indexed", [(EFFUSION, LEFT)] * len(contexts), contexts)


def test_the_similarity_is_the_cosine_of_scikit_learn_s_tf_idf(indexed: MemoryBank) -> None:
    given = [Context("Pain in the chest", "", "None"), Context("", "", "films, none"), Context()]
    expected = 0
    for name, rows in (("indication", INDICATIONS), ("comparison", COMPARISONS)):
        vectorizer = TfidfVectorizer(token_pattern=r"\w+", binary=True)
        # What no row has counts in the length of a text, with the weight of a word in none of the rows.
        fitted = vectorizer.fit([*rows])
        unseen = {w for c in given for w in vectorizer.build_analyzer()(c.text(name))} - set(fitted.vocabulary_)
        vocabulary = [*fitted.vocabulary_, *unseen]
        weight = {word: fitted.idf_[i] for word, i in fitted.vocabulary_.items()}
        whole = TfidfVectorizer(token_pattern=r"\w+", binary=True, vocabulary=vocabulary)
        whole.idf_ = torch.tensor([weight.get(word, math.log(1 + len(rows)) + 1) for word in vocabulary]).numpy()
        product = whole.transform([c.text(name) for c in given]) @ whole.transform(rows).T
        expected = expected + torch.from_numpy(product.toarray()).float()
    found = ContextIndex(indexed, ("indication", "comparison")).similarities(given)
    torch.testing.assert_close(found, expected)
    assert found[0].argmax() == 0
    assert not found[2].any()  # nothing is known


def test_the_similarity_by_hand(tmp_path: Path) -> None:
    """Two rows, one of two words of which the other has one."""
    rows = bank(tmp_path / "b", [(EFFUSION, LEFT)] * 2, [Context("cough"), Context("dry cough")])
    found = ContextIndex(rows, ["indication"]).similarities([Context("Cough!"), Context("cough dyspnea")])
    cough, dry, unknown = 1.0, math.log(3 / 2) + 1, math.log(3) + 1
    long, given = math.hypot(cough, dry), math.hypot(cough, unknown)
    torch.testing.assert_close(found, torch.tensor([[1.0, cough / long], [cough / given, cough / (long * given)]]))


def test_weights_are_the_softmax_over_the_sum_of_both_scores(indexed: MemoryBank) -> None:
    generator = torch.Generator().manual_seed(1)
    score_BQN = torch.randn(2, 3, len(indexed), generator=generator)
    index, given = ContextIndex(indexed, ("indication",)), [Context("Cough"), Context("Trauma")]
    found = index.weigh(score_BQN.softmax(-1), given, 5.0)
    torch.testing.assert_close(found, (score_BQN + 5 * index.similarities(given)[:, None]).softmax(-1))
    torch.testing.assert_close(found[1], score_BQN[1].softmax(-1))  # no row is like it
    partial = index.weigh(0.3 * score_BQN.softmax(-1), given, 5.0)
    torch.testing.assert_close(partial.sum(-1), torch.full((2, 3), 0.3))
    nothing = index.weigh(torch.zeros(2, 3, len(indexed)), given, 5.0)
    assert torch.equal(nothing, torch.zeros_like(nothing))


CLEAR, CALM = "The lungs are clear.", "Lungs are clear bilaterally."


def recalling(folder: Path, first: Context, second: Context, sharpness: float = 5.0) -> Composer:
    """Regions of an effusion and of normal anatomy in two wordings; the studies of each have a context of their own."""
    worded = [(EFFUSION, LEFT), (EFFUSION, "A left effusion is seen."), (NO_FINDING, CLEAR), (NO_FINDING, CALM)]
    contexts = [first, second] * 2
    visual = bank(folder / "v", worded, contexts)
    reports = bank(folder / "r", worded, contexts, visual=False)
    return Composer(EVEN, visual, reports, contexts=("indication",), sharpness=sharpness)


EVENLY: Weights = {EFFUSION: {0: 0.51, 1: 0.49}, NO_FINDING: {2: 0.51, 3: 0.49}}


def composed(composer: Composer, context: Context | None) -> Composed:
    found = {name: associate(EVENLY) for name in ("visual", "report")}
    (one,) = composer.compose(sight_of({EFFUSION: 2.0}), found, None, contexts=None if context is None else [context])
    return one


def test_the_words_are_those_of_the_study_that_was_asked_about_alike(tmp_path: Path) -> None:
    composer = recalling(tmp_path, Context("Fever."), Context("Cough."))
    assert texts(composed(composer, Context("Dry cough"))) == ["A left effusion is seen.", CALM]
    assert texts(composed(composer, Context("Fever"))) == [LEFT, CLEAR]
    for unknown in (None, Context(), Context("Trauma."), Context(comparison="Cough.")):  # the film decides
        assert composed(composer, unknown) == composed(composer, None)
    assert texts(composed(composer, None)) == [LEFT, CLEAR]


def test_findings_and_details_are_the_film_s(tmp_path: Path) -> None:
    """The rows of the film confirm its findings and its side, whatever the rows of a like context show."""
    rows = [(EFFUSION, LEFT), (EFFUSION, LEFT), (EFFUSION, RIGHT), *[(NO_FINDING, CLEAR)] * 5]
    contexts = [Context("Fever.")] * 2 + [Context("Cough.")] * 6
    visual = bank(tmp_path / "v", rows, contexts)
    reports = bank(tmp_path / "r", rows[1:], contexts[1:], visual=False)
    composer = Composer(EVEN, visual, reports, contexts=("indication",), sharpness=100.0)
    film = associate({EFFUSION: {0: 0.4, 1: 0.35, 2: 0.05, 3: 0.2}, NO_FINDING: {3: 1.0}})
    for context in (Context("Cough."), Context("Fever.")):
        (one,) = composer.compose(sight_of({EFFUSION: 2.0}), {"visual": film}, None, contexts=[context])
        assert one.findings == (EFFUSION,)  # three quarters of the association for a cough are on normal rows
        assert texts(one)[0] == LEFT


@pytest.mark.parametrize("memories", [("visual", "report"), ("visual",)])
def test_a_blind_report_names_nothing_and_is_worded_by_the_context(tmp_path: Path, memories: tuple[str, ...]) -> None:
    composer = recalling(tmp_path, Context("Fever."), Context("Cough."))
    found = {name: associate(EVENLY) for name in memories}
    for given, words in (("Cough.", CALM), ("Fever.", CLEAR)):
        (one,) = composer.compose(sight_of({EFFUSION: 2.0}), found, None, contexts=[Context(given)], blind=True)
        assert (one.findings, texts(one)) == ((), [words])


def test_a_blind_report_counts_every_row_but_the_patient_s_own(tmp_path: Path) -> None:
    """Of 600 equal rows a third says one thing, two thirds another, wherever they stand in the bank."""
    rows = [(NO_FINDING, CLEAR)] * 200 + [(NO_FINDING, CALM)] * 400
    visual = bank(tmp_path / "v", rows, [Context()] * len(rows))
    worded = [(NO_FINDING, CLEAR), (EFFUSION, CALM)]  # of different vectors
    composer = Composer(EVEN, visual, bank(tmp_path / "r", worded, [Context()] * 2, visual=False))
    (one,) = composer.compose(sight_of({}), {"visual": associate({})}, None, blind=True)
    assert texts(one) == [CALM]
    own = torch.tensor([patient_group_id("p0")])
    weight_BQN = composer._even_weights("visual", torch.Size((1, len(LABELS), len(rows))), own)
    assert (weight_BQN[..., 0] == 0).all()
    torch.testing.assert_close(weight_BQN[..., 1:], torch.full((1, len(LABELS), 599), 1 / 599))


def test_a_bank_keeps_the_contexts_and_drops_them_with_the_texts(indexed: MemoryBank, tmp_path: Path) -> None:
    def contexts(of: MemoryBank) -> list[object]:
        return of.provenance_rows(0, len(of), ["context"])["context"].to_pylist()

    known = [{k: v for k, v in one.items() if v} for one in contexts(indexed)]
    assert known[1] == {"indication": "chest pain, cough", "comparison": "None available."}
    indexed.verify()
    joined = merge_banks([indexed, indexed], tmp_path / "joined")
    joined.verify()
    assert contexts(joined) == contexts(indexed) * 2
    assert contexts(without_texts(indexed, tmp_path / "bare")) == [None] * len(indexed)
    other = bank(tmp_path / "other", [(EFFUSION, LEFT)] * 6, [Context("Fall.")] * 6)
    assert other.content_hash != indexed.content_hash  # a row's hash covers its context
