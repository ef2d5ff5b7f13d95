"""Convolutional networks of timm as feature extractors: made, given weights, and folded to grey images."""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from ..datasets.errors import InputError
from .weights import Weights, misfit, put_in, read_weights, refuse_not_finite, told

SERVES = (
    "Convolutional networks serve: resnet, resnext, wide_resnet, seresnet, regnetx, regnety, densenet, efficientnet, "
    "tf_efficientnet, mobilenetv2, mobilenetv3, mnasnet, vgg, dla, convnext and convnextv2, such as resnet18, "
    "resnet50, densenet121, efficientnet_b0 or convnext_tiny"
)

# Arguments of timm.create_model that fetch weights, some of them as pickles, which can run code.
_WEIGHT_SOURCES = ("checkpoint", "pretrained", "cache", "hf", "url", "file", "state_dict")
# What timm's modules call the function that brings weights of other makers to their own names.
_TRANSLATORS = ("checkpoint_filter_fn", "_filter_fn", "_filter_torchvision_pretrained")
_WORD = re.compile(r"\w*", re.ASCII)
_COLOURS = 3
# Of the largest feature: what sums in another order differ by, and much less than a wrong weight changes.
_ROUNDING = 1e-4


class ImageNetwork(NamedTuple):
    """A feature extractor, and what pixels are brought to before it."""

    backbone: nn.Module
    planes: int
    """Of its input: as many as channels; or, of grey images, also 2 (the image and ones) or 3 (three scalings)."""
    mean: list[float]
    std: list[float]
    """Pixels in [0, 1] less the mean, by the standard deviation; one number, or one a channel."""


def architecture_of(model: str) -> dict[str, object]:
    """Name and arguments of a timm model, or of that in a local folder.

    Raises:
        InputError: the folder names none.
    """
    folder = Path(model)
    if not folder.is_dir():
        return {"name": model, "arguments": {}}
    try:
        config = json.loads((folder / "config.json").read_text())
        return {"name": str(config["architecture"]), "arguments": dict(config.get("model_args", {}))}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"The folder {folder} has no config.json that names a timm architecture. Give a folder as timm's "
            "save_for_hf or a hub download writes it, or the name of a timm model."
        ) from error


def fresh_backbone(architecture: Mapping[str, object], planes: int) -> nn.Module:
    """A network at random that gives feature maps.

    Raises:
        InputError: timm has no such model, it gives no feature maps, or its description is unsafe.
    """
    return _create(architecture, planes)


def pretrained_network(
    model: str,
    architecture: Mapping[str, object],
    weights: bool | str | Path | Mapping[str, object],
    channels: int,
    size: int,
) -> ImageNetwork:
    """A network with published or given weights; folded to grey images if they are for coloured ones.

    Args:
        model: name or local folder.
        architecture: as `architecture_of` tells it.
        weights: True for those of the model, or a safetensors file, or a state dict.
        channels: of the images.
        size: side of the images in pixels.

    Raises:
        InputError: the weights cannot be reached or read, or are not those of this network.
    """
    folder = Path(model)
    if weights is True and folder.is_dir():
        weights = _file_in(folder)
    if weights is True:
        backbone, planes, source = _published(architecture, model), _COLOURS, repr(model)
    else:
        given, source = read_weights(weights), told(weights)
        backbone, planes = _with_weights(architecture, given, source, channels)
    refuse_not_finite(backbone.state_dict(), source)
    mean, std = _scaling(backbone, folder)
    if planes == channels == 1:
        # How much each colour counted when this was made for grey images is not known.
        mean, std = [sum(mean) / len(mean)], [sum(std) / len(std)]
    if planes == channels:
        return ImageNetwork(backbone, planes, mean, std)
    return _folded(backbone, architecture, mean, std, size)


def _file_in(folder: Path) -> Path:
    if not (folder / "model.safetensors").is_file():
        raise InputError(
            f"The folder {folder} has no model.safetensors. Other files of weights can run code when they are "
            "read: download the model again with its safetensors, or save it with timm's save_for_hf."
        )
    return folder / "model.safetensors"


def _published(architecture: Mapping[str, object], model: str) -> nn.Module:
    """A network for coloured images with the weights that timm has for it."""
    from huggingface_hub.errors import HfHubHTTPError
    from safetensors import SafetensorError

    # The same random numbers, drawn once without the weights and once before they are put in.
    with torch.random.fork_rng(devices=[]):
        drawn = _create(architecture, _COLOURS).state_dict()
    try:
        backbone = _create(architecture, _COLOURS, pretrained=True)
    except (OSError, RuntimeError, ValueError, HfHubHTTPError, UnpicklingError, SafetensorError) as error:
        raise InputError(
            f"The weights of {model!r} could not be loaded ({type(error).__name__}). Without a network, "
            "give a local folder of the model, or pretrained=False to start at random."
        ) from error
    # timm says nothing of layers that the file does not have; they are still as they were drawn.
    random = [name for name, own in backbone.named_parameters() if own.ndim > 1 and torch.equal(own, drawn[name])]
    if random:
        raise InputError(
            f"{model!r} has no weights for {random[0]} and {len(random) - 1} more layers. Give the weights "
            "themselves as pretrained=, or pretrained=False to start at random."
        )
    return backbone


