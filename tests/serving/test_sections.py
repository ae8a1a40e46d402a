"""A report of two sections as FHIR and as DICOM SR."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.uid import DigitalXRayImageStorageForPresentation

from amrg.serving.outputs import DICOM, FHIR, read_source_headers, render_record
from tests.data.test_image_io import dicom
from tests.made_films import chest_film

RECORD: dict[str, Any] = {
    "study": "s", "model": "reports-1", "findings": {"Edema": 0.25}, "generated": "Clear lungs. Normal.",
    "sections": {"findings": "Clear lungs.", "impression": "Normal."},
}  # fmt: skip


def test_the_conclusion_is_the_impression() -> None:
    pytest.importorskip("fhir.resources.R4B.diagnosticreport")
    content = json.loads(render_record(FHIR, RECORD, ()))
    assert content["conclusion"] == "Normal."
    text = base64.b64decode(content["presentedForm"][0]["data"]).decode()
    assert text.splitlines()[:2] == ["Findings: Clear lungs.", "Impression: Normal."]
    without = {**RECORD, "generated": "Clear lungs.", "sections": {"findings": "Clear lungs.", "impression": ""}}
    assert json.loads(render_record(FHIR, without, ()))["conclusion"] == "Clear lungs."


def test_the_impression_has_a_container_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    identifiers = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4", "SOPInstanceUID": "1.2.3.4.5"}
    tags = {**identifiers, "SOPClassUID": DigitalXRayImageStorageForPresentation, "PatientID": "p"}
    film = dicom(tmp_path / "film.dcm", chest_film(0), **tags).read_bytes()
    written = pydicom.dcmread(io.BytesIO(render_record(DICOM, RECORD, read_source_headers([("", film)]))))
    findings, impressions, notice, *_ = written.ContentSequence
    assert findings.ContentSequence[0].TextValue == "Clear lungs."
    assert impressions.ConceptNameCodeSequence[0].CodeMeaning == "Impressions"
    assert [item.TextValue for item in impressions.ContentSequence] == ["Normal."]
    assert notice.TextValue == "Research software. Not for clinical use."
