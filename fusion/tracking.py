"""Experiment trackers, through Accelerate: they are told settings and losses, and nothing of any patient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..datasets.errors import InputError

if TYPE_CHECKING:
    from accelerate import Accelerator


@contextmanager
def tracked(
    accelerator: Accelerator, names: Sequence[str], folder: Path | None, settings: Mapping[str, object]
) -> Iterator[None]:
    """Inside the block `accelerator.log` tells trackers, from the main process.

    Args:
        accelerator: of the processes.
        names: as Accelerate calls them, such as "tensorboard", "wandb" or "mlflow".
        folder: what is kept on this machine goes to `trackers` in it.
        settings: plain values that tell this training from another.
    """
    if not names:
        yield
        return
    from accelerate.tracking import filter_trackers

    accelerator.log_with = filter_trackers(list(names), folder and folder / "trackers")
    # What trackers show as text is text; None and tuples are no numbers to them.
    plain = {name: own if isinstance(own, (bool, int, float, str)) else str(own) for name, own in settings.items()}
    accelerator.project_configuration.set_directories(str(folder / "trackers") if folder else None)
    accelerator.init_trackers("chiasm", config=plain)
    try:
        yield
    finally:
        # Accelerate's own end_training also ends the group of processes, which further trainings need.
        for tracker in accelerator.trackers:
            tracker.finish()
        accelerator.trackers = []


def require_trackers(names: Sequence[str], *, with_folder: bool) -> None:
    """Raise `InputError` unless all trackers are known and installed, and have a folder where they need one."""
    if isinstance(names, str):
        raise InputError(f"trackers is {names!r}; expected a list of names, such as [{names!r}].")
    if not names:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    known, installed = sorted(map(str, LOGGER_TYPE_TO_CLASS)), set(map(str, get_available_trackers()))
    for name in names:
        if name not in known:
            raise InputError(f"There is no tracker {name!r}; there are {', '.join(known)}.")
        if name not in installed:
            raise InputError(f"The tracker {name} is not installed. Install its package, or leave it out.")
        if not with_folder and LOGGER_TYPE_TO_CLASS[name].requires_logging_directory:
            raise InputError(f"The tracker {name} writes into the run's folder. Give one with out=.")
