"""Hospital data in: formats, the cohort, splits, samples and batches. No neural network here.

Names are loaded when they are first used, so that `import chiasm.datasets` stays quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if __name__ == "datasets":
    raise ImportError(
        "This is the folder of chiasm.datasets, not Hugging Face datasets: Python found it because the "
        "checkout of chiasm is the working directory. Import chiasm.datasets, or start Python with "
        "PYTHONSAFEPATH=1 or from another folder."
    )

if TYPE_CHECKING:
    from .batch import Batch
    from .cohort import Cohort
    from .errors import InputError, UnreadableImageError
    from .outcomes import OutcomeKind
    from .pixels import ImageFile, read_image
    from .volumes import Volume, slabs
    from .windows import Sample

_HOME = {
    "Batch": "batch",
    "Cohort": "cohort",
    "ImageFile": "pixels",
    "InputError": "errors",
    "OutcomeKind": "outcomes",
    "Sample": "windows",
    "UnreadableImageError": "errors",
    "Volume": "volumes",
    "read_image": "pixels",
    "slabs": "volumes",
}
__all__ = [
    "Batch",
    "Cohort",
    "ImageFile",
    "InputError",
    "OutcomeKind",
    "Sample",
    "UnreadableImageError",
    "Volume",
    "read_image",
    "slabs",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
