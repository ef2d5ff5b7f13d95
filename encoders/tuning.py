"""How a pretrained network is tuned: as a whole, not at all, by depth, or by adapters beside its layers."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from ..datasets.batch import Part
from ..datasets.errors import InputError
from .tokens import Encoded

PRETRAINED_RATE = 0.1
"""Share of `fit`'s learning rate at which published weights learn, so that what is fresh beside them can
learn fast: with the default rate of 1e-3 it is 1e-4, the upper end of what BERT's authors use."""
STAGES = 5
"""Parts of equal depth in which gradual unfreezing goes; ResNets and their kin have as many."""
_SCALING = 2.0
# By word: what its number means, which numbers it takes, and the number where none is given.
_WORDS: dict[str, tuple[str, Callable[[float], bool], float | None]] = {
    "full": ("share of the learning rate, above 0 to 1", lambda v: 0 < v <= 1, None),
    "frozen": ("", lambda _: False, None),
    "gradual": ("whole number of epochs a stage, of at least 1", lambda v: v >= 1 and v.is_integer(), 1),
    "layerwise": ("decay a layer, above 0 to 1", lambda v: 0 < v <= 1, 0.8),
    "lora": ("whole number as rank, of at least 1", lambda v: v >= 1 and v.is_integer(), 8),
}


@runtime_checkable
class Tuned(Protocol):
    """An encoder around a network that may be pretrained, and so may learn slowly, late, or not at all."""

    tuning: Tuning

    def rates(self) -> Sequence[tuple[nn.Parameter, float]]:
        """The network's weights that ever learn, each with its share of the learning rate."""

    def thaw(self, epoch: int | None) -> None:
        """Let learn what learns in an epoch, from 0; None for everything that ever learns."""

    def recompute(self, on: bool) -> bool:
        """Have activations computed again for the gradient, or kept again; whether the network can do without them."""

    def compile_network(self, on: bool) -> None:
        """Have the network compiled when it is next run, or run as it is written again."""

    def encoded(self, part: Part) -> Encoded:
        """What the network makes of the rows of a part, each by itself."""

    def identity(self) -> dict[str, object]:
        """What tells its network from another, a hash of its weights among it, as plain JSON values."""


