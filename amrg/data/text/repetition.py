"""Tokens of a report, and patterns of degenerate text: repetition, stereotypes, and references to prior films."""

import re
from collections import Counter
from collections.abc import Sequence

from amrg.data.text.cleaning import normalize_for_dedup, to_plain_characters

_TOKEN = re.compile(r"\d+(?:\.\d+)+|[^\W_]+(?:['/-][^\W_]+)*")

_FILM = r"(?:exam\w*|stud(?:y|ies)|films?|radiographs?|images?|imaging|x-?rays?|ct|priors?)"
_PRIOR = r"(?:prior|previous|last|earlier|old(?:er)?|comparison|preceding|baseline)"
_FINDINGS = (
    r"(?:effusions?|edema|pneumothora\w+|consolidations?|atelectasis|congestion|infiltrates?|opacit(?:y|ies)|nodules?"
    r"|mass(?:es)?|lesions?|collapse|pneumonia|densit(?:y|ies)|disease)"
)
_GROWN = r"(?:increas|decreas|reduc|diminish|enlarg|worsen|improv|progress|regress)"
#: References to a prior film, which are hallucinated if the model has one film (Ramesh et al. 2022, arXiv:2210.06340).
_COMPARES = re.compile(
    r"\b(?:again|still|unchanged|unaltered|stable|interval|interim|since|new|newly|now|no longer|previously|formerly"
    r"|improv(?:ed|ing|ement)|worsen(?:ed|ing)|resolv(?:ed|ing)|resolution|progress(?:ed|ion|ing)|regress(?:ed|ion|ing)"
    r"|persist(?:s|ent|ently|ing)?|remain(?:s|ed)?|continue[sd]?|re-?(?:demonstrat|identif|visualiz|accumulat)\w*"
    r"|recurred"
    # another film, or its time
    r"|(?:compared|comparison|similar|identical|relative)(?: is made| was made| in \w+)? (?:to|with) (?:[\w-]+ ){0,4}?"
    rf"(?:{_PRIOR}|{_FILM}|xxxx|yesterday|\d)|{_PRIOR} (?:\w+ )?{_FILM}|(?:from|than|on"
    rf"|since) (?:the )?{_PRIOR}(?=\W*$|[,.;)])"
    r"|yesterday|last (?:night|week|month|year|time)|(?:\w+ )?(?:hours?|days?|weeks?|months?|years?) (?:ago|earlier"
    r"|prior)"
    r"|(?:as|than|seen|noted|present|described|identified) (?:before|earlier)"
    # a change
    r"|(?:no|without) (?:(?:significant|interval|acute|appreciable|definite|substantial|obvious) )*(?:change"
    r"|difference)"
    r"|(?:has|have|had)(?: (?:not|also|now|further|since|yet|almost|\w+ly))* (?:increased|decreased|enlarged|cleared"
    r"|diminished|grown"
    r"|shrunk|changed|returned|moved|migrated|developed|appeared|disappeared|evolved|reduced|lessened|abated|subsided"
    r"|re-?expanded"
    r"|gone|become|been (?:\w+ly )?(?:removed|withdrawn|advanced|repositioned|exchanged|replaced|pulled|retracted"
    r"|placed"
    r"|inserted|extubated|intubated|discontinued))"
    r"|(?:has|have) been (?:an? )?(?:\w+ ){0,2}(?:increase|decrease|reduction|clearing|resolution|removal|withdrawal"
    r"|placement|growth"
    r"|enlargement|development|extubation)"
    rf"|(?:was|were) (?:removed|withdrawn|pulled|taken out)|once more|recurrent {_FINDINGS}"
    r"|changes? in (?:the )?(?:position|size|appearance|extent)|(?:increase|decrease|reduction|growth) (?:in|of)"
    rf" (?:(?:the|size|extent|amount|of|left|right|bilateral|pleural|pulmonary) )*{_FINDINGS}"
    r"|removal of|(?<!surgically )removed|extubat\w+"
    r"|(?:more|less) (?:prominent|conspicuous|extensive|severe|dense)(?! (?:on|in|at|than))"
    r"|(?:increas|decreas|enlarg|grow|diminish|shrink|clear|re-?expand)ing|clearance of|re-?expansion"
    r"|(?:in|de)creased (?:(?!than)[\w-]+ ){0,2}(?:effusions?|edema|pneumothora\w+|consolidations?|atelectasis"
    r"|congestion)"
    rf"|{_FINDINGS}(?: (?:is|are|appears?|now|somewhat|slightly|\w+ly))* (?:{_GROWN}ed\b(?! (?:than|on the|in the))"
    rf"|(?:larger|smaller"
    r"|bigger|worse)(?! than))"
    r"|(?:larger|smaller|bigger|worse|better|greater|(?:more|less) \w+) than (?:(?:on|in|at|it|they|the|was"
    r"|were) ){0,3}"
    rf"(?:yesterday|before|{_PRIOR}|initially))\b",
    re.IGNORECASE,
)

