"""Tokens to risk: fusion heads, the model and its files, training, evaluation, explanation.

Names are loaded when they are first used, so that what needs no network stays quick to import.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .checkpoint import History
    from .concatenation import ConcatenationFusion
    from .cross_attention import CrossAttentionFusion
    from .ensemble import Ensemble
    from .ensemble_training import fit_ensemble
    from .evaluation import Evaluation, evaluate, paired_difference
    from .inference import contributions, predict
    from .model import FusionModel
    from .training import fit

_HOME = {
    "ConcatenationFusion": "concatenation",
    "CrossAttentionFusion": "cross_attention",
    "Ensemble": "ensemble",
    "Evaluation": "evaluation",
    "FusionModel": "model",
    "History": "checkpoint",
    "contributions": "inference",
    "evaluate": "evaluation",
    "fit": "training",
    "fit_ensemble": "ensemble_training",
    "paired_difference": "evaluation",
    "predict": "inference",
}
__all__ = [
    "ConcatenationFusion",
    "CrossAttentionFusion",
    "Ensemble",
    "Evaluation",
    "FusionModel",
    "History",
    "contributions",
    "evaluate",
    "fit",
    "fit_ensemble",
    "paired_difference",
    "predict",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
