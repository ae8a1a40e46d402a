"""The 14 labels of CheXpert in AM-MRG's order. Every reader maps labels by name, never by position."""

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

#: Every label but "No Finding", which is the absence of the others.
FINDINGS: tuple[str, ...] = LABELS[:-1]

#: Values of a label: present, absent, uncertain, not mentioned (CheXpert's 1 / 0 / -1 / blank).
POSITIVE, NEGATIVE, UNCERTAIN, BLANK = 1.0, 0.0, -1.0, None