#: Advice for a later film, which tells of no earlier one.
_ADVICE = re.compile(
    r"\b(?:to|for|until|ensure|assure|document|confirm|establish)(?: \w+)? (?:resolution|clearing|improvement)\b",
    re.IGNORECASE,
)

#: Words of sentences about normal anatomy, and words that such a sentence does not contain.
_NORMAL = re.compile(
    r"\b(?:no|not|without|negative|free|normal|clear|intact|unremarkable|midline|within|grossly)\b", re.IGNORECASE
)
_ABNORMAL = re.compile(
    r"\b(?:degenerat\w*|spondyl\w*|osteophyt\w*|\w*scolio\w*|kypho\w*|curvature|tortuo\w*|ectat\w*|ectasia|unfold\w*|"
    r"\w*calcif\w*|calcic|atheroscl\w*|hyper(?:inflat|expan|lucen|aerat)\w*|emphysem\w*|copd|hypoinflat\w*|shallow|"
    r"low (?:lung )?volumes?|volumes? (?:are|is) low|crowding|elevat\w*|eventrat\w*|flatten\w*|blunt\w*|herni\w*|"
    r"deformit\w*|clips?|sternotomy|cabg|surg\w*|post-?op\w*|wires?|scar\w*|fibro\w*|thicken\w*|prominen\w*|"
    r"markings?|\d+ ?[cm]m|osteopen\w*|demineral\w*|wedg\w*|fullness|limited|rotat\w*|chronic|old|prior|history)\b",
    re.IGNORECASE,
)
_DENIED = re.compile(r"^(?:there (?:is|are) )?(?:no|without)\b[^.]*$", re.IGNORECASE)
_WELL = re.compile(
    r"\b(?:no|without|negative for)\b[^.]*\b(?:acute|active)\b[^.]*"
    r"\b(?:diseases?|abnormalit\w+|process\w*|findings?|chest)\b",
    re.IGNORECASE,
)
#: Words that presuppose a finding.
_EXCEPTS = re.compile(r"\b(?:otherwise|remainder|remaining|apart from|aside from|other than|except)\b", re.IGNORECASE)

#: A report is repetitive if the same ``LOOP_NGRAM`` words occur ``LOOP_TIMES`` times.
LOOP_NGRAM, LOOP_TIMES = 4, 3


def tokenize_words(text: str) -> list[str]:
    """Return the lower-case words and numbers of a text (close to PTB tokens without punctuation).

    Typographic quotes, hyphens and ligatures count as plain ones.
    """
    return _TOKEN.findall(to_plain_characters(text).lower())


def ngrams_of_words(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Return all n-grams of the words, in order."""
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def is_repetitive(words: Sequence[str]) -> bool:
    """Whether an n-gram occurs ``LOOP_TIMES`` times or more."""
    return max(Counter(ngrams_of_words(words, LOOP_NGRAM)).values(), default=0) >= LOOP_TIMES


def mentions_prior(text: str) -> bool:
    """Whether a text mentions a change or a prior film."""
    return _COMPARES.search(_ADVICE.sub(" ", text)) is not None


def says_normal_anatomy(sentence: str) -> bool:
    """Whether a sentence without a finding describes normal anatomy and no abnormality."""
    return _NORMAL.search(sentence) is not None and (
        _ABNORMAL.search(sentence) is None or _DENIED.match(sentence) is not None
    )


def says_all_is_well(sentence: str) -> bool:
    """Whether a sentence states that there is no acute disease."""
    return _WELL.search(sentence) is not None


def presupposes_finding(sentence: str) -> bool:
    """Whether a sentence presupposes a finding ("otherwise clear")."""
    return _EXCEPTS.search(sentence) is not None


def most_common_share(texts: Sequence[str]) -> float:
    """Return the share of the most frequent report, compared by words."""
    return max(Counter(map(normalize_for_dedup, texts)).values()) / len(texts)
