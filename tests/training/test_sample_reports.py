"""What is watched of each validation, beside values by hand, and what it warns of."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amrg.config import CheckpointConfig, MemoryConfig, TelemetryConfig
from amrg.data.labels import FINDINGS
from amrg.models.association_shares import RowLabels
from amrg.models.report_generator import Association
from amrg.models.vision_output import VisionOutput
from amrg.training import sample_reports as watching
from amrg.training.loop import TrainingTask, fit_task
from amrg.training.sample_reports import (
    MemoryWatch,
    clinical_micro_f1,
    detect_collapses,
    failure_rates,
    share_of_most_frequent,
)
from tests.training.sample_reports_worker import STUDIES, build, sight, stated, validate, write_banks
from tests.training.test_sharding_equivalence import start
from tests.training.toy_training_worker import optimisation

WELL = {"visual_alike": 0.1, "visual_least_perplexity": 1.2, "report_alike": 0.9, "report_least_perplexity": 60.0,
        "query_cosine": 0.37}  # fmt: skip


@pytest.fixture
def banks(tmp_path: Path) -> Path:
    write_banks(tmp_path)
    return tmp_path


def test_loops_and_stock_reports_are_told_apart() -> None:
    looping = "the lungs are clear " * 3
    assert failure_rates([looping, "No effusion.", "no effusion"]) == {"watched_loops": 1 / 3, "watched_generic": 2 / 3}
    assert failure_rates(["Small effusion.", "No effusion."]) == {"watched_loops": 0.0, "watched_generic": 0.5}


def test_clinical_f1_by_hand() -> None:
    """2 of 3 stated findings are in the references, which have 4: 2 · 2 / (3 + 4)."""
    generated = ["Cardiomegaly. Small pleural effusion.", "Pneumothorax.", "Clear lungs."]
    references = ["Cardiomegaly.", "Left pneumothorax and atelectasis.", "Pulmonary edema."]
    assert clinical_micro_f1(generated, references) == pytest.approx(4 / 7)
    assert clinical_micro_f1(["Clear."], ["Normal."]) == 1.0


def test_alike_is_the_share_of_the_most_frequent_row() -> None:
    assert share_of_most_frequent([4, 4, 7, -1]) == 0.5
    assert share_of_most_frequent([-1, -1]) == 0.0


class Retrieving(nn.Module):
    """In place of a generator and its one memory: films retrieve what is told here."""

    def __init__(self, association: Association, perplexity_BQ: Tensor) -> None:
        super().__init__()
        self.association, self.perplexity_BQ = association, perplexity_BQ
        self.memories = self.streamed = {"visual": self}

    def of_queries(self, samples: int) -> dict[str, Tensor]:
        return {"perplexity": self.perplexity_BQ}

    def associations(self, sight: VisionOutput, group_B: Tensor, count: int) -> dict[str, Association]:
        return {"visual": self.association}


def test_relevance_and_alike_by_hand(banks: Path) -> None:
    """Rows 0, 5 and 10 of the bank are of the first finding, 1 and 6 of the second, and so on."""
    model = build(banks, "whole", use_report_memory=False)
    weights_BQJ, rows_BQJ = torch.zeros(3, 14, 3), torch.full((3, 14, 3), -1)
    weights_BQJ[0, 0], rows_BQJ[0, 0] = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([5, 1, 10])
    weights_BQJ[0, 1], rows_BQJ[0, 1] = torch.tensor([0.9, 0.1, 0.0]), torch.tensor([2, 6, -1])
    weights_BQJ[1, 0], rows_BQJ[1, 0] = torch.tensor([0.6, 0.2, 0.2]), torch.tensor([2, 0, 1])
    weights_BQJ[2, 0], rows_BQJ[2, 0] = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([7, -1, -1])
    states = {"a": [0, 1], "b": [0], "c": [0]}
    watch = MemoryWatch(
        RowLabels.open(model, banks),
        {name: torch.tensor([k in has for k in range(len(FINDINGS))]) for name, has in states.items()},
    )
    perplexity_BQ = torch.tensor([[3.0] * 13 + [1.5], [5.0] * 14, [99.0] * 14])
    fake: Any = Retrieving(Association(weights_BQJ, rows_BQJ), perplexity_BQ)
    ones = VisionOutput(*(torch.ones(3, 14, 24) for _ in VisionOutput._fields))
    batch = {"vision": ones, "group": torch.zeros(3), "study": ["a", "b", "c"], "counts": torch.tensor([1.0, 1.0, 0.0])}
    watch.add(fake, batch)  # the last study only fills the batch up
    assert watch.result() == pytest.approx({
        "query_cosine": 1.0,
        "visual_perplexity": (13 * 3.0 + 1.5 + 14 * 5.0) / 28,
        "visual_least_perplexity": (1.5 + 5.0) / 2,
        "visual_relevance": ((0.5 + 0.2) + 0.1 + 0.2) / 3,  # a's first and second finding, b's first
        "visual_alike": 1.0,  # row 2 has 0.9 of a, 0.6 of b
    }, abs=1e-6)  # fmt: skip
    assert watch.result() == {}


@pytest.mark.parametrize("retrieval", ["hopfield", "cross_attention"])
def test_perplexity_is_over_all_studies_of_validation(banks: Path, retrieval: Any) -> None:
    """Not only over the last batch; and relevance is that of whole associations, as banks are small."""
    model = build(banks, "whole", MemoryConfig(retrieval=retrieval, heads=2, head_dim=16, beta=8.0, sharpness=8.0))
    with torch.no_grad():
        for memory in model.memories.values():
            memory.k_proj.weight.normal_()
    found = validate(model, MemoryWatch(RowLabels.open(model, banks), stated()))
    seen, group_B = sight(STUDIES), torch.arange(STUDIES)
    states = model.memory_states(seen)
    for name, memory in model.memories.items():
        memory(states[name], query_group=group_B)
        assert found[f"{name}_perplexity"] == pytest.approx(memory.metrics()["perplexity"], rel=1e-5)
        assert 1 <= found[f"{name}_least_perplexity"] < found[f"{name}_perplexity"]
        weights_BQJ, rows_BQJ = model.associations(seen, group_B, 11)[name]
        shares = [
            sum(w for w, r in zip(weights_BQJ[i, k].tolist(), rows_BQJ[i, k].tolist(), strict=True) if r % 5 == k)
            for i in range(STUDIES - 1) for k in (i, i + 2)
        ]  # fmt: skip
        assert found[f"{name}_relevance"] == pytest.approx(sum(shares) / len(shares), rel=1e-5)


def test_what_cannot_be_said_is_left_out(banks: Path) -> None:
    """No study states anything; a memory is off; both are."""
    model = build(banks, "whole", use_visual_memory=False)
    nothing = {key: torch.zeros(13, dtype=torch.bool) for key in stated()}
    found = validate(model, MemoryWatch(RowLabels.open(model, banks), nothing))
    assert found.keys() == {"query_cosine", "report_perplexity", "report_least_perplexity", "report_alike"}
    json.dumps(found, allow_nan=False)
    model = build(banks, "whole", use_visual_memory=False, use_report_memory=False)
    assert validate(model, MemoryWatch({}, stated())).keys() == {"query_cosine"}


def test_a_memory_that_gives_text_alone_is_watched_without_perplexity(banks: Path) -> None:
    text = {"use_retrieved_text": True, "prompt": "{image}{retrieved}Findings:"}
    model = build(banks, "whole", use_visual_memory=False, use_report_memory=False, **text)
    found = validate(model, MemoryWatch(RowLabels.open(model, banks), stated()))
    assert found.keys() == {"query_cosine", "visual_relevance", "visual_alike"}
    assert 0 < found["visual_relevance"] < 1
    assert detect_collapses(found) == {}


def test_no_more_studies_than_needed_are_watched(banks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(banks, "whole")
    asked: list[int] = []
    associations = model.associations
    monkeypatch.setattr(model, "associations", lambda s, g, n: asked.append(len(g)) or associations(s, g, n))
    watch = MemoryWatch(RowLabels.open(model, banks), stated())
    validate(model, watch)
    assert asked == [4, 3]
    monkeypatch.setattr(watching, "STUDIES", 4)
    validate(model, watch)
    validate(model, watch)
    assert asked == [4, 3, 4, 4]


def test_ranks_tell_the_same_together(banks: Path) -> None:
    """Seven studies in batches of four: two ranks need one to fill up."""
    ways = ("replicate", "gather", "ring")
    start(1, banks, "whole", script="sample_reports_worker")
    start(2, banks, "whole", *ways, script="sample_reports_worker")
    truth = json.loads((banks / "1-whole.json").read_text())
    measures = ("relevance", "alike", "perplexity", "least_perplexity")
    assert truth.keys() == {"query_cosine", *(f"{m}_{x}" for m in ("visual", "report") for x in measures)}
    for way in ("whole", *ways):
        assert json.loads((banks / f"2-{way}.json").read_text()) == pytest.approx(truth, rel=1e-4), way


def test_only_a_collapse_is_warned_of() -> None:
    assert detect_collapses(WELL) == {}
    assert detect_collapses({}) == {}
    visual = detect_collapses(WELL | {"visual_alike": 0.91})
    assert visual.keys() == {"visual"}
    for told in ("visual memory", "91%", "1.2 rows", "memory.sharpness", "stage2.association_loss_weight"):
        assert told in visual["visual"]
    assert detect_collapses(WELL | {"visual_alike": 0.91, "visual_least_perplexity": 2.1}) == {}  # spread over several
    report = detect_collapses(WELL | {"report_least_perplexity": 1.0})
    assert report.keys() == {"report"}
    assert "stage2.retrieval_loss_weight" in report["report"]
    queries = detect_collapses(WELL | {"query_cosine": 0.96})
    assert queries.keys() == {"queries"}
    assert "0.96" in queries["queries"]


def test_a_memory_made_to_collapse_is_one(banks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its queries all ask for one row, so loudly that no other has weight; the same memory as it was is sound."""
    loud = MemoryConfig(heads=2, head_dim=16, beta=8.0, sharpness=200.0)
    model = build(banks, "whole", loud)
    rows = RowLabels.open(model, banks)
    assert detect_collapses(validate(model, MemoryWatch(rows, stated()))) == {}
    row_D = model.memories["visual"].bank.rows[3]
    states = model.memory_states

    def loud_for_one(seen: VisionOutput) -> dict[str, Tensor]:
        return states(seen) | {"visual": row_D.expand(len(seen.states_BQD), 14, -1)}

    monkeypatch.setattr(model, "memory_states", loud_for_one)
    found = validate(model, MemoryWatch(rows, stated()))
    assert found["visual_alike"] == 1.0
    assert found["visual_perplexity"] < 2
    assert detect_collapses(found).keys() == {"visual"}


