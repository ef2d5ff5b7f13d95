"""One encoder a modality, each from its part of a batch to `Tokens`."""

from .encoder import Encoder
from .image_encoder import ImageEncoder
from .lab_encoder import LabEncoder
from .note_encoder import NoteEncoder
from .static_encoder import StaticEncoder
from .tokens import Encoded, Tokens
from .tuning import Tuned, Tuning

__all__ = [
    "Encoded",
    "Encoder",
    "ImageEncoder",
    "LabEncoder",
    "NoteEncoder",
    "StaticEncoder",
    "Tokens",
    "Tuned",
    "Tuning",
]
