"""Which of many pictures may be one: those of the nearest shapes, in any orientation, without comparing all pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float, Int, UInt8

from .audit_overlay import GRID, SHAPES, blurred, evened

KEPT = 16
"""Frequencies kept along each side of the cosine transform of a picture's shapes."""

WIDTH = 64
"""Numbers that a picture's shapes are brought down to, at most."""

ALIKE = 0.8
"""Cosine of two pictures' numbers from which they are compared in full. Copies that are cropped by 1 to 3 % a side,
turned by 1 to 3 degrees, resized and compressed are above 0.9 in 99 of 100 cases of the COVID-19 collection and 0.91
in the synthetic hospital; the nearest picture of another patient has 0.54 and 0.85 in the middle."""

CLOSEST = 8
"""Candidates an image, the nearest; however alike all images are, there are no more to compare in full."""

FEW = 8
"""So many pictures are all compared with each other: they are too few to tell what is ordinary among them."""

# How shapes change in a copy is learned from so many pictures, each changed so often.
_LEARNED, _CHANGES = 128, 4
_MOST_DEGREES, _MOST_CROPPED = 3.0, 0.03
_RIDGE = 0.2
# What is ordinary is learned from the fourth to sixth nearest: so far away, up to three copies of each are passed over.
_ORDINARY = slice(3, 6)
# Candidates agree in all bits of one of these tables: as many bits as keep a bucket small, so that the cost grows with
# the number of pictures, not its square. A copy with a cosine of 0.97 agrees in a table of 16 bits with a chance of
# 0.27, one of 0.9 with 0.08: of 32 tables none has it with a chance of 4e-5 and 0.06.
_TABLES, _FEWEST_BITS, _MOST_BITS = 32, 8, 18
# In one table a picture is compared with at most so many of its bucket, or a series of one phantom would cost the
# square of its length.
_BUCKET = 64
_AT_ONCE = 4096

_ANGLE = np.pi * np.outer(np.arange(KEPT), 2 * np.arange(GRID) + 1) / (2 * GRID)
# The first rows of the orthonormal cosine transform (DCT-II).
_COSINES = np.sqrt(2 / GRID) * np.cos(_ANGLE) * np.where(np.arange(KEPT) == 0, np.sqrt(0.5), 1)[:, None]
# Nothing at the border, where crops and turns change a picture, and all of it from 15 % on.
_RISE = np.sin(np.pi / 2 * np.clip((np.arange(GRID) + 0.5) / GRID / 0.15, 0, 1)) ** 2
_WINDOW = np.minimum.outer(np.minimum(_RISE, _RISE[::-1]), np.minimum(_RISE, _RISE[::-1]))


def _turn(transposed: bool, down: bool, across: bool, inverted: bool) -> tuple[np.ndarray, np.ndarray]:
    """A picture turned and mirrored, as places and signs of its frequencies: `shapes[place] * sign`."""
    place = np.arange(KEPT * KEPT).reshape(KEPT, KEPT)
    place = place.T if transposed else place
    parity = (-1.0) ** np.arange(KEPT)
    sign = np.outer(parity if down else parity**0, parity if across else parity**0) * (-1 if inverted else 1)
    return place.ravel(), sign.ravel().astype(np.float32)


_FLAGS = [(bool(k & 1), bool(k & 2), bool(k & 4), inverted) for inverted in (False, True) for k in range(8)]
"""As it is first; then mirrored, rotated by quarters, and all of it again with black and white exchanged."""
_TURNS = [_turn(*flags) for flags in _FLAGS]


def turned(cells: UInt8[np.ndarray, "grid grid"], turn: int) -> UInt8[np.ndarray, "grid grid"]:
    """A picture in one of the orientations that candidates are found in."""
    transposed, down, across, inverted = _FLAGS[turn]
    cells = cells.T if transposed else cells
    cells = cells[::-1] if down else cells
    cells = cells[:, ::-1] if across else cells
    return np.ascontiguousarray(255 - cells if inverted else cells)


