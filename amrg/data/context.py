"""Clinical context of a study: what is known before its films are read."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from amrg.data.text.cleaning import (
    normalize_for_dedup,
    normalize_whitespace,
    restore_known_words,
    split_sentences,
    strip_markup,
    to_plain_characters,
    unify_mask_tokens,
)

_MASK = "XXXX"
_OLDEST = 120
_SEXES = {"f": "female", "m": "male", "w": "female"}
#: Age and sex as indications tell them: ``63-year-old woman``, ``63 y/o M``, ``___F``.
_PATIENT = re.compile(
    rf"(?:\b(?P<age>\d{{1,3}})|{_MASK})[\s-]*(?:(?:years?|yrs?|y)[\s./-]*(?:old|o)?\b\.?)?[\s,-]*"
    r"(?P<sex>females?|woman|lady|girl|males?|man|gentleman|boy|(?-i:[FM]))\b",
    re.I,
)
_AGE = re.compile(r"(\d{1,3})(?:\.0*)?\s*([YMWD]?)\w*", re.I)
#: What is left of an age whose number is masked.
_MASKED_AGE = re.compile(rf"{_MASK}[\s-]*(?:years?|yrs?|y)[\s./-]*(?:old|o)\b\.?", re.I)
#: Words that need the one that a mark has replaced.
_LINKS = "with|and|or|of|by|since|for|in|on|at|from|to|the|a|an|dated|as|is|was|versus|vs"
_DANGLING = re.compile(rf"[\s,/(-]*(?:\b(?:{_LINKS})\b[\s,/(-]*)+(?=[.;:)]|$)|[\s,/-]+(?=[.;:)]|$)", re.I)
_DOUBLE = re.compile(r"\b(with|of|for|to|by|from)\s+(?:and|or)\b", re.I)
_LEADING = re.compile(r"^[\W_]*(?:(?:and|or|with|of|to|by)\b[\W_]*)?", re.I)
#: A sentence of findings: nothing behind it is context, for a section without a heading may follow.
_OBSERVATION = re.compile(
    r"\bthere (?:is|are|has)\b|\b(?:is|are) present\b|\b(?:lungs?|heart|silhouette|mediastin\w+|hil(?:a|ar|um)"
    r"|pleural spaces?|costophrenic|bon(?:y|es)|(?:hemi)?diaphragms?|vasculature|osseous)\b.*\b(?:is|are|remains?"
    r"|appears?)\b|^no (?:focal|acute|pleural|evidence|pneumothora|effusion|definite|consolidation|change|interval)",
    re.I,
)
_FEWEST_WORDS = 3  # of a sentence that may be one of the report
#: A comparison of nothing but dates and their marks. In Open-i 51 % of reports with such a one compare with an earlier
#: film, 46 % of those with a comparison in words and 8 % of those without an earlier study.
_DATES = re.compile(rf"(?=.*(?:{_MASK}|\d))[\W_]*(?:(?:{_MASK}|\d+|and|from|dated|at|[ap]\.?m)\b[\W_]*)+", re.I)
_EARLIER_STUDY = "Earlier study."


@dataclass(frozen=True)
class Context:
    """Clinical context; what is not known is empty or None.

    Attributes:
        indication: reason for the examination, or the patient's history.
        technique: of the examination.
        comparison: earlier studies, or that there are none; ``Earlier study.`` where nothing but a date stands.
        age: of the patient, in whole years.
        sex: ``female``, ``male`` or empty.
    """

    indication: str = ""
    technique: str = ""
    comparison: str = ""
    age: int | None = None
    sex: str = ""

    @classmethod
    def read(cls, texts: Mapping[str, Any], reported: Iterable[str | None] = ()) -> Self:
        """Build from texts as they stand in a report, table or form, by field.

        Args:
            texts: fields; missing ones and None are unknown. Without an age or sex, those that the indication tells
                are taken.
            reported: findings and impression of the study. A sentence of them never becomes context.
        """
        sentences = {
            normalize_for_dedup(one) for text in reported if text for one in split_sentences(to_plain_characters(text))
        }
        given = {field.name: texts.get(field.name) for field in fields(cls)}
        raw = {name: "" if value is None else str(value) for name, value in given.items()}
        patient = _PATIENT.search(unify_mask_tokens(to_plain_characters(raw["indication"])))
        age, sex = parse_age_in_years(raw.pop("age")), parse_patient_sex(raw.pop("sex"))
        if patient is not None:
            age = parse_age_in_years(patient["age"]) if age is None else age
            sex = sex or parse_patient_sex(patient["sex"])
        cleaned = {name: _clean(text, sentences) for name, text in raw.items()}
        if _DATES.fullmatch(unify_mask_tokens(to_plain_characters(raw["comparison"]))):
            cleaned["comparison"] = _EARLIER_STUDY
        return cls(**cleaned, age=age, sex=sex)

    def filled(self, other: "Context") -> Self:
        """Return the context with what it lacks from another."""
        lacking = [name for name in CONTEXT_FIELDS if not self.text(name)]
        return replace(self, **{name: getattr(other, name) for name in lacking})

    def text(self, field: str) -> str:
        """Return a field as text; empty if it is not known."""
        value = getattr(self, field)
        return "" if value is None else str(value)

    def known(self) -> dict[str, str]:
        """Return the fields that are known, as text."""
        return {name: text for name in CONTEXT_FIELDS if (text := self.text(name))}

    def __bool__(self) -> bool:
        return bool(self.known())


NO_CONTEXT = Context()
CONTEXT_FIELDS: tuple[str, ...] = tuple(field.name for field in fields(Context))


def parse_age_in_years(text: str | None) -> int | None:
    """Return whole years of an age as DICOM (``063Y``, ``018M``), a number (``63.0``) or words (``63 years``) tell it.

    None for anything else, and above 120 years.
    """
    match = _AGE.fullmatch((text or "").strip())
    if match is None:
        return None
    years = int(match[1]) // {"M": 12, "W": 52, "D": 365}.get(match[2].upper(), 1)
    return years if years <= _OLDEST else None


def parse_patient_sex(text: str | None) -> str:
    """Return ``female`` or ``male`` for their names and letters; empty for anything else."""
    found = re.fullmatch(r"(f|m|w)|(female|woman|lady|girl)s?|(male|man|gentleman|boy)s?", (text or "").strip().lower())
    if found is None:
        return ""
    return _SEXES[found[1]] if found[1] else "female" if found[2] else "male"


def _clean(text: str, reported: set[str]) -> str:
    """Return the sentences of a field without de-identification marks; those of the report are left out."""
    kept = []
    for sentence in split_sentences(
        normalize_whitespace(restore_known_words(unify_mask_tokens(to_plain_characters(strip_markup(text)))))
    ):
        if _OBSERVATION.search(sentence):
            break
        words = normalize_for_dedup(sentence)
        if words in reported and len(words.split()) >= _FEWEST_WORDS:
            continue
        unmasked = sentence
        if _MASK in sentence:
            unmasked = _MASKED_AGE.sub(" ", sentence).replace(_MASK, " ")
            unmasked = re.sub(r"\(\s*\)", " ", unmasked)
            while (shorter := _DOUBLE.sub(r"\1", _DANGLING.sub("", normalize_whitespace(unmasked)))) != unmasked:
                unmasked = shorter
            unmasked = re.sub(r"([,;/])(?:\s*[,;/])+", r"\1", _LEADING.sub("", unmasked))
        if re.search("[A-Za-z]{2}", unmasked):
            kept.append(unmasked[0].upper() + unmasked[1:].rstrip(" .,;:-/") + ".")
    return " ".join(kept)
