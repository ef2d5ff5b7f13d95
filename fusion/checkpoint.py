"""The state of a training run, and how it is kept and found again: safetensors and JSON."""

from __future__ import annotations

import json
import math
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..datasets.errors import InputError
from .artifact import DamagedError, checked_folder, clear_abandoned, new_folder, restore_retired, write_whole
from .processes import is_divided
from .settings import KeepingSettings
from .sharding import OwnParts, divided_like, own_part
from .stopping import locked
from .stored_state import WHOLE, StoredTensors, gather_parts, write_parts, write_tensors

if TYPE_CHECKING:
    from accelerate import Accelerator

    from .model import FusionModel

CHECKPOINTS = "checkpoints"
"""The folder of a run that they stand in."""
_NAME = re.compile(r"\d{5,}-\d{7,}")
"""Of a checkpoint: epochs done, and updates in the next one."""
HISTORY = "history.jsonl"
"""The file of a run with its epochs, a line each."""


@dataclass
class History:
    """What happened in training."""

    epochs: list[dict[str, float]] = field(default_factory=list)
    """A dictionary an epoch: `epoch`, `train_loss`, `valid_loss`, `learning_rate`, `seconds`."""
    best_epoch: int = 0
    skipped: list[dict[str, object]] = field(default_factory=list)
    """A dictionary a batch that was left out, since its loss or gradient was not finite: `epoch`, `step`, `salt`
    and `samples`, the hashes that `sample_hashes` gives with that salt."""
    salt: str = ""
    """With which samples were hashed."""
    remarks: tuple[str, ...] = ()
    """What the readers left out of the training and validation patients, and outcomes that no teacher tells."""
    tuning: tuple[str, ...] = ()
    """How each network that may be pretrained was tuned, how many of its weights learned, and what of it was kept or
    computed again."""
    warnings: tuple[str, ...] = ()
    """What came of going on with a run that was stopped, if not all was as before."""


@dataclass
class TrainingState:
    """Everything that changes while a model is trained."""

    model: nn.Module
    averaged: nn.Module
    """Moving average of the model's weights: what is validated and kept."""
    rule: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    scaler: torch.amp.GradScaler
    """Of gradients, in fp16; otherwise it does nothing."""
    best: dict[str, Tensor]
    best_loss: float = math.inf
    thresholds: dict[str, float] | None = None
    """Of the best weights, by binary outcome; None until they are chosen."""
    step: int = 0
    """Updates done in the present epoch."""
    sums: tuple[float, float] = (0.0, 0.0)
    """Of the losses in the present epoch, and of the known labels that these are over."""
    history: History = field(default_factory=History)
    fixed: frozenset[str] = frozenset()
    """Names of the weights that never learn. They are as they were when training began, and in no checkpoint."""
    whole: FusionModel | None = None
    """Where weights are divided among the processes: a model that is not, to be validated and saved."""

    is_compiled: bool = False
    """Whether networks are compiled, of which dropout draws other numbers."""
    parts: OwnParts | None = None
    """What the rule moves, where weights are divided."""

    @property
    def is_divided(self) -> bool:
        """Whether weights are divided among the processes."""
        return self.whole is not None

    def tensors(self, *, divided: bool = False) -> dict[str, Tensor]:
        """All weights and moments, by a name that tells what they are; of those that are divided, the own part.

        Args:
            divided: only of those.
        """
        named = {
            "weights": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "best": self.best,
            **{f"moments.{index}": own for index, own in self.rule.state_dict()["state"].items()},
        }
        told = {
            f"{group}/{name}": torch.as_tensor(value)
            for group, own in named.items()
            for name, value in own.items()
            if value is not None and name.removeprefix("module.") not in self.fixed
        }
        # Of moments the number of updates alone is none a weight.
        return {
            name: own_part(value)
            for name, value in told.items()
            if not divided or is_divided(value) or (name.startswith("moments.") and value.ndim)
        }

    def numbers(self) -> dict[str, object]:
        """Everything but the tensors, as plain JSON values."""
        groups = [
            {key: value for key, value in group.items() if _is_plain(value)}
            for group in self.rule.state_dict()["param_groups"]
        ]
        return {
            "step": self.step,
            "sums": self.sums,
            "best_loss": self.best_loss if math.isfinite(self.best_loss) else None,
            "best_epoch": self.history.best_epoch,
            "thresholds": self.thresholds,
            "history": [_without_nan(record) for record in self.history.epochs],
            "skipped": self.history.skipped,
            "groups": groups,
            "schedule": {key: value for key, value in self.schedule.state_dict().items() if _is_plain(value)},
            "scaler": self.scaler.state_dict(),
        }

    def take(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, object]) -> None:
        """Become the state that was written, of which all tensors are whole."""
        groups: dict[str, dict[str, Tensor]] = {}
        weights = self.model.state_dict()
        learning = [weight for group in self.rule.param_groups for weight in group["params"]]
        for name, value in tensors.items():
            group, _, own = name.partition("/")
            if self.parts and group.startswith("moments."):
                value = own_part(divided_like(value, self.parts.divided(learning[int(group[8:])])))
            else:
                value = divided_like(value, weights.get(own.removeprefix("module."), value))
            groups.setdefault(group, {})[own] = value
        fixed = {name: value for name, value in weights.items() if name in self.fixed}
        self.model.load_state_dict(groups["weights"] | fixed)
        self.averaged.load_state_dict(groups["averaged"] | {f"module.{name}": own for name, own in fixed.items()})
        self.best = groups["best"] | fixed
        moments = {int(name.partition(".")[2]): own for name, own in groups.items() if name.startswith("moments.")}
        self.rule.load_state_dict({"state": moments, "param_groups": numbers["groups"]})
        self.schedule.load_state_dict(numbers["schedule"])
        self.scaler.load_state_dict(numbers["scaler"])
        self.step, self.sums = int(numbers["step"]), tuple(numbers["sums"])
        # JSON has no infinity: without validation there is no best loss.
        self.best_loss = math.inf if numbers["best_loss"] is None else numbers["best_loss"]
        self.history.epochs = [_with_nan(record) for record in numbers["history"]]
        self.history.best_epoch = numbers["best_epoch"]
        self.history.skipped = numbers["skipped"]
        # Checkpoints from before thresholds were kept have none.
        self.thresholds = numbers.get("thresholds")


