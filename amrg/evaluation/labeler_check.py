"""The labeler against the experts' MeSH headings of the Open-i reports: ``python -m amrg.evaluation.labeler_check``.

The phrase tables were tuned on the reports of even number only; those of odd number are the honest half.
"""

import importlib.util
import re
import tarfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from amrg.data.labeler import label_report
from amrg.errors import UserError

#: How a MeSH heading such as ``Opacity/lung/base/left`` states a label. Round opacities are lesions, as in CheXpert.
HEADINGS: dict[str, re.Pattern[str]] = {
    label: re.compile(expression)
    for label, expression in {
        "Enlarged Cardiomediastinum": r"Mediastinum/.*(enlarged|prominent)",
        "Cardiomegaly": r"Cardiomegaly|Cardiac Shadow/.*enlarged",
        "Lung Opacity": r"Opacity(?!.*round)|Airspace Disease|Infiltrate|Density/lung(?!.*round)",
        "Lung Lesion": r"(Nodule|Mass|Granuloma|Calcified Granuloma)\b(?!/(breast|spleen|abdomen))"
        r"|(Opacity|Density)(/lung|/thorax)?(?=/|$).*/round",
        "Edema": r"Pulmonary Edema|Pulmonary Congestion|Heart Failure",
        "Consolidation": r"Consolidation",
        "Pneumonia": r"Pneumonia",
        "Atelectasis": r"Pulmonary Atelectasis",
        "Pneumothorax": r"Pneumothorax|Hydropneumothorax|Hemopneumothorax",
        "Pleural Effusion": r"Pleural Effusion|Hydropneumothorax|Hemothorax|Hemopneumothorax",
        "Pleural Other": r"(Thickening|Cicatrix|Calcinosis|Fibrosis)/.*pleura",
        "Fracture": r"Fractures, Bone",
        "Support Devices": r"Catheters, Indwelling|(Implanted )?Medical Device|Tube, Inserted|Stents|Spinal Fusion",
    }.items()
}


def mesh_findings(headings: list[str]) -> set[str]:
    """The findings that a report's MeSH headings assert."""
    return {label for label, pattern in HEADINGS.items() if any(pattern.match(h) for h in headings)}


def openi_reports() -> list[tuple[int, str, list[str]]]:
    """(number, findings and impression, MeSH headings) of every indexed Open-i report, read from the wheel.

    Raises:
        UserError: ``torchxrayvision`` is not installed.
    """
    spec = importlib.util.find_spec("torchxrayvision")  # found, not imported: the import pulls in half of its stack
    if spec is None or not spec.submodule_search_locations:
        raise UserError("torchxrayvision is not installed: pip install --no-deps torchxrayvision==1.5.7")
    rows = []
    with tarfile.open(Path(spec.submodule_search_locations[0]) / "data" / "NLMCXR_reports.tgz") as tar:
        for member in tar:
            file = tar.extractfile(member) if member.name.endswith(".xml") else None
            if file is None:
                continue
            tree = ElementTree.fromstring(file.read())
            sections = {a.get("Label"): a.text or "" for a in tree.iter("AbstractText")}
            text = "\n\n".join(sections.get(s, "") for s in ("FINDINGS", "IMPRESSION")).strip()
            headings = [m.text or "" for m in tree.iter("major")]
            if text and not any(h.startswith("No Indexing") for h in headings):
                rows.append((int(Path(member.name).stem), text, headings))
    return sorted(rows)


def check(remainder: int) -> dict[str, dict[str, float]]:
    """Per finding: positives, precision, recall and F1 on the reports whose number mod 2 is ``remainder``."""
    counts = {label: {"tp": 0, "fp": 0, "fn": 0} for label in HEADINGS}
    for number, text, headings in openi_reports():
        if number % 2 != remainder:
            continue
        truth, labels = mesh_findings(headings), label_report(text)
        for label, c in counts.items():
            said, true = labels[label] == 1.0, label in truth
            c["tp"] += said and true
            c["fp"] += said and not true
            c["fn"] += true and not said
    return {
        label: {
            "positives": c["tp"] + c["fn"],
            "precision": c["tp"] / max(c["tp"] + c["fp"], 1),
            "recall": c["tp"] / max(c["tp"] + c["fn"], 1),
            "f1": 2 * c["tp"] / max(2 * c["tp"] + c["fp"] + c["fn"], 1),
        }
        for label, c in counts.items()
    }


if __name__ == "__main__":
    for half, name in ((0, "even numbers (tuned on)"), (1, "odd numbers (held out)")):
        print(f"\n{name}\n\n| finding | positives | precision | recall | F1 |\n|---|---|---|---|---|")
        for finding, row in check(half).items():
            print(
                f"| {finding} | {row['positives']} | {row['precision']:.3f} | {row['recall']:.3f} | {row['f1']:.3f} |"
            )
