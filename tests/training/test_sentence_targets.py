"""Whose sentences are not said of a study: its own patient's, unless memory shows them."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from amrg.config import Config
from amrg.inference.report_writer import ReportWriter
from amrg.models.composed import Composed
from amrg.models.report_generator import ReportGenerator
from tests.models.vision_outputs import sight_of


@pytest.mark.parametrize("hide", [True, False])
def test_own_sentences_are_said_where_own_rows_are_seen(hide):
    asked = []

    def compose(sight, associations, group_B, recall, **_):
        asked.append((group_B, recall))
        return [Composed("")] * 2

    memory = replace(Config().memory, mask_same_patient=hide)
    model = SimpleNamespace(
        memory_config=memory,
        settings=SimpleNamespace(separate_sections=False),
        hidden_groups=lambda group_B: ReportGenerator.hidden_groups(SimpleNamespace(memory_config=memory), group_B),
        associations=lambda *_: {},
        generate=lambda *_, **__: ["Clear.", "Clear."],
    )
    recorder = SimpleNamespace(record=lambda *_: {}, distance=None)
    group_B = torch.tensor([5, 7])
    composer = SimpleNamespace(compose=compose, fitted=lambda _, associations: associations)
    writer = ReportWriter(model, Config(), recorder, composer, text=None, guide=None)
    lines = writer.write(sight_of({}, {}), group_B)
    assert asked == [(group_B if hide else None, False)]  # no report memory: the decoder words what is named
    assert [line["generated"] for line in lines] == ["Clear.", "Clear."]