def shapes_of(cells: np.ndarray) -> Float[np.ndarray, "image frequency"]:
    """The coarse frequencies of pictures, of length 1, without brightness and contrast."""
    found = [np.zeros((0, KEPT * KEPT), np.float32)]
    for first in range(0, len(cells), 256):
        seen = blurred(evened(cells[first : first + 256], SHAPES), 1.5) * _WINDOW
        some = (_COSINES @ seen @ _COSINES.T).reshape(len(seen), -1)
        some[:, 0] = 0
        found.append((some / np.maximum(np.linalg.norm(some, axis=1, keepdims=True), 1e-9)).astype(np.float32))
    return np.concatenate(found)


def candidates(
    cells: UInt8[np.ndarray, "image grid grid"], patient: Int[np.ndarray, " image"]
) -> tuple[Int[np.ndarray, "pair three"], Int[np.ndarray, "pair three"]]:
    """Pairs of pictures of different patients that may be one, and some that are as near as any two.

    Returns:
        Rows of the first picture, the second, and the turn of the second (as in `turned`): the candidates, each
        pair once, and the nearest other of a few pictures, whatever they are, to learn from what is ordinary.
    """
    shapes = shapes_of(cells)
    if len(cells) <= FEW:
        pairs = np.argwhere(np.triu(patient[:, None] != patient, 1))
        likeness = [
            np.einsum("pf,pf->p", shapes[pairs[:, 0]], shapes[pairs[:, 1]][:, place] * sign) for place, sign in _TURNS
        ]
        return np.column_stack([pairs, np.argmax(likeness, axis=0)]), np.zeros((0, 3), np.int64)
    number = _numbers(cells, shapes)
    upright = number(shapes)
    rows, alike = np.zeros((0, 3), np.int64), np.zeros(0, np.float32)
    for turn, (place, sign) in enumerate(_TURNS):
        other = upright if turn == 0 else number(shapes[:, place] * sign)
        for pairs in _meeting(upright, other):
            pairs = pairs[patient[pairs[:, 0]] != patient[pairs[:, 1]]]
            likeness = np.einsum("pn,pn->p", upright[pairs[:, 0]], other[pairs[:, 1]])
            near = likeness >= ALIKE
            more = np.column_stack([pairs[near], np.full(near.sum(), turn)])
            rows, alike = _nearest(np.concatenate([rows, more]), np.concatenate([alike, likeness[near]]), len(cells))
    return rows, _ordinary(upright, patient)