@dataclass(frozen=True)
class Tuning:
    """One way of tuning, as `"lora"` or, with a number, `"lora:16"` writes it.

    - `full`: all weights learn, published ones at a tenth of the rate; the number is another share.
    - `frozen`: none does. Statistics of batch norms stay, dropout is off, nothing is augmented.
    - `gradual`: first none; then, every epoch or so many, a further fifth of the depth, from the last
      layers to the first.
    - `layerwise`: each layer learns more slowly than the one above it, by a factor (0.8).
    - `lora`: low-rank adapters beside linear layers and convolutions learn, of a rank (8).

    Source: Howard and Ruder, Universal language model fine-tuning, ACL 2018 (gradual; there, a layer an
    epoch); Clark et al., ELECTRA, ICLR 2020, appendix B (layerwise); Hu et al., LoRA, ICLR 2022 (there, at
    attention's projections only).
    """

    word: str
    number: float | None

    @classmethod
    def parse(cls, text: str) -> Tuning:
        """From the word, and its number after a colon.

        Raises:
            InputError: no such word, or a number that it does not take.
        """
        word, colon, written = str(text).partition(":")
        if word not in _WORDS:
            raise InputError(f"tuning is {text!r}; expected {', '.join(_WORDS)}, such as tuning='frozen'.")
        meaning, is_right, number = _WORDS[word]
        if not colon:
            return cls(word, number)
        try:
            number = float(written)
        except ValueError:
            number = math.nan
        if not is_right(number):
            raise InputError(f"tuning is {text!r}; expected {word!r} alone{meaning and f', or with a {meaning}'}.")
        return cls(word, number)

    def __str__(self) -> str:
        return self.word if self.number == _WORDS[self.word][2] else f"{self.word}:{self.number:g}"

    @property
    def is_frozen(self) -> bool:
        return self.word == "frozen"

    def prepare(self, network: nn.Module) -> None:
        """Fix the weights that never learn, and add adapters.

        Raises:
            InputError: the network has no layer for adapters of this rank.
        """
        if self.word == "frozen":
            network.requires_grad_(False)
        elif self.word == "lora":
            _add_adapters(network, int(self.number))

    def thaw(self, network: nn.Module, epoch: int | None) -> bool:
        """Let learn what learns in an epoch, None for everything that ever does; whether epochs differ in that."""
        if self.word != "gradual":
            return False
        depths = layer_depths(network)
        count = max(depths.values()) + 1
        stages = min(STAGES, count)
        learning = stages if epoch is None else epoch // int(self.number)
        for name, weight in network.named_parameters():
            weight.requires_grad_(stages - depths[name] * stages // count <= learning)
        return True

    def rates(self, network: nn.Module, *, pretrained: bool) -> list[tuple[nn.Parameter, float]]:
        """The weights that ever learn, each with its share of the learning rate."""
        whole = PRETRAINED_RATE if pretrained else 1.0
        weights = dict(network.named_parameters())
        if self.word == "frozen":
            return []
        if self.word == "lora":
            # Adapters are fresh, whatever is beside them.
            return [(weight, 1.0) for weight in weights.values() if weight.requires_grad]
        if self.word == "layerwise":
            depths = layer_depths(network)
            top = max(depths.values())
            return [(weight, whole * self.number ** (top - depths[name])) for name, weight in weights.items()]
        share = self.number if self.word == "full" and self.number else whole
        return [(weight, share) for weight in weights.values()]


def settle(network: nn.Module) -> None:
    """In training, keep what does not learn as it is in use: batch norms by their statistics.

    Where nothing learns, all of the network is so, dropout too.
    """
    if not any(weight.requires_grad for weight in network.parameters()):
        network.eval()
        return
    for module in network.modules():
        own = list(module.parameters(recurse=False))
        if own and not any(weight.requires_grad for weight in own):
            module.training = False


def layer_depths(network: nn.Module) -> dict[str, int]:
    """How deep each weight lies, from 0 at the input, as timm groups layers, or by a transformer's list of layers."""
    if hasattr(network, "group_matcher"):
        from timm.models import group_parameters

        return group_parameters(network, network.group_matcher(coarse=False), reverse=True)
    prefix = _list_of_layers(network)
    depths, latest = {}, 0
    for name, _ in network.named_parameters():
        if prefix is not None and name.startswith(f"{prefix}."):
            latest = int(name[len(prefix) + 1 :].partition(".")[0]) + 1
        # What stands before the layers lies at the input, what stands after them at the last.
        depths[name] = latest
    return depths


def _list_of_layers(network: nn.Module) -> str | None:
    """The name of a transformer's list of layers: the longest of its lists."""
    lists = {name: len(module) for name, module in network.named_modules() if isinstance(module, nn.ModuleList)}
    return max(lists, key=lists.get, default=None)


def layers_of(network: nn.Module | None) -> Sequence[nn.Module]:
    """The layers of a transformer that runs each of them once; none of any other network."""
    prefix = None if network is None else _list_of_layers(network)
    layers = [] if prefix is None else list(network.get_submodule(prefix))
    # ALBERT has one layer, and runs it again and again.
    return layers if len(layers) > 1 else []


def _add_adapters(network: nn.Module, rank: int) -> None:
    """Put low-rank adapters beside a network's linear layers and convolutions; they alone learn."""
    from peft import LoraConfig, inject_adapter_in_model

    names = list(_wide_layers(network, rank))
    if not names:
        raise InputError(
            f"The network has no linear layer or convolution wider than {rank}, to adapt with that rank. "
            "Give a lower one, as tuning='lora:4', or another tuning."
        )
    pattern = "|".join(map(re.escape, names))
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=int(_SCALING * rank), target_modules=pattern), network)


def _wide_layers(network: nn.Module, rank: int) -> Iterator[str]:
    """Layers that an adapter of lower rank can stand beside; not those with weights or padding of a kind of their own.

    Depthwise convolutions are left out: they have next to no weights.
    """
    for name, layer in network.named_modules():
        if type(layer) is nn.Linear:
            sides = (layer.in_features, layer.out_features)
        elif type(layer) is nn.Conv2d and layer.groups == 1:
            sides = (layer.in_channels, layer.out_channels)
        else:
            continue
        if min(sides) > rank:
            yield name


def weights_hash(network: nn.Module, others: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of a network's weights and statistics, and of other tensors."""
    digest = hashlib.sha256()
    for name, value in (*network.state_dict().items(), *others.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
