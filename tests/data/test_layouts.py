"""Layouts of other data sets, and tables of one's own, become the studies that were put in; ``doctor`` knows them."""

import json
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from amrg.config import ColumnsConfig, Config, DataConfig
from amrg.data.dataset_checks import check_dataset
from amrg.data.labels import LABELS
from amrg.data.own_studies import find_own_studies
from amrg.data.shards import prepare_shards
from amrg.data.sources import open_data_source, open_mixed_source, source_faults
from amrg.data.sources.padchest import labels_of_names
from amrg.data.splits import hash_patient_group
from amrg.data.stream import iter_split_samples, load_split_studies
from amrg.errors import UserError
from amrg.pipeline import run_pipeline_step
from tests.data.dataset_fixtures import film, make_openi, save_csv
from tests.data.test_image_io import dicom as save_dicom


def save_film(path: Path, number: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(film(number)).save(path)


def studies_of(source: str, root: Path, **more):
    return {
        study.key: study for study in open_mixed_source(DataConfig(source=source, path=str(root), **more), 0).studies()
    }


def labels(**marked: float) -> dict[str, float | None]:
    named = {name.replace("_", " "): value for name, value in marked.items()}
    return dict.fromkeys(LABELS) | named


OWN = [  # exam, mrn, files, finding text, conclusion, part, view, day, oedema, effusion
    ("e1", "7.0", "a/1.png; a/2.png", "Clear lungs.", "Normal.", "train", "LAT;PA", "20200103", "0", ""),
    ("e2", "7.0", "a/3.png", "Small effusion.", "Effusion.", "train", "AP", "20200102", "", "1"),
    ("e3", "8.0", "b/4.png", "Heart is enlarged.", "", "valid", "", "20200101", "nan", "-1"),
    ("e4", "9.0", "b/5.png", "", "Normal.", "test", "PA", "20200101", "1", "0"),
    ("e5", "10.0", "b/6.png", "Lungs are clear.", "", "", "PA", "20200101", "1", "0"),
]
HEADS = ("exam", "mrn", "files", "finding text", "conclusion", "part", "view", "day", "p_Edema", "p_Pleural Effusion")
COLUMNS = ColumnsConfig(
    images="files", findings="finding text", impression="conclusion", patient="mrn", study="exam", split="part",
    labels="p_", view="view", study_time="day",
)  # fmt: skip


def make_own(root: Path, rows: list[tuple[str, ...]] = OWN) -> Path:
    for number, row in enumerate(rows):
        for k, name in enumerate(row[2].split(";")):
            save_film(root / name.strip(), 3 * number + k)
    save_csv(root / "chest.csv", HEADS, [dict(zip(HEADS, row, strict=True)) for row in rows], list)
    return root


def test_a_table_of_ones_own(tmp_path) -> None:
    found = studies_of("table", make_own(tmp_path), columns=COLUMNS)
    assert {key: (s.split, s.report) for key, s in found.items()} == {
        "e1": ("train", "Clear lungs."), "e2": ("train", "Small effusion."), "e3": ("val", "Heart is enlarged."),
        "e4": ("test", ""),  # no findings: its labels are of use
    }  # fmt: skip
    assert found["e1"].group == found["e2"].group == hash_patient_group("table 7") != found["e3"].group
    assert (found["e1"].views, found["e2"].views, found["e3"].views) == (("PA", "LATERAL"), ("AP",), ())
    assert (found["e1"].prior, found["e2"].prior) == ("e2", "")  # by the day, not by the row
    assert found["e1"].labels == labels(Edema=0.0)
    assert found["e3"].labels == labels(Pleural_Effusion=-1.0)
    unknown = tuple(label for label in LABELS if label not in ("Edema", "Pleural Effusion"))
    assert {study.unlabelled for study in found.values()} == {unknown}
    source = open_mixed_source(DataConfig(source="table", path=str(tmp_path), columns=COLUMNS), 0)
    assert source.left_out == {"no findings text: stage 1 alone": 1, "no split: left out": 1}
    first = source.films(found["e1"])
    assert np.array_equal(first.views[0], film(1))  # the frontal film, which the row names second
    assert set(studies_of("table", tmp_path, columns=COLUMNS, views=("PA",))) == {"e1", "e4"}


def test_a_table_in_parquet_with_a_row_for_each_film_lists_and_no_labels(tmp_path) -> None:
    rows = [
        {
            "acc": 1,
            "id": 5,
            "path": ["x/1.png"],
            "text": "FINDINGS: Small left pleural effusion.\nIMPRESSION: Effusion.",
        },
        {
            "acc": 1,
            "id": 5,
            "path": ["x/2.png"],
            "text": "FINDINGS: Small left pleural effusion.\nIMPRESSION: Effusion.",
        },
        {"acc": 1, "id": 6, "path": ["x/3.png"], "text": "Lungs are clear"},
        *({"acc": n, "id": n, "path": [f"x/{n}.png"], "text": "Lungs are clear"} for n in range(10, 70)),
    ]
    for row in rows:
        save_film(tmp_path / row["path"][0])
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "chest.parquet")
    columns = ColumnsConfig(images="path", report="text", patient="id", study="acc")
    found = studies_of("table", tmp_path, columns=columns)
    of = Counter(study.group for study in found.values())
    assert len(found) == 62
    assert set(of.values()) == {1}
    assert {study.split for study in found.values()} == {"train", "val", "test"}  # by patient
    both = next(study for study in found.values() if study.group == hash_patient_group("table 5"))
    assert both.report == "Small left pleural effusion."
    assert both.labels["Pleural Effusion"] == 1.0
    assert both.unlabelled == ()
    assert (
        len(open_mixed_source(DataConfig(source="table", path=str(tmp_path), columns=columns), 0).films(both).views)
        == 2
    )
    alone = next(study for study in found.values() if study.group == hash_patient_group("table 6"))
    assert alone.report == "Lungs are clear."  # a text without headings is taken whole
    assert alone.key != both.key  # though both patients have a study 1


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"images": "file", "report": "conclusion"}, "images: no column 'file'; chest.csv has the columns exam"),
        ({"report": "conclusion"}, "data.columns.images must name the column"),
        ({"images": "files"}, "data.columns must name report, findings or impression, or labels"),
        ({"images": "files", "labels": "q_"}, "data.columns.labels: no column 'q_Enlarged Cardiomediastinum'"),
        ({"images": "files", "labels": {"Oedema": "p_Edema"}}, "no label Oedema; labels are Enlarged"),
        ({"images": "files", "labels": {"Edema": "oedema"}}, "data.columns.labels.Edema: no column 'oedema'"),
        ({"images": "files", "report": "conclusion", "table": "other.csv"}, "other.csv is not there"),
        ({"images": "files", "report": "conclusion", "split": "view"}, "split 'LAT;PA' is none of train"),
    ],
)  # fmt: skip
def test_a_wrong_column_is_one_line_with_the_columns_there(tmp_path, columns, message) -> None:
    config = DataConfig(source="table", path=str(make_own(tmp_path)), columns=ColumnsConfig(**columns))
    with pytest.raises(UserError) as caught:
        open_data_source(config, 0)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    if "split" not in columns:
        assert message in "\n".join(source_faults(config))


