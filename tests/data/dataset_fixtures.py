"""Small copies of data sets with exactly the published names and columns, and what is in them."""

import csv
import gzip
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from amrg.data.labels import LABELS

REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  History: ___ with cough  // pneumonia?

 FINDINGS:

 {findings}

 IMPRESSION:

 {impression}
"""

#: subject, study, split, date, time, [(dicom, view)], findings, impression, labels that are not blank
MIMIC = (
    ("10000032", "50414267", "train", "21800506", "213014.531", [("aa-lat", "LATERAL"), ("aa-pa", "PA")],
     "The lungs are clear.", "No acute process.", {"No Finding": "1.0"}),
    ("10000032", "53189527", "train", "21800626", "165500.312", [("ab", "AP")],
     "Moderate left effusion.", "Effusion.", {"Pleural Effusion": "1.0", "Edema": "-1.0", "Pneumothorax": "0.0"}),
    ("10000764", "57375967", "validate", "21321015", "83045.1", [("ba", "AP"), ("bb", "")],
     "Heart is enlarged.", "", {"Cardiomegaly": "1.0"}),
    ("10000898", "50771383", "test", "21880319", "135135.812", [("ca", "PA")],
     "Retrocardiac opacity.", "Possible pneumonia.", {"Lung Opacity": "1.0", "Pneumonia": "-1.0"}),
    ("10000935", "50578979", "test", "21870823", "14524", [("da", "PA")], "", "Nothing to add.", {}),
)  # fmt: skip

Order = Callable[[Sequence[str]], list[str]]
#: A film by the number of its study and its own.
Paint = Callable[[int, int], np.ndarray]


def film(number: int, shape: tuple[int, int] = (60, 48)) -> np.ndarray:
    """A smooth grey film that tells its number up to 17: JPEG hardly changes it."""
    rows, columns = np.mgrid[0 : shape[0], 0 : shape[1]]
    return np.clip(40 + 10 * (number % 17) + rows + columns // 2, 0, 255).astype(np.uint8)


def save_jpeg(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95)


def save_csv(path: Path, columns: Sequence[str], rows: Sequence[dict[str, str]], order: Order) -> None:
    """A table with its columns in any order; gzipped where the name says so."""
    text = io.StringIO()
    writer = csv.DictWriter(text, order(columns))
    writer.writeheader()
    writer.writerows(rows)
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def make_mimic(
    root: Path, order: Order = list, archive: bool = True, studies: Sequence[tuple] = (), paint: Paint | None = None
) -> Path:
    """MIMIC-CXR-JPG 2.0.0 with the reports of MIMIC-CXR; the studies of ``MIMIC`` unless others are given."""
    paint = paint or (lambda number, k: film(3 * number + k))
    root.mkdir(parents=True)
    metadata, splits, labels, reports = [], [], [], {}
    for number, (subject, study, split, date, time, views, findings, impression, marked) in enumerate(studies or MIMIC):
        folder = f"p{subject[:2]}/p{subject}"
        for k, (dicom, view) in enumerate(views):
            pixels = paint(number, k)
            save_jpeg(root / "files" / folder / f"s{study}" / f"{dicom}.jpg", pixels)
            row = {"dicom_id": dicom, "subject_id": subject, "study_id": study}
            splits.append(row | {"split": split})
            metadata.append(
                row | {"PerformedProcedureStepDescription": "CHEST (PA AND LAT)", "ViewPosition": view,
                       "Rows": str(pixels.shape[0]), "Columns": str(pixels.shape[1]),
                       "StudyDate": date, "StudyTime": time, "ProcedureCodeSequence_CodeMeaning": "",
                       "ViewCodeSequence_CodeMeaning": "", "PatientOrientationCodeSequence_CodeMeaning": "Erect"}
            )  # fmt: skip
        labels.append({"subject_id": subject, "study_id": study} | {label: marked.get(label, "") for label in LABELS})
        reports[f"files/{folder}/s{study}.txt"] = REPORT.format(findings=findings, impression=impression)
    save_csv(root / "mimic-cxr-2.0.0-metadata.csv.gz", list(metadata[0]), metadata, order)
    save_csv(root / "mimic-cxr-2.0.0-split.csv.gz", ["dicom_id", "study_id", "subject_id", "split"], splits, order)
    alphabetical = ["subject_id", "study_id", *sorted(LABELS)]
    for name in ("chexpert", "negbio"):
        save_csv(root / f"mimic-cxr-2.0.0-{name}.csv.gz", alphabetical, labels, order)
    if archive:
        with zipfile.ZipFile(root / "mimic-cxr-reports.zip", "w") as file:
            for name, text in reports.items():
                file.writestr(name, text)
    else:
        for name, text in reports.items():
            path = root / "mimic-cxr-reports" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return root


CHEXPERT_COLUMNS = (
    "path_to_image", "path_to_dcm", "frontal_lateral", "ap_pa", "deid_patient_id", "patient_report_date_order",
    "report", "section_narrative", "section_clinical_history", "section_history", "section_comparison",
    "section_technique", "section_procedure_comments", "section_findings", "section_impression",
    "section_end_of_impression", "section_summary", "section_accession_number", "age", "sex", "race", "ethnicity",
    "interpreter_needed", "insurance_type", "recent_bmi", "deceased", "split",
)  # fmt: skip

#: patient, study, order, [(film, frontal_lateral, ap_pa)], findings, impression, labels
CHEXPERT = (
    ("patient00001", "study1", "1", [("view1_frontal", "Frontal", "PA"), ("view2_lateral", "Lateral", "")],
     "Clear lungs.\nNormal heart.", "1. No acute disease.", {"No Finding": 1.0}),
    ("patient00001", "study2", "2", [("view1_frontal", "Frontal", "AP")], "Small effusion.", "Effusion.",
     {"Pleural Effusion": 1.0, "Edema": -1.0}),
    ("patient00002", "study1", "1", [("view1_frontal", "Frontal", "AP")], "", "Enlarged heart.", {"Cardiomegaly": 1.0}),
    *((f"patient{n:05d}", "study1", "1", [("view1_frontal", "Frontal", "AP")], f"Finding {n} cm.", "", {})
      for n in range(3, 60)),
)  # fmt: skip


def make_chexpert(root: Path, order: Order = list, index_column: bool = False) -> Path:
    """CheXpert Plus with PNG films and CheXbert labels."""
    rows, labels = [], []
    for number, (patient, study, place, films, findings, impression, marked) in enumerate(CHEXPERT):
        for k, (name, side, projection) in enumerate(films):
            path = f"train/{patient}/{study}/{name}"
            target = root / "PNG" / f"{path}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(film(number + k)).save(target)
            rows.append(
                dict.fromkeys(CHEXPERT_COLUMNS, "") | {
                    "path_to_image": f"{path}.jpg", "path_to_dcm": f"{path}.dcm", "frontal_lateral": side,
                    "ap_pa": projection, "deid_patient_id": patient, "patient_report_date_order": place,
                    "section_findings": findings, "section_impression": impression, "split": "train",
                }
            )  # fmt: skip
            labels.append({"path_to_image": f"{path}.jpg"} | {label: marked.get(label) for label in LABELS})
    columns = order(CHEXPERT_COLUMNS)
    if index_column:
        rows = [row | {"": str(number)} for number, row in enumerate(rows)]
        columns = ["", *columns]
    save_csv(root / "df_chexpert_plus_240401.csv", columns, rows[::-1], list)
    (root / "chexbert_labels").mkdir()
    for name in ("findings", "impression", "report"):
        lines = "".join(json.dumps(row) + "\n" for row in labels)
        (root / "chexbert_labels" / f"{name}_fixed.json").write_text(lines)
    return root


def make_iu_xray(root: Path) -> Path:
    """IU X-ray in R2Gen's layout: one, two and three views."""
    content: dict[str, list] = {"train": [], "val": [], "test": []}
    entries = (
        ("train", "CXR2384_IM-0942", 2, "The heart size is XXXX normal. There is a left pleural effusion."),
        ("train", "CXR1_IM-0001-4001", 1, "No pneumothorax."),
        ("val", "CXR7_IM-2263", 3, "Cardiomegaly is present."),
        ("test", "CXR8_IM-2333", 2, "Lungs are clear."),
    )
    for number, (split, name, views, report) in enumerate(entries):
        paths = [f"{name}/{k}.png" for k in range(views)]
        for k, path in enumerate(paths):
            target = root / "images" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(film(3 * number + k)).save(target)
        content[split].append({"id": name, "report": report, "image_path": paths, "split": split})
    (root / "annotation.json").write_text(json.dumps(content))
    return root


