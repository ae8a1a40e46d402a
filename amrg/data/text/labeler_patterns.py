"""Patterns of the report labeler: mentions of the 14 labels, normal statements, negation and uncertainty cues.

Every entry is a regular expression over lower-case text. A mention names one or more labels. If several entries match
at one position, the earlier wins, so exclusions (``pericardial effusion``) come before the mentions they would trigger.
"""

from amrg.data.labels import LABELS

assert "No Finding" in LABELS  # decided by a rule, without phrases

#: Words between a structure and its predicate: no new clause, no other structure, no "normal" by itself.
_GAP = (
    r"(?:[\s,/]+(?!(?:but|however|and|with|without|which|there|lungs?|pulmonary|lymph|nodes?|aort\w+|hil\w+|mediastin\w+"
    r"|normal(?! (?:to|or)\b))\b)[\w'-]+){0,8}?[\s,/]+"
)
_HEART = (
    r"(?:heart|cardiac)(?:[\s-]+(?:size|silhouettes?|shadow|contours?|borders?|diameter|outline))*"
    r"|cardio\s?-?pericardial silhouette"
)
_MEDIASTINUM = (
    r"(?:cardio\s?-?mediastin(?:al|um)|mediastin(?:al|um))"
    r"(?:\s+(?:silhouettes?|contours?|structures?|shadow|size|width))*"
)
_LARGE = (
    r"(?:enlarge(?:d|ment)|prominen(?:t|ce)|increased in size|widen(?:ed|ing)|dilated"
    r"|larger?(?! (?!than\b|in\b|but\b|and\b|since\b)\w)|increased)"
)

