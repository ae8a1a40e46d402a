"""Copies of data sets with the faults that were reported of real ones: every study is joined, or counted and told."""

import csv
import gzip
import io
import json
import math
import os
import re
import zipfile
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from amrg.cli import _dispatch
from amrg.config import DataConfig
from amrg.data.dataset_checks import check_dataset
from amrg.data.labels import LABELS
from amrg.data.shards import hash_study_key, prepare_shards
from amrg.data.sources import indiana_views, open_data_source
from amrg.data.sources.tables import decode_text, is_system_file, labels_of_row, parse_moment, read_csv_columns
from amrg.data.splits import hash_patient_group
from amrg.data.stream import load_split_studies
from amrg.data.studies import Study
from amrg.errors import UserError
from amrg.training.multilabel import multilabel_targets
from tests.data.dataset_fixtures import (
    CHEXPERT,
    MIMIC,
    OPENI,
    film,
    make_chexpert,
    make_iu_xray,
    make_mimic,
    make_openi,
)


def config(source, root, **more):
    return DataConfig(source=source, path=str(root), workers=1, shard_size=2, **more)


def studies(source, root, **more):
    return {study.key: study for study in open_data_source(config(source, root, **more), 0).studies()}


def wrong(root):
    return {check.what for check in check_dataset(root)[1] if not check.ok}


def told(root):
    """What the doctor says beyond that all is well."""
    return {check.what for check in check_dataset(root)[1] if check.remedy}


def edit_table(path, change: Callable[[list[dict[str, str]]], list[dict[str, str]]]):
    data = path.read_bytes()
    zipped = path.suffix == ".gz"
    rows = change(list(csv.DictReader(io.StringIO((gzip.decompress(data) if zipped else data).decode()))))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    path.write_bytes(gzip.compress(text.getvalue().encode()) if zipped else text.getvalue().encode())


def edit_bytes(path, change: Callable[[bytes], bytes]):
    zipped = path.suffix == ".gz"
    data = change(gzip.decompress(path.read_bytes()) if zipped else path.read_bytes())
    path.write_bytes(gzip.compress(data) if zipped else data)


def table(root, name):
    return root / f"mimic-cxr-2.0.0-{name}.csv.gz"


def replace_cells(column, change):
    return lambda rows: [row | {column: change(row[column])} for row in rows]


# ---- order and views of MIMIC-CXR ----

#: Of one patient and day: the morning's time has fewer digits before the point than the evening's.
ONE_DAY = ("10000032", "51000001", "51000002")


def one_day(tmp_path, morning, evening, date="21800506"):
    patient, first, second = ONE_DAY
    day = [
        (patient, second, "train", date, evening, [("e", "PA")], "Evening film.", "", {"Edema": "1.0"}),
        (patient, first, "train", date, morning, [("m", "PA")], "Morning film.", "", {"Edema": "0.0"}),
    ]
    return make_mimic(tmp_path / "copy", studies=[*day, *MIMIC[2:]])


@pytest.mark.parametrize(
    ("morning", "evening"),
    [
        ("80556.87500000001", "213014.53100000002"),
        ("80556.875", "213014.0"),
        ("80556", "213014"),
        ("080556.875", "213014"),
        ("8.0556875e4", "2.13014e5"),
        ("08:05:56", "21:30:14"),
        ("0.0", "80556.875"),
    ],
)
def test_studies_of_a_day_are_in_the_order_of_their_times_however_printed(tmp_path, morning, evening) -> None:
    root = one_day(tmp_path, morning, evening)
    found = studies("mimic_cxr", root)
    assert (found["s51000001"].prior, found["s51000002"].prior) == ("", "s51000001")
    found = studies("mimic_cxr", root, splits="temporal")
    assert (found["s51000001"].split, found["s51000002"].split) == ("val", "test")


def test_dates_are_numbers_too(tmp_path) -> None:
    root = make_mimic(tmp_path / "copy")
    dates = {"21800506": "21800506.0", "21800626": "2180-06-26"}
    edit_table(table(root, "metadata"), replace_cells("StudyDate", lambda date: dates.get(date, date)))
    found = studies("mimic_cxr", root)
    assert (found["s50414267"].prior, found["s53189527"].prior) == ("", "s50414267")


@pytest.mark.parametrize(
    ("views", "codes", "first"),
    [
        (("LATERAL", ""), ("lateral", "postero-anterior"), "PA"),
        (("LATERAL", ""), ("", "Antero-Posterior"), "AP"),
        (("LATERAL", ""), ("", ""), ""),
        (("LATERAL", "nan"), ("nan", "nan"), ""),
        (("LL", "AP AXIAL"), ("", ""), "AP AXIAL"),
        (("LPO", ""), ("", ""), ""),
        (("XTABLE LATERAL", "RAO"), ("", ""), "RAO"),
        (("AP LLD", "ap"), ("", ""), "AP"),
        (("", ""), ("left lateral", "postero-anterior"), "PA"),
        ((" LATERAL", "PA "), ("", ""), "PA"),
    ],
)
def test_the_frontal_film_is_first_as_far_as_the_table_tells(tmp_path, views, codes, first) -> None:
    one = ("10000032", "50414267", "train", "21800506", "1.0", [("a", views[0]), ("b", views[1])], "Clear.", "", {})
    root = make_mimic(tmp_path / "copy", studies=[one, *MIMIC[1:]])
    code = {"a": codes[0], "b": codes[1]}
    edit_table(
        table(root, "metadata"),
        lambda rows: [row | {"ViewCodeSequence_CodeMeaning": code.get(row["dicom_id"], "")} for row in rows],
    )
    source = open_data_source(config("mimic_cxr", root), 0)
    study = next(study for study in source.studies() if study.key == "s50414267")
    assert study.views[0] == first
    assert np.abs(source.films(study).views[0].astype(int) - film(1).astype(int)).max() <= 4
    if first == "PA":
        only = studies("mimic_cxr", root, views=("PA", "AP"))
        assert only["s50414267"].views == ("PA",)


