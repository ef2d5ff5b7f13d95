"""Networks compiled by `torch.compile`, part by part, in place: names of weights stay as they are."""

from __future__ import annotations

import os
import shutil

import torch
from torch import nn

from ..datasets.errors import InputError
from .tuning import layers_of

_BACKEND = "inductor"
_COMPILERS = {"C": ("CC", ("gcc", "clang")), "C++": ("CXX", ("g++", "clang++", "c++"))}
"""By language: the variable that names a compiler, and which are looked for."""


def compile_network(network: nn.Module, on: bool) -> None:
    """Compile the layers of a transformer, which share one compiled function, or the stages of a convolutional network.

    What is compiled takes batches of any size and notes of any length.

    Args:
        network: it stays what it is, and is only called otherwise.
        on: False undoes it.
    """
    for part in layers_of(network) or network.children():
        if on:
            part.compile(dynamic=True, backend=_BACKEND)
        else:
            # There is no other way back; the module does the same when it is pickled.
            part._compiled_call_impl = None


def require_compiler() -> None:
    """Raise `InputError` unless PyTorch finds what it compiles with."""
    if _BACKEND != "inductor":
        return
    # On a GPU, Triton needs one for what starts its kernels, though not for these themselves.
    language = "C" if torch.cuda.is_available() else "C++"
    variable, usual = _COMPILERS[language]
    names = [os.environ[variable]] if os.environ.get(variable) else usual
    if not any(map(shutil.which, names)):
        raise InputError(
            f"compile=True needs a {language} compiler, and there is none ({', '.join(names)}). Install one, or leave "
            "compile out."
        )