#: (labels, expression) of a mention. An empty tuple consumes the words without a label.
MENTIONS: tuple[tuple[tuple[str, ...], str], ...] = (
    # phrases that resemble a finding
    ((), r"pericardial (?:effusions?|fluid)|(?:subdiaphragmatic|joint) effusions?"),
    (
        (),
        r"(?:breast|thyroid|nipple|skin|hilar|mediastinal|abdominal|soft tissue|adrenal) (?:mass(?:es)?|nodules?"
        r"|shadows?)",
    ),
    (
        (),
        r"body mass|bone mass|muscle mass|(?:prior|old|previous|remote|healed|granulomatous"
        r"|tubercul\w+) infections?",
    ),
    ((), r"(?:splenic|spleen|hepatic|liver) granulomas?|retrosternal air\s?space|vertebral(?: body)? collapse"),
    (
        (),
        r"fractures? may not be|(?:catheter|lead|wire|screw)(?: is| are)? fractur\w+|fractured (?:\w+ )?(?:leads?"
        r"|wires?|screws?)",
    ),
    (
        (),
        r"(?:breast|humer\w+|shoulder|hip|knee|joint) (?:prosthe\w+|replacements?)|(?:humer\w+|clavic\w+) fixation",
    ),
    ((), r"mass effect|(?:compression )?deformit(?:y|ies)|soft tissue (?:densit(?:y|ies)|opacit(?:y|ies))"),
    # heart and mediastinum
    (("Cardiomegaly",), r"cardiomegaly|cardiac enlargement|megalocardia"),
    (
        ("Cardiomegaly",),
        r"enlarge(?:d|ment)(?: of)?(?: the)?(?: cardiac| heart)(?: (?:silhouette|size|shadow|contour))?",
    ),
    (("Cardiomegaly",), rf"(?:{_HEART})(?:{_GAP})(?:borderline(?: enlarged)?|{_LARGE})"),
    (("Cardiomegaly",), rf"{_LARGE} (?:of )?(?:the )?(?:{_HEART})"),
    (("Cardiomegaly",), rf"borderline(?: in)? (?:{_HEART})"),
    (("Cardiomegaly",), r"(?:left|right) (?:ventricular|atrial) enlargement"),
    (("Cardiomegaly",), rf"increase in (?:the )?(?:{_HEART})"),
    (("Cardiomegaly",), rf"{_LARGE} (?:of )?(?:the )?cardio\s?-?mediastinal silhouettes?"),
    (("Cardiomegaly",), rf"cardio\s?-?mediastinal silhouettes?(?:{_GAP}){_LARGE}"),
    (("Enlarged Cardiomediastinum",), rf"(?:{_MEDIASTINUM})(?:{_GAP}){_LARGE}"),
    (("Enlarged Cardiomediastinum",), rf"{_LARGE} (?:of )?(?:the )?(?:superior |upper |right )?(?:{_MEDIASTINUM})"),
    (
        ("Enlarged Cardiomediastinum",),
        r"paratracheal (?:prominence|fullness|widening)|mediastinal (?:fullness|widening)",
    ),
    # pleura
    (("Pneumothorax", "Pleural Effusion"), r"(?:hydro|haemo|hemo)-?\s?pneumothora(?:x|ces)"),
    (("Pneumothorax",), r"pneumothora(?:x|ces)|pneumo-thorax|pleural air\b|air in the pleural space"),
    (
        ("Pleural Effusion",),
        r"effusions?|pleural fluid|(?:hydro|haemo|hemo|chylo)-?thorax|empyema|fluid in the (?:pleura|fissures?)",
    ),
    (
        ("Pleural Other",),
        r"(?:bi)?(?:pleural|pleuro|pleuroparenchymal|fibronodular pleural)(?:[\s/-]+(?:and|or|based|apical"
        r"|parenchymal|"
        r"pericardial))*[\s/-]+(?:thickening|scar(?:ring|s)?|plaques?|calcifications?|fibrosis|capp?(?:s|ing)?)"
        r"|(?:bi)?apical (?:thickening|caps?)|fibronodular thickening|fissural thickening"
        r"|thickening of (?:the )?(?:\w+ )?(?:pleura|fissures?)|fibrothorax|pleural reaction|pleural disease",
    ),
    # lungs
    (("Pneumonia",), r"(?:broncho)?pneumonias?|pneumonitis|infect(?:ion|ious|ive)(?: process| etiology)?s?"),
    (
        ("Lung Lesion",),
        r"(?:nodular|mass-?like|rounded|round) (?:(?:left|right|upper|mid|middle|lower|lung|lobe|apical|basilar) ){0,3}"
        r"(?:opacit(?:y|ies)|densit(?:y|ies)|opacification|lesions?)"
        r"|(?:micro)?nodul(?:es?|arity)"
        r"|mass(?:es)?|granulomas?|granulomata|cavitary lesions?|lung lesions?|pulmonary lesions?|neoplas\w+"
        r"|carcinoma|tumou?rs?"
        r"|metasta(?:sis|ses|tic)\w*|malignan\w+",
    ),
    (("Consolidation",), r"consolidat\w+"),
    (
        ("Edema",),
        r"(?<!soft tissue )(?:o?edema)|heart failure|chf|vascular (?:congestion|redistribution|engorgement)"
        r"|pulmonary (?:venous )?congestion"
        r"|(?:central |pulmonary |lung )*vascular(?:ity)? prominence|(?:prominen(?:t|ce)|increased|engorged"
        r"|congested)(?: of)?(?: the)?(?: central| pulmonary| lung)*"
        r" vascul(?:ar\b|arity|ature)|(?:pulmonary|lung|central) vascul(?:arity|ature)(?: is| are| appears?"
        r"| remains?)?(?: \w+)? (?:prominent|increased|engorged|congested)"
        r"|pulmonary venous hypertension|(?:mild|moderate|vascular|venous|central) congestion|cephalization"
        r"|kerley(?: b)?(?: lines)?|fluid overload|volume overload|congestive (?:failure|changes)",
    ),
    (("Atelectasis",), r"atelecta\w*|collaps(?:e|ed)\b(?! of (?:the |a )?(?:\w+ )?vertebra)"),
    (
        ("Lung Opacity",),
        r"opacit(?:y|ies)|opacifications?|haziness|opacified|infiltrat\w+|air\s?-?space (?:disease|process"
        r"|densit(?:y|ies)|opacit(?:y|ies))"
        r"|airspace|(?:parenchymal|lung|basilar|basal|lobe|perihilar|retrocardiac|patchy|hazy|streaky|linear"
        r"|interstitial) densit(?:y|ies)"
        r"|alveolar disease"
        r"|densit(?:y|ies)(?=,? (?:\w+ ){0,5}(?:lungs?|midlungs?|lobes?|bas(?:e|es|ilar)|lingula|perihilar"
        r"|suprahilar)\b)",
    ),
    # bones and devices
    (("Fracture",), r"fractur\w+"),
    (
        ("Support Devices",),
        r"pacemakers?|pacers?|pacing|(?:aicd|icd)s?|defibrillators?"
        r"|(?:picc?|central|central venous|venous|vascular|arterial|dialysis"
        r"|subclavian|jugular|ij|port) "
        r"(?:lines?|caths?)|catheters?|port-?a-?caths?|mediports?|infusaports?|chest ports?|picc|port(?= (?:is|tip"
        r"|with|catheter|in))"
        r"|shunt|portacatheter|tubing|(?:spine|spinal|cervical|thoracic|lumbar) fusion|tip (?:\w+ ){0,6}(?:svc"
        r"|cavoatrial|caval|vena cava)"
        r"|(?:ivc|vena cava|caval) filter|tips(?= (?:noted|is|in))"
        r"|(?:endotracheal|tracheostomy|nasogastric|orogastric|og"
        r"|enteric|feeding|chest|ng|et|ett|drainage|gastric|g) tubes?|tubes?|tracheostomy|ett"
        r"|(?:prosthetic|mechanical|artificial)[\w\s]{0,20}valves?|valve (?:replacement|prosthesis)|prosthe(?:sis"
        r"|ses|tic)|stents?"
        r"|hardware|generator|(?:neuro)?stimulators?|leads?\b|dobbhoff|sheath|swan-ganz|drains?"
        r"|(?:closure|cardiac|assist|support(?:ing|ive)?|monitoring) devices?"
        r"|balloon pump|lvad|ecmo|cannulas?|pigtail"
        r"|implant(?:ed|s)?(?: \w+)? devices?|rods?|fixation|vagal nerve",
    ),
)