OPENI = """<?xml version="1.0" encoding="utf-8"?>
<eCitation><meta type="rr"/><uId id="CXR{number}"/><MedlineCitation Owner="Indiana University"><Article><Abstract>
<AbstractText Label="COMPARISON">None.</AbstractText><AbstractText Label="INDICATION">Cough</AbstractText>
<AbstractText Label="FINDINGS">{findings}</AbstractText><AbstractText Label="IMPRESSION">1. Normal.</AbstractText>
</Abstract></Article></MedlineCitation><MeSH><major>normal</major></MeSH>{images}</eCitation>"""


def make_openi(root: Path, studies: int = 60) -> Path:
    """Open-i's reports and films; the third study has no findings, the fourth names a film that is not there."""
    (root / "ecgen-radiology").mkdir(parents=True)
    (root / "NLMCXR_png").mkdir()
    for number in range(1, studies + 1):
        names = [f"CXR{number}_IM-{number:04d}-{view}" for view in ("1001", "2001")]
        for k, name in enumerate(names):
            if number != 4:
                Image.fromarray(film(k)).save(root / "NLMCXR_png" / f"{name}.png")
        images = "".join(f'<parentImage id="{name}"><figureId>F1</figureId></parentImage>' for name in names)
        findings = "" if number == 3 else f"Effusion number {number}."
        text = OPENI.format(number=number, findings=findings, images=images)
        (root / "ecgen-radiology" / f"{number}.xml").write_text(text)
    return root
