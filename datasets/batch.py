"""What a model is given: packed parts, one a modality, that hold only what exists.

Every part has a field `patient`: which patient of the batch a row belongs to. A patient who lacks a
modality has no row in its part. Batches are NamedTuples, because Accelerate moves those (and
dictionaries) between devices, and does not look inside dataclasses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import torch
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

    patient: Int[Tensor, " piece"]
    hours: Float[Tensor, " piece"]
    tokens: Int[Tensor, "piece token"]
    length: Int[Tensor, " piece"]
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
    """0/1 (in training maybe a probability), class number, or value; 0 where unknown."""
    known: Bool[Tensor, "patient outcome"]

    def __reduce__(self) -> tuple:
        """Pickled as one tensor: what a loader's worker sends costs a file a tensor, which is more than its bytes."""
        tensors = [self.sample, self.outcomes, self.known, *chain.from_iterable(self.parts.values())]
        if any(tensor.device.type != "cpu" for tensor in tensors):
            return Batch, tuple(self)
        return _taken_apart, ({name: type(part) for name, part in self.parts.items()}, *_laid_together(tensors))


# Bytes; a tensor begins where any type of number may.
_ALIGNED = 16


class _Place(NamedTuple):
    """Where a tensor lies in a longer one of bytes."""

    first: int
    kind: torch.dtype
    shape: tuple[int, ...]


def _laid_together(tensors: Sequence[Tensor]) -> tuple[Tensor, list[_Place]]:
    """One tensor of the bytes of many, and where each of them lies in it."""
    places, end = [], 0
    for tensor in tensors:
        places.append(_Place(end, tensor.dtype, tuple(tensor.shape)))
        end += -(-tensor.nbytes // _ALIGNED) * _ALIGNED
    together = torch.empty(end, dtype=torch.uint8)
    for tensor, place in zip(tensors, places, strict=True):
        _view(together, place).copy_(tensor)
    return together, places


def _view(together: Tensor, place: _Place) -> Tensor:
    count = place.kind.itemsize * torch.Size(place.shape).numel()
    return together[place.first : place.first + count].view(place.kind).view(place.shape)


def _taken_apart(kinds: Mapping[str, type[Part]], together: Tensor, places: Sequence[_Place]) -> Batch:
    sample, outcomes, known, *rest = (_view(together, place) for place in places)
    columns = iter(rest)
    parts = {name: kind(*(next(columns) for _ in kind._fields)) for name, kind in kinds.items()}
    return Batch(sample, parts, outcomes, known)
