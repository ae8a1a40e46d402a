"""Every published layout becomes the studies that were put in."""

import dataclasses
import gzip
import json
import pickle
import random

import numpy as np
import pytest

from amrg.config import DataConfig
from amrg.data.labels import LABELS
from amrg.data.shards import prepare_shards
from amrg.data.sources import open_data_source
from amrg.data.splits import assign_splits, hash_patient_group
from amrg.data.stream import iter_split_samples, load_split_studies
from amrg.data.studies import Study
from amrg.errors import UserError
from tests.data import dataset_fixtures
from tests.data.dataset_fixtures import CHEXPERT, MIMIC, film, make_chexpert, make_iu_xray, make_mimic, make_openi


def shuffled(columns):
    return random.Random(1).sample(list(columns), len(columns))


def config(source, root, **more):
    return DataConfig(source=source, path=str(root), workers=1, shard_size=2, **more)


def labels(marked):
    return {label: float(marked[label]) if label in marked else None for label in LABELS}


@pytest.fixture(scope="module")
def mimic(tmp_path_factory):
    return make_mimic(tmp_path_factory.mktemp("mimic") / "copy")


def test_mimic_becomes_shards_with_what_was_put_in(mimic, tmp_path) -> None:
    ours = config("mimic_cxr", mimic, image_size=48)
    prepare_shards(pickle.loads(pickle.dumps(open_data_source(ours, 0))), ours, tmp_path, 0)
    found = {study.key: study for split in ("train", "val", "test") for study in load_split_studies(tmp_path, split)}
    assert len(found) == 4  # the fifth has no findings
    for subject, number, split, _, _, views, findings, _, marked in MIMIC[:4]:
        study = found[f"s{number}"]
        assert (study.split, study.report) == ({"validate": "val"}.get(split, split), findings)
        assert study.labels == labels(marked)
        assert study.group == hash_patient_group(f"mimic {subject}")
        assert subject not in repr(study)
        assert sorted(study.views) == sorted(view for _, view in views)
    assert found["s50414267"].views == ("PA", "LATERAL")
    assert [found[key].prior for key in ("s50414267", "s53189527", "s57375967")] == ["", "s50414267", ""]
    sample = next(s for s in iter_split_samples(tmp_path, "train") if s.study.key == "s50414267")
    for view, number in zip(sample.views, (1, 0), strict=True):  # the frontal film first
        assert np.abs(view.astype(int) - film(number).astype(int)).max() <= 4


def test_mimic_columns_in_any_order_and_unpacked_reports_give_the_same(mimic, tmp_path) -> None:
    other = make_mimic(tmp_path / "copy", shuffled, archive=False)
    for more in ({}, {"labels": "negbio"}):
        first, second = (open_data_source(config("mimic_cxr", root, **more), 0) for root in (mimic, other))
        assert first.studies() == second.studies()


#: Two studies without findings, one of them with a label; and one, with findings, without a split.
MUTE = (
    (
        "10000032",
        "50999999",
        "train",
        "21800601",
        "10000",
        [("ac", "AP")],
        "",
        "Effusion.",
        {"Pleural Effusion": "1.0"},
    ),
    ("10000935", "50578980", "test", "21870824", "10000", [("dc", "PA")], "", "Nothing.", {}),
    ("10000936", "50578981", "", "21870824", "10000", [("dd", "PA")], "Clear lungs.", "", {"No Finding": "1.0"}),
)


@pytest.fixture
def mute(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_fixtures, "MIMIC", (*MIMIC, *MUTE))
    root = make_mimic(tmp_path / "mute")
    path = root / "mimic-cxr-2.0.0-split.csv.gz"
    rows = gzip.decompress(path.read_bytes()).decode().splitlines()
    path.write_bytes(gzip.compress("\n".join(row for row in rows if "50578981" not in row).encode()))
    return root


