"""Studies of a user's own files: found in folders, tables and lists, and read with the checks of ``film_checks``."""

import csv
import io
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from amrg.data.context import CONTEXT_FIELDS, NO_CONTEXT, Context, parse_age_in_years, parse_patient_sex
from amrg.data.dicom_io import is_dicom_bytes, read_dicom_patient
from amrg.data.film_checks import (
    MIN_SIDE,
    NotAFilm,
    check_chest_film,
    check_film_pixels,
    is_lateral_dicom,
    recorded_view,
)
from amrg.data.image_io import FORMATS, SIGNATURES, decode_film_bytes
from amrg.errors import UserError

#: Films of a study without ``one_study``. Studies of the chest have one to four.
MAX_FILMS = 8
_SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".tif", ".tiff", ".bmp", ".webp")
_COLUMNS = ("study", "film")
#: Columns of the earlier study: its report, its films (several separated by `;`) and the days between.
PRIOR_COLUMNS = ("prior_report", "prior", "prior_days")

#: Names of films of Open-i and of Kaggle's copy, which lie in one folder: ``CXR25_IM-1024-2001.png``.
_INDIANA = re.compile(r"(?:CXR)?(\d+)_(?:\d+_)?IM-\d+")

_LATERAL = "a lateral film, and this model has seen frontal ones only"

#: A film: uint8 [H, W], 0 is black; the path of a file; or its bytes.
Film = np.ndarray | str | Path | bytes


@dataclass(frozen=True)
class GivenPrior:
    """An earlier study as a user gives it.

    Attributes:
        report: its report, with or without headings.
        films: its films.
        days: days between the two studies; None: unknown.
        views: view of each film, once these are read (``amrg.data.film_checks.view_kinds_of_films``); empty: unknown.
    """

    report: str = ""
    films: Sequence[np.ndarray | str | Path] = ()
    days: int | None = None
    views: tuple[str, ...] = ()


@dataclass(frozen=True)
class StudyFiles:
    """The files of one study.

    Attributes:
        name: as the user gave it: a path, or the study's name in a table.
        films: their paths.
        fault: why the study cannot be read; empty if nothing is known against it.
        context: as the user gave it.
        prior: earlier study as the user gave it.
        memory: names of the banks of this study, as the user gave them (``NAME`` or ``NAME+NAME``); empty for none.
    """

    name: str
    films: tuple[Path, ...]
    fault: str = ""
    context: Context = NO_CONTEXT
    prior: GivenPrior | None = None
    memory: str = ""


@dataclass(frozen=True)
class StudyFilms:
    """The films of one study, read.

    Attributes:
        films: uint8 [H, W] each, frontal ones first.
        notes: lines for the user: films that are not used.
        forced: why films would have been refused, one text a film.
        context: age and sex that DICOM films tell.
        views: view of each film that DICOM tells, as of ``amrg.data.film_checks.view_kinds_of_films``.
    """

    films: list[np.ndarray]
    notes: list[str]
    forced: list[str]
    context: Context = NO_CONTEXT
    views: tuple[str, ...] = ()


def find_own_studies(places: Sequence[Path], one_study: bool = False) -> tuple[list[StudyFiles], list[str]]:
    """Find the studies that a user means.

    Args:
        places: each a film; a folder, in which every folder that holds films is a study, or several whose films are
            named as those of Open-i; a CSV with the columns
            ``study`` and ``film``; or a ``.txt`` with the path of a film or folder in each line. Paths in a file are
            relative to it.
        one_study: let a study have more than ``MAX_FILMS`` films.

    Returns:
        the studies in the order given, and the names of the files in folders that are no films, and of links to
        folders, which are not followed.

    Raises:
        UserError: a CSV or ``.txt`` cannot be read or names no study, or a column is missing.
    """
    studies: list[StudyFiles] = []
    skipped: list[str] = []
    for place in places:
        suffix = place.suffix.lower()
        if os.path.isdir(place):  # not Path.is_dir, which raises PermissionError
            studies += _in_folder(place, skipped)
        elif suffix == ".csv":
            studies += _in_table(place)
        elif suffix == ".txt":
            listed = [place.parent / line.strip() for line in _text(place).split("\n") if line.strip()]
            if not listed:
                raise UserError(f"{place} names no film or folder")
            for path in listed:
                studies += _in_folder(path, skipped) if os.path.isdir(path) else [StudyFiles(str(path), (path,))]
        else:
            studies.append(StudyFiles(str(place), (place,)))
    named = [replace(study, name=printable_file_name(study.name), films=_once(study.films)) for study in studies]
    return [study if one_study else _plausible(study) for study in named], [
        printable_file_name(name) for name in skipped
    ]


