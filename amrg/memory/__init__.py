"""The memory of a run, changed after training: studies added, banks exchanged, patients forgotten."""
