"""What a person looks at: overlays, plots and the self-contained HTML page."""

#: What every page and command that shows reports says.
NOT_CLINICAL_NOTICE = "Research software. Not for clinical use."
#: What they say of the embedded data as well (design, section 7).
EMBEDDED_DATA_NOTICE = (
    "Real reports, real anatomy of one person, rendered lesions: every film is a simulated radiograph of one CT with "
    "the reported lesions painted in. The scores measure the detection of painted lesions and say nothing clinical."
)
