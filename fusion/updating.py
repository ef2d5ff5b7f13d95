"""One update of all weights, by all processes together; or none, where a number in it is not finite."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import nn

from ..datasets.errors import InputError
from ..encoders.recomputing import statistics_stay
from .artifact import write_whole
from .checkpoint import Keeper, TrainingState
from .frozen_tokens import Samples
from .inference import to_device
from .numerics import autocast
from .prefetching import pinned
from .settings import MachineSettings, TrainingSettings
from .stopping import StopRequest
from .training_samples import batch_of, hashed_samples, parts_of

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..datasets.batch import Batch


@dataclass(frozen=True)
class Loop:
    """What training goes round with."""

    state: TrainingState
    network: nn.Module
    """The model as the processes share it."""
    samples: Samples
    held_out: Samples | None
    settings: TrainingSettings
    machine: MachineSettings
    keeper: Keeper
    accelerator: Accelerator
    stop: StopRequest


class Updated(NamedTuple):
    """What came of an update. A batch that is left out counts as nothing."""

    loss: float
    """Sum over the known labels."""
    labels: int
    stop: bool
    """Whether a process was asked to stop."""
    due: bool
    """Whether there should be a checkpoint."""


def batches_of(loop: Loop, positions: list[int]) -> list[Batch]:
    """This process's share of a batch, in the parts that are computed with one after the other."""
    processes, process = loop.accelerator.num_processes, loop.accelerator.process_index
    parts = parts_of(positions, processes, loop.settings.accumulate)
    made = (batch_of(loop.samples, shares, process, sharded=loop.state.is_divided) for shares in parts)
    return [pinned(batch, loop.accelerator.device) for batch in made]


def update(loop: Loop, epoch: int, step: int, positions: list[int], batches: list[Batch]) -> Updated:
    """One step of the optimizer, by all processes together.

    Args:
        loop: what training goes round with.
        epoch, step: from 0.
        positions: of the samples of all processes.
        batches: those of this process, as `batches_of` makes them.
    """
    state, settings, accelerator = loop.state, loop.settings, loop.accelerator
    statistics = _statistics(state.model)
    labels = int(loop.samples.known[positions].sum())
    total = _backward(loop, epoch, step, batches, labels, settings.precision)
    if state.parts:
        state.parts.take_gradients(accelerator, spread=state.scaler.is_enabled())
    state.scaler.unscale_(state.rule)
    length = _clip(loop)

    # All processes see the same: a gradient that is not finite in one of them is so in all, after DDP. Whether a
    # checkpoint is due, of which each may have to write its part, the first one says.
    due = accelerator.is_main_process and loop.keeper.is_due()
    own = torch.stack([total, total.new_tensor(float(loop.stop.number > 0)), total.new_tensor(float(due))])
    loss, stop, due = accelerator.reduce(own, "sum").tolist()
    counted = True
    if math.isfinite(loss) and math.isfinite(length):
        state.scaler.step(state.rule)
        state.schedule.step()
        state.averaged.update()
        state.scaler.update()
    elif math.isfinite(loss) and _overflows(loop, epoch, step, batches, labels):
        # Not the batch's fault: it trains nothing this time, and what follows is scaled by half as much.
        _restore(statistics)
        state.scaler.update()
    else:
        counted = False
        _restore(statistics)
        _leave_out(loop, epoch, step, positions)
        # Whatever the scale, it would not be finite.
        state.scaler.update(state.scaler.get_scale())
    state.rule.zero_grad()
    loss, labels = (loss, labels) if counted else (0.0, 0)
    return Updated(loss, labels, stop > 0, due > 0)


def _clip(loop: Loop) -> float:
    """Shorten gradients to the norm that was asked for; the norm that they had, in all processes the same."""
    state, most = loop.state, loop.settings.clip
    if state.parts:
        return state.parts.clip(loop.accelerator, most)
    # Those that ever learn, which the rule knows: to look through a frozen network for more takes longer than the rest.
    learning = [weight for group in state.rule.param_groups for weight in group["params"]]
    return loop.accelerator.clip_grad_norm_(learning, most).item()