def test_a_table_without_codes_of_views_is_read(tmp_path) -> None:
    root = make_mimic(tmp_path / "copy")
    before = studies("mimic_cxr", root)
    code = "ViewCodeSequence_CodeMeaning"
    edit_table(table(root, "metadata"), lambda rows: [{k: v for k, v in r.items() if k != code} for r in rows])
    assert studies("mimic_cxr", root) == before


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("80556.875", 80556.875), ("80556,875", 80556.875), ("08:05:56.5", 80556.5), ("8:05", 80500.0),
        ("20200131.0", 20200131.0), ("2020-01-31", 20200131.0), ("2020/1/31", 20200131.0), ("2020.01.31", 20200131.0),
        ("2020-01-31 12:00", 20200131.5), ("2020-01-31T12:00:00+01:00", 20200131.5), ("2356.75", 2356.75),
        ("31.01.2020", None), ("1/2/2020", None), ("unknown", None), ("", None), (None, None), ("nan", None),
    ],
)  # fmt: skip
def test_times_are_numbers_or_dates_from_the_year_on(cell, expected) -> None:
    assert parse_moment(cell) == expected


@pytest.mark.parametrize(
    ("cell", "expected"), [("1,0", 1.0), ("-1,0", -1.0), ("True", 1.0), (False, 0.0), ("nan", None), (math.nan, None)]
)
def test_labels_with_decimal_commas_and_truth_values(cell, expected) -> None:
    assert (labels_of_row({"Edema": cell})[0]["Edema"], labels_of_row({"Edema": cell})[1]) == (expected, "")


@pytest.mark.parametrize("cell", ["yes", "2", "0,5", "inf", math.inf, "1,000,0"])
def test_other_labels_are_faults(cell) -> None:
    assert labels_of_row({"Edema": cell})[1] == "a label that is not 1, 0, -1 or empty"


# ---- joins of MIMIC-CXR ----


def floats(rows):
    return [row | {k: f"{v}.0" for k, v in row.items() if k in ("subject_id", "study_id")} for row in rows]


#: What was done to a copy, and it is read as before.
HARMLESS: dict[str, Callable] = {
    "all ids are floats": lambda r: [edit_table(table(r, n), floats) for n in ("metadata", "split", "chexpert")],
    "ids of one table are floats": lambda r: edit_table(table(r, "metadata"), floats),
    "ids of the labels are floats": lambda r: edit_table(table(r, "chexpert"), floats),
    "spaces around ids": lambda r: edit_table(table(r, "split"), replace_cells("study_id", lambda i: f" {i} ")),
    "BOM": lambda r: edit_bytes(table(r, "metadata"), lambda d: b"\xef\xbb\xbf" + d),
    "BOM and quoted names": lambda r: edit_bytes(
        table(r, "split"), lambda d: b"\xef\xbb\xbf" + d.replace(b"dicom_id", b'"dicom_id"', 1)
    ),
    "UTF-16": lambda r: edit_bytes(table(r, "split"), lambda d: d.decode().encode("utf-16")),
    "semicolons": lambda r: edit_bytes(table(r, "split"), lambda d: d.replace(b",", b";")),
    "spaces in names of columns": lambda r: edit_bytes(
        table(r, "split"), lambda d: d.replace(b"study_id", b" study_id ", 1)
    ),
    "empty last lines": lambda r: [
        edit_bytes(table(r, n), lambda d: d + b"\r\n  \r\n,,,\r\n") for n in ("split",)
    ],
    "empty last line of labels": lambda r: edit_bytes(table(r, "chexpert"), lambda d: d + b"\r\n\r\n"),
    "blank labels are NaN": lambda r: edit_table(
        table(r, "chexpert"), lambda rows: [{k: v or "NaN" for k, v in row.items()} for row in rows]
    ),
    "blank labels are nan and spaces": lambda r: edit_table(
        table(r, "chexpert"),
        lambda rows: [{k: v or ("nan", " ")[len(k) % 2] for k, v in row.items()} for row in rows],
    ),
    "rows of films twice": lambda r: edit_table(table(r, "metadata"), lambda rows: rows + rows[:3]),
    "rows of splits and labels twice": lambda r: [
        edit_table(table(r, name), lambda rows: rows + rows[:2]) for name in ("split", "chexpert")
    ],
    "files of a Mac in the archive": lambda r: add_reports(
        r, {"__MACOSX/files/p10/p10000032/._s50414267.txt": b"\0\5\x16", "files/.DS_Store": b"\0"}
    ),
    "reports twice in two roots": lambda r: add_reports(
        r, {f"copy/{name}": data for name, data in members(r).items()}
    ),
    "reports in UTF-8 with BOM": lambda r: edit_reports(r, lambda text: b"\xef\xbb\xbf" + text),
    "reports in UTF-16": lambda r: edit_reports(r, lambda text: text.decode().encode("utf-16")),
}  # fmt: skip


