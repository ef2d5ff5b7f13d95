"""A cohort as arrays: read, decoded and scaled once, then cut into batches as often as one likes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import pandas as pd
import torch

from .batch import Batch, Notes, Part
from .checks import Exclusion
from .cohort import Cohort
from .fingerprints import cohort_content
from .outcomes import OutcomeKind, encode_outcomes


@dataclass(frozen=True)
class Packed:
    """One modality of all samples: which rows of the arrays each sample sees, and when."""

    kind: type[Part]
    offsets: np.ndarray
    """int64 `[sample + 1]`: the entries of sample i are `offsets[i]:offsets[i + 1]`."""
    rows: np.ndarray
    """int64 `[entry]`: positions in the arrays; samples of one patient share rows."""
    hours: np.ndarray
    """float32 `[entry]`, relative to the prediction time (≤ 0)."""
    arrays: dict[str, np.ndarray]
    """By field of the part, `[row, ...]`."""
    entries: dict[str, np.ndarray] = field(default_factory=dict)
    """By field of the part, `[entry, ...]`, for what depends on the sample and not on the row alone."""
    remarks: tuple[str, ...] = ()
    """What was left out on the way, counted."""
    exclusions: tuple[Exclusion, ...] = ()
    """The files that were left out because the cohort's store was asked to, one by one."""

    @property
    def counts(self) -> np.ndarray:
        """int64 `[sample]`: entries."""
        return np.diff(self.offsets)

    @property
    def sizes(self) -> np.ndarray:
        """int64 `[sample]`: what an encoder reads: entries, or of notes their tokens, padded to the longest piece."""
        if self.kind is not Notes or not len(self.rows):
            return self.counts
        longest = np.zeros(len(self.counts), np.int64)
        sample = np.repeat(np.arange(len(longest)), self.counts)
        np.maximum.at(longest, sample, self.arrays["length"][self.rows].astype(np.int64))
        return self.counts * longest

    def take(self, samples: np.ndarray) -> Part:
        """The part of a batch that holds these samples."""
        counts = self.offsets[samples + 1] - self.offsets[samples]
        total = int(counts.sum())
        first = np.repeat(self.offsets[samples] - (np.cumsum(counts) - counts), counts)
        entry = np.arange(total) + first
        rows = self.rows[entry]
        columns = {
            "patient": np.repeat(np.arange(len(samples)), counts),
            "hours": self.hours[entry],
            **{name: array[rows] for name, array in self.arrays.items()},
            **{name: array[entry] for name, array in self.entries.items()},
        }
        part = self.kind(**{name: torch.from_numpy(_as_tensor_type(column)) for name, column in columns.items()})
        if isinstance(part, Notes):
            longest = int(part.length.max()) if total else 0
            part = part._replace(tokens=part.tokens[:, :longest])
        return part


def _as_tensor_type(column: np.ndarray) -> np.ndarray:
    """Integers as int64, since they become indices; pixels and floats as they are."""
    if column.dtype in (np.int16, np.int32):
        return column.astype(np.int64)
    return column


class Reader(Protocol):
    """How the samples of a cohort become the arrays of one modality.

    What is fitted is fitted on the training patients, has a name that ends in `_`, and is saved
    with the model.
    """

    def fit(self, cohort: Cohort) -> None:
        """Learn scales, vocabularies and the like from training patients."""

    def pack(self, cohort: Cohort) -> Packed:
        """Read, decode and scale one modality of every sample."""

    def state(self) -> dict[str, object]:
        """What was fitted, as plain JSON values."""

    def restore(self, state: Mapping[str, object]) -> None:
        """Take back what `state` gave."""


