"""What a model is given: packed parts, one a modality, that hold only what exists.

Every part has a field `patient`: which patient of the batch a row belongs to. A patient who lacks a
modality has no row in its part. Batches are NamedTuples, because Accelerate moves those (and
dictionaries) between devices, and does not look inside dataclasses.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor


class Images(NamedTuple):
    """Radiographs and other pictures, as the integers they were stored in."""

    patient: Int[Tensor, " image"]
    hours: Float[Tensor, " image"]
    pixels: UInt8[Tensor, "image channel height width"]
    """0 is black, 255 is white."""


class Labs(NamedTuple):
    """Measurements of the vocabulary, one row each."""

    patient: Int[Tensor, " event"]
    hours: Float[Tensor, " event"]
    code: Int[Tensor, " event"]
    value: Float[Tensor, " event"]
    """In robust standard deviations from the training patients' median."""
    step: Int[Tensor, " event"]
    """Number of the time step, from 0, oldest first; simultaneous events share one."""


class Notes(NamedTuple):
    """Pieces of notes, one row each, padded to the longest of the batch."""

    patient: Int[Tensor, " chunk"]
    hours: Float[Tensor, " chunk"]
    tokens: Int[Tensor, "chunk token"]
    length: Int[Tensor, " chunk"]
    """How many of the tokens are real."""


class Static(NamedTuple):
    """Known facts, one row each."""

    patient: Int[Tensor, " fact"]
    hours: Float[Tensor, " fact"]
    """Always 0: a fact holds at the prediction time."""
    column: Int[Tensor, " fact"]
    value: Float[Tensor, " fact"]
    """The scaled number, or 0 where the column is categorical."""
    level: Int[Tensor, " fact"]
    """The category, numbered over all columns from 1, or 0 where the column is a number."""


Part = Images | Labs | Notes | Static


class Batch(NamedTuple):
    """Some samples, ready for a model."""

    sample: Int[Tensor, " patient"]
    """Position of each sample in its cohort."""
    parts: dict[str, Part]
    """By modality: `image`, `labs`, `notes`, `static`, as many as the model reads."""
    outcomes: Float[Tensor, "patient outcome"]
    """0/1, class number or value; 0 where unknown."""
    known: Bool[Tensor, "patient outcome"]
