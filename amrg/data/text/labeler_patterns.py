"""Patterns of the report labeler: mentions of the 14 labels, normal statements, negation and uncertainty cues.

Every entry is a regular expression over lower-case text. A mention names one or more labels. If several entries match
at one position, the earlier wins, so exclusions (``pericardial effusion``) come before the mentions they would trigger.
"""

from amrg.data.labels import LABELS

assert "No Finding" in LABELS  # decided by a rule, without phrases

#: Words between a structure and its predicate: no new clause, no other structure, no "normal" by itself.
_GAP = (
    r"(?:\s*[:=]|\s-)?(?:[\s,/]+(?!(?:but|however|and|with|without|which|there|lungs?|pulmonary|lymph|nodes?|aort\w+"
    r"|hil\w+|mediastin\w+"
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

#: A second adjective before the structure: "enlarged but stable".
_ALSO = r"(?:,? (?:(?:but|and|yet|though) )?(?:(?:\w+ly|otherwise) )?(?:stable|unchanged|improv\w+|similar|smaller))?"
#: Words of denial, with those that a word has inside.
_NOT = r"(?:not|never|nowhere|can\s?not|\w+n't)"
_REMOVED = r"(?:removed|withdrawn|pulled|discontinued|extracted|explanted|taken out|cleared|resolved)"
_GONE = rf"(?:{_REMOVED}|resolve|clear|disappear(?:ed)?|gone|vanished|abated|subsided)"
_GOING = r"(?:resolution|clearing|clearance|disappearance|removal|withdrawal)"
_VISIBLE = (
    r"(?:seen|identified|present|visuali[sz]ed|evident|demonstrated|detected|appreciated|noted|visible|apparent"
    r"|discern(?:ed|ible)|recogni[sz](?:ed|able)|detectable|demonstrable|perceptible|found|made out|shown|there)"
)
#: Not "not well seen", which leaves the finding.
_HARDLY = r"(?:(?!(?:well|fully|completely|entirely|adequately|optimally|only|previously|as|so|further)\b)\w+ ){0,2}"
#: The earlier film, or its time.
_EARLIER = (
    r"(?:(?:on|in|at|by|from) (?:(?:the|any|an?|his|her|most|very|frontal|immediate\w*|chest) ){0,3}(?:prior|previous"
    r"|earlier"
    r"|old(?:er)?|last|preceding|comparison|initial|outside|baseline|first|recent|yesterday)\b"
    r"(?! (?:\w+ )?(?:or|and) (?:\w+ )?(?:current|present|today)\w*)"
    r"|(?:on|in) (?:\w+ ){0,3}(?:of|from|dated) (?:the )?(?:prior|previous|last|yesterday|earlier|xxxx|_+|\d)"
    r"|previously|before|earlier|yesterday|last (?:week|month|year|time|night)"
    r"|(?:\w+ ){1,2}(?:hours?|days?|weeks?|months?|years?) (?:ago|earlier|before|prior))"
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
    (("Cardiomegaly",), rf"{_LARGE}{_ALSO} (?:of )?(?:the )?(?:{_HEART})"),
    (("Cardiomegaly",), rf"borderline(?: in)? (?:{_HEART})"),
    (("Cardiomegaly",), r"(?:left|right) (?:ventricular|atrial) enlargement"),
    (("Cardiomegaly",), rf"increase in (?:the )?(?:{_HEART})"),
    (("Cardiomegaly",), rf"{_LARGE}{_ALSO} (?:of )?(?:the )?cardio\s?-?mediastinal silhouettes?"),
    (("Cardiomegaly",), rf"cardio\s?-?mediastinal silhouettes?(?:{_GAP}){_LARGE}"),
    (("Enlarged Cardiomediastinum",), rf"(?:{_MEDIASTINUM})(?:{_GAP}){_LARGE}"),
    (
        ("Enlarged Cardiomediastinum",),
        rf"{_LARGE}{_ALSO} (?:of )?(?:the )?(?:superior |upper |right )?(?:{_MEDIASTINUM})",
    ),
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
        r"|\w*carcinoma|tumou?rs?|(?:lung|pulmonary|bronchogenic|bronchial) cancers?(?! screening)"
        r"|cancers? of the (?:\w+ )?lungs?"
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

#: A predicate of normality follows; not "is not normal".
_ANY = r"(?:[\s,]+(?!(?:not|\w+n't)\b)[\w'-]+)"
_WORD = r"(?:[\s,]+(?!(?:but|however|not|\w+n't)\b)[\w'-]+)"
_COLON = r"(?:\s*[:=]|\s-)"
_IS = rf"(?:{_WORD}{{0,8}}?|{_WORD}{{0,4}}?{_COLON}{_WORD}{{0,4}}?)[\s,]+"
#: What a template says of a normal organ.
_FINE = r"(?:clear|normal|unremarkable|wnl|within normal limits|negative|no (?:\w+ )?abnormalit(?:y|ies))"
_END = r"(?=\s*(?:$|[,;(]|and\b|without\b|with no\b))"

#: (labels, expression) of statements that a structure is normal, so that the finding is absent.
NORMALS: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("Cardiomegaly",),
        rf"(?<!not )(?:normal|unremarkable)(?: (?:in|appearance|appearing|size|of|the|configuration"
        rf"|and))*(?: {_HEART})",
    ),
    (
        ("Cardiomegaly",),
        rf"(?:{_HEART}){_IS}(?:wnl|normal|unremarkable|within limits|(?:at )?(?:the )?upper limits? (?:of )?normal"
        rf"|top normal"
        r"|(?:not|\w+n't) (?:\w+ )?enlarged)",
    ),
    (("Enlarged Cardiomediastinum",), rf"(?<!not )(?:normal|unremarkable)(?: [\w,]+){{0,4}}? (?:{_MEDIASTINUM})"),
    (
        ("Enlarged Cardiomediastinum",),
        rf"(?:{_MEDIASTINUM}){_IS}(?:wnl|normal|unremarkable|within limits)",
    ),
    (
        ("Pleural Effusion",),
        r"pleural spaces? (?:is|are|appears?|remains?) (?:\w+ )?(?:clear|unremarkable|normal)"
        rf"|pleura[el]?(?: spaces?| surfaces?)?{_COLON}\s*{_FINE}{_END}"
        r"|costo[\s-]?phrenic (?:angles?|sulc\w+|recess\w*)(?:\s*[:=]|\s-)?(?:\s+(?!(?:not|\w+n't"
        r"|but)\b)[\w-]+){0,3}?\s+"
        r"(?:sharp(?:ly)?|clear|preserved|intact|normal|unremarkable|free|open|(?:not|\w+n't) (?:\w+ )?blunted)"
        r"|(?:no|without) (?:\w+ )?blunting of (?:\w+ ){0,3}costo[\s-]?phrenic"
        r"|(?:sharp|clear|normal|preserved|unblunted) (?:(?:and|left|right|lateral|posterior"
        r"|both) )*costo[\s-]?phrenic",
    ),
    (
        ("Lung Opacity",),
        rf"lungs?(?:/\w+)?(?:{_ANY}{{0,5}}?|{_ANY}{{0,3}}?{_COLON}{_ANY}{{0,4}}?)[\s,]+clear\b(?! of)|clear lungs?"
        rf"|lungs?(?:/\w+)?(?: (?:and|&|fields?|parenchyma|\w+ways?|pleurae?))*{_COLON}\s*{_FINE}{_END}",
    ),
    (
        ("Pleural Effusion",),
        rf"lungs?(?:/| and | & )(?:the )?pleura\w*(?: spaces?)?{_COLON}\s*{_FINE}{_END}",
    ),
    (
        ("Fracture",),
        rf"(?:bon(?:es|y)|osseous|ribs?|skelet\w+)(?:{_ANY}{{0,5}}?|{_ANY}{{0,3}}?{_COLON}{_ANY}{{0,3}}?)[\s,]+"
        r"(?:intact|unremarkable|normal|wnl)",
    ),
    (
        ("Support Devices",),
        rf"(?:lines?|devices?)(?:,? (?:and|or) \w+|/\w+)?{_COLON}\s*(?:none|no|nil|absent){_END}",
    ),
    (
        ("Support Devices",),
        r"(?:(?:interval|since|after|following|post|s/p|is|was|were|now|patient|pt"
        r"|(?<!not )(?<!yet )(?<!n't )(?<!never )(?<!may have )been) (?:\w+ly )?|(?<!\w )(?<!\w))extubat(?:ed|ion)",
    ),
)

