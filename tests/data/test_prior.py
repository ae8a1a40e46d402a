"""The earlier study: which one it is, the days between, what the index keeps, and sentences without words of change."""

from dataclasses import replace
from pathlib import Path

import pytest

from amrg.config import DataConfig
from amrg.data.labels import LABELS
from amrg.data.prior import EarlierStudies, Prior, choose_priors, days_between
from amrg.data.shards import OPTIONAL, prepare_shards, read_split_index
from amrg.data.stream import iter_split_samples, load_split_studies
from amrg.data.studies import Study
from amrg.data.text.prior_mentions import without_prior_mentions
from tests.conftest import RandomSource


def study(key: str, prior: str = "", group: str = "p", split: str = "train", **more: object) -> Study:
    return Study(key, group, split, f"Report {key}.", dict.fromkeys(LABELS), prior=prior, **more)


def test_the_last_and_the_first_study_by_hand() -> None:
    studies = [study("a"), study("b", "a", prior_days=30), study("c", "b", prior_days=5), study("d", group="q")]
    assert choose_priors(studies, "last") == {"b": Prior("a", "Report a.", 30), "c": Prior("b", "Report b.", 5)}
    assert choose_priors(studies, "first") == {"b": Prior("a", "Report a.", 30), "c": Prior("a", "Report a.", 35)}
    unknown = [replace(one, prior_days=None) if one.key == "c" else one for one in studies]
    assert choose_priors(unknown, "first")["c"] == Prior("a", "Report a.", None)
    rendered = [study("e"), study("f", "e", prior_report="As it was.")]
    assert choose_priors(rendered, "last") == {"f": Prior("e", "As it was.")}


def test_no_study_of_another_patient_or_split_is_a_prior() -> None:
    """Nor one that a limit of the split has left out, nor the study itself by a chain that returns."""
    assert choose_priors([study("a", group="q"), study("b", "a")], "last") == {}
    assert choose_priors([study("a", split="test"), study("b", "a")], "first") == {}
    assert choose_priors([study("b", "gone")], "last") == {}
    assert choose_priors([study("a", "b"), study("b", "a")], "first") == {
        "a": Prior("b", "Report b."), "b": Prior("a", "Report a."),
    }  # fmt: skip
    assert choose_priors([study("a", "a")], "last") == {}


def test_studies_of_one_time_are_not_earlier_than_each_other() -> None:
    earlier = EarlierStudies()
    found = []
    for key, time in (("a", 1.0), ("b", 2.0), ("c", 2.0), ("d", 2.0), ("e", 3.0)):
        found.append(earlier.find("p", time))
        earlier.add("p", time, key)
    assert found == [("", None), ("a", 1.0), ("a", 1.0), ("a", 1.0), ("d", 2.0)]
    assert earlier.find("another", 9.0) == ("", None)


def test_days_between_dates_and_other_numbers() -> None:
    assert days_between(21800206.0, 21800506.5) == 90  # 2180 is a leap year: 23 + 31 + 30 + 6
    assert days_between(20210228.0, 20210301.0) == 1
    assert days_between(1.0, 2.0) is None  # an order, no dates
    assert days_between(20211340.0, 20211341.0) is None
    assert days_between(None, 20210301.0) is None


class Visited(RandomSource):
    """Each odd study is the later one of its patient; the first of them with days, a text and a truth."""

    def studies(self) -> list[Study]:
        found = []
        for one in super().studies():
            split, number = one.key.split("-")
            one = replace(one, group=f"patient-{split}-{int(number) // 2}")
            if int(number) % 2:
                one = replace(one, prior=f"{split}-{int(number) - 1}")
            if number == "1":
                one = replace(one, prior_days=0, prior_report="As it was.", changes={"Edema": "worse"})
            found.append(one)
        return found


def test_the_index_and_the_samples_keep_what_is_known(tmp_path: Path) -> None:
    prepare_shards(Visited(), DataConfig(shard_size=4, workers=1), tmp_path, 0)
    names = read_split_index(tmp_path, "train").column_names
    assert {"prior_days", "prior_report", "changes"} <= {*names}
    expected = {one.key: one for one in Visited().studies() if one.split == "train"}
    assert {one.key: one for one in load_split_studies(tmp_path, "train")} == expected
    assert {sample.study.key: sample.study for sample in iter_split_samples(tmp_path, "train")} == expected


def test_data_without_earlier_studies_are_indexed_as_before(tmp_path: Path) -> None:
    prepare_shards(RandomSource(), DataConfig(shard_size=4, workers=1), tmp_path, 0)
    assert not {*OPTIONAL.names} & {*read_split_index(tmp_path, "train").column_names}


@pytest.mark.parametrize(
    ("text", "alone"),
    [
        ("The lungs are clear. Stable cardiomegaly.", "The lungs are clear. Cardiomegaly."),
        ("There is a new small right effusion.", "There is a small right effusion."),
        ("Mild cardiomegaly is unchanged.", "Mild cardiomegaly."),
        ("Cardiac silhouette is enlarged but unchanged.", "Cardiac silhouette is enlarged."),
        ("The left effusion has increased since the prior film.", ""),
        ("The mediastinum is stable.", ""),  # would not read on, and states nothing
        ("Compared to the prior film, no change. Heart size is normal.", "Heart size is normal."),
        ("No pneumothorax.", "No pneumothorax."),
        ("", ""),
    ],
)
def test_sentences_without_their_words_of_change(text: str, alone: str) -> None:
    assert without_prior_mentions(text) == alone
