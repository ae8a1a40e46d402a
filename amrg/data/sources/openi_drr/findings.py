"""Conversion of a report's MeSH annotations to findings to render and to the 14 labels."""

import re
from dataclasses import dataclass

from amrg.data.labels import LABELS, NEGATIVE, NO_FINDING, POSITIVE, UNCERTAIN
from amrg.data.sources.openi_drr.reports import Annotation, Report

#: Labels of each kind of finding. Findings that fill alveoli are also Lung Opacity, and Pneumonia is also
#: Consolidation, as in CheXpert's hierarchy (Irvin et al. 2019, figure 1). Its other two arrows are left out: Enlarged
#: Cardiomediastinum would repeat the heart size, and a granuloma is a Lung Lesion but is not called an opacity.
KIND_LABELS: dict[str, tuple[str, ...]] = {
    "cardiomegaly": ("Cardiomegaly",),
    "opacity": ("Lung Opacity",),
    "interstitial": ("Lung Opacity",),
    "consolidation": ("Consolidation", "Lung Opacity"),
    "pneumonia": ("Pneumonia", "Consolidation", "Lung Opacity"),
    "atelectasis": ("Atelectasis", "Lung Opacity"),
    "edema": ("Edema", "Lung Opacity"),
    "nodule": ("Lung Lesion",),
    "mass": ("Lung Lesion",),
    "granuloma": ("Lung Lesion",),
    "effusion": ("Pleural Effusion",),
    "pneumothorax": ("Pneumothorax",),
    "device": ("Support Devices",),
}
#: Kinds that are uncertain on the film.
_DOUBTFUL = {"large heart?": "Cardiomegaly", "blunted angle": "Pleural Effusion"}

_KINDS = {
    "Cardiomegaly": "cardiomegaly", "Opacity": "opacity", "Infiltrate": "opacity", "Airspace Disease": "opacity",
    "Density": "opacity", "Consolidation": "consolidation", "Pneumonia": "pneumonia",
    "Pulmonary Atelectasis": "atelectasis", "Nodule": "nodule", "Mass": "mass", "Calcified Granuloma": "granuloma",
    "Granuloma": "granuloma", "Granulomatous Disease": "granuloma", "Pleural Effusion": "effusion",
    "Pneumothorax": "pneumothorax", "Pulmonary Edema": "edema", "Pulmonary Congestion": "edema",
    "Heart Failure": "edema", "Catheters, Indwelling": "device", "Implanted Medical Device": "device",
    "Medical Device": "device", "Tube, Inserted": "device", "Lung, Hyperlucent": "large lungs",
    "Emphysema": "large lungs", "Pulmonary Emphysema": "large lungs",
    "Pulmonary Disease, Chronic Obstructive": "large lungs", "Diaphragmatic Eventration": "raised dome",
    "Scoliosis": "scoliosis",
}  # fmt: skip
#: Not visible on a frontal film of this size, or too slight: such studies are kept and nothing is drawn.
_INVISIBLE = {
    "normal", "Thoracic Vertebrae", "Spine", "Lumbar Vertebrae", "Cervical Vertebrae", "Spondylosis", "Osteophyte",
    "Arthritis", "Sclerosis", "Hyperostosis, Diffuse Idiopathic Skeletal", "Bone Diseases, Metabolic", "Osteoporosis",
    "Kyphosis", "Atherosclerosis", "Aorta", "Aorta, Thoracic", "Epicardial Fat", "Adipose Tissue", "Nipple Shadow",
    "Technical Quality of Image Unsatisfactory", "Shoulder",
}  # fmt: skip
_OUTSIDE_CHEST = {"abdomen", "humerus", "shoulder", "cervical vertebrae", "thoracic vertebrae", "spine", "breast",
                   "aortic valve", "clavicle", "coronary vessels"}  # fmt: skip
_ZONES = {"upper lobe": "upper", "middle lobe": "middle", "lingula": "middle", "lower lobe": "lower", "base": "base",
          "retrocardiac": "base", "apex": "apex", "hilum": "hilum"}  # fmt: skip
_SEVERITIES = {
    "borderline": 0.0,
    "mild": 0.3,
    "small": 0.3,
    "moderate": 1.0,
    "large": 2.0,
    "severe": 2.0,
    "diffuse": 1.6,
}
_DEVICE_WORDS = (
    ("pacemaker", r"pace|defibrill|\bicd\b|\baicd\b|\bleads?\b|generator"),
    ("port", r"\bport\b|port-a-cath|mediport|\bports\b"),
    ("picc", r"\bpicc\b|peripherally"),
    ("endotracheal tube", r"endotracheal|\bet tube|\bett\b|tracheostomy"),
    ("enteric tube", r"nasogastric|enteric|feeding tube|orogastric|\bng tube|dobbhoff"),
    ("chest tube", r"chest tube|thoracostomy|pleural (?:catheter|drain)|pigtail"),
    ("central line", r"central (?:venous )?(?:line|catheter)|jugular|subclavian|venous catheter|dialysis"),
)


