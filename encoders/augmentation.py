"""Changes that leave the meaning of an image, a series or a note as it is, drawn anew at every training step.

Images are not flipped, since laterality means something, and have no colour to vary: see timm's
defaults, which do both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from ..datasets.arguments import require_numbers
from ..datasets.batch import Labs
from ..datasets.errors import InputError

# A patient stands a little askew, off centre, nearer or farther; exposure and window vary.
ROTATION = math.radians(7)
SHIFT = 0.05
"""Of the image's side."""
SCALE = 0.1
CONTRAST = 0.2
BRIGHTNESS = 0.1
"""Of the range from black to white."""

# Byte-level vocabularies write the end of a line so.
_SENTENCE_ENDS = (".", "!", "?", "Ċ")

ASSAY_ERROR = 0.1
"""Of a lab value, in robust standard deviations of the patients' values.

An assay is good enough if its imprecision is half the variation within a healthy person (Harris, American Journal
of Clinical Pathology 72:374-382, 1979). With a variation within persons of 0.6 of that between them, as is common,
that is 0.5 × 0.6 / √(1 + 0.6²) = 0.26 standard deviations of healthy people's values; those of patients in hospital
spread some 2.5 times as far.
"""


@dataclass(frozen=True)
class LabAugmentation:
    """How series are varied in training, drawn anew at every step.

    Args:
        dropped: mean share of a patient's measurements that are left out; wards differ in how often they measure.
        jitter: standard deviation of what is added to each value, in robust standard deviations of the patients'
            values; `ASSAY_ERROR` is that of an assay.
        shift: hours by which a patient's whole series is moved at most, back or forth, but not past the prediction.

    Raises:
        InputError: a number out of its range.
    """

    dropped: float = 0.1
    jitter: float = 0.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        require_numbers(**asdict(self))
        if not 0 <= self.dropped < 0.5:
            raise InputError(f"dropped is {self.dropped}; expected a share of the measurements from 0 to below 0.5.")
        if not 0 <= self.jitter <= 1:
            raise InputError(f"jitter is {self.jitter}; expected standard deviations, from 0 to 1.")
        if not 0 <= self.shift < math.inf:
            raise InputError(f"shift is {self.shift}; expected a number of hours of 0 or more.")

    @classmethod
    def of(cls, given: LabAugmentation | Mapping[str, float]) -> LabAugmentation:
        """As it is, or from the names and numbers that a saved model has of it.

        Raises:
            InputError: it is neither, or has other names.
        """
        if isinstance(given, cls):
            return given
        names = [field.name for field in fields(cls)]
        if not isinstance(given, Mapping) or set(given) - set(names):
            told = ", ".join(map(str, given)) if isinstance(given, Mapping) else type(given).__name__
            raise InputError(f"augmentation has {told}; expected a LabAugmentation, or numbers of {', '.join(names)}.")
        return cls(**given)

    def __call__(self, part: Labs, patients: int) -> Labs:
        """The series of a batch of so many patients, varied; some measurement of each stays."""
        if self.dropped:
            part = drop_measurements(part, self.dropped, patients)
        if self.jitter:
            part = jitter_values(part, self.jitter)
        return shift_series(part, self.shift, patients) if self.shift else part


def jitter_images(pixels: Float[Tensor, "image channel height width"]) -> Float[Tensor, "image channel height width"]:
    """Slightly rotated, shifted, scaled images of slightly other contrast and brightness.

    Args:
        pixels: in [0, 1]; what comes in from outside the image is black.
    """
    count, device = len(pixels), pixels.device

    def draw(reach: float) -> Tensor:
        return (2 * torch.rand(count, device=device) - 1) * reach

    angle, scale = draw(ROTATION), 1 + draw(SCALE)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    # Coordinates of grid_sample run from -1 to 1: a shift by a share of the side is twice that share.
    rows = [torch.stack([cos, -sin, draw(2 * SHIFT)], 1), torch.stack([sin, cos, draw(2 * SHIFT)], 1)]
    # At a low precision neighbouring pixels would have the same coordinates.
    with torch.autocast(device.type, enabled=False):
        grid = functional.affine_grid(torch.stack(rows, 1), list(pixels.shape), align_corners=False)
        moved = functional.grid_sample(pixels, grid, align_corners=False)
    contrast, brightness = 1 + draw(CONTRAST), draw(BRIGHTNESS)
    return (moved * contrast[:, None, None, None] + brightness[:, None, None, None]).clamp(0, 1)