SMALL = ColumnsConfig(images="film", report="text", patient="patient", study="study", study_time="day")


def small_table(root: Path, rows: list[str], change=str.encode, **more):
    """Studies of a table with the columns of ``SMALL``, whose bytes are changed."""
    for number in range(3):
        save_film(root / f"{number}.png", number)
    (root / "t.csv").write_bytes(change("\n".join(["film,text,patient,study,day", *rows, ""])))
    return studies_of("table", root, columns=SMALL, **more)


THREE = [f"{n}.png,Größere Effusion.,p,s{n},2020-01-0{3 - n}" for n in range(3)]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(",", ";").encode("cp1252"),
        lambda text: text.replace(",", "\t").encode(),
        lambda text: text.encode("utf-16"),
        lambda text: text.replace("\n", "\r").encode("utf-8-sig"),
        lambda text: text.replace("film,text,", " film ,text ,").replace("\n", "\r\n").encode(),
        lambda text: text.replace("0.png", ".\\0.png").encode(),
    ],
)
def test_a_table_as_programs_save_it(tmp_path, change) -> None:
    found = small_table(tmp_path, THREE, change)
    assert [(key, study.prior) for key, study in found.items()] == [("s2", ""), ("s1", "s2"), ("s0", "s1")]
    assert {study.report for study in found.values()} == {"Größere Effusion."}
    assert not any(study.load_error for study in found.values())
    source = open_mixed_source(DataConfig(source="table", path=str(tmp_path), columns=SMALL), 0)
    assert np.array_equal(source.films(found["s0"]).views[0], film(0))


