"""Training, in one loop that can be read from top to bottom."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from signal import SIGTERM
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ..datasets.arguments import as_path
from ..datasets.cohort import Cohort
from ..datasets.errors import InputError
from ..datasets.prepared import BucketedBatches
from ..datasets.progress import progress_bar, showing_progress
from ..encoders.compiling import require_compiler
from .checkpoint import History, Keeper, TrainingState
from .epoch_end import end_epoch, take_best, validation_loss, write_run, write_what_is_missing
from .frozen_tokens import Samples
from .learning import (
    MovingAverage,
    copied_weights,
    fixed_weights,
    make_optimizer,
    make_schedule,
    tell_tuning,
    thaw,
    tuned_encoders,
)
from .learning import recompute as recompute_activations
from .model import FusionModel
from .numerics import prepare_to_repeat, repeatable
from .prefetching import made_ahead
from .processes import TIMEOUT, EndingTogether, from_main_process, make_accelerator
from .settings import KeepingSettings, MachineSettings, TrainingSettings
from .sharding import OwnParts, averaged_model, divide
from .stopping import Stopped, StopRequest, stopping_in_order
from .tracking import require_trackers, tracked
from .training_samples import check_cohorts, encoded_once, fingerprint_of, read_samples
from .updating import Loop, batches_of, update

if TYPE_CHECKING:
    from accelerate import Accelerator


def fit(
    model: FusionModel,
    train: Cohort,
    valid: Cohort | None = None,
    *,
    epochs: int = 20,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    optimizer: str = "adamw",
    weight_decay: float = 0.01,
    warmup: float = 0.1,
    clip: float = 1.0,
    average: float = 0.98,
    patience: int | None = 5,
    keep: str = "best",
    balanced: bool = False,
    distillation: float = 0.0,
    group_by_length: bool = True,
    precision: str = "fp32",
    accumulate: int = 1,
    deterministic: bool = False,
    seed: int = 0,
    sharded: bool = False,
    recompute: bool = False,
    compile: bool = False,
    out: str | Path | None = None,
    save_every: float = 10.0,
    checkpoints: int = 2,
    skip: int = 3,
    timeout: float = TIMEOUT,
    trackers: Sequence[str] = (),
    on_start: Callable[[History], None] | None = None,
    progress: bool = True,
) -> History:
    """Train a model; its best weights on the validation patients are what it has afterwards.

    A model that is not built yet is built first: its readers are fitted on `train` alone and its
    weights drawn from `seed`. A model that is built is trained further.

    Under a launcher of several processes each calls this with the same arguments and data; all train and
    validate, the main one writes, and all end with its weights.

    Args:
        model: what to train, in place.
        train, valid: cohorts without a common patient; without `valid` the last weights are kept
            and there is no early stopping and no threshold.
        epochs: passes over the training samples, at most.
        batch_size: samples an update, over all processes together.
        learning_rate: the highest, reached after warm-up. Pretrained networks learn at a share of it.
        optimizer: "adamw" or "sgd" (momentum 0.9).
        weight_decay: on weight matrices; biases and norms are spared.
        warmup: share of all updates over which the rate rises from 0; then it falls as a cosine.
        clip: largest norm of the gradient.
        average: decay, an update, of the moving average of the weights that is validated and kept; 0
            keeps the last weights themselves.
        patience: epochs without a better validation loss before stopping; None never stops.
        keep: "best" keeps the weights of the epoch with the best validation loss, "last" those of the last
            epoch, and nothing stops early. Of a few hundred validation patients the best epoch is known so
            badly that the last, of a well-regularised model, is as good a choice or better.
        balanced: weigh classes by the inverse of their rate. Ranks may gain; probabilities are no
            longer calibrated.
        distillation: share of each label of a binary outcome that is the risk by gradient boosting on summary
            features of labs and static facts, trained on other training patients. Worth trying where boosting is
            better than the network: on PhysioNet 2012 one that was taught so comes level with its teacher. The training
            loss then counts from those labels; validation sees none of it.
        group_by_length: put samples of like size into a batch, by which less is computed for padding. Batches are then
            less alike: those with little in them meet in some, those with much in others. Thousands of patients learn
            as well so; hundreds may learn better from batches of any size, as those of the demonstration do.
        precision: "fp32", "bf16" or "fp16" (autocast; fp16 with scaled gradients, and a batch of which these overflow
            is computed once more in fp32, in whose memory it must fit).
        accumulate: parts that a process's share of a batch is divided into, one after the other, so that it fits
            into memory. Batch norms see the parts.
        deterministic: use PyTorch's deterministic algorithms alone, also where they are slower or need more memory.
            On a CPU results repeat themselves without.
        seed: of weights, order, dropout. The same seed gives the same weights on the same machine.
        sharded: divide weights, gradients and moments among the processes (FSDP2), for note encoders that are too large
            for one GPU. It trains the same up to rounding, and but for dropout, of which each draws its own. Each
            process keeps its part; layers of a transformer are put together one by one while they are computed with,
            and all weights, without gradients and moments, to validate and save them. One process has nothing to
            divide, and says so.
        recompute: have image and note networks keep no activations but those between their blocks, and compute the
            others again for the gradient: the same numbers in less memory, for a forward pass more.
        compile: compile image and note networks (`torch.compile`). Their dropout draws other numbers. The first step
            takes minutes, and it is for GPUs, where it was not tried: on a CPU a ResNet-18 and a BERT of 4 layers ran
            at 0.82 of their rate (`bench_step.py compile`).
        out: a folder for `history.jsonl`, the best `model/` so far and `checkpoints/`; a run that was stopped or
            killed goes on from there, in the middle of an epoch too, when fit is called again in the same way. One
            run at a time.
        save_every: minutes after which a checkpoint is due within an epoch; 0 for one after every update. There is
            one after every epoch too, and when the run is asked to stop.
        checkpoints: how many of the newest are kept.
        skip: batches that may be left out in all, by all processes together, since their loss or gradient is not
            finite; one more ends the training.
        timeout: seconds that a process waits for the others before it ends with a message.
        trackers: experiment trackers by Accelerate's names, such as "tensorboard", which writes to `trackers/` in
            `out`. They are told the settings and each epoch's losses, and nothing of any patient.
        on_start: called with what happened so far once all of this was found to be in order, before the first update
            and before anything is written (main process only).
        progress: whether to show a bar (main process only).

    Raises:
        InputError: settings or cohorts that cannot be trained with, losses that are not finite, another run in the
            same folder, a disk that is full or cannot be written, or another process that failed.
        KeyboardInterrupt: Ctrl-C or SIGTERM (`Stopped`), after the present update; the model has its best weights
            so far, and in `out` is what is needed to go on.
    """
    settings = TrainingSettings(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        optimizer=optimizer,
        weight_decay=weight_decay,
        warmup=warmup,
        clip=clip,
        average=average,
        patience=patience,
        keep=keep,
        balanced=balanced,
        distillation=distillation,
        group_by_length=group_by_length,
        precision=precision,
        accumulate=accumulate,
        deterministic=deterministic,
        seed=seed,
    )
    machine = MachineSettings(sharded=sharded, recompute=recompute, compile=compile)
    keeping = KeepingSettings(save_every=save_every, checkpoints=checkpoints, skip=skip, timeout=timeout)
    store = None if out is None else as_path("out", out)
    require_trackers(trackers, with_folder=store is not None)
    check_cohorts(model, train, valid)
    prepare_to_repeat(deterministic)
    if compile:
        require_compiler()
    accelerator = make_accelerator(timeout=timeout)
    # What is done after the others were told of a failure: they do not wait for it.
    with ExitStack() as after, EndingTogether(accelerator), repeatable(deterministic), showing_progress(progress):
        samples, held_out, remarks = read_samples(model, train, valid, settings)
        steps = math.ceil(len(samples) / batch_size)
        network, state = _set_up(model, steps, settings, machine, accelerator)
        state.history.remarks = remarks
        state.history.tuning = tell_tuning(model, epochs) + recompute_activations(state.model, machine.recompute)

        # What was done before, if this run was stopped.
        fingerprint = fingerprint_of(samples, held_out, asdict(settings) | model.plan)
        state.history.salt = fingerprint[:16]
        keeper = Keeper(store, fingerprint, keeping, accelerator)
        after.push(lambda _, error, __: _leave(model, state, held_out, error, accelerator))
        with keeper.alone(), stopping_in_order() as stop:
            _go_on(keeper, fingerprint, state, accelerator)
            if on_start and accelerator.is_main_process:
                on_start(state.history)
            if len(state.history.epochs) < epochs:
                samples, held_out = encoded_once(state, (samples, train), (held_out, valid), stop)
                _stop_together(stop, accelerator)
            with tracked(accelerator, trackers, keeper.store, asdict(settings)):
                _train(Loop(state, network, samples, held_out, settings, machine, keeper, accelerator, stop))
            if store:
                write_what_is_missing(store, state, held_out, accelerator)
    return state.history


def _train(loop: Loop) -> None:
    """All epochs that are not done yet."""
    state, settings, accelerator, history = loop.state, loop.settings, loop.accelerator, loop.state.history
    steps = math.ceil(len(loop.samples) / settings.batch_size)
    done = len(history.epochs)
    with progress_bar("training", settings.epochs * steps) as advance:
        advance(done * steps + state.step)
        for epoch in range(done, settings.epochs):
            waited = epoch - history.best_epoch
            if loop.held_out and settings.patience is not None and waited >= settings.patience:
                break
            began = time.perf_counter()
            record = {"epoch": epoch + 1, "train_loss": _train_epoch(loop, epoch, advance)}
            with averaged_model(state, accelerator) as averaged:
                if loop.held_out:
                    record["valid_loss"] = validation_loss(averaged, loop.held_out, settings.batch_size, accelerator)
                record["learning_rate"] = state.schedule.get_last_lr()[0]
                record["seconds"] = time.perf_counter() - began
                better = end_epoch(state, record, always=settings.keep == "last")
                if loop.keeper.store and accelerator.is_main_process:
                    write_run(loop.keeper.store, averaged, state, loop.held_out, better=better)
            loop.keeper.save(state)
            if accelerator.trackers:
                accelerator.log(record, step=epoch + 1)
            # None ends before the main process has written.
            _stop_together(loop.stop, accelerator)
    if loop.held_out and not math.isfinite(state.best_loss):
        raise InputError(
            f"The validation loss is not finite. Lower the learning rate (it is {settings.learning_rate:g})."
        )


def _stop_together(stop: StopRequest, accelerator: Accelerator) -> None:
    """Raise `Stopped` in all processes if any was asked to stop: a signal may reach one alone."""
    asked = torch.tensor(float(stop.number > 0), device=accelerator.device)
    if accelerator.reduce(asked, "sum").item():
        raise Stopped(stop.number or SIGTERM)


def _train_epoch(loop: Loop, epoch: int, advance: Callable[[int], None]) -> float:
    """One pass over the training samples, or the rest of it; the mean loss a known label, auxiliary losses included."""
    state, settings = loop.state, loop.settings
    thaw(state.model, epoch)
    loop.network.train()
    # Samples of one size stay as they were shuffled.
    sizes = loop.samples.sizes if settings.group_by_length else np.zeros(len(loop.samples))
    batches = BucketedBatches(sizes, settings.batch_size, settings.seed, epoch)
    rest = islice(enumerate(batches), state.step, None)
    with closing(made_ahead(lambda one: batches_of(loop, one[1]), rest, loop.accelerator.device)) as ready:
        for (step, positions), made in ready:
            done = update(loop, epoch, step, positions, made)
            state.step, state.sums = step + 1, (state.sums[0] + done.loss, state.sums[1] + done.labels)
            advance(1)
            if done.stop or done.due:
                loop.keeper.save(state)
            if done.stop:
                # The main process writes; none may end before, or its launcher would end that one too.
                loop.accelerator.wait_for_everyone()
                raise Stopped(loop.stop.number or SIGTERM)
    return state.sums[0] / max(state.sums[1], 1)


def _set_up(
    model: FusionModel, steps: int, settings: TrainingSettings, machine: MachineSettings, accelerator: Accelerator
) -> tuple[nn.Module, TrainingState]:
    """The network as the processes share it, and a state of which nothing is trained yet; `steps` an epoch."""
    is_divided = machine.sharded and accelerator.num_processes > 1
    thaw(model, None)
    fixed = fixed_weights(model)
    learner = divide(copy.deepcopy(model), accelerator) if is_divided else model
    parts = OwnParts(learner) if is_divided else None
    rule = make_optimizer(learner, settings.optimizer, settings.learning_rate, settings.weight_decay, parts=parts)
    schedule = make_schedule(rule, steps * settings.epochs, settings.warmup)
    # What is divided is on its device, and brings its gradients together itself.
    network, rule = (learner, rule) if is_divided else accelerator.prepare(learner, rule)
    kept = divide(copy.deepcopy(model), accelerator) if is_divided else None
    averaged = MovingAverage(learner, settings.average, kept=kept)
    scaler = torch.amp.GradScaler(accelerator.device.type, enabled=settings.precision == "fp16")
    best = copied_weights(learner, fixed)
    state = TrainingState(learner, averaged, rule, schedule, scaler, best=best, fixed=fixed, parts=parts)
    state.is_compiled = machine.compile
    if machine.compile:
        for _, encoder in tuned_encoders(learner):
            encoder.compile_network(True)
    state.whole = model.to(accelerator.device) if is_divided else None
    if machine.sharded and not is_divided:
        state.history.warnings += ("there is one process, so that no weights are divided",)
    return network, state


def _go_on(keeper: Keeper, fingerprint: str, state: TrainingState, accelerator: Accelerator) -> None:
    """Bring the state to where a stopped run was.

    Raises:
        InputError: a process has other data, settings or another checkpoint than the main one.
    """
    with accelerator.main_process_first():
        keeper.resume(state)
    # As many bits of the fingerprint as a float carries exactly.
    own = (int(fingerprint[:13], 16), len(state.history.epochs), state.step)
    if own != tuple(int(from_main_process(accelerator, lambda number=number: float(number))) for number in own):
        raise InputError(
            f"Process {accelerator.process_index} was given other data or settings than the first one, or does not "
            "see its checkpoint. Give all processes the same arguments, and folders on a disk that they share."
        )


def _leave(
    model: FusionModel,
    state: TrainingState,
    held_out: Samples | None,
    error: BaseException | None,
    accelerator: Accelerator,
) -> None:
    """Leave the model with the best that was reached, also after Ctrl-C."""
    alone = accelerator.num_processes > 1 and error is not None
    if not state.history.epochs or alone:
        # Nothing is learned yet; or what started the processes ends this one too, and waits for no thresholds.
        state.thresholds = state.thresholds or {}
    recompute_activations(model, False)
    if state.is_compiled:
        for _, encoder in tuned_encoders(model):
            encoder.compile_network(False)
    model.to(accelerator.device).eval()
    # Weights that are divided can be put together where all processes come here, as where all were asked to stop.
    if not (state.is_divided and alone) or isinstance(error, Stopped):
        take_best(model, state, held_out)
