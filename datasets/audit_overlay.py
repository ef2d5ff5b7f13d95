"""How alike two small pictures are once one is laid over the other: shifted, turned, stretched until they agree."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

if TYPE_CHECKING:
    from PIL import Image

GRID = 64
"""Side in pixels of the square that every image is averaged down to, whatever its proportions."""

MARGIN = 4
"""Pixels along each side that are not compared: 6 %. A turn by 3 degrees leaves 2.6 % of the longer side empty there,
and a crop adds its own."""

LEAST_OVERLAP = 0.6
"""Share of the picture in which both must have something."""

# Widths in pixels of the blur under which pictures are laid over each other, and steps at each: from shapes to edges.
_LEVELS = ((3.0, 8), (1.5, 5), (0.7, 5))
# Widths in pixels: what varies more slowly is left out, for laying over and for comparing. The finest detail is what
# two chests never share; the coarse is alike in all of them.
SHAPES, DETAIL = 8.0, 1.0
# A shade that varies by less than this share of the picture's contrast is no detail.
_LEAST_CONTRAST = 0.01
# Of the mean curvature: keeps what a picture does not tell (shifts along a bare edge) where it is.
_DAMPING = 1e-4
# A step that moves nothing by more than a fiftieth of a pixel is the last.
_STILL = 0.02 * 2 / GRID


def _blur(width: float) -> Float[np.ndarray, "grid grid"]:
    """A Gaussian blur along one side, as a matrix; weights at the border add up to 1, too."""
    apart = np.subtract.outer(np.arange(GRID), np.arange(GRID)) / width
    # Without the smallest, whose products with others are numbers that processors are slow at.
    weights = np.where(np.abs(apart) < 5, np.exp(-0.5 * apart**2), 0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


_BLURS = {width: _blur(width) for width in {SHAPES, DETAIL, 2 * SHAPES, 2 * DETAIL, *(width for width, _ in _LEVELS)}}
_INNER = slice(MARGIN, GRID - MARGIN)
_SIDE = GRID - 2 * MARGIN
# Centres of the pixels that are compared, from -1 to 1 over the whole picture; x along a row, y down a column.
_LINE = (((np.arange(GRID) + 0.5) / GRID * 2 - 1)[_INNER]).astype(np.float32)
_X, _Y = np.meshgrid(_LINE, _LINE)
_CORNERS = np.array([[x, y, 1] for x in _LINE[[0, -1]] for y in _LINE[[0, -1]]])
# PIL.Image.Transform.AFFINE; Pillow is not imported with this module.
_AFFINE = 0
_STAYS = np.array([[1, 0, 0], [0, 1, 0]], np.float64)


def evened(cells: np.ndarray, width: float) -> np.ndarray:
    """Pictures `[..., grid, grid]` without what varies more slowly than `width` pixels, of even contrast throughout.

    Brightness, contrast and gamma are gone then; black and white exchanged are another sign.
    """
    cells = cells.astype(np.float32)
    slow, around = _BLURS[width], _BLURS[2 * width]
    detail = cells - slow @ cells @ slow.T
    least = _LEAST_CONTRAST * cells.std(axis=(-2, -1), keepdims=True) + 1e-6
    return detail / np.sqrt(np.maximum(around @ (detail * detail) @ around.T, 0) + least**2)


def blurred(cells: np.ndarray, width: float) -> np.ndarray:
    return _BLURS[width] @ cells @ _BLURS[width].T


class Layers(NamedTuple):
    """A picture made ready to be laid over others."""

    shapes: tuple[np.ndarray, ...]
    """float32 `[grid, grid]`, from the most blurred to the sharpest."""
    detail: np.ndarray
    """float32 `[grid, grid]`."""


class Ground(NamedTuple):
    """One blur of a picture made ready for others to be laid over it."""

    shapes: np.ndarray
    """float32 `[pixel]`, without the margin."""
    slopes: np.ndarray
    """float32 `[6, pixel]`: how the picture changes with each number of an affine map."""
    curvature: np.ndarray
    """float32 `[6, 6]`."""


def layers(cells: UInt8[np.ndarray, "grid grid"]) -> Layers:
    """A picture made ready to be laid over others."""
    even = evened(cells, SHAPES)
    return Layers(tuple(blurred(even, width) for width, _ in _LEVELS), evened(cells, DETAIL))


def grounds(fixed: Layers) -> tuple[Ground, ...]:
    """A picture made ready for others to be laid over it."""
    made = []
    for shapes in fixed.shapes:
        down, across = (slope[_INNER, _INNER] for slope in np.gradient(shapes, np.float32(2 / GRID)))
        slopes = np.stack([across * _X, across * _Y, across, down * _X, down * _Y, down]).reshape(6, -1)
        curvature = slopes @ slopes.T
        curvature += (_DAMPING * np.trace(curvature) / 6 + 1e-9) * np.eye(6, dtype=np.float32)
        made.append(Ground(shapes[_INNER, _INNER].ravel(), slopes, curvature))
    return tuple(made)


def overlaid(moving: Layers, fixed: Layers, on: tuple[Ground, ...]) -> float:
    """The correlation of detail after one picture was laid over another; 0 where they hardly overlap.

    An affine map is fitted by Gauss-Newton steps from coarse to fine, its gradients taken once, in the picture that
    stays (the inverse compositional form).

    Args:
        moving: the picture that is moved.
        fixed: the one that stays.
        on: `grounds(fixed)`.

    Source: Baker and Matthews 2004, section 3.2. Unlike there the moved picture is scaled at each step, as two
    exposures differ, and a margin is left out.
    """
    from PIL import Image

    place = _STAYS
    for (_, steps), shapes, ground in zip(_LEVELS, moving.shapes, on, strict=True):
        place = _fitted(shapes, ground, place, steps)
    own, inside = _moved(Image.fromarray(moving.detail), place, Image.Resampling.BICUBIC), _inside(place)
    if inside.mean() < LEAST_OVERLAP:
        return 0.0
    own, other = own[inside], fixed.detail[_INNER, _INNER].ravel()[inside]
    own, other = own - own.mean(), other - other.mean()
    return float(own @ other / max(np.sqrt((own @ own) * (other @ other)), 1e-12))


def _fitted(shapes: np.ndarray, ground: Ground, place: np.ndarray, steps: int) -> np.ndarray:
    """The map after some more steps."""
    from PIL import Image

    image = Image.fromarray(shapes)
    for _ in range(steps):
        moved = _moved(image, place, Image.Resampling.BILINEAR)
        gain = (moved @ ground.shapes) / max(moved @ moved, 1e-9)
        apart = gain * moved - ground.shapes * _inside(place)
        change = np.linalg.solve(ground.curvature, ground.slopes @ apart).reshape(2, 3)
        if np.abs(change[:, :2]).max() > 0.5:
            break
        place = _after(place, change)
        if np.abs(change).max() < _STILL:
            break
    return place


def _after(place: np.ndarray, change: np.ndarray) -> np.ndarray:
    """The map that first undoes a change of the ground."""
    undo = np.linalg.inv(_STAYS[:, :2] + change[:, :2])
    turned = place[:, :2] @ undo
    return np.column_stack([turned, place[:, 2] - turned @ change[:, 2]])


def _moved(image: Image.Image, place: np.ndarray, between: Image.Resampling) -> np.ndarray:
    """float32 `[pixel]`: the picture read at `place` of every pixel but the margin, 0 outside."""
    half = GRID / 2
    (xx, xy, x), (yx, yy, y) = place.tolist()
    # Pillow counts in pixels from the corner, here that of what is compared.
    right, down = half * (1 + x - xx - xy) + MARGIN * (xx + xy), half * (1 + y - yx - yy) + MARGIN * (yx + yy)
    moved = image.transform((_SIDE, _SIDE), _AFFINE, (xx, xy, right, yx, yy, down), between)
    return np.asarray(moved).ravel()


def _inside(place: np.ndarray) -> np.ndarray:
    """bool `[pixel]`: where a map reads the picture, and not what is beyond it."""
    if np.abs(_CORNERS @ place.T).max() < 1:
        return _EVERYWHERE
    (xx, xy, x), (yx, yy, y) = place.astype(np.float32)
    return ((np.abs(xx * _X + xy * _Y + x) < 1) & (np.abs(yx * _X + yy * _Y + y) < 1)).ravel()


_EVERYWHERE = np.ones(_SIDE * _SIDE, bool)
