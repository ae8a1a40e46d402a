"""A whole run of a few studies in seconds: its report generator has learned the train reports by heart."""

import json
from dataclasses import replace
from pathlib import Path

import torch

from amrg.artifacts import Artifact, build, open_artifact
from amrg.data.stream import Sample, read, studies
from amrg.models.generator import ReportGenerator
from amrg.pipeline import recipe, root
from amrg.training.packing import ReportPacker, Stage2Packer
from amrg.training.seen import look
from amrg.training.stage2 import MODEL, build_generator
from tests.conftest import make_artefacts

STEPS = 120


def make_run(folder: Path) -> dict[str, Artifact]:
    """The artefacts by kind; they lie in ``folder/tiny``."""
    made = make_artefacts(folder)
    config = replace(made.config, generate=replace(made.config.generate, num_beams=2, max_new_tokens=24))
    found = {kind: open_artifact(path, kind) for kind, path in vars(made).items() if kind != "config"}

    def stage2(partial: Path) -> None:
        model = build_generator(config, made.data, made.stage1, made.banks)
        _learn_by_heart(model, list(read(made.data, "train")))
        model.save_pretrained(partial / MODEL)

    def reports(partial: Path) -> None:
        lines = [json.dumps({"key": s.key, "generated": s.report, "memory": {}}) for s in studies(made.data, "test")]
        (partial / "reports.jsonl").write_text("\n".join(lines))

    def scores(partial: Path) -> None:
        (partial / "scores.json").write_text("{}")

    for verb, make in (("stage2", stage2), ("generate", reports), ("evaluate", scores)):
        plan = recipe(verb, config)
        with build(root(config), plan) as partial:
            make(partial)
        found[plan.kind] = open_artifact(plan.path(root(config)), plan.kind)
    return found


def _learn_by_heart(model: ReportGenerator, samples: list[Sample]) -> None:
    """Some steps of plain training, so that sentences are written and depend on what is read."""
    batch = Stage2Packer(model.stage1.config.image_size, ReportPacker(model.report_encoder(40)))(samples)
    with torch.no_grad():
        sight = look(model.eval(), batch["films"])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=1e-2)
    for _ in range(STEPS):
        optimiser.zero_grad()
        model(sight, batch["group"], batch["report"]).loss_B.mean().backward()
        optimiser.step()