def train(folder: Path, validations: list[dict[str, float]], epochs: int) -> list[dict[str, Any]]:
    """Train one step per epoch; ``validations`` by epoch."""
    batch = {"x": torch.ones(4, 3), "study": ["a"] * 4}
    torch.manual_seed(0)
    results = iter(validations)
    task = TrainingTask(
        model=nn.Linear(3, 2),
        loss=lambda model, b: (model(b["x"]).square().mean(), {}),
        batches=lambda epoch, begin: iter([batch]),
        steps_per_epoch=1,
        validate=lambda model: next(results),
        selection_metric=("val_loss", False),
        input_hashes={},
        warn=detect_collapses,
    )
    optimizer = replace(optimisation("zero1.json", 4), epochs=epochs)
    return fit_task(
        task, optimizer, folder=folder, seed=3, telemetry=TelemetryConfig(), checkpointing=CheckpointConfig()
    )


def test_training_warns_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whether it goes on by itself or was interrupted; the curves hold every epoch's warning."""
    bad = {"val_loss": 1.0, **WELL, "visual_alike": 0.91, "query_cosine": 0.99}
    rows = train(tmp_path, [{"val_loss": 1.0, **WELL}, bad, bad], 3)
    err = capsys.readouterr().err
    assert err.count("WARNING: the visual memory has collapsed") == 1
    assert err.count("WARNING: the queries of different findings") == 1
    assert err.count("WARNING") == 2
    assert [sorted(row.get("warnings", {})) for row in rows] == [[], ["queries", "visual"], ["queries", "visual"]]
    written = [json.loads(line) for line in (tmp_path / "curves.jsonl").read_text().splitlines()]
    assert written == rows
    assert not any(isinstance(v, float) and not math.isfinite(v) for row in written for v in row.values())
    train(tmp_path, [bad], 4)
    assert "WARNING" not in capsys.readouterr().err
    epochs = [json.loads(line) for line in (tmp_path / "logs" / "epochs.jsonl").read_text().splitlines()]
    assert [row["step"] for row in epochs] == [1, 2, 3, 4]
    assert epochs[1]["validation/visual_alike"] == 0.91