#: Phrases that resemble negation but do not concern presence; they are blanked before the cues are read.
PSEUDO = (
    # a denied or partial disappearance is a presence
    rf"{_NOT}(?: (?:yet|been|be|now|quite|\w+ly))* {_GONE}"
    rf"|(?:fail(?:s|ed|ing|ure)?|yet) to (?:\w+ly )?{_GONE}"
    r"|(?:no|without|lack of|absence of)(?: (?:complete|full|total|entire|interval|significant|definite|evident|further"
    rf"|appreciable|substantial|radiographic|convincing|partial|evidence (?:of|for)|signs? of))* {_GOING}(?: of| in)?"
    r"|(?:near(?:ly)?|almost|virtually|largely|mostly|partial(?:ly)?|partly|incomplete(?:ly)?)"
    rf"[ -](?:(?:complete|entire|total)(?:ly)? |interval )?(?:{_GONE}|{_GOING}(?: of)?)"
    # a change, which presupposes the finding
    r"|(?:no|without)(?: (?:significant|interval|appreciable|definite|substantial|gross|obvious|major|evidence of"
    r"|acute|short-?term))*"
    r" (?:change|increase|decrease|improvement|worsening|progression|enlargement of)s?(?: (?:in|of|from|to|since))?"
    r"|not (?:significantly |appreciably |substantially )?(?:changed|increased|decreased|improved|only|well"
    r"|completely|included)"
    rf"|no longer than|{_NOT} (?:confirm|verify)(?: \w+){{0,2}} (?:position|placement|location)\w*"
    rf"|without (?:overt )?difficulty"
    r"|may be (?:obtained|helpful|considered)|(?:no|without) comparison|(?:no|without) prior|nothing more than"
    r"|(?:is|are|be) suggested|suggest(?= (?:\w+ ){0,2}(?:radiograph\w*|films?|follow\w*|ct|repeat|comparison|further"
    r"|imaging|views?|x-ray)\b)"
    rf"|{_GONE} (?:only |but )?(?:partial\w*|partly|incomplete\w*)"
    rf"|{_GOING} of(?=[^,;]*\b(?:is|are|has|was|were) (?:not|incomplete|only|partial))"
    # a purpose or advice presupposes the finding
    r"|(?:to (?:\w+ly )?(?:ensure|assure|insure|document|confirm|demonstrate|verify|establish|show|see|prove|monitor"
    r"|check"
    r"|assess|evaluate|await|follow)|ensur\w+|assur\w+|document(?:ing|ation of)?|confirmation of|until|await\w*|pending"
    r"|follow\w*(?:[ -]up)?(?: [\w-]+){0,5}? (?:to|until|till|for))"
    r"(?: (?:the|its|their|for|complete|full|interval|radiographic|expected|adequate|appropriate|eventual|subsequent))*"
    rf" {_GOING}(?: of)?"
    rf"|(?:should|could|can|may|might|must|would|will|needs? to|ought to|to) (?:\w+ )?be (?:\w+ )?{_REMOVED}"
    # the earlier film
    rf"|{_NOT} (?:\w+ ){{0,2}}{_VISIBLE} {_EARLIER}|(?:not previously|previously not|had not"
    rf"|hadn't) (?:\w+ )?{_VISIBLE}"
    rf"|absent {_EARLIER}|previously (?:absent|unseen)"
)

