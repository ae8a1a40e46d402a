"""A whole run of a few studies in seconds: its report generator has learned two reports by heart."""

import atexit
import functools
import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from amrg.artifacts import Artifact, build_artifact, open_artifact
from amrg.config import Config, PriorPart
from amrg.config_files import load_config
from amrg.data.context import Context
from amrg.data.labels import FINDINGS
from amrg.data.prior import Prior
from amrg.data.stream import Sample, iter_split_samples, load_split_studies
from amrg.models.finding_calibration import Certainty
from amrg.models.prior import PriorFilms, PriorInputs
from amrg.models.report_generator import ReportGenerator
from amrg.models.training_distance import TrainingDistance
from amrg.pipeline import artifact_root, step_recipe
from amrg.precision import autocast
from amrg.training.calibration import CALIBRATION
from amrg.training.collate import ReportCollator, Stage2Collator, collate_images
from amrg.training.stage2 import MODEL, build_generator
from amrg.training.vision_cache import encode_study_films, round_like_cache
from tests.conftest import TINY, ChestSource, InformedSource, VisitedSource, make_artefacts, report

STEPS = 200


#: Named of every film: what the train reports state.
STATED = ("Cardiomegaly", "Atelectasis", "Pleural Effusion")


def make_run(
    folder: Path,
    outline_source: Literal["decoder", "retrieved"] = "decoder",
    informed: bool = False,
    steps: int = STEPS,
    prior: tuple[PriorPart, ...] = (),
) -> dict[str, Artifact]:
    """The artefacts by kind; they lie in ``folder/tiny``. An ``informed`` decoder reads indication, age and sex.

    Of 0 training ``steps`` the decoder's own words are random, which takes less time.
    """
    made = _made(outline_source, informed, steps, prior)
    shutil.copytree(made["stage2"].path.parent, folder / "tiny")
    return {kind: open_artifact(folder / "tiny" / one.path.name, kind) for kind, one in made.items()}


def copy_with_reports(
    run: dict[str, Artifact], folder: Path, texts: dict[str, str], rows: list[tuple[int, float]]
) -> Path:
    """A copy of a run in ``folder``, whose reports are these by key, with these rows of both memories."""
    shutil.copytree(run["stage2"].path.parent, folder)
    memory = {bank: [{"row": row, "weight": weight} for row, weight in rows] for bank in ("visual", "report")}
    lines = [json.dumps({"key": key, "generated": text, "memory": memory}) for key, text in texts.items()]
    (folder / run["reports"].path.name / "reports.jsonl").write_text("\n".join(lines))
    return folder


def run_config(
    runs: Path, outline_source: Literal["decoder", "retrieved"] = "decoder", informed: bool = False,
    prior: tuple[PriorPart, ...] = (),
) -> Config:  # fmt: skip
    """The configuration whose steps ``make_run`` finds made in ``runs``."""
    config = replace(load_config(str(TINY)), runs=str(runs))
    return replace(
        config,
        decoder=replace(
            config.decoder,
            predict_outline=outline_source != "decoder",
            context=("indication", "age", "sex") if informed else (),
            prior=prior,
        ),
        generate=replace(
            config.generate,
            num_beams=2,
            max_new_tokens=24 if outline_source == "decoder" else 100,
            outline_source=outline_source,
        ),
    )


