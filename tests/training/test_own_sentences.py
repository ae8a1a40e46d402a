"""Whose sentences are not said of a study: its own patient's, unless memory shows them."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from amrg.config import Config
from amrg.memory.bank import NO_GROUP
from amrg.models.composer import Composed
from amrg.training.generate import write_reports


@pytest.mark.parametrize("hide", [True, False])
def test_own_sentences_are_said_where_own_rows_are_seen(hide):
    asked = []

    def compose(sight, associations, group_B):
        asked.append(group_B.tolist())
        return [Composed("")] * 2

    memory = replace(Config().memory, hide_own_patient=hide)
    model = SimpleNamespace(
        memory_config=memory,
        associations=lambda *_: {},
        loud_queries=lambda _: None,
        generate=lambda *_, **__: ["Clear.", "Clear."],
    )
    recorder = SimpleNamespace(record=lambda *_: {})
    lines = write_reports(model, None, torch.tensor([5, 7]), Config(), recorder, SimpleNamespace(compose=compose))
    assert asked == [[5, 7] if hide else [NO_GROUP, NO_GROUP]]
    assert [line["generated"] for line in lines] == ["Clear.", "Clear."]
