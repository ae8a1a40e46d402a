import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
import torch

from amrg.data.labels import FINDINGS, LABELS
from amrg.data.stream import read
from amrg.memory.bank import MemoryBank, normalise_rows
from amrg.models.cam import cam
from amrg.mining.miner import Candidate, distinct
from amrg.mining.regions import STATS, mine_regions, select, strongest
from amrg.models.stage1 import DiseaseClassifier
from amrg.models.vision import to_images
from tests.films import CONFIG, FINDING, SIZES, prepare_squares


def test_just_the_planted_patches_are_found():
    map_HW = np.full((14, 14), 0.2)
    planted = {(2, 3): 0.9, (2, 4): 0.7, (3, 4): 0.6, (9, 9): 0.8, (13, 0): 0.55}
    for cell, value in planted.items():
        map_HW[cell] = value
    shown_HW, patches, touching = strongest(map_HW, 0.5, 6)
    assert {(int(y), int(x)) for y, x in np.argwhere(shown_HW)} == set(planted)
    assert patches == [(2, 3, 0.9), (9, 9, 0.8), (13, 0, 0.55)]  # (2, 4) and (3, 4) touch the strongest
    assert touching == 2
    assert [p[:2] for p in strongest(map_HW, 0.5, 2)[1]] == [(2, 3), (9, 9)]
    assert strongest(map_HW, 0.9, 6)[1] == []  # τ itself does not exceed τ
    assert not strongest(np.zeros((14, 14)), 0.0, 6)[0].any()


def test_every_film_gives_its_strongest_before_any_gives_its_second():
    shown = np.zeros((14, 14), bool)
    found = [Candidate(film, 0, "Edema", shown, [(0, x, 1.0 - x / 10) for x in (0, 2, 4)]) for film in range(4)]
    found.append(Candidate(1, 0, "Atelectasis", shown, [(5, 5, 1.0)]))
    counts = {name: Counter() for name in FINDINGS}
    kept = select(found, 6, counts)
    assert [(c.study, c.finding, len(c.patches)) for c in kept] == [
        (0, "Edema", 2),
        (1, "Edema", 2),
        (1, "Atelectasis", 1),
        (2, "Edema", 1),
        (3, "Edema", 1),
    ]
    assert counts["Edema"]["over_limit"] == 6
    assert counts["Atelectasis"]["over_limit"] == 0


def test_the_same_vector_is_kept_once():
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert distinct(torch.stack([a, a * 3, b, a + 0.01 * b, b, -a])) == [0, 2, 5]


@pytest.fixture(scope="module")
def mined(tmp_path_factory):
    root = tmp_path_factory.mktemp("mined")
    data = prepare_squares(root / "data")
    torch.manual_seed(0)
    model = DiseaseClassifier(CONFIG.vision).eval()
    model.save_pretrained(root / "stage1" / "model")
    (root / "stage1" / "thresholds.json").write_text(json.dumps(dict.fromkeys(LABELS, 0.0)))  # everything is found
    mine_regions(CONFIG, data, root / "stage1", root / "bank", root / "scratch")
    return root, data, model


def test_rows_are_cells_of_the_masked_film_through_the_trained_projection(mined):
    root, data, model = mined
    bank, films = MemoryBank.open(root / "bank"), {s.study.key: s for s in read(data, "train")}
    rows = bank.provenance.to_pylist()
    regions = [row for row in rows if row["source"] == "region"]
    assert {row["view"] for row in regions} == {0, 1}
    assert 0 < len(regions) <= CONFIG.banks.mining.regions_per_finding
    assert {row["split"] for row in rows} == {"train"}
    scale = json.loads((root / "bank" / STATS).read_text())["scales"][FINDING]
    for row in regions:
        sample = films[row["key"]]
        assert row["findings"] == [FINDING]
        assert row["group"] == sample.study.group
        image = to_images([sample.views[row["view"]]], 64)
        x, y, right, bottom = row["box"]
        assert (right, bottom) == (x + 1, y + 1)
        with torch.no_grad():
            map_HW = cam(model, image, CONFIG.banks.mining.method)[0, LABELS.index(FINDING)] / scale
            shown = (map_HW > CONFIG.banks.mining.threshold).float()
            masked = image * shown.repeat_interleave(16, 0).repeat_interleave(16, 1)
            expected = normalise_rows(model.regions(model(masked).fine_BHWC)[:, y, x])[0]
        assert shown[y, x]
        assert float(map_HW[y, x]) == pytest.approx(row["score"], rel=0.1)
        found = bank.rows(row["row"], row["row"] + 1)[0]
        # mined in bfloat16, here in float32
        assert float(torch.nn.functional.cosine_similarity(found, expected, dim=0)) > 0.99


def test_disease_tokens_are_rows_that_everybody_sees(mined):
    root, _, model = mined
    bank = MemoryBank.open(root / "bank")
    tokens = [row for row in bank.provenance.to_pylist() if row["source"] == "disease_token"]
    assert [row["findings"] for row in tokens] == [[name] for name in LABELS]
    assert torch.equal(bank.rows(len(bank) - 14, len(bank)), normalise_rows(model.disease_queries.detach()))
    assert (bank.groups[-14:] == -1).all()


def test_counts_add_up_and_no_finding_is_never_mined(mined):
    root, _, _ = mined
    bank, stats = MemoryBank.open(root / "bank"), json.loads((root / "bank" / STATS).read_text())
    assert stats["studies"] == SIZES["train"]
    assert set(stats["findings"]) == set(FINDINGS)
    assert stats["findings"][FINDING]["positive"] == SIZES["train"] * 3 / 4  # films: half of these studies have two
    assert sum(c.get("rows", 0) for c in stats["findings"].values()) == len(bank) - 14
    assert not any(any(stats["findings"][name].values()) for name in FINDINGS if name != FINDING)


def test_again_it_is_the_same_and_a_finished_bank_is_kept(mined, tmp_path):
    root, data, _ = mined
    bank = tmp_path / "bank"
    mine_regions(CONFIG, data, root / "stage1", bank, tmp_path / "scratch")
    before = {path.name: path.read_bytes() for path in (root / "bank").iterdir()}
    assert {path.name: path.read_bytes() for path in bank.iterdir()} == before
    mine_regions(CONFIG, data, tmp_path / "no stage 1 is needed", bank, tmp_path / "nor parts")


def test_empty_masks_and_missed_findings_are_counted(mined, tmp_path):
    root, data, _ = mined
    stage1 = tmp_path / "stage1"
    (stage1 / "model").mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (stage1 / "model" / name).write_bytes((root / "stage1" / "model" / name).read_bytes())
    for threshold, tau, key in ((0.0, 1e6, "empty"), (1.0, 0.5, "missed")):
        (stage1 / "thresholds.json").write_text(json.dumps(dict.fromkeys(LABELS, threshold)))
        mining = dataclasses.replace(CONFIG.banks.mining, threshold=tau, films=10)
        config = dataclasses.replace(CONFIG, banks=dataclasses.replace(CONFIG.banks, mining=mining))
        mine_regions(config, data, stage1, tmp_path / key, tmp_path / "scratch" / key)
        stats = json.loads((tmp_path / key / STATS).read_text())
        assert stats["studies"] == 10
        assert stats["findings"][FINDING][key] == stats["findings"][FINDING]["positive"] > 0
        assert len(MemoryBank.open(tmp_path / key)) == 14  # the disease tokens alone
