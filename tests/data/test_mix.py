"""Several data sets in one: names and patients are told apart, weights and missing labels reach the training."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from amrg.config import ColumnsConfig, Config, DataConfig, MixPart
from amrg.config_files import config_from_dict, load_config
from amrg.data.labels import LABELS
from amrg.data.shards import prepare_shards
from amrg.data.sources import configured_source_size, open_data_source, source_faults
from amrg.data.splits import hash_patient_group
from amrg.data.stream import Stream, draw_epoch_counts, iter_split_samples, load_split_studies, study_weights
from amrg.data.studies import Study
from amrg.errors import UserError
from amrg.pipeline import STEPS
from amrg.training.multilabel import multilabel_targets
from tests.data.dataset_fixtures import film, make_iu_xray, make_openi
from tests.data.test_layouts import COLUMNS, make_kaggle, make_own, make_vindr, save_film
from tests.synthetic_dataset import prepare_squares


def mixed(*parts: MixPart, **more) -> DataConfig:
    return DataConfig(source="mix", mix=parts, workers=1, **more)


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> DataConfig:
    root = tmp_path_factory.mktemp("three")
    rows = [("1", f"m{n}", f"{n}.png", f"Finding {n}.", "", part, "PA", "", "0", "")
            for n, part in enumerate(("train", "train", "val", "test"))]  # fmt: skip
    return mixed(
        MixPart("table", str(make_own(root / "a", rows)), "ours", columns=COLUMNS, weight=2.0),
        MixPart("table", str(make_own(root / "b", rows)), "theirs", columns=replace(COLUMNS, labels=None)),
        MixPart("vindr_cxr", str(make_vindr(root / "c"))),
    )


def test_keys_patients_and_labels_are_those_of_each_data_set(three, tmp_path) -> None:
    prepare_shards(open_data_source(three, 0), three, tmp_path, 0)
    train = load_split_studies(tmp_path, "train", with_wordless=True)
    assert Counter(study.dataset for study in train) == {"ours": 2, "theirs": 2, "vindr_cxr": 2}
    assert all(study.key.startswith(f"{study.dataset}-") for study in train)
    assert len({study.group for study in train}) == 6  # the two tables name their patients alike
    without = {study.dataset: study.unlabelled for study in train}
    assert without["vindr_cxr"] == ("Enlarged Cardiomediastinum", "Support Devices")
    assert (len(without["ours"]), without["theirs"]) == (12, ())
    assert not any(study.report for study in train if study.dataset == "vindr_cxr")
    assert {study.dataset for study in load_split_studies(tmp_path, "val")} == {
        "ours",
        "theirs",
    }  # VinDr-CXR has no val
    statistics = json.loads((tmp_path / "statistics.json").read_text())
    assert statistics["data_sets"]["vindr_cxr"] == {"train": 2, "val": 0, "test": 1}
    assert "vindr_cxr: 2 train, 0 val, 1 test studies" in (tmp_path / "card.md").read_text()
    sample = next(s for s in iter_split_samples(tmp_path, "train") if s.study.key.startswith("theirs-1-"))
    wanted = film(3 * int(sample.study.report.split()[1].rstrip(".")))
    assert np.abs(sample.views[0].astype(int) - wanted).max() <= 4


def test_the_same_patient_in_two_copies_is_known_and_not_torn(tmp_path) -> None:
    openi = MixPart("openi", str(make_openi(tmp_path / "openi", 60)), splits="patient")
    root = make_kaggle(tmp_path / "kaggle", [(str(n), f"Effusion number {n}.", "") for n in range(1, 61)],
                       [(str(n), f"{n}_IM-0001-1001.dcm.png", "Frontal") for n in range(1, 61)])  # fmt: skip
    for n in range(1, 61):
        save_film(root / "images" / "images_normalized" / f"{n}_IM-0001-1001.dcm.png")
    kaggle = MixPart("iu_kaggle", str(root))
    found = open_data_source(mixed(openi, kaggle), 0).studies()
    splits = {(study.dataset, study.group): study.split for study in found}
    assert splits["openi", hash_patient_group("iu CXR7")] == splits["iu_kaggle", hash_patient_group("iu CXR7")]
    r2gen = MixPart("iu_xray", str(make_iu_xray(tmp_path / "r2gen")))
    with pytest.raises(UserError, match=r"data\.mix: \d patients are in different splits of two data sets"):
        open_data_source(mixed(openi, r2gen), 0)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "data.source mix needs data.mix"),
        ([{"source": "mix"}], "data.mix: mix cannot be one"),
        ([{"source": "openi_drr"}], "data.mix: openi_drr cannot be one"),
        ([{"source": "openi"}, {"source": "openi"}], "the name 'openi' is given twice"),
        ([{"source": "openi", "name": "a/b"}], "the name 'a/b' is given twice or has more"),
        ([{"source": "openi", "path": "nowhere", "name": "b"}], "b: data.path nowhere is not a folder"),
        ([{"source": "nothing"}], "nothing: unknown data source"),
    ],
)
def test_a_wrong_mix_is_one_line(parts, message) -> None:
    config = config_from_dict({"data": {"source": "mix", "mix": parts}}, "here").data
    assert message in "\n".join(source_faults(config))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"mix": [{"source": "openi"}]}, "data.mix is of the source mix, not openi_drr: set data.source mix"),
        ({"source": "openi", "columns": {"images": "a"}}, "data.columns is of the source table, not openi"),
    ],
)
def test_settings_of_another_source_are_refused(data, message) -> None:
    (fault,) = source_faults(config_from_dict({"data": data}, "here").data)
    assert message in fault


def test_unknown_keys_of_a_part_are_refused() -> None:
    with pytest.raises(UserError, match=r"unknown key `data\.mix\.1\.wight`; known there: source, path"):
        config_from_dict({"data": {"mix": [{"source": "openi"}, {"source": "openi", "wight": 2}]}}, "here")
    with pytest.raises(UserError, match=r"unknown key `data\.mix\.0\.columns\.image`"):
        config_from_dict({"data": {"mix": [{"source": "table", "columns": {"image": "x"}}]}}, "here")


def test_a_part_has_the_settings_of_data_and_its_own(tmp_path) -> None:
    rows = [(f"e{n}", f"m{n}", f"{n}.png", f"Finding {n}.", f"End {n}.", part, "PA", "", "0", "")
            for n, part in enumerate(("train", "train", "train", "val", "test"))]  # fmt: skip
    root = str(make_own(tmp_path, rows))
    config = mixed(
        MixPart("table", root, "a", columns=COLUMNS), MixPart("table", root, "b", columns=COLUMNS, train_studies=1),
        sections="impression", train_studies=2,
    )  # fmt: skip
    found = open_data_source(config, 0).studies()
    assert Counter(study.dataset for study in found if study.split == "train") == {"a": 2, "b": 1}
    assert all(study.report.startswith("End") for study in found)
    assert configured_source_size(config) is None


def test_identities_without_mix_and_columns_are_as_before_and_weights_are_of_training_alone() -> None:
    before = load_config("openi")
    settings = STEPS["prepare"].settings(before)
    assert not {"mix", "columns", "data_weights"} & settings.keys()
    for step in ("stage1", "stage2"):
        assert "data_weights" not in STEPS[step].settings(before)
    parts = (MixPart("openi", "a"), MixPart("iu_kaggle", "b"))
    even = Config(data=mixed(*parts))
    weighted = Config(data=mixed(replace(parts[0], weight=0.5), parts[1]))
    assert STEPS["prepare"].settings(even) == STEPS["prepare"].settings(weighted)
    for step in ("stage1", "stage2"):
        assert "data_weights" not in STEPS[step].settings(even)
        assert STEPS[step].settings(weighted)["data_weights"] == {"openi": 0.5, "iu_kaggle": 1.0}
    own = Config(data=DataConfig(source="table", columns=ColumnsConfig(images="a", report="b")))
    assert STEPS["prepare"].settings(own)["columns"]["images"] == "a"


def test_labels_that_a_data_set_does_not_have_are_ignored_and_never_negative() -> None:
    values = dict.fromkeys(LABELS) | {"Edema": 0.0, "Fracture": 1.0}
    study = Study("a", "g", "train", "", values, unlabelled=("Cardiomegaly",))
    (row,) = multilabel_targets([study], "ignore", "zeros")
    wanted = [{"Fracture": 1.0, "Cardiomegaly": float("nan")}.get(label, 0.0) for label in LABELS]
    assert torch.equal(row.isnan(), torch.tensor(wanted).isnan())
    assert torch.equal(row.nan_to_num(9.0), torch.tensor(wanted).nan_to_num(9.0))


def test_counts_of_an_epoch_follow_the_weights() -> None:
    weights = np.array([1.0] * 3 + [2.5] * 4 + [0.25] * 8)
    drawn = [draw_epoch_counts(weights, 0, epoch) for epoch in range(4)]
    for counts in drawn:
        assert counts[:3].tolist() == [1, 1, 1]
        assert sorted(counts[3:7].tolist()) == [2, 2, 3, 3]
        assert sorted(counts[7:].tolist()) == [0] * 6 + [1] * 2
    assert len({tuple(counts) for counts in drawn}) > 1  # other studies each epoch
    assert np.array_equal(drawn[0], draw_epoch_counts(weights, 0, 0))


def test_a_stream_repeats_studies_by_their_weights_for_any_number_of_ranks(tmp_path) -> None:
    data = prepare_squares(tmp_path)
    names = [study.key for study in load_split_studies(data, "train")]
    weights = np.array([2.0 if int(name.split("-")[1]) < 8 else 0.5 for name in names])

    def keys(rank: int, world: int) -> list[list[str]]:
        stream = Stream(data, "train", 4, 0, rank, world, weights=weights)
        assert stream.steps_per_epoch == 6  # 8 · 2 + 16 / 2 samples
        return [[sample.study.key for sample in batch] for batch in stream.epoch(1)]

    alone = keys(0, 1)
    counted = Counter(key for batch in alone for key in batch)
    assert {counted[name] for name in names if int(name.split("-")[1]) < 8} == {2}
    assert sorted(counted[name] for name in names if int(name.split("-")[1]) >= 8) == [0] * 8 + [1] * 8
    together = [sorted(a + b) for a, b in zip(keys(0, 2), keys(1, 2), strict=True)]
    assert together == [sorted(batch) for batch in alone]


def test_weights_of_studies_come_from_the_index(three, tmp_path) -> None:
    prepare_shards(open_data_source(three, 0), three, tmp_path, 0)
    assert three.weights == {"ours": 2.0, "theirs": 1.0, "vindr_cxr": 1.0}
    of = [three.weights[study.dataset] for study in load_split_studies(tmp_path, "train")]
    assert study_weights(tmp_path, "train", three.weights).tolist() == of
    assert study_weights(tmp_path, "train", {}) is None
    assert len(study_weights(tmp_path, "train", three.weights, with_wordless=True)) == 6
