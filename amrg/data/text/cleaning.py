"""Cleaning of report text by rules, each a function.

De-identification replaced words by ``XXXX`` (Open-i), ``___`` or ``[**…**]`` (MIMIC). A masked phrase or word is
removed if the sentence is complete without it; otherwise the sentence is removed, as is one whose masked word may have
been "no". Cleaning a cleaned text changes nothing.
"""

import html
import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache

from amrg.data.text.lines import add_line_stops

#: Stored with every prepared data set; increase it when a rule changes the text.
VERSION = 3

_MASK = "XXXX"
_ROUNDS = 5  # what a rule leaves may be a case of an earlier one
_VERBS = (
    "is|are|was|were|has|have|had|be|been|being|appear|appears|appeared|remain|remains|seen|noted|demonstrate|"
    "demonstrates|show|shows|project|projects|overlie|overlies|extend|extends|may|could|can|measures|measuring"
)
_PREPOSITIONS = "of|in|at|on|by|to|with|from|for|since|over|within|near|into|through|and|or|than|along|between"
_PLACES = "lobe|lung|lungs|right|left|lower|upper|middle|base|bilateral|multiple|several|small|large|few"
_UNITS = "mm|cm|ml|cc|degrees|percent"
_ARTICLES = "a|an|the|this|that|these|those"
_PRESENT = re.compile(
    r"\b(?:may|might|could|represents?|reflects?|versus|probabl[ey]|likely|possibl[ey]|unchanged|stable|again|before"
    r"|improved|increased|decreased|slightly|mild|mildly|minimal|minimally|moderate|small|tiny|subtle|chronic)\b",
    re.I,
)

