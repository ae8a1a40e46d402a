"""Language metrics against pycocoevalcap and hand-computed values."""

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge

from amrg.data.text.repetition import tokenize_words
from amrg.errors import UserError
from amrg.evaluation.language import corpus_bleu_scores, run_meteor_jar, score_language
from benchmarks.labeler import openi_reports


@pytest.fixture(scope="module")
def pairs() -> tuple[dict[str, str], dict[str, str]]:
    """References and generated texts: 500 real reports against others, one generation empty."""
    texts = [text for _, text, _ in openi_reports()[:500]]
    references = {f"s{i:03d}": t for i, t in enumerate(texts)}
    generated = {f"s{i:03d}": texts[(7 * i + 3) % 500] for i in range(500)}
    generated["s005"] = ""
    return references, generated


def test_equal_to_pycocoevalcap_on_real_reports(pairs: tuple[dict[str, str], dict[str, str]]) -> None:
    references, generated = pairs
    keys = sorted(references)
    truth = {k: [" ".join(tokenize_words(references[k]))] for k in keys}
    said = {k: [" ".join(tokenize_words(generated[k]))] for k in keys}
    scores = score_language(references, generated)
    corpus = {name: float(value[0]) for name, value in scores.corpus().items()}
    bleu = Bleu(4).compute_score(truth, said, verbose=0)[0]
    assert len(keys) == 500
    assert [corpus[f"BLEU-{n}"] for n in (1, 2, 3, 4)] == pytest.approx(bleu, abs=1e-9)
    assert corpus["ROUGE-L"] == pytest.approx(Rouge().compute_score(truth, said)[0], abs=1e-9)
    assert corpus["CIDEr"] == pytest.approx(Cider().compute_score(truth, said)[0], abs=1e-9)
    assert scores.empty == 1


def test_order_of_studies_does_not_matter(pairs: tuple[dict[str, str], dict[str, str]]) -> None:
    references, generated = pairs
    few = sorted(references)[:40]
    forward = score_language({k: references[k] for k in few}, {k: generated[k] for k in few}).corpus()
    backward = score_language({k: references[k] for k in reversed(few)}, {k: generated[k] for k in few}).corpus()
    assert forward == backward


def test_a_resample_scores_like_the_studies_it_holds(pairs: tuple[dict[str, str], dict[str, str]]) -> None:
    references, generated = pairs
    few = sorted(references)[10:22]
    weights = np.array([[0, 1] * 6])
    resampled = score_language({k: references[k] for k in few}, {k: generated[k] for k in few}).corpus(weights)
    held = few[1::2]
    alone = score_language({k: references[k] for k in held}, {k: generated[k] for k in held}).corpus()
    for name in ("BLEU-1", "BLEU-4", "ROUGE-L"):  # CIDEr weighs words by the corpus at hand
        assert resampled[name] == pytest.approx(alone[name], abs=1e-12)


def test_bleu_by_hand() -> None:
    # "the heart is normal" against "the heart size is normal": 4 of 4 words, 2 of 3 pairs, brevity exp(1 - 5/4)
    scores = score_language({"a": "The heart size is normal."}, {"a": "The heart is normal."}).corpus()
    assert scores["BLEU-1"][0] == pytest.approx(np.exp(-0.25))
    assert scores["BLEU-2"][0] == pytest.approx(np.exp(-0.25) * np.sqrt(2 / 3))
    assert corpus_bleu_scores(np.array([[5, 4, 3, 2, 5, 4, 3, 2, 5, 5]])) == pytest.approx(np.ones((1, 4)))


@pytest.mark.parametrize(
    ("references", "generated", "message"),
    [
        ({}, {}, "0 generated reports for 0"),
        ({"a": "x", "b": "y"}, {"a": "x"}, "1 generated reports for 2"),
        ({"a": "x"}, {"b": "x"}, "one for each"),
        ({"a": " . "}, {"a": "x"}, "have no words"),
    ],
)
def test_bad_input(references: dict[str, str], generated: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        score_language(references, generated)


def test_meteor_equals_pycocoevalcap_on_real_reports(pairs: tuple[dict[str, str], dict[str, str]]) -> None:
    references, generated = (list(texts.values()) for texts in pairs)
    scores = run_meteor_jar(references, {"real": generated, "empty": [""] * 500}, timeout=120)
    assert isinstance(scores, dict)
    truth, said = ({i: [" ".join(tokenize_words(t))] for i, t in enumerate(texts)} for texts in (references, generated))
    assert scores["real"] == pytest.approx(Meteor().compute_score(truth, said)[0], abs=1e-6)
    assert scores["empty"] == 0


def test_meteor_in_a_country_with_decimal_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = (["The heart is normal in size.", "Small effusion."], {"a": ["Heart size is normal.", "No effusion."]})
    plain = run_meteor_jar(*asked, timeout=120)
    german = "-Duser.language=de -Duser.country=DE -Duser.language.format=de -Duser.country.format=DE"
    for name in ("JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS"):
        monkeypatch.setenv(name, german)
    assert isinstance(plain, dict)
    assert 0 < plain["a"] < 1
    assert run_meteor_jar(*asked, timeout=120) == plain


@pytest.mark.parametrize(
    "references", [["The heart is normal."], ["The heart is normal."] * 3, ["No effusion.", "no effusion"]]
)
def test_cider_of_equal_references_is_undefined(references: list[str]) -> None:
    """pycocoevalcap gives 0 to the references themselves."""
    texts = {f"s{i}": text for i, text in enumerate(references)}
    corpus = score_language(texts, texts).corpus()
    assert np.isnan(corpus["CIDEr"]).all()
    assert corpus["BLEU-1"] == pytest.approx(1.0)
    corpus = score_language(texts | {"other": "Clear lungs."}, texts | {"other": "Clear lungs."}).corpus()
    assert corpus["CIDEr"] > 0


def test_why_there_is_no_meteor(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = (["The heart is normal in size."], {"a": ["Heart size is normal."]})
    assert run_meteor_jar(*asked, timeout=0.01) == "unavailable: METEOR took longer than 0.01 s"
    monkeypatch.setenv("PATH", "")
    assert run_meteor_jar(*asked, timeout=1) == "unavailable: no Java on this machine"