#: A device with a new place has not been removed.
_MOVED = (
    r"(?:to|into|back|by|about|approximately|slightly|minimally|partial\w*|somewhat|proximally|further|several|one|two"
    r"|three|\d|a (?:few|bit|little)|from .* to|(?:and|with) (?:(?:its|the) (?:distal )?tip|is now|now)|so|ends"
    r"|terminat\w+)"
)
PRE_NEGATION = (
    r"no longer|no (?:\w+ )?evidence that(?: there (?:is|are))?|no|not(?! all\b)|nothing|neither|nor|without"
    r"|negative (?:for|regarding|as to)|free (?:of|from)|clear of|absence of|absent|lack of|denies"
    r"|rather than|instead of|as opposed to|devoid of|(?!can't|couldn't)\w+n't"
    r"|(?:can\s?not|can't|couldn't|unable to) (?:be )?(?:see|identify|detect"
    rf"|appreciate|discern|find|visuali[sz]e|{_VISIBLE})|fail(?:s|ed|ure)? to (?:show|demonstrate|reveal|identify"
    rf"|detect)"
    r"|resolved|resolution of|clear(?:ing|ance) of|disappearance of|removal of|discontinuation of"
    rf"|withdrawal of(?!(?: [\w-]+){{1,6}} {_MOVED})|^\W*(?:interval(?:ly)? )?removed"
    r"|excludes|rule[sd] out|never|unlikely to (?:be|represent|reflect)"
)
POST_NEGATION = (
    r"(?:(?:is|are|was|were|has|have|had|can|could|do|does|did|been|be|now|also|all|both|since|completely"
    r"|interval(?:ly)?)[\s-]+)*"
    rf"(?:{_NOT} {_HARDLY}{_VISIBLE}|no longer (?:\w+ )?(?:{_VISIBLE}|in place|in situ)"
    r"|(?:appears? )?(?:within|normal)(?: \w+){0,2} (?:limits?|normal)|absent|resolved|cleared|disappeared|gone|removed"
    rf"|(?:withdrawn|pulled)(?!,? (?:now )?{_MOVED})|discontinued|explanted|extracted|taken out|out(?=\W*$)|excluded"
    r"|ruled out|unlikely|negative|lacking|removal|extraction|none(?= (?:is|are|was|seen|identified)|\W*$))"
)
#: What a template says of the finding before its colon or dash.
_NONE = (
    rf"(?:there (?:is|are) )?(?:none|no evidence|no|nil|neg|normal|denied)(?: {_VISIBLE})?"
    r"(?: (?:today|currently|now|at this time|bilaterally|on (?:this|either|both) \w+))?"
)
TEMPLATE_NEGATION = rf"(?:(?:left|right)\W+{_NONE}\W+(?:and )?(?:left|right)\W+{_NONE}|{_NONE})"
TEMPLATE_UNCERTAIN = r"(?:possible|possibly|questionable|suspected|equivocal|indeterminate|uncertain|maybe)"
PRE_UNCERTAIN = (
    rf"(?:{_NOT}|difficult to|unable to)(?: \w+)? (?:exclude|rule out|confirm|verify)(?: that(?: there (?:is|are))?)?"
    r"|exclude|(?:without|in|for|of) (?:excluding|exclusion of)|(?:whether|if) (?:or not )?(?:there (?:is|are) )?"
    r"|whether"
    r"|perhaps|at most|unconfirmed|insensitive (?:for|to)"
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
    r"(?!(?:is|are) (?:\w+ )?(?<!not )(?:excluded|ruled out))"
    rf"(?:(?:has|have) )?(?:is|are|could|may|might|would|be|{_NOT}|difficult to)(?: \w+){{0,4}}? (?:excluded?"
    r"|ruled out|possible|considered|suspected)"
    r"|(?:was|were) (?:\w+ )?suspected"
    # a finding that a second view does not bear out, or that the film can hide
    rf"|(?:(?:is|are|was|were|has|have|been|could|can) )*{_NOT} (?:\w+ ){{0,2}}(?:confirmed|corroborated|verified"
    rf"|substantiated"
    rf"|reproduced)|unconfirmed|(?:may|might|would) not (?:\w+ ){{0,2}}{_VISIBLE}"
    r"|(?:may|might|could|can|would) (?:\w+ )?be (?:\w+ )?(?:occult|missed|obscured|overlooked|hidden|masked|inapparent"
    r"|invisible|undetect\w+|difficult to \w+|hard to \w+)|(?:is|are) (?:easily|readily|often) (?:missed|overlooked"
    r"|obscured|hidden)"
    r"|(?:may|might|could|can|would) (?:\w+ )?(?:hide|escape|go undetected|lie hidden|exist)"
    r"|(?:(?:is|was|are|were|has|have|been) )*(?:neither confirmed|not confirmed or excluded)"
    r"|(?:(?:has|have|with) )?(?:no|without)(?: \w+){0,2} (?:confirmation|corroboration)|(?:may"
    r"|might) have (?:\w+ )?(?:resolved|cleared|been (?:removed|missed|obscured))"
    r"|not (?:entirely |completely |definitely )?excluded|versus|vs|(?:is|are|remains?) (?:a )?(?:possible"
    r"|possibility|question(?:able|ed)|equivocal)"
    r"|(?:would be|is) (?:a|another) (?:\w+ )?(?:consideration|possibility)|could be (?:considered|present)"
    r"|may be (?:present|considered)|suspected|(?:is |are )?(?:less likely|doubtful)"
    r"|in the (?:appropriate|right|proper|correct) clinical"
)

