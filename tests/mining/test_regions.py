"""The visual bank: a row for each film and finding, and for the normal anatomy of each film, linked to its report."""

import dataclasses
import json
from collections import Counter

import pytest
import torch

from amrg.banks.bank import MemoryBank, normalise_rows
from amrg.data.labels import FINDINGS, LABELS, NO_FINDING
from amrg.data.stream import iter_split_samples
from amrg.errors import UserError
from amrg.mining.regions import (
    STATS,
    Candidate,
    build_visual_bank,
    limit_per_finding,
    normal_sentences,
    sentences_stating,
)
from amrg.models.cam import activation_maps_of_images
from amrg.models.classifier import DiseaseClassifier
from amrg.models.regions import regions_of_films
from amrg.models.vision import films_to_tensor
from tests.synthetic_dataset import CONFIG as BFLOAT16
from tests.synthetic_dataset import FINDING, SIZES, prepare_squares, report

CONFIG = dataclasses.replace(BFLOAT16, stage1=dataclasses.replace(BFLOAT16.stage1, dtype="float32"))
FILMS = SIZES["train"] * 5 // 4  # every fourth study has two


def test_regions_of_a_label_are_drawn_up_to_its_limit_and_kept_in_order():
    found = [
        Candidate(0, i, study, 0, name, 1.0)
        for i, (study, name) in enumerate((s, name) for s in range(20) for name in ("Edema", NO_FINDING))
    ]
    most = dict.fromkeys(LABELS, 5) | {NO_FINDING: 100}
    counts = {name: Counter() for name in LABELS}
    kept = limit_per_finding(found, most, 1, counts)
    edema = [one.study for one in kept if one.label == "Edema"]
    assert len(set(edema)) == 5
    assert [one.study for one in kept if one.label == NO_FINDING] == list(range(20))
    assert kept == sorted(kept, key=lambda one: (one.study, LABELS.index(one.label)))
    assert counts["Edema"] == {"rows": 5, "over_limit": 15}
    assert counts[NO_FINDING] == {"rows": 20, "over_limit": 0}
    assert not counts["Fracture"]
    assert limit_per_finding(found, most, 1, {name: Counter() for name in LABELS}) == kept
    others = {tuple(limit_per_finding(found, most, seed, {name: Counter() for name in LABELS})) for seed in range(6)}
    assert len(others) > 1


def test_a_report_is_divided_into_what_states_a_finding_and_what_is_normal():
    text = "Mild cardiomegaly. Small left effusion and cardiomegaly. Possible pneumonia. No pneumothorax. Clear lungs."
    assert sentences_stating(text, "Cardiomegaly") == ["Mild cardiomegaly.", "Small left effusion and cardiomegaly."]
    assert sentences_stating(text, "Pleural Effusion") == ["Small left effusion and cardiomegaly."]
    assert sentences_stating(text, "Pneumothorax") == []
    assert sentences_stating(text, "Pneumonia") == []
    assert normal_sentences(text) == ["No pneumothorax.", "Clear lungs."]


@pytest.fixture(scope="module")
def mined(tmp_path_factory):
    root = tmp_path_factory.mktemp("mined")
    data = prepare_squares(root / "data")
    torch.manual_seed(0)
    model = DiseaseClassifier(CONFIG.vision).eval()
    model.save_pretrained(root / "stage1" / "model")
    (root / "stage1" / "thresholds.json").write_text(json.dumps(dict.fromkeys(LABELS, 0.0)))  # everything is found
    build_visual_bank(CONFIG, data, root / "stage1", root / "bank", root / "scratch")
    return root, data, model


def regions_of(folder, label):
    rows = MemoryBank.open(folder).provenance.to_pylist()
    return [row for row in rows if row["source"] == "region" and row["findings"] == [label]]


@pytest.mark.parametrize("label", [FINDING, NO_FINDING])
def test_a_row_is_the_region_of_its_film(mined, label):
    root, data, model = mined
    bank, films = MemoryBank.open(root / "bank"), {s.study.key: s for s in iter_split_samples(data, "train")}
    rows = regions_of(root / "bank", label)
    scale = json.loads((root / "bank" / STATS).read_text())["scales"][label]
    k, method = LABELS.index(label), CONFIG.banks.mining.method
    assert {row["split"] for row in rows} == {"train"}
    assert {row["view"] for row in rows} == {0, 1}
    for row in rows:
        sample = films[row["key"]]
        assert row["group"] == sample.study.group
        image = films_to_tensor([sample.views[row["view"]]], 64)
        with torch.no_grad():
            expected = regions_of_films(model(image).projected_BHWD, activation_maps_of_images(model, image, method))
        found = bank.rows(row["row"], row["row"] + 1)[0]
        # together with other films in the miner, alone here
        assert float(torch.nn.functional.cosine_similarity(found, expected.states_BKD[0, k], dim=0)) > 0.9999
        assert float(found.norm()) == pytest.approx(CONFIG.vision.query_dim**0.5, rel=1e-3)
        assert float(expected.peaks_BK[0, k]) / scale == pytest.approx(row["score"], rel=1e-3)
        assert row["box"] == expected.boxes_BK5[0, k, 1:].tolist()


