"""What becomes of a score as a modality goes missing, of as many patients as one likes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..datasets.errors import InputError
from .evaluation import patient_bootstrap, percentile_interval
from .matching import labelled_risks

if TYPE_CHECKING:
    from ..datasets import Cohort
    from .model import FusionModel

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of the patients who have a modality: from how many it is withheld."""


def risks_without(model: FusionModel, cohort: Cohort, *, batch_size: int = 64) -> dict[str, pd.DataFrame]:
    """Risks as if nobody had one of the modalities that the model reads, by that modality.

    Args:
        model: trained.
        cohort: the samples.
        batch_size: samples that go through the network together.

    Returns:
        By modality, a table as `predict` gives it, in the same order, with one more column, `present`: whether
        the sample has the modality. No risk is refused for nothing being known: what is then left
        is the risk that the model has learned for that.

    Raises:
        InputError: as `predict`.
    """
    from .frozen_tokens import encode_once
    from .inference import NOT_FINITE, named_rows, require_trained, worth_of_subsets

    require_trained(model)
    samples = encode_once(model, model.read(cohort), cohort.store)
    everything = 2 ** len(model.modalities) - 1
    all_but_one = [everything ^ (1 << place) for place in range(len(model.modalities))]
    worth = worth_of_subsets(model, samples, all_but_one, batch_size)
    columns = model.heads.columns
    tables = {}
    for name, risk in zip(model.modalities, worth.reshape(len(worth), -1), strict=True):
        present = np.diff(samples.parts[name].offsets) > 0
        tables[name] = pd.DataFrame(
            {
                **named_rows(samples.keys, columns),
                "risk": np.where(np.isfinite(risk), risk, np.nan),
                "status": np.where(np.isfinite(risk), "ok", NOT_FINITE),
                "present": present.repeat(len(columns)),
            }
        )
    return tables


def missing_curve(
    risks: pd.DataFrame,
    without: Mapping[str, pd.DataFrame],
    cohort: Cohort,
    *,
    outcome: str,
    modalities: Sequence[str] | None = None,
    shares: Sequence[float] = SHARES,
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """AUROC as each modality is withheld from a growing share of the patients who have it.

    From whom it is withheld is drawn once; who lacks it at one share lacks it at every larger one, so that a curve
    does not jump with the draw.

    Args:
        risks: of the whole cohort, none refused.
        without: what `risks_without` gave for the same model and samples.
        cohort: the samples.
        outcome: a binary one.
        modalities: what is withheld, in turn; what the model reads unless given. Of one that the model does not
            read, the curve is level.
        shares: of the patients who have the modality, each from 0 to 1.
        resamples: of patients, for 95 % intervals; 0 gives none.
        seed: of the draw of patients, and of the resampling.

    Returns:
        One row a modality and share: `withheld`, `share`, `patients` (from how many it was withheld), `AUROC`,
        `low`, `high`.

    Raises:
        InputError: a share out of its range, risks of other samples, or as `evaluate`.
    """
    if not shares or not all(0 <= share <= 1 for share in shares):
        raise InputError(f"shares are {list(shares)}; expected numbers from 0 to 1, at least one.")
    measure = partial(_auroc, cohort=cohort, outcome=outcome, resamples=resamples, seed=seed)
    level = measure(risks)
    rows = []
    for name in without if modalities is None else modalities:
        other = without.get(name)
        holders = _shuffled_holders(risks, other, seed)
        for share in shares:
            chosen = holders[: round(share * len(holders))]
            found = measure(_exchanged(risks, other, chosen)) if len(chosen) else level
            rows.append({"withheld": name, "share": share, "patients": len(chosen), **found})
    return pd.DataFrame(rows)


def _shuffled_holders(risks: pd.DataFrame, other: pd.DataFrame | None, seed: int) -> np.ndarray:
    """The patients who have the modality, in the order in which it is withheld from them."""
    if other is None:
        return np.array([])
    keys = ["subject_id", "prediction_time", "outcome"]
    if not risks[keys].reset_index(drop=True).equals(other[keys].reset_index(drop=True)):
        raise InputError(
            "Risks with and without a modality are of different samples. Give those of one model and cohort."
        )
    holders = other.loc[other["present"].to_numpy(bool), "subject_id"].drop_duplicates().to_numpy()
    return np.random.default_rng(seed).permutation(holders)


def _exchanged(risks: pd.DataFrame, other: pd.DataFrame, patients: np.ndarray) -> pd.DataFrame:
    """The risks, and of these patients those without the modality."""
    lacks = risks["subject_id"].isin(patients).to_numpy()
    columns = ["risk", "status"]
    both = {name: np.where(lacks, other[name].to_numpy(), risks[name].to_numpy()) for name in columns}
    return risks.assign(**both)


def _auroc(risks: pd.DataFrame, *, cohort: Cohort, outcome: str, resamples: int, seed: int) -> dict[str, float]:
    labelled = labelled_risks(risks, cohort, outcome=outcome)
    labelled.check_classes()
    metric = partial(labelled.metrics, threshold=0.5, names=("AUROC",))
    values, resampled = patient_bootstrap(metric, labelled.patient, resamples=resamples, seed=seed)
    low, high, _ = percentile_interval(resampled["AUROC"], level=0.95)
    return {"AUROC": values["AUROC"], "low": low, "high": high}
