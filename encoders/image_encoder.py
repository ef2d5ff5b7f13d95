"""Images to tokens: any timm convolutional network, one token a region of each image."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from ..datasets.batch import Images
from ..datasets.cohort import Cohort
from ..datasets.errors import InputError
from ..datasets.image_reader import ImageReader
from .augmentation import jitter_images
from .tokens import Tokens, gather_tokens, no_tokens

_SUCH_AS = ", such as resnet18, resnet50, densenet121, efficientnet_b0 or convnext_tiny"

# Arguments of timm.create_model that fetch weights, some of them as pickles, which can run code.
_WEIGHT_SOURCES = ("checkpoint", "pretrained", "cache", "hf", "url", "file", "state_dict")
_WORD = re.compile(r"\w*", re.ASCII)


class ImageEncoder(nn.Module):
    """A timm CNN whose last feature map, pooled to a grid, becomes the tokens.

    Args:
        model: name of a timm model, or a local folder that timm or a hub download has written
            (`config.json` and weights).
        pretrained: start from the model's published weights rather than at random.
        size: side in pixels of the square that images are brought to.
        channels: 1 for grey (the first convolution's weights are summed), 3 for colour.
        most: files a sample at most; the most recent ones stay.
        slices: images that are taken of a volume, evenly spread through it.
        grid: the feature map is pooled to at most `grid × grid` tokens an image.
        augment: in training, turn, shift and scale images a little and vary their contrast; never flip.

    Raises:
        InputError: no such model or folder, or one that is not a CNN feature extractor (when built).
    """

    def __init__(
        self,
        model: str | Path = "resnet18",
        *,
        pretrained: bool = False,
        size: int = 224,
        channels: int = 1,
        most: int = 4,
        slices: int = 1,
        grid: int = 4,
        augment: bool = True,
    ) -> None:
        super().__init__()
        if grid < 1:
            raise InputError(f"grid is {grid}; expected at least 1 token along each side of an image.")
        self.model, self.pretrained, self.grid, self.augment = str(model), pretrained, grid, augment
        self.reader = ImageReader(size, channels=channels, most=most, slices=slices)
        self.architecture: dict[str, object] = {}
        self.width = 0

    def build(self, cohort: Cohort) -> None:
        self.reader.fit(cohort)
        folder = Path(self.model)
        if folder.is_dir():
            self.architecture = _architecture_of_folder(folder)
        else:
            self.architecture = {"name": self.model, "arguments": {}}
        source = f"local-dir:{folder}" if folder.is_dir() else self.model
        if self.pretrained and folder.is_dir() and not (folder / "model.safetensors").is_file():
            raise InputError(
                f"The folder {folder} has no model.safetensors. Other files of weights can run code when they are "
                "read: download the model again with its safetensors, or save it with timm's save_for_hf."
            )
        self._make_layers(source if self.pretrained else None)

    def describe(self) -> dict[str, object]:
        settings = {"model": self.model, "pretrained": self.pretrained, "grid": self.grid, "augment": self.augment}
        reader = {name: getattr(self.reader, name) for name in ("size", "channels", "most", "slices")}
        return {"settings": settings | reader, "reader": self.reader.state(), "architecture": self.architecture}

    def rebuild(self, description: Mapping[str, object]) -> None:
        self.reader.restore(description["reader"])
        self.architecture = dict(description["architecture"])
        self._make_layers(None)

    def _make_layers(self, weights: str | None) -> None:
        """Create the network, with the published weights of `weights` or at random."""
        self.backbone = _backbone(self.architecture, weights, self.reader.channels)
        side, self.width = _feature_map(self.backbone, self.reader, self.model)
        self.backbone.to(memory_format=torch.channels_last)
        self.tokens_per_side = min(self.grid, side)
        self.position = nn.Parameter(torch.zeros(self.tokens_per_side**2, self.width))
        for name, fitted in (("mean", self.reader.mean_), ("std", self.reader.std_)):
            scale = torch.tensor([fitted] if weights is None else self.backbone.pretrained_cfg[name])
            # Grey images meet the average of the three colour channels' scaling.
            scale = scale if len(scale) == self.reader.channels else scale.mean().expand(self.reader.channels)
            self.register_buffer(name, scale.float().reshape(-1, 1, 1).clone())

    def forward(self, part: Images, patients: int) -> Tokens:
        # Nobody has an image: the network is not run, and no batch norm meets a picture that is not there.
        if not len(part.patient):
            return no_tokens(patients, self.width, self.position)

        # Integers travelled; floats are made here, on the device.
        pixels = part.pixels.float() / 255
        if self.training and self.augment:
            pixels = jitter_images(pixels)
        pixels = (pixels - self.mean) / self.std
        features = self.backbone.forward_features(pixels.contiguous(memory_format=torch.channels_last))

        # One token a cell of the grid, each with the hour of its image.
        cells = functional.adaptive_avg_pool2d(features, self.tokens_per_side).flatten(2).transpose(1, 2)
        cells = cells + self.position
        each = cells.shape[1]
        return gather_tokens(
            cells.flatten(0, 1),
            part.hours.repeat_interleave(each),
            part.patient.repeat_interleave(each),
            patients,
        )


def _architecture_of_folder(folder: Path) -> dict[str, object]:
    try:
        config = json.loads((folder / "config.json").read_text())
        return {"name": str(config["architecture"]), "arguments": dict(config.get("model_args", {}))}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"The folder {folder} has no config.json that names a timm architecture. Give a folder as timm's "
            "save_for_hf or a hub download writes it, or the name of a timm model."
        ) from error


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


def _backbone(architecture: Mapping[str, object], weights: str | None, channels: int) -> nn.Module:
    import timm
    from huggingface_hub.errors import HfHubHTTPError
    from safetensors import SafetensorError

    name = str(architecture["name"])
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('.')[0][:6]}*")[:5]
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        raise InputError(f"{name!r} is neither a timm model nor a local folder.{hint}")
    _refuse_unsafe(architecture["arguments"])
    ours = {"in_chans": channels, "num_classes": 0, "global_pool": ""}
    arguments = dict(architecture["arguments"]) | ours
    try:
        if weights is None:
            return timm.create_model(name, **arguments)
        # The same random numbers, drawn once without the weights and once before they are put in.
        with torch.random.fork_rng(devices=[]):
            drawn = timm.create_model(weights, **arguments).state_dict()
        backbone = timm.create_model(weights, pretrained=True, **arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise InputError(
            f"timm cannot make a feature extractor for {channels} channels of {name!r} ({error}). Give a "
            f"convolutional network{_SUCH_AS}; in a folder, check model_args in its config.json."
        ) from error
    except (OSError, RuntimeError, HfHubHTTPError, UnpicklingError, SafetensorError) as error:
        raise InputError(
            f"The weights of {weights or name!r} could not be loaded ({type(error).__name__}). Without a network, "
            "give a local folder of the model, or pretrained=False to start at random."
        ) from error
    # timm says nothing of layers that the file does not have; they are still as they were drawn.
    random = [name for name, own in backbone.named_parameters() if own.ndim > 1 and torch.equal(own, drawn[name])]
    if random:
        raise InputError(
            f"{weights!r} has no weights for {random[0]} and {len(random) - 1} more layers of {name!r}. Give weights "
            "as timm writes them, or pretrained=False to start at random."
        )
    return backbone


@torch.no_grad()
def _feature_map(backbone: nn.Module, reader: ImageReader, model: str) -> tuple[int, int]:
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
    blank = torch.zeros(1, reader.channels, reader.size, reader.size)
    try:
        features = backbone.eval().forward_features(blank)
    except (AssertionError, RuntimeError) as error:
        raise InputError(
            f"{model!r} does not take images of {reader.size} pixels. Give size= as the model was made for."
        ) from error
    finally:
        backbone.train(was_training)
        for hook in watching:
            hook.remove()
    if features.ndim != 4 or features.shape[-1] != features.shape[-2]:
        raise InputError(
            f"{model!r} gives features of shape {tuple(features.shape[1:])}; expected a map [channel, height, width]. "
            f"Give a convolutional network{_SUCH_AS}."
        )
    if features.shape[-1] < 2:
        raise InputError(
            f"{model!r} leaves a feature map of one cell from images of {reader.size} pixels. Give a larger size=."
        )
    if alone:
        raise InputError(
            f"{model!r} normalises a single value a channel ({alone[0]}) when an image of {reader.size} pixels is "
            f"alone in its batch, so it cannot be trained. Give another network{_SUCH_AS}."
        )
    return features.shape[-1], features.shape[1]
