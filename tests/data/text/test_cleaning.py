"""Cleaning rules, on sentences written for the purpose."""

import pytest

from amrg.data.text.cleaning import RULES, clean, normalize_for_dedup, numbering, split_sentences


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
        ("The opacity is unchanged since the previous XXXX. Heart normal.", "The opacity is unchanged. Heart normal."),
        ("The XXXX is enlarged. No effusion.", "No effusion."),
        ("XXXX XXXX. Clear lungs.", "Clear lungs."),
        ("The heart and ___ are normal. Lungs clear.", "Lungs clear."),
        ("Nodule..  Clear", "Nodule. Clear."),
        ("XXXX", ""),
        ("", ""),
    ],
)
def test_clean(raw: str, expected: str) -> None:
    assert clean(raw) == expected


@pytest.mark.parametrize("raw", ["No XXXX mass of the XXXX lobe. 2. XXXX/XXXX seen", "x-XXXX of XXXX, XXXX and XXXX"])
def test_no_mask_is_left_and_cleaning_again_changes_nothing(raw: str) -> None:
    once = clean(raw)
    assert "XXXX" not in once
    assert clean(once) == once


def test_measurements_are_not_list_numbers() -> None:
    assert numbering("There are 2 nodules. 3 mm each.") == "There are 2 nodules. 3 mm each."
    assert split_sentences("A 1.5 cm nodule. Dr. Smith was told.") == ["A 1.5 cm nodule.", "Dr. Smith was told."]


def test_fold_ignores_case_and_punctuation_only() -> None:
    assert normalize_for_dedup("Clear lungs; no effusion.") == normalize_for_dedup("clear LUNGS, no effusion")
    assert normalize_for_dedup("no effusion") != normalize_for_dedup("effusion")


def test_rules_are_named() -> None:
    assert all(rule.__name__ == name for name, rule in RULES)