def members(root):
    with zipfile.ZipFile(root / "mimic-cxr-reports.zip") as file:
        return {name: file.read(name) for name in file.namelist()}


def add_reports(root, more):
    with zipfile.ZipFile(root / "mimic-cxr-reports.zip", "a") as file:
        for name, data in more.items():
            file.writestr(name, data)


def edit_reports(root, change):
    reports = members(root)
    with zipfile.ZipFile(root / "mimic-cxr-reports.zip", "w") as file:
        for name, data in reports.items():
            file.writestr(name, change(data))


@pytest.mark.parametrize("what", HARMLESS)
def test_the_same_studies_are_read(tmp_path, what) -> None:
    root = make_mimic(tmp_path / "copy")
    before = studies("mimic_cxr", root)
    films = {
        key: len(open_data_source(config("mimic_cxr", root), 0).films(study).views) for key, study in before.items()
    }
    HARMLESS[what](root)
    source = open_data_source(config("mimic_cxr", root), 0)
    assert {study.key: study for study in source.studies()} == before
    assert {study.key: len(source.films(study).views) for study in source.studies()} == films
    assert wrong(root) == set()


def test_films_named_twice_are_counted_and_told(tmp_path) -> None:
    root = make_mimic(tmp_path / "copy")
    edit_table(table(root, "metadata"), lambda rows: rows + rows[:3])
    source = open_data_source(config("mimic_cxr", root), 0)
    assert source.left_out["rows of a film twice: counted once"] == 3
    assert "rows of one film twice" in told(root)


def cut_labels(root):
    edit_table(table(root, "chexpert"), lambda rows: [row for row in rows if row["study_id"] != "53189527"])


def test_a_study_without_a_row_of_labels_is_counted_and_never_negative(tmp_path, capsys) -> None:
    root = make_mimic(tmp_path / "copy")
    cut_labels(root)
    ours = config("mimic_cxr", root, image_size=48)
    source = open_data_source(ours, 0)
    cause = "no row in the table of labels: not used in stage 1"
    prepare_shards(source, ours, tmp_path / "data", 0)
    assert source.left_out[cause] == 1
    assert json.loads((tmp_path / "data" / "statistics.json").read_text())["lacking"][cause] == 1
    assert f"1 with {cause}" in " ".join(capsys.readouterr().err.split())
    assert "studies without labels" in wrong(root)
    train = load_split_studies(tmp_path / "data", "train")
    unlabelled = [study.key == "s53189527" for study in train]
    assert sum(unlabelled) == 1
    for uncertain in ("zeros", "ones"):
        rows = multilabel_targets(train, uncertain, "zeros").numpy()
        assert [bool(np.isnan(row).all()) for row in rows] == unlabelled
        assert not np.isnan(rows[np.logical_not(unlabelled)]).any()


def test_labels_of_another_release_are_refused(tmp_path) -> None:
    root = make_mimic(tmp_path / "copy")
    edit_table(table(root, "chexpert"), replace_cells("study_id", lambda number: f"9{number}"))
    with pytest.raises(UserError, match=r"chexpert\.csv\.gz has labels of none of the 5 studies"):
        open_data_source(config("mimic_cxr", root), 0)
    assert {"labels without a study", "studies without labels"} <= wrong(root)
    assert len(studies("mimic_cxr", root, labels="rules")) == 4


def test_rows_that_contradict_each_other_are_no_labels(tmp_path) -> None:
    root = make_mimic(tmp_path / "copy")
    other = {"Pleural Effusion": "0.0"}
    edit_table(table(root, "chexpert"), lambda rows: rows + [r | other for r in rows if r["study_id"] == "53189527"])
    faults = {key: study.load_error for key, study in studies("mimic_cxr", root).items() if study.load_error}
    assert faults == {"s53189527": "two rows of labels that differ"}
    assert "labels twice, with other values" in wrong(root)


def test_a_study_in_two_splits_is_left_out_of_the_published_ones(tmp_path) -> None:
    root = make_mimic(tmp_path / "copy")
    edit_table(table(root, "split"), lambda rows: [rows[0] | {"split": "test"}, *rows[1:]])
    source = open_data_source(config("mimic_cxr", root), 0)
    assert "s50414267" not in {study.key for study in source.studies()}
    assert source.left_out["no split: left out"] == 1


def test_ids_that_join_nothing_are_named(tmp_path) -> None:
    root = make_mimic(tmp_path / "copy")
    edit_table(table(root, "split"), replace_cells("study_id", lambda number: f"x{number}"))
    with pytest.raises(UserError, match=r"none of 5 studies can be used \(5 with no split: left out\)"):
        open_data_source(config("mimic_cxr", root), 0)


# ---- one bad file ----


