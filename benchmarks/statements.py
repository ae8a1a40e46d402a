"""What statements say of sides, zones, severity and devices against the experts' MeSH qualifiers.

``python -m benchmarks.statements`` prints both halves of the Open-i reports: the rules were tuned on those
of even number, those of odd number are the honest half (as in ``labeler_check``). A case is a report and a finding that
both the experts and the text state. Its sides, zones and severities are those of all its headings, and of all its
statements.
"""

from collections import Counter
from dataclasses import dataclass

from amrg.data.labels import POSITIVE
from amrg.data.text.statements import find_statements
from benchmarks.labeler import HEADINGS, openi_reports

ATTRIBUTES = ("side", "zone", "severity", "device")

#: Qualifier → what it states, attribute by attribute.
_SIDES = {"left": {"left"}, "right": {"right"}, "bilateral": {"left", "right"}}
_SIDES_IMPLIED = {"lingula": {"left"}, "middle lobe": {"right"}}
_ZONES = {
    "upper lobe": "upper", "apex": "upper", "middle lobe": "middle", "lingula": "middle", "hilum": "middle",
    "lower lobe": "lower", "base": "lower", "retrocardiac": "lower", "costophrenic angle": "lower",
}  # fmt: skip
_SEVERITIES = {"borderline": "mild", "mild": "mild", "small": "mild", "moderate": "moderate", "large": "severe",
               "severe": "severe"}  # fmt: skip
#: Heading → kind of device, and the devices of each kind.
_DEVICE_HEADINGS = {
    "Catheters, Indwelling": "catheter", "Tube, Inserted": "tube", "Implanted Medical Device": "implant",
    "Medical Device": "implant", "Stents": "stent", "Spinal Fusion": "spinal hardware",
}  # fmt: skip
_DEVICE_KINDS = {
    "port": "catheter", "picc": "catheter", "central line": "catheter", "shunt": "catheter",
    "endotracheal tube": "tube", "tracheostomy tube": "tube", "enteric tube": "tube", "chest tube": "tube",
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A finding that both state, and what each says of it: attribute → values, empty where it says nothing."""

    number: int
    finding: str
    text: str
    headings: tuple[str, ...]
    experts: dict[str, frozenset[str]]
    predicted: dict[str, frozenset[str]]


def qualified(headings: list[str]) -> dict[str, frozenset[str]]:
    """What the headings of one finding state, attribute by attribute."""
    found: dict[str, set[str]] = {attribute: set() for attribute in ATTRIBUTES}
    for heading in headings:
        name, *qualifiers = (part.strip() for part in heading.split("/"))
        words = {qualifier.lower() for qualifier in qualifiers}
        sides = set[str]().union(*(_SIDES[w] for w in words & _SIDES.keys()))
        found["side"] |= sides or set[str]().union(*(_SIDES_IMPLIED[w] for w in words & _SIDES_IMPLIED.keys()))
        found["zone"] |= {_ZONES[w] for w in words & _ZONES.keys()}
        found["severity"] |= {_SEVERITIES[w] for w in words & _SEVERITIES.keys()}
        if name in _DEVICE_HEADINGS:
            found["device"].add(_DEVICE_HEADINGS[name])
    return {attribute: frozenset(values) for attribute, values in found.items()}


def cases(remainder: int) -> list[Case]:
    """Of the reports whose number mod 2 is ``remainder``; a text that stands in both halves counts in neither."""
    reports = openi_reports()
    elsewhere = {text for number, text, _ in reports if number % 2 != remainder}
    found = []
    for number, text, headings in reports:
        if number % 2 != remainder or text in elsewhere:
            continue
        positive = [s for s in find_statements(text) if s.presence == POSITIVE]
        for finding, pattern in HEADINGS.items():
            expert = [h for h in headings if pattern.match(h)]
            own = [s for s in positive if s.finding == finding]
            if expert and own:
                predicted = {
                    "side": frozenset[str]().union(*(s.sides for s in own)),
                    "zone": frozenset[str]().union(*(s.zones for s in own)),
                    "severity": frozenset(s.severity for s in own if s.severity),
                    "device": frozenset(_DEVICE_KINDS.get(s.device, _other(s.device)) for s in own if s.device),
                }
                found.append(Case(number, finding, text, tuple(expert), qualified(expert), predicted))
    return found


def _other(device: str) -> str:
    return device if device in ("stent", "spinal hardware") else "implant"


def outcome(experts: frozenset[str], predicted: frozenset[str]) -> str:
    """How two sets of values agree: exact, overlap, opposite, missed (only the experts), extra (only we), neither."""
    if not experts or not predicted:
        return "missed" if experts else "extra" if predicted else "neither"
    return "exact" if experts == predicted else "overlap" if experts & predicted else "opposite"


def count(found: list[Case], attribute: str) -> Counter[str]:
    """Outcome → cases."""
    return Counter(outcome(case.experts[attribute], case.predicted[attribute]) for case in found)


def rates(counts: Counter[str]) -> dict[str, float]:
    """``both``: cases where both say one; exact, overlap and opposite among these; precision, recall of exact."""
    both = counts["exact"] + counts["overlap"] + counts["opposite"]
    return {
        "both": both,
        **{name: counts[name] / max(both, 1) for name in ("exact", "overlap", "opposite")},
        "precision": counts["exact"] / max(both + counts["extra"], 1),
        "recall": counts["exact"] / max(both + counts["missed"], 1),
    }


def _row(name: str, counts: Counter[str]) -> str:
    r = rates(counts)
    shown = " | ".join(f"{r[key]:.3f}" for key in ("exact", "overlap", "opposite", "precision", "recall"))
    return f"| {name} | {r['both']} | {shown} | {counts['missed']} | {counts['extra']} |"


def _print(found: list[Case]) -> None:
    print("\n| | both say | exact | overlap | opposite | precision | recall | only experts | only we |")
    print("|---|---|---|---|---|---|---|---|---|")
    for attribute in ATTRIBUTES:
        print(_row(attribute, count(found, attribute)))
    for attribute in ("side", "zone"):
        for finding in HEADINGS:
            counts = count([case for case in found if case.finding == finding], attribute)
            if rates(counts)["both"] >= 10:
                print(_row(f"{attribute}, {finding}", counts))


if __name__ == "__main__":
    for half, name in ((0, "even numbers (tuned on)"), (1, "odd numbers (held out)")):
        print(f"\nexperts' MeSH qualifiers, {name}")
        _print(cases(half))
