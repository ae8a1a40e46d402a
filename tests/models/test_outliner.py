"""What reports begin with: calibrated against scikit-learn, words against a slow search by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from torch import Tensor

from amrg.config import GenerateConfig
from amrg.data.labels import FINDINGS
from amrg.data.outline import stated
from amrg.data.text import sentences
from amrg.errors import UserError
from amrg.memory.bank import MemoryBank
from amrg.memory.writer import BankWriter
from amrg.models.generator import ReportGenerator, Sight
from amrg.models.outliner import FILE, Begun, Certainty, Outliner
from amrg.models.stage1 import DiseaseClassifier
from tests.models.test_generator import build, classifier, inputs, one  # noqa: F401

TEXTS = [
    "Heart size is normal. There is pulmonary edema.",
    "Mild cardiomegaly. Small left pleural effusion.",
    "The heart is enlarged with a right pleural effusion.",
    "Large pleural effusion and edema. Cardiomegaly.",
    "The lungs are clear.",
    "Moderate cardiomegaly. No effusion.",
    "Bibasilar atelectasis. Interstitial edema.",
]
HEART, EDEMA, EFFUSION, FRACTURE = (
    FINDINGS.index(f) for f in ("Cardiomegaly", "Edema", "Pleural Effusion", "Fracture")
)
EVEN = Certainty((1.0,) * len(FINDINGS), (0.0,) * len(FINDINGS), 0.5)


def bank_of(folder: Path, texts: list[str]) -> MemoryBank:
    """Texts for the rows that the generator of ``build`` holds."""
    origins = [
        {"key": f"s{n}", "group": f"p{n}", "split": "train", "findings": [], "source": "report", "text": text}
        for n, text in enumerate(texts)
    ]
    with BankWriter(folder / "bank", 5) as writer:
        writer.add(torch.randn(len(texts), 5, generator=torch.Generator().manual_seed(0)), origins)
    return MemoryBank.open(folder / "bank")


@pytest.fixture
def bank(tmp_path: Path) -> MemoryBank:
    return bank_of(tmp_path, TEXTS)


def sure_of(*findings: int) -> Tensor:
    logits = torch.full((1, 14), -9.0)
    logits[0, list(findings)] = 9.0
    return logits


def seen(model: ReportGenerator, study: int, *findings: int) -> tuple[Sight, Tensor]:
    sight, groups, _ = inputs(model)
    return one(sight, study)._replace(logits_BQ=sure_of(*findings)), groups[study : study + 1]


def test_calibration_is_logistic_regression() -> None:
    """Of so many studies that the prior does not count."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (30_000, len(FINDINGS)))
    slope, shift = rng.uniform(0.3, 2, len(FINDINGS)), rng.normal(-1, 1, len(FINDINGS))
    truth = rng.random(logits.shape) < 1 / (1 + np.exp(-(slope * logits + shift)))
    found = Certainty.fit(torch.from_numpy(logits), torch.from_numpy(truth))
    for k in range(len(FINDINGS)):
        expected = LogisticRegression(C=1e9, tol=1e-8).fit(logits[:, k : k + 1], truth[:, k])
        assert found.slope[k] == pytest.approx(expected.coef_[0, 0], abs=2e-3)
        assert found.shift[k] == pytest.approx(expected.intercept_[0], abs=1e-2)


