"""The Triton kernels in Triton's interpreter against the formula; ``test_triton.py`` runs this in a process of its own.

The interpreter replaces Triton's functions when it is imported, so the rest of the suite must not share the process.
"""

import pytest
import torch

from amrg.kernels import quantize_rows
from amrg.kernels.hopfield.reference import Operands, reference_retrieve, softmax_delta
from amrg.kernels.hopfield.triton_backend import FusedRetrieval
from amrg.kernels.hopfield.two_products import TwoProductsRetrieval
from tests.kernels.test_retrieve import case
from tests.tolerances import assert_close

SHAPES = [(1, 1, 16), (37, 150, 33), (20, 200, 384), (6, 300, 200)]


def fused(generation, splits):
    """Build the fused back end as on a card of this generation."""
    return lambda operands: FusedRetrieval(operands, generation, splits)


def two_products(operands):
    """Build the two products with blocks of 16 queries and tiles of 128 rows, as few as there are."""
    return TwoProductsRetrieval(operands, (16, 16 * 128))


def check(shape, dtype, dropout, back_end, int8=False):
    queries, memory, groups, generator = case(*shape, dtype)
    rows, scale = quantize_rows(memory) if int8 else (memory.requires_grad_(), None)
    queries.requires_grad_()
    seed = torch.tensor(2**40 + 11)
    truth = reference_retrieve(
        queries, rows, memory_scale=scale, **groups, dropout=dropout, seed=seed, top_k=5
    )  # fmt: skip
    operands = Operands(queries.detach(), rows.detach(), scale, *groups.values(), seed, dropout)
    call = back_end(operands)
    retrieved, lse, mass, entropy, weights, indices, _ = call.forward(5, True)
    seen = truth.lse_M > -torch.inf
    assert torch.equal(lse > -torch.inf, seen)
    assert retrieved.dtype == dtype
    assert_close(retrieved, truth.retrieved_MD, dtype)
    assert_close(mass, truth.mass_M, dtype)
    assert_close(lse[seen], truth.lse_M[seen], dtype)
    assert_close(weights, truth.weights_MK, dtype)
    assert (entropy - truth.entropy_M).abs().max() < (1e-4 if dtype == torch.float32 else 2e-2)
    if dtype == torch.float32:
        assert torch.equal(indices, truth.indices_MK)
    grads = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in (retrieved, lse, mass)]
    loss = (
        (truth.retrieved_MD * grads[0]).sum() + (truth.lse_M * grads[1])[seen].sum() + (truth.mass_M * grads[2]).sum()
    )
    inputs = [queries] if int8 else [queries, memory]
    expected = torch.autograd.grad(loss, inputs)
    do, dlse, dmass = grads[0].to(dtype), grads[1].float(), grads[2].float()
    delta = softmax_delta(do, dlse, dmass, retrieved, lse, mass)
    found = call.backward(do, lse, delta, dmass, not int8)
    for grad, true in zip(found, expected, strict=False):
        assert_close(grad, true, dtype, gradient=True)


@pytest.mark.parametrize("back_end", [fused(80, 1), fused(80, 3), fused(90, 1), fused(90, 3), two_products])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("shape", SHAPES)
def test_single_precision(shape, dropout, back_end):
    check(shape, torch.float32, dropout, back_end)


@pytest.mark.parametrize("back_end", [fused(80, 2), fused(90, 2), fused(100, 2), two_products])
def test_half_precision(back_end):
    check((37, 150, 96), torch.float16, 0.2, back_end)


def test_bfloat16():
    """Not the fused kernels: the interpreter computes their products, and multiplies bfloat16 as integers."""
    check((37, 150, 96), torch.bfloat16, 0.2, two_products)


@pytest.mark.parametrize("back_end", [fused(80, 2), fused(90, 2), two_products])
def test_int8_rows(back_end):
    check((37, 150, 96), torch.float16, 0.2, back_end, int8=True)


def test_scores_far_below_those_of_another_tile_vanish_without_nan():
    """A running maximum that jumps from one tile to the next."""
    queries = torch.full((3, 16), 4.0)
    memory = torch.cat([torch.full((128, 16), -5.0), torch.full((128, 16), 5.0)])
    operands = Operands(queries, memory)
    retrieved, lse, *_ = two_products(operands).forward(0, True)
    truth = reference_retrieve(queries, memory)
    assert_close(retrieved, truth.retrieved_MD, torch.float32)
    assert_close(lse, truth.lse_M, torch.float32)


@pytest.mark.parametrize("back_end", [fused(90, 1), two_products])
def test_a_query_that_sees_no_row(back_end):
    queries, memory, _, _ = case(6, 40, 16)
    mine, theirs = torch.tensor([5, 5, 1, -1, 5, 2]), torch.full((40,), 5)
    call = back_end(Operands(queries, memory, query_group=mine, memory_group=theirs))
    retrieved, lse, mass, entropy, weights, indices, _ = call.forward(2, True)
    blind = mine == 5
    assert torch.equal(lse == -torch.inf, blind)
    for field in (retrieved, mass, entropy, weights):
        assert (field[blind] == 0).all()
        assert field.isfinite().all()
    assert (indices[blind] == -1).all()
    do, ones = torch.ones_like(retrieved), torch.ones_like(lse)
    grad, _ = call.backward(do, lse, softmax_delta(do, ones, ones, retrieved, lse, mass), ones, False)
    assert (grad[blind] == 0).all()
    assert grad.isfinite().all()
