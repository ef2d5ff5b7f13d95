"""Several processes of one run, as torchrun or accelerate launch start them: who writes, and who decides."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..datasets.errors import InputError

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn


def is_main_process() -> bool:
    """Whether this process is the one that writes and speaks: the first of its launcher, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def wait_for_everyone() -> None:
    """Go on when every process has come here, such as after the main one has written what others read."""
    make_accelerator().wait_for_everyone()


def make_accelerator() -> Accelerator:
    """What runs training on this machine's devices, together with the other processes of its launcher.

    Raises:
        InputError: a launcher started several processes, and they did not find each other.
    """
    import torch
    from accelerate import Accelerator, DistributedDataParallelKwargs

    launched = int(os.environ.get("WORLD_SIZE", "1"))
    # Without being told, Accelerate takes processes of a launcher without GPUs for strangers to each other.
    on_cpu = launched > 1 and not torch.accelerator.is_available()
    # A rank whose batch lacks a modality leaves that encoder unused in the step.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(cpu=on_cpu, kwargs_handlers=[unused])
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


def _part() -> None:
    """Leave the other processes in order; without this they sometimes abort at exit."""
    from accelerate import PartialState

    PartialState().destroy_process_group()


def from_main_process(accelerator: Accelerator, compute: Callable[[], float]) -> float:
    """A number that the main process computes and all get, so that they decide alike by it."""
    if accelerator.num_processes == 1:
        return compute()
    import torch
    from accelerate.utils import broadcast

    number = compute() if accelerator.is_main_process else 0.0
    return broadcast(torch.tensor(number, dtype=torch.float64, device=accelerator.device)).item()


def share_weights(accelerator: Accelerator, model: nn.Module) -> None:
    """Give every process the main one's weights, and its running statistics, which each makes of its own batches."""
    if accelerator.num_processes == 1:
        return
    from accelerate.utils import broadcast

    for value in model.state_dict().values():
        broadcast(value)
