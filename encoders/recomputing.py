"""Activations that are computed again for the gradient instead of being kept: memory for time.

Source: Chen et al., Training deep nets with sublinear memory cost, 2016.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def recompute_images(backbone: nn.Module, on: bool) -> bool:
    """Have a timm network keep what goes into its blocks alone, or all again; whether it can."""
    try:
        backbone.set_grad_checkpointing(on)
    except (AssertionError, AttributeError):
        return False
    return True


def recompute_notes(transformer: nn.Module, on: bool) -> bool:
    """The same of a Hugging Face encoder's layers."""
    if not transformer.supports_gradient_checkpointing:
        return False
    # Later versions have another name for it, and warn of this one.
    kind = "activation" if hasattr(transformer, "activation_checkpointing_enable") else "gradient"
    if not on:
        getattr(transformer, f"{kind}_checkpointing_disable")()
        return True
    getattr(transformer, f"{kind}_checkpointing_enable")({"use_reentrant": False})
    # Gradients find their way without: it would have them go through a network of which nothing learns yet.
    transformer.disable_input_require_grads()
    return True


@contextmanager
def statistics_stay(network: nn.Module) -> Iterator[None]:
    """What is computed again moves no statistics of batch norms a second time."""
    norms = [own for own in network.modules() if isinstance(own, _BatchNorm) and own.track_running_stats]
    before = [(layer.momentum, layer.num_batches_tracked.clone()) for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, (momentum, batches) in zip(norms, before, strict=True):
            layer.momentum = momentum
            layer.num_batches_tracked.copy_(batches)
