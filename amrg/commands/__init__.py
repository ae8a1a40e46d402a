"""The verbs of the ``amrg`` command beside the steps of the pipeline; each module has one ``main``."""
