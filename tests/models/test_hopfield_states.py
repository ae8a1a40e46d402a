"""States in the space of the rows, which ask as they are (``sharpness``), beside the naive formula."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from amrg.models.hopfield import HopfieldMemory
from tests.tolerances import assert_close

B, L, D, OUT, H, K, N = 3, 5, 33, 19, 3, 17, 101
SHARPNESS = 8.0


def rows_of(*shape: int, seed: int) -> Tensor:
    """Rows as a bank holds them, of length √D."""
    values = torch.randn(*shape, D, generator=torch.Generator().manual_seed(seed))
    return F.normalize(values - values.mean(-1, keepdim=True), dim=-1) * D**0.5


def build(learned: float = 0.0, **options: Any) -> HopfieldMemory:
    """A memory whose learned part has moved by so much, in all its parameters."""
    torch.manual_seed(0)
    given = {"heads": H, "head_dim": K, "beta": 0.5, "sharpness": SHARPNESS, "update_eps": 0.0} | options
    module = HopfieldMemory(D, D, OUT, **given).eval()
    for name, parameter in module.named_parameters():
        if name not in ("log_beta", "sharpness_H"):
            parameter.data += learned * torch.randn(parameter.shape)
    return module


def loud(states_BLD: Tensor) -> Tensor:
    """Of other lengths than a row's: from silent to twice as long."""
    return states_BLD * torch.linspace(0, 2, B * L).view(B, L, 1)


def naive(
    module: HopfieldMemory, p: dict[str, Tensor], x_BLD: Tensor, rows_ND: Tensor, steps: int = 1, mask: Any = None
) -> tuple[Tensor, Tensor]:
    """What comes out, and the last association [B, H, L, N]; rows are projected, scores are summed one by one."""
    beta_H = p["log_beta"].exp() if module.learn_beta else module.beta.to(x_BLD.dtype)
    sharpness_H = p["sharpness_H"] if module.learn_beta else module.sharpness_H.to(x_BLD.dtype)  # type: ignore[union-attr]

    def heads(values: Tensor, name: str) -> Tensor:
        return F.linear(values, p[f"{name}.weight"], p[f"{name}.bias"]).unflatten(-1, (H, -1)).transpose(-2, -3)

    key_HNK = heads(rows_ND * p["key_gain"] + p["key_shift"], "k_proj")
    query_BHLK = heads(F.layer_norm(x_BLD, (D,), p["state_norm.weight"], p["state_norm.bias"]), "q_proj")
    state_BHLD = x_BLD[:, None].expand(-1, H, -1, -1)
    for step in range(steps):
        loudness_BHL1 = state_BHLD.norm(dim=-1, keepdim=True) / D**0.5
        learned = query_BHLK @ key_HNK.mT * beta_H[:, None, None] * loudness_BHL1
        scores = learned + sharpness_H[:, None, None] * (state_BHLD @ rows_ND.T) / D
        if mask is not None:
            scores = scores.masked_fill(mask[:, None, None], -torch.inf)
        weights = scores.softmax(-1)
        state_BHLD = weights @ rows_ND
        if step < steps - 1:
            retrieved = state_BHLD * p["key_gain"] + p["key_shift"]
            weight_HKD = p["k_proj.weight"].view(H, K, D)
            query_BHLK = retrieved @ weight_HKD.mT + p["k_proj.bias"].view(H, 1, K)
    value_HNV = heads(rows_ND * p["value_gain"] + p["value_shift"], "v_proj")
    out = (weights @ value_HNV).transpose(1, 2).flatten(2)
    return F.linear(out, p["out_proj.weight"], p["out_proj.bias"]), weights


def association(module: HopfieldMemory, x_BLD: Tensor, rows_ND: Tensor) -> Tensor:
    """[B, L, N], mean over heads."""
    weights, numbers = module.attribution(x_BLD, rows_ND, top_k=len(rows_ND))
    return torch.zeros(*x_BLD.shape[:2], len(rows_ND)).scatter_add_(2, numbers.clamp_min(0), weights)


def test_at_the_start_rows_are_weighed_by_their_cosine_alone() -> None:
    module, rows, states = build(), rows_of(N, seed=1), rows_of(B, L, seed=2)
    cosine = F.cosine_similarity(states[:, :, None], rows, dim=-1)
    torch.testing.assert_close(
        association(module, states, rows), (SHARPNESS * cosine).softmax(-1), rtol=1e-4, atol=1e-6
    )
    assert not module.k_proj.weight.any()


