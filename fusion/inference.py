"""From a trained model to risks: as arrays, and as the table that users see."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch

from ..datasets.arguments import require_whole
from ..datasets.cohort import Cohort
from ..datasets.errors import InputError
from ..datasets.prepared import BucketedBatches
from .boosted_trees import BoostedTrees
from .ensemble import Ensemble
from .frozen_tokens import Samples, encode_once
from .model import FusionModel, withhold
from .numerics import full_precision
from .thresholds import chosen_thresholds, told_thresholds

NOTHING_KNOWN = "refused: nothing that the model reads was known before the prediction time"
NOT_FINITE = "refused: the computed risk is not finite"


def predict(model: FusionModel | BoostedTrees | Ensemble, cohort: Cohort, *, batch_size: int = 64) -> pd.DataFrame:
    """The risk of every sample, or the reason why there is none.

    Args:
        model: trained with `fit` or read with `FusionModel.load`; or an ensemble, whose risk is the
            mean of its members', or one of these.
        cohort: the samples; outcomes are not needed and not looked at. They are seen as far back as
            the training patients were, whatever the cohort's own `history`.
        batch_size: samples that go through the network together; no result depends on it.

    Returns:
        One row a sample and outcome (a categorical outcome has one a class): `subject_id`,
        `prediction_time`, `outcome`, `risk` (a probability, or the expected value in the outcome's
        own unit), `status` ("ok", or why the risk is refused; then it is blank). The thresholds
        that were chosen on validation patients stand in `.attrs["thresholds"]`, what the readers
        left out (such as unknown lab codes), counted, in `.attrs["remarks"]`.

    Raises:
        InputError: the model is not trained, a file cannot be read, or a batch size below 1.
    """
    if isinstance(model, Ensemble):
        return model.mean([predict(member, cohort, batch_size=batch_size) for member in model.members])
    if isinstance(model, BoostedTrees):
        values, empty = model.risks(cohort), _nothing_known(model.present(cohort))
        return _risk_table(cohort.outcomes, tuple(model.outcomes), values, empty)
    require_trained(model)
    samples = encode_once(model, model.read(cohort), cohort.store)
    values = infer(model, samples, batch_size=batch_size)
    risks = _risk_table(samples.keys, model.heads.columns, values, samples.empty)
    risks.attrs["remarks"] = list(samples.remarks)
    risks.attrs["thresholds"] = told_thresholds(model.thresholds_)
    return risks


def _risk_table(keys: pd.DataFrame, columns: Sequence[str], values: np.ndarray, empty: np.ndarray) -> pd.DataFrame:
    """Risks `[sample, column]` as users see them, blank where they are refused."""
    status = _status(np.isfinite(values), empty)
    risk = np.where(status == "ok", values, np.nan)
    table = pd.DataFrame({**named_rows(keys, columns), "risk": risk.ravel(), "status": status.ravel()})
    return table.astype({"outcome": "str", "status": "str"})


def named_rows(keys: pd.DataFrame, columns: Sequence[str]) -> dict[str, np.ndarray]:
    """What the rows of a table of risks are of, one a sample and column of it.

    Args:
        keys: `subject_id` and `prediction_time` of the samples.
        columns: of the risks.
    """
    own = {name: keys[name].repeat(len(columns)).to_numpy() for name in ("subject_id", "prediction_time")}
    return {**own, "outcome": np.tile(columns, len(keys))}


def _nothing_known(present: Mapping[str, np.ndarray]) -> np.ndarray:
    """Bool `[sample]`: who has no modality at all."""
    return ~np.stack(list(present.values())).any(0)


def _status(finite: np.ndarray, empty: np.ndarray) -> np.ndarray:
    """Text `[sample, column]`: "ok", or why there is no risk."""
    status = np.where(finite, "ok", NOT_FINITE).astype(object)
    status[empty] = NOTHING_KNOWN
    return status


def infer(model: FusionModel, samples: Samples, *, batch_size: int = 64) -> np.ndarray:
    """Risks of all samples, also of those for whom only the learned absence is there: `[sample, column]`."""
    require_whole("batch_size", batch_size, least=1)
    device = next(model.parameters()).device
    values = np.full((len(samples), len(model.heads.columns)), np.nan)
    with _evaluating(model), full_precision(), torch.inference_mode():
        for positions in BucketedBatches(samples.sizes, batch_size, shuffle=False):
            batch = to_device(samples[positions], device)
            values[positions] = model(batch).value.double().cpu().numpy()
    return values


@contextmanager
def _evaluating(model: FusionModel) -> Iterator[None]:
    """Inside the block nothing is drawn at random; afterwards the model is as it was before."""
    was_training = model.training
    # Telling all layers takes a tenth of one patient's prediction: only where one does not know it.
    changes = any(module.training for module in model.modules())
    if changes:
        model.eval()
    try:
        yield
    finally:
        if changes:
            model.train(was_training)


def to_device(batch: object, device: torch.device) -> object:
    """A batch on the device of the model; Accelerate knows NamedTuples and dictionaries."""
    from accelerate.utils import send_to_device

    return batch if device.type == "cpu" else send_to_device(batch, device, non_blocking=True)


def require_trained(model: FusionModel) -> None:
    """Raise `InputError` if this is no model, or has no weights yet."""
    if not isinstance(model, FusionModel):
        raise InputError(
            f"model is a {type(model).__name__}; expected a FusionModel. Of a folder, read it with FusionModel.load."
        )
    if not model.is_built:
        raise InputError("The model is not trained. Train it with fit, or read one with FusionModel.load.")


def contributions(
    model: FusionModel | BoostedTrees | Ensemble, cohort: Cohort, *, batch_size: int = 64
) -> pd.DataFrame:
    """How much each modality moved each patient's risk, by exact Shapley values.

    A modality's value is the change of the risk when it is added, averaged over all orders in which
    the modalities could be added; what is not added is as if the patient lacked it. The values add
    up to the risk less the baseline, which is the risk of a patient of whom nothing is known.

    Args:
        model: trained.
        cohort: the samples to explain.
        batch_size: samples that go through the network together.

    Returns:
        One row a sample, outcome and modality: `subject_id`, `prediction_time`, `outcome`,
        `baseline`, `risk`, `modality`, `present`, `contribution` (in the unit of the risk), `status`.
        Where `predict` refuses the risk, the status says why and the numbers are blank.

    Raises:
        InputError: as `predict`.

    Source: Shapley, A value for n-person games, 1953; exact, over all 2^M subsets of M modalities.
    """
    if isinstance(model, Ensemble):
        read = {member.modalities for member in model.members}
        if len(read) > 1:
            told = " and ".join(", ".join(names) for names in sorted(read))
            raise InputError(
                f"The members read different modalities, {told}, so that what one has no value for cannot be averaged. "
                "Ask each alone: contributions(ensemble.members[0], cohort)."
            )
        # Shapley values of a mean are the means of Shapley values.
        return model.mean([contributions(member, cohort, batch_size=batch_size) for member in model.members])
    if isinstance(model, BoostedTrees):
        subsets = range(2 ** len(model.modalities))
        worth = np.stack([model.risks(_without(cohort, model.modalities, subset)) for subset in subsets])
        return _shapley(cohort.outcomes, tuple(model.outcomes), worth, model.present(cohort))
    require_trained(model)
    samples = encode_once(model, model.read(cohort), cohort.store)
    worth = worth_of_subsets(model, samples, range(2 ** len(model.modalities)), batch_size)
    present = {name: samples.parts[name].counts > 0 for name in model.modalities}
    return _shapley(samples.keys, model.heads.columns, worth, present)


def _without(cohort: Cohort, modalities: Sequence[str], subset: int) -> Cohort:
    """The cohort with the tables of a subset of the modalities alone, a bit each."""
    gone = {name: None for place, name in enumerate(modalities) if not subset >> place & 1}
    return cohort.with_tables("a subset of the modalities", **gone)


def _shapley(
    keys: pd.DataFrame, columns: Sequence[str], worth: np.ndarray, present: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    """The table that `contributions` gives.

    Args:
        keys: of the samples.
        columns: of the risks.
        worth: risks `[subset, sample, column]`; a subset is a number with a bit a modality.
        present: who has which modality, in the order of the bits.
    """
    status = _status(np.isfinite(worth).all(0), _nothing_known(present))
    worth = np.where(status == "ok", worth, np.nan)
    subsets = np.arange(len(worth))
    frames = []
    for place, (name, there) in enumerate(present.items()):
        without = subsets[(subsets >> place) & 1 == 0]
        sizes = np.array([int(s).bit_count() for s in without])
        orders = [math.factorial(s) * math.factorial(len(present) - s - 1) for s in sizes]
        weight = np.array(orders) / math.factorial(len(present))
        gain = worth[without | (1 << place)] - worth[without]
        frames.append(
            pd.DataFrame(
                {
                    **named_rows(keys, columns),
                    "baseline": worth[0].ravel(),
                    "risk": worth[-1].ravel(),
                    "modality": name,
                    "present": np.repeat(there, len(columns)),
                    "contribution": np.tensordot(weight, gain, 1).ravel(),
                    "status": status.ravel(),
                }
            )
        )
    return pd.concat(frames, ignore_index=True).astype({"outcome": "str", "status": "str"})


def worth_of_subsets(model: FusionModel, samples: Samples, subsets: Sequence[int], batch_size: int) -> np.ndarray:
    """The risk when only some modalities are there: `[subset, sample, column]`; of a subset, a bit a modality."""
    require_whole("batch_size", batch_size, least=1)
    names = model.modalities
    device = next(model.parameters()).device
    worth = np.full((len(subsets), len(samples), len(model.heads.columns)), np.nan)
    with _evaluating(model), full_precision(), torch.inference_mode():
        for positions in BucketedBatches(samples.sizes, batch_size, shuffle=False):
            # Every modality is encoded once; the subsets differ in what the fusion head may read.
            tokens = model.encode(to_device(samples[positions], device))
            for number, subset in enumerate(subsets):
                kept = {
                    name: torch.full((len(positions),), bool(subset >> place & 1), device=device)
                    for place, name in enumerate(names)
                }
                worth[number, positions] = model.fuse(withhold(tokens, kept)).value.double().cpu().numpy()
    return worth


def choose_thresholds(model: FusionModel, samples: Samples) -> dict[str, float]:
    """By binary outcome, the threshold that maximises F1 of the risks that are not refused."""
    values = infer(model, samples)
    risks = np.where(_status(np.isfinite(values), samples.empty) == "ok", values, np.nan)
    return chosen_thresholds(risks, model.heads.columns, model.outcomes, samples.outcomes, samples.known)
