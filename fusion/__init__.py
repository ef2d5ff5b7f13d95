"""Tokens to risk: fusion heads, the model and its files, training, evaluation, explanation.

Names are loaded when they are first used, so that what needs no network stays quick to import.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .batch_size import largest_batch
    from .bottleneck import BottleneckFusion
    from .checkpoint import History
    from .concatenation import ConcatenationFusion
    from .cross_attention import CrossAttentionFusion
    from .ensemble import Ensemble
    from .ensemble_training import fit_ensemble
    from .evaluation import Evaluation, evaluate, paired_difference
    from .experts import ExpertFusion
    from .gated import GatedFusion
    from .inference import contributions, predict
    from .late import LateFusion
    from .low_rank import LowRankFusion
    from .model import FusionModel
    from .recurrent import RecurrentFusion
    from .training import fit
    from .training_samples import sample_hashes

_HOME = {
    "BottleneckFusion": "bottleneck",
    "ConcatenationFusion": "concatenation",
    "CrossAttentionFusion": "cross_attention",
    "Ensemble": "ensemble",
    "Evaluation": "evaluation",
    "ExpertFusion": "experts",
    "FusionModel": "model",
    "GatedFusion": "gated",
    "History": "checkpoint",
    "LateFusion": "late",
    "LowRankFusion": "low_rank",
    "RecurrentFusion": "recurrent",
    "contributions": "inference",
    "evaluate": "evaluation",
    "fit": "training",
    "fit_ensemble": "ensemble_training",
    "largest_batch": "batch_size",
    "paired_difference": "evaluation",
    "predict": "inference",
    "sample_hashes": "training_samples",
}
__all__ = [
    "BottleneckFusion",
    "ConcatenationFusion",
    "CrossAttentionFusion",
    "Ensemble",
    "Evaluation",
    "ExpertFusion",
    "FusionModel",
    "GatedFusion",
    "History",
    "LateFusion",
    "LowRankFusion",
    "RecurrentFusion",
    "contributions",
    "evaluate",
    "fit",
    "fit_ensemble",
    "largest_batch",
    "paired_difference",
    "predict",
    "sample_hashes",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
