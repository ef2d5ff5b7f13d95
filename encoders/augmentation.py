"""Changes that leave a radiograph's meaning as it is, drawn anew at every training step.

No flip, since laterality means something, and no colour: see timm's defaults, which do both.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

# A patient stands a little askew, off centre, nearer or farther; exposure and window vary.
ROTATION = math.radians(7)
SHIFT = 0.05
"""Of the image's side."""
SCALE = 0.1
CONTRAST = 0.2
BRIGHTNESS = 0.1
"""Of the range from black to white."""


def jitter_images(pixels: Float[Tensor, "image channel height width"]) -> Float[Tensor, "image channel height width"]:
    """Slightly rotated, shifted, scaled images of slightly other contrast and brightness.

    Args:
        pixels: in [0, 1]; what comes in from outside the image is black.
    """
    count, device = len(pixels), pixels.device

    def draw(reach: float) -> Tensor:
        return (2 * torch.rand(count, device=device) - 1) * reach

    angle, scale = draw(ROTATION), 1 + draw(SCALE)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    # Coordinates of grid_sample run from -1 to 1: a shift by a share of the side is twice that share.
    rows = [torch.stack([cos, -sin, draw(2 * SHIFT)], 1), torch.stack([sin, cos, draw(2 * SHIFT)], 1)]
    grid = functional.affine_grid(torch.stack(rows, 1), list(pixels.shape), align_corners=False)
    moved = functional.grid_sample(pixels, grid, align_corners=False)
    contrast, brightness = 1 + draw(CONTRAST), draw(BRIGHTNESS)
    return (moved * contrast[:, None, None, None] + brightness[:, None, None, None]).clamp(0, 1)
