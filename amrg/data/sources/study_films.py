"""Loading of the films of a study from their files."""

from collections.abc import Iterable
from pathlib import Path

from amrg.data.context import Context
from amrg.data.dicom_io import read_dicom_patient
from amrg.data.image_io import load_film_file
from amrg.data.studies import StudyImages

_DICOM = (".dcm", ".dicom")


def load_study_films(paths: Iterable[Path], short_side: int) -> StudyImages:
    """Load films as ``load_film_file`` does, with the age and sex that the first DICOM film with such tags tells.

    Raises:
        ValueError, OSError: as of ``load_film_file``.
    """
    views, context = [], Context()
    for path in paths:
        views.append(load_film_file(path, short_side))
        if path.suffix.lower() in _DICOM:
            context = context.filled(read_dicom_patient(path.read_bytes()))
    return StudyImages(views, context=context)
