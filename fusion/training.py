"""Training, in one loop that can be read from top to bottom."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ..datasets.cohort import Cohort
from ..datasets.errors import InputError
from ..datasets.prepared import BucketedBatches, PreparedSamples
from ..datasets.progress import progress_bar, showing_progress
from .artifact import write_whole
from .checkpoint import History, TrainingState, resume, write_checkpoint
from .frozen_tokens import Samples, TokenKeeper
from .inference import infer, to_device
from .learning import MovingAverage, copied_weights, fixed_weights, make_optimizer, tell_tuning, thaw
from .metrics import best_threshold
from .model import FusionModel, require_cohort
from .processes import from_main_process, make_accelerator, share_weights
from .settings import TrainingSettings

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
    precision: str = "fp32",
    seed: int = 0,
    out: str | Path | None = None,
    on_start: Callable[[], None] | None = None,
    progress: bool = True,
) -> History:
    """Train a model; its best weights on the validation patients are what it has afterwards.

    A model that is not built yet is built first: its readers are fitted on `train` alone and its
    weights drawn from `seed`. A model that is built is trained further.

    Under a launcher of several processes each calls this with the same arguments and data; the main
    one validates and writes, and all end with its weights.

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
        precision: "fp32" or "bf16" (autocast).
        seed: of weights, order, dropout. The same seed gives the same weights on the same machine.
        out: a folder for `history.jsonl`, the best `model/` so far and `checkpoint/`; a run that
            was stopped goes on from there when fit is called again in the same way.
        on_start: called once all of this was found to be in order, before the first update and
            before anything is written (main process only).
        progress: whether to show a bar (main process only).

    Raises:
        InputError: settings or cohorts that cannot be trained with, or a loss that is not finite.
        KeyboardInterrupt: Ctrl-C; the model has its best weights so far.
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
        precision=precision,
        seed=seed,
    )
    _check_cohorts(model, train, valid)
    accelerator = make_accelerator()
    with showing_progress(progress):
        samples, held_out = _prepared(model, train, valid, settings)
    steps = math.ceil(len(samples) / batch_size)
    network, state = _set_up(model, steps, settings, accelerator)
    state.history.remarks = samples.remarks + (held_out.remarks if held_out else ())
    state.history.tuning = tell_tuning(model)

    # What was done before, if this run was stopped.
    store = None if out is None else Path(out)
    fingerprint = _fingerprint(samples, held_out, asdict(settings) | model.plan)
    _go_on(store, fingerprint, state, accelerator)
    if on_start and accelerator.is_main_process:
        on_start()

    done = len(state.history.epochs)
    try:
        if done < epochs:
            with showing_progress(progress):
                samples, held_out = _encoded_once(state, (samples, train), (held_out, valid))
        with showing_progress(progress), progress_bar("training", epochs * steps) as advance:
            advance(done * steps)
            for epoch in range(done, epochs):
                if held_out and patience is not None and epoch - state.history.best_epoch >= patience:
                    break
                began = time.perf_counter()
                record = {"epoch": epoch + 1}
                record["train_loss"] = _train_epoch(state, network, samples, epoch, settings, accelerator, advance)
                share_weights(accelerator, state.averaged.module)
                if held_out:
                    record["valid_loss"] = from_main_process(
                        accelerator, lambda: _validation_loss(state.averaged.module, held_out, batch_size)
                    )
                record["learning_rate"] = state.schedule.get_last_lr()[0]
                record["seconds"] = time.perf_counter() - began
                better = _keep_if_better(state, record, always=keep == "last")
                if store and accelerator.is_main_process:
                    _write_run(store, fingerprint, state, held_out, better=better)
                accelerator.wait_for_everyone()
        if held_out and not math.isfinite(state.best_loss):
            raise InputError(f"The validation loss is not finite. Lower the learning rate (it is {learning_rate:g}).")
    finally:
        # Also after Ctrl-C: what the model has is the best that was reached.
        model.load_state_dict(state.best)
        model.eval()
        model.thresholds_ = choose_thresholds(model, held_out) if held_out else {}
    return state.history


def _prepared(
    model: FusionModel, train: Cohort, valid: Cohort | None, settings: TrainingSettings
) -> tuple[PreparedSamples, PreparedSamples | None]:
    """The samples as arrays, after the model was built on the training patients if it was not."""
    fresh = not model.is_built
    if fresh:
        model.build(train, seed=settings.seed)
    samples = model.read(train, labelled=True)
    held_out = None if valid is None else model.read(valid, labelled=True)
    if fresh:
        outcomes, known = torch.from_numpy(samples.outcomes), torch.from_numpy(samples.known)
        model.fit_scales(outcomes, known, balanced=settings.balanced)
    return samples, held_out


