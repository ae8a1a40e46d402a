"""Approximate retrieval against the exact operator: candidates, bound, gradients."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from amrg.banks.bank import normalise_rows
from amrg.kernels import hopfield_retrieve, quantize_rows
from amrg.retrieval import indexed_bank
from amrg.retrieval.indexed_bank import IndexedBank
from tests.tolerances import relative_error

N, D = 6000, 24


def clustered(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows around 60 centres, and queries near some of them."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(60, D, generator=generator) * 3
    rows = normalise_rows(centres[torch.arange(N) % 60] + torch.randn(N, D, generator=generator) * 0.5)
    queries = rows[torch.randint(N, (17,), generator=generator)] * 0.6 + 0.05 * torch.randn(17, D, generator=generator)
    return rows, queries


def missed(memory: IndexedBank, queries: Tensor, lse: Tensor, **groups: Tensor) -> Tensor:
    exact = hopfield_retrieve(queries, memory.rows, memory_scale=memory.scale, **groups).lse_M
    return 1 - torch.exp(lse - exact)


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_candidates_hold_the_mass_and_the_bound_holds(kind) -> None:
    rows, queries = clustered()
    memory = IndexedBank(rows, kind=kind, candidates=400, exact_below=0)
    found = memory.retrieve(queries, top_k=5, return_entropy=True)
    truth = hopfield_retrieve(queries, rows, top_k=5, return_entropy=True)
    lost = missed(memory, queries, found.lse_M)
    assert float(lost.max()) < 0.01
    assert bool((memory.missed_mass_bound >= lost - 1e-6).all())
    assert bool((memory.missed_mass_bound <= 1).all())
    assert found.indices_MK.equal(truth.indices_MK)
    for name in ("retrieved_MD", "lse_M", "entropy_M", "weights_MK"):
        assert relative_error(getattr(found, name), getattr(truth, name)) < 0.01, name


def test_the_bound_holds_where_much_is_missed() -> None:
    rows, queries = clustered(1)
    for candidates, probes, size in ((3, 1, 0.3), (50, 2, 0.05), (1, 1, 1.0)):
        memory = IndexedBank(rows, candidates=candidates, probes=probes, exact_below=0)
        lost = missed(memory, queries * size, memory.retrieve(queries * size).lse_M)
        assert float(lost.max()) > 0.2
        assert bool((memory.missed_mass_bound >= lost - 1e-6).all())


def test_the_bound_is_small_where_cells_are_tight() -> None:
    """Sixty points many times over: what is unseen is far away."""
    rows, _ = clustered()
    memory = IndexedBank(rows[torch.arange(N) % 60], candidates=400, exact_below=0)
    queries = rows[:9] * 3
    memory.retrieve(queries)
    assert float(memory.missed_mass_bound.max()) < 0.05


def test_all_rows_as_candidates_is_exact_with_gradients_and_groups() -> None:
    rows, queries = clustered()
    generator = torch.Generator().manual_seed(2)
    group, mine = torch.randint(-1, 5, (N,), generator=generator), torch.randint(-1, 5, (17,), generator=generator)
    memory = IndexedBank(rows, group=group, candidates=N, probes=10**6, exact_below=0)
    results = []
    for retrieve in (
        lambda q: memory.retrieve(q, query_group=mine),
        lambda q: hopfield_retrieve(q, rows, query_group=mine, memory_group=group),
    ):
        q = queries.clone().requires_grad_()
        found = retrieve(q)
        total = (found.retrieved_MD * torch.linspace(-1, 1, D)).sum() + found.lse_M.sin().sum()
        results.append((found.retrieved_MD, found.lse_M, torch.autograd.grad(total, q)[0]))
    for ours, exact in zip(*results, strict=True):
        assert relative_error(ours, exact) < 1e-5
    assert float(memory.missed_mass_bound.max()) < 1e-6


def test_a_query_that_sees_no_candidate_gets_zeros() -> None:
    rows, queries = clustered()
    memory = IndexedBank(rows, group=torch.full((N,), 3), candidates=20, exact_below=0)
    q = queries.requires_grad_()
    found = memory.retrieve(q, query_group=torch.full((17,), 3), top_k=2)
    assert not found.retrieved_MD.any()
    assert found.lse_M.isneginf().all()
    assert (found.indices_MK == -1).all()
    assert not torch.autograd.grad(found.retrieved_MD.sum(), q)[0].any()
    assert bool((memory.missed_mass_bound == 1).all())


def test_int8_rows_and_dropout() -> None:
    rows, queries = clustered()
    small, scale = quantize_rows(rows)
    memory = IndexedBank(small, scale=scale, candidates=400, exact_below=0)
    truth = hopfield_retrieve(queries, small, memory_scale=scale)
    assert relative_error(memory.retrieve(queries).retrieved_MD, truth.retrieved_MD) < 0.01
    first, again = (memory.retrieve(queries, dropout=0.3, seed=4) for _ in range(2))
    assert first.retrieved_MD.equal(again.retrieved_MD)
    many = torch.stack([memory.retrieve(queries, dropout=0.3, seed=s).mass_M for s in range(100)])
    assert float(many.mean()) == pytest.approx(1.0, abs=0.02)


def test_autocast_does_not_round_what_is_float32() -> None:
    rows, queries = clustered()
    memory = IndexedBank(rows, candidates=N, probes=10**6, exact_below=0)
    with torch.autocast("cpu", torch.bfloat16):
        found = memory.retrieve(queries)
    assert found.retrieved_MD.dtype == torch.float32
    assert relative_error(found.retrieved_MD, hopfield_retrieve(queries, rows).retrieved_MD) < 1e-5


def test_small_banks_are_read_whole() -> None:
    rows, queries = clustered()
    memory = IndexedBank(rows)
    assert memory.retrieve(queries).retrieved_MD.equal(hopfield_retrieve(queries, rows).retrieved_MD)
    assert not memory.missed_mass_bound.any()
    assert math.isfinite(float(memory.retrieve(queries).lse_M.sum()))


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_a_saved_index_is_read_and_one_of_other_rows_or_a_damaged_one_is_built_again(
    kind: indexed_bank.IndexKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, queries = clustered()
    folder, built = tmp_path / "index", []
    build = indexed_bank._FaissIndex.build
    monkeypatch.setattr(indexed_bank._FaissIndex, "build", lambda bank, kind: built.append(kind) or build(bank, kind))

    def lse_of(content_hash: str) -> Tensor:
        memory = IndexedBank(
            rows, kind=kind, candidates=50, probes=2, exact_below=0, saved=folder, content_hash=content_hash
        )
        lse = memory.retrieve(queries).lse_M
        return torch.stack([lse, memory.missed_mass_bound])

    first = lse_of("a")
    assert lse_of("a").equal(first)
    assert built == [kind]
    lse_of("b")
    index = folder / "index.faiss"
    content = bytearray(index.read_bytes())
    content[-7] ^= 1
    index.write_bytes(content)
    lse_of("b")
    (folder / "cells.safetensors").write_bytes(b"")
    assert lse_of("b").equal(first)
    assert built == [kind] * 4
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("cannot be used") == 3
    assert "it is of other rows" in said
    assert "index.faiss was changed" in said
    assert lse_of("b").equal(first)
    assert len(built) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_an_index_goes_to_the_gpu_of_its_bank_where_faiss_has_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    class Faiss:
        gpus = 0
        StandardGpuResources = staticmethod(lambda: "resources")
        index_cpu_to_gpu = staticmethod(lambda *given: given)

        @classmethod
        def get_num_gpus(cls) -> int:
            return cls.gpus

    monkeypatch.setattr(indexed_bank, "_faiss", lambda: Faiss)
    assert indexed_bank._on_gpu("index", torch.device("cuda", 1)) == "index"
    Faiss.gpus = 2
    assert indexed_bank._on_gpu("index", torch.device("cpu")) == "index"
    assert indexed_bank._on_gpu("index", torch.device("cuda", 1)) == ("resources", 1, "index")
