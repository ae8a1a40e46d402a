"""Memory banks: their storage, the encoding of reports, and how rows are sampled."""
