"""A page's content made up in the right shapes: 40 studies whose films are blobs, scored by the real functions."""

import numpy as np

from amrg.data.labels import FINDINGS, LABELS
from amrg.evaluation.confidence import StatedFindings
from amrg.evaluation.details import DetailScores
from amrg.evaluation.highlight import highlight_findings
from amrg.evaluation.localization import localization_scores
from amrg.evaluation.relevance import Relevance
from amrg.evaluation.scores import mention_tables, score_systems
from amrg.evaluation.statistics import bootstrap_counts
from amrg.evaluation.text_statistics import report_copy_rates, text_statistics
from amrg.pages.result_page import Page, SampleStudy
from amrg.pages.retrieved_rows import MemoryRow, RecalledSentence

SIZE = 224
SENTENCES = {
    "Cardiomegaly": "The heart is enlarged.",
    "Pleural Effusion": "There is a small left pleural effusion.",
    "Atelectasis": "Streaky opacity at the left base, may represent atelectasis or pneumonia.",
    "Lung Lesion": "Calcified granuloma in the right upper lobe.",
}
NORMAL = "Heart size is normal. No pneumothorax or pleural effusion."


def film(rng, center):
    y, x = np.mgrid[:SIZE, :SIZE]
    lungs = sum(np.exp(-(((x - c) / 42) ** 2 + ((y - 110) / 75) ** 2)) for c in (70, 154))
    blob = np.exp(-(((x - center[0]) ** 2 + (y - center[1]) ** 2) / 300))
    gray = 200 - 140 * lungs + 90 * blob + rng.normal(0, 6, (SIZE, SIZE))
    return gray.clip(0, 255).astype(np.uint8)


def mask(center):
    y, x = np.mgrid[:SIZE, :SIZE]
    return (x - center[0]) ** 2 + (y - center[1]) ** 2 < 22**2


def activation(rng, center):
    y, x = np.mgrid[:14, :14] * 16 + 8
    return np.exp(-(((x - center[0]) ** 2 + (y - center[1]) ** 2) / 1800)) + 0.1 * rng.random((14, 14))


def report(found):
    return " ".join(SENTENCES[f] for f in found) or NORMAL


GROUPS = [f"p{i}" for i in range(40)]


class Studies:
    """Forty of them: what they have, what is said of them, and where; all drawn from one generator."""

    def __init__(self):
        self.rng = rng = np.random.default_rng(0)
        self.truth = [[f for f in SENTENCES if rng.random() < 0.4] for _ in GROUPS]
        self.said = [[f for f in SENTENCES if rng.random() < (0.7 if f in found else 0.1)] for found in self.truth]
        self.centers = rng.integers(50, 170, (40, 2))
        self.references, self.generated = ([report(f) for f in found] for found in (self.truth, self.said))


def page():
    made = Studies()
    scores, curves = scores_of(made), curve()
    samples = studies_shown(made)
    shown = zip(made.centers[:24], made.truth[:24], strict=True)
    contact = [(film(made.rng, center), ", ".join(found) or "no finding") for center, found in shown]
    return Page(
        scores=scores,
        curves={"Stage 1": curves, "Stage 2": curves},
        contact_sheet=contact,
        studies=samples,
        worst=samples[3:],
        best=samples[:1],
    )


def scores_of(made):
    """The content of scores.json."""
    references, generated = made.references, made.generated
    present = np.array([[label in found for label in LABELS] for found in made.truth])
    rows = [references[i : i + 2] for i in range(40)]
    texts = {"generated": generated, "reference": references}
    seen = {f: {"positives": int(present[:, i].sum()), "auroc": 0.8, "f1": 0.7} for i, f in enumerate(FINDINGS)}
    probed = {f: {"positives": 12, "auroc": 0.52} for f in SENTENCES}
    return {
        "name": "made-up",
        "source": "openi_drr",
        "split": "test",
        "studies": 40,
        "patients": 40,
        "marks": [],
        "failures": [],
        "localisation": located(made),
        "systems": systems(references, generated, lesions(made)),
        "references": {"wording": text_statistics(references), "details": own_details(made)},
        "copying": {name: report_copy_rates(some, rows, references, GROUPS) for name, some in texts.items()},
        "retrieved_sets": {"report": 40, "visual": 12},
        "relevance": {"visual": remembered(made), "report": None},
        "unlike_training": {"studies": 120, "unlike": 3, "false_alarm_rate": 0.02},
        "mentions": mention_tables(present, generated),
        "confidence": sure(made),
        "classifier": {"per_label": seen, "mean_auroc": 0.8},
        "probe": {"per_label": probed, "mean_auroc": 0.52, "least_positives": 10},
        "settings": {"num_beams": 3, "tokenizer": "<words>"},
        "inputs": {"data": "0" * 64},
        "versions": {"amrg": "0.1.0"},
    }


def lesions(made):
    return [{f: mask(center) for f in found} for center, found in zip(made.centers, made.truth, strict=True)]


def own_details(made):
    details = DetailScores.of(made.references, made.references, lesions(made))
    return details.summary(bootstrap_counts(GROUPS, 50, 0))


def remembered(made):
    """Relevance of a memory that knows every film."""
    present = np.array([[f in found for f in FINDINGS] for found in made.truth])
    rows = np.arange(present.size).reshape(present.shape)
    sides, base = np.full(present.shape, 0.9), np.full(13, 0.1)
    whole = Relevance(0.8 * present, rows, sides, present, ~present, base, rows[:, 0])
    return whole.summary(bootstrap_counts(GROUPS, 50, 0))


