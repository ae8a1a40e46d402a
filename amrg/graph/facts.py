"""Facts of one report: the findings that it states and denies, with their sites, qualifiers and devices."""

from dataclasses import dataclass

from amrg.data.labels import FINDINGS, LABELS, NEGATIVE, NO_FINDING, POSITIVE
from amrg.data.text.sites import SITES, finding_sites
from amrg.data.text.statements import DEVICES, find_statements

LOCATED_AT, HAS_QUALIFIER, WITH_DEVICE = "located_at", "has_qualifier", "with_device"
SIDES, ZONES = ("left", "right"), ("upper", "middle", "lower")
SEVERITIES, CHANGES = ("mild", "moderate", "severe"), ("new", "improved", "worse", "unchanged")
#: Size class → its largest size in cm; a nodule is at most 3 cm (Fleischner Society glossary, 2008).
SIZES = {"below 1 cm": 1.0, "1 to 3 cm": 3.0, "above 3 cm": float("inf")}
DEVICE_FINDING = "Support Devices"

#: Every node with its kind.
NODES: dict[str, str] = {
    **dict.fromkeys(LABELS, "finding"),
    **dict.fromkeys((*SIDES, *ZONES, *SITES), "site"),
    **dict.fromkeys(DEVICES, "device"),
    **dict.fromkeys((*SEVERITIES, *SIZES, *CHANGES), "qualifier"),
}


@dataclass(frozen=True)
class Facts:
    """Facts of one report.

    Attributes:
        stated: positive findings; No Finding if no finding but a device is positive or uncertain.
        denied: findings that are negative and nowhere positive.
        devices: devices in place.
        details: (finding, relation, node) of the sites and qualifiers of positive findings.
    """

    stated: frozenset[str]
    denied: frozenset[str]
    devices: frozenset[str]
    details: frozenset[tuple[str, str, str]]


def read_report_facts(text: str) -> Facts:
    """Read the facts of a report."""
    found = find_statements(text)
    positive = [one for one in found if one.presence == POSITIVE]
    stated = {one.finding for one in positive}
    abnormal = {one.finding for one in found if one.presence != NEGATIVE} - {DEVICE_FINDING}
    details = {(f, LOCATED_AT, site) for f, sites in finding_sites(text).items() if f in stated for site in sites}
    for one in positive:
        details |= {(one.finding, LOCATED_AT, place) for place in one.sides | one.zones}
        size = [next(name for name, most in SIZES.items() if one.size_cm <= most)] if one.size_cm is not None else []
        details |= {(one.finding, HAS_QUALIFIER, word) for word in (one.severity, one.change, *size) if word}
    return Facts(
        stated=frozenset(stated) | ({NO_FINDING} if text.strip() and not abnormal else set()),
        denied=frozenset(
            f for f in FINDINGS if f not in stated and any(o.finding == f for o in found if not o.presence)
        ),
        devices=frozenset(one.device for one in positive if one.device),
        details=frozenset(details),
    )