def break_member(root, study="50414267"):
    """Change a byte of a stored report: its CRC is wrong."""
    path = root / "mimic-cxr-reports.zip"
    with zipfile.ZipFile(path) as file:
        info = next(info for info in file.infolist() if study in info.filename)
        start = info.header_offset + 30 + len(info.filename)
    data = bytearray(path.read_bytes())
    data[start + 40] ^= 0xFF
    path.write_bytes(data)


def a_folder_instead(root):
    """A report that cannot be opened, whoever asks."""
    path = root / "mimic-cxr-reports" / "files/p10/p10000032/s50414267.txt"
    path.unlink()
    path.mkdir()


def a_link_to_itself(root):
    path = root / "mimic-cxr-reports" / "files/p10/p10000032/s50414267.txt"
    path.unlink()
    path.mkdir()
    (path / "x").symlink_to(path)


#: How a report of one study is damaged; whether the reports are in an archive.
DAMAGED = {
    "a wrong CRC": (break_member, True),
    "no text": (lambda root: edit_reports(root, lambda text: b"\0\1\2" if b"lungs are clear" in text else text), True),
    "a folder": (a_folder_instead, False),
    "a folder with a loop": (a_link_to_itself, False),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_report_that_cannot_be_read_leaves_out_its_study_alone(tmp_path, what, capsys) -> None:
    damage, archive = DAMAGED[what]
    root = make_mimic(tmp_path / "copy", archive=archive)
    before = studies("mimic_cxr", root)
    damage(root)
    ours = config("mimic_cxr", root, image_size=48)
    source = open_data_source(ours, 0)
    prepare_shards(source, ours, tmp_path / "data", 0)
    assert {study.key for study in source.studies()} == before.keys() - {"s50414267"}
    assert source.left_out["a report that cannot be read: left out"] == 1
    assert "reports that cannot be read" in wrong(root)
    with pytest.raises(SystemExit):
        _dispatch(["doctor", str(root), "--list", str(tmp_path / "list.tsv")])
    said = "".join(capsys.readouterr())
    for name in ("10000032", "50414267"):
        assert name not in said
    (line,) = [row for row in read_list(tmp_path / "list.tsv") if row["check"] == "reports that cannot be read"]
    assert line["exact"].endswith("files/p10/p10000032/s50414267.txt")
    assert line["hashed"] == hash_study_key("s50414267")
    assert line["reason"]


def read_list(path):
    return list(csv.DictReader(path.open(encoding="utf-8"), delimiter="\t"))


@pytest.mark.parametrize("archive", [True, False])
def test_a_report_in_latin_1_is_decoded(tmp_path, archive) -> None:
    root = make_mimic(tmp_path / "copy", archive=archive)
    latin = "FINDINGS: Nodule of 5 \xb1 1 mm, caf\xe9-au-lait.".encode("latin-1")
    if archive:
        edit_reports(root, lambda text: latin if b"lungs are clear" in text else text)
    else:
        (root / "mimic-cxr-reports/files/p10/p10000032/s50414267.txt").write_bytes(latin)
    assert studies("mimic_cxr", root)["s50414267"].report == "Nodule of 5 ± 1 mm, café-au-lait."
    assert wrong(root) == set()


def test_reports_twice_with_other_texts_are_said(tmp_path, capsys) -> None:
    root = make_mimic(tmp_path / "copy")
    add_reports(root, {"other/p10/p10000032/s50414267.txt": b"FINDINGS: Another text."})
    source = open_data_source(config("mimic_cxr", root), 0)
    assert {study.key: study for study in source.studies()}["s50414267"].report == "The lungs are clear."
    assert source.left_out["two reports that differ: the first is used"] == 1
    assert "1 with two reports that differ" in capsys.readouterr().err
    assert "reports twice, with other texts" in wrong(root)


def test_the_list_names_every_fault_exactly_and_is_its_owners_alone(tmp_path, capsys) -> None:
    root = make_mimic(tmp_path / "copy", studies=[*MIMIC, *further(80)])
    lost = root / "files/p10/p10000032/s53189527/ab.jpg"
    lost.unlink()
    bad = [root / f"files/p19/p1900{n:04d}/s5900{n:04d}/x{n}.jpg" for n in (7, 70)]
    for path in bad:
        path.write_bytes(b"no film")
    target = tmp_path / "list.tsv"
    with pytest.raises(SystemExit):
        _dispatch(["doctor", str(root), "--list", str(target)])
    films = {row["exact"]: row for row in read_list(target) if row["check"] == "films"}
    assert films.keys() == {str(path) for path in (lost, *bad)}
    assert films[str(lost)]["reason"] == "not there"
    assert films[str(bad[0])]["hashed"] == hash_study_key("s59000007")
    assert target.stat().st_mode & 0o077 == 0
    said = "".join(capsys.readouterr())
    assert "59000007" not in said
    assert "53189527" not in said
    with pytest.raises(UserError, match="cannot write"):
        _dispatch(["doctor", str(root), "--list", str(tmp_path)])


def further(count):
    return [
        (f"1900{n:04d}", f"5900{n:04d}", "train", "21800506", "1", [(f"x{n}", "PA")], "Clear.", "", {"Edema": "0.0"})
        for n in range(count)
    ]


def test_a_shard_without_a_sample_is_not_written(tmp_path) -> None:
    root = make_mimic(tmp_path / "copy", studies=[*MIMIC, *further(10)])
    ours = config("mimic_cxr", root, image_size=48, max_corrupt_fraction=0.5)
    for path in root.glob("files/p10/*/s5077*/*.jpg"):  # the only study of the test split
        path.write_bytes(b"")
    for number in range(9):
        (root / f"files/p19/p1900{number:04d}/s5900{number:04d}/x{number}.jpg").write_bytes(b"")
    source, more = open_data_source(ours, 0), config("mimic_cxr", root, image_size=48, max_corrupt_fraction=1.0)
    prepare_shards(source, more, tmp_path / "data", 0)
    names = {path.stem for path in (tmp_path / "data" / "shards").iterdir()}
    assert "test-000000" not in names
    assert 1 <= sum(name.startswith("train") for name in names) <= 3
    first = {path.name: path.read_bytes() for path in (tmp_path / "data" / "shards").iterdir()}
    prepare_shards(source, more, tmp_path / "data", 0)  # shards that were finished are not written again
    assert {path.name: path.read_bytes() for path in (tmp_path / "data" / "shards").iterdir()} == first
    with pytest.raises(UserError, match=r"more than data\.max_corrupt_fraction"):
        prepare_shards(source, ours, tmp_path / "other", 0)


# ---- CheXpert Plus ----


def edit_labels(root, change):
    for path in (root / "chexbert_labels").iterdir():
        path.write_bytes(change(path.read_bytes()))


#: What was done to a copy of CheXpert Plus, and it is read as before.
HARMLESS_CHEXPERT: dict[str, Callable] = {
    "labels name .png": lambda r: edit_labels(r, lambda d: d.replace(b".jpg", b".png")),
    "labels name .dcm, the table .png": lambda r: [
        edit_labels(r, lambda d: d.replace(b".jpg", b".dcm")),
        edit_bytes(r / "df_chexpert_plus_240401.csv", lambda d: d.replace(b".jpg", b".png")),
    ],
    "empty last lines of labels": lambda r: edit_labels(r, lambda d: d + b"\n \r\n"),
    "labels with BOM and CR": lambda r: edit_labels(r, lambda d: b"\xef\xbb\xbf" + d.replace(b"\n", b"\r\n")),
    "blank labels are NaN": lambda r: edit_labels(r, lambda d: d.replace(b"null", b"NaN")),
    "blank labels are texts": lambda r: edit_labels(r, lambda d: d.replace(b"null", b'"nan"')),
    "labels are texts": lambda r: edit_labels(r, lambda d: re.sub(rb": (-?1.0)", rb': "\1"', d)),
    "lines of labels twice": lambda r: edit_labels(r, lambda d: d + d),
    "missing texts are NaN": lambda r: edit_table(
        r / "df_chexpert_plus_240401.csv", lambda rows: [{k: v or "NaN" for k, v in row.items()} for row in rows]
    ),
    "rows of films twice": lambda r: edit_table(r / "df_chexpert_plus_240401.csv", lambda rows: rows + rows),
    "BOM": lambda r: edit_bytes(r / "df_chexpert_plus_240401.csv", lambda d: b"\xef\xbb\xbf" + d),
    "empty last line": lambda r: edit_bytes(r / "df_chexpert_plus_240401.csv", lambda d: d + b"\n\n"),
    "order is a float": lambda r: edit_table(
        r / "df_chexpert_plus_240401.csv", replace_cells("patient_report_date_order", lambda cell: f"{cell}.0")
    ),
    "sides in small letters": lambda r: edit_table(
        r / "df_chexpert_plus_240401.csv", replace_cells("frontal_lateral", str.lower)
    ),
    "backslashes": lambda r: edit_labels(r, lambda d: d.replace(b"/", b"\\\\")),
}  # fmt: skip


@pytest.mark.parametrize("what", HARMLESS_CHEXPERT)
def test_the_same_studies_of_chexpert_are_read(tmp_path, what) -> None:
    root = make_chexpert(tmp_path / "copy")
    before = studies("chexpert_plus", root, splits="patient")
    assert before["train-patient00001-study1"].views == ("PA", "LATERAL")
    HARMLESS_CHEXPERT[what](root)
    source = open_data_source(config("chexpert_plus", root, splits="patient"), 0)
    assert {study.key: study for study in source.studies()} == before
    frontal, lateral = source.films(before["train-patient00001-study1"]).views
    assert (frontal == film(0)).all()
    assert (lateral == film(1)).all()
    harmless = {"rows of one film twice"}
    assert wrong(root) <= harmless


def test_a_table_in_latin_1_is_read_and_said(tmp_path, capsys) -> None:
    root = make_chexpert(tmp_path / "copy")
    edit_bytes(
        root / "df_chexpert_plus_240401.csv", lambda d: d.replace(b"Clear lungs.", b"Opacit\xe9 of 5 \xb1 1 mm.")
    )
    found = studies("chexpert_plus", root, splits="patient")
    assert found["train-patient00001-study1"].report == "Opacité of 5 ± 1 mm. Normal heart."
    assert "df_chexpert_plus_240401.csv is not UTF-8: read as cp1252" in capsys.readouterr().err


def test_missing_text_is_no_report(tmp_path) -> None:
    root = make_chexpert(tmp_path / "copy")
    for cell in ("NaN", "nan", " NaN ", "<NA>", "None"):
        edit_table(
            root / "df_chexpert_plus_240401.csv",
            lambda rows, cell=cell: [
                row | {"section_findings": cell if "00001/study2" in row["path_to_image"] else row["section_findings"]}
                for row in rows
            ],
        )
        assert studies("chexpert_plus", root, splits="patient")["train-patient00001-study2"].report == ""


def test_chexpert_without_rows_of_labels(tmp_path) -> None:
    root = make_chexpert(tmp_path / "copy")
    path = root / "chexbert_labels" / "findings_fixed.json"
    path.write_text("\n".join(line for line in path.read_text().splitlines() if "patient00001/study2" not in line))
    source = open_data_source(config("chexpert_plus", root, splits="patient"), 0)
    assert source.left_out["no row in the table of labels: not used in stage 1"] == 1
    assert "studies without findings_fixed.json" in wrong(root)
    edit_labels(root, lambda d: d.replace(b"train/", b"images/"))
    with pytest.raises(UserError, match=r"findings_fixed\.json has labels of none of the 61 studies"):
        open_data_source(config("chexpert_plus", root, splits="patient"), 0)


def test_bad_rows_of_chexpert_are_left_out_and_counted(tmp_path) -> None:
    root = make_chexpert(tmp_path / "copy")
    changed = {"00003/": {"path_to_image": ""}, "00004/": {"path_to_image": "../../etc/passwd.jpg"}}
    changed |= {"00005/": {"patient_report_date_order": "first"}, "00006/": {"deid_patient_id": ""}}

    def damage(rows):
        return [r | next((c for p, c in changed.items() if p in r["path_to_image"]), {}) for r in rows]

    edit_table(root / "df_chexpert_plus_240401.csv", damage)
    source = open_data_source(config("chexpert_plus", root, splits="patient"), 0)
    assert len(source.studies()) == len(CHEXPERT) - 2
    assert source.left_out["no patient, study or film named: left out"] == 2
    groups = [study.group for study in source.studies()]
    assert len(set(groups)) == 59 - 2


# ---- R2Gen ----


def edit_annotation(root, change):
    path = root / "annotation.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def as_bytes(change):
    return lambda root: (root / "annotation.json").write_bytes(change((root / "annotation.json").read_bytes()))


HARMLESS_R2GEN: dict[str, Callable] = {
    "BOM": as_bytes(lambda data: b"\xef\xbb\xbf" + data),
    "UTF-16": as_bytes(lambda data: data.decode().encode("utf-16")),
    "an entry twice": lambda r: edit_annotation(r, lambda c: c | {"train": c["train"] + c["train"][:1]}),
    "a film twice": lambda r: edit_annotation(
        r, lambda c: {split: [e | {"image_path": e["image_path"] * 2} for e in some] for split, some in c.items()}
    ),
    "no report": lambda r: edit_annotation(
        r, lambda c: c | {"test": [*c["test"], c["test"][0] | {"id": "CXR9_IM-1", "report": math.nan}]}
    ),
    "a report that is NaN": lambda r: edit_annotation(
        r, lambda c: c | {"test": [*c["test"], c["test"][0] | {"id": "CXR9_IM-1", "report": "nan"}]}
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", HARMLESS_R2GEN)
def test_the_same_studies_of_r2gen_are_read(tmp_path, what) -> None:
    root = make_iu_xray(tmp_path / "copy")
    before = studies("iu_xray", root)
    HARMLESS_R2GEN[what](root)
    source = open_data_source(config("iu_xray", root), 0)
    assert {study.key: study for study in source.studies()} == before
    assert [len(source.films(study).views) for study in source.studies()] == [2, 1, 3, 2]
    if "report" in what:
        assert source.left_out == {"an empty report: left out": 1}
        assert wrong(root) == {"empty reports"}
    if what == "an entry twice":
        assert source.left_out == {"a second entry: the first is used": 1}


@pytest.mark.parametrize("folder", ["files", "images"])
def test_the_doctor_knows_r2gens_selection_of_mimic(tmp_path, folder) -> None:
    root = make_mimic(tmp_path / "copy")
    (root / "files").rename(root / "x")
    (root / "x").rename(root / folder)
    content = {"train": [], "val": [], "test": []}
    for subject, number, split, _, _, views, findings, _, _ in MIMIC[:4]:
        name = {"validate": "val"}.get(split, split)
        for dicom, _ in views:
            path = f"p{subject[:2]}/p{subject}/s{number}/{dicom}.jpg"
            entry = {"id": dicom, "study_id": int(number), "subject_id": float(subject), "report": findings}
            content[name].append(entry | {"image_path": [path], "split": name})
    (root / "annotation.json").write_text(json.dumps(content))
    for path in root.glob("mimic-cxr*"):
        path.unlink()
    source, checks = check_dataset(root)
    assert source == "mimic_cxr"
    assert [check.what for check in checks if not check.ok] == []
    assert studies("mimic_cxr", root)["ab"].group == hash_patient_group("mimic 10000032")
    content["test"].append(content["train"][0] | {"id": "zz"})
    (root / "annotation.json").write_text(json.dumps(content))
    assert wrong(root) == {"patients in two splits"}


#: Studies of the Indiana collection, the numbers of their films in Open-i, and the place of the film that is frontal by
#: ReXrank's files, or of the first where nothing is known.
INDIANA = [
    ("CXR1347_IM-0225", ("3001", "4004"), 1),
    ("CXR2915_IM-1317", ("2001", "3001"), 1),
    ("CXR1632_IM-0413", ("1001", "2001"), 1),
    ("CXR932_IM-2430", ("2001", "3001", "4004"), 2),
    ("CXR3030_IM-1405", ("1001", "2001"), 0),
    ("CXR38_IM-1911", ("1001", "2001"), 0),
    ("CXR99999_IM-0001", ("1001", "2001"), 0),
]


@pytest.mark.parametrize(("name", "numbers", "first"), INDIANA)
def test_frontal_films_of_the_indiana_collection_are_first(tmp_path, name, numbers, first) -> None:
    root = make_iu_xray(tmp_path / "iu")
    paths = [f"{name}/{k}.png" for k in range(len(numbers))]
    (root / "images" / name).mkdir()
    for k, path in enumerate(paths):
        Image.fromarray(film(k)).save(root / "images" / path)
    entry = {"id": name, "report": "Lungs are clear.", "image_path": paths, "split": "train"}
    edit_annotation(root, lambda content: content | {"train": [*content["train"], entry]})
    source = open_data_source(config("iu_xray", root), 0)
    study = next(study for study in source.studies() if study.key == name)
    found = [k for view in source.films(study).views for k in range(3) if (view == film(k)).all()]
    assert (found[0], sorted(found)) == (first, list(range(len(numbers))))

    root = make_openi(tmp_path / "openi")
    names = [f"{name}-{number}" for number in numbers]
    for k, one in enumerate(names):
        Image.fromarray(film(k)).save(root / "NLMCXR_png" / f"{one}.png")
    images = "".join(f'<parentImage id="{one}"/>' for one in names)
    uid = name.split("_")[0]
    text = OPENI.format(number=uid[3:], findings="Lungs are clear.", images=images)
    (root / "ecgen-radiology" / f"{uid}.xml").write_text(text)
    source = open_data_source(config("openi", root, splits="patient"), 0)
    study = next(study for study in source.studies() if study.key == uid)
    found = [k for view in source.films(study).views for k in range(3) if (view == film(k)).all()]
    assert (found[0], sorted(found)) == (first, list(range(len(numbers))))


def test_without_the_wheel_films_stay_in_their_order(monkeypatch) -> None:
    def missing(*file):
        raise UserError("not installed")

    monkeypatch.setattr(indiana_views, "find_wheel_file", missing)
    for known in (indiana_views._ranks, indiana_views._by_study):
        known.cache_clear()
    try:
        paths = ["CXR1347_IM-0225/0.png", "CXR1347_IM-0225/1.png"]
        assert indiana_views.frontal_first(indiana_views.open_i_film_names("CXR1347_IM-0225", paths)) == [0, 1]
    finally:
        for known in (indiana_views._ranks, indiana_views._by_study):
            known.cache_clear()


# ---- Open-i ----


def without_a_word(root):
    reports = root / "ecgen-radiology"
    (reports / "._1.xml").write_bytes(b"\0\5\x16\7")
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "._CXR1_IM-0001-1001.png").write_bytes(b"\0")
    (root / "NLMCXR_png" / "._CXR1_IM-0001-1001.png").write_bytes(b"\0")
    (root / "NLMCXR_png" / ".DS_Store").write_bytes(b"\0")
    (root / "__MACOSX" / "7.xml").write_bytes(b"<cut")


def link(root, name):
    (root / name).rename(root.parent / "elsewhere")
    (root / name).symlink_to(root.parent / "elsewhere", target_is_directory=True)


def link_films(root):
    """Each film is a link, as in a store of contents."""
    store = root.parent / "store"
    store.mkdir()
    for path in (root / "NLMCXR_png").iterdir():
        path.rename(store / path.name)
        path.symlink_to(store / path.name)


HARMLESS_OPENI: dict[str, Callable] = {
    "files of a Mac": without_a_word,
    "films in a linked folder": lambda r: link(r, "NLMCXR_png"),
    "reports in a linked folder": lambda r: link(r, "ecgen-radiology"),
    "a link to the folder itself": lambda r: (r / "loop").symlink_to(r, target_is_directory=True),
    "films are links": link_films,
    "spaces and small letters in labels": lambda r: edit_bytes(
        r / "ecgen-radiology/7.xml", lambda d: d.replace(b'"FINDINGS"', b'" Findings "')
    ),
    "a report twice": lambda r: (r / "copy of 7.xml").write_bytes((r / "ecgen-radiology/7.xml").read_bytes()),
    "a film twice": lambda r: edit_bytes(
        r / "ecgen-radiology/7.xml", lambda d: d.replace(b"IM-0007-2001", b"IM-0007-1001")
    ),
    "UTF-16": lambda r: edit_bytes(
        r / "ecgen-radiology/7.xml", lambda d: d.decode().replace("utf-8", "utf-16").encode("utf-16")
    ),
    "names in capitals": lambda r: (r / "ecgen-radiology/7.xml").rename(r / "ecgen-radiology/7.XML"),
}  # fmt: skip


@pytest.mark.parametrize("what", HARMLESS_OPENI)
def test_the_same_studies_of_openi_are_read(tmp_path, what) -> None:
    root = make_openi(tmp_path / "copy")
    before = studies("openi", root, splits="patient")
    HARMLESS_OPENI[what](root)
    source = open_data_source(config("openi", root, splits="patient"), 0)
    assert {study.key: study for study in source.studies()} == before
    views = source.films(before["CXR7"]).views
    assert len(views) == (1 if what == "a film twice" else 2)
    twice = {"names of studies twice"} if what == "a report twice" else set()
    assert wrong(root) == {"studies without a film", *twice}


def test_a_report_of_openi_in_latin_1(tmp_path) -> None:
    root = make_openi(tmp_path / "copy")
    edit_bytes(root / "ecgen-radiology/7.xml", lambda d: d.replace(b"Effusion number 7", b"Opacit\xe9 of 5 \xb1 1 mm"))
    assert studies("openi", root, splits="patient")["CXR7"].report == "Opacité of 5 ± 1 mm."


def test_the_doctor_checks_openi(tmp_path, capsys) -> None:
    root = make_openi(tmp_path / "copy")
    (root / "ecgen-radiology" / "5.xml").write_text("<cut")
    (root / "NLMCXR_png" / "CXR6_IM-0006-1001.png").write_bytes(b"")
    with pytest.raises(SystemExit):
        _dispatch(["doctor", str(root), "--list", str(tmp_path / "list.tsv")])
    assert "CXR" not in "".join(capsys.readouterr())
    found = {(row["check"], os.path.basename(row["exact"])) for row in read_list(tmp_path / "list.tsv")}
    assert found == {
        ("reports that cannot be read", "5.xml"),
        ("films that are not there", "4.xml"),
        ("studies without a film", "CXR4"),
        ("films", "CXR6_IM-0006-1001.png"),
    }


def test_what_lacks_is_said_where_no_study_is_left(tmp_path) -> None:
    root = make_openi(tmp_path / "copy")
    for path in (root / "NLMCXR_png").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"none of 60 studies can be used \(60 with no film: left out\)"):
        open_data_source(config("openi", root, splits="patient"), 0)


# ---- what the readers share ----


def test_a_home_folder_is_expanded(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    make_mimic(tmp_path / "copy")
    assert len(studies("mimic_cxr", "~/copy")) == 4


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"plain", "plain"),
        (b"\xef\xbb\xbfFINDINGS:", "FINDINGS:"),
        ("é ±".encode(), "é ±"),
        ("é ±".encode("latin-1"), "é ±"),
        (b"can\x92t", "can’t"),
        ("é".encode("utf-16"), "é"),
        (b"\x81", "�"),
    ],
)
def test_texts_are_decoded(data, text) -> None:
    assert decode_text(data) == text


