"""Images to tokens: any timm convolutional network, one token a region of each image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..datasets.arguments import require_counts, require_truth
from ..datasets.batch import Images
from ..datasets.cohort import Cohort
from ..datasets.errors import InputError
from ..datasets.image_reader import ImageReader
from ..datasets.pixels import WindowChoice
from ..datasets.prepared import Packed
from .augmentation import jitter_images
from .budget import StudyAttention, detailed_entries, encoded_in_turns, in_detail
from .compiling import compile_network
from .image_network import (
    ImageNetwork,
    architecture_of,
    feature_map,
    fresh_backbone,
    pooled,
    pretrained_network,
    scaled,
)
from .recomputing import recompute_images
from .tokens import Encoded, Tokens, gather_tokens, no_tokens
from .tuning import Tuning, settle, weights_hash
from .weights import require_weights


class ImageEncoder(nn.Module):
    """A timm CNN whose last feature map, pooled to a grid, becomes the tokens.

    A pretrained network for coloured images is folded exactly to grey ones: it gives the features that
    it gives of three copies.

    Args:
        model: name of a timm model, or a local folder that timm or a hub download has written
            (`config.json` and weights).
        pretrained: start from the model's published weights (True), a safetensors file or a state dict
            rather than at random.
        size: side in pixels of the square that images are brought to.
        channels: 1 for grey, 3 for colour.
        most: files a sample at most; the most recent ones stay.
        slices: images that are taken of a volume, evenly spread through it.
        window: of every image, as `read_image` takes it: (center, width) in modality values, for CT "lung",
            "mediastinum", "brain" or "bone", or an index among a file's windows; None for each file's own.
            A file that takes no such window (colours, a JPEG, by name what is no CT) is an error that names it.
        grid: the feature map is pooled to at most `grid × grid` tokens an image.
        budget: tokens a sample at most, at least one an image. The most recent images keep all of theirs, and
            each of the others becomes one, with its hour; what the images say in sum is attention over them.
            They are encoded a few at a time, in bounded memory, however many there are. None: all keep theirs.
        augment: in training, turn, shift and scale images a little and vary their contrast; never flip.
            A frozen network sees every image as it is, once.
        tuning: "full", "frozen", "gradual", "layerwise" or "lora", or one of them with a number, such as
            "lora:16"; see `Tuning`. Where each region lies is learned always.

    Raises:
        InputError: a setting out of its range; or, when built, no such model or folder, one that is not a
            CNN feature extractor, or weights of another.
    """

    def __init__(
        self,
        model: str | Path = "resnet18",
        *,
        pretrained: bool | str | Path | Mapping[str, object] = False,
        size: int = 224,
        channels: int = 1,
        most: int = 4,
        slices: int = 1,
        window: WindowChoice | list[float] | None = None,
        grid: int = 4,
        budget: int | None = None,
        augment: bool = True,
        tuning: str = "full",
    ) -> None:
        super().__init__()
        if not isinstance(model, (str, Path)):
            raise InputError(f"model is a {type(model).__name__}; expected a timm model's name, or a local folder.")
        require_weights(pretrained)
        require_counts(grid=grid, **({} if budget is None else {"budget": budget}))
        require_truth(augment=augment)
        if grid < 1:
            raise InputError(f"grid is {grid}; expected at least 1 token along each side of an image.")
        self.reader = ImageReader(size, channels=channels, most=most, slices=slices, window=window)
        if budget is not None and budget < most * slices:
            raise InputError(f"budget is {budget}; expected a token for each of {most} × {slices} images, or None.")
        self.model, self.pretrained, self.grid, self.augment = str(model), pretrained, grid, augment
        self.budget = budget
        self.tuning = Tuning.parse(tuning)
        self.architecture: dict[str, object] = {}
        self.width = 0

    def build(self, cohort: Cohort) -> None:
        self.reader.fit(cohort)
        self.architecture = architecture_of(self.model)
        channels, size = self.reader.channels, self.reader.size
        if self.pretrained is False:
            backbone = fresh_backbone(self.architecture, channels)
            network = ImageNetwork(backbone, channels, [self.reader.mean_], [self.reader.std_])
        else:
            network = pretrained_network(self.model, self.architecture, self.pretrained, channels, size)
            # A state dict is not to lie beside the network that it went into, nor beside all copies of that.
            self.pretrained = True
        self._take(network)

    def describe(self) -> dict[str, object]:
        settings = {"model": self.model, "grid": self.grid, "augment": self.augment, "tuning": str(self.tuning)}
        settings |= {name: getattr(self.reader, name) for name in ("size", "channels", "most", "slices", "window")}
        settings |= {"pretrained": self.pretrained is not False, "budget": self.budget}
        own = {"architecture": self.architecture, "planes": self.planes}
        return {"settings": settings, "reader": self.reader.state(), **own}

    def rebuild(self, description: Mapping[str, object]) -> None:
        self.reader.restore(description["reader"])
        self.architecture = dict(description["architecture"])
        planes = int(description.get("planes", self.reader.channels))
        # The scaling is loaded with the weights.
        self._take(ImageNetwork(fresh_backbone(self.architecture, planes), planes, [0.0], [1.0]))

    def _take(self, network: ImageNetwork) -> None:
        """Make the layers around a network."""
        self.backbone, self.planes = network.backbone, network.planes
        side, self.width = feature_map(self.backbone, self.planes, self.reader.size, self.model)
        self.tuning.prepare(self.backbone)
        self.backbone.to(memory_format=torch.channels_last)
        self.tokens_per_side = min(self.grid, side)
        self.position = nn.Parameter(torch.zeros(self.tokens_per_side**2, self.width))
        scalings = 3 if self.planes == 3 else 1
        for name, scale in (("mean", network.mean), ("std", network.std)):
            each = torch.tensor(scale, dtype=torch.float32).expand(scalings)
            self.register_buffer(name, each.reshape(-1, 1, 1).clone())
        if self.budget:
            self.studies = StudyAttention(self.width)
        self.train(self.training)

    def train(self, mode: bool = True) -> ImageEncoder:
        super().train(mode)
        if hasattr(self, "backbone"):
            settle(self.backbone)
        return self

    def rates(self) -> list[tuple[nn.Parameter, float]]:
        return self.tuning.rates(self.backbone, pretrained=self.pretrained is not False)

    def thaw(self, epoch: int | None) -> None:
        if self.tuning.thaw(self.backbone, epoch):
            self.train(self.training)

    def recompute(self, on: bool) -> bool:
        # Under a budget they are computed again in any case.
        return bool(self.budget) or recompute_images(self.backbone, on)

    def compile_network(self, on: bool) -> None:
        compile_network(self.backbone, on)

    def identity(self) -> dict[str, object]:
        weights = weights_hash(self.backbone, {"mean": self.mean, "std": self.std})
        own = {"planes": self.planes, "tokens_per_side": self.tokens_per_side, "weights": weights}
        return {"architecture": self.architecture, **own}

    def detailed(self, packed: Packed) -> np.ndarray:
        cells = np.full(len(packed.rows), len(self.position))
        return detailed_entries(packed, cells, self.budget)

    def encoded(self, part: Images) -> Encoded:
        # Integers travelled; floats are made here, on the device.
        pixels = part.pixels.float() / 255
        if self.training and self.augment and not self.tuning.is_frozen:
            pixels = jitter_images(pixels)
        pixels = scaled(pixels, self.mean, self.std, self.planes).contiguous(memory_format=torch.channels_last)
        features = self.backbone.forward_features(pixels)

        # One token a cell of the grid, each with the hour of its image.
        cells = pooled(features, self.tokens_per_side).flatten(2).transpose(1, 2)
        each = cells.shape[1]
        patient, hours = (column.repeat_interleave(each) for column in (part.patient, part.hours))
        place = torch.arange(each, device=patient.device).repeat(len(cells))
        return Encoded(patient, hours, cells.flatten(0, 1), place)

    def forward(self, part: Images | Encoded, patients: int) -> Tokens:
        # Nobody has an image: the network is not run, and no batch norm meets a picture that is not there.
        if not len(part.patient):
            return no_tokens(patients, self.width, self.position)
        if self.budget:
            return self._within_budget(part, patients)
        if isinstance(part, Images):
            part = self.encoded(part)
        cells = part.values.unflatten(0, (-1, len(self.position))) + self.position
        return gather_tokens(cells.flatten(0, 1), part.hours, part.patient, patients)

    def _within_budget(self, part: Images | Encoded, patients: int) -> Tokens:
        if isinstance(part, Images):
            cells = torch.full_like(part.patient, len(self.position))
            detailed = in_detail(part.patient, part.hours, cells, self.budget)
            part = encoded_in_turns(self.encoded, self.backbone, part, detailed)
        # An image as a whole lies where its cells do on average; its place is -1, the last.
        position = torch.cat([self.position, self.position.mean(0, keepdim=True)])
        return self.studies(part._replace(values=part.values + position[part.place]), patients)