def test_a_silent_state_retrieves_the_mean_and_a_shorter_one_asks_more_quietly() -> None:
    module, rows, states = build(learned=0.1), rows_of(N, seed=1), rows_of(1, L, seed=2)
    silent = association(module, torch.zeros(1, L, D), rows)
    torch.testing.assert_close(silent, torch.full_like(silent, 1 / N))
    entropies = [
        torch.special.entr(association(module, length * states, rows)).sum(-1) for length in (0.0, 0.3, 1.0, 3.0)
    ]
    for quieter, louder in itertools.pairwise(entropies):
        assert (quieter > louder).all()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("learn_beta", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_outputs_and_gradients_are_those_of_the_naive_formula(steps: int, learn_beta: bool, masked: bool) -> None:
    module = build(learned=0.08, learn_beta=learn_beta, update_steps=steps)
    rows, x = rows_of(N, seed=1), (loud(rows_of(B, L, seed=2)) + 1e-3).requires_grad_()
    groups: dict[str, Tensor] = {}
    mask = None
    if masked:
        groups = {"query_group": torch.tensor([4, -1, 9]), "memory_group": torch.arange(N) % 7 - 1}
        mask = (groups["query_group"][:, None] == groups["memory_group"]) & (groups["memory_group"] != -1)
    truth = {name: p.detach().double().requires_grad_() for name, p in module.named_parameters()}
    x64 = x.detach().double().requires_grad_()
    expected, _ = naive(module, truth, x64, rows.double(), steps, mask)
    found = module(x, rows, **groups)
    assert_close(found, expected, torch.float32)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    found.backward(weight)
    expected.backward(weight.double())
    assert_close(x.grad, x64.grad, torch.float32, gradient=True)
    named = dict(module.named_parameters())
    assert ("sharpness_H" in named) == learn_beta
    for name, parameter in named.items():
        if steps == 1 and name in ("key_shift", "k_proj.bias"):  # they move every score of a query alike
            assert parameter.grad is None
        else:
            assert_close(parameter.grad, truth[name].grad, torch.float32, gradient=True)


def test_a_silent_state_has_finite_gradients() -> None:
    """The length of a state has no gradient at 0."""
    module, rows = build(learned=0.1, learn_beta=True), rows_of(N, seed=1)
    x = rows_of(1, L, seed=2)
    x[0, 2] = 0.0
    x.requires_grad_()
    module(x, rows).square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


def test_what_is_learned_can_leave_its_start() -> None:
    """It begins with nothing, and the gradient is there to change that."""
    module, rows, x = build(), rows_of(N, seed=1), rows_of(B, L, seed=2)
    module(x, rows).square().sum().backward()
    assert module.k_proj.weight.grad is not None
    assert module.k_proj.weight.grad.any()


def test_two_steps_draw_nearer_to_a_row() -> None:
    """As associations of a modern Hopfield network do: a state that is a noisy row converges to it."""
    rows = rows_of(N, seed=1)
    noisy = (rows[:L] + 0.7 * torch.randn(L, D, generator=torch.Generator().manual_seed(3)))[None]
    weights = [association(build(sharpness=40.0, update_steps=steps), noisy, rows) for steps in (1, 2)]
    own = [found[0, range(L), range(L)] for found in weights]
    assert (own[1] >= own[0] - 1e-6).all()
    assert own[1].min() > 0.9


def test_under_autocast_it_is_the_same_within_bfloat16() -> None:
    module, rows, x = build(learned=0.08), rows_of(N, seed=1), loud(rows_of(B, L, seed=2))
    truth = {name: p.detach().double() for name, p in module.named_parameters()}
    expected, _ = naive(module, truth, x.double(), rows.double())
    with torch.autocast("cpu", torch.bfloat16):
        found = module(x, rows)
    assert_close(found.float(), expected, torch.bfloat16)
    found.float().square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


def test_sharpness_is_kept_and_states_of_another_space_are_refused() -> None:
    assert "sharpness_H" in build().state_dict()
    assert "sharpness_H" not in dict(build().named_parameters())
    module = HopfieldMemory(D, D, OUT, heads=H, head_dim=K)
    assert module.sharpness_H is None
    assert "sharpness_H" not in module.state_dict()
    with pytest.raises(ValueError, match="a state of 33 numbers is none of the space of rows of 34"):
        HopfieldMemory(D, D + 1, OUT, heads=H, head_dim=K, sharpness=SHARPNESS)


def test_it_compiles_as_one_graph() -> None:
    module, rows, x = build(learned=0.08, update_steps=2), rows_of(N, seed=1), rows_of(B, L, seed=2)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, rows), module(x, rows))
