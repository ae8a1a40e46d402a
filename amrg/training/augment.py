"""Augmentation that respects anatomy: pose and exposure vary, left stays left.

Shape legend: B batch, H W pixels.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

ROTATION = math.radians(6)
SHIFT = 0.06  # of the film's width
ZOOM = 0.10
GAMMA = 0.25  # of the exponent's logarithm
CONTRAST = 0.15
BRIGHTNESS = 0.08
NOISE = 0.015


def augment_films(images_B3HW: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate, shift, zoom, and change exposure and noise; each film by its own draw.

    Args:
        images_B3HW: grey films as three equal channels, in [0, 1].
        generator: the only source of randomness, on the CPU, so that every device draws the same numbers.

    Returns:
        films of the same shape in [0, 1]; a film is never mirrored, sides have a meaning.
    """
    grey_B1HW = images_B3HW[:, :1]
    batch, device = len(grey_B1HW), grey_B1HW.device

    def draw(extent: float, *shape: int) -> Tensor:
        return ((torch.rand(batch, *shape, generator=generator) * 2 - 1) * extent).to(device, non_blocking=True)

    angle, zoom, shift = draw(ROTATION), 1 + draw(ZOOM), draw(2 * SHIFT, 2)
    affine = torch.stack(
        [
            torch.stack([angle.cos() * zoom, -angle.sin() * zoom, shift[:, 0]], dim=1),
            torch.stack([angle.sin() * zoom, angle.cos() * zoom, shift[:, 1]], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(affine, list(grey_B1HW.shape), align_corners=False)
    grey_B1HW = F.grid_sample(grey_B1HW, grid, padding_mode="border", align_corners=False)
    grey_B1HW = grey_B1HW.clamp(min=1e-4) ** draw(GAMMA, 1, 1, 1).exp()
    grey_B1HW = (grey_B1HW - 0.5) * (1 + draw(CONTRAST, 1, 1, 1)) + 0.5 + draw(BRIGHTNESS, 1, 1, 1)
    grey_B1HW = grey_B1HW + torch.randn(grey_B1HW.shape, generator=generator).to(device, non_blocking=True) * NOISE
    return grey_B1HW.clamp(0, 1).expand(-1, 3, -1, -1)
