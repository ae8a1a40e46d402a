"""The operator as torch's tracer, compiler and autocast see it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from amrg.kernels import hopfield_retrieve, quantize_rows


def arguments(dropout=0.0, keep=True, int8=False, grouped=True):
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(5, 8, generator=generator, requires_grad=True)
    memory, scale = torch.randn(21, 8, generator=generator), None
    if int8:
        memory, scale = quantize_rows(memory)
    else:
        memory.requires_grad_()
    groups = (torch.tensor([0, 1, -1, 2, 3]), torch.arange(21) % 4) if grouped else (None, None)
    seed = torch.tensor(7) if dropout else None
    return (queries, memory, scale, *groups, seed, dropout, 2, True, keep)


@pytest.mark.parametrize(
    "options", [{}, {"dropout": 0.2, "keep": False}, {"int8": True, "grouped": False}], ids=["kept", "dropout", "int8"]
)
def test_opcheck(options):
    torch.library.opcheck(torch.ops.amrg.hopfield_forward.default, arguments(**options))


def test_compiles_as_one_graph():
    def loss(queries, memory, group):
        found = hopfield_retrieve(
            queries, memory, query_group=group, memory_group=torch.arange(21) % 4, dropout=0.2, seed=3, top_k=2
        )
        return found.retrieved_MD.square().sum() + found.weights_MK.sum()

    queries, memory, _, group, *_ = arguments()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    results = []
    for function in (loss, compiled):
        value = function(queries, memory, group)
        results.append((value, *torch.autograd.grad(value, [queries, memory])))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def test_under_autocast_low_precision_queries_read_a_full_precision_memory():
    queries, memory, *_ = arguments()
    with torch.autocast("cpu", torch.bfloat16):
        projected = queries @ torch.eye(8)
        found = hopfield_retrieve(projected, memory)
    assert projected.dtype == found.retrieved_MD.dtype == torch.bfloat16
    found.retrieved_MD.sum().backward()
    assert queries.grad.isfinite().all()
    expected = hopfield_retrieve(projected.float(), memory).retrieved_MD
    torch.testing.assert_close(found.retrieved_MD.float(), expected, rtol=1e-2, atol=1e-2)


def test_a_package_named_kernels_that_others_look_for_registers_nothing_again():
    """transformers imports `kernels`, which is this folder where the checkout is on ``sys.path``."""
    code = "import amrg.kernels, sys; old = set(sys.modules); import kernels; "
    code += "assert kernels.hopfield_retrieve is amrg.kernels.hopfield_retrieve; print(sorted(set(sys.modules) - old))"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.split() == ["['kernels']"]
