"""The evaluate step on small artefacts made by the real writers, without any training."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from amrg.artifacts import Recipe, build_artifact, open_artifact
from amrg.banks.bank import REPORTS, VISUAL
from amrg.banks.writer import BankWriter
from amrg.config import Config, DataConfig, EvaluateConfig, VisionConfig
from amrg.data.labels import LABELS
from amrg.data.shards import prepare_shards
from amrg.data.stream import Sample, SampleLookup, load_split_studies
from amrg.data.studies import Study, StudyImages
from amrg.errors import UserError
from amrg.evaluation.evaluate import evaluate_reports
from amrg.evaluation.page_samples import _views, choose_extreme_studies, choose_page_studies
from amrg.evaluation.reports import GeneratedReport, Sentence
from amrg.models.classifier import DiseaseClassifier

CONFIG = Config(
    data=DataConfig(image_size=224, shard_size=8, workers=1),
    vision=VisionConfig(embed_dim=32, depths=(1, 1), query_dim=32, qformer_layers=1, pretrained=False),
    evaluate=EvaluateConfig(bootstrap_samples=20, meteor=False, num_page_studies=3),
)
TEXTS = {
    "Cardiomegaly": "The heart is enlarged. Lungs are clear.",
    "Pleural Effusion": "Small left pleural effusion.",
    None: "Heart size is normal. No effusion.",
}


class Blobs:
    """12 train and 6 test studies in turn enlarged, effused, normal; a film is noise with a blob, a mask its place."""

    def studies(self):
        return [
            Study(
                f"{split}{i}", f"{split}-p{i}", split, text, dict.fromkeys(LABELS) | ({finding: 1.0} if finding else {})
            )
            for split, count in (("train", 12), ("val", 3), ("test", 6))
            for i in range(count)
            for finding, text in [list(TEXTS.items())[i % 3]]
        ]

    def films(self, study):
        rng = np.random.default_rng(int.from_bytes(study.key.encode(), "big"))
        mask = np.zeros((224, 224), bool)
        y, x = rng.integers(30, 150, 2)
        mask[y : y + 40, x : x + 40] = True
        found = study.positive_findings
        film = rng.integers(60, 120, (224, 224)) + 90 * mask * bool(found)
        return StudyImages([film.astype(np.uint8)], dict.fromkeys(found, mask))


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory):
    """Path of each artefact by kind."""
    root = tmp_path_factory.mktemp("runs")
    made = {}

    def make(kind, write, config=None):
        recipe = Recipe(kind, 1, config or {}, dict(made), 0)
        with build_artifact(root, recipe) as folder:
            write(folder)
        made[kind] = open_artifact(recipe.path(root), kind)

    def stage1(folder):
        torch.manual_seed(0)
        DiseaseClassifier(CONFIG.vision).save_pretrained(folder / "model")
        row = {"positives": 2, "negatives": 4, "auroc": 0.5, "f1": 0.5}
        scores = {"test": {"mean_auroc": None, "per_label": dict.fromkeys(LABELS, row)}}
        (folder / "scores.json").write_text(json.dumps(scores))
        (folder / "curves.jsonl").write_text('{"epoch": 1, "train_loss": 1.0}\n')

    def banks(folder):
        known = {"key": "train0", "group": "train-p0", "split": "train"}
        region = known | {"source": "region", "findings": ["Cardiomegaly"], "view": 0, "box": [3, 3, 4, 4]}
        report = known | {"source": "report", "findings": [], "text": "A <b>stored</b> report."}
        for name, row in ((VISUAL, region), (REPORTS, report)):
            with BankWriter(folder / name, 8) as writer:
                writer.add(torch.randn(2, 8), [row, row])

    def reports(folder):
        memory = {"visual": [{"row": 1, "weight": 0.7}], "report": [{"row": 0, "weight": 0.4}]}
        lines = [
            json.dumps({"key": s.key, "generated": s.report, "memory": memory})
            for s in load_split_studies(made["data"].path, "test")
        ]
        (folder / "reports.jsonl").write_text("\n".join(lines) + "\n")

    make("data", lambda folder: prepare_shards(Blobs(), CONFIG.data, folder, 0))
    make("stage1", stage1)
    make("banks", banks)
    make("stage2", lambda folder: (folder / "curves.jsonl").write_text('{"epoch": 1, "val_loss": 2.0}\n'))
    make("reports", reports, {"split": "test", "num_beams": 3})
    return {kind: artefact.path for kind, artefact in made.items()}


def run(artefacts, folder, config=CONFIG):
    folder.mkdir()
    evaluate_reports(config, *(artefacts[k] for k in ("data", "stage1", "banks", "stage2", "reports")), folder)
    return json.loads((folder / "scores.json").read_text()), (folder / "index.html").read_text()


def of_chosen(page):
    """The part of the page with the studies that were chosen before the reports were read."""
    return re.search(r'<section id="chosen">.*?</section>', page, re.DOTALL)[0]


def test_scores_page_and_table(artefacts, tmp_path, capsys):
    scores, page = run(artefacts, tmp_path / "a")
    assert scores["systems"]["model"]["clinical"]["micro_13"]["f1"] == 1.0  # it repeats the references
    baselines = ["nearest neighbour", "most frequent normal", "best constant", "random train report"]
    assert list(scores["systems"]) == ["model", *baselines]
    assert scores["systems"]["most frequent normal"]["clinical"]["micro_13"]["f1"] == 0.0
    assert set(scores["localisation"]) == {"Cardiomegaly", "Pleural Effusion", "all lesions"}
    assert scores["mentions"]["Pleural Effusion"]["rate_present"] == 1
    assert scores["mentions"]["Pleural Effusion"]["odds_ratio"] is None  # never without it: any number would be made up
    assert 'title="no report of a study without the finding mentions it; every report of a study with' in page
    assert scores["confidence"] is None  # no sentence with a probability
    assert 'id="confidence"' not in page
    assert scores["retrieved_sets"] == {"report": 1, "visual": 1}
    assert scores["settings"]["num_beams"] == 3
    assert scores["inputs"]["banks"] == open_artifact(artefacts["banks"], "banks").hash
    assert scores["probe"] is not None
    assert scores["format"] == 4
    details = scores["systems"]["model"]["details"]
    assert (details["side exact"]["value"], details["side exact"]["cases"]) == (1.0, 2)
    assert details["film side exact"]["cases"] == scores["references"]["details"]["film side exact"]["cases"] == 2
    assert scores["systems"]["nearest neighbour"]["details"].keys() == details.keys()
    assert "A &lt;b&gt;stored&lt;/b&gt; report." in page
    assert page.count("<article ") == 3 + 1 + 1  # chosen before, the worst, the best
    printed = capsys.readouterr().out
    assert "nearest" in printed
    assert "reports are different (references: 3)" in " ".join(printed.split())
    assert not any(text in printed for text in TEXTS.values())


def test_relevance_of_recorded_associations(artefacts, tmp_path):
    """The bank has rows of Cardiomegaly alone; all associations lie on them, and all on the image's right half."""

    def change(lines):
        told = {"share": [1.0] * 13, "top_row": [1] * 13, "side": [1.0] * 13}
        return [line | {"association": {"visual": told}} for line in lines]

    scores, page = run(with_reports(artefacts, tmp_path / "told", change), tmp_path / "a")
    found = scores["relevance"]["visual"]["findings"]["Cardiomegaly"]
    assert (found["studies"], found["base"], found["rows"], found["with"]["value"]) == (2, 1.0, 1, 1.0)
    assert scores["relevance"]["visual"]["findings"]["Pleural Effusion"]["base"] == 0
    assert scores["relevance"]["visual"]["alike"]["value"] == 1
    assert scores["relevance"]["report"] is None
    assert page.count("Not recorded") == 1
    assert run(artefacts, tmp_path / "b")[0]["relevance"] == {"visual": None, "report": None}


