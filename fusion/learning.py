"""Which weights of a model learn, from which epoch on, and how fast; and their moving average."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..encoders import Tuned
from .model import FusionModel
from .sharding import OwnParts, own_part


def thaw(model: FusionModel, epoch: int | None) -> None:
    """Let learn what learns in an epoch, from 0; None for everything that ever learns."""
    for _, encoder in tuned_encoders(model):
        encoder.thaw(epoch)


def tuned_encoders(model: FusionModel) -> Iterator[tuple[str, Tuned]]:
    """The encoders around networks that may be pretrained, by modality."""
    yield from ((name, encoder) for name, encoder in model.encoders.items() if isinstance(encoder, Tuned))


def fixed_weights(model: FusionModel) -> frozenset[str]:
    """Names of the weights that never learn; while everything that ever learns does."""
    return frozenset(name for name, weight in model.named_parameters() if not weight.requires_grad)


def tell_tuning(model: FusionModel, epochs: int) -> tuple[str, ...]:
    """How each network is tuned and how many of its weights learn in so many epochs, one sentence an encoder."""
    told = []
    for name, encoder in tuned_encoders(model):
        weights = list(encoder.parameters())
        # What is unfrozen by depth may never be reached.
        encoder.thaw(epochs - 1)
        learning = sum(weight.numel() for weight in weights if weight.requires_grad)
        encoder.thaw(None)
        shares = {share for _, share in encoder.rates()}
        slower = f", at {_span(shares)} of the learning rate" if shares - {1} else ""
        whole = sum(weight.numel() for weight in weights)
        told.append(f"{name}: {encoder.tuning}; {learning:,} of {whole:,} weights learn{slower}")
    return tuple(told)


def recompute(model: FusionModel, on: bool) -> tuple[str, ...]:
    """Have networks that learn compute their activations again for the gradient; which of them cannot."""
    cannot = [name for name, encoder in tuned_encoders(model) if not encoder.recompute(on)]
    return tuple(f"{name}: activations are kept, since this network cannot compute them again" for name in cannot if on)


def _span(shares: set[float]) -> str:
    low, high = min(shares), max(shares)
    return f"{low:g}" if low == high else f"{low:.2g} to {high:.2g}"


def make_optimizer(
    model: FusionModel, name: str, rate: float, decay: float, *, parts: OwnParts | None = None
) -> torch.optim.Optimizer:
    """The rule by which all learn that ever do: weight matrices decay, and networks learn at their share of the rate.

    Args:
        model: built; everything that ever learns does.
        name: "adamw" or "sgd" (momentum 0.9).
        rate: the highest of the learning rate.
        decay: of weight matrices; biases and norms are spared.
        parts: of the weights, where these are divided among processes.
    """
    shares = {id(weight): share for _, encoder in tuned_encoders(model) for weight, share in encoder.rates()}
    # First those of the whole rate, whose rate a history tells.
    groups: dict[tuple[float, bool], dict[str, object]] = {
        (1.0, True): {"params": [], "weight_decay": decay, "lr": rate},
        (1.0, False): {"params": [], "weight_decay": 0.0, "lr": rate},
    }
    for weight in model.parameters():
        if weight.requires_grad:
            share, decays = shares.get(id(weight), 1.0), weight.ndim > 1
            fresh = {"params": [], "weight_decay": decay if decays else 0.0, "lr": rate * share}
            groups.setdefault((share, decays), fresh)["params"].append(parts.of(weight) if parts else weight)
    # One kernel for all weights: of small networks, a launch a weight and a moment is a tenth of a step.
    if name == "sgd":
        # Not fused: that kernel fails where a weight has no momentum yet, its modality absent from all batches so far.
        rule = torch.optim.SGD(groups.values(), lr=rate, momentum=0.9)
    else:
        rule = torch.optim.AdamW(groups.values(), lr=rate, fused=True)
    rule.register_load_state_dict_post_hook(_lay_out_moments)
    return rule


def _lay_out_moments(rule: torch.optim.Optimizer) -> None:
    """Bring moments that were read from a file into the memory layout of their weights.

    The fused kernel walks through memory as it lies, and the weights of convolutions lie channels last.
    """
    for weight, moments in rule.state.items():
        for name, value in moments.items():
            if torch.is_tensor(value) and value.shape == weight.shape and value.stride() != weight.stride():
                moments[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)


def make_schedule(rule: torch.optim.Optimizer, steps: int, warmup: float) -> torch.optim.lr_scheduler.LambdaLR:
    """The share of the learning rate over so many updates: it rises from 0, and then falls as a cosine."""
    rising = max(1, round(warmup * steps))

    def share_of_rate(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * min(1, (step - rising) / max(1, steps - rising))))

    return torch.optim.lr_scheduler.LambdaLR(rule, share_of_rate)


class MovingAverage(nn.Module):
    """An exponential moving average of a model's weights and statistics; those that never learn are the model's own.

    It forgets its beginning quickly: short runs do not keep random weights.

    Args:
        model: built, and on the device on which it is trained.
        decay: an update, of what was kept; 0 keeps the last weights themselves.
        kept: where the average is kept, if not in a copy: a model of the same weights, divided as this one is.
    """

    def __init__(self, model: FusionModel, decay: float, *, kept: FusionModel | None = None) -> None:
        super().__init__()
        self.module, self.decay = copy.deepcopy(model) if kept is None else kept, decay
        self.register_buffer("n_averaged", torch.tensor(0))
        fixed, weights = fixed_weights(model), dict(model.named_parameters())
        if kept is None:
            for name in fixed:
                self.module.get_parameter(name).data = weights[name].data
            for layer in self.module.modules():
                if isinstance(layer, nn.RNNBase):
                    # In a copy its weights lie apart, and a GPU would warn of it and lay them together at every call.
                    layer.flatten_parameters()
        # Found once: walking through all modules at every update takes longer than averaging.
        self._weights = [(own, weights[name]) for name, own in self.module.named_parameters() if name not in fixed]
        modules = zip(self.module.modules(), model.modules(), strict=True)
        self._buffers_of = [(kept._buffers, new._buffers) for kept, new in modules if new._buffers]

    @torch.no_grad()
    def update(self) -> None:
        """Take the model's present weights into the average."""
        updates = int(self.n_averaged)
        own = min(self.decay, (1 + updates) / (10 + updates)) if updates else 0.0
        buffers = (
            (kept[name], value) for kept, new in self._buffers_of for name, value in new.items() if value is not None
        )
        averaged, copied = [], []
        # Of weights that are divided, each process averages its part.
        weights = ((own_part(kept), own_part(new)) for kept, new in self._weights)
        for pair in (*weights, *buffers):
            (averaged if own and pair[0].is_floating_point() else copied).append(pair)
        # All at once: one weight after the other takes longer to call than to compute.
        if averaged:
            get_ema_multi_avg_fn(own)(*map(list, zip(*averaged, strict=True)), self.n_averaged)
        for kept, new in copied:
            kept.copy_(new)
        self.n_averaged += 1


def copied_weights(model: nn.Module, fixed: frozenset[str]) -> dict[str, Tensor]:
    """A model's weights as they are now; of those that never learn, no copy."""
    return {
        name: value.detach() if name in fixed else value.detach().clone() for name, value in model.state_dict().items()
    }
