"""Order of the films of Indiana University's collection (Open-i, R2Gen's IU X-ray), whose releases tell no views.

The torchxrayvision wheel, which the embedded data set is read from, holds the DICOM tags of all films and a list of
films that look frontal or lateral. ``ViewPosition`` alone does not do: 4 of 10 films that say PA are lateral ones.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import PurePosixPath

from amrg.data.film_checks import is_lateral_view
from amrg.data.sources.tables import find_wheel_file, read_csv_columns
from amrg.errors import UserError

#: Files of the wheel: package, version, name.
_TAGS = ("torchxrayvision", "1.5.7", "nlmcxr_dicom_metadata.csv.gz")
_APPEARANCE = ("torchxrayvision", "1.5.7", "nlmcxr_tsne_pa.csv.gz")
_UNKNOWN = 2


def frontal_first(names: Sequence[str]) -> list[int]:
    """Return the positions of a study's films, frontal ones first; unchanged as far as nothing is known.

    Args:
        names: of the films in Open-i, such as ``CXR25_IM-1024-2001``.
    """
    ranks = _ranks()
    return sorted(range(len(names)), key=lambda place: ranks.get(names[place], _UNKNOWN))


def open_i_film_names(study: str, paths: Sequence[str]) -> list[str]:
    """Return the names in Open-i of the films of one of R2Gen's studies; its own paths where there are none.

    Args:
        study: such as ``CXR25_IM-1024``.
        paths: such as ``CXR25_IM-1024/0.png``: the number is the film's among the study's in Open-i.
    """
    films, stems = _by_study().get(study, []), [PurePosixPath(path).stem for path in paths]
    if not all(stem.isdecimal() and int(stem) < len(films) for stem in stems):
        return list(paths)
    return [films[int(stem)] for stem in stems]


@cache
def _ranks() -> dict[str, int]:
    """Map each film to a number, less for films that are more surely frontal; empty without the wheel."""
    try:
        tags, listed = find_wheel_file(*_TAGS), find_wheel_file(*_APPEARANCE)
    except UserError:  # the wheel is of an extra
        return {}
    appearance = {
        row["imageid"]: row["tsne-view"] for row in read_csv_columns(listed, ("imageid", "tsne-view")).to_pylist()
    }
    columns = ("imageid", "View Position", "Patient Orientation")
    return {
        row["imageid"]: _rank(
            appearance.get(row["imageid"], ""), row["View Position"] or "", row["Patient Orientation"] or ""
        )
        for row in read_csv_columns(tags, columns, multiline=True).to_pylist()
    }


def _rank(appearance: str, view: str, orientation: str) -> int:
    """Return the rank of a film.

    Args:
        appearance: PA, L, or empty for a film that is not in the list.
        view: ``ViewPosition``.
        orientation: ``PatientOrientation`` as printed; the rows of a lateral film point to the front or the back.
    """
    if appearance == "PA":
        return 0
    if is_lateral_view(view) or orientation.startswith(("['A'", "['P'")):
        return 4
    if appearance == "L":
        return 3
    return 1 if view == "AP" else _UNKNOWN


@cache
def _by_study() -> dict[str, list[str]]:
    studies: dict[str, list[str]] = defaultdict(list)
    for name in sorted(_ranks()):
        studies[name.rpartition("-")[0]].append(name)
    return studies
