"""When a sample has more than a model should read: the most recent stays, the rest is counted."""

from __future__ import annotations

import numpy as np

from .windows import Window


def select(window: Window, keep: np.ndarray) -> Window:
    """The window with only the entries where `keep` (bool `[entry]`) is True."""
    before = np.concatenate([[0], np.cumsum(keep)])
    return Window(before[window.offsets], window.rows[keep], window.hours[keep])


def most_recent(window: Window, most: int) -> tuple[Window, int]:
    """At most `most` entries a sample, the latest, and how many were dropped."""
    ends = np.repeat(window.offsets[1:], np.diff(window.offsets))
    keep = ends - np.arange(len(window.rows)) <= most
    return select(window, keep), int((~keep).sum())