def test_same_bytes_again_and_no_probe_on_real_films(artefacts, tmp_path):
    first, page = run(artefacts, tmp_path / "a")
    assert run(artefacts, tmp_path / "b") == (first, page)
    other = replace(CONFIG, data=replace(CONFIG.data, source="iu_xray"))
    assert run(artefacts, tmp_path / "c", other)[0]["probe"] is None


def with_reports(artefacts, folder, change):
    """The artefacts with other reports: ``change`` is given the lines and may return others."""
    shutil.copytree(artefacts["reports"], folder)
    lines = [json.loads(line) for line in (folder / "reports.jsonl").read_text().splitlines()]
    changed = change(lines) or lines
    (folder / "reports.jsonl").write_text("".join(json.dumps(line) + "\n" for line in changed))
    return artefacts | {"reports": folder}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [{"key": "other", "generated": ""}], "lacks 6 of 6 studies and has 1 that are not in the split"),
        (lambda lines: [*lines, {"key": "other", "generated": ""}], "lacks 0 of 6 studies and has 1"),
        (lambda lines: lines[:-1], "lacks 1 of 6 studies and has 0"),
        (lambda lines: [*lines, lines[2]], "line 7 repeats the study of line 3"),
        (lambda lines: [line | {"generated": None} for line in lines], "line 1 is not a report"),
    ],
)
def test_reports_that_do_not_answer_the_studies_are_refused(artefacts, tmp_path, change, message):
    with pytest.raises(UserError, match=message) as error:
        run(with_reports(artefacts, tmp_path / "reports", change), tmp_path / "a")
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "a").iterdir())


