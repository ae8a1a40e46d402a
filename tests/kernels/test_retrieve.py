"""The operator on the CPU against the formula in float64."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from amrg.kernels import hopfield_retrieve, quantize_rows
from amrg.kernels.hopfield import blockwise
from amrg.kernels.hopfield.reference import Operands, dropout_keep_mask, reference_retrieve
from tests.tolerances import assert_close

SHAPES = [(1, 1, 1), (13, 301, 33), (84, 515, 384), (5, 9000, 7), (2100, 300, 48)]


def case(m, n, d, dtype=torch.float32, grouped=True, scale=1.0):
    generator = torch.Generator().manual_seed(m * 1000 + n + d)
    queries = (torch.randn(m, d, generator=generator) * scale / d**0.25).to(dtype)
    memory = torch.nn.functional.layer_norm(torch.randn(n, d, generator=generator), (d,)).to(dtype)
    groups = {}
    if grouped:
        groups = {
            "query_group": torch.randint(-1, 4, (m,), generator=generator),
            "memory_group": torch.randint(-1, 3, (n,), generator=generator),
        }
    return queries, memory, groups, generator


def gradients(result, inputs, generator):
    """Gradients through retrieved, lse and mass together, lse only where it is finite."""
    retrieved, lse, mass = result[:3]
    seen = lse.detach() > -torch.inf
    weights = [torch.randn(t.shape, generator=generator).to(t.device, torch.float64) for t in (retrieved, lse, mass)]
    loss = (retrieved.double() * weights[0]).sum() + (lse.double() * weights[1])[seen].sum()
    return torch.autograd.grad(loss + (mass.double() * weights[2]).sum(), inputs)


@pytest.mark.parametrize("max_saved_bytes", [0, 2**30])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_the_formula_and_its_gradients(shape, dtype, dropout, max_saved_bytes):
    queries, memory, groups, generator = case(*shape, dtype)
    inputs = [queries.requires_grad_(), memory.requires_grad_()]
    arguments = {**groups, "dropout": dropout, "seed": 11, "top_k": 5}
    found = hopfield_retrieve(*inputs, **arguments, return_entropy=True, max_saved_bytes=max_saved_bytes)
    truth = reference_retrieve(*inputs, **arguments)
    seen = truth.lse_M > -torch.inf
    assert torch.equal(found.lse_M > -torch.inf, seen)
    assert found.retrieved_MD.dtype == dtype
    for name in ("retrieved_MD", "mass_M", "weights_MK"):
        assert_close(getattr(found, name), getattr(truth, name), dtype)
    assert (found.entropy_M - truth.entropy_M).abs().max() < 1e-4
    assert_close(found.lse_M[seen], truth.lse_M[seen], dtype)
    state = generator.get_state()
    grads = gradients(found, inputs, generator)
    for grad, expected in zip(grads, gradients(truth, inputs, generator.set_state(state)), strict=True):
        assert_close(grad, expected, dtype, gradient=True)


def test_attributed_rows_are_the_largest_of_the_association():
    queries, memory, groups, _ = case(13, 301, 33)
    found, truth = hopfield_retrieve(queries, memory, **groups, top_k=7), None
    truth = reference_retrieve(queries, memory, **groups, top_k=7)
    assert torch.equal(found.indices_MK, truth.indices_MK)
    few = hopfield_retrieve(queries, memory[:3], top_k=5)
    assert (few.indices_MK[:, 3:] == -1).all()
    assert (few.weights_MK[:, 3:] == 0).all()


def test_a_query_that_sees_no_row_retrieves_zeros_and_passes_no_gradient():
    queries, memory, _, _ = case(6, 40, 16)
    queries.requires_grad_()
    groups = {"query_group": torch.tensor([5, 5, 1, -1, 5, 2]), "memory_group": torch.full((40,), 5)}
    for max_saved_bytes in (0, 2**20):
        found = hopfield_retrieve(
            queries, memory, **groups, top_k=2, return_entropy=True, max_saved_bytes=max_saved_bytes
        )
        blind = groups["query_group"] == 5
        assert torch.equal(found.lse_M == -torch.inf, blind)
        for field in (found.retrieved_MD, found.mass_M, found.entropy_M, found.weights_MK):
            assert (field[blind] == 0).all()
            assert field[~blind].isfinite().all()
        assert (found.indices_MK[blind] == -1).all()
        (grad,) = torch.autograd.grad(found.retrieved_MD.sum() + found.lse_M.sum(), queries)
        assert (grad[blind] == 0).all()
        assert grad[~blind].abs().sum() > 0


@pytest.mark.parametrize(("m", "n"), [(0, 5), (4, 0)])
def test_nothing_to_ask_or_nothing_to_remember(m, n):
    queries = torch.randn(m, 8, requires_grad=True)
    found = hopfield_retrieve(queries, torch.randn(n, 8), top_k=2, return_entropy=True)
    found.retrieved_MD.sum().backward()
    assert found.retrieved_MD.shape == (m, 8)
    assert (found.retrieved_MD == 0).all()
    assert (found.lse_M == -torch.inf).all()


def test_large_scores_stay_exact():
    queries, memory, groups, _ = case(20, 700, 64, scale=300.0)
    found, truth = hopfield_retrieve(queries, memory, **groups), reference_retrieve(queries, memory, **groups)
    assert_close(found.retrieved_MD, truth.retrieved_MD, torch.float32)


def test_a_stored_row_is_recalled_exactly():
    memory = torch.nn.functional.layer_norm(torch.randn(50, 64, generator=torch.Generator().manual_seed(0)), (64,))
    found = hopfield_retrieve(8.0 * memory, memory, top_k=1, return_entropy=True)
    assert torch.equal(found.indices_MK[:, 0], torch.arange(50))
    torch.testing.assert_close(found.retrieved_MD, memory)
    assert found.entropy_M.max() < 1e-6


def test_int8_rows():
    queries, memory, groups, generator = case(40, 600, 96)
    rows, scale = quantize_rows(memory)
    assert rows.dtype == torch.int8
    queries.requires_grad_()
    found = hopfield_retrieve(queries, rows, memory_scale=scale, **groups)
    same = reference_retrieve(queries, rows, memory_scale=scale, **groups)
    before = reference_retrieve(queries, memory, **groups)
    assert_close(found.retrieved_MD, same.retrieved_MD, torch.float32)
    assert_close(found.retrieved_MD, before.retrieved_MD, torch.int8)
    state = generator.get_state()
    (grad,) = gradients(found, [queries], generator)
    (expected,) = gradients(same, [queries], generator.set_state(state))
    assert_close(grad, expected, torch.float32, gradient=True)


def test_dropout_repeats_by_seed_and_has_the_right_distribution():
    queries, memory, _, _ = case(300, 400, 8)
    one, same, other = (hopfield_retrieve(queries, memory, dropout=0.25, seed=s).retrieved_MD for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    torch.manual_seed(3)
    drawn = [hopfield_retrieve(queries, memory, dropout=0.25).retrieved_MD for _ in range(2)]
    assert not torch.equal(*drawn)
    torch.manual_seed(3)
    assert torch.equal(hopfield_retrieve(queries, memory, dropout=0.25).retrieved_MD, drawn[0])
    plain = hopfield_retrieve(queries[:5], memory).retrieved_MD
    draws = torch.stack([hopfield_retrieve(queries[:5], memory, dropout=0.25, seed=s).retrieved_MD for s in range(400)])
    error = draws.std(0) / 400**0.5
    assert ((draws.mean(0) - plain).abs() / error).max() < 5


def test_the_mask_is_independent_between_entries_rows_columns_and_seeds():
    p, size = 0.3, 512
    seeds = [torch.tensor(s) for s in (0, 1, 2**40)]
    masks = [dropout_keep_mask(s, (0, size), (0, size), p).double() - (1 - p) for s in seeds]
    sigma = 1 / size  # of the correlation of size² independent pairs
    for mask in masks:
        assert abs(mask.mean()) < 5 * (p * (1 - p)) ** 0.5 * sigma
        products = [mask * mask.roll(s, d) for d in (0, 1) for s in (1, 2, 64)]
        squares = mask * mask.roll(1, 0) * mask.roll(1, 1) * mask.roll((1, 1), (0, 1))
        for product, variance in [(x, p * (1 - p)) for x in products] + [(squares, (p * (1 - p)) ** 2)]:
            assert abs(product.mean()) < 5 * variance * sigma
    assert abs((masks[0] * masks[1]).mean()) < 5 * p * (1 - p) * sigma
    assert abs((masks[0] * masks[2]).mean()) < 5 * p * (1 - p) * sigma
    block = dropout_keep_mask(seeds[0], (100, 120), (30, 70), p)
    assert torch.equal(block.double() - (1 - p), masks[0][100:120, 30:70])


def test_halves_of_a_memory_merge_by_their_lse():
    queries, memory, _, _ = case(12, 100, 16)
    whole = hopfield_retrieve(queries, memory)
    halves = [hopfield_retrieve(queries, part) for part in (memory[:37], memory[37:])]
    share = torch.stack([half.lse_M for half in halves]).softmax(0)
    merged = sum(s[:, None] * half.retrieved_MD for s, half in zip(share, halves, strict=True))
    assert_close(merged, whole.retrieved_MD, torch.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"memory": torch.zeros(5, 3)}, "expected"),
        ({"memory": torch.zeros(5, 4, dtype=torch.int8)}, "memory_scale"),
        ({"memory": torch.zeros(5, 4, dtype=torch.int64)}, "floating"),
        ({"query_group": torch.zeros(2, dtype=torch.int64)}, "together"),
        ({"query_group": torch.zeros(2), "memory_group": torch.zeros(5)}, "int64"),
        ({"dropout": 1.0}, "dropout"),
        ({"top_k": -1}, "top_k"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, message):
    arguments = {"queries": torch.zeros(2, 4), "memory": torch.zeros(5, 4), **change}
    with pytest.raises(ValueError, match=message):
        hopfield_retrieve(**arguments)


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.bytes = max(self.bytes, out.numel() * out.element_size())
        return out


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_working_memory_does_not_grow_with_the_memory(dtype):
    sizes = []
    for n in (20_000, 200_000):
        queries, rows = torch.randn(84, 16), torch.ones(n, 16).to(dtype)
        scale = torch.ones(n) if dtype == torch.int8 else None
        with LargestTensor() as largest:
            operands = Operands(queries, rows, scale)
            o, lse, mass, *_, association = blockwise.forward(operands, 3, True, False)
            blockwise.backward(operands, torch.ones_like(o), lse, mass, mass, association, False)
        sizes.append(largest.bytes)
    assert sizes[0] == sizes[1] < 2**21