def read_own_study(
    films: Sequence[tuple[str, Film]], short_side: int, frontal_only: bool = False, force: bool = False
) -> StudyFilms:
    """Read the films of one study and check them.

    Args:
        films: name of each film for messages, empty for none, and the film.
        short_side: as of ``decode_film_bytes``.
        frontal_only: leave lateral films out; if there are no others, the study is refused.
        force: read also what is refused.

    Raises:
        NotAFilm: a film is refused.
        ValueError: a film cannot be read; this message and the one above begin with the film's name.
    """
    frontal: list[np.ndarray] = []
    lateral: list[np.ndarray] = []
    views: list[str] = []  # of the films that are not lateral
    notes: list[str] = []
    forced: list[str] = []
    context = NO_CONTEXT
    for name, film in films:
        label = f"{name}: " if name else ""
        try:
            data = Path(film).read_bytes() if isinstance(film, str | Path) else film
            pixels = data if isinstance(data, np.ndarray) else decode_film_bytes(data, max(short_side, MIN_SIDE))
        except OSError as error:
            raise ValueError(f"{label}{error.strerror}") from None
        except ValueError as error:
            raise ValueError(f"{label}{error}") from None
        if isinstance(data, bytes):
            context = context.filled(read_dicom_patient(data))
        try:
            check_film_pixels(pixels) if isinstance(data, np.ndarray) else check_chest_film(data, pixels)
        except NotAFilm as error:
            if not force:
                raise NotAFilm(f"{label}{error}") from None
            forced.append(f"{label}{error}")
        if isinstance(data, np.ndarray) or not is_lateral_dicom(data):
            frontal.append(pixels)
            views.append("" if isinstance(data, np.ndarray) else recorded_view(data))
        else:
            lateral.append(pixels)
            notes.append(f"{label}{_LATERAL}")
    if not frontal_only:
        given = (*views, *["LATERAL"] * len(lateral))
        return StudyFilms(frontal + lateral, [], forced, context, given)
    if frontal:
        return StudyFilms(frontal, notes, forced, context, tuple(views))
    if lateral and not force:
        raise NotAFilm(notes[0])
    return StudyFilms(lateral, [], forced + notes, context, ("LATERAL",) * len(lateral))


def _in_folder(folder: Path, skipped: list[str]) -> Iterator[StudyFiles]:
    """Yield a study for each folder that holds films or cannot be read; what is neither is added to ``skipped``."""
    found = False
    unreadable: list[OSError] = []
    for path, folders, names in os.walk(folder, onerror=unreadable.append):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))  # such as __MACOSX
        here = [Path(path) / name for name in sorted(names)]
        films = tuple(file for file in here if _may_be_film(file))
        skipped += [file.name for file in here if file not in films]
        skipped += [f"{name}/ (a link)" for name in folders if os.path.islink(os.path.join(path, name))]
        if films:
            found = True
            yield from _by_number(path, films)
    for error in unreadable:
        yield StudyFiles(str(error.filename), (), str(error.strerror))
    if not (found or unreadable):
        yield StudyFiles(str(folder), (), f"the folder holds no film ({FORMATS})")


def _by_number(folder: str, films: tuple[Path, ...]) -> Iterator[StudyFiles]:
    """Yield the films of a folder as one study, or as those of Indiana University that all their names tell."""
    numbers = [match[1] if (match := _INDIANA.match(film.name)) else "" for film in films]
    if not all(numbers):
        yield StudyFiles(folder, films)
        return
    for number in dict.fromkeys(numbers):
        some = tuple(film for film, own in zip(films, numbers, strict=True) if own == number)
        yield StudyFiles(folder if len(set(numbers)) == 1 else os.path.join(folder, f"CXR{number}"), some)


def _may_be_film(file: Path) -> bool:
    """Return whether a file in a folder has the suffix or the first bytes of a film; hidden files are none."""
    if file.name.startswith("."):
        return False
    named = file.suffix.lower() in _SUFFIXES
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            return False
        if named:
            return True
        with file.open("rb") as content:
            start = content.read(132)
    except OSError:  # a broken link, or no permission: a film is not passed over, but named when it cannot be read
        return named
    return is_dicom_bytes(start) or start.startswith(SIGNATURES)


