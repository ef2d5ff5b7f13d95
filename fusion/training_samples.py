"""What a training is given: checked, read, and told from any other by a fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from ..datasets.arguments import require_cohort
from ..datasets.cohort import Cohort
from ..datasets.errors import InputError
from ..datasets.prepared import PreparedSamples
from .checkpoint import TrainingState
from .distillation import distilled
from .frozen_tokens import Samples, TokenKeeper
from .model import FusionModel
from .settings import TrainingSettings
from .stopping import Stopped, StopRequest

if TYPE_CHECKING:
    from ..datasets.batch import Batch


def check_cohorts(model: FusionModel, train: Cohort, valid: Cohort | None) -> None:
    """Raise `InputError` for cohorts that would train nothing, or the wrong thing; or for what is no model."""
    if not isinstance(model, FusionModel):
        raise InputError(f"model is a {type(model).__name__}; expected a FusionModel. fit_ensemble trains several.")
    for part in (train,) if valid is None else (train, valid):
        require_cohort(part)
    if valid is not None:
        common = set(train.outcomes["subject_id"]) & set(valid.outcomes["subject_id"])
        if common:
            raise InputError(f"{len(common)} patients are both in train and in valid. Divide with cohort.split.")
    if valid is not None and not any(
        name in valid.outcomes.columns and valid.outcomes[name].notna().any() for name in model.outcomes
    ):
        raise InputError(
            "No validation patient has a known outcome, so nothing can be validated. Bring some that have."
        )
    nothing = ~train.has_input().any(axis=1).to_numpy()
    if nothing.any():
        raise InputError(
            f"Of {int(nothing.sum())} of {len(train)} training samples nothing is known before the prediction time "
            f"(first: outcomes, data row {int(np.flatnonzero(nothing)[0]) + 1}). "
            "Leave them out with cohort.keep_with_input()."
        )
    for name, kind in model.outcomes.items():
        if name not in train.outcomes.columns:
            raise InputError(f"outcomes lacks the column {name}, which the model predicts. Add it.")
        labels = train.outcomes[name].dropna()
        if labels.nunique() < 2:
            same = "of one class" if kind == "categorical" else f"{labels.max():g}"
            seen = f"all {len(labels)} known ones are {same}" if len(labels) else "none is known"
            raise InputError(
                f"The outcome {name} does not vary among the training patients: {seen}. "
                "Nothing can be learned from that; bring patients of both kinds, or drop the outcome."
            )


def read_samples(
    model: FusionModel, train: Cohort, valid: Cohort | None, settings: TrainingSettings
) -> tuple[PreparedSamples, PreparedSamples | None, tuple[str, ...]]:
    """The samples as arrays, after the model was built on the training patients if it was not; and remarks on both."""
    fresh = not model.is_built
    if fresh:
        model.build(train, seed=settings.seed)
    samples = model.read(train, labelled=True)
    held_out = None if valid is None else model.read(valid, labelled=True)
    learn = model.fit_scales if fresh else model.weigh_classes
    learn(torch.from_numpy(samples.outcomes), torch.from_numpy(samples.known), balanced=settings.balanced)
    remarks = samples.remarks + (held_out.remarks if held_out else ())
    if settings.distillation:
        # After scales and class weights were learned, which count whole labels.
        samples, told = distilled(samples, train, model, share=settings.distillation, seed=settings.seed)
        remarks += told
    return samples, held_out, remarks


def encoded_once(
    state: TrainingState,
    train: tuple[PreparedSamples, Cohort],
    valid: tuple[PreparedSamples | None, Cohort | None],
    stop: StopRequest,
) -> tuple[Samples, Samples | None]:
    """The samples as networks that never learn see them, so that epochs touch only what learns.

    As they are, where this process is asked to stop before all are encoded: the others are to hear of it first.
    """
    # Of networks that are divided, each row would have to be encoded by all processes together.
    keeper = TokenKeeper(state.whole or state.model, stop.hear)
    try:
        samples, held_out = (own and keeper.keep(own, cohort.store) for own, cohort in (train, valid))
    except Stopped:
        return train[0], valid[0]
    finally:
        if state.whole is not None:
            # While weights are divided, its place on the device is needed.
            state.whole.cpu()
    state.history.tuning += keeper.told
    return samples, held_out


def fingerprint_of(samples: PreparedSamples, held_out: PreparedSamples | None, settings: Mapping[str, object]) -> str:
    """What must be equal for a stopped run to go on: all samples in their order, and the settings.

    Samples are hashed as batches show them, so that it does not matter where their arrays are kept.
    """
    digest = hashlib.sha256(repr(settings).encode())
    for part in (samples, held_out):
        if part is None:
            continue
        digest.update(part.keys.to_csv(index=False).encode())
        for first in range(0, len(part), 64):
            batch = part[range(first, min(first + 64, len(part)))]
            for column in (batch.outcomes, batch.known, *(column for own in batch.parts.values() for column in own)):
                digest.update(column.contiguous().numpy())
    return digest.hexdigest()


def sample_hashes(cohort: Cohort, salt: str) -> list[str]:
    """Each sample as a salted hash, so that a history can name samples without naming a patient.

    Args:
        cohort: the samples, in any order.
        salt: as `History.salt` has it.

    Returns:
        16 hexadecimal digits a sample, in the cohort's order.
    """
    return hashed_samples(cohort.outcomes[["subject_id", "prediction_time"]], salt)


def hashed_samples(keys: pd.DataFrame, salt: str) -> list[str]:
    """The same for rows of `subject_id` and `prediction_time`."""
    named = zip(keys["subject_id"], keys["prediction_time"], strict=True)
    return [hashlib.sha256(f"{salt}/{who}/{when.isoformat()}".encode()).hexdigest()[:16] for who, when in named]


def parts_of(positions: list[int], processes: int, accumulate: int) -> list[list[list[int]]]:
    """A batch, divided into so many parts at most, and these among the processes: `[part][process]`.

    All processes have as many parts; some of them may be empty.
    """
    shares = [positions[process::processes] for process in range(processes)]
    count = max(1, min(accumulate, len(shares[0])))
    divided = [[part.tolist() for part in np.array_split(share, count)] for share in shares]
    return list(zip(*divided, strict=True))


def batch_of(samples: Samples, shares: Sequence[list[int]], process: int, *, sharded: bool = False) -> Batch:
    """A process's share of a part of a batch. One that would get none repeats a sample without its labels.

    Args:
        samples: what all processes have.
        shares: of each process.
        process: whose batch it is.
        sharded: whether weights are divided among the processes. Then all must run the same networks, and one that
            would lack a modality that others have borrows a sample that has it, without its labels.
    """
    own, borrowed = list(shares[process]), []
    others = [position for share in shares for position in share]
    for packed in samples.parts.values() if sharded else ():
        having = [place for place in others if packed.offsets[place + 1] > packed.offsets[place]]
        if having and not set(having) & {*own, *borrowed}:
            borrowed.append(having[0])
    if not own and not borrowed:
        borrowed = others[:1]
    batch = samples[own + borrowed]
    is_own = torch.arange(len(batch.known)) < len(own)
    return batch._replace(known=batch.known & is_own[:, None])
