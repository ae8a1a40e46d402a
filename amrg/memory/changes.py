"""New banks for a trained run: with more studies, of other studies alone, or of another artefact."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from amrg.artifacts import (
    MANIFEST,
    Artifact,
    Recipe,
    add_artifact_warning,
    atomic_path,
    build_artifact,
    find_artifact,
    open_artifact,
)
from amrg.banks.bank import REPORTS, TRAIN, VISUAL, MemoryBank
from amrg.banks.transforms import RowSelection, merge_banks, selected_rows_of, write_bank_subset
from amrg.config import BanksConfig, Config, Stage1Config
from amrg.config_files import read_config_section
from amrg.data.stream import load_split_studies
from amrg.errors import UserError
from amrg.inference.run_artifacts import UNWRITTEN, RunArtifacts, refuse_other_banks
from amrg.mining.regions import build_visual_bank
from amrg.mining.reports import build_report_bank
from amrg.models.text_encoder import encoder_faults

#: Parts of a reports artefact that writing needs: attribute heads (``amrg.models.detail_heads``).
HEADS = ("map", "head")


def add_studies_to_banks(
    chain: RunArtifacts, data: Artifact, splits: Sequence[str] = (TRAIN,), alone: bool = False
) -> Artifact:
    """Make banks that also hold the studies of a data artefact, with the run's stage 1, scales, mean and settings.

    Existing rows stay as they are, in front. Studies that the visual bank holds are left out. Limits of rows
    (``banks.mining``, ``banks.reports.rows``) apply to the added studies alone.

    Args:
        chain: the run; its own folder receives the banks.
        data: prepared studies.
        splits: splits of ``data`` that are added.
        alone: make banks of these studies alone, with the disease queries.

    Raises:
        UserError: there is nothing to add, or the banks were made by a version that did not record their scales.
    """
    change = {"added": list(splits), "alone": alone}
    plan = _plan(chain, change, {"added": data})
    made = find_artifact(folder_of_run(chain), plan)
    if made is not None:
        return made
    settings = read_config_section(BanksConfig, {**chain.banks.manifest["config"], "splits": list(splits)}, "banks")
    config = Config(
        banks=settings,
        stage1=read_config_section(
            Stage1Config, {"dtype": chain.stage1.manifest["config"]["stage1"]["dtype"]}, "stage1"
        ),
        seed=chain.banks.manifest["seed"],
    )
    visual, reports = (MemoryBank.open(chain.banks.path / name) for name in (VISUAL, REPORTS))
    if "scales" not in visual.header["about"]:
        raise UserError(f"{visual.folder} does not record the scales of its maps: make it again with `amrg banks`")
    if faults := encoder_faults(settings.reports.encoder):
        raise UserError("\n".join(faults))
    held: set[tuple[str, str]] = set()
    if not alone:
        rows = visual.provenance_rows(0, len(visual), ["key", "group"]).to_pylist()
        held = {(row["key"], row["group"]) for row in rows}
    added = {(one.key, one.group) for split in splits for one in load_split_studies(data.path, split)}
    if not added - held:
        raise UserError(f"the memory holds all {len(added)} studies of {data.path} ({', '.join(splits)}) already")
    with build_artifact(folder_of_run(chain), plan) as folder:
        parts = folder / "scratch" / "added"
        build_visual_bank(
            config, data.path, chain.stage1.path, parts / VISUAL, parts, extended=visual.header["about"], held=held
        )
        rows = [] if alone else reports.provenance_rows(0, len(reports), ["group", "text"]).to_pylist()
        texts = {(row["group"], row["text"]) for row in rows}
        build_report_bank(
            settings, data.path, parts / REPORTS, config.seed, parts, extended=reports.header["about"], held=texts
        )
        _merge(visual, parts / VISUAL, folder / VISUAL, alone)
        _merge(reports, parts / REPORTS, folder / REPORTS, alone)
        marked = [split for split in splits if split != TRAIN]
        if marked or added & _held_out(chain.data.path):
            what = " and ".join(marked) or "held-out"
            add_artifact_warning(folder, f"the banks hold rows of {what} studies: scores on those mean nothing")
    return open_artifact(plan.path(folder_of_run(chain)), "banks")


def mix_bank_folders(chain: RunArtifacts, parts: Sequence[Artifact]) -> Artifact:
    """Make banks with the rows of several, so that one association spreads over all of them.

    Raises:
        UserError: they were not made by the run's stage 1, or their rows are not alike (``amrg.banks.transforms``).
    """
    for one in parts:
        refuse_other_banks(chain, one)
    plan = _plan(chain, {"mixed": len(parts)}, {f"part_{number}": one for number, one in enumerate(parts)})
    if find_artifact(folder_of_run(chain), plan) is None:
        with build_artifact(folder_of_run(chain), plan) as folder:
            for name in (VISUAL, REPORTS):
                merge_banks([MemoryBank.open(one.path / name) for one in parts], folder / name)
    return open_artifact(plan.path(folder_of_run(chain)), "banks")


def swap_run_banks(chain: RunArtifacts, banks: Artifact) -> Artifact:
    """Let a run use other banks, which are copied into its folder if they lie elsewhere; return its new head.

    Raises:
        UserError: they were made by another stage 1 or text encoder, or other banks have their name here.
    """
    refuse_other_banks(chain, banks)
    target = folder_of_run(chain) / banks.path.name
    if target.is_dir():
        if open_artifact(target, "banks").hash != banks.hash:
            raise UserError(f"{target} are other banks of the same name: move them away first")
    else:
        with atomic_path(target) as partial:
            shutil.copytree(banks.path, partial)
    return write_memory_head(chain, open_artifact(target, "banks"))


def write_memory_head(chain: RunArtifacts, banks: Artifact, folder: Path | None = None) -> Artifact:
    """Write the head that makes banks the memory of a run: a reports artefact with its settings and without reports.

    Args:
        chain: the run before.
        banks: banks in the run's folder.
        folder: receives the head; None: the run's folder.
    """
    folder = folder_of_run(chain) if folder is None else folder
    # What a run without reports writes with; see ``RunArtifacts.config``.
    settings = chain.reports.manifest["config"] if chain.reports else {"num_beams": 1}
    inputs = {"data": chain.data, "stage1": chain.stage1, "banks": banks, "stage2": chain.stage2}
    version = chain.reports.manifest["format_version"] if chain.reports else 0
    plan = Recipe("reports", version, {**settings, UNWRITTEN: True}, inputs, chain.stage2.manifest["seed"])
    if find_artifact(folder, plan) is None:
        with build_artifact(folder, plan) as partial:
            for name in HEADS:
                if chain.reports and (chain.reports.path / name).is_dir():
                    shutil.copytree(chain.reports.path / name, partial / name, dirs_exist_ok=True)
    os.utime(plan.path(folder) / MANIFEST)  # the newest head is the run's
    return open_artifact(plan.path(folder), "reports")


def folder_of_run(chain: RunArtifacts) -> Path:
    """Return the folder of the artefacts of a run."""
    return chain.stage2.path.resolve().parent


def _plan(chain: RunArtifacts, change: dict[str, object], inputs: dict[str, Artifact]) -> Recipe:
    """Return the recipe of changed banks, which names what they were made from."""
    before = chain.banks.manifest
    return Recipe(
        "banks",
        before["format_version"],
        {**before["config"], "change": change},
        {"data": chain.data, "stage1": chain.stage1, "made_from": chain.banks, **inputs},
        before["seed"],
    )


def _merge(before: MemoryBank, added: Path, folder: Path, alone: bool) -> None:
    """Write the rows of a bank, or its disease queries, and the added rows if there are any."""
    rows = [MemoryBank.open(added)] if added.is_dir() else []
    queries = RowSelection(sources=("disease_token",))
    if not alone:
        rows.insert(0, before)
    elif len(selected_rows_of(before, queries)):
        rows.insert(0, write_bank_subset(before, queries, added.with_name(f"{added.name}-queries")))
    merge_banks(rows, folder)


def _held_out(data: Path) -> set[tuple[str, str]]:
    """Return key and patient group of the studies of a run that reports are scored on; a hub folder has none."""
    index = data / "index.parquet"
    if not index.exists():
        return set()
    rows = pq.read_table(index, columns=["key", "group", "split"]).to_pylist()
    return {(row["key"], row["group"]) for row in rows if row["split"] != TRAIN}
