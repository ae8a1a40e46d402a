from amrg.data.wording import generic, loops, tokenize


def test_tokenize() -> None:
    assert tokenize("A 1.5 cm nodule; patient's X-ray, T1/T2. No change.") == (
        ["a", "1.5", "cm", "nodule", "patient's", "x-ray", "t1/t2", "no", "change"]
    )
    assert tokenize(" .,; ") == []


def test_loops() -> None:
    phrase = ["no", "focal", "lung", "disease"]
    assert loops(phrase * 3)
    assert not loops(phrase * 2)
    assert not loops(["no", "effusion"])


def test_generic() -> None:
    assert generic(["No effusion.", "no effusion", "Effusion."]) == 2 / 3