#: Stands for a question mark before what is asked: "opacity, ? pneumonia".
QUESTION = "\u00bf"
#: The answer to a question: "Effusion? None.", "Is there an effusion? Yes, a small one."
ANSWER = (
    rf"(?:{TEMPLATE_UNCERTAIN}|{_NONE}|negative|absent|unlikely|not (?:\w+ )?{_VISIBLE})\W*(?:[.;\n]|$)"
    r"|(?:yes|present|positive|small|tiny|trace|mild|minimal|moderate|large|severe|there (?:is|are))\b"
)

#: "History of pneumonia" does not concern the film.
PRE_HISTORY = r"history of|h/o"

#: Words of a fresh assertion: "no consolidation and a small effusion".
_FRESH = (
    r"(?:small|moderate|mild|minimal|tiny|trace|stable|unchanged|persistent|residual|slight|moderately|mildly|minimally"
    r"|borderline)"
)
#: Doubt of the finding before it: "effusions, if any, are small".
IF_ANY = (
    r",? ?\(?if (?:(?:any|real|at all)(?=\W*$|\W*[,;)]| (?:is|are|must|would|should|and)\b)|(?:\w+ ){0,2}present"
    r"|(?:it|they) exists?)"
)
#: The same in front: "if any, there is a small effusion", "if present, the effusion is small".
IF_ANY_IN_FRONT = (
    r"\W*if (?:(?:any|it is|they are) )?(?:any|present|real|at all),? (?:there (?:is|are) )?(?:[\w-]+ ){0,4}"
)
#: "A small one" and, in a clause of contrast, "it" stand for the finding before.
ONE = (
    r"(?:(?:an?|any|another) (?:[\w-]+ ){0,3}one|(?:very )?(?:small|tiny|subtle|early|minimal) ones?"
    r"|(?:known|old|prior|previous|existing|other|remaining) ones?|(?<=although )one|(?<=though )one|(?<=but )one"
    r"|(?<=although )(?:it|this|these|they)|(?<=though )(?:it|this|these|they)|(?<=but )(?:it|this|these|they))"
)
ONE_PRESENT = (
    rf"(?:(?:is|are|was|were|has|have|been|now|likely|again|remains?) )+(?:{_VISIBLE}|developed|appeared|stable"
    rf"|unchanged|larger"
    r"|smaller|new)|(?:on|in|at) the"
)