def _encoded_once(
    state: TrainingState, train: tuple[PreparedSamples, Cohort], valid: tuple[PreparedSamples | None, Cohort | None]
) -> tuple[Samples, Samples | None]:
    """The samples as networks that never learn see them, so that epochs touch only what learns."""
    keeper = TokenKeeper(state.model)
    samples, held_out = (own and keeper.keep(own, cohort.store) for own, cohort in (train, valid))
    state.history.tuning += keeper.told
    return samples, held_out


def _set_up(
    model: FusionModel, steps: int, settings: TrainingSettings, accelerator: Accelerator
) -> tuple[nn.Module, TrainingState]:
    """The network as the processes share it, and a state of which nothing is trained yet; `steps` an epoch."""
    thaw(model, None)
    fixed = fixed_weights(model)
    rule = make_optimizer(model, settings.optimizer, settings.learning_rate, settings.weight_decay)
    schedule = _schedule(rule, steps * settings.epochs, settings.warmup)
    network, rule = accelerator.prepare(model, rule)
    averaged = MovingAverage(model, settings.average)
    return network, TrainingState(model, averaged, rule, schedule, best=copied_weights(model, fixed), fixed=fixed)


def _go_on(store: Path | None, fingerprint: str, state: TrainingState, accelerator: Accelerator) -> None:
    """Bring the state to where a stopped run was.

    Raises:
        InputError: a process has other data, settings or another checkpoint than the main one.
    """
    if store:
        with accelerator.main_process_first():
            resume(store, fingerprint, state)
    # As many bits of the fingerprint as a float carries exactly.
    own = (int(fingerprint[:13], 16), len(state.history.epochs))
    if own != tuple(int(from_main_process(accelerator, lambda number=number: float(number))) for number in own):
        raise InputError(
            f"Process {accelerator.process_index} was given other data or settings than the first one, or does not "
            "see its checkpoint. Give all processes the same arguments, and folders on a disk that they share."
        )


def _train_epoch(
    state: TrainingState,
    network: nn.Module,
    samples: Samples,
    epoch: int,
    settings: TrainingSettings,
    accelerator: Accelerator,
    advance: Callable[[int], None],
) -> float:
    """One pass over the training samples; returns the mean loss a known label, auxiliary losses included."""
    total = count = 0.0
    thaw(state.model, epoch)
    network.train()
    for step, positions in enumerate(BucketedBatches(samples.sizes, settings.batch_size, settings.seed, epoch)):
        # Every random draw of a step is keyed, so that a resumed run repeats it.
        torch.manual_seed(_key(settings.seed, epoch, step, accelerator.process_index))
        batch = to_device(_share(samples, positions, accelerator), accelerator.device)
        with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            risk = network(batch)
        loss, labels = state.model.loss(risk, batch)

        # The mean over the labels of all processes: DDP averages gradients, so we undo its division.
        everyone = accelerator.reduce(torch.stack([loss.detach(), labels.float()]), "sum")
        if not everyone.isfinite().all():
            raise InputError(
                f"The loss is not finite in epoch {epoch + 1}, step {step + 1}. "
                f"Lower the learning rate (it is {state.schedule.get_last_lr()[0]:g})."
            )
        accelerator.backward(loss * accelerator.num_processes / everyone[1].clamp(min=1))
        accelerator.clip_grad_norm_(network.parameters(), settings.clip)
        state.rule.step()
        state.schedule.step()
        state.rule.zero_grad()
        state.averaged.update()
        total, count = total + everyone[0].item(), count + everyone[1].item()
        advance(1)
    return total / max(count, 1)


def _keep_if_better(state: TrainingState, record: dict[str, float], *, always: bool) -> bool:
    """Note an epoch, and keep its weights if they are the best so far; always, or without validation, the last are."""
    state.history.epochs.append(record)
    watched = record.get("valid_loss")
    better = always or watched is None or watched < state.best_loss
    if better:
        state.best = copied_weights(state.averaged.module, state.fixed)
        state.history.best_epoch = int(record["epoch"])
        state.best_loss = math.inf if watched is None else watched
    return better