def _in_table(path: Path) -> list[StudyFiles]:
    films: dict[str, list[Path]] = {}
    contexts: dict[str, Context] = {}
    priors: dict[str, GivenPrior | None] = {}
    memories: dict[str, str] = {}
    rows = csv.DictReader(io.StringIO(_text(path)))
    try:
        if not set(_COLUMNS) <= set(rows.fieldnames or ()):
            raise UserError(
                f"{path} has no columns {' and '.join(_COLUMNS)}: its first line must name them, separated by a comma"
            )
        for row in rows:
            study, film = ((row[name] or "").strip() for name in _COLUMNS)
            if not (study and film):
                raise UserError(f"{path}, line {rows.line_num}: {' and '.join(_COLUMNS)} expected")
            films.setdefault(study, []).append(path.parent / film)
            given = {name: (row.get(name) or "").strip() for name in CONTEXT_FIELDS}
            context = read_given_context(given, f"{path}, line {rows.line_num}: ")
            contexts[study] = contexts.get(study, NO_CONTEXT).filled(context)
            given_prior = {name: (row.get(name) or "").strip() for name in PRIOR_COLUMNS}
            films_before = [str(path.parent / one.strip()) for one in given_prior["prior"].split(";") if one.strip()]
            prior = read_given_prior(
                given_prior["prior_report"],
                films_before,
                given_prior["prior_days"],
                f"{path}, line {rows.line_num}: prior_days",
            )
            priors[study] = priors.get(study) or prior
            memories[study] = memories.get(study, "") or (row.get("bank") or "").strip()
    except csv.Error as error:  # such as the rest of a file as one cell, after a quote that is not closed
        raise UserError(f"{path}, line {rows.line_num}: {error}") from None
    if not films:
        raise UserError(f"{path} names no study")
    return [
        StudyFiles(study, tuple(paths), context=contexts[study], memory=memories[study], prior=priors[study])
        for study, paths in films.items()
    ]


def read_given_prior(report: str, films: Sequence[np.ndarray | str | Path], days: str, where: str) -> GivenPrior | None:
    """Build the earlier study that a user gives; None if nothing of it is given.

    Args:
        report: its report; empty: not given.
        films: its films.
        days: days between the studies; empty: not given.
        where: what the error begins with.

    Raises:
        UserError: the days are no number, or are given of nothing.
    """
    if days and not days.isdecimal():
        raise UserError(f"{where} must be a whole number of days, or left out")
    if not (report or films):
        if days:
            raise UserError(f"{where}: no report or film of an earlier study is given")
        return None
    return GivenPrior(report, films, int(days) if days else None)


def read_given_context(texts: Mapping[str, str], where: str) -> Context:
    """Read the context that a user gives; an empty text is unknown.

    Args:
        texts: by field of ``Context``.
        where: what the error begins with.

    Raises:
        UserError: an age or sex is none; what was given is not repeated.
    """
    if texts.get("age") and parse_age_in_years(texts["age"]) is None:
        raise UserError(f"{where}age must be whole years, such as 63, or as in DICOM (063Y, 018M)")
    if texts.get("sex") and not parse_patient_sex(texts["sex"]):
        raise UserError(f"{where}sex must be female or male (or F or M), or left out")
    return Context.read(texts)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text in UTF-8: save it as such") from None


def printable_file_name(name: str) -> str:
    """Return the name of a file in one line; bytes in it that are not UTF-8, and control characters, become escapes."""
    text = os.fsencode(name).decode(errors="backslashreplace")
    return re.sub("[\0-\x1f\x7f-\x9f\u2028\u2029]", lambda found: repr(found[0])[1:-1], text)


def _once(films: Sequence[Path]) -> tuple[Path, ...]:
    """Return the films without those that are named again, also by another path."""
    first: dict[str, Path] = {}
    for film in films:
        first.setdefault(os.path.abspath(film), film)
    return tuple(first.values())


def _plausible(study: StudyFiles) -> StudyFiles:
    count = len(study.films)
    if count <= MAX_FILMS:
        return study
    advice = "give each film, or a folder per study; if they are of one study, add --one-study"
    return replace(study, fault=f"{count} films, more than a study has: {advice}")
