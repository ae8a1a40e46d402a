"""The published Hopfield layer in three forms: as hflayers computes it, projected once, and absorbed into the queries.

All read the parameters of ``amrg.models.HopfieldMemory`` from a mapping by name. Shape legend: B batch, L queries of a
sample, S state width, H heads, K width of a head, N rows of the memory, D width of the memory.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from amrg.kernels.hopfield.ops import hopfield_retrieve

Parameters = Mapping[str, Tensor]


def _state(p: Parameters, x_BLS: Tensor, heads: int) -> Tensor:
    normed = functional.layer_norm(x_BLS, x_BLS.shape[-1:], p["state_norm.weight"], p["state_norm.bias"])
    q = functional.linear(normed, p["q_proj.weight"], p["q_proj.bias"])
    return q.view(*q.shape[:-1], heads, -1).transpose(1, 2)  # [B, H, L, K]


def _project(p: Parameters, memory: Tensor, heads: int, kind: str, name: str) -> Tensor:
    """[..., N, D] → [..., H, N, K]."""
    rows = memory * p[f"{kind}_gain"] + p[f"{kind}_shift"]
    projected = functional.linear(rows, p[f"{name}.weight"], p[f"{name}.bias"])
    return projected.view(*projected.shape[:-1], heads, -1).transpose(-2, -3)


def hflayers_formula(
    p: Parameters, x_BLS: Tensor, memory_ND: Tensor, heads: int, beta: float, update_steps: int = 1,
    mask_BN: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Ramsauer et al. 2021 as hflayers computes it: every sample projects the whole memory for itself."""
    batch = x_BLS.shape[0]
    stored = memory_ND.expand(batch, -1, -1)
    state = _state(p, x_BLS, heads)
    key, value = (_project(p, stored, heads, kind, f"{kind[0]}_proj") for kind in ("key", "value"))
    association = torch.empty(0)
    for _ in range(update_steps):
        scores = beta * state @ key.mT
        if mask_BN is not None:
            scores = scores.masked_fill(mask_BN[:, None, None, :], -torch.inf)
        association = scores.softmax(-1)
        state = association @ key
    y = (association @ value).transpose(1, 2).flatten(2)
    return functional.linear(y, p["out_proj.weight"], p["out_proj.bias"])


def project_once_sdpa(p: Parameters, x_BLS: Tensor, memory_ND: Tensor, heads: int, beta: float) -> Tensor:
    """The same layer, the memory projected once and read with ``scaled_dot_product_attention``."""
    batch, length = x_BLS.shape[:2]
    # the samples share keys and values: they are so many more queries of one sequence
    state = _state(p, x_BLS, heads).transpose(0, 1).flatten(1, 2)[None]
    key, value = (_project(p, memory_ND, heads, kind, f"{kind[0]}_proj")[None] for kind in ("key", "value"))
    y = functional.scaled_dot_product_attention(state, key, value, scale=beta)
    y = y[0].unflatten(1, (batch, length)).permute(1, 2, 0, 3).flatten(2)
    return functional.linear(y, p["out_proj.weight"], p["out_proj.bias"])


def absorbed(p: Parameters, x_BLS: Tensor, memory_ND: Tensor, heads: int, beta: float) -> Tensor:
    """The same layer, the memory never projected: ``HopfieldMemory`` with one association, derived in the README."""
    state_HMK = _state(p, x_BLS, heads).transpose(0, 1).flatten(1, 2)
    k_weight_HKD = p["k_proj.weight"].view(heads, -1, memory_ND.shape[1])
    v_weight_HKD = p["v_proj.weight"].view(heads, -1, memory_ND.shape[1])
    queries_HMD = torch.bmm(state_HMK * beta, k_weight_HKD) * p["key_gain"]
    result = hopfield_retrieve(queries_HMD.flatten(0, 1), memory_ND)
    rows_HMD = result.retrieved_MD.view_as(queries_HMD)
    mass_HM1 = result.mass_M.view(*rows_HMD.shape[:2], 1)
    bias_HKM = (mass_HM1 * p["v_proj.bias"].view(heads, 1, -1)).mT
    values_HKM = torch.baddbmm(bias_HKM, v_weight_HKD, (rows_HMD * p["value_gain"] + mass_HM1 * p["value_shift"]).mT)
    y = values_HKM.permute(2, 0, 1).reshape(*x_BLS.shape[:2], -1)
    return functional.linear(y, p["out_proj.weight"], p["out_proj.bias"])