def test_whole_paths_below_the_folder_are_read(tmp_path) -> None:
    found = small_table(tmp_path, [f"{tmp_path}/0.png,Clear.,p,s0,1", "/etc/1.png,Clear.,p,s1,2"])
    assert [bool(study.load_error) for study in found.values()] == [False, True]


def test_times_without_a_known_form_give_no_order(tmp_path, capsys) -> None:
    rows = ["0.png,Clear.,p,s0,03.02.2020", '1.png,Clear.,p,s1,"20200301,0"', "2.png,Clear.,p,s2,20200302"]
    found = small_table(tmp_path, rows)
    assert {key: study.prior for key, study in found.items()} == {"s0": "", "s1": "", "s2": "s1"}
    assert "1 with a time that is neither a number nor a date from the year on" in capsys.readouterr().err
    with pytest.raises(UserError, match="splits temporal: table does not tell the time"):
        small_table(tmp_path, rows[:1], splits="temporal")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["0.png,Clear, normal.,p7,s0,1"], r"t\.csv: row 2 has 6 cells and the header 5: a cell with the separator"),
        ([], r"none of 0 studies can be used: `amrg doctor`"),
    ],
)
def test_what_is_wrong_in_a_table_is_one_line_without_its_cells(tmp_path, rows, message) -> None:
    with pytest.raises(UserError, match=message) as error:
        small_table(tmp_path, rows)
    assert "\n" not in str(error.value)
    assert "p7" not in str(error.value)
    (tmp_path / "t.csv").write_bytes(b"")
    with pytest.raises(UserError, match=r"t\.csv is empty"):
        studies_of("table", tmp_path, columns=SMALL)


def test_each_wrong_column_has_its_line(tmp_path) -> None:
    columns = ColumnsConfig(images="a", report="b", patient="c")
    (fault,) = source_faults(DataConfig(source="table", path=str(make_own(tmp_path)), columns=columns))
    assert [line.split(":")[0] for line in fault.splitlines()] == [
        f"data.columns.{n}" for n in ("images", "report", "patient")
    ]


def test_rows_that_contradict_each_other_and_paths_that_leave_are_left_out_and_counted(tmp_path) -> None:
    rows = [
        ("e1", "1", "a.png", "Clear lungs.", "", "train", "", "", "0", ""),
        ("e1", "1", "b.png", "Effusion.", "", "train", "", "", "1", ""),
        ("e2", "2", "../c.png", "Clear lungs.", "", "train", "", "", "0", ""),
        *((f"f{n}", f"f{n}", f"{n}.png", "Clear lungs.", "", split, "", "", "0", "")
          for n, split in enumerate(("train", "val", "test"))),
    ]  # fmt: skip
    root = make_own(tmp_path / "copy", rows)
    config = DataConfig(source="table", path=str(root), columns=COLUMNS, workers=1, max_corrupt_fraction=0.5)
    prepare_shards(open_data_source(config, 0), config, tmp_path / "out", 0)
    skipped = json.loads((tmp_path / "out" / "statistics.json").read_text())["skipped"]
    assert skipped == {
        "a path of a film that leaves the folder": 1,
        "its rows do not agree on its findings; its rows do not agree on its labels": 1,
    }
    assert "unlabelled" in pq.read_schema(tmp_path / "out" / "index.parquet").names
    (kept,) = load_split_studies(tmp_path / "out", "train")
    assert (kept.key, "Cardiomegaly" in kept.unlabelled, "Edema" in kept.unlabelled) == ("f0", True, False)
    assert next(iter_split_samples(tmp_path / "out", "train")).study == kept