def test_labelled_studies_without_the_section_are_for_stage_1_alone(mimic, mute, tmp_path, capsys) -> None:
    ours = config("mimic_cxr", mute, image_size=48)
    source = open_data_source(ours, 0)
    prepare_shards(source, ours, tmp_path / "data", 0)
    with_text = {
        split: {s.key for s in load_split_studies(tmp_path / "data", split)} for split in ("train", "val", "test")
    }
    before = open_data_source(config("mimic_cxr", mimic, image_size=48), 0).studies()
    assert with_text == {split: {s.key for s in before if s.split == split} for split in with_text}
    assert {s.key: s.prior for s in source.studies() if s.report} == {s.key: s.prior for s in before}
    every = {s.key: s for s in load_split_studies(tmp_path / "data", "train", with_wordless=True)}
    assert every.keys() - with_text["train"] == {"s50999999"}
    assert every["s50999999"].labels["Pleural Effusion"] == 1.0
    assert [s.study.key for s in iter_split_samples(tmp_path / "data", "train", with_wordless=True)] == list(every)
    assert [s.study.key for s in iter_split_samples(tmp_path / "data", "train")] == [
        key for key in every if every[key].report
    ]
    counted = {
        "no split: left out": 1, "no findings text: stage 1 alone": 1, "neither findings text nor labels: left out": 2,
    }  # fmt: skip
    told = json.loads((tmp_path / "data" / "statistics.json").read_text())
    assert told["lacking"] == source.left_out == counted
    assert [told["splits"][split]["without_text"] for split in with_text] == [1, 0, 0]
    said, card = " ".join(capsys.readouterr().err.split()), (tmp_path / "data" / "card.md").read_text()
    for cause, count in counted.items():
        assert f"{count} with {cause}" in said
        assert f"{count} with {cause}" in card


def test_only_the_wanted_views_are_films_of_a_study(mimic, tmp_path) -> None:
    source = open_data_source(config("mimic_cxr", mimic, views=("PA", "AP")), 0)
    found = {study.key: study.views for study in source.studies()}
    assert found == {"s50414267": ("PA",), "s53189527": ("AP",), "s57375967": ("AP",), "s50771383": ("PA",)}
    first = next(study for study in source.studies() if study.key == "s50414267")
    (only,) = source.films(first).views
    assert np.abs(only.astype(int) - film(1).astype(int)).max() <= 4
    chexpert = make_chexpert(tmp_path / "chexpert")
    source = open_data_source(config("chexpert_plus", chexpert, views=("AP",), splits="patient"), 0)
    assert len(source.studies()) == len(CHEXPERT) - 1
    assert source.left_out["no film of data.views: left out"] == 1
    source = open_data_source(config("chexpert_plus", chexpert, views=("AP", "LATERAL"), splits="patient"), 0)
    lateral = next(study for study in source.studies() if study.key == "train-patient00001-study1")
    assert [(view == film(1)).all() for view in source.films(lateral).views] == [True]
    with pytest.raises(UserError, match=r"data\.views PA: iu_xray does not tell the view"):
        open_data_source(config("iu_xray", make_iu_xray(tmp_path / "i"), views=("PA",)), 0)


def test_a_label_out_of_range_leaves_its_study_out_and_is_counted(tmp_path) -> None:
    root = make_mimic(tmp_path / "copy")
    path = root / "mimic-cxr-2.0.0-chexpert.csv.gz"
    header, *rows = gzip.decompress(path.read_bytes()).decode().splitlines()
    broken = next(i for i, row in enumerate(rows) if row.split(",")[1] == "50414267")
    column = header.split(",").index("Edema")
    cells = rows[broken].split(",")
    rows[broken] = ",".join([*cells[:column], "7.0", *cells[column + 1 :]])
    path.write_bytes(gzip.compress("\n".join([header, *rows]).encode()))
    ours = config("mimic_cxr", root, image_size=48, max_corrupt_fraction=0.3)
    prepare_shards(open_data_source(ours, 0), ours, tmp_path / "data", 0)
    told = json.loads((tmp_path / "data" / "statistics.json").read_text())
    assert told["skipped"] == {"a label that is not 1, 0, -1 or empty": 1}
    assert "s50414267" not in {s.key for s in load_split_studies(tmp_path / "data", "train")}
    with pytest.raises(UserError, match=r"1 of 4 studies cannot be read.*a label that is not"):
        prepare_shards(
            open_data_source(ours, 0), dataclasses.replace(ours, max_corrupt_fraction=0.1), tmp_path / "again", 0
        )


def test_mimic_sections_and_rules(mimic) -> None:
    def texts(**more):
        return {
            s.key: s.report for s in open_data_source(config("mimic_cxr", mimic, splits="patient", **more), 6).studies()
        }

    both = texts(sections="both")
    assert both["s50414267"] == "The lungs are clear. No acute process."
    assert both["s57375967"] == "Heart is enlarged."
    assert both["s50578979"] == "Nothing to add."
    ruled = open_data_source(config("mimic_cxr", mimic, labels="rules"), 0).studies()
    effusion = next(study for study in ruled if study.key == "s53189527")
    assert effusion.labels["Pleural Effusion"] == 1.0
    assert effusion.labels["Edema"] is None


