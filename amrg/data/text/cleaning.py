"""Cleaning of report text by named rules.

De-identification replaced words by ``XXXX`` (Open-i) or ``___`` (MIMIC-CXR). A masked phrase or word is removed if the
sentence is complete without it; otherwise the sentence is removed. A change of a rule's results needs a new version of
the ``prepare`` step, whose artefacts hold the cleaned texts.
"""

import re
from collections.abc import Callable

_MASK = "XXXX"
_VERBS = (
    "is|are|was|were|has|have|had|be|been|being|appear|appears|appeared|remain|remains|seen|noted|demonstrate|"
    "demonstrates|show|shows|project|projects|overlie|overlies|extend|extends|may|could|can|measures|measuring"
)
_PREPOSITIONS = "of|in|at|on|by|to|with|from|for|since|over|within|near|into|through|and|or|than|along|between"
_PLACES = "lobe|lung|lungs|right|left|lower|upper|middle|base|bilateral|multiple|several|small|large|few"
_ARTICLES = "a|an|the|this|that|these|those"


def mask_token(text: str) -> str:
    """Replace every de-identification mark, and runs of them, by one ``XXXX``."""
    text = re.sub(r"_{2,}|\bX{3,}\b", _MASK, text)
    return re.sub(rf"{_MASK}(?:[\s/]+{_MASK})+", _MASK, text)


def whitespace(text: str) -> str:
    """Normalise to one space between words, none before punctuation and one after."""
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"\s+([.,;:?!])", r"\1", text)
    text = re.sub(r"([,;])(?=[A-Za-z])", r"\1 ", text)
    text = re.sub(r"(?<=[a-z)])\.(?=[A-Z])", ". ", text)
    return re.sub(r"\.(?:\s*\.)+", ".", text).strip()


def numbering(text: str) -> str:
    """Drop the numbers of a list (``1. Clear lungs. 2. …``), never a measurement (``1.5 cm``)."""
    return re.sub(r"(?:(?<=^)|(?<=[.;:]\s))\(?\d{1,2}[.)]\s+(?=[A-Za-z])", "", text)


def known_words(text: str) -> str:
    """Restore masked words that have only one possible reading."""
    text = re.sub(rf"\b([Xx])-{_MASK}\b", r"\1-ray", text)
    return re.sub(rf"\b{_MASK}-[Aa]-{_MASK}\b", "port-a-cath", text)


def masked_phrases(text: str) -> str:
    """Drop a final phrase whose content is masked, such as ``, compared to XXXX``."""
    lead = r"(?:,?\s*(?:when |as )?(?:compared|comparison)(?: is made)?)?"
    return re.sub(
        rf"{lead}\s+(?:since|from|dated|on|at|of|in|by|to|with)\s+(?:the )?(?:prior |previous )?{_MASK}(?=\s*[.,;])",
        "",
        text,
    )


def masked_words(text: str) -> str:
    """Drop a masked modifier (``no XXXX infiltrate``); drop the sentence if it needs the masked word."""
    return " ".join(kept for sentence in split_sentences(text) if (kept := _unmask(sentence)))


def _unmask(sentence: str) -> str:
    while _MASK in sentence:
        before, _, after = sentence.partition(_MASK)
        follows = re.match(r"\s+([A-Za-z]+)", after)
        modifiable = f"{_ARTICLES}|no|{_PLACES}|{_PREPOSITIONS}|{_VERBS}|[a-z]+(?:ed|al|ar|ic)"
        removable = re.search(rf"(?:^|\b(?:{modifiable})\s)\s*$", before, re.I)
        essential = not follows or re.fullmatch(f"{_VERBS}|{_PREPOSITIONS}", follows[1], re.I)
        if essential or not removable:
            return ""
        sentence = before + after.lstrip()
    return sentence


def capitals(text: str) -> str:
    """Start every sentence with a capital and end it with a full stop."""
    kept = [part[0].upper() + part[1:] for part in split_sentences(text) if re.search("[A-Za-z]{2}", part)]
    return " ".join(part if part[-1] in ".?!" else part.rstrip(",;: ") + "." for part in kept)


#: The rules in the order in which they are applied.
RULES: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("mask_token", mask_token),
    ("whitespace", whitespace),
    ("numbering", numbering),
    ("known_words", known_words),
    ("masked_phrases", masked_phrases),
    ("masked_words", masked_words),
    ("whitespace", whitespace),
    ("capitals", capitals),
)


def clean(text: str) -> str:
    """Apply all ``RULES``; the result may be empty."""
    for _, rule in RULES:
        text = rule(text)
    return text


def split_sentences(text: str) -> list[str]:
    """Split at full stops that end a sentence (not inside ``1.5`` or ``Dr.``)."""
    return [part.strip() for part in re.split(r"(?<=[.?!])(?<!\bDr\.)(?<!\bvs\.)\s+", text) if part.strip()]


def normalize_for_dedup(text: str) -> str:
    """Reduce a text to its lower-case words; reports with equal results are duplicates."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))
