"""One table of tolerances: relative RMS error allowed against float64, by dtype and by what is compared."""

import torch

#: (dtype of the computation, forward, gradient)
TOLERANCES = {
    torch.float64: (1e-12, 1e-11),
    torch.float32: (1e-5, 1e-4),
    torch.float16: (2e-3, 5e-3),
    torch.bfloat16: (1.5e-2, 3e-2),
    torch.int8: (2e-2, 3e-2),  # against the rows before they were rounded to int8
}


def relative_error(found: torch.Tensor, truth: torch.Tensor) -> float:
    """‖found − truth‖ / ‖truth‖ in float64; the plain norm of ``found`` where the truth is 0."""
    assert not torch.isnan(found).any(), "NaN"
    found, truth = found.detach().double(), truth.detach().double()
    assert found.shape == truth.shape
    return float((found - truth).norm() / (truth.norm() if truth.any() else 1.0))


def assert_close(found: torch.Tensor, truth: torch.Tensor, dtype: torch.dtype, *, gradient: bool = False) -> None:
    allowed = TOLERANCES[dtype][gradient]
    error = relative_error(found, truth)
    assert error <= allowed, f"relative error {error:.1e}, {allowed:.1e} allowed for {dtype}"