def test_another_artefact_is_refused(artefacts, tmp_path):
    with pytest.raises(UserError, match="holds a stage1 artefact"):
        run(artefacts | {"reports": artefacts["stage1"]}, tmp_path / "b")


def test_a_damaged_film_is_named_by_its_shard_and_nothing_is_written(artefacts, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(artefacts["data"], data)
    (shard,) = (data / "shards").glob("test*.tar")
    content = bytearray(shard.read_bytes())
    content[1500:1600] = bytes(100)
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"test.*\.tar: sample .* is damaged") as error:
        run(artefacts | {"data": data}, tmp_path / "a")
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "a").iterdir())


def test_silence_and_unlucky_texts_are_scored(artefacts, tmp_path):
    """All reports empty but one, which is markup and half a thousand times the same word; no row of it is known."""

    def change(lines):
        for line in lines:
            line |= {"generated": "", "memory": {"report": [{"row": 10**9, "weight": 0.5}]}}
        lines[0]["generated"] = "<script>||| " * 500

    odd = with_reports(artefacts, tmp_path / "odd", change)
    scores, page = run(odd, tmp_path / "a")
    assert scores["systems"]["model"]["wording"]["empty"] == pytest.approx(5 / 6)
    assert scores["systems"]["model"]["wording"]["loops"] == pytest.approx(1 / 6)
    assert scores["systems"]["model"]["clinical"]["micro_13"]["f1"] == 0
    assert scores["copying"]["generated"]["retrieved_4"] is None
    assert page.count("<script") == 1
    manifest = odd["reports"] / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"split": "test",', ""))
    with pytest.raises(UserError, match="does not say which split"):
        run(odd, tmp_path / "b")