def test_an_index_without_them_has_no_new_columns(tmp_path) -> None:
    config = DataConfig(source="openi", path=str(make_openi(tmp_path / "copy")), splits="patient", workers=1)
    prepare_shards(open_data_source(config, 0), config, tmp_path / "out", 0)
    assert not {"dataset", "unlabelled"} & set(pq.read_schema(tmp_path / "out" / "index.parquet").names)


KAGGLE_REPORTS = ("uid", "MeSH", "Problems", "image", "indication", "comparison", "findings", "impression")


def make_kaggle(root: Path, reports: list[tuple[str, str, str]], films: list[tuple[str, str, str]]) -> Path:
    """Kaggle's layout from (uid, findings, impression) and (uid, file, projection)."""
    root.mkdir(parents=True, exist_ok=True)
    rows = [
        dict.fromkeys(KAGGLE_REPORTS, "")
        | {"uid": uid, "MeSH": "normal", "Problems": "normal", "findings": f, "impression": i}
        for uid, f, i in reports
    ]
    save_csv(root / "indiana_reports.csv", KAGGLE_REPORTS, rows, list)
    names = ("uid", "filename", "projection")
    save_csv(root / "indiana_projections.csv", names, [dict(zip(names, one, strict=True)) for one in films], list)
    return root


def test_kaggles_iu_x_ray(tmp_path) -> None:
    films = [("1", "1_IM-0001-4001.dcm.png", "Lateral"), ("1", "1_IM-0001-3001.dcm.png", "Frontal"),
             ("2", "2_IM-0652-1001.dcm.png", "Frontal"), ("2", "2_IM-0652-2001.dcm.png", "Lateral"),
             ("3", "3_IM-1384-1001.dcm.png", "Frontal")]  # fmt: skip
    reports = [
        ("1", "There is a XXXX left pleural effusion.", "Normal chest x-XXXX."),
        ("2", "Heart is large.", ""),
        ("3", "", "None."),
    ]
    root = make_kaggle(tmp_path, reports, films)
    for number, (_, name, _) in enumerate(films[:3]):
        save_film(root / "images" / "images_normalized" / name, number)
    found = studies_of("iu_kaggle", root)
    assert set(found) == {"CXR1", "CXR2"}  # the third has no findings, and no film
    assert found["CXR1"].report == "There is a left pleural effusion."
    assert found["CXR1"].labels["Pleural Effusion"] == 1.0
    assert found["CXR1"].group == hash_patient_group("iu CXR1")  # the patient of Open-i's release
    assert (found["CXR1"].views, found["CXR2"].views) == (("FRONTAL", "LATERAL"), ("FRONTAL",))
    source = open_mixed_source(DataConfig(source="iu_kaggle", path=str(root)), 0)
    assert np.array_equal(source.films(found["CXR1"]).views[0], film(1))
    assert studies_of("iu_kaggle", root, sections="both")["CXR1"].report.endswith("Normal chest x-ray.")
    assert check_dataset(root)[0] == "iu_kaggle"


def test_a_part_of_kaggles_copy_says_what_is_missing(tmp_path) -> None:
    root = make_kaggle(tmp_path, [("1", "Clear.", "")], [])
    faults = source_faults(DataConfig(source="iu_kaggle", path=str(root)))
    assert len(faults) == 1
    assert "has no images/images_normalized" in faults[0]
    source, checks = check_dataset(root)
    assert source == "iu_kaggle"
    assert [check.what for check in checks if not check.ok] == ["files"]


@pytest.mark.parametrize("named", ["CXR{n}_{n}_IM-0001-{k}001", "CXR{n}_IM-0001-{k}001"])
@pytest.mark.parametrize("file", ["{n}_IM-0001-{k}001.dcm", "CXR{n}_IM-0001-{k}001.png", "{n}_IM-0001-{k}001.dcm.png"])
def test_films_by_open_is_dicom_names(tmp_path, file, named) -> None:
    for n in (1, 11):
        images = "".join(f'<parentImage id="{named.format(n=n, k=k)}"/>' for k in (1, 2))
        findings = f'<AbstractText Label="FINDINGS">Clear {n}.</AbstractText>'
        (tmp_path / f"{n}.xml").write_text(f'<eCitation><uId id="CXR{n}"/>{findings}{images}</eCitation>')
        for k in (1, 2):
            path = tmp_path / file.format(n=n, k=k)
            if path.suffix == ".dcm":
                save_dicom(path, film(n + k))
            else:
                save_film(path, n + k)
    source = open_mixed_source(DataConfig(source="openi", path=str(tmp_path)), 0)
    assert [study.key for study in source.studies()] == ["CXR1", "CXR11"]
    assert [len(source.films(study).views) for study in source.studies()] == [2, 2]
    assert check_dataset(tmp_path)[0] == "openi"


