"""What all vision encoders have in common: a film to a fine and a coarse grid of features.

Shape legend: B batch, H W pixels or grid rows and columns, C channels.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from amrg.models.encoder_files import EncoderDescription

#: Pixels of one cell of the fine grid, at most; an encoder with larger cells only gives its smallest.
STRIDE = 16


class VisionFeatures(NamedTuple):
    """Features of a batch of films: ``fine_BHWC``, and ``coarse_BHWC`` with cells of twice the side."""

    fine_BHWC: Tensor
    coarse_BHWC: Tensor


class VisionEncoder(nn.Module):
    """What the rest of the system knows of an encoder. Films and cells are squares.

    Attributes:
        image_size: pixels on a side of a film.
        fine_dim, coarse_dim: channels of the two grids.
        grid, coarse_grid: cells on a side of the two grids (14 and 7 for 224 pixels in cells of 16; a coarse cell
            at the right or lower edge of an odd grid covers what is left).
        frozen_stem: whether ``stem`` does work that never changes, so that caching its output is worth the disk.
        description: of an encoder from a folder, which is not read again once the encoder is saved.
    """

    fine_dim: int
    coarse_dim: int
    grid: int
    coarse_grid: int
    frozen_stem: bool
    description: EncoderDescription | None = None
    mean_3: Tensor
    std_3: Tensor

    def __init__(self, image_size: int, mean: tuple[float, ...], std: tuple[float, ...], stride: int = STRIDE) -> None:
        super().__init__()
        self.image_size = image_size
        self.grid = image_size // stride
        self.coarse_grid = -(-self.grid // 2)
        self.register_buffer("mean_3", torch.tensor(mean), persistent=False)
        self.register_buffer("std_3", torch.tensor(std), persistent=False)

    def normalise(self, images_B3HW: Tensor) -> Tensor:
        """Images in [0, 1] → what the pretrained weights expect, in as many equal channels as they have (1 or 3)."""
        assert images_B3HW.shape[1:] == (3, self.image_size, self.image_size), images_B3HW.shape
        return (images_B3HW[:, : len(self.mean_3)] - self.mean_3[:, None, None]) / self.std_3[:, None, None]

    def stem(self, images_B3HW: Tensor) -> Tensor:
        """Images in [0, 1] → the frozen part's output; no gradient flows here."""
        raise NotImplementedError

    def trunk(self, stem_out: Tensor) -> VisionFeatures:
        """The trainable part, from the stem's output."""
        raise NotImplementedError

    def forward(self, images_B3HW: Tensor) -> VisionFeatures:
        """Images [B, 3, H, W] in [0, 1] → features."""
        return self.trunk(self.stem(images_B3HW))
