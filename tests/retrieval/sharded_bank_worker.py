"""One of W real processes that retrieve from sharded banks and compare with the whole bank; argument: FOLDER.

Every check is an assertion; the test that starts the processes looks at their exit codes.
"""

import copy
import itertools
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed

from amrg.banks.bank import MemoryBank, normalise_rows, patient_group_id
from amrg.banks.writer import BankWriter, concatenate_parts
from amrg.errors import UserError
from amrg.kernels import hopfield_retrieve, quantize_rows
from amrg.models.hopfield import HopfieldMemory
from amrg.retrieval.communication_cost import BankShape, gather_traffic_bytes, ring_traffic_bytes, two_level_bytes
from amrg.retrieval.indexed_bank import IndexedBank
from amrg.retrieval.layout import ShardLayout, hybrid_replica_group, shard_row_range
from amrg.retrieval.sharded_bank import ShardedBank, retrieve_batched
from amrg.retrieval.types import RetrievalRequest
from tests.tolerances import TOLERANCES, relative_error

EXACT = 1e-5
SIZES = (37, 2, 0)  # more ranks than rows among them; nothing at all to the last
WIDTHS = (12, 7)
COUNTS = (5, 0, 3, 9)  # queries of each rank


def bank(rows: int, dim: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return normalise_rows(torch.randn(rows, dim, generator=generator)), torch.randint(
        -1, 4, (rows,), generator=generator
    )


def questions(count: int, dim: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 * seed + distributed.get_rank())
    queries = torch.randn(count, dim, generator=generator)
    return queries.requires_grad_(), torch.randint(-1, 4, (count,), generator=generator)


def shard(
    rows: Tensor, group: Tensor | None, layout: ShardLayout, way: str, scale: Tensor | None = None
) -> ShardedBank:
    start, stop = shard_row_range(len(rows), layout.flat.rank, layout.flat.size)
    return ShardedBank(
        rows[start:stop], start=start, total=len(rows), layout=layout, strategy=way,
        scale=None if scale is None else scale[start:stop], group=None if group is None else group[start:stop],
    )  # fmt: skip


def backward(found: list[Tensor], queries: Tensor) -> Tensor:
    """The gradient of something that uses retrieved, lse and mass; rows without a visible memory have lse −inf."""
    total = queries.sum() * 0
    for i, part in enumerate(found):
        finite = part.masked_fill(part == -torch.inf, 0.0)
        total = total + (finite * torch.linspace(-1, 1.5 + i, part.numel()).view_as(part)).sum()
    return torch.autograd.grad(total, queries)[0]


def compare(memory: ShardedBank, whole: dict, queries: Tensor, group: Tensor | None, top_k: int, answer=None) -> None:
    """A retrieval and its gradient against the operator on the whole bank, in this process."""
    found = answer or memory.retrieve(queries, query_group=group, top_k=top_k, return_entropy=True)
    memory_group = whole["memory_group"] if group is not None else None
    truth = hopfield_retrieve(
        queries, whole["rows"], memory_scale=whole.get("scale"), query_group=group, memory_group=memory_group,
        top_k=top_k, return_entropy=True,
    )  # fmt: skip
    assert found.indices_MK.equal(truth.indices_MK)
    for actual, expected in zip(found[:5], truth[:5], strict=True):
        assert actual.isneginf().equal(expected.isneginf())
        assert relative_error(actual.nan_to_num(neginf=0.0), expected.nan_to_num(neginf=0.0)) < EXACT
    actual, expected = backward(list(found[:3]), queries), backward(list(truth[:3]), queries)
    assert relative_error(actual, expected) < EXACT


def check_ways(layout: ShardLayout) -> None:
    count = COUNTS[layout.flat.rank % len(COUNTS)]
    for way, size, grouped in itertools.product(("replicate", "gather", "ring"), SIZES, (False, True)):
        rows, group = bank(size, WIDTHS[0], size)
        memory = shard(rows, group if grouped else None, layout, way)
        queries, query_group = questions(count, WIDTHS[0], size)
        compare(
            memory, {"rows": rows, "memory_group": group}, queries, query_group if grouped else None, top_k=3
        )  # fmt: skip


def check_autocast(layout: ShardLayout) -> None:
    """What is float32 stays as exact under bfloat16 autocast."""
    rows, group = bank(37, WIDTHS[0], 1)
    queries, query_group = questions(4, WIDTHS[0], 6)
    for way in ("gather", "ring"):
        with torch.autocast("cpu", torch.bfloat16):
            compare(shard(rows, group, layout, way), {"rows": rows, "memory_group": group}, queries, query_group, 3)


def check_interpreted_kernels(layout: ShardLayout) -> None:
    """The Triton back ends in Triton's interpreter; of a half-precision bank lse, mass and entropy are float32."""
    from amrg.kernels.hopfield import ops, triton_backend, two_products

    back_ends = {
        "two products": lambda operands: two_products.TwoProductsRetrieval(operands, (16, 16 * 128)),
        "fused": lambda operands: triton_backend.FusedRetrieval(operands, generation=90, splits=2),
    }
    rows, group = bank(37, WIDTHS[0], 1)
    rows = rows.half()
    queries, query_group = questions(4, WIDTHS[0], 6)
    for ops.back_end in back_ends.values():
        check_autocast(layout)
        truth = hopfield_retrieve(queries, rows, query_group=query_group, memory_group=group, return_entropy=True)
        gradient = backward(list(truth[:3]), queries)
        for way in ("gather", "ring"):
            memory = shard(rows, group, layout, way)
            with torch.autocast("cpu", torch.bfloat16):
                found = memory.retrieve(queries, query_group=query_group, return_entropy=True)
            for actual, expected in zip(found[1:4], truth[1:4], strict=True):
                assert relative_error(actual, expected) < EXACT
            assert relative_error(found.retrieved_MD, truth.retrieved_MD) < TOLERANCES[torch.float16][0]
            assert relative_error(backward(list(found[:3]), queries), gradient) < TOLERANCES[torch.float16][1]


def check_int8(layout: ShardLayout) -> None:
    rows, group = bank(41, WIDTHS[0], 5)
    small, scale = quantize_rows(rows)
    for way in ("replicate", "gather", "ring"):
        queries, query_group = questions(4, WIDTHS[0], 6)
        memory = shard(small, group, layout, way, scale)
        compare(memory, {"rows": small, "scale": scale, "memory_group": group}, queries, query_group, top_k=5)


def check_index(layout: ShardLayout) -> None:
    """An index on each rank: with all rows as candidates exactly as the whole bank, with some nearly."""
    rows, group = bank(400, WIDTHS[0], 3)
    start, stop = shard_row_range(400, layout.flat.rank, layout.flat.size)
    part = {"scale": None, "group": group[start:stop]}
    whole, (queries, query_group) = {"rows": rows, "memory_group": group}, questions(4, WIDTHS[0], 6)
    for candidates, kind in ((400, "ivf"), (80, "hnsw")):
        index = IndexedBank(
            rows[start:stop], **part, kind=kind, candidates=candidates, probes=10**6, exact_below=0
        )  # fmt: skip
        memory = ShardedBank(
            rows[start:stop], **part, start=start, total=400, layout=layout, strategy="gather", index=index
        )
        if candidates == 400:
            with torch.autocast("cpu", torch.bfloat16):
                compare(memory, whole, queries, query_group, top_k=3)
        truth = hopfield_retrieve(4 * queries, rows, query_group=query_group, memory_group=group)
        assert relative_error(memory.retrieve(4 * queries, query_group=query_group).lse_M, truth.lse_M) < 0.05
    first, again = (memory.retrieve(queries, dropout=0.3, seed=7).mass_M for _ in range(2))
    assert first.equal(again)


def check_together_and_bytes(layout: ShardLayout) -> None:
    """Two banks in one exchange; what was sent is what the formulas say."""
    ranks, rank = layout.flat.size, layout.flat.rank
    counts = [COUNTS[r % len(COUNTS)] for r in range(ranks)]
    wholes = [bank(37, WIDTHS[0], 1), bank(23, WIDTHS[1], 2)]
    for way in ("gather", "ring"):
        memories = [shard(rows, group, layout, way) for rows, group in wholes]
        asked = [questions(counts[rank], dim, 3) for dim in WIDTHS]
        before = layout.bytes_sent
        answers = retrieve_batched(
            [RetrievalRequest(m, q, g, top_k=2, return_entropy=True) for m, (q, g) in zip(memories, asked, strict=True)]
        )
        forward = layout.bytes_sent - before
        sum(answer.retrieved_MD.sum() for answer in answers).backward()
        total = layout.bytes_sent - before
        for memory, (rows, group), (queries, mine), answer in zip(memories, wholes, asked, answers, strict=True):
            again = memory.retrieve(queries, query_group=mine, top_k=2, return_entropy=True)
            assert answer.retrieved_MD.equal(again.retrieved_MD)
            compare(memory, {"rows": rows, "memory_group": group}, queries, mine, top_k=2)
        shapes = [BankShape(len(rows), rows.shape[1], 4, True, 4, True, 2) for rows, _ in wholes]
        if layout.levels != [layout.flat]:
            continue
        if way == "gather":
            expected = gather_traffic_bytes(shapes, counts, rank)
        else:
            expected = (ring_traffic_bytes(shapes, [memory.spans for memory in memories], rank),) * 2
        assert (forward, total - forward) == expected, (way, forward, total - forward, expected)


def check_levels(layout: ShardLayout) -> None:
    check_ways(layout)
    rows, group = bank(37, WIDTHS[0], 1)
    memory = shard(rows, group, layout, "gather")
    queries, query_group = questions(4, WIDTHS[0], 3)
    before = [level.bytes_sent for level in layout.levels]
    memory.retrieve(queries, query_group=query_group).retrieved_MD.sum().backward()
    between, inside = (level.bytes_sent - was for level, was in zip(layout.levels, before, strict=True))
    expected = two_level_bytes([BankShape(37, WIDTHS[0], 4)], 4, 2, layout.flat.size // 2)
    assert (between + inside) == sum(expected)
    assert between - 8 == expected[0]  # one other node: a header of one number


def check_dropout(layout: ShardLayout) -> None:
    """Repeatable by seed, unbiased, and the backward drops what the forward dropped."""
    rows, _ = bank(37, WIDTHS[0], 1)
    for way in ("gather", "ring"):
        memory = shard(rows, None, layout, way)
        queries, _ = questions(6, WIDTHS[0], 3)
        first = memory.retrieve(queries, dropout=0.3, seed=7)
        assert first.retrieved_MD.equal(memory.retrieve(queries, dropout=0.3, seed=7).retrieved_MD)
        assert not first.mass_M.equal(memory.retrieve(queries, dropout=0.3, seed=8).mass_M)
        many = torch.stack([memory.retrieve(queries, dropout=0.3, seed=s).retrieved_MD.detach() for s in range(200)])
        truth = hopfield_retrieve(queries, rows).retrieved_MD
        assert relative_error(many.mean(0), truth) < 0.15
        step = 1e-3 * torch.randn(queries.shape, generator=torch.Generator().manual_seed(1))
        gradient = torch.autograd.grad(first.retrieved_MD.sin().sum(), queries)[0]
        with torch.no_grad():
            up, down = (
                memory.retrieve(queries + s, dropout=0.3, seed=7).retrieved_MD.sin().sum() for s in (step, -step)
            )
        assert float((gradient * step).sum()) == pytest.approx(float(up - down) / 2, rel=0.02, abs=2e-5)


def check_module(layout: ShardLayout) -> None:
    """The memory of the model: output, gradients, attribution and perplexity, with several updates."""
    rows, group = bank(37, WIDTHS[0], 1)
    torch.manual_seed(layout.flat.rank)
    x, mine = torch.randn(2, 3, 8, requires_grad=True), torch.randint(-1, 4, (2,))
    torch.manual_seed(1)
    whole = HopfieldMemory(8, WIDTHS[0], 5, heads=2, head_dim=4, beta=8.0, update_steps=2, update_eps=0.0)
    whole.set_memory(rows, group=group)
    for way in ("gather", "ring"):
        module = copy.deepcopy(whole)
        module.set_bank(shard(rows, group, layout, way))
        outputs = [memory(x, query_group=mine) for memory in (module, whole)]
        gradients = [torch.autograd.grad(out.sin().sum(), x)[0] for out in outputs]
        for found, truth in (outputs, gradients):
            assert relative_error(found, truth) < EXACT
        assert module.metrics()["perplexity"] == pytest.approx(whole.metrics()["perplexity"], rel=EXACT)
        (weights, found), (expected, truth) = (m.attribution(x, query_group=mine, top_k=6) for m in (module, whole))
        assert found.equal(truth)
        assert relative_error(weights, expected) < EXACT


def check_disk(layout: ShardLayout, folder: Path) -> None:
    """Written by two ranks (where there are two), opened by all: the same rows, hash and results as from one writer."""
    rank, writers = layout.flat.rank, min(2, layout.flat.size)
    vectors = torch.randn(41, WIDTHS[0], generator=torch.Generator().manual_seed(9))
    origins = [
        {"key": f"k{i}", "group": f"p{i % 5}", "split": "train", "source": "region", "score": i / 7} for i in range(41)
    ]

    def write(path: Path, start: int, stop: int) -> None:
        with BankWriter(path, WIDTHS[0], dtype=torch.int8, chunk_rows=8) as writer:
            writer.add(vectors[start:stop], origins[start:stop])

    if rank < writers:
        write(folder / f"part-{rank}", *shard_row_range(41, rank, writers))
    distributed.barrier()
    if rank == 0:
        write(folder / "alone", 0, 41)
        concatenate_parts([folder / f"part-{r}" for r in range(writers)], folder / "joined")
    distributed.barrier()
    alone, joined = (MemoryBank.open(folder / name) for name in ("alone", "joined"))
    joined.verify()
    assert joined.content_hash == alone.content_hash
    queries, _ = questions(3, WIDTHS[0], 4)
    group = torch.tensor([patient_group_id(f"p{i}") for i in range(3)])
    whole = {"rows": alone.load(), "scale": alone.scale(0, 41), "memory_group": alone.groups}
    for way in ("replicate", "gather", "ring"):
        compare(ShardedBank.open(joined, layout, strategy=way), whole, queries, group, top_k=4)


def check_refusals(layout: ShardLayout) -> None:
    """A row dropped, doubled, beyond the end, or of another bank: the same error everywhere, naming the rank."""
    rank, last = layout.flat.rank, layout.flat.size - 1
    rows, _ = bank(40, WIDTHS[0], 1)
    start, stop = shard_row_range(40, rank, layout.flat.size)
    wrong = rank == last
    cases = {
        f"rank {last} skips rows": {"rows": rows[start + wrong : stop], "start": start + wrong},
        f"rank {last} repeats rows": {
            "rows": rows[start - (wrong and last > 0) : stop],
            "start": start - (wrong and last > 0),
        },
        "rows 39 to 39 of 40 are on no rank": {"rows": rows[start : stop - wrong], "start": start},
        f"rank {last} differs from rank 0 in content": {
            "rows": rows[start:stop],
            "start": start,
            "fingerprint": str(wrong),
        },
    }
    broken = rows[start:stop].clone()
    if wrong:
        broken[-1, 2] = float("nan")
    cases[f"rank {last}: row 39 is not finite"] = {"rows": broken, "start": start}
    for message, given in cases.items():
        if last == 0 and ("repeats" in message or "differs" in message):
            continue
        with pytest.raises(UserError, match=message):
            ShardedBank(**given, total=40, layout=layout, strategy="gather")


def main(folder: Path) -> None:
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    layout = ShardLayout()
    if os.environ.get("TRITON_INTERPRET") == "1":
        check_interpreted_kernels(layout)
    else:
        check_all(layout, folder)
    distributed.barrier()
    distributed.destroy_process_group()


def check_all(layout: ShardLayout, folder: Path) -> None:
    check_ways(layout)
    check_autocast(layout)
    check_int8(layout)
    check_index(layout)
    check_together_and_bytes(layout)
    check_module(layout)
    check_dropout(layout)
    check_refusals(layout)
    check_disk(layout, folder)
    if layout.flat.size == 4:
        check_levels(ShardLayout(ranks_per_node=2))
        check_ways(ShardLayout(hybrid_replica_group(2)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