def test_r2gens_selection_of_mimic(tmp_path) -> None:
    root = make_mimic(tmp_path / "copy")
    content = {"train": [], "val": [], "test": []}
    for subject, number, split, _, _, views, findings, _, _ in MIMIC[:4]:
        name = {"validate": "val"}.get(split, split)
        path = f"p{subject[:2]}/p{subject}/s{number}/{views[0][0]}.jpg"
        entry = {"id": views[0][0], "study_id": int(number), "subject_id": int(subject), "report": findings}
        content[name].append(entry | {"image_path": [path], "split": name})
    (root / "annotation.json").write_text(json.dumps(content))
    source = open_data_source(config("mimic_cxr", root), 0)
    found = {study.key: study for study in source.studies()}
    assert found["aa-lat"].group == hash_patient_group("mimic 10000032")
    assert found["ab"].labels["Pleural Effusion"] == 1.0
    assert source.films(found["aa-lat"]).views[0].shape == (60, 48)


@pytest.mark.parametrize("index_column", [False, True])
def test_chexpert_plus(tmp_path, index_column) -> None:
    root = make_chexpert(tmp_path / "copy", shuffled if index_column else list, index_column)
    source = open_data_source(config("chexpert_plus", root, splits="patient"), 0)
    found = {study.key: study for study in source.studies()}
    assert len(found) == len(CHEXPERT)
    mute = found["train-patient00002-study1"]  # no findings: its label is of use
    assert (mute.report, mute.labels["Cardiomegaly"]) == ("", 1.0)
    assert source.left_out == {
        "no findings text: stage 1 alone": 1,
        "no labels: not used in stage 1": len(CHEXPERT) - 3,
    }
    first, second = found["train-patient00001-study1"], found["train-patient00001-study2"]
    assert first.report == "Clear lungs. Normal heart."
    assert second.labels == labels({"Pleural Effusion": 1, "Edema": -1})
    assert second.prior == first.key
    assert first.group == second.group == hash_patient_group("chexpert patient00001")
    frontal, lateral = source.films(first).views
    assert (frontal == film(0)).all()
    assert (lateral == film(1)).all()
    both = {
        s.key: s.report
        for s in open_data_source(config("chexpert_plus", root, splits="patient", sections="both"), 0).studies()
    }
    assert both["train-patient00002-study1"] == "Enlarged heart."
    assert both["train-patient00001-study2"] == "Small effusion. Effusion."


def test_iu_xray(tmp_path) -> None:
    source = open_data_source(config("iu_xray", make_iu_xray(tmp_path)), 0)
    found = {study.key: study for study in source.studies()}
    assert [study.split for study in found.values()] == ["train", "train", "val", "test"]
    study = found["CXR2384_IM-0942"]
    assert study.report == "The heart size is normal. There is a left pleural effusion."
    assert study.labels["Pleural Effusion"] == 1.0
    assert [len(source.films(s).views) for s in found.values()] == [2, 1, 3, 2]
    assert (source.films(found["CXR7_IM-2263"]).views[2] == film(8)).all()


def test_openis_own_release(tmp_path) -> None:
    root = make_openi(tmp_path / "copy")
    source = open_data_source(config("openi", root, splits="patient"), 0)
    found = {study.key: study for study in source.studies()}
    assert sorted(found) == sorted(f"CXR{n}" for n in range(1, 61) if n not in (3, 4))
    assert found["CXR7"].report == "Effusion number 7."
    assert found["CXR7"].labels["Pleural Effusion"] == 1.0
    assert [(view == film(k)).all() for k, view in enumerate(source.films(found["CXR7"]).views)] == [True, True]
    both = open_data_source(config("openi", root, splits="patient", sections="both"), 0)
    assert next(s for s in both.studies() if s.key == "CXR7").report == "Effusion number 7. Normal."
    with pytest.raises(UserError, match=r"val.*data\.splits patient"):
        open_data_source(config("openi", root), 0)
    (root / "ecgen-radiology" / "5.xml").write_text("<cut")
    damaged = open_data_source(config("openi", root, splits="patient"), 0)
    assert sorted(s.key for s in damaged.studies()) == sorted(key for key in found if key != "CXR5")
    assert damaged.left_out["a report that cannot be read: left out"] == 1


def patients(numbers):
    return [
        Study(f"s{p}-{k}", f"p{p}", "train", "A report.", dict.fromkeys(LABELS))
        for p, n in numbers.items()
        for k in range(n)
    ]


