"""Patterns of the details of a statement: sides, zones, severities, changes, sizes, devices.

Every entry is a regular expression over a lower-case sentence with single spaces, as in
``amrg/data/text/labeler_patterns.py``.
"""

LEFT, RIGHT = frozenset({"left"}), frozenset({"right"})
BOTH = LEFT | RIGHT
UPPER, MIDDLE, LOWER = frozenset({"upper"}), frozenset({"middle"}), frozenset({"lower"})
NONE: frozenset[str] = frozenset()

_REGION = r"(?:lobes?|lobar|lungs?|lung (?:zones?|fields?)|zones?|chest|hemithora\w+|fields?|hemilung)"
_LEVEL = r"(?:upper|mid|middle|lower)"
#: "upper", "mid", "middle" and "lower" name a zone only if a part of the lung follows, after others of them.
_TO_REGION = rf"(?=(?:(?:,? (?:and|or|to) |[/,-] ?)(?:(?:left|right) )?{_LEVEL})*(?: (?:left|right))?[ -]?{_REGION}\b)"

#: (sides, zones, expression) of a place. The earlier entry wins if several match at one position.
PLACES: tuple[tuple[frozenset[str], frozenset[str], str], ...] = (
    (
        BOTH,
        NONE,
        r"(?:left|right)(?:[ -]sided)?,? (?:side )?(?:(?:slightly|somewhat|much) )?(?:greater|more|larger|worse|less"
        r"|bigger|>)(?: \w+){0,2}? (?:than|in|on) (?:the |on the )?(?:left|right)",
    ),
    (BOTH, LOWER, r"bi[ -]?bas(?:ilar|al)"),
    (BOTH, UPPER, r"bi[ -]?apical(?:ly)?"),
    (BOTH, NONE, r"bilateral(?:ly)?|both(?= (?!of\b|the (?:lateral|frontal))[a-z])"),
    (BOTH, NONE, r"throughout (?:the|both) lungs"),
    (LEFT, UPPER, r"lul"),
    (LEFT, LOWER, r"lll"),
    (RIGHT, UPPER, r"rul"),
    (RIGHT, MIDDLE, r"rml"),
    (RIGHT, LOWER, r"rll"),
    (LEFT, MIDDLE, r"lingular?"),
    (LEFT, NONE, r"left(?:[ -]?side[d]?)?"),
    (RIGHT, NONE, r"right(?:[ -]?side[d]?)?"),
    (NONE, UPPER, rf"upper{_TO_REGION}|ap(?:ex|ices|ical)"),
    (
        NONE,
        MIDDLE,
        rf"mid(?:dle)?{_TO_REGION}|mid[ -]?lungs?|central lungs?|(?:(?:peri|para|infra|supra|juxta)[ -]?)?hilar"
        r"|hilum|hila",
    ),
    (
        NONE,
        LOWER,
        rf"lower{_TO_REGION}|bas(?:e|es|ilar|al)|retro[ -]?cardiac|costo[ -]?phrenic",
    ),
)

#: Plurals that imply both sides without naming one.
PLURALS = r"bases|apices|hila|(?:upper|lower) (?:lobes|lungs|lung zones|zones)|costo[ -]?phrenic (?:angles|sulci)"

#: Places of other structures than the finding, blanked before places are read.
NO_PLACES = (
    r"(?:left|right)(?:[ -]sided)? (?:heart(?! (?:border|margin))|atri\w+|ventric\w+|main[ -]?stem|brachiocephalic"
    r"|innominate|aortic|upper quadrants?|lateral decubitus|anterior oblique|hip|neck)\b"
    r"|(?:tip|end)s? (?:\w+ ){0,8}(?:left|right)(?= (?:side )?(?:of|at) )|history of [^,]*"
)

#: Findings of lung or pleura without a label that can share a place with a labeled one: "left basilar
#: scarring/atelectasis".
LUNG_OTHERS = (
    r"scar(?:ring|s)?|cicatri\w+|fibro(?:sis|tic)|blunting|blunted|calcifications?|thickening|volume loss|granulomatous"
    r"|hypoventilation|crowding"
    r"|obscuration|aeration"
)
#: The same for a fracture.
BONE_OTHERS = r"(?:\w+ )?deformit(?:y|ies)"
#: Other targets of places, so that adjacent places are not attached to a labeled finding.
OTHERS = (
    r"(?:surgical )?clips?|sutures?|lymph (?:nodes?|xxxx)|(?:lymph)?adenopathy|emphysema\w*|hyperinflat\w+"
    r"|hyperexpan\w+|hyperlucen\w+|bulla\w*|degenerative|spondylosis|osteophytes?|\w*scoliosis|markings|mastectomy"
    r"|lobectomy|aort(?:a|ic)|tortuo\w+|arthroplasty|arthritis|bronchiectasis|cysts?|hernia|lucenc(?:y|ies)"
    r"|thoracotomy|cuffing|loculations?|hypoinflat\w+"
    r"|(?:elevat\w+|flatten\w+)(?: \w+){0,4} (?:hemi)?diaphragms?"
    r"|(?:hemi)?diaphragms?(?:(?: is| are| remains?| appears?)?(?: \w+)? (?:elevat\w+|flatten\w+))|eventration"
)