#: (labels, expression) of statements that a structure is normal, so that the finding is absent.
NORMALS: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("Cardiomegaly",),
        rf"(?:normal|unremarkable)(?: (?:in|appearance|appearing|size|of|the|configuration|and))*(?: {_HEART})",
    ),
    (
        ("Cardiomegaly",),
        rf"(?:{_HEART})(?:[\s,]+(?!but\b|however\b)[\w'-]+){{0,8}}?[\s,]+"
        r"(?:normal|unremarkable|within limits|(?:at )?(?:the )?upper limits? (?:of )?normal|top normal"
        r"|not (?:\w+ )?enlarged)",
    ),
    (("Enlarged Cardiomediastinum",), rf"(?:normal|unremarkable)(?: [\w,]+){{0,4}}? (?:{_MEDIASTINUM})"),
    (
        ("Enlarged Cardiomediastinum",),
        rf"(?:{_MEDIASTINUM})(?:[\s,]+(?!but\b|however\b)[\w'-]+){{0,8}}?[\s,]+(?:normal|unremarkable|within limits)",
    ),
    (("Pleural Effusion",), r"pleural spaces? (?:is|are) (?:clear|unremarkable|normal)"),
    (("Lung Opacity",), r"(?:lungs?|lung fields?)(?: [\w,]+){0,3}? clear\b(?! of)|clear lungs?"),
    (
        ("Fracture",),
        r"(?:bon(?:es|y)|osseous|ribs?|skelet\w+)(?: [\w,]+){0,5}? (?:intact|unremarkable|normal)",
    ),
)

#: Phrases that resemble negation but do not concern presence; they are blanked before the cues are read.
PSEUDO = (
    r"(?:no|without)(?: (?:significant|interval|appreciable|definite|substantial|gross|obvious|major|evidence of"
    r"|acute|short-?term))*"
    r" (?:change|increase|decrease|improvement|worsening|progression|enlargement of)s?(?: (?:in|of|from|to|since))?"
    r"|not (?:significantly |appreciably |substantially )?(?:changed|increased|decreased|improved|only|well"
    r"|completely|included)"
    r"|no longer than|near(?:ly|-)?(?: complete(?:ly)?)? resol(?:ved|ution of)|without (?:overt )?difficulty"
    r"|may be (?:obtained|helpful|considered)|no comparison|no prior"
)

