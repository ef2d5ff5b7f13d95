"""Tokens of networks that do not learn: made once a row, kept in files, and mapped from there in every epoch.

What is kept is found by the network's weights and architecture, by the versions of the libraries that
compute it, and by the content of the row: the pixels of an image, or the word pieces of a note. So it is
never taken for that of other weights or of another reader, and equal rows of any cohort share it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pandas as pd
import torch

from ..datasets.batch import Batch, Notes
from ..datasets.checks import Exclusion
from ..datasets.prepared import Packed, PreparedSamples
from ..datasets.recent import expanded
from ..datasets.shelf import Made
from ..datasets.store import Store
from ..datasets.temporary import TemporaryFolder
from ..datasets.windows import Window
from ..encoders import Encoded, Tuned
from ..encoders.budget import has_budget
from .learning import tuned_encoders
from .model import FusionModel

# Computed values change with them, in their last bits at least.
_LIBRARIES = ("torch", "timm", "transformers")
_ROWS_A_CHUNK = 32


class EncodedSamples:
    """Samples whose batches hold tokens in the place of what a frozen network would read.

    In everything else, such as the order of batches, they are the samples that they were made of.
    """

    def __init__(self, read: PreparedSamples, tokens: dict[str, Packed], keeper: TokenKeeper | None) -> None:
        self._read, self._encoded = read, replace(read, parts=read.parts | tokens)
        # A temporary folder is there as long as somebody reads from it.
        self._keeper = keeper

    def __len__(self) -> int:
        return len(self._read)

    def __getitem__(self, samples: list[int]) -> Batch:
        return self._encoded[samples]

    @property
    def keys(self) -> pd.DataFrame:
        return self._read.keys

    @property
    def parts(self) -> dict[str, Packed]:
        """As they were read."""
        return self._read.parts

    @property
    def outcomes(self) -> np.ndarray:
        return self._read.outcomes

    @property
    def known(self) -> np.ndarray:
        return self._read.known

    @property
    def sizes(self) -> np.ndarray:
        return self._read.sizes

    @property
    def empty(self) -> np.ndarray:
        return self._read.empty

    @property
    def remarks(self) -> tuple[str, ...]:
        return self._read.remarks

    @property
    def exclusions(self) -> tuple[Exclusion, ...]:
        return self._read.exclusions


Samples = PreparedSamples | EncodedSamples


class TokenKeeper:
    """Where tokens are kept while a model is trained: in a cohort's store, or else in a temporary folder.

    The temporary folder is removed when nobody reads from it any more.

    Args:
        model: whose networks are looked at.
        hear: called before each chunk of rows; what it raises ends the work, and what is in a store stays.
    """

    def __init__(self, model: FusionModel, hear: Callable[[], None] = lambda: None) -> None:
        self._model, self.hear = model, hear
        self._temporary: Store | None = None
        self._kept: dict[tuple[str, str], int] = {}

    def keep(self, samples: PreparedSamples, store: Store | None) -> Samples:
        """The samples as frozen networks see them, each row of them encoded if it never was.

        Raises:
            InputError: the disk is full, or a file of the store is damaged.
        """
        frozen = frozen_encoders(self._model)
        if not frozen:
            return samples
        if store is None and self._temporary is None:
            self._folder = TemporaryFolder("chiasm-tokens-")
            self._temporary = Store.open(self._folder.path)
        kept = encode_once(self._model, samples, store or self._temporary, self)
        place = f"the store {store.folder}" if store else "a temporary folder, since the cohort has no store"
        for name in frozen:
            rows = len(np.unique(samples.parts[name].rows))
            self._kept[name, place] = self._kept.get((name, place), 0) + rows
        return kept

    @property
    def told(self) -> tuple[str, ...]:
        """What was kept and where, one sentence an encoder and place."""
        return tuple(
            f"{name}: {rows:,} rows encoded once, without augmentation, and kept in {place}"
            for (name, place), rows in self._kept.items()
        )


def frozen_encoders(model: FusionModel) -> dict[str, Tuned]:
    """The encoders whose networks never learn, by modality."""
    return {name: encoder for name, encoder in tuned_encoders(model) if encoder.tuning.is_frozen}


def encode_once(
    model: FusionModel, samples: PreparedSamples, store: Store | None, keeper: TokenKeeper | None = None
) -> Samples:
    """The samples as frozen networks see them, kept in a store; unchanged where there is neither.

    Raises:
        InputError: the disk is full, or a file of the store is damaged.
    """
    frozen = frozen_encoders(model)
    if not frozen or store is None:
        return samples
    hear = keeper.hear if keeper else lambda: None
    tokens = {name: _tokens(name, encoder, samples.parts[name], store, hear) for name, encoder in frozen.items()}
    return EncodedSamples(samples, tokens, keeper)


def _tokens(name: str, encoder: Tuned, packed: Packed, store: Store, hear: Callable[[], None]) -> Packed:
    """One modality of all samples as tokens, mapped."""
    from joblib import parallel_config

    used, entry = np.unique(packed.rows, return_inverse=True)
    contents = [_row_content(packed, row) for row in used]
    # Rows of like length together: those of a chunk are padded to the longest.
    order = np.argsort(packed.arrays["length"][used], kind="stable") if packed.kind is Notes else range(len(used))
    rows = {contents[place]: int(used[place]) for place in order}
    settings = {"network": encoder.identity(), "libraries": {library: version(library) for library in _LIBRARIES}}
    fields: dict[str, tuple] = {"values": ("f4", (encoder.width,))}
    if has_budget(encoder):
        settings, fields = settings | {"with": "means"}, fields | {"place": ("i4", ())}
    shelf = store.shelf(f"tokens-{name}", settings, fields)

    def make(chunk: list[str]) -> list[Made]:
        hear()
        return _made(encoder, packed, rows, chunk)

    # The network is here, and uses the processors itself.
    with parallel_config(n_jobs=1):
        items = dict(zip(rows, rows, strict=True))
        shelf.add(items, make, f"encoding {name} once", chunk=_ROWS_A_CHUNK, together=True)
    first, counts = np.array([shelf.find(content) for content in contents], np.int64).reshape(-1, 2).T
    first, counts = first[entry], counts[entry]
    if has_budget(encoder):
        # Of each row all tokens but the last, which is their mean; or the mean alone.
        detailed = encoder.detailed(packed)
        first, counts = np.where(detailed, first, first + counts - 1), np.where(detailed, counts - 1, 1)
    by_token = expanded(Window(packed.offsets, packed.rows, packed.hours), first, counts)
    return Packed(Encoded, by_token.offsets, by_token.rows, by_token.hours, shelf.arrays())


def _row_content(packed: Packed, row: int) -> str:
    """A hash of what a network is shown of a row, without padding."""
    digest = hashlib.sha256()
    for field, array in packed.arrays.items():
        value = array[row]
        if packed.kind is Notes and field == "tokens":
            value = value[: packed.arrays["length"][row]]
        digest.update(f"{field} {value.dtype} {value.shape}".encode() + value.tobytes())
    return digest.hexdigest()


def _made(encoder: Tuned, packed: Packed, rows: dict[str, int], contents: list[str]) -> list[Made]:
    """Tokens of some rows."""
    count = len(contents)
    alone = Packed(
        packed.kind,
        np.arange(count + 1),
        np.array([rows[content] for content in contents]),
        np.zeros(count, np.float32),
        packed.arrays,
    )
    device = next(encoder.parameters()).device
    part = packed.kind(*(column.to(device) for column in alone.take(np.arange(count))))
    with torch.no_grad():
        encoded = encoder.encoded(part)
    values = encoded.values.float().cpu().numpy()
    ends = np.cumsum(np.bincount(encoded.patient.cpu().numpy(), minlength=count))[:-1]
    parts = np.split(values, ends)
    if not has_budget(encoder):
        return [Made(content, content, {"values": own}) for content, own in zip(contents, parts, strict=True)]
    with_means = (np.concatenate([own, own.mean(0, keepdims=True)]) for own in parts)
    return [
        Made(content, content, {"values": own, "place": np.append(np.arange(len(own) - 1, dtype=np.int32), -1)})
        for content, own in zip(contents, with_means, strict=True)
    ]
