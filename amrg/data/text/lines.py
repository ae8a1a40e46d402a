"""Line breaks of a report: the ends of statements without a full stop, and the folds of wrapped text.

Text wrapped at a column breaks where the next word did not fit. A break before a word that did fit, or before a capital
in text that has small letters, ends a statement. Letter case decides nothing in text of capitals only.
"""

import re

#: Report systems wrap at no fewer columns; a text whose lines are all shorter is not wrapped.
MIN_WIDTH = 45

#: All of one character, so that a text keeps its length.
_BREAKS = str.maketrans(dict.fromkeys("\r\v\f\x85\u2028\u2029", "\n"))
_BULLET = re.compile(r"(?:[-*•·▪>]|\(?\d{1,2}[.)](?!\d))\s*\S")
#: Last words that need another word.
_OPEN = re.compile(
    r"(?:[/(&+]|(?<=\s)-|\b(?:and|or|nor|but|with|without|of|in|at|on|to|from|for|by|over|than|as|the|an?|no|not|any|its|this"
    r"|is|are|was|were|be|been|has|have|had|may|might|could|can|should|would|will|which|that|versus|vs\.?|shows?"
    r"|demonstrates?|reveals?|represents?|suggests?|due|within|near|along|per|via))$",
    re.IGNORECASE,
)
#: Last words that mostly modify the next word.
_MODIFIER = re.compile(
    r"(?:[,-]|\b(?:left|right|bilateral|small|moderate|large|mild|minimal|tiny|trace|severe|stable|new|acute|chronic|old"
    r"|pleural|pulmonary|pericardial|cardiac|mediastinal|upper|mid|middle|lower|basilar|bibasilar|basal|apical|hilar"
    r"|perihilar|retrocardiac|focal|lobar|lobe|interval|significant|possible|probable|likely|suspected|persistent"
    r"|residual|adjacent|associated|underlying|superimposed|overlying|evidence|patchy|airspace|interstitial|vascular"
    r"|central|venous|chest|lung|heart|endotracheal|nasogastric|rib|\w+ly))$",
    re.IGNORECASE,
)
#: First words that need the words before them.
_CONTINUED = re.compile(
    r"(?:and|or|nor|with|of|in|at|on|to|from|for|by|than|as|which|that|is|are|was|were|has|have|had|remains?|appears?"
    r"|may|might|could|can|should|seen|noted|identified|within|overlying|projecting|terminat\w+|measur\w+"
    r"|represent\w*|suggest\w*|consistent|compatible|concerning|lobes?|silhouettes?|contours?|size)\b",
    re.IGNORECASE,
)
#: Words with a capital inside a sentence.
_NAME = re.compile(
    r"[^\W\d_]*[A-Z][^\W\d_]*[A-Z]|[A-Z]\b|(?:Dr|Drs|Mr|Mrs|Ms|Swan|Ganz|Port|Kerley|Dobb?hoff|Foley|Hickman|Broviac"
    r"|Hampton|Ghon|Pancoast|Morgagni|Bochdalek|Harrington|Schmorl|Jackson|Blake|Impella|January|February|March|April"
    r"|May|June|July|August|September|October|November|December)\b"
)
_STOP = re.compile(r"[.;:?!]$")


def unwrap_lines(text: str) -> str:
    """Return the text, of the same length, with line feeds only where a statement or paragraph ends, else spaces."""
    lines = text.replace("\r\n", " \n").translate(_BREAKS).split("\n")
    stripped = [line.strip() for line in lines]
    longest = max(map(len, stripped))
    cased = any(map(str.isupper, text)) and sum(map(str.islower, text)) > sum(map(str.isupper, text))
    stopped = any(line.endswith(".") for line in stripped)
    joined = lines[0]
    for before, after, line in zip(stripped, stripped[1:], lines[1:], strict=False):
        joined += ("\n" if _ends(before, after, longest, cased, stopped) else " ") + line
    return joined


def add_line_stops(text: str) -> str:
    """Return the text with a full stop after each line that ends a statement without one."""
    lines = [line.rstrip() for line in unwrap_lines(text).split("\n")]
    ended = [
        line if not line or _STOP.search(line) or _OPEN.search(line) else line.rstrip(",") + "." for line in lines[:-1]
    ]
    return "\n".join([*ended, lines[-1]])


def _ends(before: str, after: str, longest: int, cased: bool, stopped: bool) -> bool:
    """Whether the break between two lines ends a statement."""
    if not before or not after or _BULLET.match(after):
        return True
    if _STOP.search(before):
        return not before.endswith(":")
    if _OPEN.search(before):
        return False
    fits = len(before) + 1 + len(after.split()[0]) <= max(longest, MIN_WIDTH)
    if cased and after[0].isupper():
        return not _NAME.match(after) or (fits and not _MODIFIER.search(before))
    if _MODIFIER.search(before) or _CONTINUED.match(after):
        return False
    if cased:
        return longest < MIN_WIDTH and not stopped
    return fits
