"""The state of a training run, and how it is kept between epochs: safetensors and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..datasets.errors import InputError
from .artifact import checked_folder, new_folder, restore_retired


@dataclass
class History:
    """What happened in training."""

    epochs: list[dict[str, float]] = field(default_factory=list)
    """A dictionary an epoch: `epoch`, `train_loss`, `valid_loss`, `learning_rate`, `seconds`."""
    best_epoch: int = 0
    remarks: tuple[str, ...] = ()
    """What the readers left out of the training and validation patients."""
    tuning: tuple[str, ...] = ()
    """How each network that may be pretrained was tuned, and how many of its weights learned."""


@dataclass
class TrainingState:
    """Everything that changes while a model is trained."""

    model: nn.Module
    averaged: nn.Module
    """Moving average of the model's weights: what is validated and kept."""
    rule: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    best: dict[str, Tensor]
    best_loss: float = math.inf
    history: History = field(default_factory=History)
    fixed: frozenset[str] = frozenset()
    """Names of the weights that never learn. They are as they were when training began, and in no checkpoint."""

    def tensors(self) -> dict[str, Tensor]:
        """All weights and moments, by a name that tells what they are."""
        named = {
            "weights": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "best": self.best,
            **{f"moments.{index}": own for index, own in self.rule.state_dict()["state"].items()},
        }
        return {
            f"{group}/{name}": torch.as_tensor(value).detach().cpu().clone().contiguous()
            for group, own in named.items()
            for name, value in own.items()
            if value is not None and name.removeprefix("module.") not in self.fixed
        }

    def take(self, tensors: Mapping[str, Tensor], run: Mapping[str, object]) -> None:
        """Become the state that was written."""
        groups: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            group, _, own = name.partition("/")
            groups.setdefault(group, {})[own] = value
        fixed = {name: value for name, value in self.model.state_dict().items() if name in self.fixed}
        self.model.load_state_dict(groups["weights"] | fixed)
        self.averaged.load_state_dict(groups["averaged"] | {f"module.{name}": own for name, own in fixed.items()})
        self.best = groups["best"] | fixed
        moments = {int(name.partition(".")[2]): own for name, own in groups.items() if name.startswith("moments.")}
        self.rule.load_state_dict({"state": moments, "param_groups": run["groups"]})
        self.schedule.load_state_dict(run["schedule"])
        # JSON has no infinity: without validation there is no best loss.
        self.best_loss = math.inf if run["best_loss"] is None else run["best_loss"]
        self.history.epochs, self.history.best_epoch = run["history"], run["best_epoch"]


def write_checkpoint(store: Path, fingerprint: str, state: TrainingState) -> None:
    """Write the state of a run into `store/checkpoint`, whole or not at all."""
    groups = [
        {key: value for key, value in group.items() if _is_plain(value)}
        for group in state.rule.state_dict()["param_groups"]
    ]
    run = {
        "fingerprint": fingerprint,
        "best_loss": state.best_loss if math.isfinite(state.best_loss) else None,
        "best_epoch": state.history.best_epoch,
        "history": state.history.epochs,
        "groups": groups,
        "schedule": {key: value for key, value in state.schedule.state_dict().items() if _is_plain(value)},
    }
    with new_folder(store / "checkpoint", "checkpoint") as scratch:
        save_file(state.tensors(), scratch / "state.safetensors")
        (scratch / "run.json").write_text(json.dumps(run))


def resume(store: Path, fingerprint: str, state: TrainingState) -> None:
    """Bring a fresh state to where a stopped run was, if there is one in `store`.

    Raises:
        InputError: the checkpoint is damaged, belongs to other data or settings, or was written by another version.
    """
    folder = store / "checkpoint"
    restore_retired(folder)
    if not folder.exists():
        return
    # What has no manifest is refused here, not after an epoch that took the place of the best model.
    checked_folder(folder, "checkpoint")
    run = json.loads((folder / "run.json").read_text())
    if run.get("fingerprint") != fingerprint:
        raise InputError(
            f"{store} holds a run with other data or other settings. Give another folder, or remove this one."
        )
    try:
        state.take(load_file(folder / "state.safetensors"), run)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{folder} is whole, but this version of chiasm cannot go on from it. Go on with the version that "
            "wrote it, or give another folder."
        ) from error


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, list, tuple))