def _with_weights(
    architecture: Mapping[str, object], given: Weights, source: str, channels: int
) -> tuple[nn.Module, int]:
    """A network with all of the given weights, and for how many channels they are."""
    reports = []
    for planes in (_COLOURS, 1)[: 1 if channels == _COLOURS else 2]:
        backbone = _create(architecture, planes)
        for weights in (given, *_translated(backbone, given)):
            reports.append(misfit(backbone.state_dict(), weights, spare=_classifier(backbone)))
            if not reports[-1]:
                put_in(backbone, weights)
                return backbone, planes
    kind = "grey" if channels == 1 else "coloured"
    raise InputError(
        f"The weights of {source} are not those of {architecture['name']!r} for {kind} images: "
        f"{min(reports, key=len)}. Give the weights of this network, the network of these weights, or the number of "
        "channels that they are for."
    )


def _translated(backbone: nn.Module, given: Weights) -> Iterator[Weights]:
    """The weights by the names that timm gives layers today, where it knows of others, such as torchvision's."""
    module = sys.modules[type(backbone).__module__]
    for function in (getattr(module, name) for name in _TRANSLATORS if hasattr(module, name)):
        for arguments in ((dict(given), backbone), (dict(given),)):
            # It is written for the files that it knows; of others, anything may come.
            with suppress(TypeError, KeyError, ValueError, IndexError, AttributeError, RuntimeError):
                yield function(*arguments)
                break


def _classifier(backbone: nn.Module) -> list[str]:
    """How the names of the layer begin that a feature extractor does without."""
    names = backbone.pretrained_cfg.get("classifier") or ()
    return [f"{name}." for name in ((names,) if isinstance(names, str) else names)]


def _scaling(backbone: nn.Module, folder: Path) -> tuple[list[float], list[float]]:
    """Mean and standard deviation, one a channel, that pixels are brought to."""
    stated: dict[str, object] = dict(backbone.pretrained_cfg)
    try:
        if folder.is_dir():
            config = json.loads((folder / "config.json").read_text())
            stated |= config | dict(config.get("pretrained_cfg") or {})
        mean, std = (torch.tensor(stated[name], dtype=torch.float64).flatten() for name in ("mean", "std"))
        if len(mean) not in (1, _COLOURS) or len(mean) != len(std) or not (mean.isfinite() & (std > 0)).all():
            raise ValueError
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"The scaling of the image network is mean {stated.get('mean')!r} and std {stated.get('std')!r}; expected "
            "a number for each colour. Check pretrained_cfg in its config.json."
        ) from error
    return mean.expand(_COLOURS).tolist(), std.expand(_COLOURS).tolist()


def _folded(
    colour: nn.Module, architecture: Mapping[str, object], mean: list[float], std: list[float], size: int
) -> ImageNetwork:
    """A network that makes of a grey image x what `colour` makes of three copies of it, each scaled its own way.

    A convolution is linear in its input: with weights w of channel c, it sees Σ w (x - mean) / std. That
    is one plane, (x - m) / s for any m and s, under the weights s Σ w / std; and one of ones under the
    weights Σ w (m - mean) / std, which vanish where all colours are scaled alike. The plane of ones ends
    where the image does, so that the zeros around both stand for what they stood for in colour.

    Where the first layer is not plainly linear in its weights (some standardise them) or sees pixels in
    blocks, three planes stay.
    """
    whole = ImageNetwork(colour, _COLOURS, mean, std)
    feature_map(colour, _COLOURS, size, str(architecture["name"]))
    means, stds = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
    m, s = means.mean(), stds.mean()
    scales, shifts = s / stds, (m - means) / stds
    planes = 1 if shifts.abs().max() < 1e-9 else 2
    grey = _create(architecture, planes)
    weights, shapes = colour.state_dict(), {name: own.shape for name, own in grey.state_dict().items()}
    for name, own in weights.items():
        if own.shape != shapes[name]:
            if own.ndim != 4 or own.shape[1] != _COLOURS:
                return whole
            parts = [(own.double() * by.view(1, -1, 1, 1)).sum(1, keepdim=True) for by in (scales, shifts)]
            weights[name] = torch.cat(parts[:planes], 1).to(own.dtype)
    grey.load_state_dict(weights)
    folded = ImageNetwork(grey, planes, [float(m)], [float(s)])
    return folded if _see_the_same(folded, whole, size) else whole