def sure(made):
    """Everything is stated with 0.75 or, where it is wrong, 0.65."""
    pairs = [(i, f in made.truth[i]) for i in range(40) for f in made.said[i]]
    right = np.array([one for _, one in pairs])
    found = StatedFindings(np.where(right, 0.75, 0.65), right, np.array([i for i, _ in pairs]))
    return found.summary(bootstrap_counts(GROUPS, 50, 0), 0)


def systems(references, generated, masks):
    """The model and two baselines, with learned metrics that could be run and one that could not."""
    texts = {"model": generated, "nearest neighbour": references[1:] + references[:1], "normal": [NORMAL] * 40}
    scored = score_systems(references, texts, GROUPS, 50, 0, None, masks)
    for i, found in enumerate(scored.values()):
        found["learned"] = {
            "BERTScore": {"value": 0.9 - 0.1 * i, "interval": [0.4, 0.95]},
            "GREEN": "unavailable: <no> GPU",
            "CheXbert F1 micro-14": {"value": 0.5, "interval": [0.25, 0.75]},
        }
    return scored


def located(made):
    """Localisation of every finding."""
    found = {}
    for f in SENTENCES:
        have = [i for i in range(40) if f in made.truth[i]]
        maps = np.stack([activation(made.rng, made.centers[i]) for i in have])
        masks = np.stack([mask(made.centers[i]) for i in have])
        found[f] = localization_scores(maps, masks).summary([GROUPS[i] for i in have], 50, 0)
    return found


def curve():
    """Eight epochs of a training."""
    values = {"lr": lambda e: 1e-3 / e, "loss": lambda e: 1 / e, "val_loss": lambda e: 1 / e + 0.1}
    values["val_auroc"] = lambda e: 0.9 - 0.3 / e
    rows = range(1, 9)
    return [{"epoch": e, "step": 10 * e, **{n: of(e) for n, of in values.items()}, "best": True} for e in rows]


def studies_shown(made):
    """Four studies with what they retrieved; the report of the last is empty."""
    rng = made.rng
    region = MemoryRow(
        0.31, "region", ["Pleural Effusion"], film=film(rng, (60, 150)), box=(3, 9, 4, 10), lift=2.5, studies=0.2
    )
    token = MemoryRow(0.12, "disease_token", ["Cardiomegaly"], lift=1.0, studies=0.91)
    text = MemoryRow(0.42, "report", ["Cardiomegaly"], text="The heart is <enlarged> & the lungs are clear.")
    said = recalled_sentences(rng)
    samples = []
    for i, (found, center) in enumerate(zip(made.truth[:4], made.centers[:4], strict=True)):
        reference, other = highlight_findings(made.references[i], made.generated[i] if i != 3 else "")
        samples.append(
            SampleStudy(
                key=f"CXR{i}",
                film=film(rng, center),
                findings=found,
                probabilities=dict.fromkeys(FINDINGS, 0.5),
                maps={f: activation(rng, center) for f in found},
                masks={f: mask(center) for f in found},
                reference=reference,
                generated=other,
                verdict="1 of 2 findings found, 1 missed",
                unusual={"visual": [("Edema", 0.3, 2.4), ("Fracture", 0.2, 1.1)], "report": []},
                memory={"visual": [region, region, token], "report": [text, text]},
                sentences=said if i < 2 else [],
                unsure=[("Possible <nodule>.", 0.347), ("Edema", 0.2)] if i == 2 else [],
                graph=["Edema <co occurs> (3 train studies)", "second"] if i == 2 else [],
                implausible=["Edema excludes Fracture"] if i == 2 else [],
                views={0: film(rng, center), 1: film(rng, center)} if i == 0 else {0: film(rng, center)},
            )
        )
    return samples


def recalled_sentences(rng):
    """Two findings, of which the second lies on the second film, and two sentences of normal anatomy."""
    effusion, heart = "Pleural Effusion", "Cardiomegaly"
    voters = [
        MemoryRow(
            0.41, "region", [effusion], "Small <left> effusion.", film(rng, (150, 160)), (9, 9, 12, 13), number=37
        ),
        MemoryRow(0.07, "region", [effusion], "Blunted angle.", number=21),
    ]
    normal = [MemoryRow(0.2, "region", ["No Finding"], "Clear lungs.", film(rng, (90, 90)), (3, 2, 8, 9), number=5)]
    details = [(effusion, "side", "left", 0.934), (effusion, "severity", "mild", None)]
    both = [(heart, "severity", "mild", 0.61), (effusion, "side", "right", 0.52)]
    return [
        RecalledSentence(
            SENTENCES[effusion], [effusion], 12, [effusion], voters, (0, 9, 9, 12, 13), {effusion: 0.83}, details
        ),
        RecalledSentence(
            "Both <are> there.",
            [heart, effusion],
            3,
            [heart],
            voters[:1],
            (1, 4, 6, 11, 12),
            {heart: 0.7, effusion: 0.9},
            both,
        ),
        RecalledSentence("No pneumothorax.", ["No Finding"], 7, [], normal),
        RecalledSentence("Lungs are clear.", ["No Finding"], 8, [], normal),
    ]