def test_films_of_indiana_in_one_folder_are_studies(tmp_path) -> None:
    for name in ("CXR25_IM-1024-2001.png", "CXR54_IM-2145-1001.png", "CXR54_IM-2145-1002.png"):
        save_film(tmp_path / "open-i" / name)
        save_film(tmp_path / "kaggle" / f"{name.removeprefix('CXR')}.dcm.png")
    save_film(tmp_path / "others" / "25_left.png")
    save_film(tmp_path / "others" / "54_IM-2145-1001.png")
    found, skipped = find_own_studies([tmp_path / name for name in ("open-i", "kaggle", "others")])
    assert [(study.name.removeprefix(f"{tmp_path}/"), len(study.films)) for study in found] == [
        ("open-i/CXR25", 1), ("open-i/CXR54", 2), ("kaggle/CXR25", 1), ("kaggle/CXR54", 2), ("others", 2),
    ]  # fmt: skip
    assert not skipped


def make_rexgradient(root: Path) -> Path:
    """ReXGradient-160K: (study, patient, split, views, findings, impression, day)."""
    studies = (
        ("s1", "p1", "train", ("LATERAL", "POSTERO_ANTERIOR"), "Clear lungs.", "Normal.", "20190302"),
        ("s2", "p1", "train", ("AP",), "Small effusion.", "None", "20190301"),
        ("s3", "p2", "valid", ("UNKNOWN", "PA"), "Heart is enlarged.", "", "20190101"),
        ("s4", "p3", "test", ("PA",), None, "No acute disease.", "20190101"),
        ("s5", "p4", "test", ("PA",), "Lungs are clear.", "Normal.", "20190101"),
    )
    entries: dict[str, dict] = {"train": {}, "valid": {}, "test": {}}
    for number, (study, patient, split, views, findings, impression, day) in enumerate(studies):
        names = [f"{patient}/{study}/studies/{study}/series/a/instances/{k}.png" for k in range(len(views))]
        for k, name in enumerate(names):
            save_film(root / "deid_png" / name, number + k)
        entries[split][f"{patient}_{study}"] = {
            "StudyInstanceUid": study, "PatientID": patient, "AccessionNumber": "a", "StudyDate": day,
            "PatientSex": "F", "PatientAge": "050Y", "Indication": "Cough", "Comparison": "None",
            "Findings": findings, "Impression": impression, "ImagePath": [f"../deid_png/{name}" for name in names],
            "ImageViewPosition": list(views), "ImageModality": ["DX"] * len(views),
        }  # fmt: skip
    (root / "metadata").mkdir()
    for split, content in entries.items():
        (root / "metadata" / f"{split}_metadata_view_position.json").write_text(json.dumps(content))
    return root


def test_rexgradient(tmp_path) -> None:
    root = make_rexgradient(tmp_path)
    config = DataConfig(source="rexgradient", path=str(root))
    source = open_data_source(config, 0)
    found = {study.key: study for study in source.studies()}
    assert {key: (s.split, s.report, s.views) for key, s in found.items()} == {
        "s1": ("train", "Clear lungs.", ("PA", "LATERAL")), "s2": ("train", "Small effusion.", ("AP",)),
        "s3": ("val", "Heart is enlarged.", ("PA", "UNKNOWN")), "s5": ("test", "Lungs are clear.", ("PA",)),
    }  # fmt: skip
    assert (found["s1"].prior, found["s2"].prior) == ("s2", "")
    assert found["s1"].group == found["s2"].group == hash_patient_group("rexgradient p1")
    assert found["s2"].labels["Pleural Effusion"] == 1.0  # by our rules
    assert np.array_equal(source.films(found["s1"]).views[0], film(1))
    impressions = studies_of("rexgradient", root, sections="impression")
    assert {key: study.report for key, study in impressions.items()} == {
        "s1": "Normal.", "s4": "No acute disease.", "s5": "Normal.",
    }  # fmt: skip
    name, checks = check_dataset(root)
    assert (name, [check.what for check in checks if not check.ok]) == ("rexgradient", [])
    (root / "metadata" / "test_metadata_view_position.json").write_text('{"a": {"ImagePath": ["x.png"]}}')
    with pytest.raises(UserError, match=r"test_metadata_view_position\.json is not as published"):
        open_data_source(config, 0)


