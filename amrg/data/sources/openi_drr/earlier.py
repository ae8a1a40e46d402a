"""The earlier state of a study whose report compares: findings that were absent, smaller or larger, as it says.

No patient of Open-i has two dated studies, so the earlier film is rendered. Where a report says nothing of the change
of a finding, it was there before, as it is now.
"""

from dataclasses import dataclass, replace

from amrg.data.labels import NEGATIVE
from amrg.data.sources.openi_drr.findings import KIND_LABELS, Finding
from amrg.data.text.repetition import mentions_prior
from amrg.data.text.statements import Statement, find_statements

#: How much the size of a lesion, and the severity of what has no size, differ where a finding is worse or improved.
SMALLER, LARGER, SEVERITY = 0.6, 1.6, 0.8
_BY_SEVERITY = {"cardiomegaly", "edema", "effusion", "pneumothorax"}
#: What has gone since is rendered as.
_KIND_OF = {
    "Cardiomegaly": "cardiomegaly", "Edema": "edema", "Consolidation": "consolidation", "Pneumonia": "pneumonia",
    "Lung Opacity": "opacity", "Atelectasis": "atelectasis", "Lung Lesion": "nodule",
    "Pleural Effusion": "effusion", "Pneumothorax": "pneumothorax",
}  # fmt: skip
_NAMES = {
    "cardiomegaly": "enlarged heart", "edema": "pulmonary edema", "effusion": "pleural effusion",
    "opacity": "airspace opacity", "interstitial": "interstitial opacities", "nodule": "lung nodule",
    "mass": "lung mass", "granuloma": "calcified granuloma",
}  # fmt: skip
_NORMAL = "The lungs are clear. The heart is normal in size. No pleural effusion or pneumothorax."


@dataclass(frozen=True)
class EarlierState:
    """What a study looked like before.

    Attributes:
        now, before: findings of both films; those of one number are at the same place.
        changes: true change of each label that is present on either film, if its findings agree on it.
        report: report of the earlier film. It names no sizes: only the films show whether a lesion has grown.
    """

    now: tuple[Finding, ...]
    before: tuple[Finding, ...]
    changes: dict[str, str]
    report: str


def earlier_state(findings: tuple[Finding, ...], text: str) -> EarlierState | None:
    """Return the earlier state of a study with these findings and this report; None if the report does not compare."""
    if not mentions_prior(text):
        return None
    stated = [one for one in find_statements(text) if one.change]
    now = tuple(replace(finding, number=number) for number, finding in enumerate(findings))
    before: list[Finding] = []
    changed: dict[str, set[str]] = {}
    for finding in now:
        change = _change(finding, stated)
        if change != "new":
            before.append(_scaled(finding, change))
        for label in KIND_LABELS.get(finding.kind, ()):
            changed.setdefault(label, set()).add(change)
    for one in stated:
        kind = _KIND_OF.get(one.finding)
        gone = one.presence == NEGATIVE and one.change == "improved"
        if gone and kind and one.finding not in changed:
            before.append(Finding(kind, tuple(sorted(one.sides)), number=len(findings) + len(before)))
            changed.update({label: {"improved"} for label in KIND_LABELS[kind] if label not in changed})
    changes = {label: next(iter(some)) for label, some in changed.items() if len(some) == 1}
    return EarlierState(now, tuple(before), changes, " ".join(filter(None, map(_sentence, before))) or _NORMAL)


def _change(finding: Finding, stated: list[Statement]) -> str:
    """Return the change that a report states of a finding, at its place if it has one; else ``unchanged``."""
    labels = KIND_LABELS.get(finding.kind, ())
    for one in stated:
        elsewhere = one.sides and finding.sides and not one.sides & set(finding.sides)
        if one.finding in labels and one.presence != NEGATIVE and not elsewhere:
            return one.change
    return "unchanged"


def _scaled(finding: Finding, change: str) -> Finding:
    """Return a finding as it was: smaller if it is worse now, larger if it has improved."""
    if change == "unchanged" or finding.kind == "device":
        return finding
    if finding.kind in _BY_SEVERITY:
        less = SEVERITY if change == "worse" else -SEVERITY
        return replace(finding, severity=finding.severity - less)
    return replace(finding, scale=SMALLER if change == "worse" else LARGER)


def _sentence(finding: Finding) -> str:
    """Return the sentence of a finding; empty for what no label names."""
    if finding.kind not in KIND_LABELS:
        return ""
    name = finding.device if finding.kind == "device" else _NAMES.get(finding.kind, finding.kind)
    side = "bilateral" if len(finding.sides) > 1 else "".join(finding.sides)
    placed = name if finding.kind in ("cardiomegaly", "edema", "device") or not side else f"{side} {name}"
    return f"{placed[:1].upper()}{placed[1:]}."
