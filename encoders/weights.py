"""Weights of networks from files and dictionaries: read without running code, and fitted strictly or refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..datasets.errors import InputError

Weights = Mapping[str, Tensor]

_LEARNED = (".weight", ".bias")
"""How the names of parameters end; buffers may be whole numbers."""


def require_weights(pretrained: object) -> None:
    """Raise `InputError` unless this may say where weights are from."""
    if not isinstance(pretrained, (bool, str, Path, Mapping)):
        raise InputError(
            f"pretrained is a {type(pretrained).__name__}; expected True, False, a safetensors file or a state dict."
        )


def read_weights(source: str | Path | Mapping[str, object]) -> dict[str, Tensor]:
    """The weights of a safetensors file or a state dict; floating-point numbers as float32.

    Raises:
        InputError: the file is missing, cut short or of another format; or a value is no tensor in memory, or its
            numbers are not finite, or whole, as of a quantised network.
    """
    if isinstance(source, Mapping):
        weights = dict(source)
        strange = [name for name, value in weights.items() if not (isinstance(name, str) and _is_in_memory(value))]
        if strange or not weights:
            raise InputError(
                f"The state dict has {len(weights)} entries, of which {len(strange)} are no named tensors in memory. "
                "Give what state_dict() of a network gives; of a training checkpoint, the part with the weights."
            )
    else:
        weights = _from_file(Path(source))
    whole = [name for name, value in weights.items() if name.endswith(_LEARNED) and not value.is_floating_point()]
    if whole:
        raise InputError(
            f"Of the weights of {told(source)}, {len(whole)} are {weights[whole[0]].dtype}, as of a quantised network "
            f"(first: {whole[0]}). Give the weights that it was made of, in floating point."
        )
    # Copies: what is trained is not what was given.
    weights = {
        name: value.detach().to(torch.float32 if value.is_floating_point() else value.dtype, copy=True)
        for name, value in weights.items()
    }
    refuse_not_finite(weights, told(source))
    return weights


def _is_in_memory(value: object) -> bool:
    """Whether this is a tensor that has all of its numbers: not sparse, and not a shape alone."""
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta


def _from_file(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise InputError(f"There is no file of weights {path}. Give a safetensors file, a state dict, True or False.")
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise InputError(
            f"The weights in {path} could not be loaded ({type(error).__name__}): the file is cut short, damaged or "
            "no safetensors file. Download or copy it again; of other formats, which can run code when they are "
            "read, make a safetensors file where they come from."
        ) from error


def told(source: object) -> str:
    """A source of weights in a message."""
    return "the state dict" if isinstance(source, Mapping) else repr(str(source))


def refuse_not_finite(weights: Weights, source: str) -> None:
    """Raise `InputError` if a weight is not a number."""
    bad = [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise InputError(
            f"Of the weights of {source}, {len(bad)} hold values that are not finite (first: {bad[0]}). "
            "Take them from their source again."
        )


def misfit(own: Weights, given: Weights, *, spare: Iterable[str] = ()) -> str:
    """What of given weights does not match a network's own, counted and with the first names; blank if all does.

    Args:
        own: the network's state dict.
        given: the weights that are to be put in.
        spare: beginnings of names that may be given without need, such as a classifier's.
    """
    # Counts of batches, which torch did not always keep, change nothing.
    free = ("num_batches_tracked",)
    missing = [name for name in own if name not in given and not name.endswith(free)]
    unexpected = [name for name in given if name not in own and not name.endswith(free)]
    unexpected = [name for name in unexpected if not name.startswith(tuple(spare))]
    other = [
        f"{name} {list(given[name].shape)} for {list(own[name].shape)}"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": other}
    return tell_misfit(kinds, len(own))


def tell_misfit(kinds: Mapping[str, list[str]], whole: int) -> str:
    """Names by kind of misfit, as `of 120 tensors: 3 missing (first: ...)`; blank where there is none."""
    counted = [f"{len(names)} {kind} (first: {names[0]})" for kind, names in kinds.items() if names]
    return f"of {whole} tensors: {', '.join(counted)}" if counted else ""


def put_in(network: torch.nn.Module, weights: Weights) -> None:
    """Take over given weights that were found to match."""
    own = network.state_dict()
    network.load_state_dict({name: weights.get(name, value) for name, value in own.items()})
