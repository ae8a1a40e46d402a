"""Clinical context: how it is read, where it comes from, that no text of the report is in it, and that it is kept."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from amrg.config import ColumnsConfig, Config, DataConfig
from amrg.config_files import config_to_dict
from amrg.data.context import Context, parse_age_in_years, parse_patient_sex
from amrg.data.labels import LABELS
from amrg.data.shards import prepare_shards, read_split_index
from amrg.data.sources import open_data_source
from amrg.data.stream import iter_split_samples, load_split_studies
from amrg.data.studies import Study, StudyImages
from amrg.data.text.sections import context_sections, split_sections
from amrg.pipeline import STEPS
from tests.data.dataset_fixtures import CHEXPERT_COLUMNS, film, make_chexpert, make_mimic, make_openi, save_csv
from tests.data.test_image_io import dicom
from tests.data.test_layouts import make_rexgradient, save_film, studies_of

REPORT = """FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___F with new onset ascites  // eval for infection

 TECHNIQUE:  Chest PA and lateral

 COMPARISON:  Chest radiograph from ___.

 FINDINGS:  There is no focal consolidation.

 IMPRESSION:  No acute cardiopulmonary process.
"""


@pytest.mark.parametrize(
    ("text", "indication", "age", "sex"),
    [
        ("XXXX-year-old female with XXXX and chest pain", "Female with chest pain.", None, "female"),
        ("XXXX-year-old XXXX with XXXX.", "", None, ""),
        ("XXXX, congestion and sore throat.", "Congestion and sore throat.", None, ""),
        ("63 y/o M, fever since [**2101-2-3**]", "63 y/o M, fever.", 63, "male"),
        ("64-year-old woman with cough", "64-year-old woman with cough.", 64, "female"),
        ("___M with cough // pneumonia follow up", "M with cough / pneumonia follow up.", None, "male"),
        ("786.2 XXXX, XXXX", "", None, ""),
        ("Fell 2 m from a ladder", "Fell 2 m from a ladder.", None, ""),
        ("chest x-XXXX for <b>dyspnea</b>", "Chest x-ray for dyspnea.", None, ""),
    ],
)  # fmt: skip
def test_marks_of_deidentification_are_taken_out(text, indication, age, sex) -> None:
    assert Context.read({"indication": text}) == Context(indication=indication, age=age, sex=sex)


@pytest.mark.parametrize(
    ("text", "comparison"),
    [
        ("XXXX", "Earlier study."),
        ("XXXX, XXXX.", "Earlier study."),
        ("___.", "Earlier study."),
        ("[**2101-2-3**] and [**2101-2-5**]", "Earlier study."),
        ("12/03/2015.", "Earlier study."),
        ("2015-03-12 at 10:32 a.m.", "Earlier study."),
        ("Chest x-XXXX dated XXXX.", "Chest x-ray."),
        ("None.", "None."),
        ("", ""),
        (".", ""),
        ("Heart size is normal.", ""),
    ],
)  # fmt: skip
def test_a_comparison_of_dates_alone_tells_that_there_is_an_earlier_study(text, comparison) -> None:
    assert Context.read({"comparison": text}) == Context(comparison=comparison)
    assert Context.read({"indication": text}).comparison == ""


def test_ages_and_sexes_in_every_form() -> None:
    ages = {"063Y": 63, "018M": 1, "010D": 0, "63.0": 63, " 63 years": 63, "63": 63, "300": None, "": None, "old": None}
    assert {text: parse_age_in_years(text) for text in ages} == ages
    sexes = {"F": "female", "m": "male", "Woman": "female", "male": "male", "O": "", "unknown": "", "": ""}
    assert {text: parse_patient_sex(text) for text in sexes} == sexes
    assert Context.read({"age": 0, "sex": None}) == Context(age=0)
    told = Context.read({"indication": "64-year-old male", "age": "065Y", "sex": "F"})
    assert (told.age, told.sex) == (65, "female")  # a field of its own counts before the indication


def test_no_text_of_the_report_becomes_context() -> None:
    """Findings under the heading of the comparison, with and without a paragraph of their own, or under another."""
    for report in (
        "INDICATION: Cough.\nCOMPARISON: Chest.\n\nThe lungs are clear.\n\nNo effusion.",
        "INDICATION: Cough.\nCOMPARISON: Chest. Both lungs remain clear. Old rib fractures.\nIMPRESSION: Normal.",
        "INDICATION: Cough.\nCOMPARISON: Chest.\nCOMPARISON FINDINGS: Large effusion.\nFINDINGS: Clear.",
        "INDICATION: Cough.\nCOMPARISON: Chest.\nCHEST TUBE PLACEMENT: Tube at the apex.\nIMPRESSION: Normal.",
        "INDICATION: Cough.\nCOMPARISON: Chest. Small left effusion persists.\nFINDINGS: Small left effusion persists.",
    ):
        found = Context.read(context_sections(report), split_sections(report).values())
        assert found == Context(indication="Cough.", comparison="Chest."), report


def test_sections_of_a_report() -> None:
    assert context_sections(REPORT) == {
        "indication": "___F with new onset ascites  // eval for infection", "technique": "Chest PA and lateral",
        "comparison": "Chest radiograph from ___.",
    }  # fmt: skip
    assert context_sections("REASON FOR EXAMINATION: Line placement.\nPORTABLE AP CHEST: Tube in place.") == {
        "indication": "Line placement."
    }
    assert context_sections("NDICATION: Cough.\nCOMPARISONS: None.\nDIAGNOSIS: Edema.") == {
        "indication": "Cough.", "comparison": "None.",
    }  # fmt: skip


def test_open_is_xml(tmp_path) -> None:
    found = studies_of("openi", make_openi(tmp_path), splits="patient")
    assert {study.context for study in found.values()} == {Context("Cough.", comparison="None.")}


def test_mimics_reports(tmp_path) -> None:
    make_mimic(tmp_path / "copy", archive=False)
    path = next((tmp_path / "copy").rglob("s50414267.txt"))
    path.write_text(REPORT)
    found = studies_of("mimic_cxr", tmp_path / "copy")
    assert found["s50414267"].context == Context(
        "F with new onset ascites / eval for infection.", "Chest PA and lateral.", "Chest radiograph.", sex="female"
    )
    assert found["s53189527"].context == Context("History: with cough / pneumonia?.")


def test_columns_of_published_tables(tmp_path) -> None:
    rex = studies_of("rexgradient", make_rexgradient(tmp_path / "rex"))
    assert rex["s1"].context == Context("Cough.", age=50, sex="female")
    root = make_chexpert(tmp_path / "chexpert")
    table = root / "df_chexpert_plus_240401.csv"
    row = dict.fromkeys(CHEXPERT_COLUMNS, "") | {
        "path_to_image": "train/patient00001/study1/view1_frontal.jpg", "deid_patient_id": "patient00001",
        "split": "train", "section_findings": "Clear lungs.", "section_history": "Fever.", "age": "64.0", "sex": "Male",
        "section_technique": "PA", "section_comparison": "None.",
    }  # fmt: skip
    others = [
        row | {"path_to_image": f"train/patient{n:05d}/study1/view1_frontal.jpg", "deid_patient_id": f"p{n}"}
        for n in range(3, 60)
    ]
    save_csv(table, CHEXPERT_COLUMNS, [row, *others], list)
    found = studies_of("chexpert_plus", root, splits="patient")
    assert found["train-patient00001-study1"].context == Context("Fever.", "PA.", "None.", 64, "male")


def test_columns_of_a_table_of_ones_own_and_tags_of_its_films(tmp_path) -> None:
    """A field of the table counts before the section of the report, and both before the tags."""
    heads = ("file", "text", "why", "years")
    rows = [("1.dcm", REPORT, "Fever", "070Y"), ("2.dcm", REPORT, "", ""), ("3.png", "Clear lungs.", "", "")]
    rows += [(f"{n}.png", "Clear lungs.", "", "") for n in range(10, 50)]
    for name, *_ in rows:
        if name.endswith("dcm"):
            dicom(tmp_path / name, film(3), PatientAge="041Y", PatientSex="M")
        else:
            save_film(tmp_path / name)
    save_csv(tmp_path / "chest.csv", heads, [dict(zip(heads, row, strict=True)) for row in rows], list)
    columns = ColumnsConfig(images="file", report="text", study="file", indication="why", age="years")
    config = DataConfig(source="table", path=str(tmp_path), columns=columns, workers=1, image_size=48)
    prepare_shards(open_data_source(config, 0), config, tmp_path / "out", 0)
    found = {
        s.key.split("-")[0]: s.context
        for part in ("train", "val", "test")
        for s in load_split_studies(tmp_path / "out", part)
    }
    assert found["1"] == Context("Fever.", "Chest PA and lateral.", "Chest radiograph.", 70, "male")
    assert found["2"].indication.startswith("F with new onset")
    assert (found["2"].age, found["2"].sex) == (41, "female")
    assert found["3"] == Context()


class _Two:
    """A study with context and one without."""

    def studies(self):
        labels = dict.fromkeys(LABELS)
        full = Context("Cough.", "PA.", "None.", 63, "female")
        return [
            *(Study(f"a{split}", split, split, "Clear.", labels, context=full) for split in ("train", "val", "test")),
            Study("b", "b", "train", "Clear.", labels),
        ]

    def films(self, study):
        return StudyImages([np.full((24, 24), 7, np.uint8)])


def test_the_index_and_the_samples_keep_it(tmp_path) -> None:
    config = DataConfig(image_size=24, workers=1)
    prepare_shards(_Two(), config, tmp_path, 0)
    expected = {study.key: study.context for study in _Two().studies() if study.split == "train"}
    assert {study.key: study.context for study in load_split_studies(tmp_path, "train")} == expected
    assert {sample.study.key: sample.study.context for sample in iter_split_samples(tmp_path, "train")} == expected
    rows = read_split_index(tmp_path, "train", ["key", "context"]).to_pylist()
    assert {row["key"]: row["context"] for row in rows} == {"atrain": asdict(expected["atrain"]), "b": None}
    assert '"age": 1' in (tmp_path / "statistics.json").read_text()  # counts alone
    assert "Cough" not in (tmp_path / "card.md").read_text() + (tmp_path / "statistics.json").read_text()


def test_no_artefact_changes_its_name() -> None:
    """Settings of the context are written only where they are used."""
    config = Config()
    for verb in STEPS:
        text = str(STEPS[verb].settings(config)) + str((STEPS[verb].learned or STEPS[verb].settings)(config))
        assert "context" not in text, verb
    reading = replace(config, decoder=replace(config.decoder, context=("age",)))
    assert STEPS["stage2"].settings(reading) != STEPS["stage2"].settings(config)
    assert STEPS["prepare"].settings(reading) == STEPS["prepare"].settings(config)
    own = ColumnsConfig(images="film", report="text")
    assert not {"indication", "technique", "comparison", "age", "sex"} & config_to_dict(own).keys()
