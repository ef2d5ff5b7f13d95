"""Several models of the same outcomes that predict together, in one folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from ..datasets.arguments import as_path
from ..datasets.errors import InputError
from .artifact import MANIFEST, new_folder, read_folder
from .boosted_trees import KIND, BoostedTrees
from .model import FusionModel
from .thresholds import told_thresholds

_NUMBERS = ("risk", "baseline", "contribution")


class Ensemble:
    """Models whose risks are averaged; `predict`, `contributions` and `evaluate` take it as they take a model.

    What members learned by chance differs and cancels; what the data say stays.

    Args:
        members: trained models of the same outcomes, at least one, and behind them boosted trees, if there are any.

    Raises:
        InputError: there is none, one is not trained, or their outcomes or spans of time differ.

    Source: Lakshminarayanan et al., Simple and Scalable Predictive Uncertainty Estimation using Deep
    Ensembles, NeurIPS 2017, section 2.4: members differ in their seed alone, and probabilities are
    averaged. We differ: there are no adversarial samples, and members may be boosted trees, or of other patients each.
    """

    def __init__(self, members: Sequence[FusionModel | BoostedTrees]) -> None:
        self.members = tuple(members) if isinstance(members, Iterable) else (members,)
        for number, member in enumerate(self.members, 1):
            if not isinstance(member, (FusionModel, BoostedTrees)):
                raise InputError(f"Member {number} is a {type(member).__name__}; expected a trained FusionModel.")
        if not self.members:
            raise InputError("The ensemble has no member. Give at least one trained model.")
        if not isinstance(self.members[0], FusionModel):
            raise InputError("The ensemble begins with boosted trees. Give at least one FusionModel, in front of them.")
        for number, member in enumerate(self.members, 1):
            if not member.is_built:
                raise InputError(f"Member {number} is not trained. Train it with fit, or let fit_ensemble do it.")
            self._refuse_another_task(number, member)
        self.thresholds_: dict[str, float] = {}
        """By binary outcome: the risk from which a patient counts as positive, chosen on validation patients."""

    def _refuse_another_task(self, number: int, member: FusionModel | BoostedTrees) -> None:
        first = self.members[0]
        if _kinds(member) != _kinds(first):
            raise InputError(
                f"Member {number} predicts {_told(member)}, and member 1 {_told(first)}. "
                "Give members that predict the same outcomes, of the same kinds and classes."
            )
        if member.history_ != first.history_:
            raise InputError(
                f"Member {number} looks {member.history_} hours back, and member 1 {first.history_} (None for all). "
                "Give members that were trained on the same span of time."
            )

    @property
    def outcomes(self) -> dict[str, str]:
        """Kind of each outcome."""
        return self.members[0].outcomes

    @property
    def history_(self) -> float | None:
        """How many hours back the inputs went that the members were built on; None for all."""
        return self.members[0].history_

    def mean(self, tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
        """The members' tables of risks as one: numbers averaged, and refused where one refused.

        Args:
            tables: what `predict` or `contributions` gave for each member, of the same samples.
        """
        joint = tables[0].copy()
        for name in set(_NUMBERS) & set(joint.columns):
            joint[name] = sum(table[name].to_numpy() for table in tables) / len(tables)
        for table in tables:
            joint["status"] = joint["status"].where(joint["status"] != "ok", table["status"])
        joint.attrs["thresholds"] = told_thresholds(self.thresholds_)
        return joint

    def save(self, folder: str | Path) -> None:
        """Write all members' weights (safetensors), their description (JSON) and a manifest, whole or not at all.

        Raises:
            InputError: the folder holds something else.
        """
        described = {"members": [member.describe() for member in self.members], "thresholds": self.thresholds_}
        with new_folder(as_path("folder", folder), "ensemble") as scratch:
            for number, member in enumerate(self.members):
                member.save_weights(scratch / _weights_of(number))
            (scratch / "ensemble.json").write_text(json.dumps(described))

    @classmethod
    def load(cls, folder: str | Path) -> Ensemble:
        """Read what `save` wrote; no code in the folder is ever run.

        Raises:
            InputError: the folder is missing, damaged, or of another schema.
        """
        return read_folder(as_path("folder", folder), "ensemble", cls._loaded)

    @classmethod
    def _loaded(cls, folder: Path) -> Ensemble:
        try:
            told = json.loads((folder / "ensemble.json").read_text())
            kinds = [BoostedTrees if own.get("kind") == KIND else FusionModel for own in told["members"]]
            thresholds = {name: float(value) for name, value in told["thresholds"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{folder} is whole, but does not describe an ensemble. Train it again.") from error
        described = enumerate(zip(kinds, told["members"], strict=True))
        ensemble = cls([kind.described(own, folder / _weights_of(place)) for place, (kind, own) in described])
        ensemble.thresholds_ = thresholds
        return ensemble


def load_trained(folder: str | Path) -> FusionModel | Ensemble:
    """A model or an ensemble, whichever was saved there; on a GPU, where there is one.

    Raises:
        InputError: the folder is missing, damaged, or of another schema.
    """
    folder = as_path("folder", folder)
    try:
        is_ensemble = json.loads((folder / MANIFEST).read_text())["kind"] == "ensemble"
    except (OSError, ValueError, KeyError, TypeError):
        # What is wrong with the folder is told by what reads it.
        is_ensemble = False
    trained = Ensemble.load(folder) if is_ensemble else FusionModel.load(folder)
    if torch.cuda.is_available():
        for member in trained.members if is_ensemble else (trained,):
            if isinstance(member, nn.Module):
                member.to("cuda")
    return trained


def _weights_of(number: int) -> str:
    return f"weights-{number}.safetensors"


def _kinds(member: FusionModel | BoostedTrees) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(name, str(kind), tuple(kind.classes)) for name, kind in member.outcomes.items()]


def _told(member: FusionModel | BoostedTrees) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in member.outcomes.items())
