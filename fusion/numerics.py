"""How numbers are computed in training: at which precision, and whether they repeat themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_LOW_PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """A block in which what gains by it is computed at a lower precision; "fp32" changes nothing."""
    return torch.autocast(device.type, _LOW_PRECISION.get(precision), enabled=precision in _LOW_PRECISION)


@contextmanager
def repeatable(deterministic: bool) -> Iterator[None]:
    """Inside the block only deterministic algorithms are used, if asked for."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(deterministic or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