@dataclass(frozen=True)
class PreparedSamples(torch.utils.data.Dataset):
    """All samples of a cohort as arrays; indexing with a list of positions gives a `Batch`."""

    keys: pd.DataFrame
    """`subject_id` and `prediction_time` of each sample."""
    parts: dict[str, Packed]
    outcomes: np.ndarray
    known: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, samples: Sequence[int]) -> Batch:
        samples = np.asarray(samples, dtype=np.int64)
        return Batch(
            sample=torch.from_numpy(samples),
            parts={name: packed.take(samples) for name, packed in self.parts.items()},
            outcomes=torch.from_numpy(self.outcomes[samples]),
            known=torch.from_numpy(self.known[samples]),
        )

    @property
    def remarks(self) -> tuple[str, ...]:
        """What was left out while reading, modality by modality."""
        return tuple(remark for packed in self.parts.values() for remark in packed.remarks)

    @property
    def exclusions(self) -> tuple[Exclusion, ...]:
        """The files that were left out because they cannot be read, where that was asked for."""
        return tuple(one for packed in self.parts.values() for one in packed.exclusions)

    @property
    def sizes(self) -> np.ndarray:
        """int64 `[sample]`: what is read of all modalities, the measure by which batches are bucketed."""
        return sum((packed.sizes for packed in self.parts.values()), np.zeros(len(self), np.int64))

    @property
    def empty(self) -> np.ndarray:
        """bool `[sample]`: True where no modality has anything."""
        return sum((packed.counts for packed in self.parts.values()), np.zeros(len(self), np.int64)) == 0


def prepare(
    cohort: Cohort, readers: Mapping[str, Reader], outcome_kinds: Mapping[str, OutcomeKind] | None = None
) -> PreparedSamples:
    """Read a cohort through fitted readers, into memory, or into the cohort's store and mapped from there.

    Args:
        cohort: the samples; with a store if it was given one by `Cohort.with_store`.
        readers: one a modality, fitted.
        outcome_kinds: the outcomes to encode; None for prediction, where they are not needed.

    Raises:
        InputError: a file cannot be read, an outcome does not fit its kind, or the store's disk is full.
    """
    values, known = encode_outcomes(cohort.outcomes, outcome_kinds or {})
    if cohort.store is None:
        parts = {name: reader.pack(cohort) for name, reader in readers.items()}
    else:
        content = cohort_content(cohort)
        parts = {name: cohort.store.packed(name, reader, cohort, content) for name, reader in readers.items()}
    parts = {name: _told_absent(packed, cohort) for name, packed in parts.items()}
    return PreparedSamples(cohort.outcomes[["subject_id", "prediction_time"]], parts, values, known)


def _told_absent(packed: Packed, cohort: Cohort) -> Packed:
    """One modality, with a remark where the cohort has no table of it: its file may have a name of its own."""
    table = packed.kind.__name__.lower()
    # Of static facts that were learned, each column that is not there is told already.
    if packed.remarks or getattr(cohort, table) is not None:
        return packed
    return replace(packed, remarks=(f"{table}: there is no such table; every sample counts as having none",))


@dataclass(frozen=True)
class BucketedBatches(torch.utils.data.Sampler):
    """Batches of samples of like size, in an order that the seed and the epoch determine.

    Samples are shuffled, sorted by size inside pools of `pool` batches, cut, and the batches are
    shuffled again: nearly as random as plain shuffling, with little padding.
    """

    sizes: np.ndarray
    batch_size: int
    seed: int = 0
    epoch: int = 0
    shuffle: bool = True
    pool: int = 8

    def __len__(self) -> int:
        return -(-len(self.sizes) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        if not self.shuffle:
            order = np.argsort(self.sizes, kind="stable")
            yield from (order[i : i + self.batch_size].tolist() for i in range(0, len(order), self.batch_size))
            return
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(len(self.sizes))
        width = self.pool * self.batch_size
        pools = [order[i : i + width] for i in range(0, len(order), width)]
        order = np.concatenate([pool[np.argsort(self.sizes[pool], kind="stable")] for pool in pools])
        batches = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        yield from (batches[i].tolist() for i in generator.permutation(len(batches)))
