"""What follows an epoch: its weights are validated, kept if they are the best so far, and written."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file

from ..datasets.errors import InputError
from ..datasets.prepared import BucketedBatches
from .artifact import checked_folder
from .checkpoint import HISTORY, TrainingState, write_history
from .frozen_tokens import Samples
from .inference import choose_thresholds, to_device
from .learning import copied_weights
from .model import FusionModel
from .processes import from_main_process
from .sharding import put_together

if TYPE_CHECKING:
    from accelerate import Accelerator


@torch.inference_mode()
def validation_loss(model: FusionModel, samples: Samples, batch_size: int, accelerator: Accelerator) -> float:
    """Mean loss over the known labels; each process computes its share."""
    model.eval()
    sums = torch.zeros(2, device=accelerator.device)
    batches = list(BucketedBatches(samples.sizes, batch_size, shuffle=False))
    for positions in batches[accelerator.process_index :: accelerator.num_processes]:
        batch = to_device(samples[positions], accelerator.device)
        loss, labels = model.loss(model(batch), batch)
        sums += torch.stack([loss, labels.float()])
    total, count = accelerator.reduce(sums, "sum").tolist()
    return total / max(count, 1)


def end_epoch(state: TrainingState, record: dict[str, float], *, always: bool) -> bool:
    """Note an epoch, and keep its weights if they are the best so far; always, or without validation, the last are."""
    state.history.epochs.append(record)
    state.step, state.sums = 0, (0.0, 0.0)
    watched = record.get("valid_loss")
    better = always or watched is None or watched < state.best_loss
    if better:
        state.best = copied_weights(state.averaged.module, state.fixed)
        state.history.best_epoch, state.thresholds = int(record["epoch"]), None
        state.best_loss = math.inf if watched is None else watched
    return better


def write_run(
    store: Path, averaged: FusionModel, state: TrainingState, held_out: Samples | None, *, better: bool
) -> None:
    """Write the history so far, and after a better epoch the model that it ended with."""
    write_history(store, state.history.epochs)
    if better:
        _choose_thresholds(averaged, state, held_out)
        averaged.save(store / "model")


def write_what_is_missing(
    store: Path, state: TrainingState, held_out: Samples | None, accelerator: Accelerator
) -> None:
    """Write again what was moved away from a run, or damaged; all processes call this together."""
    if accelerator.is_main_process and not (store / HISTORY).exists():
        write_history(store, state.history.epochs)
    if from_main_process(accelerator, lambda: float(_holds_best(store / "model", state))):
        return
    best = state.whole or state.averaged.module
    take_best(best, state, held_out)
    if accelerator.is_main_process:
        best.save(store / "model")


def _holds_best(folder: Path, state: TrainingState) -> bool:
    """Whether a folder holds the best model of this run, and not that of another one; of divided weights, any."""
    try:
        kept = load_file(checked_folder(folder, "model") / "weights.safetensors")
    except (InputError, OSError):
        return False
    return state.is_divided or (
        kept.keys() == state.best.keys()
        and all(torch.equal(value.cpu(), kept[name]) for name, value in state.best.items())
    )


def take_best(model: FusionModel, state: TrainingState, held_out: Samples | None) -> None:
    """Give a model the best weights so far, and the thresholds that are chosen with them once.

    Where weights are divided, all processes call this together.
    """
    put_together(state.best, model)
    _choose_thresholds(model, state, held_out)


def _choose_thresholds(model: FusionModel, state: TrainingState, held_out: Samples | None) -> None:
    model.eval()
    if state.thresholds is None:
        state.thresholds = choose_thresholds(model, held_out) if held_out else {}
    model.thresholds_ = state.thresholds
