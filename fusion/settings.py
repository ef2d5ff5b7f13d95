"""What `fit` can be told, checked before anything is done with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from numbers import Real

from ..datasets.arguments import require_truth, require_whole
from ..datasets.errors import InputError
from .numerics import PRECISIONS

LARGEST_SEED = 2**32 - 1
"""What NumPy's and PyTorch's generators both take."""


def require_choice(name: str, value: object, allowed: Sequence[object]) -> None:
    """Raise `InputError` unless a setting is one of those that there are."""
    if value not in allowed:
        raise InputError(f"{name} is {value!r}; expected {' or '.join(map(repr, allowed))}.")


def require_timeout(timeout: float) -> None:
    """Raise `InputError` unless this is a time that processes can wait for each other."""
    if not isinstance(timeout, Real) or not 1 <= timeout < 1e7:
        raise InputError(f"timeout is {timeout!r}; expected a number of seconds from 1 to 1e7.")


@dataclass(frozen=True)
class TrainingSettings:
    """The arguments of `fit` that tell one training from another; see there.

    Raises:
        InputError: for the first setting out of its range.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    optimizer: str
    weight_decay: float
    warmup: float
    clip: float
    average: float
    patience: int | None
    keep: str
    balanced: bool
    distillation: float
    group_by_length: bool
    precision: str
    accumulate: int
    deterministic: bool
    seed: int

    def __post_init__(self) -> None:
        require_whole("epochs", self.epochs, least=1)
        require_whole("batch_size", self.batch_size, least=1)
        require_whole("accumulate", self.accumulate, least=1)
        require_whole("seed", self.seed, least=0, most=LARGEST_SEED)
        if self.patience is not None:
            require_whole("patience", self.patience, least=1)
        ranges: dict[str, tuple[Callable[[float], bool], str]] = {
            "learning_rate": (lambda v: 0 < v < math.inf, "a positive number"),
            "weight_decay": (lambda v: 0 <= v < math.inf, "a number of 0 or more"),
            "warmup": (lambda v: 0 <= v <= 1, "a share of the updates, from 0 to 1"),
            "clip": (lambda v: v > 0, "a positive number"),
            "average": (lambda v: 0 <= v < 1, "a decay from 0 to below 1"),
            "distillation": (lambda v: 0 <= v <= 1, "a share of the labels, from 0 to 1"),
        }
        for name, (is_right, expected) in ranges.items():
            value = getattr(self, name)
            if not isinstance(value, Real) or isinstance(value, bool) or not is_right(value):
                raise InputError(f"{name} is {value!r}; expected {expected}.")
        choices = {
            "optimizer": ("adamw", "sgd"),
            "keep": ("best", "last"),
            "precision": PRECISIONS,
            "balanced": (True, False),
            "group_by_length": (True, False),
            "deterministic": (True, False),
        }
        for name, allowed in choices.items():
            require_choice(name, getattr(self, name), allowed)


@dataclass(frozen=True)
class KeepingSettings:
    """The arguments of `fit` that tell how a run is kept and watched, and change nothing of what comes of it.

    Raises:
        InputError: for the first setting out of its range.
    """

    save_every: float
    checkpoints: int
    skip: int
    timeout: float

    def __post_init__(self) -> None:
        require_whole("checkpoints", self.checkpoints, least=1)
        require_whole("skip", self.skip, least=0)
        if not isinstance(self.save_every, Real) or not self.save_every >= 0:
            raise InputError(f"save_every is {self.save_every!r}; expected a number of minutes of 0 or more.")
        require_timeout(self.timeout)


@dataclass(frozen=True)
class MachineSettings:
    """The arguments of `fit` that tell how a machine is used, and change what comes of it by rounding at most.

    Raises:
        InputError: for the first setting that is neither True nor False, or two that do not go together.
    """

    sharded: bool
    recompute: bool
    compile: bool

    def __post_init__(self) -> None:
        require_truth(**asdict(self))
        if self.compile and (self.sharded or self.recompute):
            other = "sharded" if self.sharded else "recompute"
            raise InputError(f"compile=True was not tried with {other}=True. Leave one of them out.")
