"""Conversion of hflayers' ``HopfieldLayer`` (github.com/ml-jku/hopfield-layers) to ``HopfieldMemory``."""

from collections.abc import Mapping

from torch import Tensor

from amrg.banks.bank import normalise_rows
from amrg.models.hopfield import HopfieldMemory

_CORE = "hopfield.association_core."
#: Names of hflayers → names of ``HopfieldMemory``; ``memory`` and ``in_proj.bias`` are converted further.
_NAMES = {
    "lookup_weights": "memory",
    "hopfield.norm_state_pattern.weight": "state_norm.weight",
    "hopfield.norm_state_pattern.bias": "state_norm.bias",
    "hopfield.norm_stored_pattern.weight": "key_gain",
    "hopfield.norm_stored_pattern.bias": "key_shift",
    "hopfield.norm_pattern_projection.weight": "value_gain",
    "hopfield.norm_pattern_projection.bias": "value_shift",
    **{_CORE + f"{name}_proj_weight": f"{name}_proj.weight" for name in "qkv"},
    _CORE + "in_proj_bias": "in_proj.bias",
    _CORE + "out_proj.weight": "out_proj.weight",
    _CORE + "out_proj.bias": "out_proj.bias",
}


def from_hflayers(
    state_dict: Mapping[str, Tensor], *, num_heads: int, hidden_size: int, beta: float, update_steps: int = 1
) -> HopfieldMemory:
    """Convert the parameters of a ``HopfieldLayer``; its ``lookup_weights``, normalized, become the bank.

    The layer must have its defaults: affine norms of stored, state and projected patterns, biases and an output
    projection.

    Args:
        state_dict: state of the layer, with the projections of equal widths packed or not.
        num_heads: number of heads.
        hidden_size: width of one head.
        beta: scaling of the association.
        update_steps: its ``update_steps_max`` + 1.

    Raises:
        ValueError: a parameter is missing, or one that has no counterpart here is present.
    """
    given = dict(state_dict)
    if _CORE + "in_proj_weight" in given:
        packed, width = given.pop(_CORE + "in_proj_weight"), num_heads * hidden_size
        parts = packed.split([width, width, packed.shape[0] - 2 * width])
        given |= {_CORE + f"{name}_proj_weight": part for name, part in zip("qkv", parts, strict=True)}
    missing = sorted(_NAMES.keys() - given.keys())
    unknown = sorted(given.keys() - _NAMES.keys())
    if missing or unknown:
        raise ValueError(f"not a HopfieldLayer of default options: missing {missing}, unknown {unknown}")
    renamed = {new: given[old] for old, new in _NAMES.items()}
    q, k, v = (renamed[f"{name}_proj.weight"] for name in "qkv")
    biases = renamed.pop("in_proj.bias").split([q.shape[0], k.shape[0], v.shape[0]])
    renamed |= {f"{name}_proj.bias": bias for name, bias in zip("qkv", biases, strict=True)}
    rows = renamed.pop("memory")[0]
    module = HopfieldMemory(
        q.shape[1], k.shape[1], renamed["out_proj.weight"].shape[0], heads=num_heads, head_dim=hidden_size,
        value_dim=v.shape[0] // num_heads, beta=beta, update_steps=update_steps,
    )  # fmt: skip
    module.load_state_dict(renamed | {"beta": module.beta})
    module.set_memory(normalise_rows(rows))
    return module