@dataclass(frozen=True)
class Finding:
    """A finding to render.

    Attributes:
        kind: a key of ``KIND_LABELS``, a doubtful kind, or a change of pose.
        sides: ``left`` and ``right`` as annotated; empty where the annotation names none.
        zone: as in ``lesions.Site``.
        severity: from 0 to 2.
        several: whether there is more than one.
        device: kind of device, for devices.
        scale: of the size of a lesion.
        number: of its own stream of random numbers, with which it is at the same place on two films of one patient; −1:
            it draws from the film's common stream.
    """

    kind: str
    sides: tuple[str, ...] = ()
    zone: str = ""
    severity: float = 1.0
    several: bool = False
    device: str = ""
    scale: float = 1.0
    number: int = -1


def findings_to_render(report: Report) -> tuple[Finding, ...] | None:
    """Return the findings to render, or None if one cannot be rendered."""
    found: list[Finding] = []
    for annotation in report.annotations:
        kind = kind_of_annotation(annotation)
        if kind is None:
            return None
        if kind:
            found.append(_finding(kind, annotation, report.text()))
    return tuple(dict.fromkeys(found))


def kind_of_annotation(annotation: Annotation) -> str | None:
    """Return the kind of a finding; empty if it needs no rendering, None if it cannot be rendered."""
    heading, qualifiers = annotation.heading, set(annotation.qualifiers)
    kind = _KINDS.get(heading)
    if heading in _INVISIBLE or (heading == "Surgical Instruments" and "abdomen" in qualifiers):
        return ""
    if kind == "device":
        return None if qualifiers & _OUTSIDE_CHEST else kind
    if kind == "opacity" and (qualifiers & {"round", "mediastinum"} or not qualifiers & {"lung", *_ZONES}):
        return None if heading == "Density" else kind
    if kind == "opacity" and "interstitial" in qualifiers:
        return "interstitial"
    if kind == "cardiomegaly" and "borderline" in qualifiers:
        return "large heart?"
    return kind or _by_qualifier(heading, qualifiers)


def _by_qualifier(heading: str, qualifiers: set[str]) -> str | None:
    """Return the kind for headings that name an organ, whose qualifiers name the finding."""
    if heading == "Cardiac Shadow":
        return "large heart?" if "borderline" in qualifiers else "cardiomegaly" if "enlarged" in qualifiers else None
    if heading == "Lung":
        kinds = {"hypoinflation": "small lungs", "hyperdistention": "large lungs", "azygos lobe": ""}
        return next((kinds[word] for word in kinds if word in qualifiers), None)
    if heading == "Diaphragm":
        return "raised dome" if "elevated" in qualifiers else "large lungs" if "flattened" in qualifiers else None
    if heading == "Costophrenic Angle":
        return "" if "posterior" in qualifiers else "blunted angle" if "blunted" in qualifiers else None
    if heading == "Calcinosis":
        lung = "lung" in qualifiers and not qualifiers & {"hilum", "lymph nodes"}
        return "granuloma" if lung else ""
    if heading == "Markings":
        return "interstitial" if "interstitial" in qualifiers else ""
    if heading == "Deformity":
        return "" if any("vertebrae" in word for word in qualifiers) else None
    return None


def _finding(kind: str, annotation: Annotation, text: str) -> Finding:
    words = annotation.qualifiers
    sides = tuple(side for side in ("left", "right") if side in words or "bilateral" in words)
    if not sides and "lingula" in words:
        sides = ("left",)
    if not sides and "middle lobe" in words:
        sides = ("right",)
    zone = next((_ZONES[word] for word in words if word in _ZONES), "")
    severity = next((_SEVERITIES[word] for word in words if word in _SEVERITIES), 0.7)
    several = bool({"multiple", "scattered"} & set(words)) or annotation.heading == "Granulomatous Disease"
    return Finding(kind, sides, zone, severity, several, _device(annotation, text) if kind == "device" else "")


def _device(annotation: Annotation, text: str) -> str:
    """Return the kind of device by the report's words, else by the annotation."""
    if annotation.heading == "Tube, Inserted":
        allowed = {"endotracheal tube", "enteric tube", "chest tube"}
    elif annotation.heading == "Catheters, Indwelling":
        allowed = {"port", "picc", "central line"}
    else:
        allowed = {"pacemaker"}
    named = [kind for kind, words in _DEVICE_WORDS if kind in allowed and re.search(words, text.lower())]
    fallback = {"Tube, Inserted": "endotracheal tube", "Catheters, Indwelling": "central line"}
    return named[0] if named else fallback.get(annotation.heading, "pacemaker")


def labels_of_findings(findings: tuple[Finding, ...]) -> dict[str, float | None]:
    """Return the 14 labels. The experts indexed all findings, so a finding without annotation is negative, not blank.

    No Finding is positive if there is no finding other than devices.
    """
    labels: dict[str, float | None] = dict.fromkeys(LABELS, NEGATIVE)
    for finding in findings:
        if finding.kind in _DOUBTFUL:
            labels[_DOUBTFUL[finding.kind]] = UNCERTAIN
    for finding in findings:
        for label in KIND_LABELS.get(finding.kind, ()):
            labels[label] = POSITIVE
    if all(finding.kind == "device" for finding in findings):
        labels[NO_FINDING] = POSITIVE
    return labels