PADCHEST_HEADS = (
    "", "ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "PatientBirth", "PatientSex_DICOM",
    "ViewPosition_DICOM", "Projection", "MethodProjection", "Pediatric", "ReportID", "Report", "MethodLabel", "Labels",
    "Localizations", "LabelsLocalizationsBySentence", "labelCUIS", "LocalizationsCUIS",
)  # fmt: skip

#: image, folder, day, study, patient, projection, radiological names
PADCHEST = (
    ("a_l.png", "0", "20140915", "10", "p1", "L", "['pleural effusion', ' laminar atelectasis']"),
    ("a_pa.png", "0", "20140915", "10", "p1", "PA", "['pleural effusion', ' laminar atelectasis']"),
    ("b.png", "12", "20140916", "11", "p2", "AP_horizontal", "['normal']"),
    ("c.png", "12", "20140917", "12", "p3", "PA", "['scoliosis', 'pacemaker', 'multiple nodules']"),
    ("d.png", "12", "20140918", "13", "p4", "PA", "['exclude']"),
    ("e.png", "12", "20140918", "14", "p5", "EXCLUDE", "['normal']"),
    ("f.png", "12", "20140918", "15", "p6", "PA", ""),
    ("g.png", "12", "20140918", "16", "p7", "PA", "['unchanged', 'cardiomegaly']"),
)