#: "Neither the effusion nor the atelectasis has changed" states both; ``a``, ``b`` and ``c`` are the words of denial.
_CHANGED = (
    rf"(?:(?:has|have|had|is|are|was|were)(?: (?!not\b)(?:been|yet|\w+ly))* (?:{_GONE}|changed|increased|decreased"
    rf"|improved"
    r"|worsened|progressed|enlarged|grown|moved|diminished|different|larger|smaller|bigger|worse|better)"
    r"|(?:shows?|demonstrates?)(?: any| \w+)? (?:changes?|improvement|progression))"
)
NEITHER_CHANGED = (
    rf"(?P<a>neither|none of)\b[^;:]*?(?:\b(?P<b>nor)\b[^;:]*?)?\b(?P<c>{_CHANGED})"
    rf"|(?P<d>nor (?:has|have|did|does))\b[^,;:]*?(?P<e>\b(?:{_GONE}|change\w*|increase\w*|decrease\w*|improve\w*)|$)"
)

_SIDED = r"(?:[ -]?sided)?"
_PARTS = r"(?: (?:pleural|basilar|basal|base|apical|upper|lower|middle|mid|lung|lobe|zone|hilar))*"
_CLEAR = r"(?: (?:significant|definite|evident|appreciable|convincing|discernible|visible|large))?"
#: "Small right and no left effusion": group ``no`` is the denied side, ``s`` and ``t`` the sides.
DENIED_SIDE = (
    rf"(?P<s>left|right){_SIDED}{_PARTS}(?:,|,? (?:and|but|with)) (?P<no>(?:no|without|not){_CLEAR} (?P<t>left"
    rf"|right){_SIDED})",
    rf"(?P<no>no{_CLEAR} (?P<s>left|right){_SIDED}{_PARTS})(?:,|,? (?:and|but|with)) (?:only )?(?:an? )?(?:very )?"
    rf"(?:(?:{_FRESH}|large|new|increas\w+|decreas\w+)(?: to (?:{_FRESH}|large))? )+(?P<t>left|right){_SIDED}",
)
#: Before "right and no left": a place, not a modifier.
SIDE_OF_PLACE = r"(?:\b(?:on|in|at|of|to|over)(?: [\w-]+){0,2}|\b(?:no|not|without|neither)\b[^,;]*)\s*$"

