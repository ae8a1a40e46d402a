"""Messages among the disease queries: the formula by hand, gradients, and a classifier that begins as without them."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from amrg.data.labels import LABELS
from amrg.models.classifier import DiseaseClassifier
from amrg.models.graph_attention import GraphAttention
from tests.models.test_classifier import CONFIG

HEADS, DIM, QUERIES = 2, 6, 5


def layer(dtype: torch.dtype = torch.float64) -> GraphAttention:
    torch.manual_seed(0)
    strengths = torch.randn(QUERIES, QUERIES)
    made = GraphAttention(DIM, HEADS, strengths + strengths.T)
    torch.nn.init.normal_(made.output.weight)
    made.scale_H.data = torch.tensor([0.5, 2.0])
    return made.to(dtype)


def by_hand(made: GraphAttention, queries_QD: Tensor) -> Tensor:
    """One study, head after head."""
    query, key, value = made.query_key_value(made.norm(queries_QD)).chunk(3, dim=-1)
    size, parts = DIM // HEADS, []
    for head in range(HEADS):
        own = slice(head * size, (head + 1) * size)
        scores = query[:, own] @ key[:, own].T / math.sqrt(size) + made.scale_H[head] * made.strengths_QQ
        parts.append(scores.softmax(-1) @ value[:, own])
    return queries_QD + made.output(torch.cat(parts, dim=-1))


def test_the_formula_of_each_head() -> None:
    made, queries = (
        layer(),
        torch.randn(3, QUERIES, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1)),
    )
    torch.testing.assert_close(made(queries), torch.stack([by_hand(made, one) for one in queries]))


def test_without_likeness_messages_are_weighted_by_the_ratio_to_chance() -> None:
    made = layer()
    made.query_key_value.weight.data[: 2 * DIM] = 0
    made.query_key_value.bias.data[: 2 * DIM] = 0
    made.scale_H.data.fill_(1.0)
    ratio = torch.rand(QUERIES, QUERIES, dtype=torch.float64) + 0.5
    made.strengths_QQ = ratio.log()
    queries = torch.randn(1, QUERIES, DIM, dtype=torch.float64)
    value = made.query_key_value(made.norm(queries))[..., 2 * DIM :]
    expected = queries + made.output((ratio / ratio.sum(1, keepdim=True)) @ value)
    torch.testing.assert_close(made(queries), expected)


def test_gradients_of_queries_and_parameters() -> None:
    made = layer()
    queries = torch.randn(2, QUERIES, DIM, dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*made.named_parameters(), strict=True)
    assert "scale_H" in names

    def function(queries: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(made, dict(zip(names, values, strict=True)), (queries,))

    assert torch.autograd.gradcheck(function, (queries, *parameters))


@pytest.fixture(scope="module")
def films() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def classifier(strengths_KK: Tensor | None) -> DiseaseClassifier:
    torch.manual_seed(0)
    return DiseaseClassifier(CONFIG, strengths_KK=strengths_KK).eval()


def test_a_classifier_begins_as_without_the_graph_and_is_saved_with_it(films: Tensor, tmp_path: Path) -> None:
    strengths = torch.randn(len(LABELS), len(LABELS))
    plain, guided = classifier(None), classifier(strengths)
    with torch.no_grad():
        assert torch.equal(guided(films).logits_BK, plain(films).logits_BK)
        assert torch.equal(guided(films).queries_BQD, plain(films).queries_BQD)
    assert guided.graph is not None
    guided(films).logits_BK.sum().backward()
    assert guided.graph.output.weight.grad is not None
    assert guided.graph.output.weight.grad.any()
    torch.nn.init.normal_(guided.graph.output.weight)
    guided.save_pretrained(tmp_path / "guided")
    loaded = DiseaseClassifier.from_pretrained(tmp_path / "guided")
    assert loaded.graph is not None
    assert torch.equal(loaded.graph.strengths_QQ, strengths)
    with torch.no_grad():
        assert torch.equal(loaded(films).logits_BK, guided(films).logits_BK)
        assert not torch.equal(loaded(films).logits_BK, plain(films).logits_BK)
    plain.save_pretrained(tmp_path / "plain")
    assert "graph_queries" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    assert not any(name.startswith("graph") for name in plain.state_dict())


def test_a_query_reads_the_others(films: Tensor) -> None:
    guided = classifier(torch.zeros(len(LABELS), len(LABELS)))
    assert guided.graph is not None
    torch.nn.init.normal_(guided.graph.output.weight)
    queries = torch.randn(1, len(LABELS), CONFIG.query_dim, requires_grad=True)
    (gradient,) = torch.autograd.grad(guided.graph(queries)[:, 5].sum(), queries)
    assert (gradient.abs().sum(-1) > 0).all()
