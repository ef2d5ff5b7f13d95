"""Several processes of one run, as torchrun or accelerate launch start them: who writes, decides, and ends the rest."""

from __future__ import annotations

import atexit
import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from ..datasets.errors import InputError
from .stopping import Stopped, locked

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn
    from torch.distributed import Store

TIMEOUT = 1800.0
"""Seconds that a process waits for the others, unless it is told otherwise: PyTorch's own."""
_GRACE = 5.0
"""Seconds in which a process ends by itself, with its own message, after another one has failed."""
_PARTED = ("gloo", "closed by peer", "reset by peer", "timed out", "timeout", "nccl")
"""Words in the message of a process that lost another one, in small letters."""
_UNLAUNCHED = (AssertionError, ImportError, LookupError, RuntimeError, TypeError, ValueError)
"""What Accelerate and PyTorch raise where the environment asks for what is not there."""
_RANKS = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_trainings = itertools.count()


def is_main_process() -> bool:
    """Whether this process is the one that writes and speaks: the first of its launcher, or the only one."""
    return launched_processes() == 1 or _launched_with("RANK", 0) == 0


def launched_processes(*, here: bool = False) -> int:
    """How many processes a launcher started, this one among them; 1 without a launcher.

    Args:
        here: only those on this machine, as far as the launcher tells.
    """
    launched = max(1, _launched_with("WORLD_SIZE", 1))
    return max(1, _launched_with("LOCAL_WORLD_SIZE", launched)) if here else launched


def _launched_with(name: str, alone: int) -> int:
    """A number that launchers set."""
    text = os.environ.get(name) or str(alone)
    try:
        return int(text)
    except ValueError:
        raise InputError(
            f"{name} is {text!r} in the environment; expected a whole number, as launchers set it. Unset it, or start "
            "with torchrun or accelerate launch."
        ) from None


@contextmanager
def alone_in(folder: Path | None) -> Iterator[None]:
    """Keep other runs out of a folder, if there is one; the main of several processes does.

    Raises:
        InputError: another process writes into it, or it cannot be made or read.
    """
    with locked(folder) if folder and is_main_process() else nullcontext():
        yield


def wait_for_everyone() -> None:
    """Go on when every process has come here, such as after the main one has written what others read."""
    make_accelerator().wait_for_everyone()


def make_accelerator(*, timeout: float = TIMEOUT) -> Accelerator:
    """What runs training on this machine's devices, together with the other processes of its launcher.

    Args:
        timeout: seconds that a process waits for the others. Processes find each other once in a program, so
            that the first one counts.

    Raises:
        InputError: a launcher started several processes, and they did not find each other; or the environment asks
            for what is not there, such as a GPU.
    """
    import torch
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

    launched = launched_processes()
    # Without being told, Accelerate takes processes of a launcher without GPUs for strangers to each other.
    on_cpu = launched > 1 and not torch.accelerator.is_available()
    # A rank whose batch lacks a modality leaves that encoder unused in the step.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    waiting = InitProcessGroupKwargs(timeout=timedelta(seconds=timeout))
    try:
        accelerator = Accelerator(cpu=on_cpu, kwargs_handlers=[unused, waiting])
    except torch.distributed.DistError as error:
        raise InputError(
            f"The {launched} processes did not find each other within {timeout:g} s. Start them together, with a "
            "network between their machines, or wait longer."
        ) from error
    except _UNLAUNCHED as error:
        raise _unlaunched(error) from error
    try:
        torch.zeros(1, device=accelerator.device)
    except _UNLAUNCHED as error:
        raise _unlaunched(error) from error
    if accelerator.mixed_precision != "no":
        raise InputError(
            f"The launcher asks for {accelerator.mixed_precision}, which would go before what fit is told. Launch with "
            "--mixed_precision no, and give precision= to fit."
        )
    if accelerator.num_processes != launched:
        raise InputError(
            f"A launcher started {launched} processes, and {accelerator.num_processes} train together, so each would "
            "write over the others. Make no Accelerator before, or start one process."
        )
    if launched > 1:
        # The group lasts for all that is trained in this program.
        atexit.unregister(_part)
        atexit.register(_part)
    return accelerator


