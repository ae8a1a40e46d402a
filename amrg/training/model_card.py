"""Model card of a report generator, with the metadata header of model hubs."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from amrg.banks.bank import REPORTS, TRAIN, VISUAL, MemoryBank
from amrg.config import Config
from amrg.config_files import config_to_dict
from amrg.data.data_card import STATISTICS
from amrg.models.decoder_files import SMALL_LLAMA, SMOLLM2
from amrg.models.report_generator import ReportGenerator

CARD = "README.md"
#: Sections of the configuration that the card lists: those of training and generation.
_SECTIONS = ("vision", "stage1", "banks", "memory", "decoder", "stage2", "generate")
#: Name on the hub and licence of base models that have a short name here.
_KNOWN = {SMOLLM2: ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")}


def write_model_card(
    folder: Path,
    model: ReportGenerator,
    config: Config,
    data: Path,
    banks: Path,
    rows: list[dict[str, Any]],
    failures: Sequence[str] = (),
) -> None:
    """Write ``README.md`` next to the weights, deterministically, without dates, paths or patients.

    Args:
        folder: folder written by ``model.save_pretrained``.
        model: the model with gathered parameters.
        config: configuration of the training.
        data, banks: artefacts of the training.
        rows: one row per epoch (``amrg.training.loop.fit_task``).
        failures: what failed in training (``Artifact.failures``).
    """
    parts = (
        _what(folder, model, config),
        *(["## Failures\n\n" + "\n".join(f"- **{failure}**" for failure in failures)] if failures else []),
        _data(config, data),
        _banks(banks),
        _training(rows),
        _licences(config),
        _settings(config),
    )
    ModelCard(f"---\n{_header(config).to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n").save(folder / CARD)


def _header(config: Config) -> ModelCardData:
    """Build the metadata for model hubs; base model and licence if known."""
    base, license_name = _base(config)
    return ModelCardData(
        language="en",
        library_name="amrg",
        pipeline_tag="image-to-text",
        tags=["chest-x-ray", "report-generation"],
        base_model=base,
        license=license_name,
    )


def _base(config: Config) -> tuple[str | None, str | None]:
    """Name on the hub and licence of the base model, from its card or ``_KNOWN``; None if unknown."""
    model = config.decoder.model
    if model in _KNOWN or model == SMALL_LLAMA:
        return _KNOWN.get(model, (None, None))
    path = Path(model)
    name = None if path.exists() or path.is_absolute() else model
    if not (path / CARD).is_file():
        return name, None
    try:
        return name, ModelCard.load(path / CARD).data.license
    except (OSError, ValueError, yaml.YAMLError):
        return name, None


def _licences(config: Config) -> str:
    license_name = _base(config)[1]
    from_scratch = config.decoder.model == SMALL_LLAMA
    base = (
        "was made from nothing"
        if from_scratch
        else f"has the licence `{license_name}`"
        if license_name
        else "has its own licence"
    )
    mimic = (
        " MIMIC-CXR is under PhysioNet's data use agreement: banks and weights go only to those who have signed it."
        if config.data.source == "mimic_cxr"
        else ""
    )
    return (
        f"## Licences\n\nThe language model {base}; the data have licences of their own. The banks hold the texts of "
        f"train reports, and weights may repeat them: whoever is given either must be allowed the data.{mimic}"
    )


def _what(folder: Path, model: ReportGenerator, config: Config) -> str:
    base = json.loads((folder / "config.json").read_text())["base_fingerprint"]
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    trained = sum(size for size, requires_grad in sizes if requires_grad)
    return (
        "# Chest X-ray report generator (AM-MRG)\n\n"
        "**Not for clinical use.** A research model: what it writes may be wrong, may leave a finding out, and no "
        "radiologist has checked it.\n\n"
        "It writes the report of a study from its films: an image encoder with one query for each of 14 findings, a "
        "visual and a report memory that the queries retrieve from (Hopfield networks over frozen banks), and a causal "
        "language model. The banks are not beside its weights: `ReportGenerator.from_pretrained` is given them.\n\n"
        f"- language model: `{_model_name(config)}`, tuning `{config.decoder.tuning}`, base weights in "
        f"`{config.decoder.base_dtype}`{f', SHA-256 of these `{base}`' if base else ''}\n"
        f"- parameters: {sum(size for size, _ in sizes):,}, of which {trained:,} were trained here"
    )


def _data(config: Config, data: Path) -> str:
    splits = json.loads((data / STATISTICS).read_text())["splits"]
    lines = (
        f"| {name} | {part['studies']:,} | {part['patients']:,} | {part['films']:,} |" for name, part in splits.items()
    )
    return (
        f"## Data\n\nSource `{config.data.source}`, split `{config.data.splits}`, sections `{config.data.sections}`. "
        "Trained on train, the best epoch chosen on val; test was not read.\n\n"
        "| split | studies | patients | films |\n|---|---|---|---|\n" + "\n".join(lines)
    )


def _banks(banks: Path) -> str:
    lines, others = [], set[str]()
    for name in (VISUAL, REPORTS):
        bank = MemoryBank.open(banks / name)
        splits = bank.header["splits"]
        others |= splits.keys() - {TRAIN}
        rows = ", ".join(f"{count:,} of {split}" for split, count in splits.items())
        lines.append(f"| {name} | {rows} | `{bank.content_hash}` |")
    leak = f"\n\n**The banks hold rows of {', '.join(sorted(others))}: scores on these splits are not fair.**"
    return (
        "## Memory banks\n\nThe model belongs to these banks.\n\n| bank | rows | content hash |\n|---|---|---|\n"
        + "\n".join(lines)
        + (leak if others else "")
    )


def _training(rows: list[dict[str, Any]]) -> str:
    best = [row for row in rows if row["best"]][-1]
    lines = (f"| {row['epoch']} | {row['step']} | {row['train_loss']:.4f} | {row['val_loss']:.4f} |" for row in rows)
    return (
        "## Training\n\nLoss: cross-entropy per report token. The weights are those of epoch "
        f"{best['epoch']} (val {best['val_loss']:.4f}). Scores of its reports are not known when this is written: see "
        "the scores artefact made from this one.\n\n"
        "| epoch | steps | train loss | val loss |\n|---|---|---|---|\n" + "\n".join(lines)
    )


def _settings(config: Config) -> str:
    config = replace(config, vision=config.vision.resolved)
    sections = {name: config_to_dict(getattr(config, name)) for name in _SECTIONS}
    sections["decoder"]["model"] = _model_name(config)
    for name in ("ds_config", "weights", "encoder"):
        for section in (*sections.values(), sections["banks"]["reports"]):
            if isinstance(section.get(name), str):
                section[name] = Path(section[name]).name
    return f"## Settings\n\nSeed {config.seed}.\n\n```yaml\n{yaml.safe_dump(sections, sort_keys=False).strip()}\n```"


def _model_name(config: Config) -> str:
    """Name of the decoder; the last component of a path."""
    path = Path(config.decoder.model)
    return path.name if path.exists() or path.is_absolute() else config.decoder.model