def test_rows_are_linked_to_what_their_own_report_says_of_them(mined):
    root, data, _ = mined
    reports = {s.study.key: s.study.report for s in iter_split_samples(data, "train")}
    found, normal = (regions_of(root / "bank", label) for label in (FINDING, NO_FINDING))
    assert len(found) == CONFIG.banks.mining.regions_per_finding
    assert len(normal) == CONFIG.banks.mining.normal_regions
    for row in found + normal:
        number = int(row["key"].split("-")[1])
        assert reports[row["key"]] == report(number)
        said = [s for s in (f"Consolidation {number}.", "Heart size is normal.") if s in report(number)]
        assert row["text"] == (said[0] if row["findings"] == [FINDING] else said[-1])


def test_a_film_and_finding_have_one_row_and_every_film_shows_normal_anatomy(mined, tmp_path):
    root, data, _ = mined
    mining = dataclasses.replace(CONFIG.banks.mining, threshold=1e-9, regions_per_finding=99, normal_regions=99)
    config = dataclasses.replace(CONFIG, banks=dataclasses.replace(CONFIG.banks, mining=mining))
    build_visual_bank(config, data, root / "stage1", tmp_path / "bank", root / "scratch")
    for label, films in ((FINDING, SIZES["train"] * 3 // 4), (NO_FINDING, FILMS)):
        places = [(row["key"], row["view"]) for row in regions_of(tmp_path / "bank", label)]
        assert len(places) == len(set(places)) == films
    assert len(MemoryBank.open(tmp_path / "bank")) == SIZES["train"] * 3 // 4 + FILMS + len(LABELS)


def test_disease_tokens_are_rows_that_everybody_sees(mined):
    root, _, model = mined
    bank = MemoryBank.open(root / "bank")
    tokens = [row for row in bank.provenance.to_pylist() if row["source"] == "disease_token"]
    assert [row["findings"] for row in tokens] == [[name] for name in LABELS]
    assert torch.equal(bank.rows(len(bank) - 14, len(bank)), normalise_rows(model.disease_queries.detach()))
    assert (bank.groups[-14:] == -1).all()


def test_counts_add_up(mined):
    root, _, _ = mined
    bank, stats = MemoryBank.open(root / "bank"), json.loads((root / "bank" / STATS).read_text())
    assert stats["studies"] == SIZES["train"]
    assert stats["method"] == bank.header["about"]["method"] == CONFIG.banks.mining.method
    assert set(stats["findings"]) == set(LABELS)
    found = stats["findings"][FINDING]
    assert found["positive"] == SIZES["train"] * 3 / 4  # films: half of these studies have two
    assert found["positive"] == found["rows"] + found["over_limit"] + found.get("faint", 0) + found.get("missed", 0)
    assert stats["findings"][NO_FINDING]["positive"] == FILMS
    assert sum(c.get("rows", 0) for c in stats["findings"].values()) == len(bank) - 14
    assert not any(any(stats["findings"][name].values()) for name in FINDINGS if name != FINDING)


def test_again_it_is_the_same_and_a_finished_bank_is_kept(mined, tmp_path):
    root, data, _ = mined
    bank = tmp_path / "bank"
    build_visual_bank(CONFIG, data, root / "stage1", bank, tmp_path / "scratch")
    before = {path.name: path.read_bytes() for path in (root / "bank").iterdir()}
    assert {path.name: path.read_bytes() for path in bank.iterdir()} == before
    build_visual_bank(CONFIG, data, tmp_path / "no stage 1 is needed", bank, tmp_path / "nor parts")


def test_faint_and_missed_findings_are_counted_and_are_no_rows(mined, tmp_path):
    root, data, _ = mined
    stage1 = tmp_path / "stage1"
    (stage1 / "model").mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (stage1 / "model" / name).write_bytes((root / "stage1" / "model" / name).read_bytes())
    for threshold, tau, key in ((0.0, 1e6, "faint"), (1.0, 0.5, "missed")):
        (stage1 / "thresholds.json").write_text(json.dumps(dict.fromkeys(LABELS, threshold)))
        mining = dataclasses.replace(CONFIG.banks.mining, threshold=tau, max_studies=10, normal_regions=99)
        config = dataclasses.replace(CONFIG, banks=dataclasses.replace(CONFIG.banks, mining=mining))
        build_visual_bank(config, data, stage1, tmp_path / key, tmp_path / "scratch" / key)
        stats = json.loads((tmp_path / key / STATS).read_text())
        assert stats["studies"] == 10
        assert stats["findings"][FINDING][key] == stats["findings"][FINDING]["positive"] > 0
        assert regions_of(tmp_path / key, FINDING) == []
        normal = len(regions_of(tmp_path / key, NO_FINDING))
        assert normal == stats["findings"][NO_FINDING]["positive"] >= 10
        assert len(MemoryBank.open(tmp_path / key)) == normal + 14


def test_an_unknown_map_is_refused(mined, tmp_path):
    root, data, _ = mined
    mining = dataclasses.replace(CONFIG.banks.mining, method="dreamcam")
    config = dataclasses.replace(CONFIG, banks=dataclasses.replace(CONFIG.banks, mining=mining))
    with pytest.raises(UserError, match=r"banks\.mining\.method: there is no activation map `dreamcam`"):
        build_visual_bank(config, data, root / "stage1", tmp_path / "bank", tmp_path / "scratch")
