"""Loading of the films of a study from their files."""

from collections.abc import Iterable
from pathlib import Path

from amrg.data.context import Context
from amrg.data.image_io import load_film, read_patient
from amrg.data.studies import StudyImages

_DICOM = (".dcm", ".dicom")


def load_study_films(paths: Iterable[Path], short_side: int) -> StudyImages:
    """Load films as ``load_film`` does, with the age and sex that the first DICOM film with such tags tells.

    Raises:
        ValueError, OSError: as of ``load_film``.
    """
    views, context = [], Context()
    for path in paths:
        views.append(load_film(path, short_side))
        if path.suffix.lower() in _DICOM:
            context = context.filled(read_patient(path.read_bytes()))
    return StudyImages(views, context=context)
