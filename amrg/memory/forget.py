"""Removal of studies from everything in the folder of a run.

Every artefact that holds something of them is made anew in ``.forget/new``, the future content of the folder is
searched for what must be gone, and a journal is written. Only then folders change places and the old ones are deleted.
While there is a journal no artefact of the run can be opened (``amrg.artifacts.open_artifact``), and the next call
finishes what it says; before, nothing of the run has changed.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from amrg.artifacts import FORGETTING, LOGS, MANIFEST, Artifact, folder_content_hash
from amrg.banks.bank import REPORTS, VISUAL, MemoryBank, stored_row_bytes
from amrg.banks.transforms import iter_row_blocks, without_studies
from amrg.data.removal import TABLE, copy_without_studies, film_fingerprints, link_or_copy
from amrg.data.splits import patient_groups
from amrg.data.text.cleaning import split_sentences
from amrg.errors import UserError
from amrg.inference.run_artifacts import HEAD_KINDS, find_run_artifacts, holds_no_reports
from amrg.memory.changes import write_memory_head
from amrg.memory.record import RECORD, append_signed_entry, keyed_text_hash, sign_entry
from amrg.memory.traces import Traces
from amrg.mining.regions import STATS
from amrg.models.open_banks import INDEXES

#: Columns of ``--where COLUMN=PATTERN``.
COLUMNS = ("key", "group", "split", "dataset")
#: An artefact is handled after those that it can be made from.
_ORDER = ("data", "stage1", "banks", "stage2", "reports", "scores")
_EXPERIMENTS, _CACHES = "experiments", "experiments/seen"

Study = tuple[str, str]  # key and patient group


@dataclass(frozen=True)
class Selection:
    """The studies to forget: all of a patient, one, or those with a value of a column.

    Attributes:
        by: ``patient``, ``study`` or ``where``.
        value: number or group of the patient, key of the study, or ``COLUMN=PATTERN``.
    """

    by: str
    value: str

    def matches(self, row: dict[str, Any]) -> bool:
        """Return whether a row of an index or of a bank is selected."""
        if not row["key"]:  # a disease query
            return False
        if self.by == "patient":
            return row["group"] in self._groups
        if self.by == "study":
            return row["key"] == self.value
        column, _, pattern = self.value.partition("=")
        return fnmatchcase(str(row.get(column) or ""), pattern)

    @cached_property
    def _groups(self) -> set[str]:
        return patient_groups(self.value)


def forget_studies(folder: Path, selection: Selection, key: bytes, named: bool = False) -> dict[str, Any] | None:
    """Remove studies from every artefact, index and cache of a run, and append a signed line to ``forgotten.jsonl``.

    Reports and scores are deleted: they were made with a memory that is no more. Weights stay as they are.

    Args:
        folder: folder of the run.
        selection: what to remove.
        key: secret key of the record.
        named: write the selection in clear into the record; else only its keyed hash.

    Returns:
        the line; None if an interrupted call was finished and there was nothing more to remove.

    Raises:
        UserError: nothing is selected, a step of the run is unfinished, or a file cannot be freed of the studies.
    """
    column = selection.value.partition("=")[0]
    if selection.by == "where" and ("=" not in selection.value or column not in COLUMNS):
        raise UserError(f"--where takes COLUMN=PATTERN with a column of {', '.join(COLUMNS)}")
    if not folder.is_dir() or (folder / MANIFEST).exists():
        raise UserError(f"{folder} is not the folder of a run: give one such as runs/demo")
    with _locked(folder):
        finished = _finish(folder)
        unfinished = sorted(path.name for path in folder.glob("*.partial"))
        if unfinished:
            raise UserError(f"{folder / unfinished[0]} is an unfinished step: finish it or delete it first")
        artifacts = _artifacts(folder)
        studies, left = _select(artifacts, selection)
        if not studies:
            if finished:
                return None
            raise UserError(f"{folder} holds no such study: nothing is changed")
        staging = (folder / FORGETTING).parent
        shutil.rmtree(staging, ignore_errors=True)  # of a call that was interrupted before it changed anything
        removal = _Removal(folder, staging / "new", studies, left)
        try:
            removal.stage(artifacts)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        about = {"studies": len(studies), "patients": len({group for _, group in studies}), **removal.summary}
        subject = {"subject": keyed_text_hash(key, f"{selection.by} {selection.value}")}
        entry = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "selected_by": selection.by} | subject | about
        if named:
            entry["name"] = selection.value
        entry = sign_entry(key, entry, folder / RECORD)
        journal = {"replace": removal.replaced, "remove": removal.removed, "entry": entry}
        (staging / "journal.partial").write_text(json.dumps(journal))
        os.replace(staging / "journal.partial", folder / FORGETTING)
        _finish(folder)
        return entry


def _finish(folder: Path) -> bool:
    """Carry out the journal of a run if there is one; each part may have been done before."""
    path = folder / FORGETTING
    if not path.exists():
        return False
    journal, staging = json.loads(path.read_text()), path.parent
    (staging / "old").mkdir(exist_ok=True)
    for name in journal["replace"]:
        if (staging / "new" / name).exists():
            if (folder / name).exists():
                os.rename(folder / name, staging / "old" / name)
            os.rename(staging / "new" / name, folder / name)
    for name in journal["remove"]:
        gone = folder / name
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink(missing_ok=True)
    shutil.rmtree(staging / "old")
    append_signed_entry(folder / RECORD, journal["entry"])
    path.unlink()
    shutil.rmtree(staging)
    return True


class _Removal:
    """New versions of the artefacts of a run without some studies, under ``new``.

    Attributes:
        replaced: names of the artefacts with a new version.
        removed: paths in the run's folder that are deleted.
        summary: what the record tells.
    """

    def __init__(self, folder: Path, new: Path, studies: Collection[Study], left: Collection[Study]) -> None:
        self.folder, self.new, self.studies = folder, new, studies
        self.replaced: list[str] = []
        self.removed: list[str] = []
        self.summary: dict[str, Any] = {"rows": {}, "content": {}}
        self._manifests: dict[str, Artifact] = {}  # the future ones, by name
        self._hashes: dict[str, str] = {}  # new content hash by the former one
        self._traces = Traces()
        self._texts: tuple[set[str], set[str]] = set(), set()  # of the removed studies, of the others
        self._banks: list[tuple[MemoryBank, set[int]]] = []  # with the rows that go
        self._traces.add_names({key for key, _ in studies} - {key for key, _ in left})
        self._traces.add_names({group for _, group in studies} - {group for _, group in left} - {""})

    def stage(self, artifacts: list[Artifact]) -> None:
        """Make the new versions and search the future folder."""
        heads = any(list(self.folder.glob(f"{kind}-*/{MANIFEST}")) for kind in HEAD_KINDS)
        chain = find_run_artifacts(self.folder) if heads else None
        for artifact in artifacts:
            self._stage_one(artifact)
        for name in (path.name for path in (self.folder / INDEXES).glob("*")):
            if any(name.startswith(f"{one}-") for one in self.replaced):
                self.removed.append(f"{INDEXES}/{name}")
        if self.replaced and (self.folder / _CACHES).exists():
            self.removed.append(_CACHES)
        self._traces.add_texts(self._texts[0] - self._texts[1])
        self._traces.contents |= self._removed_vectors()
        self._search()
        for name in self.replaced:
            self._seal(name)
        if chain is not None and chain.reports and chain.reports.path.name in self.removed:
            data, stage1, banks, stage2 = (
                self._manifests[one.path.name] for one in (chain.data, chain.stage1, chain.banks, chain.stage2)
            )
            after = replace(chain, data=data, stage1=stage1, banks=banks, stage2=stage2)
            self.replaced.append(write_memory_head(after, banks, self.new).path.name)

    def _stage_one(self, artifact: Artifact) -> None:
        name, target = artifact.path.name, self.new / artifact.path.name
        changed = False
        if _has_index(artifact):
            changed = self._data(artifact.path, target)
        elif artifact.kind == "banks":
            changed = self._rows(artifact.path, target)
        inputs = {Path(one["path"]).name for one in artifact.manifest["inputs"].values()}
        memory = {one for one in inputs if one.startswith(("data-", "banks-"))} & {*self.replaced}
        if artifact.kind in ("reports", "scores") and memory and not holds_no_reports(artifact.path):
            self.removed.append(name)
        elif changed or inputs & {*self.replaced}:
            _link_rest(artifact.path, target, changed)
            self.replaced.append(name)
        self._manifests[name] = Artifact(target, artifact.manifest)

    def _data(self, data: Path, target: Path) -> bool:
        rows = pq.read_table(data / TABLE, columns=["key", "group", "report"]).to_pylist()
        self._note_texts(rows, "report")
        gone = sum((row["key"], row["group"]) in self.studies for row in rows)
        if gone:
            for sample in copy_without_studies(data, self.studies, target):
                self._traces.contents |= {part for part in film_fingerprints(sample) if len(part) == 64}
            self.summary["rows"][data.name] = gone
        return gone > 0

    def _rows(self, banks: Path, target: Path) -> bool:
        counts = {}
        for name in (VISUAL, REPORTS):
            bank = MemoryBank.open(banks / name)
            origins = bank.provenance_rows(0, len(bank), ["key", "group", "text"]).to_pylist()
            self._note_texts(origins, "text")
            gone = {number for number, row in enumerate(origins) if (row["key"], row["group"]) in self.studies}
            counts[name] = len(gone)
            self._banks.append((bank, gone))
        if any(counts.values()):
            for name in (VISUAL, REPORTS):
                without_studies(MemoryBank.open(banks / name), self.studies, target / name)
            self.summary["rows"][banks.name] = counts
        return any(counts.values())

    def _note_texts(self, rows: list[dict[str, Any]], column: str) -> None:
        for row in rows:
            text = row[column] or ""
            self._texts[(row["key"], row["group"]) not in self.studies].update((text, *split_sentences(text)))

    def _removed_vectors(self) -> set[bytes]:
        """Return the bytes, as stored and as float32, of rows that go and that equal no row that stays."""
        found: set[bytes] = set()
        for stays in (False, True):
            for bank, gone in self._banks:
                for number, forms in _row_forms(bank):
                    if (number not in gone) == stays:
                        (found.difference_update if stays else found.update)(forms)
        return found

    def _seal(self, name: str) -> None:
        """Write the manifest of a new version: its content, its inputs, and what it was at first."""
        target, before = self.new / name, json.loads((self.folder / name / MANIFEST).read_text())
        target.mkdir(parents=True, exist_ok=True)
        after = before | {"content_hash": folder_content_hash(target), "inputs": {}}
        if after["content_hash"] != before["content_hash"]:
            after.setdefault("identity_hash", before["content_hash"])
            self.summary["content"][name] = [before["content_hash"], after["content_hash"]]
        self._hashes[before["content_hash"]] = after["content_hash"]
        for what, one in before["inputs"].items():
            after["inputs"][what] = one | {"hash": self._hashes.get(one["hash"], one["hash"])}
        (target / MANIFEST).write_text(json.dumps(after, indent=2) + "\n")
        made = (self.folder / name / MANIFEST).stat()
        os.utime(target / MANIFEST, ns=(made.st_atime_ns, made.st_mtime_ns))  # their order tells which head is newest
        self._manifests[name] = Artifact(target, after)

    def _search(self) -> None:
        """Search all that will be left; logs and pages of experiments that hold traces are removed.

        Raises:
            UserError: another file does, named by its place in the run.
        """
        faults, files, size = [], 0, 0
        for path in self._future_files():
            files, size = files + 1, size + path.stat().st_size
            if not self._traces.found_in(path):
                continue
            is_new = path.is_relative_to(self.new)
            place = path.relative_to(self.new if is_new else self.folder)
            if LOGS not in place.parts and (is_new or place.parts[0] != _EXPERIMENTS):
                faults.append(place)
            elif is_new:
                path.unlink()
            else:
                self.removed.append(place.as_posix())
        if faults:
            raise UserError(
                f"{self.folder}: {', '.join(map(str, faults[:3]))} holds something of these studies, and this "
                "command cannot rewrite it: delete it first; nothing is changed"
            )
        self.summary["searched"] = {
            "files": files, "bytes": size, "patterns": len(self._traces.names) + len(self._traces.contents),
        }  # fmt: skip

    def _future_files(self) -> Iterator[Path]:
        staging = self.new.parent
        gone = {self.folder / name for name in (*self.replaced, *self.removed)}
        for path in sorted(self.folder.rglob("*")):
            if path.is_file() and path.name != RECORD and not {*gone, staging} & {path, *path.parents}:
                yield path
        yield from (path for path in sorted(self.new.rglob("*")) if path.is_file())


def _link_rest(source: Path, target: Path, changed: bool) -> None:
    """Give the other files of an artefact a second name in its new version; ``changed``: rows or shards are there."""
    for path in source.rglob("*"):
        place = path.relative_to(source)
        rewritten = changed and place.parts[0] in ("shards", VISUAL, REPORTS) and place.name != STATS
        if path.is_file() and place.name != MANIFEST and not rewritten and not (target / place).exists():
            link_or_copy(path, target / place)


def _row_forms(bank: MemoryBank) -> Iterator[tuple[int, tuple[bytes, bytes]]]:
    """Yield the number and the bytes of each row, as stored and as float32."""
    for start, stop in iter_row_blocks(len(bank)):
        forms = (stored_row_bytes(rows, None) for rows in (bank.rows(start, stop), bank.dequantized(start, stop)))
        yield from enumerate(zip(*forms, strict=True), start)


def _artifacts(folder: Path) -> list[Artifact]:
    """Return all artefacts of a run, each after those that it was made from."""
    found = []
    for path in sorted(folder.glob(f"*/{MANIFEST}")):
        if path.parent.is_symlink():
            raise UserError(f"{path.parent} is a link to another folder: forget there, or put the folder in its place")
        found.append(Artifact(path.parent, json.loads(path.read_text())))
    ordered: list[Artifact] = []
    for artifact in sorted(found, key=lambda one: _ORDER.index(one.kind)):
        _after_inputs(artifact, found, ordered)
    return ordered


def _after_inputs(artifact: Artifact, found: list[Artifact], ordered: list[Artifact]) -> None:
    if artifact in ordered:
        return
    names = {Path(one["path"]).name for one in artifact.manifest["inputs"].values()}
    for one in found:
        if one.path.name in names:
            _after_inputs(one, found, ordered)
    ordered.append(artifact)


def _has_index(artifact: Artifact) -> bool:
    """Return whether an artefact has data with studies; that of a hub folder has none."""
    return artifact.kind == "data" and (artifact.path / TABLE).exists()


def _select(artifacts: list[Artifact], selection: Selection) -> tuple[set[Study], set[Study]]:
    """Return the selected studies of all data and banks, and the others."""
    chosen: set[Study] = set()
    others: set[Study] = set()
    for artifact in artifacts:
        tables = []
        if _has_index(artifact):
            names = [name for name in COLUMNS if name in pq.read_schema(artifact.path / TABLE).names]
            tables = [pq.read_table(artifact.path / TABLE, columns=names)]
        elif artifact.kind == "banks":
            banks = [MemoryBank.open(artifact.path / name) for name in (VISUAL, REPORTS)]
            tables = [bank.provenance_rows(0, len(bank), ["key", "group", "split"]) for bank in banks]
        for table in tables:
            for row in table.to_pylist():
                (chosen if selection.matches(row) else others).add((row["key"], row["group"]))
    return chosen, others - chosen - {("", "")}


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process forget at a time."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(f"another process is forgetting in {folder}: wait for it") from None
    finally:
        os.close(descriptor)