#: Severity → expression.
SEVERITIES: tuple[tuple[str, str], ...] = (
    (
        "mild",
        r"borderline|minimal(?:ly)?|mild(?:ly)?|small|trace|tiny|slight(?:ly)?|subtle|minor|top normal"
        r"|upper limits? (?:of )?normal",
    ),
    ("moderate", r"moderate(?:ly)?"),
    ("severe", r"large|severe(?:ly)?|marked(?:ly)?|extensive(?:ly)?|massive(?:ly)?|huge"),
)

#: Degrees of a change or a displacement, not of the finding.
NO_SEVERITIES = (
    r"(?:minimal|mild|slight|moderate|marked|severe)ly (?:displac|increas|decreas|improv|worse|larger|smaller|progress"
    r"|more|less|diminish|reduc|chang|differ)\w*"
    r"|(?:minimal|mild|slight|moderate|marked|severe|small|large) (?:interval )?(?:displacement|increase|decrease"
    r"|improvement|worsening|progression|change|reduction)"
)

#: Change → expression. "unchanged" comes first, since its phrases contain words of change.
CHANGES: tuple[tuple[str, str], ...] = (
    (
        "unchanged",
        r"(?:no|without|not)(?: (?:significant(?:ly)?|interval|appreciabl[ey]|definite|substantial(?:ly)?|gross(?:ly)?"
        r"|obvious|major|evidence of|acute))* (?:chang\w+|increas\w+|decreas\w+|improv\w+|worsen\w+|progress\w+)"
        r"|unchanged|stabl[ey]|persist\w*|similar"
        r"|again (?:seen|noted|demonstrated|identified|visualized|present|evident)",
    ),
    ("new", r"new(?:ly)?|(?:interval )?development of|(?:has|have) developed|developing"),
    (
        "improved",
        r"improv\w+|decreas\w+|smaller|diminish\w+|resol(?:ved|ving|ution)|clearing|regress\w+|less (?:prominent"
        r"|conspicuous|severe)|reduc\w+",
    ),
    ("worse", r"worse\w*|increas\w+|progress\w+|larger|enlarging|more (?:prominent|conspicuous|severe)"),
)
#: "Increased opacity" describes the film, not a change, unless an interval is mentioned.
NO_CHANGES = (
    r"(?<!interval )increased (?=(?:\w+ ){0,3}(?:densit|opaci|marking|lucen|vascul|interstitial))"
    r"|\b(?:to|for|until|ensure|assure|document|confirm)(?: \w+)? (?:resolution|clearing|improvement)\b"
)

SIZE = (
    r"(?P<a>\d+(?:\.\d+)?|\.\d+)(?: ?(?:mm|cm))?(?: ?(?:x|by) ?(?P<b>\d+(?:\.\d+)?|\.\d+)(?: ?(?:mm|cm))?)?"
    r"(?: ?(?:x|by) ?(?P<c>\d+(?:\.\d+)?))?[ -]?(?P<unit>mm|cm|millimet(?:er|re)s?|centimet(?:er|re)s?)\b"
    r"(?! (?:above|below|from|proximal|distal|superior|inferior|cephalad|past|beyond|into|short))"
)

#: Device → expression, searched in a mention and in the three words before it. The earlier entry wins.
DEVICE_WORDS: tuple[tuple[str, str], ...] = (
    ("monitoring lead", r"ekg|ecg|monitor\w*|telemetry|external"),
    ("pacemaker", r"pace\w*|pacing|defibrillat\w+|a?icds?|cardiac devices?"),
    ("port", r"ports?|port-?a-?caths?|portacath\w*|medi-?ports?|infusaports?"),
    ("picc", r"picc?|peripherally"),
    ("tracheostomy tube", r"tracheostomy"),
    ("endotracheal tube", r"endotracheal|ett?|extubat(?:ed|ion)"),
    ("enteric tube", r"nasogastric|orogastric|enteric|feeding|gastric|gastrostomy|ng|og|dobb?hoff|g tubes?"),
    ("chest tube", r"(?:chest|pleural) (?:tubes?|drains?|catheters?)|thoracostomy|pigtail"),
    ("central line", r"central|jugular|ij|subclavian|venous|dialysis|swan-ganz|arterial|vascular"),
    ("valve", r"valves?"),
    ("stent", r"stents?"),
    ("shunt", r"shunts?"),
    ("stimulator", r"(?:neuro)?stimulators?|vagal"),
    ("vena cava filter", r"filters?"),
    ("spinal hardware", r"fusion|rods?|(?:spin\w+|vertebral|cervical|thoracic|lumbar) (?:\w+ )?(?:fixation|hardware)"),
)
#: Parts of devices. A part belongs to the device named before it in the sentence, else it is this device.
DEVICE_PARTS: tuple[tuple[str, str], ...] = (
    ("", r"drain\w*"),
    ("stent", r"tips"),
    ("pacemaker", r"leads?|generator"),
    ("central line", r"cath\w*|tip .*|lines?|sheath"),
    ("", r"tubing|tubes?|devices?|hardware|cannulas?"),
)
