"""The largest batch that fits into memory, found by training steps on a copy of the model."""

from __future__ import annotations

import copy
import math
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from numbers import Real

import numpy as np
import torch

from ..datasets.arguments import require_truth, require_whole
from ..datasets.cohort import Cohort
from ..datasets.errors import InputError
from ..datasets.prepared import PreparedSamples
from ..encoders.recomputing import statistics_stay
from .inference import to_device
from .learning import MovingAverage, copied_weights, fixed_weights, make_optimizer, recompute, thaw
from .memory import free_memory, resident_memory
from .model import FusionModel
from .numerics import PRECISIONS, autocast
from .processes import TIMEOUT, EndingTogether, launched_processes, make_accelerator
from .settings import LARGEST_SEED, require_choice, require_timeout
from .training_samples import check_cohorts

_GB = 1024**3
_USED = 0.8
"""Share of the memory that is free by which a CPU is filled: other programs and the unforeseen need some, too."""
_MARGIN = 1.2
"""By how much more than in proportion a larger batch may need memory, as for padding and between blocks."""

_FULL = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
"""Words of errors of CUDA, its libraries and the system where memory is full, which have no class of their own."""


def largest_batch(
    model: FusionModel,
    train: Cohort,
    *,
    precision: str = "fp32",
    recompute: bool = False,
    memory: float | None = None,
    most: int = 4096,
    seed: int = 0,
    timeout: float = TIMEOUT,
) -> int:
    """How many samples `fit` can take an update, over all processes together.

    Steps are tried on a copy of the model, of one sample, two, four and so on, and then between the last number
    that fitted and the first that did not; each on those samples that have most of one modality, one modality after
    the other. Model and random numbers stay as they are; a cohort's store is filled, as `fit` fills it. On a GPU,
    what does not fit fails and is caught. A CPU would kill the process: there, a larger number is tried only if the
    memory that it should need, in proportion, is allowed.

    A larger batch fits, and need not be better: the learning rate goes with it. So `fit` wants a number, and does
    not look for one that would be another on another machine.

    Args:
        model: built or not; as `fit` takes it.
        train: the training patients.
        precision, recompute, seed, timeout: as `fit` takes them. Processes find each other once in a program, so
            that the first `timeout` counts, here or there.
        memory: GB that each process may use in all; on a CPU 80 % of what is free for it, on a GPU all, unless given.
        most: what is tried at most; no more than there are samples.

    Raises:
        InputError: not even one sample fits, a setting out of its range, what `fit` refuses, or another process that
            failed.

    Example:
        >>> fit(model, train, valid, batch_size=min(256, largest_batch(model, train)))
    """
    require_whole("most", most, least=1)
    require_whole("seed", seed, least=0, most=LARGEST_SEED)
    require_truth(recompute=recompute)
    require_timeout(timeout)
    require_choice("precision", precision, PRECISIONS)
    if memory is not None and (not isinstance(memory, Real) or not 0 < memory < math.inf):
        raise InputError(f"memory is {memory!r}; expected a positive number of GB, or None.")
    check_cohorts(model, train, None)
    accelerator = make_accelerator(timeout=timeout)
    device, processes = accelerator.device, accelerator.num_processes
    gauge = _Gauge(device, None if memory is None else memory * _GB)
    devices = [device] if device.type == "cuda" else []
    with EndingTogether(accelerator), torch.random.fork_rng(devices=devices):
        step, samples = _trial(model, train, device, precision, recompute, seed, several=processes > 1)

        def fits(count: int) -> bool:
            own = gauge.fits(lambda: [step(positions) for positions in _heaviest(samples, count)], count)
            # All go on together, and the one with the least memory decides.
            failed = torch.tensor(float(not own), device=device)
            return accelerator.reduce(failed, "sum").item() == 0

        largest = _search(fits, max(1, min(most, len(samples)) // processes))
    if not largest:
        raise InputError(
            f"Not even one sample fits into {gauge.told}. Give the encoders smaller images, a budget= or fewer layers, "
            "recompute=True or precision='bf16', or more memory."
        )
    return largest * processes


def _search(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` that fits, by doubling and then by halves; 0 where one does not."""
    fitted, failed = 0, most + 1
    while fitted < most:
        number = min(2 * fitted or 1, most) if failed > most else (fitted + failed) // 2
        if number == fitted:
            break
        if fits(number):
            fitted = number
        else:
            failed = number
    return fitted


def _trial(
    model: FusionModel, train: Cohort, device: torch.device, precision: str, again: bool, seed: int, *, several: bool
) -> tuple[Callable[[Sequence[int]], None], PreparedSamples]:
    """A step that needs the memory of one of `fit`, on a copy of the model, and the samples for it."""
    model = copy.deepcopy(model)
    if not model.is_built:
        model.build(train, seed=seed)
    samples = model.read(train, labelled=True)
    model.to(device)
    thaw(model, None)
    rule = make_optimizer(model, "adamw", 1e-6, 0.0)
    # What lies beside the model in training: the moving average, the best weights, and what gradients travel in.
    learning = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    beside = (copied_weights(model, fixed_weights(model)), torch.zeros(learning * several, device=device))
    averaged = MovingAverage(model, 0.5)
    recompute(model, again)
    model.train()

    # What overflows in fp16 is computed once more in fp32, and must have room for it.
    heaviest = "fp32" if precision == "fp16" else precision

    def step(positions: Sequence[int]) -> None:
        assert beside
        batch = to_device(samples[positions], device)
        try:
            with autocast(device, heaviest):
                risk = model(batch)
            loss, labels = model.loss(risk, batch)
            with statistics_stay(model) if again else nullcontext():
                (loss / labels.clamp(min=1)).backward()
            rule.step()
            averaged.update()
        finally:
            rule.zero_grad()

    return step, samples


def _heaviest(samples: PreparedSamples, count: int) -> Iterator[list[int]]:
    """So many samples that have most of a modality, one modality after the other; what is the same but once."""
    seen = set()
    for packed in samples.parts.values():
        chosen = tuple(np.argsort(-packed.sizes, kind="stable")[:count].tolist())
        if frozenset(chosen) not in seen:
            seen.add(frozenset(chosen))
            yield list(chosen)


class _Gauge:
    """How much memory a process has, how much it may have, and how much steps have needed.

    Args:
        device: on which steps are computed.
        bound: bytes that the process may have; None for what is free.
    """

    def __init__(self, device: torch.device, bound: float | None) -> None:
        self._cuda = device.type == "cuda"
        if not self._cuda and not sys.platform.startswith("linux"):
            raise InputError("How much memory a step needs on a CPU is known on Linux only. Give fit a batch_size.")
        if not bound:
            share = _USED / launched_processes(here=True)
            bound = math.inf if self._cuda else resident_memory() + share * free_memory()
        self._bound = bound
        self._held = 0.0 if self._cuda else resident_memory()
        self._before = 0.0
        # By samples, beyond what the process had before any of them.
        self._needed: dict[int, float] = {}

    @property
    def told(self) -> str:
        """The bound, in words."""
        if math.isinf(self._bound):
            return "the memory of the GPU"
        held = "" if self._cuda else f", of which the process held {self._held / _GB:.2f} before"
        return f"{self._bound / _GB:.2f} GB{held}"

    def fits(self, work: Callable[[], object], count: int) -> bool:
        """Whether steps of so many samples fit; tried only if they may."""
        if not self._cuda and self._foreseen(count) > self._bound:
            return False
        try:
            # In the first step of all, moments are made, which stay.
            for _ in range(1 if self._needed else 2):
                if not self._needed and not self._cuda:
                    self._before = resident_memory()
                with self._watching() as peak:
                    work()
                if peak() > self._bound:
                    return False
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in _FULL):
                return False
            raise
        finally:
            if self._cuda:
                torch.cuda.empty_cache()
        self._needed[count] = peak() - self._before
        return True

    def _foreseen(self, count: int) -> float:
        """Bytes that the process should need for so many samples, in proportion to fewer of them."""
        if not self._needed:
            return resident_memory()
        fewer = max(self._needed)
        # What was freed, and not given back to the system, is used again.
        return self._before + self._needed[fewer] * _MARGIN * count / fewer

    @contextmanager
    def _watching(self) -> Iterator[Callable[[], float]]:
        """Inside the block memory is watched; afterwards it can be asked for the highest."""
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
            yield lambda: float(torch.cuda.max_memory_reserved())
            return
        highest, ended = [resident_memory()], threading.Event()

        def watch() -> None:
            while not ended.wait(0.002):
                highest[0] = max(highest[0], resident_memory())

        watching = threading.Thread(target=watch, daemon=True)
        watching.start()
        try:
            yield lambda: highest[0]
        finally:
            ended.set()
            watching.join()
