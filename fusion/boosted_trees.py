"""Gradient boosting as a member of an ensemble: learned by scikit-learn, kept as plain arrays.

Networks that learned the same series from the same few thousand patients are wrong about the same ones, so that
more of them soon bring nothing more. Trees are wrong about others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from safetensors.numpy import load_file, save_file

from ..datasets.cohort import Cohort
from ..datasets.errors import InputError
from ..datasets.outcomes import OutcomeKind, encode_outcomes
from ..datasets.windows import as_far_back
from .artifact import MALFORMED, undescribed
from .baselines import READ, BaselineFeatures, boosting, learnable

if TYPE_CHECKING:
    from sklearn.ensemble import HistGradientBoostingClassifier

    from .model import FusionModel

KIND = "boosted trees"
# What numpy looks up at once: 1,024 samples in 350 trees.
_SAMPLES = 1024
# Of the arrays that are not float64: others cannot be looked up by, or give other risks.
_DTYPES = {"feature": np.int32, "missing_left": np.bool_, "left": np.int32, "right": np.int32}


@dataclass(frozen=True)
class Trees:
    """Trees whose values are added up, each node a column of a row per tree; the first one is the root."""

    feature: np.ndarray
    """int32 `[tree, node]`: the feature it looks at; -1 for a leaf."""
    threshold: np.ndarray
    """float64 `[tree, node]`: up to which a value goes left."""
    missing_left: np.ndarray
    """bool `[tree, node]`: where a missing value goes."""
    left: np.ndarray
    """int32 `[tree, node]`: the node on the left, which stands behind its parent."""
    right: np.ndarray
    """int32 `[tree, node]`: the node on the right, which stands behind its parent."""
    value: np.ndarray
    """float64 `[tree, node]`: of a leaf, in log odds."""
    start: np.ndarray
    """float64 `[1]`: log odds before any tree."""

    @classmethod
    def of(cls, learned: HistGradientBoostingClassifier) -> Trees:
        """The trees of a binary classifier.

        scikit-learn has no public name for them. We read what shap, treelite and skl2onnx read, and a test holds
        the risks against its own.
        """
        trees = [own.nodes for (own,) in learned._predictors]
        most = max(map(len, trees))

        def column(name: str, kind: type, behind: object = 0) -> np.ndarray:
            rows = np.full((len(trees), most), behind, kind)
            for row, nodes in zip(rows, trees, strict=True):
                row[: len(nodes)] = nodes[name]
            return rows

        feature = np.where(column("is_leaf", bool, behind=True), -1, column("feature_idx", np.int32))
        return cls(
            feature=feature.astype(np.int32),
            threshold=column("num_threshold", np.float64),
            missing_left=column("missing_go_to_left", bool),
            left=column("left", np.int32),
            right=column("right", np.int32),
            value=column("value", np.float64),
            start=learned._baseline_prediction.astype(np.float64).ravel(),
        )

    def require_sound(self, features: int) -> None:
        """Raise `ValueError` unless every walk through a tree ends in a finite leaf."""
        shape, places = self.feature.shape, np.arange(self.feature.shape[-1])
        for field in fields(self):
            values = getattr(self, field.name)
            if values.shape != (shape if field.name != "start" else (1,)) or not values.size:
                raise ValueError(f"{field.name} has another shape, or nothing in it")
            if values.dtype != _DTYPES.get(field.name, np.float64):
                raise ValueError(f"{field.name} is {values.dtype}")
        inner = self.feature >= 0
        children = np.stack([self.left, self.right])[:, inner]
        behind = (children > np.broadcast_to(places, shape)[inner]) & (children < shape[-1])
        if len(shape) != 2 or not behind.all() or (self.feature >= features).any() or np.isnan(self.threshold).any():
            raise ValueError("these are no trees")
        # Finite leaves of several trees may still add up to infinity, or to no number.
        with np.errstate(over="ignore"):
            most = np.abs(self.value).max(1).sum() + np.abs(self.start[0])
        if not np.isfinite(most):
            raise ValueError("leaves do not add up to a finite number")

    def risks(self, table: Float[np.ndarray, "sample feature"]) -> Float[np.ndarray, " sample"]:
        """Probabilities."""
        log_odds = [self._log_odds(table[begin : begin + _SAMPLES]) for begin in range(0, len(table), _SAMPLES)]
        # The logistic function, without an overflow for the surest.
        return np.exp(-np.logaddexp(0, -np.concatenate([*log_odds, np.empty(0)])))

    def _log_odds(self, table: np.ndarray) -> np.ndarray:
        tree = np.arange(len(self.feature))
        node = np.zeros((len(table), len(tree)), np.int64)
        while True:
            feature = self.feature[tree, node]
            inner = feature >= 0
            if not inner.any():
                return self.start[0] + self.value[tree, node].sum(1)
            value = np.take_along_axis(table, np.maximum(feature, 0), 1)
            to_left = np.where(np.isnan(value), self.missing_left[tree, node], value <= self.threshold[tree, node])
            child = np.where(to_left, self.left[tree, node], self.right[tree, node])
            node = np.where(inner, child, node)


class BoostedTrees:
    """Gradient boosting on detailed summaries of labs and static facts; one set of trees an outcome.

    An `Ensemble` takes it beside networks that read the same, and `predict` and `contributions` take it as they
    take a model.

    Args:
        outcomes: kind of each outcome; all binary.
        modalities: those it reads, "labs" or "static" or both.

    Raises:
        InputError: an outcome of another kind, or other modalities.
    """

    def __init__(self, outcomes: Mapping[str, OutcomeKind], modalities: tuple[str, ...]) -> None:
        other = next((name for name, kind in outcomes.items() if kind != "binary"), None)
        if other:
            raise InputError(
                f"Boosted trees predict binary outcomes (0 and 1); {other} is {outcomes[other]}. Leave boosted= out."
            )
        unread = sorted(set(modalities) - set(READ))
        if unread or not modalities:
            raise InputError(
                f"Boosted trees read {' and '.join(READ)}, and the model also reads {', '.join(unread) or 'nothing'}: "
                "averaged with it, they would speak without having seen all. Leave boosted= out."
            )
        self.outcomes, self.modalities = dict(outcomes), tuple(modalities)
        self.history_: float | None = None
        """How many hours back the inputs went that it was trained on; None for all."""
        self.trees_: dict[str, Trees] = {}
        """By outcome."""

    @classmethod
    def beside(cls, model: FusionModel) -> BoostedTrees:
        """Not yet trained, of the outcomes and modalities of a model.

        Raises:
            InputError: the model has others than trees can serve.
        """
        return cls(model.outcomes, model.modalities)

    @property
    def is_built(self) -> bool:
        """Whether it was trained."""
        return bool(self.trees_)

    def fit(self, train: Cohort, *, seed: int = 0) -> None:
        """Learn from training patients; samples without a known label are left out of that outcome's trees.

        Raises:
            InputError: an outcome has labels of one class alone, or there is no column to learn from.
        """
        self.history_ = train.history
        seen = self._read(train)
        self.features_ = BaselineFeatures(detailed=True).fit(seen)
        table = self.features_.transform(seen).to_numpy()
        labels, known = encode_outcomes(train.outcomes, self.outcomes)
        trees = {}
        for place, name in enumerate(self.outcomes):
            own = known[:, place]
            if len(np.unique(labels[own, place])) < 2 or not table.shape[1]:
                raise InputError(
                    f"Boosted trees need training patients of both classes of {name}, and a lab code or a static fact. "
                    "Leave boosted= out, or bring more patients."
                )
            learned = boosting(int(own.sum()), seed).fit(learnable(table[own]), labels[own, place].astype(int))
            trees[name] = Trees.of(learned)
        self.trees_ = trees

    def risks(self, cohort: Cohort) -> Float[np.ndarray, "sample outcome"]:
        """Probabilities of all samples, also of those of whom nothing is known.

        Raises:
            InputError: it was not trained.
        """
        if not self.is_built:
            raise InputError("The boosted trees are not trained. Call fit first, or let fit_ensemble do it.")
        table = self.features_.transform(self._read(cohort)).to_numpy()
        return np.stack([trees.risks(table) for trees in self.trees_.values()], 1)

    def present(self, cohort: Cohort) -> dict[str, np.ndarray]:
        """By modality, bool `[sample]`: who has anything of it."""
        seen = self._read(cohort)
        facts = [] if seen.static is None else seen.static["subject_id"]
        own = {
            "labs": np.diff(seen.window("labs").offsets) > 0,
            "static": seen.outcomes["subject_id"].isin(facts).to_numpy(),
        }
        return {name: own[name] for name in self.modalities}

    def _read(self, cohort: Cohort) -> Cohort:
        """The cohort as far back as training went, without what is not read."""
        unread = {name: None for name in READ if name not in self.modalities}
        return as_far_back(cohort, self.history_).with_tables("what boosted trees read", **unread)

    def save_weights(self, path: Path) -> None:
        """Write the trees as a safetensors file."""
        arrays = {
            f"{place}.{field.name}": np.ascontiguousarray(getattr(trees, field.name))
            for place, trees in enumerate(self.trees_.values())
            for field in fields(trees)
        }
        save_file(arrays, path)

    def describe(self) -> dict[str, object]:
        """Everything but the trees, as plain JSON values."""
        return {
            "kind": KIND,
            "outcomes": {name: kind.describe() for name, kind in self.outcomes.items()},
            "modalities": list(self.modalities),
            "features": self.features_.state(),
            "history": self.history_,
        }

    @classmethod
    def described(cls, description: Mapping[str, Mapping], weights: Path) -> BoostedTrees:
        """What `describe` told of, with the trees of a safetensors file.

        Raises:
            InputError: it is no description that this version can follow, or these are no trees.
        """
        try:
            return cls._rebuilt(description, weights)
        except MALFORMED as error:
            raise undescribed(weights.parent) from error

    @classmethod
    def _rebuilt(cls, description: Mapping[str, Mapping], weights: Path) -> BoostedTrees:
        outcomes = {name: OutcomeKind(**stored) for name, stored in description["outcomes"].items()}
        member = cls(outcomes, tuple(description["modalities"]))
        member.features_ = BaselineFeatures.restored(description["features"])
        member.history_ = description["history"]
        if member.history_ is not None and not 0 < member.history_ < math.inf:
            raise ValueError("history is no number of hours")
        arrays = load_file(weights)
        for place, name in enumerate(outcomes):
            own = {field.name: arrays.pop(f"{place}.{field.name}") for field in fields(Trees)}
            member.trees_[name] = Trees(**own)
            member.trees_[name].require_sound(len(member.features_.columns))
        if arrays:
            raise ValueError(f"{len(arrays)} arrays belong to no outcome")
        return member