def _unlaunched(error: BaseException) -> InputError:
    asked = sorted(name for name in os.environ if name.startswith(("ACCELERATE_", "CUDA_VISIBLE")) or name in _RANKS)
    said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return InputError(
        f"Accelerate cannot start as the environment asks ({said}). Unset what is not meant of "
        f"{', '.join(asked) or 'its configuration (accelerate config)'}, or start with torchrun or accelerate launch."
    )


def _part() -> None:
    """Leave the other processes in order; without this they sometimes abort at exit."""
    from accelerate import PartialState

    PartialState().destroy_process_group()


class EndingTogether:
    """A block in which, if one process fails, all end, and each tells the first cause.

    A process that does not come back to hear of it, since it is stuck, is ended from within.

    Args:
        accelerator: of the processes.

    Raises:
        InputError: at the end of the block, if another process was lost, or did not answer in time.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator, self._ended = accelerator, threading.Event()

    def __enter__(self) -> None:
        if self._accelerator.num_processes == 1:
            return
        from torch.distributed.distributed_c10d import _get_default_store

        self._store, self._key = _get_default_store(), f"chiasm/first cause/{next(_trainings)}"
        given = (self._store, self._key, self._ended)
        self._watch = threading.Thread(target=_end_if_another_fails, args=given, daemon=True)
        self._watch.start()

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if self._accelerator.num_processes == 1:
            return
        lost = None
        try:
            if error is None:
                self._accelerator.wait_for_everyone()
        except RuntimeError as parted:
            error = lost = parted
        finally:
            self._ended.set()
            self._watch.join()
        # Where all were asked to stop, all have stopped.
        if error is not None and not isinstance(error, Stopped):
            parted = lost is not None or _is_parted(error)
            cause = _first_cause(self._store, self._key, self._accelerator.process_index, error, parted=parted)
            if parted:
                raise InputError(cause) from error


def _first_cause(store: Store, key: str, process: int, error: BaseException, *, parted: bool) -> str:
    """Why the run ended: what the first process to fail said."""
    text = " ".join(str(error).split())
    # Only our own messages are known to name no patient.
    own = f"Process {process} stopped: {text if isinstance(error, InputError) else type(error).__name__}"
    if parted:
        own = (
            f"Process {process} lost another one, which was killed, or did not answer in time ({text[:200]}). "
            "The same command goes on from the last checkpoint."
        )
    try:
        return store.compare_set(key, "", own).decode()
    except RuntimeError:
        # The store ended with the first process.
        return own


def _is_parted(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _PARTED)


def _end_if_another_fails(store: Store, key: str, ended: threading.Event) -> None:
    """Wait for a first cause, and end this process with it, unless that ends by itself."""
    while not ended.wait(1.0):
        try:
            failed = store.check([key])
            cause = store.get(key).decode() if failed else ""
        except RuntimeError:
            # The store ended with the process that had it.
            cause = "Another process ended before all were done."
        if cause and not ended.wait(_GRACE):
            print(f"chiasm: {cause}", file=sys.stderr, flush=True)
            # The main thread is stuck, and would not hear of an exception.
            os._exit(2)


def from_main_process(accelerator: Accelerator, compute: Callable[[], float]) -> float:
    """A number that the main process computes and all get, so that they decide alike by it."""
    if accelerator.num_processes == 1:
        return compute()
    import torch
    from accelerate.utils import broadcast

    number = compute() if accelerator.is_main_process else 0.0
    return broadcast(torch.tensor(number, dtype=torch.float64, device=accelerator.device)).item()


def share_weights(accelerator: Accelerator, model: nn.Module) -> None:
    """Give every process the main one's weights, and its running statistics, which each makes of its own batches.

    Weights that are divided among the processes are what they are.
    """
    if accelerator.num_processes == 1:
        return
    from accelerate.utils import broadcast

    for value in model.state_dict().values():
        if not is_divided(value):
            broadcast(value)


def is_divided(value: object) -> bool:
    """Whether a tensor is one of which each process has a part."""
    return hasattr(value, "full_tensor")
