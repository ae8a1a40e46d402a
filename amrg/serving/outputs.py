"""Records as FHIR DiagnosticReport and as DICOM SR. Both need extras, imported when they are asked for.

They hold the report, the probability of each finding, what is unsure, and the notices; memory rows and boxes are in the
JSON record alone.
"""

import base64
import importlib.util
import io
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from amrg.data.dicom_io import is_dicom_bytes
from amrg.errors import UserError
from amrg.pages import NOT_CLINICAL_NOTICE

FHIR, DICOM = "application/fhir+json", "application/dicom"
#: The module that a format needs, and the extra that installs it.
_NEEDS = {FHIR: ("fhir", "fhir"), DICOM: ("highdicom", "dicom-sr")}
UNLIKE = "The film is unlike the training films: do not rely on its report."
_UCUM = "http://unitsofmeasure.org"
_SCHEME = "99AMRG"  # private codes of SR: DICOM names those of local schemes 99…
#: Elements of the films that an SR copies or refers to.
_REQUIRED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
_COPIED = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime",
           "AccessionNumber", "ReferringPhysicianName")  # fmt: skip


def missing_extra(wanted: str) -> str | None:
    """Return the extra that a format needs and that is not installed; None if it can be made."""
    module, extra = _NEEDS[wanted]
    return None if importlib.util.find_spec(module) else extra


def render_record(wanted: str, record: dict[str, Any], sources: Sequence[Any]) -> bytes:
    """Return a record as ``FHIR``, or as ``DICOM`` that refers to ``sources``, its films.

    Raises:
        UserError: the headers of the films do not fit into an SR.
    """
    if wanted == FHIR:
        return _fhir(record)
    try:
        return _structured_report(record, sources)
    except (ValueError, TypeError, AttributeError) as error:  # such as a date that is none
        raise UserError(f"no {DICOM} can be made of the headers of these films ({type(error).__name__})") from None


def read_source_headers(films: Sequence[tuple[str, bytes]]) -> list[Any]:
    """Read the headers of the DICOM films that an SR refers to.

    Raises:
        UserError: a film is no DICOM object, or lacks an identifier; the films are of several studies.
    """
    import pydicom

    sources = []
    for number, (name, data) in enumerate(films, 1):
        label = name or f"film {number}"
        if not is_dicom_bytes(data):
            raise UserError(f"{label} is no DICOM object: {DICOM} can only be made of DICOM films")
        source = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True, force=True)
        if missing := [element for element in _REQUIRED if not source.get(element)]:
            raise UserError(f"{label} has no {', '.join(missing)}, to which {DICOM} refers")
        for element in _COPIED:
            if element not in source:
                setattr(source, element, "")
        sources.append(source)
    if len({source.StudyInstanceUID for source in sources}) > 1:
        raise UserError(f"the films are of several studies (StudyInstanceUID): {DICOM} is made of one")
    return sources


def _notes(record: dict[str, Any]) -> list[str]:
    """Return what a reader of the report must know."""
    notes = [NOT_CLINICAL_NOTICE, f"Written by {record['model']}."]
    notes += [UNLIKE] if record.get("unlike_training") else []
    notes += [f"Written although refused as no chest film: {record['forced']}"] if "forced" in record else []
    notes += [f"Not used: {text}" for text in record.get("left_out", [])]
    return [*notes, *(f"Not sure: {one['text']}" for one in record.get("unsure", []))]


def _lines(record: dict[str, Any]) -> list[str]:
    """Return the report: a line for each section if it tells these apart."""
    sections = record.get("sections", {})
    return [f"{name.capitalize()}: {text}" for name, text in sections.items() if text] or [record["generated"]]


def _fhir(record: dict[str, Any]) -> bytes:
    from fhir.resources.R4B.diagnosticreport import DiagnosticReport

    report_lines, notes = _lines(record), _notes(record)
    lines = "".join(f"<p>{escape(line)}</p>" for line in (*report_lines, *notes))
    observations = [
        {
            "resourceType": "Observation",
            "id": f"finding-{number}",
            "status": "preliminary",
            "code": {"text": f"Probability of {finding}"},
            "valueQuantity": {"value": probability, "system": _UCUM, "code": "1"},
        }
        for number, (finding, probability) in enumerate(record["findings"].items(), 1)
    ]
    report = {
        "status": "preliminary",
        "category": [
            {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0074", "code": "RAD"}]},
        ],
        "code": {"coding": [{"system": "http://loinc.org", "code": "18748-4", "display": "Diagnostic imaging study"}]},
        "issued": datetime.now(UTC).isoformat(timespec="seconds"),
        "text": {"status": "generated", "div": f'<div xmlns="http://www.w3.org/1999/xhtml">{lines}</div>'},
        "conclusion": record.get("sections", {}).get("impression") or record["generated"],
        "presentedForm": [
            {
                "contentType": "text/plain; charset=utf-8",
                "data": base64.b64encode("\n".join([*report_lines, *notes]).encode()).decode(),
            }
        ],
        "contained": observations,
        "result": [{"reference": f"#{observation['id']}"} for observation in observations],
    }
    if record["study"]:
        report["identifier"] = [{"value": record["study"]}]
    return DiagnosticReport.model_validate(report).model_dump_json().encode()


def _structured_report(record: dict[str, Any], sources: Sequence[Any]) -> bytes:
    from highdicom import UID
    from highdicom.sr import (
        CodedConcept,
        ContainerContentItem,
        ContentSequence,
        EnhancedSR,
        NumContentItem,
        TextContentItem,
    )
    from highdicom.sr import RelationshipTypeValues as Relation
    from pydicom.sr.codedict import codes

    unit = codes.UCUM.NoUnits
    findings = ContainerContentItem(codes.DCM.Findings, relationship_type=Relation.CONTAINS)
    sections = record.get("sections", {"findings": record["generated"], "impression": ""})
    items: list[Any] = [
        TextContentItem(codes.DCM.Finding, sections["findings"] or record["generated"], Relation.CONTAINS)
    ]
    for number, (finding, probability) in enumerate(record["findings"].items(), 1):
        name = CodedConcept(f"P{number:02}", _SCHEME, f"Probability of {finding}")
        items.append(NumContentItem(name, probability, unit, relationship_type=Relation.CONTAINS))
    findings.ContentSequence = ContentSequence(items)
    impressions = []
    if sections["impression"]:
        impression = ContainerContentItem(codes.DCM.Impressions, relationship_type=Relation.CONTAINS)
        text = TextContentItem(codes.DCM.Impression, sections["impression"], Relation.CONTAINS)
        impression.ContentSequence = ContentSequence([text])
        impressions.append(impression)
    root = ContainerContentItem(CodedConcept("18748-4", "LN", "Diagnostic imaging report"))
    notes = [TextContentItem(codes.DCM.Comment, note, Relation.CONTAINS) for note in _notes(record)]
    root.ContentSequence = ContentSequence([findings, *impressions, *notes])
    report = EnhancedSR(
        evidence=sources,
        content=root,
        series_instance_uid=UID(),
        series_number=1,
        sop_instance_uid=UID(),
        instance_number=1,
        manufacturer="AM-MRG",
        is_complete=True,
        is_final=False,
        is_verified=False,
        series_description="Generated report, not for clinical use",
    )
    report.SpecificCharacterSet = "ISO_IR 192"
    with io.BytesIO() as file:
        report.save_as(file)
        return file.getvalue()
