"""What a MIMIC user has before the chain is run: a look-alike of MIMIC-CXR-JPG, and models as they are published.

Films are made up, weights are random: how things lie and are called is as it is published, what they say means little.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import sentencepiece
import timm
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, BertConfig, BertForPreTraining, LlamaConfig, LlamaForCausalLM

from tests.data.dataset_fixtures import make_mimic

SIZE = 160  # pixels on a side of a film
GRADES = ("small", "moderate", "large")
NORMAL = (
    "The mediastinal contours are normal.", "The osseous structures are unremarkable.", "The aorta is tortuous.",
    "The hilar contours are stable.", "The upper abdomen is unremarkable.", "The pulmonary vasculature is normal.",
    "Lung volumes are low.", "The trachea is midline.", "The diaphragm is sharply outlined.", "The hila are normal.",
)  # fmt: skip


class Shown(NamedTuple):
    """How a finding reads and looks: its place on the patient's left as shares of the film, and how bright it is."""

    label: str
    sentences: tuple[str, ...]
    row: float
    column: float
    light: int


FINDINGS = (
    Shown("Pleural Effusion", (
        "There is a {grade} {side} pleural effusion.", "A {grade} effusion blunts the {side} costophrenic angle.",
        "Fluid layers in the {side} pleural space, a {grade} effusion.",
    ), 0.85, 0.75, 90),
    Shown("Pneumothorax", (
        "There is a {grade} {side} apical pneumothorax.", "A {grade} pneumothorax is seen on the {side}.",
        "The {side} lung is separated from the chest wall by a {grade} pneumothorax.",
    ), 0.12, 0.75, -70),
    Shown("Consolidation", (
        "There is a {grade} consolidation in the {side} mid lung.", "A {grade} {side} perihilar consolidation is seen.",
        "Air bronchograms mark a {grade} consolidation of the {side} lung.",
    ), 0.5, 0.85, 110),
    Shown("Lung Lesion", (
        "A {grade} nodule lies in the {side} upper lobe.", "There is a {grade} mass in the {side} upper lung.",
        "A {grade} round nodule projects over the {side} second rib.",
    ), 0.3, 0.65, 130),
    Shown("Atelectasis", (
        "There is a {grade} area of atelectasis in the {side} lung base.",
        "A {grade} band of {side} basilar atelectasis.",
        "The {side} base shows a {grade} degree of atelectasis.",
    ), 0.7, 0.6, 80),
    Shown("Fracture", (
        "There is a {grade} fracture of the {side} clavicle.",
        "A {grade} gap marks a fracture of the {side} third rib.",
        "The {side} clavicle has a {grade} fracture.",
    ), 0.1, 0.95, 120),
    Shown("Cardiomegaly", (
        "There is {grade} cardiomegaly, of the {side} heart above all.", "The {side} heart shows {grade} enlargement.",
        "The cardiac silhouette is enlarged, to a {grade} degree on the {side}.",
    ), 0.6, 0.55, 100),
    Shown("Edema", (
        "There is a {grade} amount of pulmonary edema on the {side}.", "A {grade} area of {side} interstitial edema.",
        "Edema of the {side} lung is {grade}.",
    ), 0.4, 0.75, 60),
)  # fmt: skip


def make_data(root: Path, patients: int = 60) -> list[str]:
    """MIMIC-CXR-JPG: two studies a patient, one in eight without findings, others with up to four.

    Every fifth patient validates, every fifth tests.


    Returns:
        the findings sections of the reports.
    """
    chance = np.random.default_rng(0)
    made, films = [], []
    for number in range(2 * patients):
        patient = number // 2
        found = [
            (FINDINGS[k], str(chance.choice(GRADES)), str(chance.choice(("left", "right"))))
            for k in chance.choice(len(FINDINGS), chance.integers(1, 5) if number % 8 else 0, replace=False)
        ]
        said = [str(chance.choice(shown.sentences)).format(grade=grade, side=side) for shown, grade, side in found]
        said += map(str, chance.choice(NORMAL, 2, replace=False))
        views = ["PA", "LATERAL"] if number % 3 == 0 else ["AP"]
        made.append(
            (
                f"{10000032 + 37 * patient}", f"{50414267 + 71 * number}",
                ("train", "train", "validate", "train", "test")[patient % 5],
                f"2180{1 + number % 2:02}26", "213014.531",
                [(f"{number:08x}-{k}0dd112c-{number:08x}-7bc16630-4e384014", view) for k, view in enumerate(views)],
                " ".join(said), said[0], {shown.label: "1.0" for shown, _, _ in found} or {"No Finding": "1.0"},
            )
        )  # fmt: skip
        films.append([_paint(found, view, chance) for view in views])
    make_mimic(root, studies=made, paint=lambda number, k: films[number][k])
    return [study[6] for study in made]


def _paint(found: Sequence[tuple[Shown, str, str]], view: str, chance: np.random.Generator) -> np.ndarray:
    """Two dark lungs on grey noise, and a spot for each finding, as large as it is said to be."""
    rows, columns = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    pixels = 120 + chance.normal(0, 6, (SIZE, SIZE))
    for middle in (0.28, 0.72):
        pixels -= 50 * ((((rows - 0.5) / 0.42) ** 2 + ((columns - middle) / 0.18) ** 2) < 1)
    for shown, grade, side in found:
        column = shown.column if side == "left" else 1 - shown.column
        column = 0.5 if view == "LATERAL" else column
        radius = 0.05 + 0.025 * GRADES.index(grade)
        pixels += shown.light * np.exp(-((rows - shown.row) ** 2 + (columns - column) ** 2) / (2 * radius**2))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def make_models(folder: Path, texts: Sequence[str], encoder: str) -> None:
    """Fill ``models/`` as ``hf download`` does, with random weights.

    Args:
        folder: ``models``.
        texts: to make the tokenizers of.
        encoder: timm's name of what lies in ``swin_large``.
    """
    torch.manual_seed(0)
    _make_llama(folder / "Llama-2-7b-chat-hf", texts)
    _make_bert(folder / "Bio_ClinicalBERT", texts)
    (folder / "swin_large").mkdir()
    save_file(timm.create_model(encoder).state_dict(), folder / "swin_large" / "model.safetensors")


def _make_llama(folder: Path, texts: Sequence[str]) -> None:
    """Half-precision safetensors in several parts, sentencepiece, and a generation configuration of its own."""
    folder.mkdir(parents=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_prefix=str(folder / "tokenizer"), vocab_size=400, model_type="bpe",
        byte_fallback=True, hard_vocab_limit=False, unk_id=0, bos_id=1, eos_id=2, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.vocab").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "legacy": false}')
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(folder)  # tokenizer.json
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    model.half().save_pretrained(folder, max_shard_size="100KB")
    said = {"bos_token_id": 1, "do_sample": True, "eos_token_id": 2, "pad_token_id": 0, "temperature": 0.6}
    (folder / "generation_config.json").write_text(json.dumps({**said, "max_length": 4096, "top_p": 0.9}))


def _make_bert(folder: Path, texts: Sequence[str]) -> None:
    """BERT-base with two of its twelve layers: ``vocab.txt`` and a pickle of the years before torch 1.6."""
    folder.mkdir()
    words = sorted({word for text in texts for word in text.lower().replace(".", " ").split()})
    letters = [f"{before}{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789" for before in ("", "##")]
    vocabulary = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", *letters, *words])
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    config = BertConfig(vocab_size=len(vocabulary), num_hidden_layers=2)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **config.to_diff_dict()}))
    weights = BertForPreTraining(config).state_dict()
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