def _check_cohorts(model: FusionModel, train: Cohort, valid: Cohort | None) -> None:
    """Raise `InputError` for cohorts that would train nothing, or the wrong thing."""
    for part in (train,) if valid is None else (train, valid):
        require_cohort(part)
    if valid is not None:
        common = set(train.outcomes["subject_id"]) & set(valid.outcomes["subject_id"])
        if common:
            raise InputError(f"{len(common)} patients are both in train and in valid. Divide with cohort.split.")
    if valid is not None and not any(
        name in valid.outcomes.columns and valid.outcomes[name].notna().any() for name in model.outcomes
    ):
        raise InputError(
            "No validation patient has a known outcome, so nothing can be validated. Bring some that have."
        )
    nothing = ~train.has_input().any(axis=1).to_numpy()
    if nothing.any():
        raise InputError(
            f"Of {int(nothing.sum())} of {len(train)} training samples nothing is known before the prediction time "
            f"(first: outcomes, data row {int(np.flatnonzero(nothing)[0]) + 1}). "
            "Leave them out with cohort.keep_with_input()."
        )
    for name, kind in model.outcomes.items():
        if name not in train.outcomes.columns:
            raise InputError(f"outcomes lacks the column {name}, which the model predicts. Add it.")
        labels = train.outcomes[name].dropna()
        if labels.nunique() < 2:
            same = "of one class" if kind == "categorical" else f"{labels.max():g}"
            seen = f"all {len(labels)} known ones are {same}" if len(labels) else "none is known"
            raise InputError(
                f"The outcome {name} does not vary among the training patients: {seen}. "
                "Nothing can be learned from that; bring patients of both kinds, or drop the outcome."
            )


def _key(*numbers: int) -> int:
    """One seed from several numbers, without collisions that addition would have."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _share(samples: Samples, positions: list[int], accelerator: Accelerator) -> object:
    """This process's part of a batch. One that would get nothing repeats a sample without its labels."""
    own = positions[accelerator.process_index :: accelerator.num_processes]
    if own:
        return samples[own]
    batch = samples[positions[:1]]
    return batch._replace(known=torch.zeros_like(batch.known))


def _schedule(rule: torch.optim.Optimizer, steps: int, warmup: float) -> torch.optim.lr_scheduler.LambdaLR:
    rising = max(1, round(warmup * steps))

    def share_of_rate(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * min(1, (step - rising) / max(1, steps - rising))))

    return torch.optim.lr_scheduler.LambdaLR(rule, share_of_rate)


@torch.inference_mode()
def _validation_loss(model: FusionModel, samples: Samples, batch_size: int) -> float:
    """Mean loss over the known labels."""
    device = next(model.parameters()).device
    model.eval()
    total = count = 0.0
    for positions in BucketedBatches(samples.sizes, batch_size, shuffle=False):
        batch = to_device(samples[positions], device)
        loss, labels = model.loss(model(batch), batch)
        total, count = total + loss.item(), count + labels.item()
    return total / max(count, 1)


def choose_thresholds(model: FusionModel, samples: Samples) -> dict[str, float]:
    """By binary outcome, the threshold that maximises F1; none where there is one class only."""
    values = infer(model, samples)
    columns = model.heads.columns
    chosen = {}
    for i, (name, kind) in enumerate(model.outcomes.items()):
        known = samples.known[:, i]
        labels = samples.outcomes[known, i]
        if kind == "binary" and len(np.unique(labels)) == 2:
            chosen[name] = best_threshold(values[known, columns.index(name)], labels)
    return chosen


def _write_run(store: Path, fingerprint: str, state: TrainingState, held_out: Samples | None, *, better: bool) -> None:
    """Write the history so far, after a better epoch the model, and what is needed to go on."""
    store.mkdir(parents=True, exist_ok=True)
    write_whole(store / "history.jsonl", "".join(json.dumps(record) + "\n" for record in state.history.epochs))
    if better:
        best = state.averaged.module
        best.thresholds_ = choose_thresholds(best, held_out) if held_out else {}
        best.save(store / "model")
    write_checkpoint(store, fingerprint, state)


def _fingerprint(samples: PreparedSamples, held_out: PreparedSamples | None, settings: Mapping[str, object]) -> str:
    """What must be equal for a stopped run to go on: all samples in their order, and the settings.

    Samples are hashed as batches show them, so that it does not matter where their arrays are kept.
    """
    digest = hashlib.sha256(repr(settings).encode())
    for part in (samples, held_out):
        if part is None:
            continue
        digest.update(part.keys.to_csv(index=False).encode())
        for first in range(0, len(part), 64):
            batch = part[range(first, min(first + 64, len(part)))]
            for column in (batch.outcomes, batch.known, *(column for own in batch.parts.values() for column in own)):
                digest.update(column.contiguous().numpy())
    return digest.hexdigest()