PRE_NEGATION = (
    r"no longer|no|not|neither|nor|without|negative for|free of|clear of|absence of|absent|lack of|denies|rather than"
    r"|resolved|resolution of"
    r"|clearing of|removal of|excludes?|rule[sd] out|never|unlikely to (?:be|represent|reflect)"
)
POST_NEGATION = (
    r"(?:(?:is|are|was|were|has|have|been|not|be|now|since|completely|interval(?:ly)?)[\s-]+)*"
    r"(?:not (?:\w+ )?(?:seen|identified|present|visualized|evident|demonstrated|detected|appreciated|noted"
    r"|visible|apparent)"
    r"|no longer (?:\w+ )?(?:seen|identified|present|visualized|evident|visible)"
    r"|(?:appears? )?(?:within|normal)(?: \w+){0,2} (?:limits?|normal)|absent|resolved|cleared|removed|excluded"
    r"|ruled out|unlikely|negative)"
)
PRE_UNCERTAIN = (
    r"(?:can\s?not|can't|not|difficult to|unable to|could not|does not)(?: \w+)? (?:exclude|rule out)"
    r"|may(?! be (?:obtained|helpful))|might"
    r"|could|possib(?:le|ly)|possibility of|question(?:able|ed)?(?: of)?|concern(?:ing|s)?(?: for)?|suspicio(?:us"
    r"|n)(?: for| of)?|suspected"
    r"|suggest(?:s|ing|ive|ed)?(?: of)?|equivocal|versus|vs|potential(?:ly)?|presumed|presumably|cannot be certain"
    r"|differential|alternatively|please correlate|correlat(?:e|ion)(?: clinically)?(?: as to| with| for)?"
    r"|(?:eval|evaluate|evaluation|assess|assessment|sensitivity) (?:for|of|to detect)"
    r"|suggestion of|doubtful|favor(?:s|ed|ing)?|less likely|either"
    r"|in the (?:appropriate|right|proper|correct) clinical"
    r"|worrisome(?: for)?|consider(?:ation for)?|to exclude|rule out|if"
)
POST_UNCERTAIN = (
    r"(?:is|are|can\s?not|can not|could|may|might|would|be|not|difficult to|cannot)(?: \w+){0,4}? (?:excluded?"
    r"|ruled out|possible|considered|suspected)"
    r"|not (?:entirely |completely |definitely )?excluded|versus|vs|(?:is|are|remains?) (?:a )?(?:possible"
    r"|possibility|question(?:able|ed)|equivocal)"
    r"|(?:would be|is) (?:a|another) (?:\w+ )?(?:consideration|possibility)|could be (?:considered|present)"
    r"|may be (?:present|considered)|suspected|(?:is |are )?(?:less likely|doubtful)"
    r"|in the (?:appropriate|right|proper|correct) clinical"
)

#: "History of pneumonia" does not concern the film.
PRE_HISTORY = r"history of|h/o"

#: A mention with its own predicate is a new assertion: "no infiltrate, left effusion is unchanged".
POST_ASSERTION = (
    r"(?:(?:is|are|has|have|remains?|appears?|again|been|now|not)\s+)*"
    r"(?:unchanged|stable|changed|increased|decreased|improved|worsened|larger|smaller|small|moderate|large|persists?"
    r"|remains?)"
)

#: End of the scope of a cue: a new clause, or a comma before a new assertion.
TERMINATION = (
    r"\b(?:but|however|although|though|except|otherwise|which|there (?:is|are|has|have)|apart from|aside from"
    r"|other than|besides"
    r"|because of|as well as|with(?= (?:\w+ )?(?:stable|mild|moderate|small|minimal|unchanged"
    r"|persistent|bibasilar|left|right|residual|associated|adjacent|low|chronic|interval|streaky|patchy"
    r"|subsegmental)))\b"
    r"|\b(?:seen|identified|noted|visualized|evident|appreciated|demonstrated|present)(?=,(?!\s*(?:or|nor)\b))"
    r"|[:(]|,(?=\s*(?:and )?(?:stable|mild|moderate|severe|minimal|unchanged|persistent|status|there|normal|heart"
    r"|lungs?|the|mildly|stably|low"
    r"|bibasilar|improved|interval|again|clear|calcified|chronic|old|borderline)\b)"
)