def hide_words(real: Bool[Tensor, "piece token"], share: float) -> Bool[Tensor, "piece token"]:
    """Which tokens are still read when a share of them is hidden; the first of each piece always is."""
    seen = torch.rand(real.shape, device=real.device) >= share
    seen[:, 0] = True
    return real & seen


def sentence_marks(vocabulary: Mapping[str, int]) -> tuple[Bool[Tensor, " word"], Bool[Tensor, " word"]]:
    """Which words of a tokenizer end a sentence, and which begin with a digit."""
    ends, digits = torch.zeros(2, 1 + max(vocabulary.values(), default=0), dtype=torch.bool)
    for word, number in vocabulary.items():
        # WordPiece, SentencePiece and byte-level vocabularies mark beginnings and continuations of words.
        plain = word.removeprefix("##").lstrip("▁Ġ")
        ends[number], digits[number] = plain in _SENTENCE_ENDS, plain[:1].isdecimal()
    return ends, digits


def hide_sentences(
    real: Bool[Tensor, "piece token"], last: Bool[Tensor, "piece token"], share: float
) -> Bool[Tensor, "piece token"]:
    """Which tokens are still read when a share of the sentences is hidden.

    One sentence of each piece always is, and the first token.

    Args:
        real: which tokens there are.
        last: tokens with which a sentence ends.
        share: probability for each sentence.
    """
    # The mark of the end, which may follow the last sentence, is none of its own.
    last = last & functional.pad(real, (0, 2))[:, 2:]
    sentence = last.long().cumsum(1) - last.long()
    draw = torch.rand(len(real), int(sentence.max()) + 1, device=real.device)
    highest = draw.gather(1, sentence).masked_fill(~real, -1).amax(1, keepdim=True)
    seen = ((draw >= share) | (draw == highest)).gather(1, sentence)
    seen[:, 0] = True
    return real & seen


def drop_measurements(part: Labs, share: float, patients: int) -> Labs:
    """The measurements that are left when each patient loses a share of them, and their time steps.

    Wards differ in how often they measure: the share of a patient is uniform between 0 and twice
    `share`. The first measurement always stays, so that nobody's series vanishes.

    Args:
        part: rows sorted by patient and time step.
        share: mean over the patients, below 0.5.
        patients: how many there are in the batch.
    """
    own_share = 2 * share * torch.rand(patients, device=part.patient.device)
    kept = torch.rand(part.patient.shape, device=part.patient.device) >= own_share.index_select(0, part.patient)
    kept[0] = True
    kept[1:] |= part.patient[1:] != part.patient[:-1]
    rows = kept.nonzero()[:, 0]
    part = Labs(*(column.index_select(0, rows) for column in part))
    # A step of which nothing is left does not exist.
    place = part.patient * (part.step.max() + 1) + part.step
    number = torch.unique_consecutive(place, return_inverse=True)[1]
    first = number.new_full((patients,), len(place)).scatter_reduce(0, part.patient, number, "amin")
    return part._replace(step=number - first.index_select(0, part.patient))


def jitter_values(part: Labs, deviation: float) -> Labs:
    """Values with an error of measurement.

    What lies at the median exactly stays there, and so do all codes without a value, whose values are all 1.
    """
    error = deviation * torch.randn_like(part.value)
    return part._replace(value=torch.where(part.value == 0, part.value, part.value + error))


def shift_series(part: Labs, reach: float, patients: int) -> Labs:
    """Each patient's series as a whole earlier or later by up to so many hours, and never past the prediction."""
    latest = part.hours.new_full((patients,), -torch.inf).scatter_reduce(0, part.patient, part.hours, "amax")
    moved = torch.minimum((2 * torch.rand(patients, device=latest.device) - 1) * reach, -latest)
    # What is rounded may not come to lie in the future.
    return part._replace(hours=(part.hours + moved[part.patient]).clamp(max=0))
