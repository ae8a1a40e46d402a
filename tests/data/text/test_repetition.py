import pytest

from amrg.data.text.repetition import is_repetitive, mentions_prior, most_common_share, tokenize


def test_tokenize() -> None:
    assert tokenize("A 1.5 cm nodule; patient's X-ray, T1/T2. No change.") == (
        ["a", "1.5", "cm", "nodule", "patient's", "x-ray", "t1/t2", "no", "change"]
    )
    assert tokenize(" .,; ") == []


def test_loops() -> None:
    phrase = ["no", "focal", "lung", "disease"]
    assert is_repetitive(phrase * 3)
    assert not is_repetitive(phrase * 2)
    assert not is_repetitive(["no", "effusion"])


def test_generic() -> None:
    assert most_common_share(["No effusion.", "no effusion", "Effusion."]) == 2 / 3


@pytest.mark.parametrize(
    ("text", "speaks"),
    [
        ("Stable cardiomegaly.", True),
        ("The heart is AGAIN enlarged.", True),
        ("No interval change.", True),
        ("Compared to prior, the lungs are clearer.", True),
        ("Nodule, similar to the previous CT.", True),
        ("The effusion has resolved.", True),
        ("No new infiltrate.", True),
        ("Comparison with the prior chest radiograph.", True),
        ("The right apex is dense compared to the left.", False),
        ("Prior granulomatous disease.", False),
        ("Sequela of previous infection.", False),
        ("Against a background of emphysema, no effusion.", False),
        ("The heart is enlarged.", False),
        ("", False),
    ],
)
def test_what_only_an_earlier_film_can_tell(text: str, speaks: bool) -> None:
    assert mentions_prior(text) == speaks
