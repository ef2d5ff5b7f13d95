"""How numbers are computed: at which precision, and whether they repeat themselves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..datasets.errors import InputError

_LOW_PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("fp32", *_LOW_PRECISION)
_WORKSPACE, _WORKSPACES = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")
"""Memory for cuBLAS, and with which of it results repeat themselves: 8 buffers of 4 MiB, or of 16 KiB."""


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """A block in which what gains by it is computed at a lower precision; "fp32" changes nothing."""
    return torch.autocast(device.type, _LOW_PRECISION.get(precision), enabled=precision in _LOW_PRECISION)


@contextmanager
def full_precision() -> Iterator[None]:
    """Inside the block a GPU's convolutions and recurrences keep all bits of fp32.

    By default they are computed in TF32, of 10 bits, by algorithms that depend on the batch: one patient's risk would
    be told from that among a thousand.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def prepare_to_repeat(deterministic: bool) -> None:
    """Have cuBLAS give the same results each time, if deterministic algorithms are asked for.

    It asks the environment once, when the GPU is first used.

    Raises:
        InputError: the GPU was used before, with another setting.

    Source: cuBLAS documentation, "Results reproducibility".
    """
    if not deterministic or not torch.cuda.is_available():
        return
    if not torch.cuda.is_initialized():
        os.environ.setdefault(_WORKSPACE, _WORKSPACES[0])
    if os.environ.get(_WORKSPACE) not in _WORKSPACES:
        raise InputError(
            f"deterministic=True needs {_WORKSPACE}={_WORKSPACES[0]} in the environment before the GPU is first used, "
            f"and it is {os.environ.get(_WORKSPACE, 'not set')}. Set it, and start Python anew."
        )


@contextmanager
def repeatable(deterministic: bool) -> Iterator[None]:
    """Inside the block only deterministic algorithms are used, if asked for.

    Raises:
        InputError: something in the block has none.
    """
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(deterministic or before)
    try:
        yield
    except RuntimeError as error:
        # PyTorch has no class of its own for it.
        name, found, _ = str(error).partition(" does not have a deterministic implementation")
        if not found:
            raise
        raise InputError(
            f"deterministic=True, and PyTorch has no deterministic algorithm for {name} on this device. Leave "
            "deterministic out, or choose a network without it."
        ) from error
    finally:
        torch.use_deterministic_algorithms(before)