@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_is_the_best_of_all(seed: int) -> None:
    """Of few studies, and with logits that occur twice."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.integers(-3, 4, (7, len(FINDINGS))).astype(float))
    truth = torch.from_numpy(rng.random(logits.shape) < 0.2)
    found = Certainty.fit(logits, truth)
    probability = (logits * torch.tensor(found.slope) + torch.tensor(found.shift)).sigmoid().numpy()
    best = max(f1_score(truth.flatten(), (probability >= t).flatten()) for t in np.unique(probability))
    named = [[f in some for f in FINDINGS] for some in found.findings(logits)]
    assert f1_score(truth.flatten(), np.array(named).flatten()) == pytest.approx(best)


def test_nothing_stated_names_nothing() -> None:
    found = Certainty.fit(torch.randn(9, len(FINDINGS)), torch.zeros(9, len(FINDINGS), dtype=torch.bool))
    assert found.findings(torch.full((2, len(FINDINGS)), 50.0)) == [[], []]


def test_saved_and_loaded(tmp_path: Path) -> None:
    found = Certainty(tuple(np.linspace(0, 1, 13).tolist()), (0.1,) * 13, 0.34)
    found.save(tmp_path)
    assert Certainty.load(tmp_path) == found
    (tmp_path / FILE).write_text('{"slope": [1]}')
    with pytest.raises(UserError, match="amrg generate"):
        Certainty.load(tmp_path)


@pytest.mark.parametrize("study", [0, 1, 2])
@pytest.mark.parametrize("named", [(HEART,), (HEART, EFFUSION), (HEART, EDEMA, EFFUSION), (EDEMA, FRACTURE), ()])
def test_words_are_those_of_the_heaviest_rows(
    classifier: DiseaseClassifier,  # noqa: F811
    bank: MemoryBank,
    study: int,
    named: tuple[int, ...],
) -> None:
    model = build(classifier)
    sight, groups = seen(model, study, *named)
    ((text, recalled),) = Outliner(EVEN, bank).begin(model, sight, groups)
    plan = [FINDINGS[k] for k in named]
    outline = ", ".join(plan).lower() or "none"
    assert text.startswith(f"{outline}. Report:")
    assert model.report_memory is not None
    weights, rows = model.report_memory.attribution(sight.queries_BQD, query_group=groups, top_k=7)
    said: list[str] = []
    for k in named:
        if FINDINGS[k] in {finding for sentence in said for finding in stated(sentence)}:
            continue
        weight = dict(zip(rows[0, k].tolist(), weights[0, k].tolist(), strict=True))
        fitting = [
            (weight[row], -place, sentence)
            for row in range(len(TEXTS))
            if weight.get(row, 0.0) > 0
            for place, sentence in enumerate(sentences(TEXTS[row]))
            if FINDINGS[k] in stated(sentence) and set(stated(sentence)) <= set(plan)
        ]
        said += [sentence for *_, sentence in sorted(fitting)[-1:]]
    assert text.removeprefix(f"{outline}. Report:").strip() == " ".join(said)
    assert len(recalled) == len(said)
    assert all(sentence in sentences(TEXTS[row]) for sentence, row in zip(said, recalled, strict=True))
    assert bool(said) == bool({HEART, EDEMA, EFFUSION} & set(named))
    own = [TEXTS[row] for row, group in enumerate((0, 0, 1, 1, 2, -1, 9)) if group == study]
    if named == (EDEMA, FRACTURE):  # no row words a fracture
        assert len(said) == 1
        assert not any(sentence in text for sentence in said for text in own)


def test_memory_that_is_off_or_asked_for_another_patient(
    classifier: DiseaseClassifier,  # noqa: F811
    bank: MemoryBank,
) -> None:
    model = build(classifier)
    sight, groups = seen(model, 0, HEART)
    outliner = Outliner(EVEN, bank)
    nothing = [Begun("cardiomegaly. Report:")]
    assert outliner.begin(model, sight, groups, recall=False) == nothing
    assert Outliner(EVEN, None).begin(model, sight, groups) == nothing
    assert outliner.begin(build(classifier, use_report_memory=False), sight, groups) == nothing
    generator = torch.Generator().manual_seed(0)
    others = {outliner.begin(model, sight, groups, torch.randn(1, 14, 8, generator=generator) * 9)[0] for _ in range(9)}
    assert len(others) > 1


def test_what_only_an_earlier_film_can_tell_is_not_said_of_another(
    classifier: DiseaseClassifier,  # noqa: F811
    tmp_path: Path,
) -> None:
    texts = ["Stable cardiomegaly.", "The heart is again enlarged. Cardiomegaly, compared to the prior study."] * 3
    model = build(classifier)
    sight, groups = seen(model, 0, HEART)
    outliner = Outliner(EVEN, bank_of(tmp_path, [*texts, "Stable chest. Mild cardiomegaly."]))
    assert outliner.begin(model, sight, groups) == [Begun("cardiomegaly. Report: Mild cardiomegaly.", (6,))]


@pytest.mark.parametrize("beams", [1, 3])
def test_a_report_goes_on_from_what_it_begins_with(classifier: DiseaseClassifier, beams: int) -> None:  # noqa: F811
    """As the decoder does by itself behind the same embedded tokens; beginnings of a batch differ in length."""
    model = build(classifier)
    sight, groups, _ = inputs(model)
    begin = ["The heart is large.", "Small", ""]
    decoding = GenerateConfig(num_beams=beams, max_new_tokens=20, length_penalty=0.0)
    found = model.generate(sight, groups, decoding, begin=begin)
    for i, text in enumerate(begin):
        ids = model.tokenizer(text, add_special_tokens=False).input_ids
        prefix = model._prefix(model.streams(one(sight, i), groups[i : i + 1]))
        embedded = model.decoder.get_input_embeddings()(torch.tensor([ids], dtype=torch.long))
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
