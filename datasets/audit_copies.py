"""Which small pictures of different patients are one picture, by how alike they are when one is laid over the other."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from jaxtyping import Int, UInt8

from .audit_candidates import candidates, turned
from .audit_overlay import Ground, Layers, grounds, layers, overlaid

SAME_DETAIL = 0.75
"""Correlation of the finest detail, one laid over the other, from which two images are one picture.

Measured on the 299 images of the COVID-19 collection, each with a copy of each kind: cropped by 1 to 3 % a side,
turned by 1 to 3 degrees, or both, then resized to 0.8 to 1.2 and compressed (JPEG of quality 50 to 90): 0.86 at least;
JPEG of quality 30, 0.85; half the size, 0.96; gamma 0.7, 0.90; 3 % noise, 0.79. All were found. The most alike
candidates of different patients have 0.27, different radiographs of one patient 0.69: none was invented. Of more than
that, fewer are found: cropped by 5 % a side, 93 of 100; by 8 %, 17; turned by 5 degrees, all; by 8, 61."""

EXTREME = (6.0, 10.0)
"""Where images are alike by the protocol, it is more: at least, and at most, so many standard deviations beyond what
near images of other patients have in the middle, on Fisher's scale (atanh)."""

WORSE = 0.5
"""Between these, so much less on that scale than copies that are made of some of the images to see.

Measured on radiographs of the synthetic hospital, all drawn from one model of the chest, at 128, 256 and 512 pixels
(2,093, 1,053 and 407 of them): the limit is 0.883, 0.952 and 0.968, the most alike of different patients have 0.860,
0.933 and 0.962, and the least alike copies of the kinds above 0.90, 0.96 and 0.98. All were found, none was invented;
but the more alike all images are, the narrower is what lies between. What is turned on a larger canvas is no candidate
in 6 of 100 cases there."""

_MADE = 24
"""Copies that are made."""

_DEVIATIONS = 1.711
"""From the lower quarter to the 85th hundredth of what is normally distributed. Up to 15 in 100 may be copies then
without hiding each other."""


def same_pictures(
    cells: UInt8[np.ndarray, "image grid grid"],
    patient: Int[np.ndarray, " image"],
    copied: Callable[[int], UInt8[np.ndarray, "grid grid"]] | None = None,
) -> Int[np.ndarray, "pair two"]:
    """Pairs of images of different patients that are one picture, each once, in ascending order.

    Args:
        cells: images averaged down to a square.
        patient: of each image.
        copied: makes of an image what a copy of it looks like at worst; asked for a few, where images are much alike.
    """
    pairs, ordinary = candidates(cells, patient)
    least, most = _ordinary_limits(_likeness(cells, ordinary))
    limit = least
    if copied is not None and least > np.arctanh(SAME_DETAIL):
        some = np.unique(np.linspace(0, len(cells) - 1, _MADE).astype(int))
        made = np.array([_overlaid(copied(one), cells[one]) for one in some.tolist()])
        limit = np.clip(np.median(_fisher(made)) - WORSE, least, most)
    found = pairs[_likeness(cells, pairs) >= max(SAME_DETAIL, np.tanh(limit)), :2]
    return np.unique(np.sort(found, axis=1), axis=0)


def _ordinary_limits(likeness: np.ndarray) -> tuple[float, float]:
    """Between which the limit lies, on Fisher's scale, by how alike ordinary images are."""
    if not len(likeness):
        return (np.arctanh(SAME_DETAIL),) * 2
    low, middle, high = np.quantile(_fisher(likeness), (0.25, 0.5, 0.85))
    least, most = (float(middle + times * (high - low) / _DEVIATIONS) for times in EXTREME)
    return least, most


def _fisher(likeness: np.ndarray) -> np.ndarray:
    return np.arctanh(likeness.clip(-0.9999, 0.9999))


def _overlaid(moving: np.ndarray, fixed: np.ndarray) -> float:
    own = layers(fixed)
    return overlaid(layers(moving), own, grounds(own))


def _likeness(cells: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """float64 `[pair]`: how alike candidates are, one laid over the other."""

    @lru_cache(maxsize=256)
    def ground(one: int) -> tuple[Layers, tuple[Ground, ...]]:
        fixed = layers(cells[one])
        return fixed, grounds(fixed)

    return np.array([overlaid(layers(turned(cells[other], turn)), *ground(one)) for one, other, turn in pairs.tolist()])
