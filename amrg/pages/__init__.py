"""Overlays, plots and the self-contained HTML pages."""

#: Notice on every page and command that shows reports.
NOT_CLINICAL_NOTICE = "Research software. Not for clinical use."
#: Additional notice for the embedded data (design, section 7).
EMBEDDED_DATA_NOTICE = (
    "Real reports, real anatomy of one person, rendered lesions: every film is a simulated radiograph of one CT with "
    "the reported lesions painted in. The scores measure the detection of painted lesions and say nothing clinical."
)