@torch.no_grad()
def _see_the_same(folded: ImageNetwork, whole: ImageNetwork, size: int) -> bool:
    """Whether two networks make the same of a grey image, up to rounding."""
    image = torch.linspace(0, 1, size).expand(1, 1, size, size).clone()
    image[..., size // 2 :, :] = image[..., size // 2 :, :].flip(-1)
    seen = []
    for network in (folded, whole):
        mean, std = (torch.tensor(own).view(-1, 1, 1) for own in (network.mean, network.std))
        was_training = network.backbone.training
        seen.append(network.backbone.eval().forward_features(scaled(image, mean, std, network.planes)))
        network.backbone.train(was_training)
    one, other = seen
    return bool((one - other).abs().max() <= _ROUNDING * other.abs().max())


def scaled(pixels: Tensor, mean: Tensor, std: Tensor, planes: int) -> Tensor:
    """Pixels in [0, 1] as a network's input, `[image, plane, height, width]`."""
    pixels = (pixels - mean) / std
    return torch.cat([pixels, torch.ones_like(pixels)], 1) if planes == 2 else pixels


def pooled(
    features: Float[Tensor, "image channel height width"], side: int
) -> Float[Tensor, "image channel side side"]:
    """Means over a grid of `side × side` cells, which overlap where the map cannot be divided evenly."""
    if not torch.are_deterministic_algorithms_enabled():
        return functional.adaptive_avg_pool2d(features, side)
    # Its gradient has no deterministic algorithm on a GPU; that of a mean over rows and then over columns has.
    for dim in (2, 3):
        size = features.shape[dim]
        spans = [(place * size // side, -(-(place + 1) * size // side)) for place in range(side)]
        features = torch.stack([features.narrow(dim, first, end - first).mean(dim) for first, end in spans], dim)
    return features


def _refuse_unsafe(arguments: Mapping[str, object]) -> None:
    """Raise `InputError` unless arguments from a file describe layers and nothing else.

    timm passes what it is given to whatever takes it, and one of those is a loader of pickles. So
    there may only be numbers, truth values, single words (in which no path can be written) and lists
    of them, under names that ask for no weights.
    """
    for name, value in arguments.items():
        parts = value if isinstance(value, (list, tuple)) else [value]
        plain = all(
            part is None or isinstance(part, (bool, int, float)) or (isinstance(part, str) and _WORD.fullmatch(part))
            for part in parts
        )
        if not plain or not _WORD.fullmatch(name) or name.startswith(_WEIGHT_SOURCES):
            raise InputError(
                f"The image network's description sets {name!r}, which is no size or choice of its layers. "
                "Weights come from the model's own file: remove it from model_args, or take the folder from its source."
            )


def _create(architecture: Mapping[str, object], planes: int, *, pretrained: bool = False) -> nn.Module:
    """A timm model that gives feature maps.

    Raises:
        InputError: timm has no such model, it gives no feature maps, or its description is unsafe.
    """
    import timm

    name = str(architecture["name"])
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=5, cutoff=0.5)
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        raise InputError(f"{name!r} is neither a timm model nor a local folder.{hint} {SERVES}.")
    _refuse_unsafe(architecture["arguments"])
    arguments = dict(architecture["arguments"]) | {"in_chans": planes, "num_classes": 0, "global_pool": ""}
    try:
        return timm.create_model(name, pretrained=pretrained, **arguments)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        if pretrained:
            raise
        raise InputError(
            f"timm cannot make a feature extractor of {name!r} for {planes} channel(s) ({error}). {SERVES}; "
            "in a folder, check model_args in its config.json."
        ) from error


@torch.no_grad()
def feature_map(backbone: nn.Module, planes: int, size: int, model: str) -> tuple[int, int]:
    """Side and channels of the last feature map.

    Raises:
        InputError: the model gives no feature map, or has a batch norm that a single image would
            give one value a channel, which has no variance to train on.
    """
    alone: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        return lambda _module, given, _result: alone.append(name) if given[0][0, 0].numel() < 2 else None

    norms = {name: layer for name, layer in backbone.named_modules() if isinstance(layer, _BatchNorm)}
    watching = [layer.register_forward_hook(watch(name)) for name, layer in norms.items()]
    was_training = backbone.training
    blank = torch.zeros(1, planes, size, size)
    try:
        features = backbone.eval().forward_features(blank)
    except (AssertionError, RuntimeError) as error:
        raise InputError(
            f"{model!r} does not take images of {size} pixels. Give size= as the model was made for."
        ) from error
    finally:
        backbone.train(was_training)
        for hook in watching:
            hook.remove()
    if features.ndim != 4 or features.shape[-1] != features.shape[-2]:
        raise InputError(
            f"{model!r} gives features of shape {tuple(features.shape[1:])}; expected a map [channel, height, width]. "
            f"{SERVES}."
        )
    if features.shape[-1] < 2:
        raise InputError(
            f"{model!r} leaves a feature map of one cell from images of {size} pixels. Give a larger size=."
        )
    if alone:
        raise InputError(
            f"{model!r} normalises a single value a channel ({alone[0]}) when an image of {size} pixels is "
            f"alone in its batch, so it cannot be trained. {SERVES}."
        )
    return features.shape[-1], features.shape[1]
