"""What a sample reads: the most recent of its entries, and the rows that each of them is."""

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


def runs(first: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The numbers `first[i]` to `first[i] + counts[i] - 1` of every i, one run after the other."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(first - (ends - counts), counts)


def expanded(window: Window, first: np.ndarray, counts: np.ndarray) -> Window:
    """The window in which entry i became the rows from `first[i]` on, `counts[i]` of them."""
    ends = np.concatenate([[0], np.cumsum(counts)])
    return Window(ends[window.offsets], runs(first, counts), np.repeat(window.hours, counts))
