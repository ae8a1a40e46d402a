"""The Triton kernels in Triton's interpreter against the formula; ``test_triton.py`` runs this in a process of its own.

The interpreter replaces Triton's functions when it is imported, so the rest of the suite must not share the process.
"""

import pytest
import torch

from amrg.kernels import quantize_rows
from amrg.kernels.hopfield.reference import Operands, reference_retrieve, softmax_delta
from amrg.kernels.hopfield.triton_backend import FusedRetrieval
from tests.kernels.test_retrieve import case
from tests.tolerances import assert_close

SHAPES = [(1, 1, 16), (37, 150, 33), (20, 200, 384), (6, 300, 200)]


def check(shape, dtype, dropout, generation, splits, int8=False):
    queries, memory, groups, generator = case(*shape, dtype)
    rows, scale = quantize_rows(memory) if int8 else (memory.requires_grad_(), None)
    queries.requires_grad_()
    seed = torch.tensor(2**40 + 11)
    truth = reference_retrieve(
        queries, rows, memory_scale=scale, **groups, dropout=dropout, seed=seed, top_k=5
    )  # fmt: skip
    operands = Operands(queries.detach(), rows.detach(), scale, *groups.values(), seed, dropout)
    call = FusedRetrieval(operands, generation, splits)
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


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("generation", [80, 90])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("shape", SHAPES)
def test_single_precision(shape, dropout, generation, splits):
    check(shape, torch.float32, dropout, generation, splits)


@pytest.mark.parametrize("generation", [80, 90, 100])
def test_half_precision(generation):
    check((37, 150, 96), torch.float16, 0.2, generation, 2)


@pytest.mark.parametrize("generation", [80, 90])
def test_int8_rows(generation):
    check((37, 150, 96), torch.float16, 0.2, generation, 2, int8=True)


def test_a_query_that_sees_no_row():
    queries, memory, _, _ = case(6, 40, 16)
    mine, theirs = torch.tensor([5, 5, 1, -1, 5, 2]), torch.full((40,), 5)
    call = FusedRetrieval(Operands(queries, memory, query_group=mine, memory_group=theirs), 90, 1)
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
