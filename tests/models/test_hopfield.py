"""The Hopfield memory against the published layer, written out from its formula in float64."""

import itertools

import pytest
import torch

from amrg.banks.bank import normalise_rows
from amrg.kernels import quantize_rows
from amrg.models import CrossAttention, HopfieldMemory
from amrg.models.hflayers import from_hflayers
from benchmarks.hopfield_baselines import absorbed, hflayers_formula, project_once_sdpa
from tests.tolerances import assert_close

B, L, S, D, OUT, H, K, V, N = 3, 5, 21, 33, 19, 3, 17, 11, 203


def build(beta=0.5, steps=1, dtype=torch.float32, seed=0, **options):
    """A memory with non-trivial norms and biases, its input and its bank."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    module = HopfieldMemory(
        S, D, OUT, heads=H, head_dim=K, value_dim=V, beta=beta, update_steps=steps, update_eps=0, **options
    )
    for name, parameter in module.named_parameters():
        if name != "log_beta":
            parameter.data += 0.08 * torch.randn(parameter.shape, generator=generator)
    x = torch.randn(B, L, S, generator=generator)
    memory = normalise_rows(torch.randn(N, D, generator=generator))
    return module.to(dtype), x.to(dtype).requires_grad_(), memory.to(dtype)


def groups_and_mask():
    query_group, memory_group = torch.tensor([4, -1, 9]), torch.arange(N) % 7 - 1
    mask = (query_group[:, None] == memory_group[None, :]) & (memory_group != -1)
    return {"query_group": query_group, "memory_group": memory_group}, mask


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("beta", [1 / 32, 0.5, 4.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_equals_the_published_layer(steps, beta, masked):
    module, x, memory = build(beta, steps)
    groups, mask = groups_and_mask() if masked else ({}, None)
    truth = {name: p.detach().double().requires_grad_() for name, p in module.named_parameters()}
    x64 = x.detach().double().requires_grad_()
    expected = hflayers_formula(truth, x64, memory.double(), H, beta, steps, mask)
    found = module(x, memory, **groups)
    assert_close(found, expected, torch.float32)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    found.backward(weight)
    expected.backward(weight.double())
    pairs = {"x": (x.grad, x64.grad)} | {name: (p.grad, truth[name].grad) for name, p in module.named_parameters()}
    for name, (grad, true) in pairs.items():
        if steps == 1 and name in ("key_shift", "k_proj.bias"):
            # they move every score of a query alike, so one association does not depend on them
            assert grad is None
            assert true.abs().max() < 1e-9 * truth["k_proj.weight"].grad.abs().max()
        else:
            assert_close(grad, true, torch.float32, gradient=True)


def hflayers_state(module, memory, fused):
    """The parameters under the names hflayers gives them."""
    p, core = module.state_dict(), "hopfield.association_core."
    norms = {"state_pattern": ("state_norm.weight", "state_norm.bias"), "stored_pattern": ("key_gain", "key_shift")}
    norms["pattern_projection"] = ("value_gain", "value_shift")
    state = {"lookup_weights": memory[None]}
    for name, (weight, bias) in norms.items():
        state |= {f"hopfield.norm_{name}.weight": p[weight], f"hopfield.norm_{name}.bias": p[bias]}
    state[core + "in_proj_bias"] = torch.cat([p[f"{name}_proj.bias"] for name in "qkv"])
    if fused:
        state[core + "in_proj_weight"] = torch.cat([p[f"{name}_proj.weight"] for name in "qkv"])
    else:
        state |= {core + f"{name}_proj_weight": p[f"{name}_proj.weight"] for name in "qkv"}
    return state | {core + f"out_proj.{part}": p[f"out_proj.{part}"] for part in ("weight", "bias")}


@pytest.mark.parametrize("fused", [False, True])
def test_loads_the_parameters_of_hflayers(fused):
    width = D if fused else S  # hflayers fuses the projections when all widths are equal
    original = HopfieldMemory(width, D, OUT, heads=H, head_dim=K, beta=0.5, update_steps=2)
    for parameter in original.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    raw = torch.randn(N, D, generator=torch.Generator().manual_seed(0)) * 3 + 1
    state = hflayers_state(original, raw, fused)
    loaded = from_hflayers(state, num_heads=H, hidden_size=K, beta=0.5, update_steps=2)
    x = torch.randn(B, L, width, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(loaded(x), original(x, normalise_rows(raw)))
    assert "memory" not in loaded.state_dict()
    assert all(parameter.shape[0] != N for parameter in loaded.parameters())
    state["target_weights"] = state["lookup_weights"]
    with pytest.raises(ValueError, match="target_weights"):
        from_hflayers(state, num_heads=H, hidden_size=K, beta=0.5)


def test_updates_stop_head_by_head_once_the_association_rests():
    """As hflayers does: a head whose association moved no more than the threshold keeps it; others go on."""
    module, x, memory = build(beta=1.0, dtype=torch.float64)
    p, heads_state = dict(module.named_parameters()), []

    def associations(step):
        y = hflayers_formula(
            p | {"out_proj.weight": torch.eye(H * V).double(), "out_proj.bias": None}, x, memory, H, 1.0, step
        )
        return y.unflatten(-1, (H, V))

    module.out_proj = torch.nn.Identity()
    changes = []
    for step in range(1, 6):
        module.update_steps = step
        module(x, memory)
        queries, lse, bank, _ = module._last
        changes.append((torch.exp(queries @ bank.rows.T - lse[:, None])).view(H, B, L, N))
        heads_state.append(associations(step))
    moved = torch.stack([(b - a).flatten(2).norm(dim=2).amax(1) for a, b in itertools.pairwise(changes)])
    threshold = float(moved[1].sort().values[:2].mean())  # between two heads at the third association
    stops = [next((i + 2 for i, m in enumerate(moved[:, h]) if m <= threshold), 5) for h in range(H)]
    assert len(set(stops)) > 1
    module.update_eps = threshold
    found = module(x, memory).unflatten(-1, (H, V))
    for head, stop in enumerate(stops):
        torch.testing.assert_close(found[:, :, head], heads_state[stop - 1][:, :, head])


def test_dropout_leaves_the_mean_and_repeats_under_a_seed():
    module, x, memory = build(beta=1.0, dropout=0.3)
    module.eval()
    plain = module(x, memory).detach()
    module.train()
    draws = []
    for seed in range(300):
        torch.manual_seed(seed)
        draws.append(module(x, memory).detach())
    torch.manual_seed(299)
    assert torch.equal(module(x, memory), draws[-1])
    stack = torch.stack(draws)
    assert ((stack.mean(0) - plain).abs() / (stack.std(0) / 300**0.5)).max() < 5


@pytest.mark.parametrize("kind", [HopfieldMemory, CrossAttention])
def test_a_sample_that_sees_no_row_gets_the_output_bias(kind):
    module = kind(S, D, OUT, heads=H, head_dim=K)
    torch.nn.init.normal_(module.out_proj.bias)
    torch.nn.init.normal_(module.v_proj.bias)
    x, memory = torch.randn(2, L, S, requires_grad=True), normalise_rows(torch.randn(N, D))
    y = module(x, memory, query_group=torch.tensor([3, 4]), memory_group=torch.full((N,), 3))
    torch.testing.assert_close(y[0], module.out_proj.bias.expand(L, -1))
    y.sum().backward()
    assert (x.grad[0] == 0).all()
    assert x.grad[1].abs().sum() > 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("kind", [HopfieldMemory, CrossAttention])
def test_attribution_and_metrics(kind):
    torch.manual_seed(0)
    module = kind(S, D, OUT, heads=H, head_dim=K)
    for p in module.parameters():
        p.data += 0.3 * torch.randn_like(p)
    x, memory = torch.randn(B, L, S), normalise_rows(torch.randn(N, D))
    groups, _ = groups_and_mask()
    p = dict(module.named_parameters())
    q = torch.nn.functional.linear(module.state_norm(x), p["q_proj.weight"], p["q_proj.bias"]).view(B, L, H, K)
    rows = memory * p["key_gain"] + p["key_shift"] if kind is HopfieldMemory else memory
    key = torch.nn.functional.linear(rows, p["k_proj.weight"], p["k_proj.bias"]).view(N, H, K)
    scores = torch.einsum("blhk,nhk->blhn", q, key) * K**-0.5
    same = (groups["query_group"][:, None] == groups["memory_group"]) & (groups["memory_group"] >= 0)
    weights = scores.masked_fill(same[:, None, None], -torch.inf).softmax(-1)
    top, index = weights.mean(2).topk(4)
    found, rows = module.attribution(x, memory, **groups, top_k=4)
    torch.testing.assert_close(found, top)
    assert torch.equal(rows, index)
    module(x, memory, **groups)
    module.update_statistics()
    module(x, memory, **groups)
    module.update_statistics()
    metrics = module.metrics()
    entropy = torch.special.entr(weights).sum(-1)
    assert metrics["perplexity"] == pytest.approx(entropy.exp().mean().item(), rel=1e-4)
    usage = torch.special.entr(weights.mean((0, 1, 2))).sum().exp()
    assert metrics["effective_rows"] == pytest.approx(usage.item(), rel=1e-4)
    assert metrics["never_retrieved"] == pytest.approx((weights.amax((0, 1, 2)) < 0.5 / N).float().mean().item())


def test_beta_fixed_learned_and_scheduled():
    module, x, memory = build(beta=0.5, learn_beta=True)
    fixed, _, _ = build(beta=0.5)
    torch.testing.assert_close(module(x, memory), fixed(x, memory))
    module(x, memory).square().sum().backward()
    h = 1e-3  # the gradient of log β by central differences, one head
    with torch.no_grad():
        values = []
        for sign in (1, -1):
            fixed.set_beta(0.5 * torch.exp(torch.tensor([0.0, sign * h, 0.0])))
            values.append(fixed(x, memory).square().sum())
    assert module.log_beta.grad[1].item() == pytest.approx(float(values[0] - values[1]) / (2 * h), rel=2e-2)
    fixed.set_beta(2.0)
    torch.testing.assert_close(fixed(x, memory), build(beta=2.0)[0](x, memory))
    with pytest.raises(ValueError, match="learned"):
        module.set_beta(1.0)


def test_the_memory_of_a_module_is_neither_parameter_nor_state():
    module, x, memory = build()
    rows, scale = quantize_rows(memory)
    module.set_memory(rows, scale=scale)
    assert_close(module(x), module(x, memory), torch.int8)
    assert not {"memory", "memory_scale", "memory_group"} & module.state_dict().keys()
    with pytest.raises(ValueError, match="set_memory"):
        build()[0](x)


def test_compiles_as_one_graph_with_several_updates():
    module, x, memory = build(steps=3)
    module.update_eps = 1e-4
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, memory), module(x, memory))


def test_the_form_projected_once_is_the_same_layer():
    module, x, memory = build(dtype=torch.float64)
    y = project_once_sdpa(dict(module.named_parameters()), x, memory, H, 0.5)
    assert_close(y, module(x, memory), torch.float32)


def test_the_absorbed_form_of_the_benchmark_is_this_module():
    module, x, memory = build()
    parameters = dict(module.named_parameters())
    leaves = [x, *(p for name, p in parameters.items() if name not in ("key_shift", "k_proj.bias"))]
    results = []
    for y in (module(x, memory), absorbed(parameters, x, memory, H, 0.5)):
        results.append((y, *torch.autograd.grad(y.square().sum(), leaves)))
    for found, expected in zip(*results, strict=True):
        assert torch.equal(found, expected)
