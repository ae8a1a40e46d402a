"""Reader of R2Gen's ``annotation.json``: a list of studies per split, with cleaned reports and paths of films."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

from amrg.config import DataConfig
from amrg.data.sources.indiana_views import frontal_first, open_i_film_names
from amrg.data.sources.study_films import load_study_films
from amrg.data.sources.tables import (
    Need,
    Tally,
    check_data_root,
    decode_text,
    find_first_existing,
    refuse_views,
    stripped_text,
)
from amrg.data.splits import assign_splits, hash_patient_group
from amrg.data.studies import SPLITS, Study, StudyImages
from amrg.data.text.cleaning import clean_report_text
from amrg.data.text.labeler import label_report
from amrg.errors import UserError

ANNOTATION = "annotation.json"


def open_source(config: DataConfig, seed: int) -> "R2Gen":
    """Open the reader of R2Gen's selection of IU X-ray in ``data.path``."""
    return R2Gen(config, seed, "iu_xray")


def required_files(config: DataConfig) -> list[Need]:
    """Return one check per file or folder that the reader needs in ``data.path``."""
    root = check_data_root(config)
    return [partial(find_films_folder, root), partial(_annotation, root), partial(refuse_views, config)]


def find_films_folder(root: Path) -> Path:
    """Return the folder of films. Raises UserError if there is none."""
    return find_first_existing(root, "images", "files", why="films of the annotation")


def _annotation(root: Path) -> Path:
    return find_first_existing(root, ANNOTATION, why="R2Gen's selection of studies")


def read_annotation(path: Path) -> list[tuple[str, Any]]:
    """Return the split and the entry of each study.

    Raises:
        UserError: the file is no annotation.
    """
    try:
        content = json.loads(decode_text(path.read_bytes()))
        return [(split, entry) for split in SPLITS for entry in content[split]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no R2Gen annotation ({type(error).__name__}): lists train, val, test") from None


def published_counts(config: DataConfig) -> dict[str, tuple[int, int]]:
    """Return the numbers of studies and films per split in the annotation."""
    films: dict[str, list[int]] = {split: [] for split in SPLITS}
    for split, entry in read_annotation(_annotation(check_data_root(config))):
        films[split].append(len(entry.get("image_path", ())) if isinstance(entry, dict) else 0)
    return {split: (len(views), sum(views)) for split, views in films.items()}


class R2Gen:
    """Studies of an annotation file; films in ``images/`` or ``files/`` next to it. Implements ``studies.Source``.

    Labels come from the rule labeler, since the file has none. Reports are one text; ``data.sections`` does not apply.

    Args:
        config: ``path`` holds the annotation and the films.
        seed: seed of the split and of the studies kept under a limit.
        data_set: ``iu_xray`` or ``mimic``; determines how patients are identified.

    Raises:
        UserError: the file is missing or malformed, or a split is empty.
    """

    def __init__(self, config: DataConfig, seed: int, data_set: str) -> None:
        refuse_views(config)
        root = check_data_root(config)
        self._size, self._data_set = config.image_size, data_set
        self._images, path = find_films_folder(root), _annotation(root)
        entries = read_annotation(path)
        self._films: dict[str, list[Path]] = {}
        studies, tally = [], Tally(config.sections)
        for place, (split, entry) in enumerate(entries):
            study = self._study(split, entry, f"{path}, entry {place}")
            if study is None:
                tally.counts[tally.study_twice] += 1
            elif not study.report:
                tally.counts["an empty report: left out"] += 1
            else:
                studies.append(study)
        self.left_out = dict(tally.counts)
        tally.refuse_nothing(len(studies), len(entries), root)
        tally.report(len(entries))
        self._studies = assign_splits(studies, config, seed)

    def studies(self) -> list[Study]:
        """Return all studies with their splits."""
        return list(self._studies)

    def films(self, study: Study) -> StudyImages:
        """Load all films of a study, frontal ones first in IU X-ray."""
        return load_study_films(self._films[study.key], self._size)

    def _study(self, split: str, entry: Any, where: str) -> Study | None:
        """Return the study of an entry; None if there was one of its key."""
        try:
            name, report, paths = str(entry["id"]), entry["report"], film_paths_of_entry(entry)
            patient = f"mimic {subject_of_entry(entry)}" if self._data_set == "mimic" else f"iu {name.split('_')[0]}"
        except (KeyError, TypeError):
            raise UserError(f"{where}: id, report and image_path expected (for MIMIC-CXR subject_id too)") from None
        key = re.sub(r"[^\w-]", "-", name, flags=re.ASCII)
        if not paths or any(_leaves(path) for path in paths):
            raise UserError(f"{where}: a report and paths inside the image folder expected")
        if key in self._films:
            return None
        if self._data_set == "iu_xray":
            paths = [paths[place] for place in frontal_first(open_i_film_names(name, paths))]
        self._films[key] = [self._images / path for path in paths]
        text = clean_report_text(stripped_text(report))
        return Study(key, hash_patient_group(patient), split, text, label_report(text))


def subject_of_entry(entry: Any) -> str:
    """Return the patient of an entry of MIMIC-CXR, a whole number also where it was printed as a float."""
    return re.sub(r"\.0*$", "", str(entry["subject_id"]))


def film_paths_of_entry(entry: Any) -> list[str]:
    """Return the paths of an entry's films below the folder of films; each once.

    Raises:
        KeyError, TypeError: there are none.
    """
    paths = [entry["image_path"]] if isinstance(entry["image_path"], str) else entry["image_path"]
    return list(dict.fromkeys(str(path).removeprefix("files/") for path in paths))


def _leaves(path: str) -> bool:
    return Path(path).is_absolute() or ".." in Path(path).parts