def test_a_split_by_patient_keeps_patients_together_and_follows_the_seed() -> None:
    many = patients(dict.fromkeys(range(300), 2))
    first, again, other = (assign_splits(many, DataConfig(splits="patient"), seed) for seed in (0, 0, 1))
    assert first == again != other
    by_patient = {}
    for study in first:
        by_patient.setdefault(study.group, set()).add(study.split)
    assert all(len(splits) == 1 for splits in by_patient.values())
    counts = [sum(study.split == split for study in first) / 600 for split in ("train", "val", "test")]
    assert counts == pytest.approx([0.7, 0.1, 0.2], abs=0.06)


def test_a_split_by_time_tests_on_each_patients_last_study() -> None:
    found = {s.key: s.split for s in assign_splits(patients({1: 4, 2: 1, 3: 2}), DataConfig(splits="temporal"), 0)}
    assert found == {
        "s1-0": "train", "s1-1": "train", "s1-2": "val", "s1-3": "test", "s2-0": "train", "s3-0": "val", "s3-1": "test",
    }  # fmt: skip


def test_limits_keep_a_seeded_part() -> None:
    many = patients(dict.fromkeys(range(100), 1))
    part = assign_splits(many, DataConfig(splits="patient", train_studies=20), 0)
    assert sum(study.split == "train" for study in part) == 20
    whole = assign_splits(many, DataConfig(splits="patient"), 0)
    assert [study for study in whole if study in part] == part


def silenced(many, keys):
    return [dataclasses.replace(study, report="") if study.key in keys else study for study in many]


def test_studies_without_a_text_move_no_other() -> None:
    many = patients({1: 6, 2: 2, 3: 1})
    mute = {"s1-0", "s1-2", "s1-5", "s2-1", "s3-0"}
    found = {s.key: s.split for s in assign_splits(silenced(many, mute), DataConfig(splits="temporal"), 0)}
    # with a text: s1-1 train, s1-3 val, s1-4 test, s2-0 alone
    assert found == {
        "s1-0": "train", "s1-1": "train", "s1-2": "train", "s1-3": "val", "s1-4": "test", "s1-5": "test",
        "s2-0": "train", "s2-1": "train", "s3-0": "train",
    }  # fmt: skip
    many = patients(dict.fromkeys(range(100), 1))
    mute = {f"s{number}-0" for number in range(0, 100, 3)}
    for limit in (20, 60):
        ours = DataConfig(splits="patient", train_studies=limit)
        alone = assign_splits([study for study in many if study.key not in mute], ours, 0)
        together = assign_splits(silenced(many, mute), ours, 0)
        assert [study for study in together if study.report] == alone
        assert sum(study.split == "train" for study in together) == limit


def edit(path, change):
    path.write_text(change(path.read_text()))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "mimic-cxr-2.0.0-split.csv.gz").unlink(), r"has no mimic-cxr-2\.0\.0-split\.csv"),
        (lambda root: (root / "mimic-cxr-2.0.0-split.csv.gz").write_bytes(b"dicom_id,study\n1,2\n"), "split.csv.gz"),
        (lambda root: (root / "mimic-cxr-reports.zip").write_bytes(b"no zip"), "not a readable archive"),
        (lambda root: (root / "mimic-cxr-2.0.0-metadata.csv.gz").write_bytes(b"\x1f\x8bcut"), "not a readable table"),
    ],
)
def test_a_broken_copy_is_one_line(tmp_path, damage, message) -> None:
    root = make_mimic(tmp_path / "copy")
    damage(root)
    with pytest.raises(UserError, match=message) as caught:
        open_data_source(config("mimic_cxr", root), 0)
    assert "\n" not in str(caught.value)


def test_patients_in_two_published_splits_and_empty_splits_are_refused(tmp_path) -> None:
    torn = [Study(f"s{k}", "p", split, "A report.", dict.fromkeys(LABELS)) for k, split in enumerate(("train", "test"))]
    with pytest.raises(UserError, match="1 patients are in more than one"):
        assign_splits(torn, DataConfig(), 0)
    with pytest.raises(UserError, match="the split `val` has no studies"):
        open_data_source(config("chexpert_plus", make_chexpert(tmp_path / "copy")), 0)
    with pytest.raises(UserError, match="is not a folder"):
        open_data_source(config("mimic_cxr", tmp_path / "nowhere"), 0)


@pytest.mark.parametrize("entry", [{"id": "a"}, {"id": "a", "report": "x", "image_path": ["../../etc/passwd"]}])
def test_a_wrong_annotation_is_one_line(tmp_path, entry) -> None:
    root = make_iu_xray(tmp_path)
    content = json.loads((root / "annotation.json").read_text())
    content["val"] = [entry]
    (root / "annotation.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"annotation\.json, entry 2"):
        open_data_source(config("iu_xray", root), 0)
