"""Cleaning rules, on sentences written for the purpose."""

import random
import textwrap

import pytest

from amrg.data.text.cleaning import clean_report_text, drop_list_numbers, normalize_for_dedup, split_sentences
from amrg.data.text.repetition import tokenize_words

SENTENCES = (
    "A right PICC ends in the low SVC near the cavoatrial junction, unchanged since the earlier film of the same day.",
    "There is a small left pleural effusion with adjacent atelectasis and no pneumothorax on this supine view.",
    "The heart is mildly enlarged, while Dr. Smith was told of the NG tube and the ET tube at 7 a.m. by telephone.",
)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("The lungs  are\nclear .Heart size normal", "The lungs are clear. Heart size normal."),
        ("1. Clear lungs. 2. No effusion.", "Clear lungs. No effusion."),
        ("(1) a 1.5 cm nodule", "A 1.5 cm nodule."),
        ("no XXXX infiltrate is seen.", "No infiltrate is seen."),
        ("Right lower lobe XXXX opacity.", "Right lower lobe opacity."),
        ("Stable chest x-XXXX.", "Stable chest x-ray."),
        ("A XXXX-A-XXXX is in place.", "A port-a-cath is in place."),
        ("Clear lungs, compared to XXXX.", "Clear lungs."),
        ("Compared to [**2150-1-2**]. Clear lungs.", "Clear lungs."),
        ("Large heart. Compared with the prior XXXX, the lungs are clear.", "Large heart. The lungs are clear."),
        ("There is a _ cm nodule. Clear lungs.", "Clear lungs."),
        ("The opacity is unchanged since the previous XXXX. Heart normal.", "The opacity is unchanged. Heart normal."),
        ("The XXXX is enlarged. No effusion.", "No effusion."),
        ("XXXX XXXX. Clear lungs.", "Clear lungs."),
        ("The heart and ___ are normal. Lungs clear.", "Lungs clear."),
        ("Nodule..  Clear", "Nodule. Clear."),
        ("XXXX", ""),
        ("", ""),
        # lists
        ("1.Clear lungs.\n2.Large heart.", "Clear lungs. Large heart."),
        (
            "1. Clear lungs 2. Fracture of rib 3. No effusion 3. Large heart",
            "Clear lungs. Fracture of rib 3. No effusion. Large heart.",
        ),
        ("- clear lungs\n\u2022 no effusion", "Clear lungs. No effusion."),
        # statements that a line break ends
        ("No edema\nTiny right effusion\nLarge heart", "No edema. Tiny right effusion. Large heart."),
        ("NO EDEMA\nTINY RIGHT EFFUSION", "NO EDEMA. TINY RIGHT EFFUSION."),
        ("no edema\r\ntiny right effusion", "No edema. Tiny right effusion."),
        ("The tip is in the\nSVC and the heart\nis large", "The tip is in the SVC and the heart is large."),
        # sentences
        ("The film of 5 p.m. shows no edema", "The film of 5 p.m. shows no edema."),
        ("Film of 5 p.m. The heart is large", "Film of 5 p.m. The heart is large."),
        ("a mass of .6 cm", "A mass of .6 cm."),
        ("No edema.heart large.3 nodules", "No edema. Heart large. 3 nodules."),
        ('"No edema." "large heart."', '"No edema." "Large heart."'),
        ("approx. 2 cm, told by Drs. A and B", "Approx. 2 cm, told by Drs. A and B."),
        # masks
        ("XXXX effusion is present. No edema.", "No edema."),
        ("XXXX opacity that may be scarring. No edema.", "Opacity that may be scarring. No edema."),
        ("Seen on _. No edema since [**2101-3-4**]. Large heart.", "Seen. No edema. Large heart."),
        ("PA chest compared to ___:\n\nNo edema.", "PA chest: No edema."),
        # characters and markup
        ("Size &lt;2 cm<br>No edema &amp;amp; no mass", "Size <2 cm. No edema & no mass."),
        ("a<b>large</b>\u00a0ef\u200bfusion", "Alarge effusion."),
        (
            "Can\u2019t exclude \ufb01brosis \u2014 \u201cpatchy\u201d, 4\u20135 mm",
            'Can\'t exclude fibrosis - "patchy", 4-5 mm.',
        ),
    ],
)
def test_clean(raw: str, expected: str) -> None:
    assert clean_report_text(raw) == expected


@pytest.mark.parametrize("raw", ["No XXXX mass of the XXXX lobe. 2. XXXX/XXXX seen", "x-XXXX of XXXX, XXXX and XXXX"])
def test_no_mask_is_left_and_cleaning_again_changes_nothing(raw: str) -> None:
    once = clean_report_text(raw)
    assert "XXXX" not in once
    assert clean_report_text(once) == once


@pytest.mark.parametrize("change", [str, str.upper])
def test_wrapped_text_is_one_paragraph(change) -> None:
    text = change(" ".join(SENTENCES))
    for width in range(60, 90):
        assert clean_report_text(textwrap.fill(text, width, break_on_hyphens=False)) == clean_report_text(text)


def test_cleaning_again_changes_nothing() -> None:
    pieces = [
        *SENTENCES,
        "1.No edema\n2.Mass",
        "XXXX seen",
        "&lt;br&gt;",
        "at 5 p.m. it",
        "\u2022 a",
        "x.y",
        "(",
        "...",
        "\n",
        "NO",
    ]
    generator = random.Random(0)
    for _ in range(500):
        raw = generator.choice([" ", "\n", ""]).join(generator.choices(pieces, k=6))
        assert clean_report_text(clean_report_text(raw)) == clean_report_text(raw)


def test_measurements_are_not_list_numbers() -> None:
    assert drop_list_numbers("There are 2 nodules. 3 mm each.") == "There are 2 nodules. 3 mm each."
    assert split_sentences("A 1.5 cm nodule. Dr. Smith was told.") == ["A 1.5 cm nodule.", "Dr. Smith was told."]


def test_fold_ignores_case_and_punctuation_only() -> None:
    assert normalize_for_dedup("Clear lungs; no effusion.") == normalize_for_dedup("clear LUNGS, no effusion")
    assert normalize_for_dedup("no effusion") != normalize_for_dedup("effusion")
    assert normalize_for_dedup("can\u2019t see \ufb01brosis") == normalize_for_dedup("can't see fibrosis")


def test_tokens_of_typographic_text() -> None:
    assert tokenize_words("Can\u2019t exclude \ufb01brosis, 4\u20135 mm") == [
        "can't",
        "exclude",
        "fibrosis",
        "4-5",
        "mm",
    ]
