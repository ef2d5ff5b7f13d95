"""Changes that leave the meaning of an image, a series or a note as it is, drawn anew at every training step.

Images are not flipped, since laterality means something, and have no colour to vary: see timm's
defaults, which do both.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from ..datasets.batch import Labs

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


def hide_words(real: Bool[Tensor, "chunk token"], share: float) -> Bool[Tensor, "chunk token"]:
    """Which tokens are still read when a share of them is hidden; the first of each chunk always is."""
    seen = torch.rand(real.shape, device=real.device) >= share
    seen[:, 0] = True
    return real & seen


def drop_measurements(part: Labs, share: float, patients: int) -> Labs:
    """The measurements that are left when each patient loses a share of them, and their time steps.

    Wards differ in how often they measure: the share of a patient is uniform between 0 and twice
    `share`. The first measurement always stays, so that nobody's series vanishes.

    Args:
        part: rows sorted by patient and time step.
        share: mean over the patients, below 0.5.
        patients: how many there are in the batch.
    """
    own_share = 2 * share * torch.rand(patients, device=part.patient.device)
    kept = torch.rand(part.patient.shape, device=part.patient.device) >= own_share[part.patient]
    kept[0] = True
    kept[1:] |= part.patient[1:] != part.patient[:-1]
    part = Labs(*(column[kept] for column in part))
    # A step of which nothing is left does not exist.
    place = part.patient * (part.step.max() + 1) + part.step
    number = torch.unique_consecutive(place, return_inverse=True)[1]
    first = number.new_full((patients,), len(place)).scatter_reduce(0, part.patient, number, "amin")
    return part._replace(step=number - first[part.patient])
