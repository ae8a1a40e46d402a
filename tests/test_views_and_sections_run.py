"""Studies of one or two films, and reports of two sections, go through the whole chain."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from amrg import cli
from amrg.config import ColumnsConfig, Config, DataConfig, VisionConfig
from amrg.config_files import load_config
from amrg.data.stream import iter_split_samples, load_split_studies
from amrg.inference.run_artifacts import find_run_artifacts
from amrg.models.classifier import DiseaseClassifier
from amrg.pipeline import artifact_root, run_pipeline
from amrg.training.stage2 import stage2_faults
from amrg.webapp.session import InferenceSession
from tests.data.dataset_fixtures import save_csv
from tests.test_mixed_run import SIDE, shadowed

COLUMNS = ColumnsConfig(
    images="file", findings="findings", impression="impression", patient="id", study="id", split="split", view="view"
)
HEADS = ("id", "file", "view", "findings", "impression", "split")
FINDINGS, IMPRESSION = "Heart size is normal. Lungs are clear.", "No acute disease."


def views(number: int) -> tuple[str, ...]:
    """Every second study has two films; of the others, some have a lateral one alone."""
    return ("PA", "LATERAL") if number % 2 else ("LATERAL",) if number % 4 == 0 else ("PA",)


def impression(number: int) -> str:
    return "" if number in (3, 18) else IMPRESSION


@dataclass(frozen=True)
class Done:
    """A finished run."""

    config: Config
    scores: Path


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder, rows = tmp_path_factory.mktemp("views"), []
    for number in range(20):
        split = "train" if number < 12 else "val" if number < 16 else "test"
        for place, view in enumerate(views(number)):
            Image.fromarray(shadowed(100 * place + number)).save(folder / f"{number}-{place}.png")
            rows.append((str(number), f"{number}-{place}.png", view, FINDINGS, impression(number), split))
    save_csv(folder / "ours.csv", HEADS, [dict(zip(HEADS, row, strict=True)) for row in rows], list)
    tiny = load_config("tiny")
    config = replace(
        tiny,
        runs=str(folder / "runs"),
        data=DataConfig("table", str(folder), COLUMNS, sections="separate", image_size=SIDE, shard_size=8, workers=1),
        vision=VisionConfig(
            image_size=SIDE, embed_dim=32, depths=(1, 1), query_dim=32, qformer_layers=1, qformer_heads=2,
            view_embeddings=True, film_fusion="attention",
        ),
        decoder=replace(tiny.decoder, separate_sections=True),
        stage2=replace(tiny.stage2, epochs=30, batch_size=4, lr=1e-2, num_sample_reports=2),
        generate=replace(tiny.generate, num_beams=1, max_new_tokens=40),
    )  # fmt: skip
    return Done(config, run_pipeline(config).path)


def test_both_sections_are_written_and_scored(done: Done) -> None:
    (data,) = artifact_root(done.config).glob("data-*")
    studies = {study.key: study for study in load_split_studies(data, "test")}
    assert sorted(study.impression for study in studies.values()) == ["", *[IMPRESSION] * 3]
    assert {study.views for study in studies.values()} == {("PA", "LATERAL"), ("PA",), ("LATERAL",)}
    (file,) = artifact_root(done.config).glob("reports-*/reports.jsonl")
    for line in map(json.loads, file.read_text().splitlines()):
        assert line["sections"] == {"findings": FINDINGS, "impression": IMPRESSION}
        assert line["generated"] == f"{FINDINGS} {IMPRESSION}"
        assert line["reference_sections"] == studies[line["key"]].sections
        assert line["reference"] == studies[line["key"]].report
    scores = json.loads((done.scores / "scores.json").read_text())
    found = {name: (one["studies"], one["written"]) for name, one in scores["sections"].items()}
    assert found == {"findings": (4, 4), "impression": (3, 4 - 1), "both": (3, 3)}
    for one in scores["sections"].values():
        assert one["systems"]["model"]["language"]["BLEU-1"]["value"] == pytest.approx(1.0)
    page = (done.scores / "index.html").read_text()
    assert "By section" in page
    assert "Impression: No acute disease." in page


def test_data_that_do_not_tell_sections_apart_are_refused(done: Done) -> None:
    joined = replace(done.config, data=replace(done.config.data, sections="both"))
    (fault,) = stage2_faults(joined, 1)
    assert "data.sections separate" in fault
    assert stage2_faults(done.config, 1) == []


def test_the_encoder_has_learned_weights_and_views(done: Done) -> None:
    (stage1,) = artifact_root(done.config).glob("stage1-*")
    model = DiseaseClassifier.from_pretrained(stage1 / "model")
    assert model.view_embeddings_VD[1:].abs().amax(1).gt(0).all()
    assert model.film_weight_KD.any()


def test_write_the_viewer_and_the_export_tell_sections_apart(
    done: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(artifact_root(done.config))
    paths = [str(Path(str(done.config.data.path)) / f"17-{place}.png") for place in range(2)]
    (tmp_path / "one.csv").write_text("study,film\n" + "".join(f"a,{path}\n" for path in paths))
    cli.main(["write", run, str(tmp_path / "one.csv"), "--json", "--force"])
    line = json.loads(capsys.readouterr().out)
    assert line["sections"] == {"findings": FINDINGS, "impression": IMPRESSION}
    assert line["findings"].keys() >= {"Edema"}
    cli.main(["write", run, str(tmp_path / "one.csv"), "--force"])
    assert capsys.readouterr().out == f"{FINDINGS}\nImpression: {IMPRESSION}\n"

    chain = find_run_artifacts(Path(run))
    session = InferenceSession(chain)
    sample = next(one for one in iter_split_samples(chain.data.path, "test") if len(one.views) == 2)
    with torch.no_grad():
        session.classifier.view_embeddings_VD[2] += 1.0  # two epochs have hardly moved it
    analysis = session.analyze(sample.views, 0, views=sample.study.views)
    assert analysis.probabilities != session.analyze(sample.views, 0).probabilities  # the views are known, or not
    events: list[tuple[str, dict[str, object]]] = []
    session.write(analysis, set(), lambda kind, content: events.append((kind, content)))
    last = [content for kind, content in events if kind == "text"][-1]
    assert last["sentences"] == ["Heart size is normal.", "Lungs are clear.", IMPRESSION]
    assert last["impression"] == 2

    assert chain.reports is not None
    cli.main(["export", str(chain.reports.path), str(tmp_path / "out.json")])
    written = json.loads((tmp_path / "out.json").read_text())
    assert {study["section_impression"] for study in written.values()} == {IMPRESSION, None}
    assert {study["model_prediction_findings"] for study in written.values()} == {FINDINGS}


def test_films_in_another_order_are_the_same_study(done: Done) -> None:
    """Attention, like the mean, does not depend on the order of the films; each brings its view along."""
    session = InferenceSession(find_run_artifacts(artifact_root(done.config)))
    films = [shadowed(17), shadowed(117)]
    one = session.analyze(films, 0, views=("PA", "LATERAL"))
    two = session.analyze(films[::-1], 0, views=("LATERAL", "PA"))
    np.testing.assert_allclose(list(one.probabilities.values()), list(two.probabilities.values()), atol=1e-5)
