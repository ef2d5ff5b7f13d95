"""The law by which patients of a synthetic hospital come to harm, and what a reader can know of it.

Each patient has five latent facts, each told by one modality only: a consolidation (images), the
direction of CRP and renal impairment (labs), heart failure (notes) and age (static). The outcome
follows a logistic law of them with one product, consolidation × direction of CRP, whose sign neither
the images nor the labs, nor any sum of what each says alone, can see. A modality that is missing from the
files has still acted on the patient.
"""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from .errors import InputError

MODALITIES = ("image", "labs", "notes", "static")

MISSING_RATE = 0.3
"""Share of patients who lack a modality, independently for each."""

AGE_UNRECORDED_RATE = 0.04
"""Share of rows of the static table without an age."""

AGE_YEARS = (30, 90)
"""Ages are whole years, uniform from the first to the second, both included."""

AGE_CENTRE, AGE_SPREAD = 60.0, 17.6
"""Mean and standard deviation of that distribution in years: sqrt((61² − 1) / 12) = 17.6."""

LATENTS = {
    "consolidation": "image",
    "crp_trend": "labs",
    "renal": "labs",
    "heart_failure": "notes",
    "age_score": "static",
}
"""Each latent and the modality that tells it. `renal` and `age_score` are in standard deviations; the
others are −1 (absent, falling) or 1 (present, rising), equally likely and independent."""

INTERCEPT = -3.0
"""Log-odds of the average patient, set for an outcome rate between 0.25 and 0.30."""

LOG_ODDS = {"consolidation": 2.4, "crp_trend": 1.2, "renal": 1.6, "heart_failure": 2.0, "age_score": 2.0}
"""Change of the log-odds per unit of each latent, set so that all modalities together reach an AUROC
of 0.90 with 30 % of each missing, and the best single one 0.70."""

INTERACTION = 3.2
"""Log-odds of consolidation × crp_trend. Both are centred, so that averaged over either the product adds
nothing to the log-odds; who sums what each modality says alone reaches an AUROC of 0.84."""

_SIGNS = (np.array([-1.0, 1.0]), np.array([0.5, 0.5]))