@pytest.mark.parametrize(
    ("name", "added"),
    [
        ("._1.xml", True), ("__MACOSX/a.txt", True), ("a/.DS_Store", True), ("Thumbs.db", True),
        ("a/desktop.ini", True),
        ("./files/s1.txt", False), ("../s1.txt", False), ("1.xml", False), ("a.b/c", False),
    ],
)  # fmt: skip
def test_files_that_systems_add_are_known(name, added) -> None:
    assert bool(is_system_file(name)) is added


def test_rows_of_nothing_and_missing_cells(tmp_path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b'\xef\xbb\xbf"study_id",text,more\n12.0, a ,x\n\n,NaN,x\n7,n/a,x\n007,"b\nc",x\n')
    assert read_csv_columns(path, ("study_id", "text"), optional=("not there",), multiline=True).to_pylist() == [
        {"study_id": "12", "text": "a", "not there": None},
        {"study_id": "7", "text": None, "not there": None},
        {"study_id": "007", "text": "b\nc", "not there": None},
    ]
    with pytest.raises(UserError, match=r"t\.csv has no column other"):
        read_csv_columns(path, ("other",))
    path.write_bytes(b"a,b\n1,2\n1\n")
    with pytest.raises(UserError, match=r"t\.csv: row 3 has 1 cells and the header 2"):
        read_csv_columns(path, ("a",))
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"t\.csv"):
        read_csv_columns(path, ("a",))


def test_a_study_without_labels_is_ignored_whatever_blanks_mean() -> None:
    nothing = Study("a", "g", "train", "Report.", dict.fromkeys(LABELS))
    one = Study("b", "g", "train", "Report.", dict.fromkeys(LABELS) | {"Edema": 0.0})
    rows = multilabel_targets([nothing, one], "zeros", "zeros")
    assert rows[0].isnan().all()
    assert rows[1].tolist() == [0.0] * 14
    assert not multilabel_targets([], "zeros", "zeros").numel()


def test_films_of_another_format_are_joined_by_stem(tmp_path) -> None:
    root = make_mimic(tmp_path / "copy")
    path = root / "files/p10/p10000032/s53189527/ab.jpg"
    Image.open(path).save(path.with_suffix(".png"))
    path.unlink()
    source = open_data_source(config("mimic_cxr", root), 0)
    study = next(study for study in source.studies() if study.key == "s53189527")
    assert source.films(study).views[0].shape == (60, 48)