@pytest.mark.parametrize("silence", ["", " \n ", "..."])
def test_a_run_that_says_nothing_at_all_is_scored(artefacts, tmp_path, silence, capsys):
    """Numbers, not gaps: all that is counted of the model is 0, the baselines and the page are as ever."""
    quiet = with_reports(artefacts, tmp_path / "quiet", lambda lines: [line | {"generated": silence} for line in lines])
    config = replace(CONFIG, evaluate=replace(CONFIG.evaluate, meteor=silence == "..."))
    scores, page = run(quiet, tmp_path / "a", config)
    text = (tmp_path / "a" / "scores.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    model, nearest = (scores["systems"][name] for name in ("model", "nearest neighbour"))
    assert isinstance(model["language"]["METEOR"], str) == (silence != "...")  # it takes seconds: once is enough
    said = [score for score in model["language"].values() if not isinstance(score, str)]
    assert [score["value"] if isinstance(score, dict) else score for score in said] == pytest.approx([0] * len(said))
    assert model["clinical"]["micro_13"]["f1"] == model["clinical"]["macro_13"]["f1"] == 0
    assert model["wording"]["empty"] == 1
    assert model["wording"]["words_mean"] == 0
    assert nearest["wording"]["empty"] == 0
    assert nearest["language"]["BLEU-1"]["value"] > 0
    assert page.count("<article ") == 3 + 1 + 1  # chosen before, the worst, the best
    assert "model" in capsys.readouterr().out


def test_a_row_whose_film_is_not_at_hand_is_shown_without_it(artefacts, tmp_path):
    """A bank that was made from other data, or holds held-out rows: only films of train studies are kept."""
    banks = tmp_path / "banks"
    shutil.copytree(artefacts["banks"], banks)
    shutil.rmtree(banks / VISUAL)
    row = {"key": "test0", "group": "test-p0", "split": "test", "source": "region", "findings": [], "view": 0}
    rows = [row | {"box": [3, 3, 4, 4]}, row | {"box": [3, 3, 4, 4], "key": "train0", "view": 9}]
    with BankWriter(banks / VISUAL, 8, allow_split=("train", "test")) as writer:
        writer.add(torch.randn(2, 8), rows)
    found = {"memory": {"visual": [{"row": 0, "weight": 0.4}, {"row": 1, "weight": 0.3}]}}
    reports = with_reports(artefacts, tmp_path / "reports", lambda lines: [line | found for line in lines])
    _, page = run(reports | {"banks": banks}, tmp_path / "a")
    page = of_chosen(page)
    assert "Region of a train film" not in page
    assert page.count("40.0% · region") == page.count("30.0% · region") == 3


def test_recalled_sentences_are_shown_with_their_film_and_rows(artefacts, tmp_path):
    """The films of test studies are single: a box on a second one is told, and not drawn; so with a row of no bank."""
    details = [{"finding": "Cardiomegaly", "attribute": "severity", "value": "mild", "probability": 0.64}]
    said = {"text": "The <heart> is mildly enlarged.", "labels": ["Cardiomegaly"], "row": 1, "box": [0, 3, 4, 8, 9],
            "regions": [{"row": 1, "weight": 0.55}, {"row": 99, "weight": 0.1}],
            "probabilities": {"Cardiomegaly": 0.83}, "details": details}  # fmt: skip
    elsewhere = said | {"text": "Elsewhere.", "row": 99, "box": [1, 3, 4, 8, 9]}

    def change(lines):
        return [lines[0] | {"sentences": [said, elsewhere]}, *lines[1:]]

    _, page = run(with_reports(artefacts, tmp_path / "told", change), tmp_path / "a")
    page = of_chosen(page)
    assert page.count("<h3>Recalled sentences</h3>") == 1
    assert page.count("The &lt;heart&gt; is mildly enlarged.") == page.count("<p>Elsewhere.</p>") == 1
    assert page.count("Cardiomegaly <b>0.83</b>") == page.count("severity mild <b>0.64</b>") == 2
    assert page.count('width="5" height="5"') == 2  # black below white: of the first sentence
    assert page.count('width="1" height="1"') == 2  # of the row of the bank
    assert page.count('alt="Train film of row 1, region of Cardiomegaly"') == 1
    assert page.count("<b>55.0%</b>") == 1  # both have the same voters
    assert "10.0%</b>" not in page


def test_probabilities_of_sentences_are_scored_and_what_is_left_out_is_shown(artefacts, tmp_path):
    """Sentences state the heart in all 6 reports, of which 2 references do; the page says what was left out."""
    said = {"text": "Cardiomegaly.", "labels": ["Cardiomegaly"], "row": 1, "box": None, "regions": [], "details": []}
    left_out = [{"text": "Small <left> effusion.", "labels": ["Pleural Effusion"], "probability": 0.41}]
    told = {"sentences": [said | {"probabilities": {"Cardiomegaly": 0.5}}], "unsure": left_out}
    reports = with_reports(artefacts, tmp_path / "told", lambda lines: [line | told for line in lines])
    scores, page = run(reports, tmp_path / "a")
    found = scores["confidence"]
    assert (found["findings"], found["right"]["value"]) == (6, pytest.approx(1 / 3))
    assert found["ece"]["value"] == pytest.approx(1 / 6)
    assert found["aurc"]["value"] == pytest.approx(2 / 3)
    assert of_chosen(page).count("Not sure: Small &lt;left&gt; effusion. (0.41)") == 3
    assert '<section id="confidence">' in page


def test_a_box_on_a_further_film_is_drawn_on_that_film(artefacts, tmp_path, monkeypatch):
    study = load_split_studies(artefacts["data"], "test")[0]
    second = np.full((224, 224), 200, np.uint8)
    monkeypatch.setattr(SampleLookup, "__getitem__", lambda self, key: Sample(study, [second // 2, second], {}))
    boxes = [(1, 3, 4, 8, 9), (1, 0, 0, 1, 1)]
    said = [Sentence("There.", ("Edema",), 0, box=box) for box in boxes]
    views = _views(said, second // 3, study, artefacts["data"])
    assert views.keys() == {1}
    assert np.array_equal(views[1], second)
    assert np.array_equal(
        _views([Sentence("So.", ("Edema",), 0)], second // 3, study, artefacts["data"])[0], second // 3
    )


def test_pick_goes_round_the_findings():
    chosen = [Blobs().studies()[12 + 3 + i] for i in choose_page_studies(Blobs().studies()[15:], 3)]
    assert [s.positive_findings for s in chosen] == [["Cardiomegaly"], ["Pleural Effusion"], []]
    assert choose_page_studies(Blobs().studies(), 100) == list(range(21))
    assert choose_page_studies([], 4) == []


def test_the_worst_and_the_best_by_their_errors():
    """Errors 2, 0, 1, 0, 1 and findings right 0, 1, 1, 0, 0: by hand."""
    heart, effusion = "The heart is enlarged.", "There is a small left pleural effusion."
    references = [heart, heart, heart, "Lungs are clear.", "Lungs are clear."]
    texts = [effusion, heart, f"{heart} {effusion}", "Lungs are clear.", effusion]
    reports = [GeneratedReport(str(i), text) for i, text in enumerate(texts)]
    assert choose_extreme_studies(references, reports, 2) == ([0, 4], [1, 3])
    assert choose_extreme_studies([heart] * 2, [GeneratedReport(key, heart) for key in "ab"], 1) == ([0], [1])
    assert choose_extreme_studies(references, reports, 9) == ([0, 4], [1, 3])  # no study is both
    assert choose_extreme_studies(references, reports, 0) == ([], [])
