"""Line breaks of reports: ends of statements, and folds of wrapped text."""

import pytest

from amrg.data.text.lines import add_line_stops, unwrap_lines
from amrg.data.text.statements import find_statements


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # statements
        ("No edema\nSmall effusion", "No edema\nSmall effusion"),
        ("NO EDEMA\nSMALL EFFUSION", "NO EDEMA\nSMALL EFFUSION"),
        ("no edema\nsmall effusion", "no edema\nsmall effusion"),
        ("No edema\r\nSmall effusion", "No edema \nSmall effusion"),
        ("No edema\u2028Small effusion", "No edema\nSmall effusion"),
        ("Stable heart.\nno edema", "Stable heart.\nno edema"),
        ("1. Clear\n2. Normal", "1. Clear\n2. Normal"),
        ("Clear lungs\n \nnormal heart", "Clear lungs\n \nnormal heart"),
        ("Heart size is normal and the lungs are clear without a consolidation today\nModerate left effusion",) * 2,
        # folds
        ("Small left\npleural effusion.", "Small left pleural effusion."),
        ("No effusion or\nPneumothorax", "No effusion or Pneumothorax"),
        ("NO FOCAL\nCONSOLIDATION", "NO FOCAL CONSOLIDATION"),
        ("There is a left\nPICC line.", "There is a left PICC line."),
        ("Lungs:\nClear", "Lungs: Clear"),
        (
            "THERE IS A LARGE MASS OF THE LEFT LOWER LOBE AND A NODULE OF\n2.5 CM.",
            "THERE IS A LARGE MASS OF THE LEFT LOWER LOBE AND A NODULE OF 2.5 CM.",
        ),
        (
            "STABLE POSITION OF THE ENDOTRACHEAL TUBE, WITH ITS TIP PROJECTED\nABOVE THE CARINA",
            "STABLE POSITION OF THE ENDOTRACHEAL TUBE, WITH ITS TIP PROJECTED ABOVE THE CARINA",
        ),
        ("", ""),
        ("\n", "\n"),
    ],
)
def test_unwrap(text: str, expected: str) -> None:
    assert unwrap_lines(text) == expected
    assert len(unwrap_lines(text)) == len(text)


def test_every_statement_of_a_line_gets_a_stop() -> None:
    assert add_line_stops("No edema\nSmall effusion\nClear lungs.") == "No edema.\nSmall effusion.\nClear lungs."
    assert add_line_stops("Findings:\n\nNo edema,\nSmall effusion") == "Findings:\n\nNo edema.\nSmall effusion"


def test_statements_say_where_in_the_text_with_its_lines() -> None:
    text = "No edema\nSmall left\neffusion."
    assert [text[s.start : s.end] for s in find_statements(text)] == ["No edema", "Small left\neffusion."]


def test_a_denied_side_is_no_side_of_the_finding() -> None:
    (found,) = find_statements("Small right and no left pleural effusion.")
    assert (found.presence, set(found.sides), found.severity) == (1.0, {"right"}, "mild")
