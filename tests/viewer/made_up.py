"""A page's content made up in the right shapes: 40 studies whose films are blobs, scored by the real functions."""

import numpy as np

from amrg.data.labels import FINDINGS, LABELS
from amrg.evaluation.highlight import highlighted
from amrg.evaluation.localisation import localise
from amrg.evaluation.scores import mention_tables, score_systems
from amrg.evaluation.wording import copying, wording
from amrg.viewer.page import MemoryRow, Page, SampleStudy

SIZE = 224
SENTENCES = {
    "Cardiomegaly": "The heart is enlarged.",
    "Pleural Effusion": "There is a small left pleural effusion.",
    "Atelectasis": "Streaky opacity at the left base, may represent atelectasis or pneumonia.",
    "Lung Lesion": "Calcified granuloma in the right upper lobe.",
}
NORMAL = "Heart size is normal. No pneumothorax or pleural effusion."


def film(rng, centre):
    y, x = np.mgrid[:SIZE, :SIZE]
    lungs = sum(np.exp(-(((x - c) / 42) ** 2 + ((y - 110) / 75) ** 2)) for c in (70, 154))
    blob = np.exp(-(((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / 300))
    grey = 200 - 140 * lungs + 90 * blob + rng.normal(0, 6, (SIZE, SIZE))
    return grey.clip(0, 255).astype(np.uint8)


def mask(centre):
    y, x = np.mgrid[:SIZE, :SIZE]
    return (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < 22**2


def activation(rng, centre):
    y, x = np.mgrid[:14, :14] * 16 + 8
    return np.exp(-(((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / 1800)) + 0.1 * rng.random((14, 14))


def report(found):
    return " ".join(SENTENCES[f] for f in found) or NORMAL


def page():
    rng = np.random.default_rng(0)
    names = list(SENTENCES)
    truth = [[f for f in names if rng.random() < 0.4] for _ in range(40)]
    said = [[f for f in names if rng.random() < (0.7 if f in found else 0.1)] for found in truth]
    centres = rng.integers(50, 170, (40, 2))
    references, generated = [report(f) for f in truth], [report(f) for f in said]
    groups = [f"p{i}" for i in range(40)]
    present = np.array([[label in found for label in LABELS] for found in truth])
    systems = {"model": generated, "nearest neighbour": references[1:] + references[:1], "normal": [NORMAL] * 40}
    place = {}
    for f in names:
        have = [i for i in range(40) if f in truth[i]]
        maps = np.stack([activation(rng, centres[i]) for i in have])
        place[f] = localise(maps, np.stack([mask(centres[i]) for i in have])).summary([groups[i] for i in have], 50, 0)
    scored = score_systems(references, systems, groups, 50, 0, None)
    for i, found in enumerate(scored.values()):
        found["learned"] = {
            "BERTScore": {"value": 0.9 - 0.1 * i, "interval": [0.4, 0.95]},
            "GREEN": "unavailable: <no> GPU",
        }
        found["learned"]["CheXbert F1 micro-14"] = {"value": 0.5, "interval": None}
    rows = [references[i : i + 2] for i in range(40)]
    scores = {
        "name": "made-up",
        "source": "openi_drr",
        "split": "test",
        "studies": 40,
        "patients": 40,
        "marks": [],
        "systems": scored,
        "references": {"wording": wording(references)},
        "copying": {
            name: copying(texts, rows, references, groups)
            for name, texts in (("generated", generated), ("reference", references))
        },
        "retrieved_sets": {"report": 40, "visual": 12},
        "mentions": mention_tables(present, generated),
        "localisation": place,
        "classifier": {
            "per_label": {
                f: {"positives": int(present[:, i].sum()), "auroc": 0.8, "f1": 0.7} for i, f in enumerate(FINDINGS)
            },
            "mean_auroc": 0.8,
        },
        "probe": {
            "per_label": {f: {"positives": 12, "auroc": 0.52} for f in names},
            "mean_auroc": 0.52,
            "least_positives": 10,
        },
        "settings": {"num_beams": 3, "tokenizer": "<words>"},
        "inputs": {"data": "0" * 64},
        "versions": {"amrg": "0.1.0"},
    }
    rows = [
        {
            "epoch": e,
            "step": 10 * e,
            "lr": 1e-3 / e,
            "loss": 1 / e,
            "val_loss": 1 / e + 0.1,
            "val_auroc": 0.9 - 0.3 / e,
            "best": True,
        }
        for e in range(1, 9)
    ]
    region = MemoryRow(0.31, "region", ["Pleural Effusion"], film=film(rng, (60, 150)), box=(3, 9, 4, 10))
    token = MemoryRow(0.12, "disease_token", ["Cardiomegaly"])
    text = MemoryRow(0.42, "report", ["Cardiomegaly"], text="The heart is <enlarged> & the lungs are clear.")
    studies = []
    for i in range(4):
        reference, other = highlighted(references[i], generated[i] if i != 3 else "")
        studies.append(
            SampleStudy(
                key=f"CXR{i}",
                film=film(rng, centres[i]),
                findings=truth[i],
                probabilities=dict.fromkeys(FINDINGS, 0.5),
                maps={f: activation(rng, centres[i]) for f in truth[i]},
                masks={f: mask(centres[i]) for f in truth[i]},
                reference=reference,
                generated=other,
                memory={"visual": [region, region, token], "report": [text, text]},
            )
        )
    contact = [(film(rng, c), ", ".join(t) or "no finding") for c, t in zip(centres[:24], truth[:24], strict=True)]
    return Page(scores=scores, curves={"Stage 1": rows, "Stage 2": rows}, contact=contact, studies=studies)
