"""One encoder a modality, each from its part of a batch to `Tokens`."""

from .augmentation import ASSAY_ERROR, LabAugmentation
from .encoder import Encoder
from .image_encoder import ImageEncoder
from .lab_encoder import LabEncoder
from .note_encoder import NoteEncoder
from .static_encoder import StaticEncoder
from .tokens import Encoded, Tokens
from .tuning import Tuned, Tuning

__all__ = [
    "ASSAY_ERROR",
    "Encoded",
    "Encoder",
    "ImageEncoder",
    "LabAugmentation",
    "LabEncoder",
    "NoteEncoder",
    "StaticEncoder",
    "Tokens",
    "Tuned",
    "Tuning",
]