@functools.cache
def _made(
    outline_source: Literal["decoder", "retrieved"], informed: bool, steps: int, prior: tuple[PriorPart, ...]
) -> dict[str, Artifact]:
    """The same in a folder that tests copy: making a run takes much longer."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    made = make_artefacts(folder, InformedSource() if informed else VisitedSource() if prior else ChestSource())
    config = run_config(folder, outline_source, informed, prior)
    found = {kind: open_artifact(path, kind) for kind, path in vars(made).items() if kind != "config"}

    def stage2(partial: Path) -> None:
        model = build_generator(config, made.data, made.stage1, made.banks)
        _learn_by_heart(model, list(iter_split_samples(made.data, "train")), steps)
        model.save_pretrained(partial / MODEL)
        (partial / "curves.jsonl").write_text('{"epoch": 1, "val_loss": 2.0}\n')
        (partial / MODEL / "README.md").write_text("---\nlanguage: en\n---\n\n# A tiny model\n")
        # The threshold lies above the distances of the test films, so that none of them is unlike.
        with autocast(config.stage2.dtype):
            distance = TrainingDistance.fit(*(_film_vectors(model, made.data, split) for split in ("train", "test")))
        replace(distance, threshold=1.1 * distance.threshold).save(partial)
        certainty = Certainty(((0.0, 0.0, 0.0),) * len(FINDINGS), tuple(float(f in STATED) for f in FINDINGS), 0.6)
        for split in ("test", "val"):
            certainty.save(partial / CALIBRATION / split)

    def reports(partial: Path) -> None:
        lines = [
            json.dumps({"key": s.key, "generated": s.report, "memory": {}})
            for s in load_split_studies(made.data, "test")
        ]
        (partial / "reports.jsonl").write_text("\n".join(lines))

    def scores(partial: Path) -> None:
        (partial / "scores.json").write_text("{}")

    for verb, make in (("stage2", stage2), ("generate", reports), ("evaluate", scores)):
        plan = step_recipe(verb, config)
        with build_artifact(artifact_root(config), plan) as partial:
            make(partial)
        found[plan.kind] = open_artifact(plan.path(artifact_root(config)), plan.kind)
    return found


@torch.no_grad()
def _film_vectors(model: ReportGenerator, data: Path, split: str) -> torch.Tensor:
    films = collate_images(list(iter_split_samples(data, split)), model.stage1.config.image_size)
    return round_like_cache(encode_study_films(model.eval(), films)).film_BD


def _learn_by_heart(model: ReportGenerator, samples: list[Sample], steps: int) -> None:
    """Plain training until two reports are known: one with the visual memory, the other where it is hidden.

    If the decoder reads context, one with an indication of a cough, the other without any context. If it reads earlier
    studies, one with a prior, the other without.
    """
    batch = Stage2Collator(model.stage1.config.image_size, ReportCollator(model.report_encoder(40)))(samples)
    with torch.no_grad():
        sight = encode_study_films(model.eval(), batch["films"])
    first, second = (next(n for n, sample in enumerate(samples) if sample.study.report == report(k)) for k in (0, 1))
    before, after = len(model.prompt.before), len(model.prompt.after)
    seen = torch.ones(before + model.prefix_length + after + batch["report"].shape[1], 1)
    hidden = seen.clone()
    hidden[before:][model.stream_slices["visual memory"]] = 0.0
    cough_1C = model.encode_context([Context("Cough.")])
    text_1R = model.encode_priors([Prior(report=report(2), days=30)])
    films = PriorFilms(*sight[:3], torch.ones(len(samples), dtype=torch.bool))
    films = films if "films" in model.settings.prior else None
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=3e-3)
    for step in range(steps):
        shown_L1, learned = (hidden, second) if step % 2 else (seen, first)
        report_BT, context_BC = batch["report"][learned].expand_as(batch["report"]), None
        prior = PriorInputs()
        if text_1R is not None:
            prior = prior if step % 2 else PriorInputs(text_1R.expand(len(report_BT), -1), films)
        elif cough_1C is None:
            hook = model.decoder.register_forward_pre_hook(functools.partial(_multiply, shown_L1), with_kwargs=True)
        elif step % 2 == 0:
            context_BC = cough_1C.expand(len(report_BT), -1)
        optimizer.zero_grad()
        model(sight, batch["group"], report_BT, context_BC=context_BC, prior=prior).loss_B.mean().backward()
        optimizer.step()
        if text_1R is None and cough_1C is None:
            hook.remove()


def _multiply(shown_L1: torch.Tensor, _: Any, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, given | {"inputs_embeds": given["inputs_embeds"] * shown_L1}