def _quadrature(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights by which an unseen latent is integrated over its distribution."""
    if name == "renal":
        nodes, weights = np.polynomial.hermite_e.hermegauss(16)
        return nodes, weights / weights.sum()
    if name == "age_score":
        # Whole years as a continuum half a year wider on both sides: wrong by less than 1e-4.
        nodes, weights = np.polynomial.legendre.leggauss(12)
        half = (AGE_YEARS[1] - AGE_YEARS[0] + 1) / 2
        return (nodes * half + sum(AGE_YEARS) / 2 - AGE_CENTRE) / AGE_SPREAD, weights / 2
    return _SIGNS


def _shares(latents: np.ndarray) -> dict[str, np.ndarray]:
    """What each modality, and the interaction, adds to the log-odds; latents in the last axis."""
    shares = dict.fromkeys(MODALITIES, 0.0)
    for place, (name, modality) in enumerate(LATENTS.items()):
        shares[modality] = shares[modality] + LOG_ODDS[name] * latents[..., place]
    return shares | {"interaction": INTERACTION * latents[..., 0] * latents[..., 1]}


def _sigmoid(logit: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logit))


def _log_odds(risk: np.ndarray) -> np.ndarray:
    return np.log(risk / (1 - risk))


def expected_risk(
    latents: Float[np.ndarray, "patient latent"], known: Bool[np.ndarray, "patient latent"]
) -> Float[np.ndarray, " patient"]:
    """The risk as an ideal reader knows it: E[risk | known latents], by quadrature over the others.

    Args:
        latents: in the order of `LATENTS`.
        known: which of them the reader knows.

    Returns:
        Probability of the outcome, one a patient.
    """
    risk = np.empty(len(latents))
    for pattern in np.unique(known, axis=0):
        rows = (known == pattern).all(axis=1)
        values, which = np.unique(np.where(pattern, latents[rows], 0), axis=0, return_inverse=True)
        rules = [_quadrature(name) for name, seen in zip(LATENTS, pattern, strict=True) if not seen]
        nodes = np.array(list(product(*(nodes for nodes, _ in rules))))
        weights = np.array([np.prod(node) for node in product(*(weights for _, weights in rules))])
        grid = np.repeat(values[:, None, :], len(nodes), axis=1)
        grid[:, :, ~pattern] = nodes
        risk[rows] = (_sigmoid(INTERCEPT + sum(_shares(grid).values())) @ weights)[which.ravel()]
    return risk


@dataclass(frozen=True, eq=False)
class Truth:
    """What is true of a synthetic hospital. No model may read it.

    `table` has one row a patient: `subject_id`; the latents; `age`; `has_image`, `has_labs`,
    `has_notes`, `has_static` and `age_recorded` (what the files hold); `share_*` (what each modality
    and the interaction add to the log-odds), `logit`, `risk` (given everything), `died`; and what can
    be known from the files: `reachable_risk` (from all modalities present), `reachable_image`,
    `reachable_labs`, `reachable_notes`, `reachable_static` (from that one alone) and
    `reachable_additive` (the sum of those four's log-odds, so without the interaction).
    """

    table: pd.DataFrame

    def _column(self, name: str, subject_ids: Collection[str] | None) -> tuple[np.ndarray, pd.DataFrame]:
        if name not in self.table.columns or not name.startswith(("reachable_", "risk")):
            scores = [column for column in self.table.columns if column.startswith(("reachable_", "risk"))]
            raise InputError(f"score: expected one of {', '.join(scores)}; got {name!r}.")
        table = self.table
        if subject_ids is not None:
            wanted = set(subject_ids)
            table = table[table["subject_id"].isin(wanted)]
            if len(table) != len(wanted):
                raise InputError(
                    f"subject_ids: {len(wanted) - len(table)} of {len(wanted)} are not in this hospital; "
                    "pass ids from its outcomes.csv."
                )
        return table[name].to_numpy(), table

    def auroc(self, score: str = "reachable_risk", *, subject_ids: Collection[str] | None = None) -> float:
        """AUROC of a score of the table against the outcomes as they fell.

        Args:
            score: a column of risks, `reachable_risk` being the best that a model can do.
            subject_ids: the patients to look at, by default all.

        Raises:
            InputError: no such score, or patients of another hospital.
        """
        from sklearn.metrics import roc_auc_score

        values, table = self._column(score, subject_ids)
        return float(roc_auc_score(table["died"], values))

    def expected_auroc(self, score: str = "reachable_risk", *, subject_ids: Collection[str] | None = None) -> float:
        """AUROC of a score averaged over the chance of the outcomes, given each patient's `risk`.

        Every patient stands among the cases with weight risk and among the others with 1 − risk.

        Args and Raises as in `auroc`.
        """
        from sklearn.metrics import roc_auc_score

        values, table = self._column(score, subject_ids)
        risk = table["risk"].to_numpy()
        outcome = np.repeat([1, 0], len(risk))
        return float(roc_auc_score(outcome, np.tile(values, 2), sample_weight=np.concatenate([risk, 1 - risk])))


def patient_generator(seed: int, patient: int, part: int) -> np.random.Generator:
    """Randomness of one part of one patient: 1 latents, 2 facts, 3 labs, 4 notes, 5 chest, 6 on: images."""
    return np.random.default_rng([seed, patient, part])


def _subject_id(patient: int) -> str:
    return f"P{patient:05d}"


def draw_truth(patients: int = 2000, *, seed: int = 0) -> Truth:
    """Draw latents, risks and outcomes without writing a hospital: patient k is the same for any number.

    Args:
        patients: how many, at least 1.
        seed: 0 or more.

    Raises:
        InputError: `patients` or `seed` out of range.

    Example:
        >>> truth = draw_truth(5000, seed=1)
        >>> truth.expected_auroc() > truth.expected_auroc("reachable_labs") + 0.1
        True
    """
    if patients < 1 or seed < 0:
        raise InputError(f"Expected patients >= 1 and seed >= 0; got patients={patients}, seed={seed}.")
    generators = [patient_generator(seed, patient, 1) for patient in range(1, patients + 1)]
    uniform = np.array([generator.random(10) for generator in generators])
    renal = np.clip([generator.standard_normal() for generator in generators], -4, 4)

    signs = np.where(uniform[:, :3] < 0.5, -1.0, 1.0)
    age = np.floor(AGE_YEARS[0] + uniform[:, 3] * (AGE_YEARS[1] - AGE_YEARS[0] + 1)).astype(int)
    age_score = (age - AGE_CENTRE) / AGE_SPREAD
    latents = np.column_stack([signs[:, 0], signs[:, 1], renal, signs[:, 2], age_score])
    present = uniform[:, 4:8] >= MISSING_RATE
    recorded = present[:, 3] & (uniform[:, 8] >= AGE_UNRECORDED_RATE)

    shares = _shares(latents)
    logit = INTERCEPT + sum(shares.values())
    risk = _sigmoid(logit)
    observed = dict(zip(MODALITIES, present.T, strict=True)) | {"static": recorded}
    reachable = _reachable(latents, observed)
    table = pd.DataFrame(
        {"subject_id": [_subject_id(patient) for patient in range(1, patients + 1)]}
        | {name: latents[:, place] for place, name in enumerate(LATENTS)}
        | {"age": age}
        | {f"has_{name}": column for name, column in zip(MODALITIES, present.T, strict=True)}
        | {"age_recorded": recorded}
        | {f"share_{name}": share for name, share in shares.items()}
        | {"logit": logit, "risk": risk, "died": (uniform[:, 9] < risk).astype(int)}
        | {f"reachable_{name}": column for name, column in reachable.items()}
    )
    return Truth(table)


def _reachable(latents: np.ndarray, observed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What can be known from all observed modalities, from each alone, and from their sum."""
    known = np.column_stack([observed[modality] for modality in LATENTS.values()])
    owners = np.array(list(LATENTS.values()))
    alone = {name: expected_risk(latents, known & (owners == name)) for name in MODALITIES}
    prior = _log_odds(expected_risk(latents[:1], np.zeros((1, len(LATENTS)), dtype=bool)))
    additive = prior + sum(_log_odds(risk) - prior for risk in alone.values())
    return {"risk": expected_risk(latents, known)} | alone | {"additive": _sigmoid(additive)}