def _numbers(cells: np.ndarray, shapes: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A function from shapes to fewer numbers, of length 1, in which copies are near and different pictures far.

    Linear discriminants (Fisher): directions in which pictures differ most, measured by how much one picture
    changes when it is turned and cropped.
    """
    generator = np.random.default_rng(0)
    chosen = np.unique(np.linspace(0, len(cells) - 1, _LEARNED).astype(int))
    rounds = min(max(_CHANGES, KEPT * KEPT // len(chosen)), 4 * _CHANGES)
    changes = np.concatenate([shapes_of(_changed(cells[chosen], generator)) - shapes[chosen] for _ in range(rounds)])
    within = changes.T @ changes / len(changes)
    within += _RIDGE * np.trace(within) / len(within) * np.eye(len(within)) + 1e-9 * np.eye(len(within))
    middle = shapes.mean(axis=0)
    apart = shapes[chosen] - middle
    back = np.linalg.inv(np.linalg.cholesky(within))
    _, axes = np.linalg.eigh(back @ (apart.T @ apart) @ back.T)
    discriminants = (back.T @ axes[:, ::-1][:, : min(WIDTH, len(chosen) - 1)]).astype(np.float32)

    def number(some: np.ndarray) -> np.ndarray:
        numbers = (some - middle) @ discriminants
        return numbers / np.maximum(np.linalg.norm(numbers, axis=1, keepdims=True), 1e-9)

    return number


def _changed(cells: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Pictures turned a little and cropped."""
    from PIL import Image

    changed = np.empty_like(cells)
    for own, result in zip(cells, changed, strict=True):
        angle = np.deg2rad(generator.uniform(-_MOST_DEGREES, _MOST_DEGREES))
        left, right, top, bottom = generator.uniform(0, _MOST_CROPPED, 4)
        wide, high, half = 1 - left - right, 1 - top - bottom, GRID / 2
        xx, xy, yx, yy = wide * np.cos(angle), -high * np.sin(angle), wide * np.sin(angle), high * np.cos(angle)
        x, y = half * (1 + left - right - xx - xy), half * (1 + top - bottom - yx - yy)
        image = Image.fromarray(own)
        told = (xx, xy, x, yx, yy, y)
        result[:] = image.transform((GRID, GRID), Image.Transform.AFFINE, told, Image.Resampling.BILINEAR)
    return changed


def _meeting(upright: np.ndarray, other: np.ndarray) -> Iterator[np.ndarray]:
    """int64 `[pair, 2]`, some at a time: pictures whose numbers lie on the same sides of the planes of a table."""
    bits = int(np.clip(np.ceil(np.log2(len(upright))), _FEWEST_BITS, _MOST_BITS))
    generator, powers = np.random.default_rng(0), 1 << np.arange(bits)
    for _ in range(_TABLES):
        planes = generator.standard_normal((upright.shape[1], bits), dtype=np.float32)
        key, asked = (((numbers @ planes) > 0) @ powers for numbers in (upright, other))
        order = np.argsort(key, kind="stable")
        key = key[order]
        for first in range(0, len(asked), _AT_ONCE):
            yield _met(key, order, asked[first : first + _AT_ONCE]) + np.array([0, first])


def _met(key: np.ndarray, order: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """int64 `[pair, 2]`: pictures whose key (sorted, with the picture of each in `order`) another's question equals."""
    low, high = np.searchsorted(key, asked, "left"), np.searchsorted(key, asked, "right")
    counts = np.minimum(high - low, _BUCKET)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.stack([order[np.repeat(low, counts) + within], np.repeat(np.arange(len(asked)), counts)], axis=1)


def _nearest(rows: np.ndarray, alike: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Each pair once, in its nearest turn, where it is one of the nearest few of either picture."""
    order = np.argsort(-alike, kind="stable")
    low, high = rows[order, :2].min(axis=1), rows[order, :2].max(axis=1)
    _, once = np.unique(low * count + high, return_index=True)
    once.sort()
    ends = np.stack([low[once], high[once]], axis=1)
    place = _seen_before(ends.ravel()).reshape(ends.shape)
    kept = order[once[(place < CLOSEST).any(axis=1)]]
    return rows[kept], alike[kept]


def _seen_before(values: np.ndarray) -> np.ndarray:
    """How often each value has come before: 0, 1, 2, ..."""
    order = np.argsort(values, kind="stable")
    first = np.flatnonzero(np.diff(values[order], prepend=-1))
    counted = np.arange(len(values)) - np.repeat(first, np.diff(first, append=len(values)))
    result = np.empty_like(counted)
    result[order] = counted
    return result


def _ordinary(upright: np.ndarray, patient: np.ndarray) -> np.ndarray:
    """Some pictures of other patients, as they stand, that are near to each of a few, but not the very nearest."""
    chosen = np.unique(np.linspace(0, len(upright) - 1, _LEARNED).astype(int))
    alike = upright[chosen] @ upright.T
    alike[patient[chosen][:, None] == patient] = -2
    other = np.argsort(-alike, axis=1)[:, _ORDINARY]
    rows = np.column_stack([np.repeat(chosen, other.shape[1]), other.ravel(), np.zeros(other.size, int)])
    return rows[np.take_along_axis(alike, other, axis=1).ravel() > -2]