def make_padchest(root: Path, flat: bool) -> Path:
    rows = []
    for number, (image, folder, day, study, patient, projection, names) in enumerate(PADCHEST):
        path = root / "images" / ("" if flat else folder) / image
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(film(number).astype(np.uint16) * 257).save(path)
        rows.append(
            dict.fromkeys(PADCHEST_HEADS, "") | {
                "": str(number), "ImageID": image, "ImageDir": folder, "StudyDate_DICOM": day, "StudyID": study,
                "PatientID": patient, "Projection": projection, "Report": "derram pleural .", "Labels": names,
            }
        )  # fmt: skip
    save_csv(root / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv", PADCHEST_HEADS, rows, list)
    return root


@pytest.mark.parametrize(
    ("names", "positive", "others"),
    [
        (["pseudonodule", "breast mass"], set(), 0.0),
        (["hydropneumothorax", "callus rib fracture"], {"Pneumothorax", "Pleural Effusion", "Fracture"}, 0.0),
        (["reticular interstitial pattern", " loculated fissural effusion"], {"Lung Opacity", "Pleural Effusion"}, 0.0),
        (["dai", "artificial aortic heart valve", "sternotomy"], {"Support Devices"}, 0.0),
        (["apical pleural thickening", "superior mediastinal enlargement"],
         {"Pleural Other", "Enlarged Cardiomediastinum"}, 0.0),
        (["unchanged", "cardiomegaly"], {"Cardiomegaly"}, None),  # refers to the study before
        (["normal"], {"No Finding"}, 0.0),
        (["normal", "scoliosis"], set(), 0.0),
        (["exclude", "cardiomegaly"], set(), None),
        (["suboptimal study"], set(), None),
    ],
)  # fmt: skip
def test_names_of_padchest_are_our_labels(names, positive, others) -> None:
    found = labels_of_names(names)
    assert {label for label in LABELS if found.get(label) == 1.0} == positive
    assert {found.get(label) for label in LABELS if label not in positive} == {others}


@pytest.mark.parametrize("flat", [False, True])
def test_padchest(tmp_path, flat) -> None:
    root = make_padchest(tmp_path, flat)
    source = open_mixed_source(DataConfig(source="padchest", path=str(root)), 0)
    found = {study.key: study for study in source.studies()}
    absent = dict.fromkeys(LABELS, 0.0)
    assert {key: study.labels for key, study in found.items()} == {
        "10": absent | {"Pleural Effusion": 1.0, "Atelectasis": 1.0}, "11": absent | {"No Finding": 1.0},
        "12": absent | {"Support Devices": 1.0, "Lung Lesion": 1.0}, "16": labels(Cardiomegaly=1.0),
    }  # fmt: skip
    assert found["16"].unlabelled == tuple(label for label in LABELS if label != "Cardiomegaly")
    assert found["10"].unlabelled == ()
    assert not any(study.report for study in found.values())  # Spanish, and stemmed
    assert [found[key].views for key in ("10", "11")] == [("PA", "LATERAL"), ("AP",)]
    assert source.left_out == {
        "no findings text: stage 1 alone": 4, "neither findings text nor labels: left out": 2,
    }  # fmt: skip
    assert [len(source.films(found[key]).views) for key in ("10", "11")] == [2, 1]
    assert check_dataset(root)[0] == "padchest"


@pytest.mark.parametrize("zipped", [False, True])
def test_padchest_gr(tmp_path, zipped) -> None:
    sentences = {
        "10": [("Left pleural effusion", True, ["pleural effusion"]), ("Heart size is normal.", False, [])],
        "11": [("Lungs are clear.", False, None)],
        "12": [("Pacemaker in place.", True, ["pacemaker"])],
    }
    content = [
        {"StudyID": study, "ImageID": f"{study}_a.png", "PreviousStudyID": None, "PreviousImageID": None,
         "findings": [
             {"sentence_en": text, "sentence_es": "…", "abnormal": abnormal}
             | ({"boxes": [[0.1, 0.1, 0.4, 0.4]], "labels": names} if names is not None else {})
             for text, abnormal, names in found
         ]}
        for study, found in sentences.items()
    ]  # fmt: skip
    (tmp_path / "grounded_reports_20240819.json").write_text(json.dumps(content))
    heads = ("StudyID", "ImageID", "PatientID", "PatientSex_DICOM", "label", "label_group", "split")
    rows = [
        dict.fromkeys(heads, "") | {"StudyID": study, "ImageID": f"{study}_a.png", "PatientID": f"p{k}", "split": split}
        for k, (study, split) in enumerate(zip(sentences, ("train", "validation", "test"), strict=True))
    ]
    save_csv(tmp_path / "master_table.csv", heads, [*rows, rows[0]], list)  # a row for each label
    if zipped:
        with zipfile.ZipFile(tmp_path / "master_table.csv.zip", "w") as archive:
            archive.write(tmp_path / "master_table.csv", "master_table.csv")
        (tmp_path / "master_table.csv").unlink()
    for number, study in enumerate(sentences):
        save_film(tmp_path / "Padchest_GR_files" / "PadChest_GR" / f"{study}_a.png", number)
    source = open_data_source(DataConfig(source="padchest_gr", path=str(tmp_path)), 0)
    absent = dict.fromkeys(LABELS, 0.0)
    assert {s.key: (s.split, s.report, s.labels) for s in source.studies()} == {
        "10": ("train", "Left pleural effusion. Heart size is normal.", absent | {"Pleural Effusion": 1.0}),
        "11": ("val", "Lungs are clear.", absent | {"No Finding": 1.0}),
        "12": ("test", "Pacemaker in place.", absent | {"Support Devices": 1.0}),
    }
    assert source.studies()[0].group == hash_patient_group("padchest p0")
    assert np.array_equal(source.films(source.studies()[1]).views[0], film(1))
    name, checks = check_dataset(tmp_path)
    assert (name, [check.what for check in checks if not check.ok]) == ("padchest_gr", [])


VINDR = (
    "Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Clavicle fracture", "Consolidation", "Edema",
    "Emphysema", "Enlarged PA", "ILD", "Infiltration", "Lung Opacity", "Lung cavity", "Lung cyst", "Mediastinal shift",
    "Nodule/Mass", "Pleural effusion", "Pleural thickening", "Pneumothorax", "Pulmonary fibrosis", "Rib fracture",
    "Other lesion", "COPD", "Lung tumor", "Pneumonia", "Tuberculosis", "Other diseases", "No finding",
)  # fmt: skip


def make_vindr(root: Path) -> Path:
    """One film of the train part with three readers for each number of votes, and one of the test part."""
    rows = [
        dict.fromkeys(VINDR, "0") | {"image_id": film_id, "rad_id": f"R{reader}"} | dict.fromkeys(found, "1")
        for film_id, votes in (("aa", (("Edema",), ("Edema", "Rib fracture"), ("Infiltration", "Lung Opacity"))),
                               ("bb", (("No finding",), ("No finding",), ("No finding",))))
        for reader, found in enumerate(votes)
    ]  # fmt: skip
    (root / "annotations").mkdir(parents=True)
    save_csv(root / "annotations" / "image_labels_train.csv", ("image_id", "rad_id", *VINDR), rows, list)
    renamed = tuple("Other disease" if name == "Other diseases" else name for name in VINDR)
    test = [dict.fromkeys(renamed, "0") | {"image_id": "cc", "Pleural thickening": "1.0"}]
    save_csv(root / "annotations" / "image_labels_test.csv", ("image_id", *renamed), test, list)
    for number, name in enumerate(("train/aa", "train/bb", "test/cc")):
        path = root / f"{name}.dicom"
        path.parent.mkdir(exist_ok=True)
        save_dicom(path, film(number))
    return root


def test_vindr_cxr(tmp_path) -> None:
    root = make_vindr(tmp_path)
    source = open_mixed_source(DataConfig(source="vindr_cxr", path=str(root)), 0)
    found = {study.key: study for study in source.studies()}
    assert {key: study.split for key, study in found.items()} == {"aa": "train", "bb": "train", "cc": "test"}
    assert {study.unlabelled for study in found.values()} == {("Enlarged Cardiomediastinum", "Support Devices")}
    here = {label: None if label in found["aa"].unlabelled else 0.0 for label in LABELS}
    assert found["aa"].labels == here | {"Edema": 1.0, "Fracture": -1.0, "Lung Opacity": -1.0}
    assert found["bb"].labels == here | {"No Finding": 1.0}
    assert found["cc"].labels == here | {"Pleural Other": 1.0}
    assert (len(source.films(found["cc"]).views), found["cc"].views) == (1, ("PA",))
    with pytest.raises(UserError, match=r"the split `val` has no studies: data\.splits patient"):
        open_data_source(DataConfig(source="vindr_cxr", path=str(root)), 0)
    name, checks = check_dataset(root)
    assert (name, [check.what for check in checks if not check.ok]) == ("vindr_cxr", [])


def test_doctor_proposes_the_columns_of_a_table(tmp_path) -> None:
    heads = ("StudyID", "Subject_ID", "image_path", "Findings", "ViewPosition", "part")
    save_film(tmp_path / "a.png")
    rows = [
        dict(zip(heads, (n, n, name, "Clear.", "PA", "train"), strict=True))
        for n, name in (("1", "a.png"), ("2", "b.png"))
    ]
    save_csv(tmp_path / "ours.csv", heads, rows, list)
    source, checks = check_dataset(tmp_path)
    assert source == "table"
    proposed = checks[0].result
    assert proposed == (
        "data.columns: {images: image_path, findings: Findings, patient: Subject_ID, study: StudyID, "
        "split: part, view: ViewPosition}"
    )
    (films,) = [check for check in checks if check.what == "films"]
    assert (films.ok, films.result) == (False, "1 not there")


def test_a_table_that_changes_after_it_was_prepared_is_noticed(tmp_path, capsys) -> None:
    root = make_own(tmp_path / "own")
    config = Config(runs=str(tmp_path / "runs"), data=DataConfig("table", str(root), columns=COLUMNS, sections="both"))
    made = run_pipeline_step("prepare", config)
    run_pipeline_step("prepare", config)
    assert "WARNING" not in capsys.readouterr().err
    table = root / "chest.csv"
    table.write_text(table.read_text().replace("clear", "hazy"))
    assert run_pipeline_step("prepare", config).path == made.path
    assert "WARNING: chest.csv has changed since this was made; delete the folder" in capsys.readouterr().err
    table.unlink()
    run_pipeline_step("prepare", config)  # a cluster may hold the shards alone