#: A mask at the start of a sentence, which may have been "No", with the words that follow in a denial.
MASKED_START = (
    r"\W*(?:there (?:is|are|was|were) )?(?:xxxx|_{2,})(?: (?:focal|acute|active|definite|evidence of"
    r"|pleural|large"
    r"|significant|pulmonary|lobar|new|discrete"
    r"|displaced|suspicious|overt|frank|gross|airspace|lung|rib|visible|other))* "
)
#: The end of such a sentence.
MASKED_END = (
    r"(?: (?:is|are|was|were))?(?: (?:clearly|definitely|otherwise))?(?: (?:seen|identified|noted|present"
    r"|visualized|evident|demonstrated|appreciated))?\W*"
)
#: What a purpose clause says of the finding is not so yet: "until the pneumonia has cleared".
PURPOSE = (
    r"\b(?:to (?:\w+ )?(?:ensure|assure|insure|document|confirm|verify|see|check|make sure|establish|show|demonstrate"
    r"|prove)"
    r"|until|till|unless|once|ensur\w+|whether|not all|some|much|part|most|half)\b[^,;]*$"
)
#: A denial that the next words take back.
UNDONE = (
    r"[^,;]{0,30},? but (?:(?:not|persists|remains) (?:on|in|at|from|completely|entirely|fully)\b|(?:is|are) now\b"
    r"|(?:has|have) (?:recurred|returned|reappeared)\b)"
)
#: "No effusion on the right, small on the left".
ELIDED = (
    rf" (?:on|in|at) the (?:left|right)(?: side)?,? (?:and |but |with )?(?:an? )?(?:{_FRESH}|large)(?: one| amount)?"
    r" (?:on|in|at) the (?:left|right)"
)

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
    r"|because of|as well as"
    r"|with(?= (?:\w+ )?(?:stable|mild|moderate|small|minimal|unchanged"
    r"|persistent|bibasilar|left|right|residual|associated|adjacent|low|chronic|interval|streaky|patchy"
    r"|subsegmental)))\b"
    r"|\b(?:seen|identified|noted|visualized|evident|appreciated|demonstrated|present)(?=,(?!\s*(?:or|nor)\b))"
    r"|[:(]|,(?=\s*(?:and )?(?:stable|mild|moderate"
    r"|severe|minimal|unchanged|persistent|status|there|normal|heart"
    r"|lungs?|the|mildly|stably|low"
    r"|bibasilar|improved|interval|again|clear|calcified|chronic|old|healed|healing|borderline)\b)"
)

#: The same for a negation only: "and" or a comma before a fresh assertion.
TERMINATION_OF_NEGATION = (
    rf"\band(?= (?:(?:an? |only |a very )+(?:{_FRESH}|left|right|new|large|severe|bilateral|enlarged|widened"
    rf"|prominent)|{_FRESH})\b)"
    r"|,(?= (?:an? )?(?:small|tiny|trace)\b(?![^;]*\b(?:or|nor)\b))"
)

#: "Rather than pneumonia, this is atelectasis": the comma that ends the denial, which a list may have before it.
INSTEAD = (
    r"^\W*(?:rather than|instead of|as opposed to)\b[^:]*?(?P<comma>,)(?! (?:or|nor)\b)"
    r"(?=[^,]*\b(?:is|are|was|were|has|have|may|might|could|appears?|represents?|suggests?|favou?rs?)\b"
    r"|(?![^,]* or )[^,]*$)"
)

#: "Effusion absent, consolidation present": the comma that ends a clause of its own.
CLOSED = r"\b(?:absent|resolved|cleared|gone)(?P<comma>,)(?! (?:or|nor|and)\b)"

#: Parts and places of a device that can be unseen while the device is there.
DEVICE_PART = (
    r"\b(?:tips?|ends?|side[ -]?(?:ports?|holes?)|distal (?:portion|end)|course|termination|position|location)\b[^,;]*$"
)