#: Characters that only print differently, and the plain ones that stand for them.
_PLAIN = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201b\u02bc\u2032\u00b4`", "'"),
        **dict.fromkeys("\u201c\u201d\u201f\u2033", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2212", "-"),
        **dict.fromkeys("\u2014\u2015", " - "),
        **dict.fromkeys("\ufeff\u200b\u200c\u200d\u2060\u00ad", ""),  # no width
        **dict.fromkeys("\u00a0\u2007\u202f", " "),  # spaces that do not break
        **dict.fromkeys("\v\f\x1c\x1d\x1e\x85\u2028\u2029", "\n"),  # ends of lines and pages
        **dict.fromkeys(map(chr, {*range(9), *range(14, 28), 31, 127}), ""),
    }
)
_LIGATURES = re.compile("[\ufb00-\ufb06\uff01-\uff5e]+")  # and the letters of full width
_BULLET = re.compile("(?m)^[ \\t]*[-*]+[ \\t]+|[ \\t]*[\u2022\u25aa\u25cf]+[ \\t]*")
_NUMBER = re.compile(r"\(?\d{1,2}[.)]\s*(?=[A-Za-z])")
_LIST_NUMBER = re.compile(rf"(?:(?<=^)|(?<=[.;:]\s)){_NUMBER.pattern}")
#: Words before a number that is no item of a list.
_COUNTED = ")(?<!".join(rf"\b{word}" for word in ("rib", "ribs", "level", "grade", "type", "stage", "lead", "no"))
#: Abbreviations whose full stop does not end a sentence; one of single letters (``a.m.``) may, before a capital.
_ABBREVIATIONS = ("dr", "drs", "mr", "mrs", "ms", "vs", "approx", "e.g", "i.e")
_SENTENCE_END = re.compile(
    r"""(?:(?<=[.?!])|(?<=[.?!]["')\]]))"""
    + "".join(rf"(?<!(?i:\b{word}\.))" for word in _ABBREVIATIONS)
    + r"(?:(?<!\b[A-Za-z]\.[A-Za-z]\.)|(?=\s+[^a-z\s]))\s+"
)


def to_plain_characters(text: str) -> str:
    """Replace typographic quotes, hyphens, ligatures, invisible characters and line ends by plain ones."""
    text = _LIGATURES.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
    return re.sub(r"\r\n?", "\n", text).translate(_PLAIN).replace("\u2026", "...")


def strip_markup(text: str) -> str:
    """Resolve entities (``&lt;``) and drop tags; ``<br>`` and ``<p>`` end a line."""
    if "&" not in text and "<" not in text:
        return text
    while (resolved := re.sub(r"&(?:#\w+|[a-zA-Z]+);", lambda match: html.unescape(match[0]), text)) != text:
        text = resolved
    text = re.sub(r"</?(?:br|p|div|li)(?:\s[^<>]*)?/?>", "\n", text, flags=re.I)
    return re.sub(r"</?(?:b|i|u|em|strong|span|font|ul|ol)(?:\s[^<>]*)?/?>", "", text, flags=re.I)


def end_lines_with_stops(text: str) -> str:
    """End the statements that only a line break or a bullet ends, with a full stop."""
    return add_line_stops(_BULLET.sub("\n\n", text))


def unify_mask_tokens(text: str) -> str:
    """Replace every de-identification mark, and runs of them, by one ``XXXX``."""
    text = re.sub(r"\[\*\*.*?\*\*\]|_{2,}|(?<!\w)_(?!\w)|\b[Xx]{3,}\b", _MASK, text)
    return re.sub(rf"{_MASK}(?:[\s/]+{_MASK})+", _MASK, text)


def normalize_whitespace(text: str) -> str:
    """Normalise to one space between words, none before punctuation and one after."""
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"\s+([,;:?!]|\.(?!\d))", r"\1", text)
    text = re.sub(r"\.(?:\s*\.(?!\d))+", ".", text)
    text = re.sub(r"([,;])(?=[A-Za-z])|(?<=[A-Za-z])(:)(?=[A-Za-z])", r"\1\2 ", text)
    return re.sub(r"(?<=[a-z)])\.(?=[A-Z])|(?<=[A-Za-z]{3})\.(?=[A-Za-z]{2}|\d)", ". ", text).strip()


def drop_list_numbers(text: str) -> str:
    """Drop the numbers of a list (``1. Clear lungs. 2. …``), never a measurement (``1.5 cm``).

    In a list that begins with 1 they end statements without a full stop.
    """
    if not _NUMBER.search(text):
        return text
    number = 2 if re.match(r"\(?1[.)]", text) else 0
    while number:
        item = rf"(?<=[a-zA-Z)])(?i:(?<!{_COUNTED}))\s+\(?{number}(?:\.\s*(?=[A-Z])|\)\s*(?=[A-Za-z]))"
        text, found = re.subn(item, ". ", text, count=1)
        number = number + 1 if found or re.search(rf"[.;:]\s\(?{number}[.)]", text) else 0
    return _LIST_NUMBER.sub("", text)


def restore_known_words(text: str) -> str:
    """Restore masked words that have only one possible reading."""
    if _MASK not in text:
        return text
    text = re.sub(rf"\b([Xx])-{_MASK}\b", r"\1-ray", text)
    return re.sub(rf"\b{_MASK}-[Aa]-{_MASK}\b", "port-a-cath", text)


def drop_masked_phrases(text: str) -> str:
    """Drop a first or final phrase whose content is masked, such as ``, compared to XXXX``."""
    if _MASK not in text:
        return text
    text = re.sub(
        rf"(?:^|(?<=[.;?!]\s))(?:When |As )?[Cc]ompar(?:ed|ison)(?: is made)? (?:to|with) (?:the )?"
        rf"(?:prior |previous )?{_MASK}[.,;:]\s*",
        "",
        text,
    )
    lead = r"(?:,?\s*(?:when |as )?(?:compared|comparison)(?: is made)?)?"
    return re.sub(
        rf"{lead}\s+(?:since|from|dated|on|at|of|in|by|to|with)\s+(?:the )?(?:prior |previous )?{_MASK}(?=\s*[.,;:])",
        "",
        text,
    )


def drop_masked_words(text: str) -> str:
    """Drop a masked modifier (``no XXXX infiltrate``); drop the sentence if it needs the masked word."""
    return " ".join(kept for sentence in split_sentences(text) if (kept := _unmask(sentence)))


def _unmask(sentence: str) -> str:
    modifiable = f"{_ARTICLES}|no|{_PLACES}|{_PREPOSITIONS}|{_VERBS}|[a-z]+(?:ed|al|ar|ic)"
    while _MASK in sentence:
        before, _, after = sentence.partition(_MASK)
        follows = re.match(r"\s+([A-Za-z]+)", after)
        # A mask at the start may have been "no", unless the sentence says what is never said of something absent.
        removable = re.search(rf"\b(?:{modifiable})\s+$", before, re.I) or (not before and _PRESENT.search(after))
        essential = not follows or re.fullmatch(f"{_VERBS}|{_PREPOSITIONS}|{_UNITS}", follows[1], re.I)
        if essential or not removable:
            return ""
        sentence = before + after.lstrip()
    return sentence


def capitalize_sentences(text: str) -> str:
    """Start every sentence with a capital and end it with a full stop."""
    kept = [
        re.sub(r"^\W*[a-z]", lambda first: first[0].upper(), part)
        for part in (sentence.lstrip("-* ") for sentence in split_sentences(text))
        if re.search("[A-Za-z]{2}", part)
    ]
    return " ".join(part if re.search(r"""[.?!]["')\]]*$""", part) else part.rstrip(",;:- ") + "." for part in kept)


#: The rules in the order in which they are applied.
RULES: tuple[Callable[[str], str], ...] = (
    strip_markup,
    to_plain_characters,
    end_lines_with_stops,
    unify_mask_tokens,
    normalize_whitespace,
    drop_list_numbers,
    restore_known_words,
    drop_masked_phrases,
    drop_masked_words,
    normalize_whitespace,
    capitalize_sentences,
)


@lru_cache(maxsize=2**13)  # a section is cleaned where it is read, and again where it becomes part of a target text
def clean_report_text(text: str) -> str:
    """Apply all ``RULES`` until they change nothing; the result may be empty."""
    for _ in range(_ROUNDS):
        before = text
        for rule in RULES:
            text = rule(text)
        if text == before:
            break
    return text


def split_sentences(text: str) -> list[str]:
    """Split at full stops that end a sentence (not inside ``1.5``, ``Dr. Smith`` or ``7 a.m. shows``)."""
    return [part.strip() for part in _SENTENCE_END.split(text) if part.strip()]


def normalize_for_dedup(text: str) -> str:
    """Reduce a text to its lower-case words; reports with equal results are duplicates."""
    return " ".join(re.findall(r"[a-z0-9]+", to_plain_characters(text).lower()))