def _backward(loop: Loop, epoch: int, step: int, batches: list[Batch], labels: int, precision: str) -> torch.Tensor:
    """Gradients of the mean loss over a batch; the sum of this process's losses."""
    state, settings, accelerator = loop.state, loop.settings, loop.accelerator
    # Every random draw of a step is keyed, so that a resumed run repeats it.
    torch.manual_seed(_key(settings.seed, epoch, step, accelerator.process_index))
    # The mean over the labels of all processes: DDP and FSDP average gradients, so we undo their division.
    weight = accelerator.num_processes / max(labels, 1)
    total = torch.zeros((), device=accelerator.device)
    for number, made in enumerate(batches):
        batch = to_device(made, accelerator.device)
        is_last = number == len(batches) - 1
        with nullcontext() if is_last else accelerator.no_sync(loop.network):
            with autocast(accelerator.device, precision):
                risk = loop.network(batch)
            own, _ = state.model.loss(risk, batch)
            scaled = state.scaler.scale(own * weight) if precision == settings.precision else own * weight
            with statistics_stay(state.model) if loop.machine.recompute else nullcontext():
                scaled.backward()
        total += own.detach()
    return total


def _overflows(loop: Loop, epoch: int, step: int, batches: list[Batch], labels: int) -> bool:
    """Whether gradients that are not finite in fp16 are so in fp32, by computing them once more.

    Raises:
        InputError: they are finite in fp32, and the scale cannot become less.
    """
    state, settings = loop.state, loop.settings
    if settings.precision != "fp16":
        return False
    state.rule.zero_grad()
    _backward(loop, epoch, step, batches, labels, "fp32")
    if state.parts:
        state.parts.take_gradients(loop.accelerator, spread=False)
    norm = _clip(loop)
    if math.isfinite(norm) and state.scaler.get_scale() <= 1:
        raise InputError(
            f"The gradients in epoch {epoch + 1}, step {step + 1} are too large for fp16, whatever they are scaled by. "
            f'Give precision="bf16" or "fp32", or lower the learning rate (it is {settings.learning_rate:g}).'
        )
    return math.isfinite(norm)


def _statistics(model: nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The statistics of layers that a batch may move, each with a copy; those of what does not learn stay."""
    moving = (module for module in model.modules() if module.training)
    return [(buffer, buffer.clone()) for module in moving for buffer in module.buffers(recurse=False)]


def _restore(statistics: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Undo what a batch did to the statistics of the layers."""
    with torch.no_grad():
        for buffer, before in statistics:
            buffer.copy_(before)


def _leave_out(loop: Loop, epoch: int, step: int, positions: list[int]) -> None:
    """Note a batch whose loss or gradient is not finite.

    Raises:
        InputError: there were too many.
    """
    history, store, most = loop.state.history, loop.keeper.store, loop.keeper.settings.skip
    samples = hashed_samples(loop.samples.keys.iloc[positions], history.salt)
    history.skipped.append({"epoch": epoch + 1, "step": step + 1, "salt": history.salt, "samples": samples})
    if store and loop.accelerator.is_main_process:
        write_whole(store / "skipped.jsonl", "".join(json.dumps(batch) + "\n" for batch in history.skipped))
    if len(history.skipped) > most:
        before = f" {most} batches were left out for that before." if most else ""
        narrow = ', or give precision="bf16" or "fp32"' if loop.settings.precision == "fp16" else ""
        raise InputError(
            f"The loss is not finite in epoch {epoch + 1}, step {step + 1}.{before} "
            f"Lower the learning rate (it is {loop.state.schedule.get_last_lr()[0]:g}){narrow}."
        )


def _key(*numbers: int) -> int:
    """One seed from several numbers, without collisions that addition would have."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
