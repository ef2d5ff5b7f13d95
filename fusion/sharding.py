"""Weights, gradients and moments divided among the processes (FSDP2), for encoders that one GPU has no room for.

PyTorch's `fully_shard` is called here rather than through Accelerate's plugin: that one is chosen once in a program,
before anything is trained, and then takes over the optimizer and the checkpoints, which are ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ..encoders.tuning import layers_of
from .model import FusionModel
from .processes import is_divided, share_weights

if TYPE_CHECKING:
    from accelerate import Accelerator

    from .checkpoint import TrainingState


def divide(model: FusionModel, accelerator: Accelerator) -> FusionModel:
    """A model of which each process has a part of every weight, put together for as long as it is computed with.

    Layers of transformers are put together one after the other, forwards and backwards; all the rest, much smaller
    as a rule, at once for the whole of a step. So is a network under a budget, which is run as often as a process
    has rows for it, and processes that wait for each other must do so equally often.

    Args:
        model: built; it becomes the one that is returned.
        accelerator: of the processes, several.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for weight in model.parameters():
        # Those of convolutions lie channels last, of which no part can be cut.
        weight.data = weight.data.contiguous()
    for encoder in model.encoders.values():
        for layer in () if getattr(encoder, "budget", None) else layers_of(getattr(encoder, "transformer", None)):
            fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


class OwnParts:
    """This process's parts of a model's weights, as plain weights to an optimizer.

    It would take the divided ones too, but every operation on those is looked up first, which for many small weights
    takes longer than to compute it.

    Args:
        model: divided.
    """

    def __init__(self, model: FusionModel) -> None:
        self._pairs = [(weight, nn.Parameter(weight.to_local())) for weight in model.parameters()]
        self._own = {id(weight): own for weight, own in self._pairs}
        self._divided = {id(own): weight for weight, own in self._pairs}

    def of(self, weight: nn.Parameter) -> nn.Parameter:
        """The part of a divided weight."""
        return self._own[id(weight)]

    def divided(self, own: nn.Parameter) -> nn.Parameter:
        """The weight that a part is of."""
        return self._divided[id(own)]

    def take_gradients(self, accelerator: Accelerator, *, spread: bool) -> None:
        """Take gradients over from the divided weights.

        Args:
            accelerator: of the processes.
            spread: whether, if one process has a gradient that is not finite, all are to have one, as a scaler looks
                for them in its own process alone.
        """
        for weight, own in self._pairs:
            own.grad = None if weight.grad is None else weight.grad.to_local()
            weight.grad = None
        if spread and not math.isfinite(self._norm(accelerator)):
            for gradient in self._gradients():
                gradient.fill_(torch.inf)

    def clip(self, accelerator: Accelerator, most: float) -> float:
        """Shorten the gradients of all processes together to a norm of at most `most`; the norm that they had."""
        norm = self._norm(accelerator)
        clip_grads_with_norm_([own for _, own in self._pairs], most, torch.tensor(norm, device=accelerator.device))
        return norm

    def _gradients(self) -> list[Tensor]:
        return [own.grad for _, own in self._pairs if own.grad is not None]

    def _norm(self, accelerator: Accelerator) -> float:
        return accelerator.reduce(get_total_norm(self._gradients()).square(), "sum").sqrt().item()


def own_part(value: Tensor) -> Tensor:
    """What this process has of a tensor; all of one that is not divided."""
    return value.to_local() if is_divided(value) else value


def divided_like(whole: Tensor, like: Tensor) -> Tensor:
    """A tensor that all processes have whole, divided as another one of its shape is; or whole, if that is not."""
    if not is_divided(like) or whole.shape != like.shape:
        return whole
    from torch.distributed.tensor import distribute_tensor

    # No process sends anything to another: all have it.
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def put_together(weights: Mapping[str, Tensor], model: nn.Module) -> None:
    """Give a whole model weights that are divided; all processes call this together, and each gets all."""
    own = model.state_dict()
    for name, value in weights.items():
        # One after the other, so that no more than one stands beside the model.
        own[name].copy_(value.full_tensor() if is_divided(value) else value)


@contextmanager
def averaged_model(state: TrainingState, accelerator: Accelerator) -> Iterator[FusionModel]:
    """The moving average as a model that every process has whole, and that is the same in all, for validating it."""
    share_weights(accelerator, state.averaged.module)
    if state.whole is None:
        yield state.averaged.module
        return
    put_together(state.averaged.module.state_dict(), state.whole)
    try:
        yield state.whole.to(accelerator.device)
    finally:
        # In training, its place on the device is needed.
        state.whole.cpu()