class Keeper:
    """Where a run is kept, how often, and whether it was there before.

    Args:
        store: the run's folder; None keeps nothing.
        fingerprint: of the run's data and settings.
        settings: how often, and how many.
        accelerator: of the processes that train together; the main one writes.
    """

    def __init__(
        self, store: Path | None, fingerprint: str, settings: KeepingSettings, accelerator: Accelerator
    ) -> None:
        self.store, self.fingerprint, self.settings, self.accelerator = store, fingerprint, settings, accelerator
        self._saved = time.monotonic()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other runs out of the folder.

        Raises:
            InputError: another run writes into it, or it cannot be made.
        """
        if self.store is None or not self.accelerator.is_main_process:
            yield
            return
        with locked(self.store):
            _clear_scratch(self.store)
            yield

    def resume(self, state: TrainingState) -> None:
        """As `resume` does, if there is a folder."""
        if self.store:
            resume(self.store, self.fingerprint, state, processes=self.accelerator.num_processes)

    def is_due(self) -> bool:
        """Whether the last checkpoint is so long ago that there should be one."""
        return self.store is not None and time.monotonic() - self._saved >= 60 * self.settings.save_every

    def save(self, state: TrainingState) -> None:
        """Write a checkpoint, from the main process; where weights are divided, each process writes its part."""
        if self.store and (self.accelerator.is_main_process or state.is_divided):
            write_checkpoint(self.store, self.fingerprint, state, self.accelerator, keep=self.settings.checkpoints)
        self._saved = time.monotonic()


def write_checkpoint(
    store: Path, fingerprint: str, state: TrainingState, accelerator: Accelerator, *, keep: int
) -> None:
    """Write the state of a run into `store/checkpoints`, whole or not at all; then delete those that are too old.

    Args:
        store: the run's folder.
        fingerprint: of the run's data and settings.
        state: what to write.
        accelerator: of the processes; the main one calls this, or, where weights are divided, all do.
        keep: how many of the newest checkpoints are kept.

    Raises:
        InputError: the folder cannot be written, or the disk is full; checkpoints from before are as they were.
    """
    # Epochs done, then updates in the next one: as text they sort as they came.
    folder = store / CHECKPOINTS / f"{len(state.history.epochs):05d}-{state.step:07d}"
    parts = []
    if state.is_divided:
        # What all have whole, the first one writes.
        parts = write_parts(folder, state.tensors(divided=not accelerator.is_main_process), accelerator)
    if not accelerator.is_main_process:
        return
    if folder.exists():
        # Had it been whole, the run would have gone on from it, and not come by again.
        _remove(folder)
    manner = {"processes": accelerator.num_processes, "sharded": state.is_divided, "compiled": state.is_compiled}
    numbers = {"fingerprint": fingerprint, **manner, **state.numbers()}
    with new_folder(folder, "checkpoint") as scratch:
        if parts:
            gather_parts(parts, scratch)
        else:
            write_tensors(state.tensors(), scratch / WHOLE)
        (scratch / "run.json").write_text(json.dumps(numbers))
    older = [other for other in _checkpoints(store) if other.name < folder.name]
    newer = [other for other in _checkpoints(store) if other.name > folder.name]
    # Those that seem newer were damaged: the run went on from an older one.
    for other in (*older[: max(0, len(older) - keep + 1)], *newer):
        _remove(other)


def _remove(checkpoint: Path) -> None:
    try:
        shutil.rmtree(checkpoint)
    except OSError as error:
        raise InputError(
            f"{checkpoint} cannot be removed ({type(error).__name__}). Remove it, and run the same command again."
        ) from error


def resume(store: Path, fingerprint: str, state: TrainingState, *, processes: int) -> None:
    """Bring a fresh state to where a stopped run was, by the newest whole checkpoint in `store`, if there are any.

    Raises:
        InputError: all are damaged or cannot be read, or the newest whole one belongs to other data or settings, or
            was written by another version.
    """
    passed: list[str] = []
    error: DamagedError | OSError | None = None
    for folder in reversed(_checkpoints(store)):
        try:
            checked_folder(folder, "checkpoint")
            _take(folder, fingerprint, state, processes)
        except (DamagedError, OSError) as found:
            why = "is damaged" if isinstance(found, DamagedError) else f"cannot be read ({type(found).__name__})"
            passed.append(f"the checkpoint {folder.name} {why}")
            error = error or found
            continue
        if passed:
            state.history.warnings += (f"{passed[0]}, and the run goes on from {folder.name} before it",)
        return
    if isinstance(error, OSError):
        raise InputError(
            f"In {store} {passed[0]}, and no other can be gone on from. Give the right to read it, or mend the disk."
        ) from error
    if error:
        raise error


def _take(folder: Path, fingerprint: str, state: TrainingState, processes: int) -> None:
    run = json.loads((folder / "run.json").read_text())
    if run.get("fingerprint") != fingerprint:
        raise InputError(
            f"{folder.parent.parent} holds a run with other data or other settings. "
            "Give another folder, or remove this one."
        )
    try:
        before = int(run["processes"])
        state.take(StoredTensors(folder, before), run)
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{folder} is whole, but this version of chiasm cannot go on from it. Go on with the version that "
            "wrote it, or give another folder."
        ) from error
    was = _manner(before, run.get("sharded", False), run.get("compiled", False))
    now = _manner(processes, state.is_divided, state.is_compiled)
    if was != now:
        state.history.warnings += (
            f"going on with {now} where {was} stopped: the same training, but not to the last bit",
        )


def _manner(processes: int, is_divided: bool, is_compiled: bool) -> str:
    """How many train together, and how, in words."""
    told = f"{processes} process{'es' * (processes > 1)}" + " with divided weights" * is_divided
    return told + " with compiled networks" * is_compiled


def write_history(store: Path, epochs: Sequence[Mapping[str, float]]) -> None:
    """Write the epochs of a run, a line each; null is a number that is not finite, which JSON does not know."""
    write_whole(store / HISTORY, "".join(json.dumps(_without_nan(record)) + "\n" for record in epochs))


def read_history(store: Path) -> list[dict[str, float]]:
    """The epochs of a run, as `write_history` wrote them; none where there is no file.

    Raises:
        InputError: the file is damaged.
    """
    path = store / HISTORY
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return [_with_nan(json.loads(line)) for line in lines]
    except (AttributeError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged. Remove it: the report then has no curve of the training.") from error


def _without_nan(record: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in record.items()}


def _with_nan(record: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in record.items()}


def _clear_scratch(store: Path) -> None:
    """Remove what kills have left half-written in a run's folder; only while no other process can write there."""
    restore_retired(store / "model")
    clear_abandoned(store / "model", age=0)
    for scratch in (store / CHECKPOINTS).glob(".*-*"):
        shutil.rmtree(scratch, ignore_errors=True)
    for name in ("run.json", HISTORY, "skipped.jsonl"):
        for scratch in store.glob(f".{'[0-9a-f]' * 8}-{name}"):
            scratch.unlink()


def _checkpoints(store: Path) -> list[Path]:
    """Folders of checkpoints, damaged ones too, the oldest first."""
    folder = store / CHECKPOINTS
    # Not by glob, to which a folder that may not be read is empty.
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name)) if folder.exists() else []


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, list, tuple))
