"""The tensors of a checkpoint: in one file, or, of a run whose weights are divided, in one a process.

A file of the second kind has its process's part of every tensor that is divided, cut along the first dimension in
the order of the processes; the first one also has the tensors that all have whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..datasets.disk import naming_full_disk
from ..datasets.errors import InputError
from .artifact import flush

if TYPE_CHECKING:
    from accelerate import Accelerator

WHOLE = "state.safetensors"


def _file_of(process: int, processes: int) -> str:
    """The name of a process's file, where each writes its own."""
    return f"state-{process + 1:05d}-of-{processes:05d}.safetensors"


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as they are in this process."""
    # Safetensors takes no tensor of which a part is another one, as those of small models may be.
    save_file({name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}, path)


def write_parts(folder: Path, tensors: Mapping[str, Tensor], accelerator: Accelerator) -> list[Path]:
    """Write each process's part of a checkpoint beside its folder; all processes call this together.

    Args:
        folder: of the checkpoint.
        tensors: this process's parts; in the first one also those that all have whole.
        accelerator: of the processes.

    Returns:
        The files of all processes, in their order, which are on the disk by now.

    Raises:
        InputError: they cannot be written, or the disk is full.
    """
    place = folder.with_name(f".{folder.name}-parts")
    files = [place / _file_of(process, accelerator.num_processes) for process in range(accelerator.num_processes)]
    own = files[accelerator.process_index]
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({type(error).__name__}). Give another place.") from error
    with naming_full_disk(folder.parent, f"the checkpoint {folder.name}"):
        write_tensors(tensors, own)
        flush(own)
    accelerator.wait_for_everyone()
    return files


def gather_parts(files: Sequence[Path], scratch: Path) -> None:
    """Move what the processes have written into the folder of a checkpoint that is about to be.

    Raises:
        InputError: a file is not there, since its process writes to another disk.
    """
    for path in files:
        try:
            path.rename(scratch / path.name)
        except FileNotFoundError as error:
            raise InputError(
                f"A process has written {path.name} where the first one does not see it. Give out= as a folder on a "
                "disk that all of them share."
            ) from error
    files[0].parent.rmdir()


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a checkpoint, each whole, and read when it is asked for.

    Args:
        folder: of the checkpoint, found to be whole.
        processes: that wrote it.
    """

    def __init__(self, folder: Path, processes: int) -> None:
        names = [WHOLE]
        if not (folder / WHOLE).is_file():
            names = [_file_of(process, processes) for process in range(processes)]
        self._files = [safe_open(folder / name, "pt") for name in names]
        self._names = [set(file.keys()) for file in self._files]

    def __getitem__(self, name: str) -> Tensor:
        parts = [file.get_tensor(name) for file, names in zip(self._files, self._names, strict=True) if name in names]
        if not parts:
            raise KeyError(name)
        # A copy: what is read lies in the file itself, which could then not go when its checkpoint is too old.
        return parts[0].clone() if len(parts) == 1 else torch.cat(parts)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._names[0]))

    def __len__(self) -> int:
        return len(self._names[0])
