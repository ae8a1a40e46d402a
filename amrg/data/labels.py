"""The 14 labels, in AM-MRG's order (CheXpert's set). Every reader maps onto them by name, never by position."""

LABELS: tuple[str, ...] = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
    "No Finding",
)

NO_FINDING = "No Finding"

#: Findings proper: every label but "No Finding", which is the absence of the others and never mined as if it were one.
FINDINGS: tuple[str, ...] = LABELS[:-1]

#: Values of a label: present, absent, uncertain, not mentioned (CheXpert's 1 / 0 / -1 / blank).
POSITIVE, NEGATIVE, UNCERTAIN, BLANK = 1.0, 0.0, -1.0, None
