import pytest

from amrg.data.text.repetition import is_repetitive, mentions_prior, most_common_share, tokenize_words


def test_tokenize() -> None:
    assert tokenize_words("A 1.5 cm nodule; patient's X-ray, T1/T2. No change.") == (
        ["a", "1.5", "cm", "nodule", "patient's", "x-ray", "t1/t2", "no", "change"]
    )
    assert tokenize_words(" .,; ") == []


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
        # a change
        ("Edema has increased.", True),
        ("The pneumothorax has not cleared.", True),
        ("Effusion has almost disappeared.", True),
        ("A patchy infiltrate has developed.", True),
        ("The left lung has re-expanded.", True),
        ("Both drains have been removed.", True),
        ("The catheter was withdrawn.", True),
        ("The patient has been extubated.", True),
        ("Removal of the chest tube.", True),
        ("Enlarging left pneumothorax.", True),
        ("Decreasing right effusion.", True),
        ("Decreased left effusion.", True),
        ("Opacity decreased.", True),
        ("Right effusion is larger.", True),
        ("There has been an increase in the effusion.", True),
        ("Clearing of the edema.", True),
        ("The pneumothorax is no longer seen.", True),
        ("The heart is now normal.", True),
        ("Increase in size of the nodule.", True),
        ("Change in position of the catheter.", True),
        ("Recurrent effusion.", True),
        ("No difference from the old film.", True),
        # another time
        ("Nodule larger than yesterday.", True),
        ("Effusion smaller than before.", True),
        ("As before, the heart is large.", True),
        ("Less prominent than on the prior study.", True),
        ("When compared with the radiograph of last week, the edema has decreased.", True),
        ("Compared to XXXX, the lungs are clear.", True),
        ("Nodule seen two years ago.", True),
        ("Re-demonstrated are calcified nodules.", True),
        ("Opacity, not visualized on prior.", True),
        ("The basal opacity is less conspicuous.", True),
        # this film, or a later one
        ("Bilateral opacities, more extensive on the right.", False),
        ("The right effusion is more prominent than the left.", False),
        ("Increased interstitial markings.", False),
        ("Heart size is increased.", False),
        ("Right effusion larger than left.", False),
        ("Nodule larger than 3 cm.", False),
        ("The heart is larger than normal.", False),
        ("Opacity better visualized on the lateral view.", False),
        ("Increased AP diameter of the chest.", False),
        ("Advanced degenerative changes.", False),
        ("Surgically removed ribs.", False),
        ("Old rib fractures.", False),
        ("No effusion and enlarged heart.", False),
        ("Patchy opacity, may represent evolving infiltrate.", False),
        ("A later film should document resolution.", False),
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
