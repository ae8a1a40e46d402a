"""Verbs of the ``amrg`` command other than the steps; the first line of each module is its line in `amrg --help`."""
