"""Text of reports: sections, sentences, labels, statements and their details."""
