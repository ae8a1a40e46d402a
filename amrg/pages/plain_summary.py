"""Plain summary of the scores, for the head of the page and the terminal. Every sentence has figures."""

from typing import Any

from amrg.data.labels import FINDINGS

#: Findings named as the best, and the fewest references that must state such a finding.
BEST, LEAST_REFERENCES = 3, 10


def plain_summary(scores: dict[str, Any]) -> list[str]:
    """Return the sentences for which the content of ``scores.json`` has figures, in their order."""
    model = scores["systems"]["model"]
    return [
        *_against_constant(scores),
        *_best_findings(model["clinical"]["per_label"]),
        *_never_stated(model["clinical"]["per_label"]),
        *_sides(model),
        *_variety(scores["studies"], model["wording"], scores["references"]["wording"]),
        *_confidence(scores.get("confidence")),
    ]


def _against_constant(scores: dict[str, Any]) -> list[str]:
    constant = scores["systems"].get("best constant")
    if constant is None:
        return []
    own, fixed = (s["clinical"]["micro_13"]["f1"] for s in (scores["systems"]["model"], constant))
    difference = constant["model_minus_this"]
    low, high = difference["interval"]
    place = "above" if low > 0 else "below" if high < 0 else "not distinguishable from"
    return [
        f"The model's clinical F1 of {own:.3f} is {place} the {fixed:.3f} of the best constant report, "
        f"which is the same for every film: the difference is {difference['value']:+.3f} [{low:+.3f}, {high:+.3f}]."
    ]


def _best_findings(per_label: dict[str, Any]) -> list[str]:
    known = [f for f in FINDINGS if per_label[f]["reference"] >= LEAST_REFERENCES and per_label[f]["f1"] > 0]
    best = sorted(known, key=lambda f: -per_label[f]["f1"])[:BEST]
    figures = [
        f"{f} (F1 {per_label[f]['f1']:.3f}; {per_label[f]['reference']} references and "
        f"{per_label[f]['generated']} generated reports state it)"
        for f in best
    ]
    return [f"The model does best with {_listed(figures)}."] if best else []


def _never_stated(per_label: dict[str, Any]) -> list[str]:
    silent = [f for f in FINDINGS if per_label[f]["reference"] and not per_label[f]["generated"]]
    figures = [f"{f} (in {per_label[f]['reference']})" for f in silent]
    return [f"Of the findings in the references the model never states {_listed(figures)}."] if silent else []


def _sides(model: dict[str, Any]) -> list[str]:
    score = model["details"]["side opposite"]
    if score["value"] is None:
        return []
    low, high = score["interval"]
    wrong = sum(counts["sides apart"] for counts in model["details_per_finding"].values())
    return [
        f"Where both texts give the side of a finding, it is the opposite one in {wrong} of {score['cases']} cases "
        f"({100 * score['value']:.1f}% [{100 * low:.1f}, {100 * high:.1f}])."
    ]


def _variety(studies: int, wording: dict[str, float], references: dict[str, float]) -> list[str]:
    different, own, same = (
        round(studies * s) for s in (wording["different"], references["different"], wording["generic"])
    )
    return [
        f"{different} of the {studies} reports are different (references: {own}); the most frequent one is written "
        f"{same} time{'s' if same != 1 else ''} ({100 * wording['generic']:.1f}%)."
    ]


def _confidence(confidence: dict[str, Any] | None) -> list[str]:
    if confidence is None:
        return []
    right, error = confidence["right"]["value"], confidence["ece"]
    return [
        f"Of the {confidence['findings']} findings that it states with a probability, {100 * right:.1f}% are in the "
        f"reference and {100 * confidence['probability']:.1f}% were expected; the calibration error is "
        f"{error['value']:.3f} [{error['interval'][0]:.3f}, {error['interval'][1]:.3f}]."
    ]


def _listed(items: list[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)
